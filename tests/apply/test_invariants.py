"""What breaks inside is a GrowError that says where, and leaves everything as it was."""

from dataclasses import replace

import pytest
import torch
from models import features, stack

from lightning_grow import GrowError, RefusedGrowth, Strategy, grow, plan_growth
from lightning_grow.apply.apply import empty_state, write_state

REPORT = r"This is a fault of lightning_grow; nothing was changed\. Report it"


class Broken(Strategy):
    """Fails while the plan is made."""

    def units(self, old, new, generator):
        return {}[old]


def test_a_fault_while_planning_says_where():
    source, target = stack(4).double(), stack(6).double()
    before = {name: item.clone() for name, item in target.state_dict().items()}
    with pytest.raises(
        GrowError, match=rf"planning the growth of a Sequential to a Sequential: KeyError.*{REPORT}"
    ) as caught:
        grow(source, target, strategy=Broken(), example_inputs=features())
    assert not isinstance(caught.value, RefusedGrowth)  # the architecture is not what is wrong
    assert isinstance(caught.value.__cause__, KeyError)
    assert all(torch.equal(before[name], item) for name, item in target.state_dict().items())


@pytest.mark.parametrize("name", ["0.weight", "2.weight"])
def test_a_plan_that_takes_from_nowhere_writes_nothing(name):
    source, target = stack(4).double(), stack(6).double()
    plan = plan_growth(source, target, example_inputs=features())
    wrong = replace(plan.tensors[name], source_name=None, source_shape=None)
    broken = replace(plan, tensors={**plan.tensors, name: wrong})
    grown = {key: item.fill_(7.0) for key, item in empty_state(target.state_dict()).items()}
    with pytest.raises(GrowError, match=rf"writing '{name}': .*{REPORT}"):
        write_state(broken, source.state_dict(), target.state_dict(), grown, 0)
    assert all(bool((item == 7.0).all()) for item in grown.values())


def test_new_states_are_tied_where_the_targets_are_and_nowhere_else():
    one, other, meta, second = torch.ones(2), torch.ones(2), torch.ones(2, device="meta"), torch.ones(2, device="meta")
    none, nothing = torch.ones(0, 2), torch.ones(0, 2)
    state = {"a": one, "tied": one, "b": other, "m": meta, "m tied": meta, "n": second, "e": none, "f": nothing, "x": 3}
    made = empty_state(state)
    ties = {(key, name) for key in made for name in made if key < name and made[key] is made[name]}
    assert ties == {("a", "tied"), ("m", "m tied")}
    assert made["x"] == 3
    assert made["a"].data_ptr() != one.data_ptr()
