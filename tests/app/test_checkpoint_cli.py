"""`lightning-grow-checkpoint` on files of every kind, as a user types it; what it writes is read by other programs."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from stacks import Stack, train_small
from torch import nn
from torch.distributed.checkpoint import FileSystemWriter
from torch.distributed.checkpoint import save as save_distributed
from typer.testing import CliRunner

from lightning_grow.app.checkpoint_cli import app

transformers.logging.set_verbosity_error()
pytestmark = pytest.mark.filterwarnings("ignore:torch.distributed is disabled")  # one process is what is wanted


class Net(nn.Module):
    """A module that no file describes."""

    def __init__(self, width, depth=1):
        super().__init__()
        self.into = nn.Linear(4, width)
        self.body = nn.Sequential(*(part for _ in range(depth) for part in (nn.Linear(width, width), nn.ReLU())))
        self.head = nn.Linear(width, 2)

    def forward(self, x):
        return self.head(self.body(self.into(x).relu()))


MODEL = ("--model", f"{__name__}:Net", "--was", "width=8", "--inputs", "5x4")
LIT = ("--model", "stacks:Stack")
GPT2 = {"vocab_size": 50, "n_positions": 16, "n_embd": 16, "n_layer": 2, "n_head": 2}


def call(*words, code=0):
    done = CliRunner().invoke(app, list(map(str, words)))
    assert done.exit_code == code, done.output + str(done.exception)
    return done.output


def facts(*words, code=0):
    done = CliRunner().invoke(app, [*map(str, words), "--json"])
    assert done.exit_code == code, done.output + str(done.exception)
    return json.loads(done.stdout)


@pytest.fixture
def small():
    torch.manual_seed(0)
    return Net(8)


@pytest.fixture
def files(tmp_path, small):
    """One of each kind."""
    states = {"state": {0: {"exp_avg": torch.zeros(8, 4)}}, "param_groups": []}
    torch.save(small.state_dict(), tmp_path / "bare.pt")
    torch.save({"model": {"weights": small.state_dict()}, "epoch": 3, "adam": states}, tmp_path / "nested.pt")
    torch.save({"model": small.state_dict(), "ema": small.state_dict()}, tmp_path / "two.pt")
    save_file(small.state_dict(), tmp_path / "weights.safetensors")
    transformers.GPT2LMHeadModel(transformers.GPT2Config(**GPT2)).save_pretrained(tmp_path / "gpt2")
    save_distributed(
        {"state_dict": small.state_dict()}, storage_writer=FileSystemWriter(tmp_path / "dcp"), no_dist=True
    )
    os.rename(train_small(tmp_path / "run")[1], tmp_path / "run.ckpt")
    return tmp_path


@pytest.mark.parametrize(
    ("name", "kind", "entries"),
    [
        ("bare.pt", "torch.save file", 130),
        ("nested.pt", "torch.save file, weights under 'model.weights'", 130),
        ("weights.safetensors", "safetensors file", 130),
        ("gpt2", "Hugging Face folder", 7648),
        ("dcp", "distributed checkpoint folder", 130),
    ],
)
def test_inspect_says_what_it_is_and_counts_the_weights(files, name, kind, entries):
    found = facts("inspect", files / name)
    assert (found["kind"], found["parameters"], found["imports"]) == (kind, entries, [])
    assert kind.split(",")[0] in call("inspect", files / name)


def test_inspect_of_a_lightning_checkpoint(files):
    found, content = facts("inspect", files / "run.ckpt"), torch.load(files / "run.ckpt", weights_only=True)
    assert found["kind"] == "Lightning checkpoint"
    assert found["progress"]["step"] == content["global_step"] > 0
    assert found["hyperparameters"]["hidden_dims"] == list(content["hyper_parameters"]["hidden_dims"])
    assert {name: tuple(item["shape"]) for name, item in found["tensors"].items()} == {
        name: tuple(item.shape) for name, item in content["state_dict"].items()
    }
    assert "exp_avg_sq" in found["optimizers"][0]


def test_inspect_reads_no_tensors(files):
    path = files / "bare.pt"
    whole = path.read_bytes()
    first = torch.load(path, weights_only=True)["into.weight"].numpy().tobytes()
    assert first in whole
    path.write_bytes(whole.replace(first, bytes(len(first))))  # the checksum of its content is wrong now
    assert facts("inspect", path)["parameters"] == 130
    assert "do not match their checksum" in call("diff", path, path, code=3)


class Hostile:
    def __reduce__(self):
        return os.system, ("echo hacked",)


def test_a_file_with_code_in_it_is_named_and_not_run(files):
    torch.save({"state_dict": {}, "x": Hostile()}, files / "evil.ckpt")
    for words in (("inspect",), ("diff", files / "bare.pt"), ("plan", "--set", "width=9")):
        printed = call(words[0], *words[1:], files / "evil.ckpt", code=3)
        assert "would need code to load (posix.system)" in " ".join(printed.split())


GROWTHS = [
    ("bare.pt", "large.pt", MODEL),
    ("nested.pt", "large.pt", MODEL),
    ("weights.safetensors", "large.safetensors", MODEL),
    ("bare.pt", "large.safetensors", MODEL),
    ("two.pt", "large.pt", (*MODEL, "--key", "ema")),
    ("dcp", "large.pt", MODEL),
]


@pytest.mark.parametrize(("name", "out", "words"), GROWTHS)
@pytest.mark.parametrize("changes", [("width=12",), ("width=12", "depth=3")])
def test_weights_grow_into_a_file_of_the_kind_that_its_name_says(files, small, name, out, words, changes):
    settings = [word for change in changes for word in ("--set", change)]
    assert "function-preserving" in call("convert", files / name, files / out, *words, *settings)
    content = load_file(files / out) if out.endswith("safetensors") else torch.load(files / out, weights_only=True)
    if name == "nested.pt":
        assert content.keys() == {"model", "epoch"}  # moments of the small one are left out, and that is said
        content = content["model"]["weights"]
    elif name == "dcp":
        content = content["state_dict"]
    elif "--key" in words:
        content = content["ema"]
    large = Net(12, 3 if len(changes) > 1 else 1)
    large.load_state_dict(content)
    x = torch.randn(7, 4)
    torch.testing.assert_close(large(x), small(x), rtol=1e-5, atol=1e-6)  # float32: sums of 12 terms
    assert "same function" in " ".join(call("verify", files / name, files / out, *words, *settings).split())
    with torch.no_grad():
        large.head.bias += 1e-3
    save_file(large.state_dict(), files / "off.safetensors")
    key = ("--key", "ema") if "--key" in words else ()
    assert facts("verify", files / name, files / "off.safetensors", *words, *settings, *key, code=1)["same"] is False


def test_what_is_left_out_is_said(files):
    printed = call("convert", files / "nested.pt", files / "large.pt", *MODEL, "--set", "width=12")
    assert "Left out, as it belongs to the old weights: adam" in " ".join(printed.split())


def test_a_lightning_checkpoint_grows_with_its_moments_and_is_resumed(files):
    words = (*LIT, "--set", "hidden_dims=[12]")
    assert facts("plan", files / "run.ckpt", *words)["refused"] == []
    call("convert", files / "run.ckpt", files / "large.ckpt", *words, "--optimizer", "transfer")
    small = Stack.load_from_checkpoint(files / "run.ckpt", weights_only=True)
    large = Stack.load_from_checkpoint(files / "large.ckpt", weights_only=True)
    assert list(large.hparams["hidden_dims"]) == [12]
    x = torch.randn(7, 4)
    torch.testing.assert_close(large(x), small(x), rtol=1e-5, atol=1e-6)
    moments = torch.load(files / "large.ckpt", weights_only=True)["optimizer_states"][0]["state"]
    assert moments[0]["exp_avg"].shape[0] == 12
    assert facts("verify", files / "run.ckpt", files / "large.ckpt", *LIT)["same"]
    call("convert", files / "run.ckpt", files / "weights_only.safetensors", *words)
    assert load_file(files / "weights_only.safetensors").keys() == large.state_dict().keys()


def test_a_folder_of_hugging_face_needs_no_class(files):
    words = ("--set", "n_embd=32", "--set", "n_head=4")
    assert facts("plan", files / "gpt2", *words)["refused"] == []
    call("convert", files / "gpt2", files / "wide", *words)
    assert transformers.GPT2LMHeadModel.from_pretrained(files / "wide").config.n_embd == 32
    assert facts("verify", files / "gpt2", files / "wide")["same"]
    difference = facts("diff", files / "gpt2", files / "wide", code=1)
    assert difference["hyperparameters"]["n_embd"] == [16, 32]
    assert "transformer.wte.weight" in difference["shapes"]


def test_diff_tells_values_shapes_and_settings(files, small):
    assert facts("diff", files / "bare.pt", files / "weights.safetensors")["same"]
    with torch.no_grad():
        small.head.bias[0] += 0.5
        small.into.bias[1] = float("nan")
    other = small.state_dict()
    del other["head.weight"]
    torch.save(other, files / "other.pt")
    found = facts("diff", files / "bare.pt", files / "other.pt", code=1)
    assert found["values"] == {"into.bias": float("inf"), "head.bias": pytest.approx(0.5)}
    assert found["shapes"] == {"head.weight": ["2x8", "-"]}
    assert found["equal"] == 3
    torch.save({name: item.double() for name, item in small.state_dict().items()}, files / "double.pt")
    assert len(facts("diff", files / "other.pt", files / "double.pt", code=1)["shapes"]) == 6  # another type
    assert facts("diff", files / "other.pt", files / "other.pt")["same"]  # NaN in both


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        (("inspect", "gone.ckpt"), 3, "Checkpoint file not found"),
        (("inspect", "."), 3, "neither a config.json"),
        (("inspect", "two.pt"), 3, "it is not clear which weights of two.pt are meant .*'model', 'ema'"),
        (("inspect", "two.pt", "--key", "emma"), 3, "no weights under 'emma'"),
        (("plan", "bare.pt", "--set", "width=12"), 2, "Expected --model module:Class"),
        (("plan", "bare.pt", "--set", "width=12", "--model", "no_such:Net"), 2, "cannot be imported"),
        (("plan", "bare.pt", "--set", "width", *MODEL), 2, "Expected name=value"),
        (("plan", "bare.pt", "--set", "wdth=12", *MODEL), 2, "no argument 'wdth'. It takes: width, depth"),
        (("plan", "bare.pt", "--set", "width=12", *MODEL[:2]), 1, "cannot be built with no arguments.*--was"),
        (("plan", "bare.pt", "--set", "width=12", *MODEL[:4]), 1, "no example inputs"),
        (
            ("plan", "bare.pt", "--set", "width=12", *MODEL, "--was", "width=9"),
            3,
            "are not those of .*:Net with width=9",
        ),
        (("plan", "bare.pt", "--set", "width=4", *MODEL), 1, "source has 8"),
        (("convert", "bare.pt", "nested.pt", "--set", "width=12", *MODEL), 3, "is there already"),
        (("convert", "bare.pt", "x.pt", "--set", "width=12", *MODEL, "--optimizer", "transfer"), 2, "weights alone"),
        (("convert", "bare.pt", "x.pt", "--set", "width=12", *MODEL, "--optimizer", "move"), 2, "is not one of"),
        (("convert", "bare.pt", "x.pt", "--set", "width=4", *MODEL), 1, "source has 8"),
        (("convert", "bare.pt", "x.pt", "--set", "width=12", *MODEL, "--strategy", "grow"), 2, "'grow'"),
        (("diff", "bare.pt", "broken.safetensors"), 3, "no safetensors file"),
    ],
)
def test_what_cannot_be_done_is_one_message_and_an_exit_code(files, monkeypatch, words, code, message):
    monkeypatch.chdir(files)
    Path("broken.safetensors").write_bytes(b"no such thing")
    before = {path: path.stat().st_mtime_ns for path in files.iterdir()}
    printed = " ".join(call(*words, code=code).split())
    assert "Traceback" not in printed
    assert re.search(message, printed), printed
    assert {path: path.stat().st_mtime_ns for path in files.iterdir()} == before


def test_as_a_program(files):
    program = [sys.executable, "-m", "lightning_grow.app.checkpoint_cli"]

    def run(*words):
        return subprocess.run([*program, *map(str, words)], capture_output=True, text=True, check=False)

    assert run("--version").stdout.startswith("lightning-grow ")
    done = run("diff", files / "bare.pt", files / "nested.pt", "--json")
    assert (done.returncode, json.loads(done.stdout)["same"]) == (0, True)
