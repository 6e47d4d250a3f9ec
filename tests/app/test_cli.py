"""`lightning-grow` as a user has it: real runs, real files, and what it says when something is wrong."""

import inspect
import json
import re
import signal
import subprocess
import sys
import textwrap
from pathlib import Path
from statistics import fmean

import gymnasium
import pytest
import torch
from hydra import compose, initialize_config_module
from hydra.utils import instantiate
from omegaconf import OmegaConf
from PIL import Image

from lightning_grow import __version__
from lightning_grow.app import cli
from lightning_grow.app.sweep import compare, group_runs, write_run
from lightning_grow.callbacks import ArchTransfer
from lightning_grow.errors import CheckpointError
from lightning_grow.options import NAMES, check_options
from lightning_grow.rl import PPO
from lightning_grow.rl.market import MarketEnv
from lightning_grow.strategies import Strategy, list_strategies

CONF = Path(__file__).parents[2] / "conf"
GROUPS = (
    "callbacks", "env", "experiment", "logger", "model", "model/encoder", "model/memory", "strategy", "trainer",
)  # fmt: skip
CHOICES = [(group, path.stem) for group in GROUPS for path in sorted((CONF / group).glob("*.yaml"))]
QUICK = ("trainer.enable_progress_bar=false", "trainer.enable_model_summary=false", "hydra/job_logging=none")


@pytest.fixture
def lightning_grow(tmp_path, monkeypatch, capfd):
    """Run the command line in an empty folder; return its exit code and what it printed."""
    monkeypatch.chdir(tmp_path)

    def run(*arguments):
        monkeypatch.setenv("HYDRA_FULL_ERROR", "0")
        monkeypatch.setattr(sys, "argv", ["lightning-grow", *arguments])
        try:
            cli.main()
        except SystemExit as end:
            return end.code, "".join(capfd.readouterr())
        return 0, "".join(capfd.readouterr())

    return run


@pytest.fixture
def small_run(lightning_grow, tmp_path):
    """The checkpoint of two iterations of a small agent."""
    overrides = ("trainer.max_epochs=2", "model.hidden_dims=[8,8]", "hydra.run.dir=small")
    code, printed = lightning_grow("experiment=cartpole_small", *overrides, *QUICK)
    assert code == 0, printed
    return tmp_path / "small" / "checkpoints" / "last.ckpt"


def test_a_bigger_config_resumes_the_small_run(lightning_grow, small_run, tmp_path):
    overrides = ("trainer.max_epochs=3", "model.hidden_dims=[16,8]", f"ckpt_path={small_run}", "hydra.run.dir=large")
    code, printed = lightning_grow("experiment=cartpole_large", *overrides, *QUICK)
    assert code == 0, printed
    small, large = (torch.load(tmp_path / run / "checkpoints/last.ckpt") for run in ("small", "large"))
    assert large["state_dict"]["agent.actor.0.weight"].shape == (16, 4)
    assert large["epoch"] == small["epoch"] + 1
    assert large["global_step"] == small["global_step"] * 3 // 2
    report = json.loads((tmp_path / "large/logs/growth_report.json").read_text())
    assert report["strategy"] == "preserve"
    assert report["function_preserving"]
    for wrote in ("checkpoints/last.ckpt", "logs/metrics.csv", "logs/growth_report.json", "episode_return"):
        assert wrote in printed


KILLED = """
    import os, signal
    import lightning

    class Kill(lightning.Callback):
        def on_train_epoch_start(self, trainer, pl_module):
            if trainer.current_epoch == 2:
                os.kill(os.getpid(), signal.SIGKILL)
"""


def test_a_run_that_was_killed_goes_on_from_its_last_epoch(lightning_grow, tmp_path):
    (tmp_path / "killed.py").write_text(textwrap.dedent(KILLED))
    market = ("env=market", "env.state_features=2", "env.timeframes=[1h]", "model.num_steps=16", "trainer.max_epochs=3")
    command = [sys.executable, "-m", "lightning_grow", *market, *QUICK, "hydra.run.dir=killed"]
    command += ["+callbacks.kill={_target_:killed.Kill}", "callbacks.checkpoint.seconds=0"]
    ended = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=240, check=False)
    assert ended.returncode == -signal.SIGKILL, ended.stderr
    assert [path.name for path in (tmp_path / "killed/checkpoints").iterdir()] == ["last.ckpt"]
    for arguments in ("hydra.run.dir=resumed", "ckpt_path=killed/checkpoints/last.ckpt"), ("hydra.run.dir=straight",):
        assert lightning_grow(*market, *arguments, *QUICK)[0] == 0
    resumed, straight = (torch.load(tmp_path / run / "checkpoints/last.ckpt") for run in ("resumed", "straight"))
    assert resumed["global_step"] == straight["global_step"] == 48
    assert all(torch.equal(tensor, straight["state_dict"][name]) for name, tensor in resumed["state_dict"].items())


def test_a_staged_run_grows_twice_on_the_market(lightning_grow, tmp_path):
    stages = "callbacks.arch_transfer.stages=[{hidden_dims:[12,8]},{hidden_dims:[16,8]}]"
    quick = ("model.hidden_dims=[8,8]", stages, "callbacks.arch_transfer.at=[16,32]", "trainer.max_epochs=2")
    code, printed = lightning_grow("experiment=market_staged", *quick, "hydra.run.dir=staged", *QUICK)
    assert code == 0, printed
    saved = torch.load(tmp_path / "staged/checkpoints/last.ckpt", weights_only=True)
    assert saved["state_dict"]["agent.actor.0.weight"].shape == (16, 900)
    assert saved["hyper_parameters"]["hidden_dims"] == [16, 8]
    assert len(list((tmp_path / "staged/logs").glob("growth_report*.json"))) == 2


def test_the_agent_of_a_checkpoint_is_evaluated(lightning_grow, small_run, tmp_path):
    asked = ("evaluation.episodes=3", "+evaluation.env.max_episode_steps=30", "hydra.run.dir=found")
    code, printed = lightning_grow("mode=eval", f"ckpt_path={small_run}", *asked)
    assert code == 0, printed
    found = json.loads((tmp_path / "found/evaluation.json").read_text())
    assert found["env"] == {"id": "CartPole-v1", "max_episode_steps": 30}
    assert {way: len(returns) for way, returns in found["returns"].items()} == {"greedy": 3, "sampled": 3}
    assert max(found["returns"]["greedy"] + found["returns"]["sampled"]) <= 30
    assert f"{fmean(found['returns']['greedy']):.6g}" in printed
    assert not (tmp_path / "found/checkpoints").exists()


DRAWING = """
    import gymnasium
    import numpy as np

    class Drawing(gymnasium.Env):
        metadata = {"render_modes": ["rgb_array"], "render_fps": 25}
        observation_space = gymnasium.spaces.Box(0, 9, (1,), np.float32)
        action_space = gymnasium.spaces.Discrete(2)

        def __init__(self, render_mode=None, draws=True):
            self.render_mode, self.draws = render_mode, draws

        def reset(self, *, seed=None, options=None):
            super().reset(seed=seed)
            self.time = 0
            return np.zeros(1, np.float32), {}

        def step(self, action):
            self.time += 1
            return np.full(1, self.time, np.float32), 1.0, self.time == 5, False, {}

        def render(self):
            return np.full((10, 20, 3), (50 * self.time, 0, 0), np.uint8) if self.draws else None

    gymnasium.register("Drawing-v0", Drawing)
"""


def test_an_evaluation_of_the_market_writes_its_equity(lightning_grow, tmp_path):
    market = ("env=market", "env.state_features=2", "env.timeframes=[1d]", "env.lookback_bars=2", "env.episode_bars=9")
    assert lightning_grow(*market, "model.num_steps=16", "trainer.max_epochs=1", "hydra.run.dir=small", *QUICK)[0] == 0
    code, printed = lightning_grow("mode=eval", "ckpt_path=small/checkpoints/last.ckpt", "hydra.run.dir=found")
    assert code == 0, printed
    lines = (tmp_path / "found/equity.csv").read_text().splitlines()
    assert lines[0] == "time,equity"
    assert lines[1].endswith(",1.00000000")
    assert (tmp_path / "found/equity.png").stat().st_size > 1000


def test_an_episode_is_drawn(lightning_grow, tmp_path):
    (tmp_path / "drawing.py").write_text(textwrap.dedent(DRAWING))
    small = ("env=gym", "env.id=drawing:Drawing-v0", "model.num_steps=16", "trainer.max_epochs=1")
    assert lightning_grow(*small, "hydra.run.dir=small", *QUICK)[0] == 0
    path = ("mode=eval", "ckpt_path=small/checkpoints/last.ckpt", "evaluation.video=true")
    assert lightning_grow(*path, "hydra.run.dir=found")[0] == 0
    with Image.open(tmp_path / "found/episode.gif") as video:
        assert (video.n_frames, video.size) == (5, (20, 10))
        video.seek(4)
        assert video.convert("RGB").getpixel((0, 0)) == (200, 0, 0)
    code, printed = lightning_grow(*path, "+evaluation.env.draws=false")
    assert code != 0
    assert "Drawing-v0 draws no pictures" in f"{code}{printed}"


@pytest.mark.parametrize(("path", "words"), [("", "say ckpt_path=FILE"), ("other.ckpt", "holds no agent of ours")])
def test_an_evaluation_needs_an_agent(lightning_grow, tmp_path, path, words):
    torch.save({"state_dict": {}, "hyper_parameters": {}}, tmp_path / "other.ckpt")
    code, printed = lightning_grow("mode=eval", *([f"ckpt_path={path}"] if path else []))
    assert code != 0
    assert words in f"{code}{printed}"


def test_hyperparameters_are_plain_containers(small_run):
    saved = torch.load(small_run, weights_only=True)["hyper_parameters"]
    assert type(saved["hidden_dims"]) is list
    assert type(saved["env"]) is dict
    assert (saved["state_dim"], saved["action_dim"], saved["continuous"]) == (4, 2, False)


def test_a_sweep_has_short_folders_and_ends_with_a_comparison(lightning_grow, small_run, tmp_path):
    names = "copy_and_extend,interpolate,zero_pad,preserve,net2wider,random"
    overrides = ("trainer.max_epochs=3", "model.hidden_dims=[16,8]", f"ckpt_path={small_run}", "hydra.sweep.dir=sweep")
    code, printed = lightning_grow("-m", f"strategy={names}", "experiment=cartpole_large", *overrides, *QUICK)
    assert code == 0, printed
    reports = sorted((tmp_path / "sweep").glob("*/logs/growth_report.json"))
    assert [json.loads(report.read_text())["strategy"] for report in reports] == names.split(",")
    assert [report.parts[-3] for report in reports] == list("012345")
    rows = (tmp_path / "sweep" / "comparison.md").read_text().splitlines()[2:]
    kinds = {row.split(" | ")[0].removeprefix("| strategy="): row.split(" | ")[-1] for row in rows}
    assert kinds == {name: f"{number} |" for number, name in enumerate(names.split(","))}
    returns = [float(row.split(" | ")[1].split()[0]) for row in rows]
    assert returns == sorted(returns, reverse=True)
    runs = [json.loads((report.parents[1] / "run.json").read_text()) for report in reports]
    assert {float(f"{run['metrics']['episode_return']:.4g}") for run in runs} == set(returns)
    assert (tmp_path / "sweep" / "comparison.png").read_bytes().startswith(b"\x89PNG")
    assert rows[0].split(" | ")[1] in printed


@pytest.mark.parametrize("launcher", ["joblib", "submitit_local"])
def test_a_sweep_runs_side_by_side_on_others_engines(tmp_path, launcher):
    command = [sys.executable, "-W", "ignore", "-m", "lightning_grow", "-m", f"hydra/launcher={launcher}", "seed=1,2"]
    overrides = (
        "experiment=cartpole_small",
        "trainer.max_epochs=2",
        "model.hidden_dims=[8,8]",
        "hydra.sweep.dir=sweep",
    )
    side_by_side = ["hydra.launcher.n_jobs=2"] if launcher == "joblib" else ["hydra.launcher.timeout_min=5"]
    done = subprocess.run(
        [*command, *overrides, *QUICK, *side_by_side],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
        timeout=250,
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    runs = [json.loads(path.read_text()) for path in sorted((tmp_path / "sweep").glob("[01]/run.json"))]
    assert len(runs) == 2
    assert runs[0]["metrics"] != runs[1]["metrics"]  # of two seeds
    rows = (tmp_path / "sweep" / "comparison.md").read_text().splitlines()[2:]
    assert [row.split(" | ")[-1] for row in rows] == ["0, 1 |"]


def test_runs_that_differ_by_their_seed_are_one_row(tmp_path):
    for number, (seed, width) in enumerate([(1, 8), (2, 8), (1, 16)]):
        (tmp_path / str(number)).mkdir()
        asked = [f"seed={seed}", f"model.hidden_dims=[{width}]", "trainer.max_epochs=3"]
        write_run(tmp_path / str(number), asked, {"metrics": {}, "parameters": 3, "seconds": 1.0})
    groups = group_runs(tmp_path)
    assert {name: len(runs) for name, runs in groups.items()} == {
        "model.hidden_dims=[8]": 2,
        "model.hidden_dims=[16]": 1,
    }
    assert "never logged" in compare(groups, "episode_return")[2]


def test_a_run_at_its_total_is_refused_and_told_the_override(lightning_grow, small_run):
    code, _ = lightning_grow(
        "experiment=cartpole_small", "model.hidden_dims=[8,8]", f"ckpt_path={small_run}", "trainer.max_epochs=2", *QUICK
    )
    assert re.search(r"already reached its total.*max_epochs=2.*trainer\.max_epochs=", code)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        pytest.param(["model.hiden_dims=[3]"], r"model\.hiden_dims.*Did you mean 'hidden_dims'\?", id="key"),
        pytest.param(["modle=x"], r"modle.*Did you mean 'mode' or 'model'\?", id="group"),
        pytest.param(["strategy=net2widr"], r"net2widr.*Did you mean 'net2wider'\?", id="choice"),
        pytest.param(["env=market", "env.lookback=3"], r"Did you mean 'lookback_bars'\?", id="key of the market"),
        pytest.param(["trainer.max_epoch=3"], r"Did you mean 'max_epochs'\?", id="key of the Trainer"),
        pytest.param(["model.num_steps=many"], r"num_steps.*could not be converted to Integer", id="type"),
        pytest.param(["env=gym"], r"Missing mandatory value.*env\.id", id="no id"),
        pytest.param(["env=gym", "env.id=CartPol-v1"], r"Did you mean: `CartPole`\?", id="id"),
        pytest.param(["model.activation=tahn"], r"Did you mean 'tanh'\?", id="activation"),
        pytest.param(["env=market", "env.path=no.csv"], r"no\.csv", id="prices"),
        pytest.param(["callbacks.arch_transfer.strategy=net2widr"], r"Did you mean 'net2wider'\?", id="strategy"),
        pytest.param(["ckpt_path=no.ckpt"], r"ckpt_path=no\.ckpt does not exist.*has other\.ckpt", id="checkpoint"),
        pytest.param(["ckpt_path=other.ckpt"], r"other\.ckpt is empty", id="empty checkpoint"),
        pytest.param(["ckpt_path=http://127.0.0.1:9/a.ckpt"], r"Download the file", id="address"),
        pytest.param(
            ["model.num_envs=0"], r"num_envs to be a whole number, at least 1, but got 0", id="no environment"
        ),
        pytest.param(["model.num_steps=1", "model.num_envs=7"], r"at least 8 .* but got 7", id="minibatch of one"),
        pytest.param(["trainer.max_epochs=-1"], r"What falls over the run .* needs to know its end", id="endless"),
        pytest.param(["trainer.accelerator=gpux"], r"Trainer cannot be made .*gpux", id="accelerator"),
        pytest.param(["+trainer.max_epoch=3"], r"Trainer cannot be made .*max_epoch", id="argument of the Trainer"),
        pytest.param(["+env.kwargs.wind=1"], r"CartPole-v1 cannot be made with {'wind': 1}.*wind", id="argument"),
        pytest.param(
            ["env=gym", "env.id=FrozenLake-v1", "+env.kwargs.map_name=5x5"], r"cannot be made with .*'5x5'", id="map"
        ),
        pytest.param(["env=gym", "env.id=tests/Named-v0"], r"needs Discrete, .* or Box actions; .*Text", id="actions"),
        pytest.param(
            ["+training.transfer_strategy=net2wider"], r"no key 'training'.*mean strategy\?", id="the guide's key"
        ),
        pytest.param(
            ["+training.learning_rate=1"], r"no key 'training'.*mean model\.learning_rate\?", id="another's key"
        ),
        pytest.param(["+gama=0.9"], r"no key 'gama'.*Did you mean model\.gamma\?", id="key of a group"),
        pytest.param(["+zzz=1"], r"no key 'zzz', and nothing reads it\. Known: name, seed", id="key of nothing"),
        pytest.param(["--checkpoint=a.ckpt"], r"no --checkpoint here: say ckpt_path=FILE", id="flag"),
        pytest.param(["--config", "a.yaml"], r"no --config here: say experiment=NAME", id="flag with a value"),
        pytest.param(["model.gamma=1.5"], r"gamma to be in \[0, 1\], but got 1\.5", id="range"),
        pytest.param(["+trainer.gradient_clip_val=1"], r"clips gradients to its own max_grad_norm", id="clipping"),
        pytest.param(["+trainer.precision=bf16-true"], r"trains in 32-true, .*precision=bf16-true", id="precision"),
    ],
)
def test_a_fault_is_one_message_that_says_what_was_meant(lightning_grow, arguments, message, tmp_path):
    (tmp_path / "other.ckpt").touch()
    code, printed = lightning_grow(*arguments, *QUICK)
    assert re.search(message, code, re.DOTALL), code
    assert "Traceback" not in code + printed


class NamedActions(gymnasium.Env):
    observation_space = gymnasium.spaces.Box(-1, 1, (2,))
    action_space = gymnasium.spaces.Text(3)


class Faulty(gymnasium.Env):
    observation_space = gymnasium.spaces.Box(-1, 1, (2,))
    action_space = gymnasium.spaces.Discrete(2)

    def reset(self, *, seed=None, options=None):
        return {}["a fault of its code"]


gymnasium.register("tests/Named-v0", NamedActions)
gymnasium.register("tests/Faulty-v0", Faulty)


def test_an_environment_of_ones_own_module_trains(lightning_grow, tmp_path, monkeypatch):
    (tmp_path / "mine.py").write_text(
        "import gymnasium\nfrom gymnasium.envs.classic_control import CartPoleEnv\n"
        "gymnasium.register('Mine-v0', CartPoleEnv, max_episode_steps=9)\n"
    )
    monkeypatch.setattr(sys, "path", [path for path in sys.path if path not in ("", str(tmp_path))])
    code, printed = lightning_grow("env=gym", "env.id=mine:Mine-v0", "name=own", "trainer.max_epochs=1", *QUICK)
    assert code == 0, code
    assert re.search(r"episode_length +(9|8\.\d+)\n", printed)


def test_a_file_of_weights_only_begins_a_bigger_run_and_no_run_of_its_own_size(lightning_grow, small_run):
    saved = torch.load(small_run)
    torch.save(
        {name: saved[name] for name in saved if name not in ("optimizer_states", "lr_schedulers")}, "weights.ckpt"
    )
    asked = ("experiment=cartpole_small", "ckpt_path=weights.ckpt", "trainer.max_epochs=3", *QUICK)
    code, printed = lightning_grow("model.hidden_dims=[8,8]", "hydra.run.dir=same", *asked)
    assert re.search(r"weights\.ckpt holds weights only.*saved in full", code)
    assert "Traceback" not in code + printed
    assert lightning_grow("model.hidden_dims=[16,8]", "hydra.run.dir=bigger", *asked)[0] == 0


@pytest.mark.parametrize(
    ("arguments", "differs"),
    [
        (["env=gym", "env.id=Acrobot-v1"], r"input 0 grows.*env\.id: CartPole-v1 in the checkpoint, Acrobot-v1 in the"),
        (["model.activation=relu"], r"tanh.*activation: tanh in the checkpoint, relu in the config"),
    ],
)
def test_a_refused_file_of_another_run_says_what_differs(lightning_grow, small_run, arguments, differs):
    asked = ("model.hidden_dims=[8,8]", f"ckpt_path={small_run}", "trainer.max_epochs=3", *QUICK)
    code, _ = lightning_grow(*arguments, *asked)
    assert re.search(differs, code, re.DOTALL), code


def test_a_fault_of_a_program_keeps_its_traceback(lightning_grow):
    with pytest.raises(KeyError, match="a fault of its code"):
        lightning_grow("env=gym", "env.id=tests/Faulty-v0", *QUICK)


def test_debug_shows_the_traceback(lightning_grow):
    with pytest.raises(CheckpointError, match="does not exist"):
        lightning_grow("ckpt_path=no.ckpt", "debug=true")


@pytest.mark.parametrize(("group", "choice"), CHOICES)
def test_every_choice_composes(group, choice):
    with initialize_config_module("lightning_grow.conf", version_base="1.3"):
        assert compose("config", [f"{group}={choice}"])


def test_help_and_version_load_neither_lightning_nor_an_environment():
    code = (
        "import atexit, sys; from lightning_grow.app import cli; sys.argv[1:] = ['--help'];"
        "heavy = {'lightning', 'gymnasium', 'pandas', 'matplotlib'};"
        "atexit.register(lambda: print(sorted(heavy & sys.modules.keys()))); cli.main()"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "== Groups" in done.stdout
    assert done.stdout.splitlines()[-1] == "[]"


def test_the_version_is_said(lightning_grow):
    assert lightning_grow("--version") == (0, f"lightning-grow {__version__}\n")


def test_what_lightning_says_is_in_the_log_of_the_run(lightning_grow, tmp_path):
    quick = [argument for argument in QUICK if "job_logging" not in argument]
    assert (
        lightning_grow("experiment=cartpole_small", "trainer.max_epochs=1", f"hydra.run.dir={tmp_path}/run", *quick)[0]
        == 0
    )
    assert "`Trainer.fit` stopped: `max_epochs=1` reached." in (tmp_path / "run" / "cli.log").read_text()


def test_the_next_run_in_a_process_leaves_the_log_of_the_first_alone(lightning_grow, tmp_path):
    quick = [argument for argument in QUICK if "job_logging" not in argument]
    for epochs in (1, 2):
        chosen = ("experiment=cartpole_small", f"trainer.max_epochs={epochs}", f"hydra.run.dir={tmp_path}/{epochs}")
        assert lightning_grow(*chosen, *quick)[0] == 0
    first, second = ((tmp_path / str(epochs) / "cli.log").read_text() for epochs in (1, 2))
    assert "`max_epochs=2` reached" in second
    assert "`max_epochs=2` reached" not in first


def test_the_help_names_every_choice(lightning_grow):
    _, printed = lightning_grow("--help")
    named = {tuple(line.split()) for line in printed.partition("== Groups")[2].partition("== Keys")[0].splitlines()}
    for group, choice in CHOICES:
        assert any(words[:1] == (group,) and choice in words for words in named), (group, choice)


@pytest.mark.parametrize("path", sorted(CONF.rglob("*.yaml")), ids=lambda path: str(path.relative_to(CONF)))
def test_every_key_has_its_meaning_beside_it(path):
    text = path.read_text().split("template: |")[0]  # what follows is the help's own text
    for line in re.sub(r"^defaults:\n( .*\n)+", "", text, flags=re.MULTILINE).splitlines():
        assert "#" in line or re.fullmatch(r"|\{\}| *\w+:| *_target_: .*", line), line


def test_there_is_a_choice_for_every_strategy():
    assert [choice for group, choice in CHOICES if group == "strategy"] == list_strategies()
    for name in list_strategies():
        assert isinstance(instantiate(OmegaConf.load(CONF / f"strategy/{name}.yaml")), Strategy)


@pytest.mark.parametrize(
    ("path", "key", "build", "elsewhere"),
    [
        ("model/actor_critic.yaml", None, PPO, {"env", "seed", "state_dim", "action_dim", "continuous"}),
        ("env/market.yaml", None, MarketEnv, set()),
        (
            "callbacks/default.yaml",
            "arch_transfer",
            ArchTransfer,
            {"strategy", "seed", "example_inputs", "forward", "source"},
        ),
    ],
)
def test_the_configuration_has_every_argument_at_its_default(path, key, build, elsewhere):
    config = OmegaConf.to_container(OmegaConf.load(CONF / path), resolve=False)
    config = config[key] if key else config
    parameters = inspect.signature(build).parameters
    defaults = {name: argument.default for name, argument in parameters.items() if name != "options"}
    if "options" in parameters:
        defaults |= {name: getattr(check_options({}, "ArchTransfer"), name) for name in NAMES}
    for name in defaults.keys() - elsewhere:
        default = defaults[name]
        assert config[name] == (list(default) if isinstance(default, tuple) else default), name
