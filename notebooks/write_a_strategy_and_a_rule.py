# ---
# jupyter:
#   jupytext:
#     formats: ipynb,py:percent
#     text_representation:
#       extension: .py
#       format_name: percent
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Write a strategy and a rule
#
# A **strategy** says where new units come from; a **rule** says what an operator of your own does to axes. Both are
# a few lines, and the check holds them to their promise.

# %%
# %matplotlib inline
import warnings

warnings.filterwarnings("ignore")
import torch
from torch import nn

from lightning_grow import Strategy, grow, list_strategies, plan_growth, register_strategy
from lightning_grow.rules import axis_rule, pointwise

torch.manual_seed(0)
x = torch.randn(16, 6)


def net(width):
    return nn.Sequential(nn.Linear(6, width), nn.Tanh(), nn.Linear(width, width), nn.Tanh(), nn.Linear(width, 2))


# %% [markdown]
# ## A strategy
#
# New units copy the old ones from the last to the first; each copy is read with its share, so that the function is
# kept.


# %%
@register_strategy("backwards")
class Backwards(Strategy):
    """Copies in the opposite order."""

    function_preserving = True

    def units(self, old, new, generator):
        return (old - 1 - torch.arange(new - old) % old).double()


print(list_strategies())
small, large = net(4), net(7)
report = grow(small, large, strategy="backwards", example_inputs=(x,))
print(report.summary())
report.plot(["0.weight", "2.weight"])

# %% [markdown]
# What a strategy leaves open is filled by it; where the function would change, the plan's decision wins. Here fresh
# units get entries of a hundredth of the usual size, and are still read with zeros.


# %%
class Quiet(Strategy):
    """New entries are small."""

    function_preserving = True

    def fill(self, block):
        return block.initial / 100


small, large = net(4), net(7)
print(grow(small, large, strategy=Quiet(), example_inputs=(x,)).summary())
print(large[0].weight[4:].abs().max().item(), large[4].weight[:, 4:].abs().max().item())

# %% [markdown]
# ## A rule
#
# An operator that torch does not know how to take apart is opaque at first: sizes that meet it cannot grow.


# %%
@torch.library.custom_op("notebook::swish", mutates_args=())
def swish(x: torch.Tensor) -> torch.Tensor:
    return x * torch.sigmoid(x)


@swish.register_fake
def _(x):
    return torch.empty_like(x)


class Own(nn.Module):
    """A hidden layer with an activation of its own."""

    def __init__(self, width):
        super().__init__()
        self.first, self.last = nn.Linear(6, width), nn.Linear(width, 2)

    def forward(self, x):
        return self.last(swish(self.first(x)))


print(*plan_growth(Own(4), Own(6), example_inputs=(x,)).refused, sep="\n")

# %% [markdown]
# It works on each entry alone, which is the rule `pointwise`.

# %%
axis_rule("notebook::swish")(pointwise)
small, large = Own(4), Own(6)
print(grow(small, large, example_inputs=(x,)).summary())
