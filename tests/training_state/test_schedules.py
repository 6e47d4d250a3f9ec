"""Schedules that go on in other parameter groups: split, in another order, and with new ones for new layers."""

import pytest
import torch
from test_optimizers import INPUTS, grown, make_net, train, trained
from torch import optim
from torch.optim import lr_scheduler

from lightning_grow.errors import RefusedGrowth
from lightning_grow.grow import transfer
from lightning_grow.training_state.optimizers import carry_optimizers

SHARED = {
    "cosine": lambda optimizer: lr_scheduler.CosineAnnealingLR(optimizer, 60),
    "restarts": lambda optimizer: lr_scheduler.CosineAnnealingWarmRestarts(optimizer, 7),
    "one cycle": lambda optimizer: lr_scheduler.OneCycleLR(
        optimizer, [3 * group["lr"] for group in optimizer.param_groups], total_steps=60
    ),
    "exponential": lambda optimizer: lr_scheduler.ExponentialLR(optimizer, 0.9),
    "lambda": lambda optimizer: lr_scheduler.LambdaLR(
        optimizer, [lambda step: 1 / (1 + step) for _ in optimizer.param_groups]
    ),
    "sequence": lambda optimizer: lr_scheduler.SequentialLR(
        optimizer, [lr_scheduler.LinearLR(optimizer), lr_scheduler.ExponentialLR(optimizer, 0.9)], milestones=[12]
    ),
    "chain": lambda optimizer: lr_scheduler.ChainedScheduler(
        [lr_scheduler.LinearLR(optimizer), lr_scheduler.ExponentialLR(optimizer, 0.9)]
    ),
}
"""Schedules that move every group by one factor."""

APART = {
    "plateau": lambda optimizer: lr_scheduler.ReduceLROnPlateau(optimizer, factor=0.5, patience=2),
    "a floor": lambda optimizer: lr_scheduler.CosineAnnealingLR(optimizer, 60, eta_min=1e-3),
}
"""Schedules whose groups do not say how far another one would have come."""


def layers(net):
    """A group for every layer, at a rate of its own."""
    linear = [layer for layer in net if hasattr(layer, "weight")]
    return [{"params": layer.parameters(), "lr": 0.01 * (layer.out_features + 1)} for layer in linear]


def names(net, optimizer):
    known = {id(parameter): name for name, parameter in net.named_parameters()}
    return [[known[id(parameter)] for parameter in group["params"]] for group in optimizer.param_groups]


def run(net, optimizer, scheduler, steps):
    rates = []
    for _ in range(steps):
        rates.append([(group["lr"], *group["betas"]) for group in optimizer.param_groups])
        train(net, optimizer, 1)
        scheduler.step(*[1.0] * isinstance(scheduler, lr_scheduler.ReduceLROnPlateau))
    return rates


def small_run(make_groups, schedule, named=True):
    """A network in the middle of a schedule, its checkpoint, and the rates of the next 20 steps."""
    net = make_net(6)
    optimizer = optim.Adam(make_groups(net))
    scheduler = schedule(optimizer)
    run(net, optimizer, scheduler, 20)
    record = {"optimizers": [names(net, optimizer)]} if named else {}
    checkpoint = {
        "optimizer_states": [optimizer.state_dict()],
        "lr_schedulers": [scheduler.state_dict()],
        "lightning_grow": {"architecture": record},
    }
    grown = make_net(6)
    grown.load_state_dict(net.state_dict())
    return grown, checkpoint, run(net, optimizer, scheduler, 20)


def resume(small, checkpoint, hidden, make_groups, schedule, choice):
    target = make_net(*hidden, seed=1)
    plan = transfer(small, target, example_inputs=(INPUTS,)).plan
    optimizer = optim.Adam(make_groups(target))
    scheduler = schedule(optimizer)
    carried = carry_optimizers(
        checkpoint | {"state_dict": target.state_dict()},
        target,
        [optimizer],
        [scheduler],
        plan,
        optimizer=choice,
        scheduler="keep",
    )
    optimizer.load_state_dict(carried.optimizer_states[0])
    scheduler.load_state_dict(carried.lr_schedulers[0])
    return target, optimizer, scheduler


@pytest.mark.parametrize("choice", ["reset", "transfer"])
@pytest.mark.parametrize("schedule", SHARED.values(), ids=SHARED)
def test_a_group_of_a_new_layer_joins_where_the_schedule_is(schedule, choice):
    def layers_from_the_output(net):
        return layers(net)[::-1]

    small, checkpoint, straight = small_run(layers, schedule)
    # 6 -> 6, 6: the second layer is new; its rate begins at 0.07 like the first one's
    found = run(*resume(small, checkpoint, (6, 6), layers_from_the_output, schedule, choice), 20)
    for (last, new, first), (old_first, old_last) in zip(found, straight, strict=True):
        assert (first, last) == (old_first, old_last)
        assert new == pytest.approx(old_first, rel=1e-12)  # a product instead of the value itself


def test_settings_of_a_group_follow_its_parameters():
    def split(net, *sizes, lr=1.0):
        return [
            {"params": [item for item in net.parameters() if item.dim() == size], "lr": lr * size, "weight_decay": size}
            for size in sizes
        ]

    schedule = SHARED["exponential"]
    small, checkpoint, straight = small_run(lambda net: split(net, 2, 1), schedule)
    changed = (small, checkpoint, (9,), lambda net: split(net, 1, 2, lr=5.0))
    _, optimizer, scheduler = resume(*changed, schedule, "transfer")
    assert [group["weight_decay"] for group in optimizer.param_groups] == [1, 2]
    assert scheduler.base_lrs == [1, 2]
    assert [group["lr"] for group in optimizer.param_groups] == [rate for rate, *_ in straight[0][::-1]]


def test_a_group_that_is_split_gives_its_rate_to_both():
    schedule = SHARED["cosine"]
    small, checkpoint, straight = small_run(lambda net: [{"params": net.parameters(), "lr": 0.05}], schedule)

    def split(net):
        return [{"params": layer["params"], "lr": 0.05} for layer in layers(net)]

    found = run(*resume(small, checkpoint, (9,), split, schedule, "transfer"), 20)
    assert found == [rates * 2 for rates in straight]


@pytest.mark.parametrize("choice", ["reset", "transfer"])
@pytest.mark.parametrize("schedule", APART.values(), ids=APART)
def test_a_new_group_is_refused_where_its_rate_is_unknown(schedule, choice):
    small, checkpoint, _ = small_run(layers, schedule)
    with pytest.raises(RefusedGrowth, match="a parameter group is new, and those of the checkpoint do not say"):
        resume(small, checkpoint, (6, 6), layers, schedule, choice)


def test_other_groups_need_names_in_the_checkpoint():
    small, checkpoint, _ = small_run(layers, SHARED["cosine"], named=False)
    words = "2 parameter groups and does not say which parameters are in them, the config builds 3"
    with pytest.raises(RefusedGrowth, match=words):
        resume(small, checkpoint, (6, 6), layers, SHARED["cosine"], "transfer")


def test_a_conversion_cannot_compare_other_groups():
    small, checkpoint, _ = small_run(layers, SHARED["cosine"])
    target = make_net(6, 6, seed=1)
    plan = transfer(small, target, example_inputs=(INPUTS,)).plan
    optimizer, checkpoint = optim.Adam(layers(target)), checkpoint | {"state_dict": target.state_dict()}
    with pytest.raises(RefusedGrowth, match="no scheduler is built here to compare"):
        carry_optimizers(checkpoint, target, [optimizer], None, plan, optimizer="transfer", scheduler="keep")


CYCLES = {
    "alone": lambda optimizer: lr_scheduler.CyclicLR(optimizer, 0.001, 0.1, step_size_up=15),
    "in a sequence": lambda optimizer: lr_scheduler.SequentialLR(
        optimizer, [lr_scheduler.LinearLR(optimizer), CYCLES["alone"](optimizer)], milestones=[3]
    ),
}


@pytest.mark.parametrize("choice", ["reset", "transfer"])
@pytest.mark.parametrize("schedule", CYCLES.values(), ids=CYCLES)
def test_a_cycle_keeps_its_momentum(schedule, choice):
    def make_groups(net):
        return [{"params": net.parameters(), "lr": 0.01}]

    small, checkpoint, straight = small_run(make_groups, schedule)
    assert straight[0][0][1] != 0.9  # Adam's own first beta, which the cycle moves
    assert run(*resume(small, checkpoint, (9,), make_groups, schedule, choice), 20) == straight


def test_a_tensor_rate_of_a_new_group_is_a_tensor():
    def make_groups(net):
        return [{**group, "lr": torch.tensor(group["lr"])} for group in layers(net)]

    small, checkpoint, _ = small_run(make_groups, SHARED["exponential"])
    _, optimizer, _ = resume(small, checkpoint, (6, 6), make_groups, SHARED["exponential"], "transfer")
    assert [type(group["lr"]) for group in optimizer.param_groups] == [torch.Tensor] * 3


def sequence(*makes):
    return lambda optimizer: lr_scheduler.SequentialLR(optimizer, [make(optimizer) for make in makes], milestones=[12])


OTHERS = {
    "by what is recorded": (
        lambda optimizer: lr_scheduler.LambdaLR(optimizer, lambda step: 0.9),
        lambda optimizer: lr_scheduler.MultiplicativeLR(optimizer, lambda step: 0.9),
        {"schedulers": ["LambdaLR"]},
    ),
    "by the entries of nested ones": (
        sequence(lr_scheduler.LinearLR, lambda optimizer: lr_scheduler.ExponentialLR(optimizer, 0.9)),
        sequence(lr_scheduler.ConstantLR, lambda optimizer: lr_scheduler.CosineAnnealingLR(optimizer, 9)),
        {},
    ),
}


@pytest.mark.parametrize(("old", "new", "record"), OTHERS.values(), ids=OTHERS)
def test_a_scheduler_of_another_kind_is_seen(old, new, record):
    def make_groups(net):
        return [{"params": net.parameters(), "lr": 0.01}]

    small, checkpoint, _ = small_run(make_groups, old)
    checkpoint["lightning_grow"]["architecture"] |= record
    with pytest.raises(RefusedGrowth, match=r"the checkpoint's scheduler.* is not the .* that the config builds"):
        resume(small, checkpoint, (9,), make_groups, new, "transfer")


def test_groups_that_the_config_splits_keep_what_it_splits_them_for():
    schedule = SHARED["exponential"]
    small, checkpoint, straight = small_run(
        lambda net: [{"params": net.parameters(), "lr": 0.01, "weight_decay": 0.1, "name": "all"}], schedule
    )

    def split(net):
        weights, biases = ([item for item in net.parameters() if item.dim() == size] for size in (2, 1))
        decays = [{"params": weights, "weight_decay": 0.1, "name": "decay"}, {"params": biases, "name": "no decay"}]
        return [{"lr": 0.01, **group} for group in decays]

    _, optimizer, _ = resume(small, checkpoint, (9,), split, schedule, "transfer")
    found = [(group["name"], group["weight_decay"]) for group in optimizer.param_groups]
    assert found == [("decay", 0.1), ("no decay", 0)]
    assert [group["lr"] for group in optimizer.param_groups] == [straight[0][0][0]] * 2


def test_groups_with_different_rates_are_not_joined():
    small, checkpoint, _ = small_run(layers, SHARED["cosine"])
    with pytest.raises(RefusedGrowth, match="group 0 of the config joins parameters with the rates"):
        resume(small, checkpoint, (9,), lambda net: [{"params": net.parameters()}], SHARED["cosine"], "transfer")


SETTINGS = {  # (in the checkpoint, in the config, what differs)
    "cosine": (
        lambda o: lr_scheduler.CosineAnnealingLR(o, 10),
        lambda o: lr_scheduler.CosineAnnealingLR(o, 20),
        "T_max=10",
    ),
    "one cycle": (
        lambda o: lr_scheduler.OneCycleLR(o, 0.1, total_steps=30),
        lambda o: lr_scheduler.OneCycleLR(o, 0.1, total_steps=40),
        "total_steps=30 in the checkpoint, 40 in the config",
    ),
    "cycle": (
        lambda o: lr_scheduler.CyclicLR(o, 0.01, 0.1, step_size_up=5, cycle_momentum=False),
        lambda o: lr_scheduler.CyclicLR(o, 0.01, 0.1, step_size_up=7, cycle_momentum=False),
        "total_size=10",
    ),
    "decay": (lambda o: lr_scheduler.StepLR(o, 5), lambda o: lr_scheduler.StepLR(o, 5, gamma=0.5), "gamma=0.1"),
    "plateau": (lr_scheduler.ReduceLROnPlateau, lambda o: lr_scheduler.ReduceLROnPlateau(o, patience=3), "patience=10"),
    "within": (
        lambda o: lr_scheduler.SequentialLR(o, [lr_scheduler.LinearLR(o), lr_scheduler.StepLR(o, 5)], [5]),
        lambda o: lr_scheduler.SequentialLR(o, [lr_scheduler.LinearLR(o), lr_scheduler.StepLR(o, 9)], [6]),
        r"milestones=\[5\] in the checkpoint, \[6\] in the config; StepLR has step_size=5",
    ),
}


@pytest.mark.parametrize(("had", "has", "said"), SETTINGS.values(), ids=SETTINGS)
@pytest.mark.parametrize("optimizer", ["reset", "transfer"])
def test_a_schedule_that_the_config_builds_otherwise_is_refused(had, has, said, optimizer):
    net, _, checkpoint = trained(lambda parameters: optim.SGD(parameters, lr=0.1), named=False)
    old = optim.SGD(net.parameters(), lr=0.1)
    target, plan = grown(net)
    checkpoint |= {"lr_schedulers": [had(old).state_dict()], "state_dict": target.state_dict()}
    checkpoint["optimizer_states"] = [old.state_dict()]
    choices = {"optimizer": optimizer, "scheduler": "keep"}

    def go_on(schedule):
        new = optim.SGD(target.parameters(), lr=0.1)
        return carry_optimizers(checkpoint, target, [new], [schedule(new)], plan, **choices)

    with pytest.raises(RefusedGrowth, match=f"{said}.*Give the config the checkpoint's.*scheduler='reset'"):
        go_on(has)
    assert go_on(had).lr_schedulers == checkpoint["lr_schedulers"]
