"""Measure environment steps per second of CPU time: our PPO from the command line's configuration, SB3, a plain loop.

Run `pip install 'lightning-grow[benchmarks]'` and `python benchmarks/ppo_throughput.py` (about ten minutes); it writes
benchmarks/results/ppo_throughput.md. Each subject runs in a process of its own with one thread; rounds are interleaved.
With `--changes` (about four minutes) it measures what each of our tricks gives, one left out at a time, and writes
ppo_changes.md.
"""

import argparse
import itertools
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.progress import track
from torch import Tensor, nn

NUM_STEPS, EPOCHS, MINIBATCHES = 128, 4, 4
MARKET = "lightning_grow/Market-v0"
CASES: dict[str, tuple[str, tuple[int, ...], int]] = {
    "CartPole, 4 environments": ("CartPole-v1", (64, 64), 4),
    "CartPole, 8 environments": ("CartPole-v1", (64, 64), 8),
    "CartPole, 64 environments": ("CartPole-v1", (64, 64), 64),
    "market [128, 128, 64], 8 environments": (MARKET, (128, 128, 64), 8),
    "market [256, 256, 128], 8 environments": (MARKET, (256, 256, 128), 8),
}
WARM_UP = 3
Clock = Callable[[], None]


def ours(env: str, hidden: tuple[int, ...], num_envs: int, iterations: int, tick: Clock) -> None:
    """Fit as `lightning-grow` does, with its default callbacks, logger and progress bar."""
    run_ours(env, hidden, num_envs, iterations, tick)


def run_ours(
    env: str, hidden: tuple[int, ...], num_envs: int, iterations: int, tick: Clock, changed: tuple[str, ...] = ()
) -> None:
    """The same with some of the configuration changed."""
    from hydra import compose, initialize_config_module
    from lightning.pytorch import Callback

    from lightning_grow.app.training import hush_host, make_model, make_trainer

    class Tick(Callback):
        def on_train_epoch_start(self, trainer: Any, pl_module: Any) -> None:
            tick()

    with tempfile.TemporaryDirectory() as folder, initialize_config_module("lightning_grow.conf", version_base="1.3"):
        hush_host()
        chosen = ["env=market"] if env == MARKET else ["env=cartpole"]
        sizes = [f"model.hidden_dims={list(hidden)}", f"model.num_envs={num_envs}", f"model.num_steps={NUM_STEPS}"]
        config = compose("config", [*chosen, *sizes, *changed, f"trainer.max_epochs={iterations}", f"run_dir={folder}"])
        trainer = make_trainer(config)
        trainer.callbacks.append(Tick())
        trainer.fit(make_model(config))


def sb3(env: str, hidden: tuple[int, ...], num_envs: int, iterations: int, tick: Clock) -> None:
    """Stable-Baselines3's PPO with its defaults for all but what both have to share."""
    from stable_baselines3 import PPO
    from stable_baselines3.common.callbacks import BaseCallback
    from stable_baselines3.common.env_util import make_vec_env
    from stable_baselines3.common.vec_env import VecNormalize

    import lightning_grow.rl  # noqa: F401 - registers the market

    class Tick(BaseCallback):
        def _on_rollout_start(self) -> None:
            tick()

        def _on_step(self) -> bool:
            return True

    envs = VecNormalize(make_vec_env(env, num_envs), norm_reward=False)  # as ours: observations
    settings = {"n_steps": NUM_STEPS, "batch_size": NUM_STEPS * num_envs // MINIBATCHES, "n_epochs": EPOCHS}
    network = {"net_arch": list(hidden), "activation_fn": nn.Tanh}
    agent = PPO("MlpPolicy", envs, 2.5e-4, **settings, ent_coef=0.01, clip_range_vf=0.2, policy_kwargs=network)
    agent.learn(iterations * NUM_STEPS * num_envs, callback=Tick())


def plain(env: str, hidden: tuple[int, ...], num_envs: int, iterations: int, tick: Clock) -> None:
    """A loop of nothing but torch, with the same tricks: arrays, Gumbel noise, batched values, a fused Adam."""
    from lightning_grow.rl.actor_critic import ActorCritic
    from lightning_grow.rl.normalizer import ObservationNormalizer
    from lightning_grow.rl.vector_env import VectorEnv

    envs = VectorEnv({"id": env}, num_envs)
    envs.reset(1)
    agent = ActorCritic(envs.sizes[0], envs.sizes[1], hidden_dims=hidden)
    normalizer = ObservationNormalizer(envs.sizes[0])
    adam = torch.optim.Adam(agent.parameters(), 2.5e-4, eps=1e-5, fused=True)
    for _ in range(iterations):
        tick()
        samples = rollout(envs, agent, normalizer)
        for _ in range(EPOCHS):
            order = torch.randperm(NUM_STEPS * num_envs)
            shuffled = [column[order].chunk(MINIBATCHES) for column in samples]
            for minibatch in zip(*shuffled, strict=True):
                adam.zero_grad()
                loss(agent, *minibatch).backward()
                nn.utils.clip_grad_norm_(agent.parameters(), 0.5)
                adam.step()


@torch.no_grad()
def rollout(envs: Any, agent: Any, normalizer: Any) -> list[Tensor]:
    """Normalised observations, actions, log-probabilities, values, advantages and returns, flat."""
    num_envs = len(envs.envs)
    shape = NUM_STEPS, num_envs
    observations = torch.empty(NUM_STEPS + 1, *envs.observations.shape)
    logits = torch.empty(*shape, agent.action_dim)
    actions = torch.empty(shape, dtype=torch.int64)
    rewards, alive, final = np.zeros(shape, np.float32), np.zeros(shape, np.float32), {}
    noise = -torch.empty_like(logits).exponential_().log()
    weights = [(layer.weight, layer.bias) for layer in agent.actor[::2]]
    scale, shift = (normalizer.var + 1e-8).rsqrt(), normalizer.mean
    for step in range(NUM_STEPS):
        observations[step] = torch.from_numpy(envs.observations)
        hidden = ((observations[step] - shift) * scale).clamp_(-10, 10)
        for weight, bias in weights[:-1]:
            hidden = torch.addmm(bias, hidden, weight.T).tanh_()
        torch.addmm(weights[-1][1], hidden, weights[-1][0].T, out=logits[step])
        torch.argmax(logits[step] + noise[step], -1, out=actions[step])
        rewards[step], terminated, truncated, ends = envs.step(actions[step].numpy())
        alive[step] = 1 - terminated
        final |= {(step, int(i)): end for i, end in zip(np.flatnonzero(terminated | truncated), ends, strict=True)}
    observations[-1] = torch.from_numpy(envs.observations)
    normalized = ((observations - shift) * scale).clamp_(-10, 10)
    values = agent.critic(normalized).squeeze(-1)
    following, ended = values[1:].clone(), torch.ones(shape)
    if final:
        shown = torch.from_numpy(np.stack([end.observation for end in final.values()]))
        at = tuple(torch.tensor(list(final)).T)
        following[at] = agent.critic(((shown - shift) * scale).clamp_(-10, 10)).squeeze(-1)
        ended[at] = 0
    deltas = torch.from_numpy(rewards) + 0.99 * following * torch.from_numpy(alive) - values[:-1]
    advantages, last = torch.empty(shape), torch.zeros(num_envs)
    for step in reversed(range(NUM_STEPS)):
        last = advantages[step] = deltas[step] + 0.99 * 0.95 * ended[step] * last
    log_probs = logits.log_softmax(-1).gather(-1, actions[..., None]).squeeze(-1)
    normalizer.update(observations[:-1])
    columns = [normalized[:-1], actions, log_probs, values[:-1], advantages, advantages + values[:-1]]
    return [column.flatten(0, 1) for column in columns]


def loss(
    agent: Any, observations: Tensor, actions: Tensor, before: Tensor, values: Tensor, gains: Tensor, returns: Tensor
) -> Tensor:
    """PPO's."""
    log_softmax = agent.actor(observations).log_softmax(-1)
    ratio = (log_softmax.gather(-1, actions[:, None]).squeeze(-1) - before).exp()
    gains = (gains - gains.mean()) / (gains.std() + 1e-8)
    policy = -torch.minimum(ratio * gains, ratio.clamp(0.8, 1.2) * gains).mean()
    now = agent.critic(observations).squeeze(-1)
    clipped = values + (now - values).clamp(-0.2, 0.2)
    value = 0.5 * torch.maximum((now - returns).square(), (clipped - returns).square()).mean()
    return policy + 0.01 * (log_softmax.exp() * log_softmax).sum(-1).mean() + 0.5 * value


def one_by_one(*given: Any) -> None:
    """Ours, each environment stepped by itself."""
    from lightning_grow.rl import stepping, vector_env

    vector_env.make_stepper = stepping.OneByOne
    run_ours(*given)


def not_frozen(*given: Any) -> None:
    """Ours, the policy called as a module in each step of a rollout."""
    from lightning_grow.rl import player

    player.freeze = lambda *modules: nn.Sequential(*modules)
    run_ours(*given)


def log_dict(*given: Any) -> None:
    """Ours, logging as Lightning does."""
    from lightning_grow.rl import ppo

    ppo.log_at_once = lambda module, values: module.log_dict(values)
    run_ours(*given)


def saving_each(*given: Any) -> None:
    """Ours, a checkpoint after each iteration."""
    run_ours(*given, ("callbacks.checkpoint.seconds=0",))


def adam_not_fused(*given: Any) -> None:
    """Ours, Adam as a loop over parameters."""
    from lightning_grow.rl import ppo

    make = torch.optim.Adam
    ppo.torch.optim.Adam = lambda parameters, **settings: make(parameters, **settings | {"fused": False})
    run_ours(*given)


SUBJECTS = {"ours": ours, "SB3": sb3, "plain": plain}
CHANGES = {
    "ours": ours,
    "environments one by one": one_by_one,
    "policy not frozen": not_frozen,
    "Lightning's log_dict": log_dict,
    "a checkpoint each iteration": saving_each,
    "Adam not fused": adam_not_fused,
}
CHANGED = ["CartPole, 8 environments", "CartPole, 64 environments", "market [128, 128, 64], 8 environments"]


def work(case: str, subject: str, iterations: int) -> None:
    """One process: print the CPU milliseconds of each iteration but the first ones."""
    torch.set_num_threads(1)
    torch.manual_seed(1)
    times: list[float] = []
    (SUBJECTS | CHANGES)[subject](*CASES[case], iterations + WARM_UP + 1, lambda: times.append(time.process_time()))
    print(json.dumps([1000 * (after - before) for before, after in itertools.pairwise(times)][WARM_UP:]))


def measure(cases: list[str], subjects: list[str], iterations: int, rounds: int) -> Iterator[tuple[str, str, float]]:
    """The median CPU milliseconds of an iteration, round by round."""
    jobs = [(case, subject) for _ in range(rounds) for case in cases for subject in subjects]
    for case, subject in track(jobs, description="measuring"):
        command = [sys.executable, __file__, "--worker", case, subject, "--iterations", str(iterations)]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        yield case, subject, statistics.median(json.loads(done.stdout.splitlines()[-1]))


def main() -> None:
    """Measure, print and write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--worker", nargs=2, help=argparse.SUPPRESS)
    parser.add_argument("--iterations", type=int, default=30)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--cases", nargs="*", default=list(CASES), choices=CASES)
    parser.add_argument("--subjects", nargs="*", default=list(SUBJECTS), choices=SUBJECTS)
    parser.add_argument("--changes", action="store_true", help="leave out one of our tricks at a time")
    given = parser.parse_args()
    if given.worker:
        work(*given.worker, given.iterations)
        return
    if given.changes:
        given.cases, given.subjects = CHANGED, list(CHANGES)
    found: dict[tuple[str, str], list[float]] = {}
    for case, subject, milliseconds in measure(given.cases, given.subjects, given.iterations, given.rounds):
        found.setdefault((case, subject), []).append(milliseconds)
    lines = table(found, given.cases, given.subjects)
    load = os.getloadavg()[0]
    lines += ["", f"{given.rounds} rounds of {given.iterations} iterations, load average {load:.1f} at the end."]
    print("\n".join(lines))
    names = {"ppo_changes": (CHANGED, list(CHANGES)), "ppo_throughput": (list(CASES), list(SUBJECTS))}
    for name in (name for name, whole in names.items() if whole == (given.cases, given.subjects)):
        (Path(__file__).parent / "results" / f"{name}.md").write_text("\n".join(lines) + "\n")


def table(found: dict[tuple[str, str], list[float]], cases: list[str], subjects: list[str]) -> list[str]:
    """CPU ms of an iteration (median, lowest to highest), steps per CPU second, and how the others compare."""
    head = "| | CPU ms an iteration | lowest to highest | steps a CPU second | times ours |"
    lines = [head, "|---|---|---|---|---|"]
    for case in cases:
        steps, base = CASES[case][2] * NUM_STEPS, statistics.median(found.get((case, "ours"), [float("nan")]))
        for subject in subjects:
            times = found[case, subject]
            middle = statistics.median(times)
            spread = f"{min(times):.1f} to {max(times):.1f}"
            rate = f"{1000 * steps / middle:,.0f}"
            lines.append(f"| {case}: {subject} | {middle:.1f} | {spread} | {rate} | {middle / base:.2f} |")
    return lines


if __name__ == "__main__":
    main()
