"""What a plan says of the weights it says of everything of their shape: moments, averages."""

import pytest
import torch
from models import features, stack

from lightning_grow import grow, plan_growth
from lightning_grow.apply.apply import move_copy, move_state


@pytest.mark.parametrize("power", [0, 1, 2])
def test_moments_move_as_their_entries_and_start_at_zero(power):
    source, target = stack(4, norm=True).double(), stack(6, norm=True).double()
    plan = plan_growth(source, target, example_inputs=features())
    report = grow(source, target, example_inputs=features())
    for name, before in source.state_dict().items():
        if name not in dict(target.named_parameters()):
            continue
        moment, after = torch.rand_like(before) + 1, target.state_dict()[name]
        moved = move_state(plan, name, moment, power)
        assert move_state(plan, name, moment[:1, None], power) is None
        old = tuple(map(slice, before.shape))
        known = before != 0  # where not, nothing tells the factor; 1 / the factor is what the gradient got
        torch.testing.assert_close(moved[old][known], (moment / (after[old] / before) ** power)[known])
        rest = torch.ones(after.shape, dtype=torch.bool)
        rest[old] = False
        assert (moved[rest] == 0).all()
    assert report.function_preserving


def test_an_average_takes_its_new_entries_from_the_grown_weight():
    source, target = stack(4).double(), stack(6).double()
    plan = plan_growth(source, target, example_inputs=features())
    grow(source, target, example_inputs=features())
    grown = target.state_dict()["0.weight"]
    moved = move_copy(plan, "0.weight", source.state_dict()["0.weight"] + 1, grown)
    torch.testing.assert_close(moved[:4], source.state_dict()["0.weight"] + 1)
    assert torch.equal(moved[4:], grown[4:])
    assert move_copy(plan, "0.weight", torch.zeros(3, 6), grown) is None
