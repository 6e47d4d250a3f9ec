"""Names with and without the prefix of a compiled module are one name."""

import pytest

from lightning_grow.trace.names import align_names, strip_compiled

PREFIXED = {"0.weight": "0.weight", "_orig_mod.0.weight": "0.weight", "a._orig_mod.b._orig_mod.c": "a.b.c"}


@pytest.mark.parametrize(("name", "plain"), PREFIXED.items())
def test_the_prefix_goes_wherever_it_stands(name, plain):
    assert strip_compiled(name) == plain
    assert align_names({name: 1}, [plain]) == {plain: 1}
    assert align_names({plain: 1}, [name]) == {name: 1}


def test_a_name_that_only_one_side_has_stays():
    assert align_names({"_orig_mod.a": 1, "b": 2}, ["a"]) == {"a": 1, "b": 2}
    assert align_names({"_orig_mod.b": 2}, ["a"]) == {"_orig_mod.b": 2}
