import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.optim import lr_scheduler

from lightning_grow.training_state.warmup import Warmup, from_runs, to_runs

SCHEDULES = {
    "cosine": lambda optimizer: lr_scheduler.CosineAnnealingLR(optimizer, 30),
    "exponential": lambda optimizer: lr_scheduler.ExponentialLR(optimizer, 0.9),
    "one cycle": lambda optimizer: lr_scheduler.OneCycleLR(optimizer, 0.1, total_steps=30),
    "plateau": lambda optimizer: lr_scheduler.ReduceLROnPlateau(optimizer, patience=2),
    "lambda": lambda optimizer: lr_scheduler.LambdaLR(optimizer, lambda step: 1 / (1 + step)),
}


class Recorder(torch.optim.SGD):
    """SGD that writes down the learning rate each step really used."""

    def __init__(self, parameters, **settings):
        super().__init__(parameters, **settings)
        self.used = []

    def step(self, closure=None):
        self.used.append(float(self.param_groups[0]["lr"]))
        return super().step(closure)


def weight(shape=(), **settings):
    parameter = nn.Parameter(torch.zeros(shape), **settings)
    parameter.grad = torch.ones(shape)
    return parameter


def run(warmup=None, schedule=None, num_steps=16, lr=0.1):
    """The rates between steps and inside them."""
    optimizer = Recorder([weight()], lr=lr)
    scheduler = schedule(optimizer) if schedule else None
    if warmup:
        warmup.attach([optimizer])
    base = []
    for step in range(num_steps):
        optimizer.step()
        base.append(optimizer.param_groups[0]["lr"])
        if scheduler:
            scheduler.step(*([float(step)] if isinstance(scheduler, lr_scheduler.ReduceLROnPlateau) else []))
    return base, optimizer.used


@pytest.mark.parametrize("schedule", SCHEDULES.values(), ids=SCHEDULES)
def test_no_scheduler_ever_sees_the_warmup(schedule):
    base, used = run(None, schedule)
    warm_base, warm_used = run(Warmup(10, 0.1), schedule)
    assert warm_base == base  # bit for bit
    factors = [0.1 + 0.9 * step / 10 for step in range(10)] + [1.0] * 6
    assert warm_used == pytest.approx([rate * factor for rate, factor in zip(used, factors, strict=True)], rel=1e-15)


def test_a_step_that_calls_its_superclass_counts_once():
    torch.optim.SGD([weight()])  # torch hooks a class at its first instance, and Recorder's own step beside it
    optimizer = Recorder([weight()], lr=0.1)
    warmup = Warmup(4, 0.1)
    warmup.attach([optimizer])
    optimizer.step()
    assert warmup.steps == [1]
    assert optimizer.param_groups[0]["lr"] == 0.1


def test_the_warmup_ends_exactly():
    assert run(Warmup(4, 0.5), num_steps=7)[1][4:] == [0.1] * 3


def test_each_optimizer_counts_its_own_steps():
    often, seldom = (torch.optim.SGD([weight()], lr=0.1) for _ in range(2))
    warmup = Warmup(4, 0.1)
    warmup.attach([often, seldom])
    for step in range(4):
        often.step()
        if step % 2:
            seldom.step()
    assert warmup.steps == [4, 2]
    assert warmup.factor(0) == 1
    assert warmup.factor(1) == pytest.approx(0.55)
    assert not warmup.is_finished


@pytest.mark.parametrize("scope", ["all", "new", "source"])
def test_a_resume_in_the_middle_goes_on_where_it_was(scope):
    def train(warmup, parameter, steps):
        optimizer = torch.optim.SGD([parameter], lr=0.1)
        warmup.attach([optimizer], {parameter: torch.tensor([False, True])})
        for _ in range(steps):
            optimizer.step()

    straight, resumed = weight((2,)), weight((2,))
    train(Warmup(8, 0.1, scope), straight, 12)
    first = Warmup(8, 0.1, scope)
    train(first, resumed, 5)
    train(Warmup.from_state_dict(first.state_dict()), resumed, 7)
    assert torch.equal(resumed, straight)


def test_a_finished_warmup_leaves_no_trace():
    warmup = Warmup(3, 0.1)
    assert warmup.state_dict() == {}
    run(warmup, num_steps=2)
    assert warmup.state_dict() == {
        "num_steps": 3,
        "start_factor": 0.1,
        "scope": "all",
        "shape": "linear",
        "fresh": False,
        "steps": [2],
    }
    run(warmup, num_steps=1)
    assert warmup.state_dict() == {}


def test_detach_takes_every_hook_off():
    optimizer = Recorder([weight()], lr=0.1)
    warmup = Warmup(10, 0.1)
    warmup.attach([optimizer])
    warmup.detach()
    optimizer.step()
    assert optimizer.used == [0.1]
    assert warmup.steps == [0]


def test_a_state_dict_taken_inside_a_step_holds_the_base_rate():
    optimizer = torch.optim.SGD([weight()], lr=0.1)
    Warmup(10, 0.1).attach([optimizer])
    saved = []
    optimizer.step(lambda: saved.append(optimizer.state_dict()["param_groups"][0]["lr"]) or torch.tensor(0.0))
    assert saved == [0.1]


def test_a_step_that_raises_leaves_the_base_rate_to_the_next_and_to_a_checkpoint():
    optimizer = Recorder([weight()], lr=0.1)
    Warmup(10, 0.1).attach([optimizer])

    def fail():
        raise FloatingPointError

    with pytest.raises(FloatingPointError):
        optimizer.step(fail)
    assert optimizer.state_dict()["param_groups"][0]["lr"] == 0.1
    optimizer.step()
    assert optimizer.used == pytest.approx([0.01, 0.01])  # not 0.001: the failed step was not counted either
    assert optimizer.param_groups[0]["lr"] == 0.1


def test_a_tensor_rate_keeps_its_identity():
    rate = torch.tensor(0.1)
    optimizer = torch.optim.AdamW([weight()], lr=rate, capturable=False, foreach=False)
    Warmup(10, 0.1).attach([optimizer])
    optimizer.step()
    assert optimizer.param_groups[0]["lr"] is rate
    assert rate == torch.tensor(0.1)


def test_lbfgs_reads_the_scaled_rate_before_its_closure():
    parameter = weight()
    optimizer = torch.optim.LBFGS([parameter], lr=1.0, max_iter=1)
    Warmup(10, 0.1).attach([optimizer])
    optimizer.step(lambda: torch.tensor(1.0, requires_grad=True))
    plain = weight()
    torch.optim.LBFGS([plain], lr=0.1, max_iter=1).step(lambda: torch.tensor(1.0, requires_grad=True))
    assert torch.equal(parameter, plain)
    assert optimizer.param_groups[0]["lr"] == 1.0


@pytest.mark.parametrize("make", [torch.optim.SGD, torch.optim.AdamW, torch.optim.RMSprop])
@pytest.mark.parametrize(("scope", "held"), [("new", 1), ("source", 0)])
def test_only_the_entries_in_scope_are_held_back(make, scope, held):
    warm, plain = weight((2,)), weight((2,))
    optimizer = make([warm], lr=0.1)
    Warmup(10, 0.1, scope).attach([optimizer], {warm: torch.tensor([False, True])})
    optimizer.step()
    make([plain], lr=0.1).step()
    assert warm[1 - held] == plain[1 - held]  # bit for bit
    assert warm[held].item() == pytest.approx(0.1 * plain[held].item(), rel=1e-6)  # float32


def test_a_parameter_without_new_entries_is_all_source():
    parameter = weight((2,))
    optimizer = torch.optim.SGD([parameter], lr=1.0)
    Warmup(10, 0.5, "source").attach([optimizer])
    optimizer.step()
    assert parameter.tolist() == [-0.5, -0.5]


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"num_steps": -1}, "num_warmup_steps to be 0 or more, but got -1"),
        ({"start_factor": 0.0}, "warmup_start_factor"),
        ({"start_factor": 1.5}, "warmup_start_factor"),
        ({"scope": "old"}, "'all', 'new' or 'source', but got 'old'"),
    ],
)
def test_settings_out_of_range_are_refused(settings, words):
    with pytest.raises(ValueError, match=words):
        Warmup(**settings)


@given(st.lists(st.booleans(), max_size=30))
def test_a_mask_survives_as_runs(entries):
    mask = torch.tensor(entries, dtype=torch.bool)
    assert torch.equal(from_runs(to_runs(mask), mask.shape), mask)


def test_a_cosine_warmup_is_gentle_at_both_ends():
    state = {"num_steps": 4, "start_factor": 0.2, "scope": "all", "shape": "cosine"}
    factors = [Warmup.from_state_dict({**state, "steps": [done]}).factor() for done in range(5)]
    half = (1 - 0.5**0.5) / 2  # (1 - cos(pi / 4)) / 2
    assert factors == pytest.approx([0.2, 0.2 + 0.8 * half, 0.6, 0.2 + 0.8 * (1 - half), 1.0])


def test_a_step_that_a_gradient_scaler_skips_is_not_counted():
    weight = torch.nn.Parameter(torch.zeros(()))
    sgd, warmup, scaler = torch.optim.SGD([weight], lr=1.0), Warmup(4, 0.5), torch.amp.GradScaler("cpu")
    warmup.attach([sgd])
    for gradient in (1.0, float("inf"), 1.0):
        scaler.scale(weight * gradient).backward()
        scaler.step(sgd)
        scaler.update()
        sgd.zero_grad()
    assert warmup.steps == [2]
    assert weight.item() == pytest.approx(-(0.5 + 0.625))
    assert sgd.param_groups[0]["lr"] == 1.0


class Unrated(torch.optim.SGD):
    """An optimizer that finds its own step size."""

    def __init__(self, params):
        super().__init__(params, lr=1.0)
        self.param_groups[0]["lr"] = None

    @torch.no_grad()
    def step(self):
        for parameter in self.param_groups[0]["params"]:
            parameter.sub_(parameter.grad)


def test_an_optimizer_without_a_rate_is_warmed_up_by_its_steps():
    parameter = torch.nn.Parameter(torch.zeros(2))
    optimizer = Unrated([parameter])
    Warmup(2, 0.5).attach([optimizer])
    found = []
    for _ in range(3):
        parameter.grad = -torch.ones(2)
        optimizer.step()
        found.append(parameter.tolist())
    assert found == [[0.5, 0.5], [1.25, 1.25], [2.25, 2.25]]


class Wrapper(torch.optim.Optimizer):
    """A wrapper that never calls Optimizer.__init__, as some packages have."""

    def __init__(self, inner):
        self.inner, self.param_groups = inner, inner.param_groups

    def step(self, closure=None):
        return self.inner.step()


def test_an_optimizer_that_takes_no_hooks_is_warned_of():
    warmup = Warmup(2, 0.5)
    with pytest.warns(UserWarning, match="No warm-up: Wrapper takes no hooks"):
        warmup.attach([Wrapper(torch.optim.SGD([torch.nn.Parameter(torch.zeros(2))], lr=1.0))])
    assert warmup.is_finished
