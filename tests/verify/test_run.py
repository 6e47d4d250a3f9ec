"""The check runs both models and leaves no trace of it."""

import pytest
import torch
from models import Convolution, features, image, stack
from torch import nn

from lightning_grow import grow, plan_growth
from lightning_grow.verify.run import outputs, set_attributes, shared_inputs, untouched, with_attributes


class Counter(nn.Module):
    """A module that changes its buffers, draws random numbers, and writes into its input."""

    def __init__(self):
        super().__init__()
        self.net = nn.Sequential(nn.Linear(6, 4), nn.BatchNorm1d(4), nn.Dropout(0.5))
        self.register_buffer("seen", torch.zeros(()))
        self.register_buffer("last", torch.zeros(5, 6), persistent=False)

    def forward(self, x):
        self.seen += 1
        self.last = x.clone()
        torch.rand(3)
        return self.net(x.mul_(2.0))


def test_running_a_module_leaves_it_as_it_was():
    module = Counter().train()
    module.net[1].eval()
    buffers = {name: (item, item.clone()) for name, item in module.named_buffers()}
    modes = [part.training for part in module.modules()]
    inputs, rng = torch.randn(5, 6), torch.get_rng_state()
    given = inputs.clone()
    first, second = (outputs(module, (inputs,)) for _ in range(2))
    assert torch.equal(first[0], second[0])  # eval mode: no dropout, no batch statistics
    assert torch.equal(inputs, given)
    assert torch.equal(torch.get_rng_state(), rng)
    assert [part.training for part in module.modules()] == modes
    for name, item in module.named_buffers():
        assert item is buffers[name][0]
        assert torch.equal(item, buffers[name][1])
    assert not first[0].requires_grad


class Caching(nn.Module):
    """A net that keeps things on itself while it runs."""

    def __init__(self, width, cache):
        super().__init__()
        self.into, self.out, self.cache = nn.Linear(6, width), nn.Linear(width, 3), cache
        self.table, self.seen, self.count = {"tables": {}}, [1.0], torch.zeros(())
        self.register_buffer("later", None, persistent=False)

    def forward(self, x):
        return self.out((self.into(x) + self.cache(self, x)).relu())


def attribute(self, x):
    if not hasattr(self, "pe"):
        self.pe = torch.linspace(-1, 1, len(x), device=x.device)[:, None]
    return self.pe


def buffer(self, x):
    if self.later is None:
        self.register_buffer("later", torch.linspace(-1, 1, len(x), device=x.device)[:, None], persistent=False)
    return self.later


def new_buffer(self, x):
    if not hasattr(self, "own"):
        self.register_buffer("own", torch.linspace(-1, 1, len(x), device=x.device)[:, None])
    return self.own


def nested(self, x):
    return self.table["tables"].setdefault(len(x), torch.linspace(-1, 1, len(x), device=x.device)[:, None])


def log(self, x):
    self.seen.append(self.into(x).tanh())
    return self.seen[-1]


def counter(self, x):
    self.count.add_(1)
    return 0.1


def layer(self, x):
    if not hasattr(self, "sign"):
        self.sign = nn.Softsign()
    return self.sign(x).mean(-1, keepdim=True)


def read(self, x):
    counter(self, x)
    return nested(self, x) if x.mean() > -5 else 0.0


CACHES = [attribute, buffer, new_buffer, nested, log, counter, layer, read]


def held(module):
    """All that a module has, by value."""
    kept = {key: value for part in module.modules() for key, value in vars(part).items()}
    return repr((kept, list(module.modules()), module._buffers, module._non_persistent_buffers_set))


@pytest.mark.parametrize("cache", CACHES, ids=lambda cache: cache.__name__)
def test_what_a_forward_keeps_on_a_module_is_taken_back(cache):
    source, target = Caching(4, cache).double(), Caching(6, cache).double()
    before = held(source), held(target)
    plan_growth(source, target, example_inputs=features())
    assert (held(source), held(target)) == before
    report = grow(source, target, example_inputs=features())
    assert report.function_preserving
    assert held(source) == before[0]
    for module in (source, target):  # and both still run, on a batch of another size too
        module.seen.clear()
        assert module(features(7)[0]).shape == (7, 3)


def test_what_a_module_has_kept_before_is_there_afterwards():
    source, target = Caching(4, attribute).double(), Caching(6, attribute).double()
    x = features()[0]
    wanted = source(x).detach()
    target(x)
    own = source.pe, target.pe
    grow(source, target, example_inputs=(x,))
    assert (source.pe, target.pe) == own
    torch.testing.assert_close(target(x), wanted, rtol=0, atol=1e-14)


def test_a_stored_graph_survives_the_check():
    module = Caching(4, log).double()
    module(features()[0]).sum().backward()
    once = [parameter.grad.clone() for parameter in module.parameters()]
    loss = module(features()[0]).sum()
    outputs(module, features())
    loss.backward()
    for parameter, gradient in zip(module.parameters(), once, strict=True):
        torch.testing.assert_close(parameter.grad, 2 * gradient)  # the same pass a second time, added


def test_a_failing_forward_leaves_the_module_as_it_was():
    module = Counter().train()
    inputs = torch.randn(5, 7)
    rng = torch.get_rng_state()
    with pytest.raises(RuntimeError, match="mat1"):
        outputs(module, (inputs,))
    assert module.training
    assert module.seen == 0
    assert torch.equal(torch.get_rng_state(), rng)


def test_another_state_stands_in_without_being_loaded():
    module = stack(4)
    own = {name: item.clone() for name, item in module.state_dict().items()}
    other = stack(4)
    with untouched(module):
        wanted = other(features()[0].float())
    got = outputs(module, (features()[0].float(),), state=other.state_dict())
    assert torch.equal(got[0], wanted)
    assert all(torch.equal(own[name], item) for name, item in module.state_dict().items())


def test_a_callable_is_run_instead_of_the_forward():
    module = Convolution(4).double()
    got = outputs(module, image(), lambda part, x: {"a": part.first(x), "b": [x.sum()]})
    assert [tuple(item.shape) for item in got] == [(2, 4, 7, 7), ()]


def test_attributes_are_put_back():
    module = nn.Sequential(nn.Linear(2, 2), nn.LayerNorm(2, eps=1e-3))
    seen = []

    def fail_inside():
        with with_attributes(module, {"1.eps": 0.5}):
            seen.append(module[1].eps)
            raise RuntimeError("inside")

    with pytest.raises(RuntimeError, match="inside"):
        fail_inside()
    assert seen == [0.5]
    assert module[1].eps == 1e-3
    set_attributes(module, {"1.eps": 0.25})
    assert module[1].eps == 0.25


def test_the_source_gets_the_positions_that_it_knows():
    wide, other = torch.arange(10.0).view(2, 5), torch.arange(3.0)
    positions = ((torch.arange(2), torch.tensor([4, 0])), (torch.arange(3),))
    here = ((torch.arange(2), torch.arange(2)), (torch.arange(3),))
    own = {"a": torch.zeros(2, 2), "b": [other, "text"]}
    kept = shared_inputs({"a": wide, "b": [other, "text"]}, own, positions, here)
    assert torch.equal(kept["a"], wide[:, [4, 0]])
    assert kept["b"][0] is other
    assert kept["b"][1] == "text"


def test_the_source_keeps_its_own_values_of_inputs_that_are_dropped():
    target, source = torch.tensor([[1.0, 2.0]]), torch.tensor([[7.0, 8.0, 9.0]])
    there, here = (torch.arange(1), torch.tensor([1, 0])), (torch.arange(1), torch.tensor([0, 2]))
    assert shared_inputs((target,), (source,), [there], [here])[0].tolist() == [[2.0, 8.0, 1.0]]
