"""New entries under an old step count take the steps of an Adam that begins with them."""

import copy

import pytest
import torch
from torch import nn, optim

from lightning_grow.training_state.own_moments import OwnMoments
from lightning_grow.training_state.warmup import Warmup, end_warmup, to_runs

NEW = torch.tensor([[False, False, True], [True, True, True]])
ADAMS = {
    "Adam": lambda parameters: optim.Adam(parameters, lr=0.01, betas=(0.8, 0.95), eps=1e-16),
    "AdamW": lambda parameters: optim.AdamW(parameters, lr=0.01, eps=1e-16, weight_decay=0.0),
    "amsgrad": lambda parameters: optim.Adam(parameters, lr=0.01, eps=1e-16, amsgrad=True),
    "fused": lambda parameters: optim.AdamW(parameters, lr=0.01, eps=1e-16, weight_decay=0.0, fused=True),
}


def gradients(steps, seed, scale=1.0):
    generator = torch.Generator().manual_seed(seed)
    return scale * (0.3 + torch.randn(steps, 2, 3, generator=generator, dtype=torch.float64))


def run(weight, optimizer, stream):
    for gradient in stream:
        weight.grad = gradient.clone()
        optimizer.step()


def old_run(make, steps=300):
    """A weight that has been trained, on gradients a hundred times as large as those to come."""
    weight = nn.Parameter(torch.zeros(2, 3, dtype=torch.float64))
    optimizer = make([weight])
    run(weight, optimizer, gradients(steps, seed=0, scale=100.0))
    return weight, optimizer


@pytest.mark.parametrize("make", ADAMS.values(), ids=ADAMS)
def test_new_entries_take_the_steps_of_a_fresh_adam_and_old_ones_those_of_the_old(make):
    weight, optimizer = old_run(make)
    plain, plain_optimizer = old_run(make)
    fresh = nn.Parameter(weight.detach().clone())
    fresh_optimizer = make([fresh])
    warmup = Warmup(40, start_factor=1.0, scope="new", fresh=True)
    warmup.attach([optimizer], {weight: NEW})
    stream = gradients(40, seed=1)
    for gradient in stream:
        for item, own in ((weight, optimizer), (plain, plain_optimizer), (fresh, fresh_optimizer)):
            run(item, own, [gradient])
        # sums of 40 steps in float64; epsilon is as good as 0
        torch.testing.assert_close(weight.detach()[NEW], fresh.detach()[NEW], rtol=1e-10, atol=1e-12)
        assert torch.equal(weight.detach()[~NEW], plain.detach()[~NEW])


@pytest.mark.parametrize("make", ADAMS.values(), ids=ADAMS)
def test_when_it_is_over_the_moments_need_no_correction(make):
    weight, optimizer = old_run(make)
    fresh = nn.Parameter(weight.detach().clone())
    fresh_optimizer = make([fresh])
    warmup = Warmup(40, start_factor=1.0, scope="new", fresh=True)
    warmup.attach([optimizer], {weight: NEW})
    for item, own in ((weight, optimizer), (fresh, fresh_optimizer)):
        run(item, own, gradients(40, seed=1))
    warmup.detach()
    assert warmup.begun == [{}]  # settled once and for all
    before = weight.detach().clone(), fresh.detach().clone()
    for item, own in ((weight, optimizer), (fresh, fresh_optimizer)):
        run(item, own, gradients(1, seed=2))
    moves = weight.detach() - before[0], fresh.detach() - before[1]
    # the same estimates; only what the next gradient weighs in them differs, by 1 part in 40
    torch.testing.assert_close(moves[0][NEW], moves[1][NEW], rtol=0.1, atol=1e-3)


def test_a_tensor_that_is_new_as_a_whole_has_a_right_step_count_of_its_own():
    make = ADAMS["Adam"]
    weight, twin = (nn.Parameter(torch.zeros(2, 3, dtype=torch.float64)) for _ in range(2))
    optimizer, plain = make([weight]), make([twin])
    Warmup(40, start_factor=1.0, scope="new", fresh=True).attach([optimizer], {weight: torch.ones_like(NEW)})
    run(weight, optimizer, gradients(30, seed=1))
    run(twin, plain, gradients(30, seed=1))
    torch.testing.assert_close(weight.detach(), twin.detach(), rtol=1e-12, atol=1e-14)


def test_other_optimizers_keep_their_state():
    weight = nn.Parameter(torch.zeros(2, 3, dtype=torch.float64))
    optimizer = optim.RMSprop([weight], lr=0.01)
    run(weight, optimizer, gradients(30, seed=0))
    before = optimizer.state[weight]["square_avg"].clone()
    Warmup(4, start_factor=1.0, scope="new", fresh=True).attach([optimizer], {weight: NEW})
    run(weight, optimizer, gradients(1, seed=1))
    torch.testing.assert_close(optimizer.state[weight]["square_avg"], 0.99 * before + 0.01 * gradients(1, 1)[0] ** 2)


def test_it_goes_on_after_a_resume_in_its_middle():
    make = ADAMS["Adam"]
    ends = []
    for stop in (40, 17):
        weight, optimizer = old_run(make)
        warmup, stream = Warmup(30, 0.1, "new", fresh=True), gradients(40, seed=1)
        warmup.attach([optimizer], {weight: NEW})
        run(weight, optimizer, stream[:stop])
        state = optimizer.state_dict(), warmup.state_dict()
        if stop < 40:
            weight = nn.Parameter(weight.detach().clone())
            optimizer = make([weight])
            optimizer.load_state_dict(state[0])
            Warmup.from_state_dict(state[1]).attach([optimizer], {weight: NEW})
            run(weight, optimizer, stream[stop:])
        ends.append(weight.detach())
    assert torch.equal(*ends)


def test_a_tensor_without_a_gradient_counts_no_step():
    make = ADAMS["Adam"]
    weight, optimizer = old_run(make)
    fresh = nn.Parameter(weight.detach().clone())
    fresh_optimizer = make([fresh])
    Warmup(40, start_factor=1.0, scope="new", fresh=True).attach([optimizer], {weight: NEW})
    for number, gradient in enumerate(gradients(40, seed=1)):
        for item, own in ((weight, optimizer), (fresh, fresh_optimizer)):
            item.grad = None if number % 4 else gradient.clone()
            own.step()
        torch.testing.assert_close(weight.detach()[NEW], fresh.detach()[NEW], rtol=1e-10, atol=1e-12)


def test_the_betas_in_force_count_not_those_at_the_start():
    make = ADAMS["Adam"]
    weight, optimizer = old_run(make)
    fresh = nn.Parameter(weight.detach().clone())
    fresh_optimizer = make([fresh])
    Warmup(40, start_factor=1.0, scope="new", fresh=True).attach([optimizer], {weight: NEW})
    for own in (optimizer, fresh_optimizer):  # as loading a state does: other dictionaries in the same list
        own.load_state_dict(own.state_dict())
        own.param_groups[0]["betas"] = (0.7, 0.99)
    for item, own in ((weight, optimizer), (fresh, fresh_optimizer)):
        run(item, own, gradients(9, seed=1))
    torch.testing.assert_close(weight.detach()[NEW], fresh.detach()[NEW], rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("make", ADAMS.values(), ids=ADAMS)
def test_a_warmup_that_another_growth_ends_leaves_moments_that_need_no_correction(make):
    def saved(weight, optimizer, warmup):
        return {
            "optimizer_states": [optimizer.state_dict()],
            "callbacks": {"ArchTransfer": {**warmup.state_dict(), "plateau": 1}},
            "lightning_grow": {"architecture": {"optimizers": [[["weight"]]]}},
        }

    weight, optimizer = old_run(make)
    warmup = Warmup(12, start_factor=1.0, scope="new", fresh=True)
    warmup.attach([optimizer], {weight: NEW})
    run(weight, optimizer, gradients(11, seed=1))
    checkpoint = copy.deepcopy(saved(weight, optimizer, warmup))
    end_warmup(checkpoint, {"weight": to_runs(NEW)})
    assert checkpoint["callbacks"]["ArchTransfer"] == {"plateau": 1}
    run_out = Warmup.from_state_dict({**warmup.state_dict(), "num_steps": 11, "steps": [11]})
    OwnMoments(optimizer, {weight: NEW}, run_out.begun[0]).settle()  # what it does at its own end
    for kind, moment in optimizer.state[weight].items():
        assert torch.equal(checkpoint["optimizer_states"][0]["state"][0][kind], moment)


def test_an_optimizer_without_moments_of_its_own_has_nothing_to_settle():
    weight = nn.Parameter(torch.zeros(2, 3, dtype=torch.float64))
    optimizer = optim.SGD([weight], lr=0.01, momentum=0.9)
    warmup = Warmup(12, start_factor=1.0, scope="new", fresh=True)
    warmup.attach([optimizer], {weight: NEW})
    run(weight, optimizer, gradients(4, seed=1))
    before = optimizer.state[weight]["momentum_buffer"].clone()
    checkpoint = {
        "optimizer_states": [optimizer.state_dict()],
        "callbacks": {"ArchTransfer": warmup.state_dict()},
        "lightning_grow": {"architecture": {"optimizers": [[["weight"]]]}},
    }
    end_warmup(checkpoint, {"weight": to_runs(NEW)})
    assert torch.equal(checkpoint["optimizer_states"][0]["state"][0]["momentum_buffer"], before)
