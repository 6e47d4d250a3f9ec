"""Units go where their constants are: all that constants say of them counts; where no place fits it is refused."""

import pytest
import torch
from torch import nn

from lightning_grow import RefusedGrowth, grow

EXACT = 1e-12  # float64, a few dozen operations
NUMBERS = {  # (each constant of the source, of the target), the places of the source's units
    "every second": ([([1.0, 2.0], [0.5, 1.0, 1.5, 2.0])], [1, 3]),
    "one decides where another leaves it open": (
        [([1.0, 2.0], [9.0, 1.0, 2.0, 2.0]), ([3.0, 4.0], [3.0, 3.0, 5.0, 4.0])],
        [1, 3],
    ),
    "the first ones": ([([1.0, 2.0], [1.0, 2.0, 3.0, 4.0])], [0, 1]),
}


class Scaled(nn.Module):
    def __init__(self, *constants):
        super().__init__()
        self.into, self.out = nn.Linear(3, len(constants[0])), nn.Linear(len(constants[0]), 2)
        self.constants = constants

    def forward(self, x):
        hidden = self.into(x)
        for constant in self.constants:
            hidden = torch.tanh(hidden) * torch.tensor(constant)
        return self.out(hidden)


@pytest.mark.parametrize(("constants", "places"), NUMBERS.values(), ids=NUMBERS)
def test_units_go_where_all_their_constants_are(constants, places):
    source, target = Scaled(*[old for old, _ in constants]).double(), Scaled(*[new for _, new in constants]).double()
    x = torch.randn(5, 3, dtype=torch.float64)
    assert grow(source, target, example_inputs=(x,)).max_output_error <= EXACT
    assert torch.equal(target.into.weight[places], source.into.weight)


REFUSED = {
    "a value that is gone": ([1.0, 2.0], [1.0, 3.0, 4.0, 5.0]),
    "another order": ([1.0, 2.0], [2.0, 1.0, 3.0, 4.0]),
    "one place for two": ([1.0, 1.0], [1.0, 2.0, 3.0]),
}


@pytest.mark.parametrize(("old", "new"), REFUSED.values(), ids=REFUSED)
def test_where_they_do_not_reappear_in_order_the_growth_is_refused(old, new):
    advice = "Take a multiple of the source's size" if len(new) % len(old) else "Keep this size and grow another size"
    with pytest.raises(RefusedGrowth, match=f"do not all reappear in order. {advice}"):
        grow(Scaled(old), Scaled(new), example_inputs=(torch.randn(5, 3),))


def test_units_of_an_output_have_their_places():
    class Shown(Scaled):
        def forward(self, x):
            return self.into(x) * torch.tensor(self.constants[0])

    source, target = Shown([1.0, 2.0]), Shown([0.5, 1.0, 1.5, 2.0])
    with pytest.raises(RefusedGrowth, match="other values at the source's positions"):
        grow(source, target, example_inputs=(torch.randn(5, 3),), allow_output_growth=True)
