"""Blocks of real projects: exact, or refused for the right reason."""

import pytest
from blocks import BLOCKS
from families import FAMILIES
from routed import ROUTED

from lightning_grow import RefusedGrowth, grow

ALL = BLOCKS | ROUTED | FAMILIES


@pytest.mark.parametrize("strategy", ["preserve", "net2wider"])
@pytest.mark.parametrize("block", ALL.values(), ids=ALL)
def test_the_block_grows_exactly_or_is_refused(block, strategy):
    source, target, options = block.make()
    if block.refused:
        with pytest.raises(RefusedGrowth, match=block.refused) as caught:
            grow(source, target, strategy=strategy, **options)
        assert "the plan expected it to be exact" not in str(caught.value)
        return
    report = grow(source, target, strategy=strategy, **options)
    assert report.max_output_error <= 1e-13  # float64, a few hundred operations
