"""Every door that a file comes in by, and every address that it may have, holds it against its checksums."""

import os
import zipfile
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import fsspec
import pytest
import torch
from stacks import GrowableStack, Stack, batches, fit, make_trainer, train_small

from lightning_grow import ArchTransfer, CheckpointError, convert_checkpoint, grow

INPUT = torch.linspace(-1, 1, 20).reshape(5, 4)


def resume(path, folder):
    module = Stack(hidden_dims=(12,), learning_rate=0.0)
    fit(module, folder, ArchTransfer(), ckpt_path=path, max_epochs=3)
    return module


def convert(path, folder):
    convert_checkpoint(path, Stack(hidden_dims=(12,)), folder / "big.ckpt")
    return Stack.load_from_checkpoint(folder / "big.ckpt", weights_only=True)


def load(path, folder):
    return GrowableStack.load_from_checkpoint(path, hidden_dims=(12,))


def check(path, folder):
    module = Stack(hidden_dims=(12,))
    make_trainer(folder, ArchTransfer()).predict(module, batches(), ckpt_path=path)
    return module


DOORS = {"fit": resume, "convert": convert, "load_from_checkpoint": load, "predict": check}
ADDRESSES = ["{path}", "file://{path}", "memory://small.ckpt", "http://{host}/small.ckpt"]


@pytest.fixture
def small(tmp_path):
    module, path = train_small(tmp_path, GrowableStack, ArchTransfer())
    return module.eval(), path


class Quiet(SimpleHTTPRequestHandler):
    def log_message(self, *arguments):
        pass


@pytest.fixture(autouse=True)
def host(tmp_path):
    """Serves the test's folder, whole files only, as a plain web server does."""
    with ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=tmp_path)) as server:
        Thread(target=server.serve_forever, daemon=True).start()
        yield f"127.0.0.1:{server.server_port}"
        server.shutdown()


def put(path, address, host):
    if address.startswith("memory"):
        with fsspec.open(address, "wb") as file:
            file.write(path.read_bytes())
    return address.format(path=path, host=host)


@pytest.mark.parametrize("address", ADDRESSES)
@pytest.mark.parametrize("door", DOORS.values(), ids=DOORS)
def test_a_whole_file_is_grown_wherever_it_is(tmp_path, small, host, door, address):
    module, path = small
    grown = door(put(path, address, host), tmp_path)
    torch.testing.assert_close(grown.eval()(INPUT), module(INPUT))


@pytest.mark.parametrize("address", ADDRESSES)
@pytest.mark.parametrize("door", DOORS.values(), ids=DOORS)
def test_a_flipped_bit_in_a_weight_is_never_loaded(tmp_path, small, host, door, address):
    module, path = small
    content, weight = bytearray(path.read_bytes()), module.net[0].weight.detach().numpy().tobytes()
    content[content.index(weight) + 3] ^= 1
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match="do not match their checksum"):
        door(put(path, address, host), tmp_path)


def retold(path, change):
    """The same records in another archive."""
    with zipfile.ZipFile(path) as archive:
        records = [(record.filename, archive.read(record)) for record in archive.infolist()]
    with zipfile.ZipFile(path, "w", **change(records)) as archive:
        for name, content in records:
            archive.writestr(name, content)


def compress(records):
    return {"compression": zipfile.ZIP_DEFLATED}


def repeat(records):
    records.append(records[-1])
    return {}


def bomb(records):
    records.append(("archive/data/99", bytes(10_000_000)))
    return {"compression": zipfile.ZIP_DEFLATED}


def forbid(path):
    path.chmod(0)
    if os.access(path, os.R_OK):
        pytest.skip("this user may read everything")


def dangle(path):
    path.rename(path.with_suffix(".gone"))
    path.symlink_to("nowhere")


def folder_of(*names):
    def make(path):
        path.unlink()
        path.mkdir()
        for name in names:
            (path / name).touch()

    return make


FAULTS = {
    "compressed": (lambda path: retold(path, compress), "zip archive that torch.save did not write"),
    "a record twice": (lambda path: retold(path, repeat), "twice"),
    "a bomb": (lambda path: retold(path, bomb), "zip archive that torch.save did not write"),
    "forbidden": (forbid, "cannot be opened"),
    "a dangling link": (dangle, "file not found"),
    "DeepSpeed's": (folder_of("latest", "zero_to_fp32.py", "global_step1"), "zero_to_fp32"),
    "Hugging Face's": (folder_of("config.json", "model.safetensors"), r"grow_pretrained\("),
}


@pytest.mark.filterwarnings("ignore:Duplicate name")
@pytest.mark.parametrize("door", DOORS.values(), ids=DOORS)
@pytest.mark.parametrize(("spoil", "said"), FAULTS.values(), ids=FAULTS)
def test_what_is_no_checkpoint_is_named_at_every_door(tmp_path, small, spoil, said, door):
    spoil(small[1])
    with pytest.raises(CheckpointError, match=said):
        door(small[1], tmp_path)


FOREIGN = {
    "model_state_dict": lambda state: {"model_state_dict": state, "epoch": 3},
    "model": lambda state: {"model": state, "model_args": {"width": 8}},
    "bare": lambda state: state,
}


@pytest.mark.parametrize("content", FOREIGN.values(), ids=FOREIGN)
def test_the_way_that_is_told_for_weights_alone_works(tmp_path, small, content):
    torch.save(content(small[0].state_dict()), tmp_path / "other.pt")
    with pytest.raises(CheckpointError) as caught:
        convert_checkpoint(tmp_path / "other.pt", Stack(hidden_dims=(12,)), tmp_path / "big.ckpt")
    way = str(caught.value).split("in memory: ")[1].removesuffix(".")
    names = {"path": tmp_path / "other.pt", "torch": torch, "small": Stack(), "big": Stack(hidden_dims=(12,))}
    for line in way.replace("lightning_grow.grow", "grow").split("; "):
        exec(line, {**names, "grow": grow})
    torch.testing.assert_close(names["big"](INPUT), small[0](INPUT))


def test_code_that_a_file_would_run_is_named_by_load_from_checkpoint(tmp_path, monkeypatch):
    monkeypatch.setenv("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", "1")  # the variable turns torch's own default off
    torch.save({"state_dict": {}, "hyper_parameters": {"function": print}}, tmp_path / "own.ckpt")
    with pytest.raises(CheckpointError, match=r"builtins\.print|__builtin__\.print"):
        GrowableStack.load_from_checkpoint(tmp_path / "own.ckpt")


class Hostile:
    def __reduce__(self):
        return exec, ("raise SystemExit('code of the file ran')",)


@pytest.mark.parametrize("door", DOORS.values(), ids=DOORS)
def test_a_file_of_the_web_runs_nothing_and_is_not_taken_from_an_old_copy(tmp_path, small, host, door):
    _, path = small
    hub = Path(torch.hub.get_dir()) / "checkpoints" / path.name  # where Lightning's own reader would look first
    assert not hub.exists()
    door(f"http://{host}/{path.name}", tmp_path)
    assert not hub.exists()
    content = torch.load(path)
    torch.save({**content, "extra": Hostile()}, path)
    with pytest.raises(CheckpointError, match=rf"^http://{host}/small.ckpt would need code to load"):
        door(f"http://{host}/{path.name}", tmp_path)
    for lost in (f"http://{host}/none.ckpt", "http://127.0.0.1:9/small.ckpt"):
        with pytest.raises(CheckpointError, match=rf"{lost}"):
            door(lost, tmp_path)
