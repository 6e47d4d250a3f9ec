"""A big checkpoint grows in the memory of one tensor, and a full disk is an error, not a crash."""

import errno
import json
import os
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
import torch
from stacks import Stack, train_small

from lightning_grow import CheckpointError, convert_checkpoint
from lightning_grow.files import spool as spool_file
from lightning_grow.files.checkpoint import is_finite
from lightning_grow.files.spool import LEAST, spooling


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.int64, torch.bool, torch.complex64])
def test_a_tensor_in_a_file_is_like_any_other(tmp_path, dtype):
    wanted = torch.randn(700, 600).to(dtype)
    with spooling(tmp_path / "out.ckpt") as spool:
        kept = spool.keep(wanted)
        assert torch.equal(kept, wanted)
        assert (kept.dtype, kept.stride()) == (dtype, wanted.stride())
        assert spool.keep(wanted.T).stride() == wanted.T.stride()
        sparse = wanted[:, ::2]
        assert torch.equal(spool.keep(sparse), sparse)
    assert torch.equal(kept, wanted)  # for as long as the tensor is there
    assert list(tmp_path.iterdir()) == []


def test_a_full_disk_is_named_and_leaves_nothing(tmp_path, monkeypatch):
    def full(handle, start, size):
        raise OSError(errno.ENOSPC, "No space left on device")

    _, path = train_small(tmp_path)
    monkeypatch.setattr(spool_file, "LEAST", 1)
    monkeypatch.setattr(spool_file, "_reserve", full)
    with pytest.raises(CheckpointError, match=r"has no room for .* more bytes .*No space left"):
        convert_checkpoint(path, Stack([16]), tmp_path / "out" / "large.ckpt")
    assert [item.name for item in tmp_path.iterdir()] == [path.name]


def test_what_is_written_from_files_is_what_memory_would_give(tmp_path, monkeypatch):
    _, path = train_small(tmp_path)
    target = Stack([16])
    found = []
    for least in (LEAST, 1):
        monkeypatch.setattr(spool_file, "LEAST", least)
        convert_checkpoint(path, target, tmp_path / f"{least}.ckpt", optimizer="transfer")
        found.append(torch.load(tmp_path / f"{least}.ckpt", weights_only=True))
    torch.testing.assert_close(found[0]["state_dict"], found[1]["state_dict"], rtol=0, atol=0)
    states = [item["optimizer_states"][0]["state"] for item in found]
    torch.testing.assert_close(*states, rtol=0, atol=0)


@pytest.mark.parametrize(
    ("entries", "finite"),
    [([1.0, 2.0], True), ([3e38, 3e38], True), ([1.0, float("nan")], False), ([float("inf"), -float("inf")], False)],
)
def test_large_numbers_are_no_infinities(entries, finite):
    assert is_finite(torch.tensor(entries)) is finite


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="counts memory as Linux does")
def test_anonymous_memory_is_that_of_a_tensor_or_two(tmp_path):
    benchmark = Path(__file__).parents[2] / "benchmarks" / "streaming.py"
    gigabytes = "0.15"  # 16 weights of 916 x 916, and their moments; grown to 1295 x 1295, 0.3 GB

    def run(what):
        command = [sys.executable, "-W", "ignore", benchmark, "--one", what, tmp_path, "--gigabytes", gigabytes]
        done = subprocess.run(list(map(str, command)), capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout.splitlines()[-1])

    run("make")
    assert run("grow without the check")["mebibytes"] < 150  # what is imported on the way, and one tensor: not 300
    assert os.path.getsize(tmp_path / "large.ckpt") > 0.29 * 2**30


def test_a_tensor_that_is_longer_than_its_record_is_refused(tmp_path):
    _, path = train_small(tmp_path)
    code = textwrap.dedent(
        """
        import sys, zipfile
        with zipfile.ZipFile(sys.argv[1]) as old, zipfile.ZipFile(sys.argv[2], "w") as new:
            for record in old.infolist():
                content = old.read(record)
                new.writestr(record.filename, content[:-4] if record.filename.endswith("data/0") else content)
        """
    )
    subprocess.run([sys.executable, "-c", code, str(path), str(tmp_path / "short.ckpt")], check=True)
    with pytest.raises(CheckpointError, match="a tensor has not the size of its record"):
        convert_checkpoint(tmp_path / "short.ckpt", Stack([16]), tmp_path / "large.ckpt")
