"""Memory: whole episodes are read as step by step, forgotten where they end, kept over a resume and over a growth."""

import copy

import lightning
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from lightning_grow import ArchTransfer, GrowthSchedule, grow, measure_liveness, plan_growth
from lightning_grow.errors import WrongSetting
from lightning_grow.rl import PPO, ActorCritic, evaluate
from lightning_grow.rl.memory import Memory, Past, cut
from lightning_grow.rl.rollout import collect
from lightning_grow.rl.update import minibatch_loss, prepare
from lightning_grow.rl.vector_env import VectorEnv

RECALL = {"id": "lightning_grow/Recall-v0", "cues": 2, "delay": 2}
WALK = {"id": "tests/Walk-v0"}  # episodes of 20 steps at most
KINDS = ["lstm", "gru"]
QUICK = {"num_envs": 4, "num_steps": 16, "num_minibatches": 2, "update_epochs": 2, "hidden_dims": [6]}


def make_agent(kind="lstm", size=5, env=WALK, sizes=(2, 2), **changes):
    torch.manual_seed(size)
    agent = PPO(*sizes, env=env, memory={"kind": kind, "hidden_size": size}, **{**QUICK, **changes})
    for parameter in agent.parameters():  # heads of gain 0.01 and biases of 0 would hide differences
        nn.init.normal_(parameter, std=0.5)
    return agent


def fit(agent, epochs, path=None, *callbacks, **changes):
    trainer = lightning.Trainer(
        max_epochs=epochs, callbacks=list(callbacks), logger=False, accelerator="cpu", enable_progress_bar=False,
        enable_checkpointing=False, enable_model_summary=False, **changes,
    )  # fmt: skip
    trainer.fit(agent, ckpt_path=path, weights_only=True)
    return trainer


def step_by_step(memory, features, past):
    """What torch's own cells give, one step after the other; and the state at last."""
    layer = memory.layer
    cell = (nn.LSTMCell if len(past.state) == 2 else nn.GRUCell)(layer.input_size, layer.hidden_size).double()
    weights = {name.removesuffix("_l0"): tensor for name, tensor in layer.named_parameters()}
    rows = []
    for row, begins in enumerate(past.begins.tolist()):
        state = [part[row : row + 1] for part in past.state]
        for step, is_begin in enumerate(begins):
            if is_begin:
                state = [getattr(memory, name)[None] for name in memory.names]
            inputs = (features[row, step][None], tuple(state) if len(state) == 2 else state[0])
            after = torch.func.functional_call(cell, weights, inputs)
            state = list(after) if len(state) == 2 else [after]
            rows.append(state[0])
    return torch.cat(rows).reshape(*past.begins.shape, -1)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("share", [0.0, 0.3, 1.0])
def test_whole_episodes_are_read_as_step_by_step(kind, share):
    torch.manual_seed(0)
    memory = Memory(kind, 3, 4).double()
    for tensor in (*memory.parameters(), *memory.buffers()):
        nn.init.normal_(tensor)
    features = torch.randn(5, 9, 3, dtype=torch.float64, requires_grad=True)
    state = tuple(torch.randn(5, 4, dtype=torch.float64) for _ in memory.names)
    past = Past(state, torch.rand(5, 9) < share)
    read, expected = memory(features, past), step_by_step(memory, features, past)
    weights = torch.randn_like(read)
    for one, other in zip(
        (read, *torch.autograd.grad((read * weights).sum(), [features, *memory.parameters()])),
        (expected, *torch.autograd.grad((expected * weights).sum(), [features, *memory.parameters()])),
        strict=True,
    ):
        torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-12)  # float64, tens of operations


@pytest.mark.parametrize("kind", KINDS)
def test_a_step_goes_on_from_the_state_in_place(kind):
    memory = Memory(kind, 3, 4)
    features = torch.randn(5, 9, 3)
    state = tuple(part.repeat(5, 1) for part in memory.begun)
    with torch.no_grad():
        steps = [memory.step(features[:, step], state).clone() for step in range(9)]
        torch.testing.assert_close(torch.stack(steps, 1), memory(features))
    assert torch.equal(steps[-1], state[0])


@given(st.lists(st.lists(st.booleans(), min_size=4, max_size=4), min_size=1, max_size=5))
@settings(deadline=None)
def test_pieces_are_the_steps_between_two_begins(rows):
    pieces = cut(torch.tensor(rows))
    expected, sequences, begun = [], [], []
    for number, row in enumerate(rows):
        for step, is_begin in enumerate(row):
            if is_begin or step == 0:
                sequences.append(number)
                begun.append([is_begin])
                position = 0
            expected.append((len(sequences) - 1, position))
            position += 1
    assert list(zip(*(place.tolist() for place in pieces.places), strict=True)) == expected
    assert (pieces.sequences.tolist(), pieces.is_begun.tolist()) == (sequences, begun)
    assert pieces.longest == max(position for _, position in expected) + 1


@pytest.mark.parametrize("kind", KINDS)
def test_a_rollout_is_what_the_network_says_of_its_episodes(kind):
    """Two rollouts, so that the second begins in the middle of episodes."""
    agent, envs = make_agent(kind).agent, VectorEnv(WALK, 3)
    envs.reset(seed=0)
    memory, generator = agent.new_memory(3), torch.Generator().manual_seed(0)
    rollouts = [collect(envs, agent, nn.Identity(), 30, generator, memory) for _ in range(2)]
    assert len(rollouts[0].episode_returns) >= 3
    whole = torch.cat([rollouts[0].observations[:-1], rollouts[1].observations])
    begins = torch.cat([rollouts[0].begins[:-1], rollouts[1].begins])
    begins[30] = rollouts[0].begins[-1]
    outputs = agent.policy(whole.transpose(0, 1), Past(agent.new_memory(3), begins.T)).transpose(0, 1)
    torch.testing.assert_close(torch.cat([rollout.outputs for rollout in rollouts]), outputs[:-1])
    batch = prepare(rollouts[1], agent, nn.Identity(), gamma=0.9, gae_lambda=0.0)
    # With lambda 0 a return is r + gamma V(s'): of each step's own episode, its final observation included.
    ended = (rollouts[1].terminated | rollouts[1].truncated).tolist()
    final = iter(rollouts[1].final_observations)
    finals = {(step, env): next(final) for step, row in enumerate(ended) for env, is_end in enumerate(row) if is_end}
    for env in range(3):
        seen = []
        for step in range(60):
            seen = [*([] if begins[step, env] else seen), whole[step, env]]
            if step < 30:
                continue
            following = finals.get((step - 30, env), whole[step + 1, env])
            value = (
                agent.value(torch.stack([*seen, following])[None])[0, -1, 0] * ~rollouts[1].terminated[step - 30, env]
            )
            expected = rollouts[1].rewards[step - 30, env] + 0.9 * value
            torch.testing.assert_close(batch.returns[env, step - 30], expected, rtol=1e-4, atol=1e-5)


def test_nothing_has_changed_before_the_first_step_of_an_update():
    agent, envs = make_agent(num_envs=6), VectorEnv(WALK, 6)
    envs.reset(seed=0)
    memory, generator = agent.agent.new_memory(6), torch.Generator().manual_seed(0)
    for _ in range(2):
        batch = agent.prepare(collect(envs, agent.agent, agent.normalizer, 50, generator, memory))
    parts = batch.shuffled(torch.tensor([3, 1, 5, 0, 2, 4]), 4)
    assert [part.actions.shape for part in parts] == [(2, 50), (2, 50), (1, 50), (1, 50)]
    assert torch.equal(parts[0].memory[0], batch.memory[0][[3, 1]])
    for part in parts:
        _, diagnostics = minibatch_loss(agent.agent, part, agent.hparams)
        torch.testing.assert_close(diagnostics.log_ratios, torch.zeros_like(diagnostics.log_ratios), rtol=0, atol=1e-4)


def test_what_is_remembered_goes_with_its_environment(tmp_path):
    """Clock has no state to be saved: its episodes begin anew, and so does what is remembered of them."""
    seen = []

    class Look(lightning.Callback):
        def on_train_epoch_start(self, trainer, pl_module):
            seen.append([part.clone() for part in pl_module.memory])

    for env, stays in ((WALK, True), ({"id": "tests/Clock-v0", "length": 50}, False)):
        agent, resumed = make_agent(env=env), make_agent(env=env)
        fit(agent, 1).save_checkpoint(tmp_path / "one.ckpt")
        seen.clear()
        fit(resumed, 2, tmp_path / "one.ckpt", Look())
        running = torch.tensor(agent.run_state["envs"]["episode_lengths"]).unsqueeze(-1) > 0
        for name, part in zip(agent.agent.memory.names, seen[0], strict=True):
            saved = torch.stack([held[f"agent.memory.{name}"] for held in agent.run_state["memory"]])
            assert torch.equal(part, saved * running * stays)
            assert part.any() == stays


@pytest.mark.parametrize("strategy", ["preserve", "net2wider"])
@pytest.mark.parametrize("kind", KINDS)
def test_a_memory_grows_exactly_and_its_new_units_learn(kind, strategy):
    source, target = make_agent(kind).double(), make_agent(kind, 8, hidden_dims=[9]).double()
    plan = plan_growth(source, target, strategy=strategy)
    assert grow(source, target, strategy=strategy).max_output_error <= 1e-13  # float64, hundreds of operations
    found = measure_liveness(plan, target, (torch.randn(64, 6, 2, dtype=torch.float64),)).values()
    assert sum(group.new for group in found) >= 3 + 3
    assert not sum(group.idle for group in found)


class Outputs(lightning.Callback):
    """Keeps what the policy puts out in every rollout."""

    def __init__(self):
        self.outputs = []

    def on_train_start(self, trainer, pl_module):
        own = pl_module.prepare
        pl_module.prepare = lambda rollout: self.outputs.append(rollout.outputs) or own(rollout)


STILL = {"learning_rate": 1e-50, "anneal_lr": False, "normalize_observations": False}  # nothing is learnt


@pytest.mark.parametrize("strategy", ["preserve", "net2wider"])
@pytest.mark.parametrize("kind", KINDS)
def test_a_bigger_agent_goes_on_in_the_middle_of_its_episodes(tmp_path, kind, strategy):
    small = make_agent(kind, **STILL)
    fit(small, 1).save_checkpoint(tmp_path / "small.ckpt")
    assert any(small.run_state["envs"]["episode_lengths"])
    straight, grown = Outputs(), Outputs()
    fit(make_agent(kind, **STILL), 3, tmp_path / "small.ckpt", straight)
    large = make_agent(kind, 8, **{**STILL, "hidden_dims": [9]})
    fit(large, 3, tmp_path / "small.ckpt", ArchTransfer(strategy), grown)
    for one, other in zip(grown.outputs, straight.outputs, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)  # float32, 32 steps one after the other
    assert large.memory[0].shape == (4, 8)


@pytest.mark.parametrize("kind", KINDS)
def test_a_stage_goes_on_in_the_middle_of_its_episodes(kind):
    straight, grown = Outputs(), Outputs()
    stages = [{"memory": {"kind": kind, "hidden_size": 8}, "hidden_dims": [9]}]
    agents = [make_agent(kind, **STILL), make_agent(kind, **STILL)]
    fit(agents[0], 3, None, straight)
    fit(agents[1], 3, None, grown, GrowthSchedule(stages, at=[4], strategy="net2wider"))
    assert agents[1].memory[0].shape == (4, 8)
    for one, other in zip(grown.outputs, straight.outputs, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)


def learn(epochs=30, **changes):
    lightning.seed_everything(1, verbose=False)
    learning = {"learning_rate": 1e-2, "num_envs": 16, "num_steps": 32, "num_minibatches": 4, "update_epochs": 4}
    agent = PPO(3, 2, env=RECALL, hidden_dims=[16], normalize_observations=False, **learning, **changes)
    fit(agent, epochs)
    return agent


@pytest.mark.parametrize("kind", KINDS)
def test_only_an_agent_with_a_memory_learns_what_it_has_to_remember(kind):
    assert sum(evaluate(learn(memory={"kind": kind, "hidden_size": 16}), RECALL, 50, seed=0, greedy=True)) >= 48


def test_an_agent_without_a_memory_guesses():
    assert abs(sum(evaluate(learn(), RECALL, 50, seed=0, greedy=True))) <= 25  # of 50, half of them right: 0 on average


@pytest.mark.parametrize("precision", ["bf16-mixed", "64-true"])
@pytest.mark.parametrize("kind", KINDS)
def test_a_memory_trains_in_other_precisions(kind, precision):
    agent = make_agent(kind)
    before = copy.deepcopy(agent.agent.memory.state_dict())
    fit(agent, 2, precision=precision)
    after = agent.agent.memory.state_dict()
    assert all(torch.isfinite(tensor).all() for tensor in after.values())
    assert not torch.equal(after["layer.weight_hh_l0"].float(), before["layer.weight_hh_l0"])


def test_an_agent_with_eyes_and_a_memory_trains_and_grows():
    encoder = {"kind": "nature_cnn", "channels": [4], "kernels": [3], "strides": [2], "features": 6}
    catch = {"id": "tests/Catch-v0"}
    source = make_agent(env=catch, sizes=([8, 8, 1], 3), encoder=encoder)
    fit(source, 2)
    target = make_agent(size=8, env=catch, sizes=([8, 8, 1], 3), encoder=encoder | {"channels": [6], "features": 9})
    assert grow(source.double(), target.double()).max_output_error <= 1e-13


@pytest.mark.parametrize(
    ("memory", "changes", "words"),
    [
        ({"kind": "rnn"}, {}, "no memory of the kind 'rnn'. Known: lstm, gru"),
        ({"kind": "gru", "hidden_size": 0}, {}, "hidden_size to be at least 1, but got 0"),
        ({"kind": "gru", "layers": 2}, {}, "a kind and a hidden_size, but got layers"),
        ({"kind": "gru"}, {"num_minibatches": 5}, "num_minibatches=5, but got 4"),
    ],
)
def test_what_makes_no_memory_is_refused(memory, changes, words):
    with pytest.raises(WrongSetting, match=words):
        PPO(2, 2, env=WALK, memory=memory, **{**QUICK, **changes})


def test_a_memory_reads_whole_episodes():
    agent = ActorCritic(3, 2, hidden_dims=[], memory={"kind": "gru", "hidden_size": 4})
    logits, value = agent(torch.randn(7, 5, 3))
    assert (logits.shape, value.shape) == ((7, 5, 2), (7, 5, 1))
