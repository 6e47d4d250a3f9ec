"""Tensors that share memory: a write to one changes what the others hold, for constants and for what weights make."""

import pytest
import torch
from torch import nn

from lightning_grow.trace.axes import atoms
from lightning_grow.trace.tracer import trace


def through_a_slice(base, x):
    base[1:3] = x[1:3]
    return base


def through_two_views(base, x):
    base.view(2, 2)[0].mul_(3)
    return base


def a_view_made_before(base, x):
    seen = base[1:]
    base.add_(1)
    return seen


def a_view_of_a_view_made_before(base, x):
    seen = base.view(2, 2)[1]
    base[2:].copy_(x[:2])
    return seen


def the_view_itself(base, x):
    part = base[:2]
    base.mul_(2)
    part.add_(x[:2])
    return torch.cat([base, part])


def beside_the_view(base, x):
    first, second = base[:2], base[2:]
    first.add_(5)
    return torch.cat([second, first, base])


def a_detached_one(base, x):
    base.detach()[3] = 7.0
    return base


def a_copy(base, x):
    base.clone().add_(1)
    return base * 1


WRITES = [
    through_a_slice,
    through_two_views,
    a_view_made_before,
    a_view_of_a_view_made_before,
    the_view_itself,
    beside_the_view,
    a_detached_one,
    a_copy,
]


class Writes(nn.Module):
    def __init__(self, write, base):
        super().__init__()
        self.weight, self.write, self.base = nn.Parameter(torch.arange(4.0) + 1), write, base

    def forward(self):
        return self.write(self.base(self.weight), torch.arange(4.0) * 10)


@pytest.mark.parametrize("write", WRITES, ids=lambda write: write.__name__)
def test_the_content_of_a_constant_is_what_the_pass_makes_it(write):
    module = Writes(write, lambda weight: torch.arange(4.0) * 2)
    (output,) = trace(module, ()).outputs.values()
    assert torch.equal(output.constant, module())


@pytest.mark.parametrize("write", WRITES, ids=lambda write: write.__name__)
def test_replayed_the_tape_gives_what_the_pass_gives(write):
    """Each entry of the weight is a block of its own: cells that are its values go through the tape's own moves."""
    module = Writes(write, lambda weight: weight * 1)
    tape = trace(module, ())
    values = {
        value: value.constant.numpy() for node in tape.nodes for value in node.tensors() if value.constant is not None
    }
    values[tape.tensors["weight"]] = module.weight.detach().numpy()
    for node in tape.nodes:
        for output, meaning in zip(node.outputs, node.meaning, strict=True):
            if output.constant is not None:
                continue
            inputs = [values[value] for value in meaning.inputs]
            if hasattr(meaning, "move"):
                values[output] = meaning.move(lambda axis: axis.size, *inputs)
            elif meaning.function is not None:
                values[output] = meaning.function([torch.as_tensor(item) for item in inputs]).numpy()
            else:
                first, *rest = [torch.as_tensor(item).clone() for item in inputs]
                values[output] = node.op(first, *(rest or [node.arguments["other"]])).numpy()
    (output,) = tape.outputs.values()
    with torch.no_grad():
        assert torch.equal(torch.as_tensor(values[output]), module())


def test_an_operator_that_reaches_no_output_cuts_no_axis():
    class Idle(nn.Linear):
        def forward(self, x):
            hidden = super().forward(x)
            hidden[..., :1].exp()
            return hidden

    tape = trace(Idle(3, 4), (torch.ones(2, 3),))
    assert [node.name for node in tape.nodes] == ["t", "addmm"]
    assert len(list(atoms(tape.tensors["bias"].axes[0]))) == 1


def test_where_a_parameter_has_no_other_use_it_says_what_its_axes_are():
    class Auxiliary(nn.Linear):
        def __init__(self):
            super().__init__(3, 4)
            self.head = nn.Linear(4, 2)

        def forward(self, x):
            hidden = super().forward(x)
            self.head(hidden)
            return hidden

    tape = trace(Auxiliary(), (torch.ones(2, 3),))
    assert next(atoms(tape.tensors["head.weight"].axes[1])) is next(atoms(tape.tensors["bias"].axes[0]))
