import os
import pickle
import platform
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from lightning_grow.errors import CheckpointError
from lightning_grow.files.checkpoint import check_finite, read_checkpoint, read_file
from lightning_grow.files.writing import is_same_file, write_checkpoint

CHECKPOINT = {"state_dict": {"weight": torch.arange(40.0), "bias": torch.ones(3)}, "epoch": 2}


class Hostile:
    """Runs a command when it is unpickled."""

    def __init__(self, command):
        self.command = command

    def __reduce__(self):
        return os.system, (self.command,)


@pytest.fixture
def good(tmp_path):
    path = tmp_path / "good.ckpt"
    torch.save(CHECKPOINT, path)
    return path


def cut(path, fraction):
    whole = path.read_bytes()
    path.write_bytes(whole[: int(len(whole) * fraction)])


FAULTS = {
    "missing": (lambda path: path.unlink(), "file not found"),
    "folder": (lambda path: (path.unlink(), path.mkdir()), "convert_checkpoint"),
    "empty": (lambda path: path.write_bytes(b""), "is empty"),
    "a tenth": (lambda path: cut(path, 0.1), "cut short"),
    "half": (lambda path: cut(path, 0.5), "cut short"),
    "all but the end": (lambda path: cut(path, 0.99), "cut short"),
    "text": (lambda path: path.write_text("learning_rate: 0.1\n" * 9), "not a checkpoint that torch can read"),
    "zeros": (lambda path: path.write_bytes(bytes(5000)), "not a checkpoint that torch can read"),
    "a tensor": (lambda path: torch.save(torch.ones(3), path), "expected a dict with a 'state_dict', found a Tensor"),
    "other dict": (lambda path: torch.save({"model": {}}, path), r"found a dict with the keys \['model'\]"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_every_fault_of_a_file_is_named_with_its_path(good, fault):
    spoil, words = FAULTS[fault]
    spoil(good)
    with pytest.raises(CheckpointError, match=words) as caught:
        read_checkpoint(good)
    assert str(good) in str(caught.value)


def test_a_file_of_the_web_that_cannot_be_fetched_is_named():
    with pytest.raises(CheckpointError, match=r"^http://127\.0\.0\.1:9/a\.ckpt cannot be fetched .* Download the file"):
        read_checkpoint("http://127.0.0.1:9/a.ckpt")


def test_an_address_that_nothing_here_can_open_is_named():
    with pytest.raises(CheckpointError, match=r"nowhere://a\.ckpt: no way to open this address"):
        read_checkpoint("nowhere://a.ckpt")


def test_a_whole_file_reads_back(good):
    checkpoint = read_checkpoint(good)
    assert checkpoint["epoch"] == 2
    assert torch.equal(checkpoint["state_dict"]["weight"], torch.arange(40.0))


def test_no_flipped_byte_changes_a_weight_unseen(good):
    whole = good.read_bytes()
    caught = 0
    for position in range(0, len(whole), 3):
        good.write_bytes(whole[:position] + bytes([whole[position] ^ 0x20]) + whole[position + 1 :])
        try:
            state = read_checkpoint(good)["state_dict"]
        except CheckpointError:
            caught += 1
        else:  # padding and dates: nothing that is read
            assert all(torch.equal(state[name], tensor) for name, tensor in CHECKPOINT["state_dict"].items())
    assert caught > len(whole) / 3 / 2


def save_zip(content, path):
    torch.save(content, path)


def save_legacy(content, path):
    torch.save(content, path, _use_new_zipfile_serialization=False)


def save_raw(content, path):
    path.write_bytes(pickle.dumps(content, protocol=2))


@pytest.mark.parametrize("save", [save_zip, save_legacy, save_raw])
@pytest.mark.parametrize("forced", [False, True])
def test_a_hostile_file_runs_nothing(tmp_path, monkeypatch, save, forced):
    if forced:  # the variable turns torch's own default off
        monkeypatch.setenv("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", "1")
    path, proof = tmp_path / "evil.ckpt", tmp_path / "ran"
    save({"state_dict": {}, "hyper_parameters": Hostile(f"touch {proof}")}, path)
    with pytest.raises(CheckpointError, match="code to load"):
        read_checkpoint(path)
    assert not proof.exists()


def test_what_a_file_would_import_is_named(tmp_path):
    torch.save({"state_dict": {}, "hyper_parameters": Hostile("true")}, tmp_path / "evil.ckpt")
    with pytest.raises(CheckpointError, match=rf"{os.system.__module__}\.system"):
        read_checkpoint(tmp_path / "evil.ckpt")


def test_ones_own_file_opens_with_weights_only_false(tmp_path):
    torch.save({"state_dict": {}, "hyper_parameters": {"folder": Path("data")}}, tmp_path / "own.ckpt")
    with pytest.raises(CheckpointError, match=r"pathlib\.PosixPath"):
        read_checkpoint(tmp_path / "own.ckpt")
    assert read_checkpoint(tmp_path / "own.ckpt", weights_only=False)["hyper_parameters"] == {"folder": Path("data")}


def test_any_file_of_plain_torch_can_be_read(tmp_path):
    torch.save({"actor": {"0.weight": torch.ones(2)}}, tmp_path / "best_model.pt")
    assert torch.equal(read_file(tmp_path / "best_model.pt")["actor"]["0.weight"], torch.ones(2))


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_lost_weights_are_named(value):
    state = {"good": torch.ones(2), "lost": torch.tensor([1.0, value])}
    with pytest.raises(CheckpointError, match=r"run\.ckpt: NaN or infinite weights in lost\."):
        check_finite(state, state, "run.ckpt")
    check_finite(state, ["good", "absent"])  # a buffer that is not asked about may hold infinities


def test_a_writer_that_fails_leaves_the_old_file_and_nothing_else(good):
    before = good.read_bytes()
    with pytest.raises((TypeError, AttributeError, pickle.PicklingError)):
        write_checkpoint({"state_dict": {}, "callback": lambda: None}, good)
    assert good.read_bytes() == before
    assert list(good.parent.iterdir()) == [good]


WRITER_WITHOUT_ROOM = """
import resource, sys, torch
from lightning_grow.errors import CheckpointError
from lightning_grow.files.writing import write_checkpoint
resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, 50_000))
try:
    write_checkpoint({"state_dict": {"weight": torch.zeros(100_000)}}, sys.argv[1])
except CheckpointError as error:
    print(error, end="")
"""


def test_a_full_disk_is_a_clean_error_and_the_old_file_stays(good):
    before = good.read_bytes()
    command = [sys.executable, "-c", WRITER_WITHOUT_ROOM, str(good)]
    said = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    assert said == (
        f"{good} cannot be written ([Errno 27] File too large); what was there is as it was. "
        "Make room, or write to another place."
    )
    assert good.read_bytes() == before
    assert list(good.parent.iterdir()) == [good]


def test_what_cannot_be_written_is_refused_by_its_path(good, tmp_path):
    (tmp_path / "folder").mkdir()
    for path in (tmp_path / "folder", good / "below.ckpt", "nowhere://a.ckpt"):
        with pytest.raises(CheckpointError, match=rf"^{re.escape(str(path))} cannot be written \("):
            write_checkpoint(CHECKPOINT, path)
    assert [*(tmp_path / "folder").iterdir()] == []


@pytest.mark.parametrize("address", ["file://{folder}/a/b.ckpt", "memory://{folder}/b.ckpt", "{folder}/b.ckpt"])
def test_a_file_is_written_to_any_address_and_read_from_it(tmp_path, address):
    address = address.format(folder=tmp_path)
    write_checkpoint(CHECKPOINT, address)
    assert read_checkpoint(address)["epoch"] == 2
    assert [path.name for path in tmp_path.rglob("*.tmp")] == []


def test_one_file_is_known_by_all_its_names(good):
    link = good.with_name("link.ckpt")
    link.symlink_to(good)
    assert all(is_same_file(good, name) for name in (str(good), f"file://{good}", link))
    assert not is_same_file(good, good.with_name("other.ckpt"))
    assert not is_same_file(good, f"memory://{good}")


KILLED_WRITER = """
import os, signal, sys, torch
from lightning_grow.files.writing import write_checkpoint
class Killer:
    def __reduce__(self):
        os.kill(os.getpid(), signal.SIGKILL)
write_checkpoint({"state_dict": {"weight": torch.zeros(100_000)}, "killer": Killer()}, sys.argv[1])
"""


def test_a_killed_writer_leaves_the_old_file_whole(good):
    died = subprocess.run([sys.executable, "-c", KILLED_WRITER, str(good)], check=False)
    assert died.returncode == -signal.SIGKILL
    assert torch.equal(read_checkpoint(good)["state_dict"]["weight"], torch.arange(40.0))


def test_who_reads_the_old_file_while_it_is_replaced_reads_it_whole(good):
    whole = good.read_bytes()
    with good.open("rb", buffering=0) as reader:
        start = reader.read(10)
        write_checkpoint({"state_dict": {}}, good)
        assert start + reader.read() == whole


def test_a_written_file_has_the_mode_of_any_other(tmp_path):
    write_checkpoint(CHECKPOINT, tmp_path / "new" / "a.ckpt")
    (tmp_path / "plain").touch()
    assert (tmp_path / "new" / "a.ckpt").stat().st_mode == (tmp_path / "plain").stat().st_mode
    assert read_checkpoint(tmp_path / "new" / "a.ckpt")["epoch"] == 2


def test_what_a_dead_writer_left_is_removed_and_nothing_else(good):
    done = subprocess.Popen([sys.executable, "-c", ""])
    done.wait()
    here = platform.node()
    stale = good.with_name(f".{good.name}.{here}.{done.pid}.tmp")
    others = [
        good.with_name(f".{good.name}.{here}.{os.getppid()}.tmp"),  # someone is writing it now
        good.with_name(f".{good.name}.elsewhere.{done.pid}.tmp"),  # another machine's, on a shared disk
        good.with_name(f".other.ckpt.{here}.{done.pid}.tmp"),
        good.with_name(f".{good.name}.{here}.draft.tmp"),
    ]
    for path in (stale, *others):
        path.write_bytes(b"half")
    write_checkpoint(CHECKPOINT, good)
    assert not stale.exists()
    assert all(path.exists() for path in others)
