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
# # Grow a transformer and an LSTM, and read the report
#
# Both are grown with one call, and both compute afterwards what they computed before. The report says of every tensor
# what became of it, and why.

# %%
# %matplotlib inline
import warnings

warnings.filterwarnings("ignore")
import torch
from torch import nn

from lightning_grow import grow, plan_growth

torch.manual_seed(0)
x = torch.randn(8, 12, 6)


class Encoder(nn.Module):
    """torch's own encoder behind a linear layer."""

    def __init__(self, width, heads, layers):
        super().__init__()
        layer = nn.TransformerEncoderLayer(width, heads, 4 * width, batch_first=True, norm_first=True)
        self.into, self.out = nn.Linear(6, width), nn.Linear(width, 3)
        self.encoder = nn.TransformerEncoder(layer, layers, nn.LayerNorm(width), enable_nested_tensor=False)

    def forward(self, x):
        return self.out(self.encoder(self.into(x)).mean(1))


# %% [markdown]
# ## A transformer: twice the width, twice the heads, two more layers
#
# The plan changes nothing. Its *unit groups* are what widens together: the residual stream is one group through all
# layers, each feed-forward network has one of its own, equal layers are one row.

# %%
small, large = Encoder(16, 2, 2).eval(), Encoder(32, 4, 4).eval()
plan = plan_growth(small, large, example_inputs=(x,))
print(plan)

# %% [markdown]
# Now grow. The error is the rounding of float32.

# %%
report = grow(small, large, example_inputs=(x,))
print(report.summary())
print((small(x) - large(x)).abs().max().item())

# %% [markdown]
# Where every entry comes from: the source's in blue, means in green (a LayerNorm's statistic has to stay), new ones in
# orange, zeros in grey.

# %%
report.plot(["into.weight", "encoder.layers.0.self_attn.in_proj_weight", "encoder.layers.0.linear2.weight"])

# %% [markdown]
# Why is the output projection of attention read with zeros? `explain` names the operator for whose sake it is so.

# %%
print(report.explain("encoder.layers.0.self_attn.out_proj.weight"))

# %% [markdown]
# ## An LSTM
#
# Its rows are four gates of hidden units, one block after the other: new units go to the end of each block. Copying
# the old matrix into the first rows would mix the gates.


# %%
class Reader(nn.Module):
    """Reads a sequence, and says something at its end."""

    def __init__(self, hidden):
        super().__init__()
        self.lstm, self.out = nn.LSTM(6, hidden, batch_first=True), nn.Linear(hidden, 3)

    def forward(self, x):
        return self.out(self.lstm(x)[0][:, -1])


small, large = Reader(8), Reader(12)
report = grow(small, large, example_inputs=(x,))
print(report.summary())
report.plot(["lstm.weight_hh_l0", "out.weight"])

# %% [markdown]
# ## A refusal
#
# 1.5 times the width of a norm behind a ReLU cannot be exact with fresh units, and copies need a multiple. The refusal
# says so, and nothing was changed.


# %%
def normed(width):
    return nn.Sequential(nn.Linear(6, width), nn.ReLU(), nn.LayerNorm(width), nn.Linear(width, 2))


print(*plan_growth(normed(8), normed(12), example_inputs=(x[:, 0],)).refused, sep="\n")
print(grow(normed(8), normed(16), example_inputs=(x[:, 0],)).summary())
