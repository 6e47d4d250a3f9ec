"""Outside a Trainer: a grown module's optimizer goes on where the source's was, against the source going on itself."""

import gc
import pickle
from dataclasses import replace

import pytest
import torch
from models import features, stack
from torch import nn

from lightning_grow import RefusedGrowth, grow, grow_optimizer, plan_growth
from lightning_grow.errors import WrongSetting

OPTIMIZERS = {
    "Adam": lambda groups: torch.optim.Adam(groups, lr=1e-2),
    "AdamW, amsgrad": lambda groups: torch.optim.AdamW(groups, lr=1e-2, amsgrad=True),
    "SGD": lambda groups: torch.optim.SGD(groups, lr=1e-2, momentum=0.9),
    "RMSprop": lambda groups: torch.optim.RMSprop(groups, lr=1e-2, centered=True),
    "NAdam": lambda groups: torch.optim.NAdam(groups, lr=1e-2),
    "Adagrad": lambda groups: torch.optim.Adagrad(groups, lr=1e-2),
}


def step(model, optimizer, count=1):
    for _ in range(count):
        optimizer.zero_grad()
        (model(*features()) - 1).square().mean().backward()
        optimizer.step()


def trained(make):
    torch.manual_seed(0)
    model = stack(8).double()
    optimizer = make(model.parameters())
    step(model, optimizer, 4)
    return model, optimizer


@pytest.mark.parametrize("make", OPTIMIZERS.values(), ids=OPTIMIZERS)
def test_old_entries_take_the_step_that_the_source_would_have_taken(make):
    small, old = trained(make)
    large = stack(12).double()
    report = grow(small, large, example_inputs=features())
    new = make(large.parameters())
    carried = grow_optimizer(report, old, new)
    assert carried.fresh == []
    step(small, old)
    step(large, new)
    for name, weight in small.named_parameters():
        grown = large.get_parameter(name)[tuple(slice(0, size) for size in weight.shape)]
        torch.testing.assert_close(
            grown, weight, rtol=0, atol=1e-10
        )  # float64, a rounding over sqrt(v) of small gradients
    fresh = make(stack(12).double().parameters())
    assert new.state_dict()["param_groups"] == fresh.state_dict()["param_groups"]  # its own settings


def test_parameters_are_told_by_what_they_are_whatever_the_order_of_the_groups():
    def by_rank(model):
        wide = [item for item in model.parameters() if item.dim() > 1]
        return [{"params": wide}, {"params": [item for item in model.parameters() if item.dim() == 1]}]

    small, old = trained(lambda parameters: torch.optim.Adam(parameters, lr=1e-2))
    large = stack(12).double()
    report = grow(small, large, example_inputs=features())
    new = torch.optim.Adam(by_rank(large)[::-1], lr=1e-2)
    grow_optimizer(report, old, new)
    for name, weight in small.named_parameters():
        moved = new.state[large.get_parameter(name)]["exp_avg"]
        kept = moved[tuple(slice(0, size) for size in weight.shape)]
        assert torch.equal(kept, old.state[weight]["exp_avg"])


def test_a_target_that_was_on_the_meta_device():
    small, old = trained(OPTIMIZERS["Adam"])
    with torch.device("meta"):
        large = stack(12).double()
    report = grow(small, large, example_inputs=features())
    new = torch.optim.Adam(large.parameters(), lr=1e-2)
    assert len(grow_optimizer(report, old, new).kept) == len(list(small.parameters()))


def test_copies_go_on_only_where_that_is_asked_for():
    small, old = trained(OPTIMIZERS["Adam"])
    large = stack(16).double()
    plan = grow(small, large, strategy="net2wider", example_inputs=features()).plan
    new = torch.optim.Adam(large.parameters(), lr=1e-2)
    assert len(grow_optimizer(plan, old, new).fresh) > 0
    carried = grow_optimizer(plan, old, new, "asymmetric")
    assert carried.fresh == []
    assert carried.approximate


def unlike(optimizer):
    return {
        index: {kind: value.clone() if isinstance(value, torch.Tensor) else value for kind, value in state.items()}
        for index, state in optimizer.state_dict()["state"].items()
    }


def refusals():
    small, old = trained(OPTIMIZERS["Adam"])
    large = stack(12).double()
    report = grow(small, large, example_inputs=features())
    new = torch.optim.Adam(large.parameters())
    another = torch.optim.Adam(stack(8).double().parameters())
    narrower = stack(4).double()
    refused = plan_growth(small, narrower, example_inputs=features())
    return {
        "source": ((report, another, new), "the source optimizer steps no parameter of the source module"),
        "target": ((report, old, another), "the target optimizer steps no parameter of the target module"),
        "swapped": ((report, new, old), "the source optimizer steps no parameter"),
        "refused": ((refused, old, torch.optim.Adam(narrower.parameters())), "."),
        "copied": ((pickle.loads(pickle.dumps(report.plan)), old, new), "the source module is gone"),
        "no plan": ((replace(report, plan=None), old, new), "no plan"),
    }, (small, large, narrower)


@pytest.mark.parametrize("case", ["source", "target", "swapped", "refused", "copied", "no plan"])
def test_what_cannot_be_done_is_refused_and_changes_nothing(case):
    cases, alive = refusals()
    (growth, old, new), message = cases[case]
    before = unlike(old), unlike(new)
    with pytest.raises(RefusedGrowth, match=message):
        grow_optimizer(growth, old, new)
    after = unlike(old), unlike(new)
    torch.testing.assert_close(after, before, rtol=0, atol=0)
    assert all(isinstance(module, nn.Module) for module in alive)


def test_a_source_that_is_gone_is_named():
    small, old = trained(OPTIMIZERS["Adam"])
    large = stack(12).double()
    report = grow(small, large, example_inputs=features())
    del small
    gc.collect()
    with pytest.raises(RefusedGrowth, match=r"the source module is gone.*Keep it until"):
        grow_optimizer(report, old, torch.optim.Adam(large.parameters()))


def test_another_way_is_no_way():
    with pytest.raises(WrongSetting, match="'reset'"):
        grow_optimizer(None, None, None, "reset")
