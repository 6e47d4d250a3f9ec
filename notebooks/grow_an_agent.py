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
# # Grow an agent in the middle of its training
#
# A PPO agent sees 900 numbers (15 features x 3 timeframes x 20 bars of hourly EUR/USD prices) and is short, flat or
# long. It is trained as `[128, 128, 64]`, then resumed as `[256, 256, 128]`: same policy, same step count, more
# capacity.

# %%
# %matplotlib inline
import logging
import os
import tempfile
import warnings

warnings.filterwarnings("ignore")
logging.getLogger("lightning.pytorch.utilities.rank_zero").addFilter(lambda record: "Tip:" not in str(record.msg))
import lightning as L
import torch

from lightning_grow import ArchTransfer, measure_liveness, plan_growth
from lightning_grow.grow import transfer
from lightning_grow.pictures import plot_curves
from lightning_grow.rl import PPO
from lightning_grow.rl.evaluate import evaluate

torch.set_num_threads(1)
os.chdir(tempfile.mkdtemp())  # files land in a scratch folder
market = {"id": "lightning_grow/Market-v0"}
settings = {"num_envs": 8, "num_steps": 64, "learning_rate": 1e-3, "anneal_lr": False}


def make_agent(hidden_dims):
    L.seed_everything(1, verbose=False)
    return PPO(state_dim=900, action_dim=3, env=market, hidden_dims=hidden_dims, **settings)


class Curve(L.Callback):
    """Keeps what every iteration logged."""

    def __init__(self):
        self.steps, self.returns = [], []

    def on_train_epoch_end(self, trainer, pl_module):
        self.steps.append(pl_module.timesteps)
        self.returns.append(float(trainer.callback_metrics["episode_return"]))


def fit(agent, max_epochs, *callbacks, ckpt_path=None):
    trainer = L.Trainer(
        max_epochs=max_epochs,
        callbacks=list(callbacks),
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        accelerator="cpu",
    )
    trainer.fit(agent, ckpt_path=ckpt_path)
    return trainer


# %% [markdown]
# ## 1. Train the small agent and save it

# %%
small, before = make_agent([128, 128, 64]), Curve()
trainer = fit(small, 12, before)
trainer.save_checkpoint("small.ckpt")
print(f"{small.timesteps} timesteps, {trainer.global_step} optimizer steps, episode return {before.returns[-1]:.1f}")

# %% [markdown]
# ## 2. Ask what a growth would do
#
# The plan traces both networks, pairs their units and says what widens together. Nothing changes yet.

# %%
large = make_agent([256, 256, 128])
print(plan_growth(small, large))

# %% [markdown]
# New units (orange) start at the network's own initial values; they are read with zeros (grey), so the output is the
# same to rounding, and their weights get a gradient from the first steps on.

# %%
done = transfer(small, large)
done.report.plot([f"agent.actor.{layer}.weight" for layer in (0, 2, 4, 6)])

# %% [markdown]
# ## 3. Resume the run with the bigger network
#
# The config says `[256, 256, 128]`, the checkpoint is the small agent's, and the callback does the rest. The optimizer
# starts fresh with a short warm-up; epochs, optimizer steps, timesteps and episodes are kept.

# %%
resumed, after = make_agent([256, 256, 128]), Curve()
trainer = fit(resumed, 24, ArchTransfer(), after, ckpt_path="small.ckpt")
print(f"{resumed.timesteps} timesteps, {trainer.global_step} optimizer steps, episode return {after.returns[-1]:.1f}")

# %%
plot_curves(
    {"[128, 128, 64]": (before.steps, before.returns), "[256, 256, 128]": (after.steps, after.returns)},
    grown_at=[before.steps[-1]],
)

# %% [markdown]
# ## 4. What the strategies do to the policy
#
# `preserve` and `net2wider` keep it; `copy_and_extend` moves it a little, `interpolate` a lot; `zero_pad` keeps it, but
# its new units are dead; `random` is the control that starts over.

# %%
batch = torch.randn(256, 900, generator=torch.Generator().manual_seed(0))
for strategy in ("preserve", "net2wider", "copy_and_extend", "interpolate", "zero_pad", "random"):
    agent = make_agent([256, 256, 128])
    report = agent.load_with_transfer("small.ckpt", transfer_strategy=strategy)
    plan = plan_growth(small, agent, strategy=strategy)
    idle = sum(group.idle for group in measure_liveness(plan, agent, (batch,)).values())
    score = torch.tensor(evaluate(agent, market, episodes=10, seed=0)).mean()
    error = report.max_output_error
    print(f"{strategy:<16} output error {error:.0e}   return {score:7.2f}   new units without a gradient {idle}")

# %% [markdown]
# One currency pair and one year is a demonstration of growth, not a claim about trading.
