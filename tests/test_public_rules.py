"""Operators of one's own: every form that `axis_rule` names, on a network that grows through it."""

import pytest
import torch
from models import features
from torch import nn

from lightning_grow import RefusedGrowth, grow
from lightning_grow.rules import Along, Axis, axis_rule, contract, pointwise
from lightning_grow.trace.table import RULES


def scores_rule(call):
    return contract(call["x"], call["weight"], ("bk", "ok", "bo"), call.shapes[0])


def flipped_rule(call):
    return call.rearrange(call.input.axes, lambda count, cells: cells[::-1])


def first_rule(call):
    return [([Axis(1), call.input.axes[1]], Along((call.input,), (0,)))]


# form -> (schema, what is computed, the shape of the output, the rule, how forward calls it)
FORMS = {
    "pointwise": ("(Tensor x) -> Tensor", lambda x: x * x.sigmoid(), torch.empty_like, pointwise, 1),
    "rearrange": ("(Tensor x) -> Tensor", lambda x: x.flip(0), torch.empty_like, flipped_rule, 1),
    "contract": (
        "(Tensor x, Tensor weight) -> Tensor",
        lambda x, weight: x @ weight.T,
        lambda x, weight: x.new_empty(len(x), len(weight)),
        scores_rule,
        2,
    ),
    "Along": (
        "(Tensor x) -> Tensor",
        lambda x: x.cumsum(0)[-1:].clone(),
        lambda x: x.new_empty(1, x.shape[1]),
        first_rule,
        1,
    ),
}


class Around(nn.Module):
    """A layer, the operator, a layer; the operator may have a weight of its own."""

    def __init__(self, width, operator, arguments):
        super().__init__()
        self.into, self.out, self.operator = nn.Linear(6, width), nn.Linear(width, 3), operator
        self.weight = nn.Parameter(torch.randn(width, width) / width) if arguments == 2 else None

    def forward(self, x):
        hidden = self.into(x).tanh()
        return self.out(self.operator(hidden) if self.weight is None else self.operator(hidden, self.weight))


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("strategy", ["preserve", "net2wider"])
def test_a_form_says_enough_to_grow_through_an_operator(form, strategy):
    schema, function, shape, rule, arguments = FORMS[form]
    name = f"formtest::{form}_{strategy}"
    torch.library.custom_op(name, mutates_args=(), schema=schema)(function).register_fake(shape)
    operator = getattr(torch.ops.formtest, f"{form}_{strategy}")
    source, target = (Around(width, operator, arguments).double() for width in (8, 12))
    inputs = features()
    with pytest.raises(RefusedGrowth, match=rf"operator formtest\.{form}_\w+\.default has no rule.*@axis_rule"):
        grow(source, target, example_inputs=inputs)
    axis_rule(name)(rule)
    try:
        # rounding of sums of 12 float64 numbers of about 1
        assert grow(source, target, strategy=strategy, example_inputs=inputs).max_output_error < 1e-14
    finally:
        del RULES[name]
