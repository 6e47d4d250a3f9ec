import pytest
import torch

from lightning_grow.errors import CheckpointError, RefusedGrowth, WrongSetting
from lightning_grow.rl import PPO, ActorCritic
from lightning_grow.rl.load import read_agent, replace_start

HPARAMS = dict(PPO(4, 2, normalize_observations=False).hparams)


def make_agent(**settings):
    settings = {"hidden_dims": [8, 6], "normalize_observations": False, **settings}
    with torch.random.fork_rng():
        torch.manual_seed(len(str(settings)))
        agent = PPO(settings.pop("state_dim", 4), 2, **settings)
        # A head of gain 0.01 would hide differences of what comes before it.
        torch.nn.init.normal_(agent.agent.get_parameter("actor.4.weight"))
    return agent


def part(agent, name):
    return {key.removeprefix(f"{name}."): tensor for key, tensor in agent.state_dict().items() if key.startswith(name)}


def best_model(agent, actor="actor", critic="critic", **beside):
    """The plain file that the guide saves."""
    file = {actor: part(agent, "actor"), critic: part(agent, "critic"), "hidden_dims": [8, 6], "state_dim": 4}
    file["activation"] = "tanh"
    return {**file, "timestep": 12_345, "episode": 67, **beside}


@pytest.fixture
def path(tmp_path):
    return tmp_path / "best_model.pt"


def assert_same_function(source, target):
    for ours, theirs in zip(target(source.example_input_array), source(source.example_input_array), strict=True):
        torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize(
    ("actor", "critic"), [("actor", "critic"), ("actor_state_dict", "critic_state_dict"), ("policy", "value")]
)
def test_a_plain_file_grows_into_an_agent(path, actor, critic):
    source, target = make_agent(), make_agent(hidden_dims=[16, 12])
    torch.save(best_model(source.agent, actor, critic), path)
    report = target.load_with_transfer(path)
    assert report.function_preserving
    assert_same_function(source, target)
    assert (target.timesteps, target.episodes) == (12_345, 67)


def test_a_checkpoint_grows_into_an_agent(tmp_path):
    source = make_agent(normalize_observations=True)
    target = make_agent(normalize_observations=True, hidden_dims=[16, 12])
    source.normalizer.update(torch.randn(50, 4, generator=torch.Generator().manual_seed(0)) + 1)
    source.statistics.update([1.0, 2.0], [3, 4], timesteps=99)
    checkpoint = {"state_dict": source.state_dict(), "hyper_parameters": dict(source.hparams)}
    source.on_save_checkpoint(checkpoint)
    torch.save(checkpoint, tmp_path / "agent.ckpt")
    target.load_with_transfer(tmp_path / "agent.ckpt")
    assert_same_function(source, target)
    assert (target.timesteps, target.episodes) == (99, 2)
    assert torch.equal(target.normalizer.count, source.normalizer.count)


@pytest.mark.parametrize("strategy", ["copy_and_extend", "net2wider", "interpolate", "zero_pad"])
def test_the_guides_call_takes_any_strategy(path, strategy):
    torch.save(best_model(make_agent().agent), path)
    target = make_agent(hidden_dims=[16, 12])
    assert target.load_with_transfer(path, transfer_strategy=strategy).strategy == strategy


def test_other_names_are_renamed(path):
    source, target = make_agent(), make_agent(hidden_dims=[16, 12])
    file = best_model(source.agent)
    file["pi"] = {f"network.{name}": tensor for name, tensor in file.pop("actor").items()}
    file["v"] = file.pop("critic")
    torch.save(file, path)
    target.load_with_transfer(path, rename={"actor": "pi.network", "agent.critic": "v"})
    assert_same_function(source, target)


def test_other_names_in_a_checkpoint_are_renamed(tmp_path):
    source, target = make_agent(), make_agent(hidden_dims=[16, 12])
    theirs = {"agent.actor": "agent.critic", "agent.critic": "pi.network"}  # one name is ours, of another part
    state = {replace_start(name, theirs): tensor for name, tensor in source.state_dict().items()}
    torch.save({"state_dict": state, "hyper_parameters": dict(source.hparams)}, tmp_path / "agent.ckpt")
    target.load_with_transfer(tmp_path / "agent.ckpt", rename=theirs)
    assert_same_function(source, target)


def test_renaming_the_wrong_way_round_is_said(path):
    torch.save(best_model(make_agent().agent), path)
    with pytest.raises(WrongSetting, match=r"this agent's names .*e\.g\. {'actor': 'pi\.network'}"):
        make_agent(hidden_dims=[16, 12]).load_with_transfer(path, rename={"pi.network": "actor"})


def test_a_gaussian_agent_brings_its_log_std(path):
    source, target = make_agent(continuous=True), make_agent(continuous=True, hidden_dims=[16, 12])
    source.agent.log_std.data.fill_(-0.5)
    torch.save({**best_model(source.agent), "log_std": source.agent.log_std.detach()}, path)
    target.load_with_transfer(path)
    assert target.agent.log_std.tolist() == [-0.5, -0.5]


def test_missing_observation_statistics_are_said(path):
    torch.save(best_model(make_agent().agent), path)
    target = make_agent(hidden_dims=[16, 12], normalize_observations=True)
    with pytest.warns(UserWarning, match="no observation statistics.*normalize_observations=False"):
        target.load_with_transfer(path)


def test_sizes_are_read_off_the_weights(path):
    file = best_model(ActorCritic(4, 3, hidden_dims=[8, 6]))
    torch.save({key: value for key, value in file.items() if key not in ("hidden_dims", "state_dim")}, path)
    hparams = read_agent(path, HPARAMS, {})["hyper_parameters"]
    assert [hparams[name] for name in ("state_dim", "hidden_dims", "action_dim")] == [4, [8, 6], 3]


@pytest.mark.parametrize(
    ("file", "match"),
    [
        pytest.param([1, 2], "expected a dict, came list", id="a list"),
        pytest.param({"weights": {}}, r"found the keys \['weights'\]. Pass rename=", id="no actor"),
        pytest.param(
            best_model(ActorCritic(4, 2, hidden_dims=[8, 6]), state_dim=5), "contradicts itself", id="state_dim"
        ),
        pytest.param(
            best_model(ActorCritic(4, 2, hidden_dims=[8, 6]), hidden_dims=[8]), "contradicts itself", id="dims"
        ),
        pytest.param(best_model(ActorCritic(4, 2, hidden_dims=[8, 6]), critic="other"), "Pass rename=", id="no critic"),
    ],
)
def test_a_file_without_an_agent_is_refused(path, file, match):
    torch.save(file, path)
    with pytest.raises(CheckpointError, match=match):
        read_agent(path, HPARAMS, {})


def test_a_file_that_needs_code_is_refused(path):
    torch.save({"actor": make_agent()}, path)
    with pytest.raises(CheckpointError, match="would need code to load"):
        read_agent(path, HPARAMS, {})


def test_a_smaller_agent_refuses_and_stays_as_it_was(path):
    torch.save(best_model(make_agent().agent), path)
    target = make_agent(hidden_dims=[4, 6])
    before = {name: tensor.clone() for name, tensor in target.state_dict().items()}
    with pytest.raises(RefusedGrowth, match="source has 8 units, target has 4") as caught:
        target.load_with_transfer(path)
    assert len(caught.value.refused) == 1
    assert all(torch.equal(tensor, before[name]) for name, tensor in target.state_dict().items())
    assert target.timesteps == 0


def test_more_observations_are_refused_unless_allowed(path):
    source, target = make_agent(), make_agent(state_dim=6, hidden_dims=[16, 12])
    torch.save(best_model(source.agent), path)
    with pytest.raises(RefusedGrowth, match="allow_input_growth"):
        target.load_with_transfer(path)
    with pytest.warns(UserWarning, match="New inputs are taken to stand after the old ones"):
        target.load_with_transfer(path, allow_input_growth=True)
    inputs = source.example_input_array
    extended = torch.cat([inputs, torch.zeros(7, 2)], -1)
    torch.testing.assert_close(target(extended)[0], source(inputs)[0])


@pytest.mark.parametrize("shared_trunk", [False, True])
@pytest.mark.parametrize("key", ["model_state_dict", "policy_state_dict", "model", "agent"])
def test_one_state_dict_of_a_whole_agent_grows(path, key, shared_trunk):
    source = PPO(4, 2, hidden_dims=[8], shared_trunk=shared_trunk, normalize_observations=False)
    target = PPO(4, 2, hidden_dims=[12], shared_trunk=shared_trunk, normalize_observations=False)
    torch.save({key: source.agent.state_dict(), "activation": "tanh"}, path)
    assert target.load_with_transfer(path).function_preserving
    assert_same_function(source, target)


def test_an_actor_under_the_name_of_a_policy_is_one(path):
    source, target = make_agent(), make_agent(hidden_dims=[16, 12])
    torch.save(best_model(source.agent, "policy_state_dict", "value_state_dict"), path)
    target.load_with_transfer(path)
    assert_same_function(source, target)


def test_an_activation_that_the_file_does_not_say_is_said(path):
    file = best_model(make_agent().agent)
    del file["activation"]
    torch.save(file, path)
    with pytest.warns(
        UserWarning, match=r"does not say which activation .* taken to be relu.*PPO\(\.\.\., activation="
    ):
        make_agent(hidden_dims=[16, 12], activation="relu").load_with_transfer(path)


def test_the_files_metrics_are_kept_and_saved(path, tmp_path):
    target = make_agent(hidden_dims=[16, 12])
    torch.save(best_model(make_agent().agent, metrics={"best": 1.5, "history": [1, 2]}), path)
    target.load_with_transfer(path, device="cpu")
    assert target.metrics == {"best": 1.5, "history": [1, 2]}
    checkpoint = {"state_dict": target.state_dict(), "hyper_parameters": dict(target.hparams)}
    target.on_save_checkpoint(checkpoint)
    again = make_agent(hidden_dims=[16, 12])
    again.on_load_checkpoint(checkpoint)
    assert again.metrics == target.metrics


def test_the_agent_moves_to_a_device_first(path):
    target = make_agent(hidden_dims=[16, 12])
    torch.save(best_model(make_agent().agent), path)
    with pytest.raises(RuntimeError, match="nowhere"):
        target.load_with_transfer(path, device="nowhere")


def test_several_choices_are_those_of_the_agent(path):
    source, target = (PPO(4, [3, 2], hidden_dims=[size], normalize_observations=False) for size in (8, 12))
    torch.save({"model": source.agent.state_dict(), "activation": "tanh"}, path)
    target.load_with_transfer(path)
    assert target.agent.parts == [3, 2]
    assert_same_function(source, target)
