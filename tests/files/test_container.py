"""An archive around tensors that lie in its file already holds what torch.save would have written."""

import os
import subprocess
import sys
import zipfile
from collections import OrderedDict
from pathlib import Path

import pytest
import torch
from torch import nn

from lightning_grow import CheckpointError
from lightning_grow.files import spool as spool_file
from lightning_grow.files.archive import check_file
from lightning_grow.files.checkpoint import load_mapped
from lightning_grow.files.spool import spooling

TYPES = [torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.int64, torch.uint8, torch.bool]
TYPES += [torch.complex64, torch.float8_e4m3fn]


@pytest.fixture(params=[1, 2**18, 2**40], ids=["all lie there", "the big ones do", "none does"])
def least(request, monkeypatch):
    monkeypatch.setattr(spool_file, "LEAST", request.param)


def written(path, make):
    """A checkpoint of tensors of a spool, as a file; and the same one in memory."""
    with spooling(path) as spool:
        content = make(spool.keep)
        spool.finish(content)
    return make(lambda tensor: tensor)


def everything(keep):
    """What a checkpoint may hold: all types, views, ties, nothing, and no tensors at all."""
    generator = torch.Generator().manual_seed(0)
    draw = lambda *shape: torch.rand(shape, generator=generator)  # noqa: E731
    whole, other = keep(draw(600, 500)), keep(draw(700, 600))
    state = OrderedDict(weight=whole, tied=whole, part=whole[3:5, ::2], turned=whole.T, other=other)
    state |= {str(dtype): keep((10 * draw(3, 5)).to(dtype)) for dtype in TYPES}
    more = {"none": keep(draw(0, 4)), "scalar": keep(draw()), "own": draw(2**18), "parameter": nn.Parameter(whole)}
    plain = {"epoch": 3, "text": "a\nb", "list": [1, (2.5, None)], 7: True}
    return {"state_dict": state, "more": more, "sparse": draw(4, 4).to_sparse(), **plain}


def test_it_holds_what_torch_would_have_saved(tmp_path, least):
    wanted = written(tmp_path / "a.ckpt", everything)
    torch.save(wanted, tmp_path / "b.ckpt")
    expected = torch.load(tmp_path / "b.ckpt", weights_only=True)
    for found in (
        torch.load(tmp_path / "a.ckpt", weights_only=True),
        torch.load(tmp_path / "a.ckpt", weights_only=True, mmap=True),
        load_mapped(str(tmp_path / "a.ckpt"), weights_only=True),
    ):
        assert repr(found) == repr(expected)
        assert list(found) == list(expected)
        for key, tensor in expected["state_dict"].items():
            one, other = (item.contiguous().flatten().view(torch.uint8) for item in (found["state_dict"][key], tensor))
            assert one.equal(other)
            assert found["state_dict"][key].stride() == tensor.stride()
        state = found["state_dict"]
        assert state["weight"].data_ptr() == state["tied"].data_ptr() == state["turned"].data_ptr()
        assert state["part"].untyped_storage().data_ptr() == state["weight"].data_ptr()


def test_every_checksum_is_right_and_every_record_aligned(tmp_path, least):
    written(tmp_path / "a.ckpt", everything)
    check_file(tmp_path / "a.ckpt")
    with zipfile.ZipFile(tmp_path / "a.ckpt") as archive:
        assert archive.testzip() is None
        records = {item.filename: item for item in archive.infolist()}
    torch.save({}, tmp_path / "b.ckpt")
    with zipfile.ZipFile(tmp_path / "b.ckpt") as archive:
        theirs = {name.partition("/")[2] for name in archive.namelist()}
    left_out = {".format_version", ".storage_alignment"}  # with which a reader may work out where records are
    assert {name.removeprefix("archive/") for name in records if "/data/" not in name} == theirs - left_out
    mapped = torch.load(tmp_path / "a.ckpt", weights_only=True, mmap=True)["state_dict"]
    assert {tensor.untyped_storage().data_ptr() % 64 for tensor in mapped.values()} == {
        mapped["weight"].data_ptr() % 64
    }


def test_a_flipped_bit_is_noticed(tmp_path):
    written(tmp_path / "a.ckpt", everything)
    content = bytearray((tmp_path / "a.ckpt").read_bytes())
    content[5000] ^= 1  # in the first tensor
    (tmp_path / "a.ckpt").write_bytes(content)
    with pytest.raises(CheckpointError, match=r"'archive/data/0' do not match their checksum"):
        check_file(tmp_path / "a.ckpt")


def test_records_of_more_than_four_gigabytes_have_longer_headers(tmp_path, monkeypatch):
    monkeypatch.setattr(zipfile, "ZIP64_LIMIT", 1000)  # a tensor of that size would take minutes
    wanted = written(tmp_path / "a.ckpt", everything)
    with zipfile.ZipFile(tmp_path / "a.ckpt") as archive:
        assert archive.testzip() is None
    found = torch.load(tmp_path / "a.ckpt", weights_only=True)["state_dict"]
    assert found["other"].equal(wanted["state_dict"]["other"])


def test_what_the_checkpoint_does_not_hold_is_not_in_the_file(tmp_path):
    with spooling(tmp_path / "a.ckpt") as spool:
        spool.keep(torch.ones(1000, 1000))
        spool.finish({"kept": spool.keep(torch.ones(500, 500))})
    assert os.path.getsize(tmp_path / "a.ckpt") < 1.1e6
    assert torch.load(tmp_path / "a.ckpt", weights_only=True)["kept"].equal(torch.ones(500, 500))
    assert [item.name for item in tmp_path.iterdir()] == ["a.ckpt"]


@pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="asks for maps as Linux does")
def test_a_tensor_that_is_gone_leaves_its_address_to_no_other(tmp_path):
    with spooling(tmp_path / "a.ckpt") as spool:
        for number in range(1, 7):
            spool.keep(torch.zeros(number, 2**22))  # nobody keeps it
        maps = [line.split() for line in Path("/proc/self/maps").read_text().splitlines() if "/.a.ckpt." in line]
        mapped = sum(int(end, 16) - int(start, 16) for start, end in (line[0].split("-") for line in maps))
        assert mapped >= spool.end - 2**16


def test_memory_of_two_types_is_refused_as_torch_refuses_it(tmp_path):
    item = torch.ones(4)
    content = {"one": item, "other": item.view(torch.int32)}
    with pytest.raises(RuntimeError) as torchs:
        torch.save(content, tmp_path / "b.ckpt")
    with spooling(tmp_path / "a.ckpt") as spool, pytest.raises(RuntimeError) as ours:
        spool.finish(content)
    assert str(ours.value) == str(torchs.value)
    assert not (tmp_path / "a.ckpt").exists()


@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="counts descriptors as Linux does")
def test_many_tensors_keep_few_descriptors_open(tmp_path):
    before = len(os.listdir("/proc/self/fd"))
    with spooling(tmp_path / "a.ckpt") as spool:
        kept = {str(number): spool.keep(torch.full((2**18,), float(number))) for number in range(300)}
        assert len(os.listdir("/proc/self/fd")) - before < 8
        spool.finish(kept)
    found = torch.load(tmp_path / "a.ckpt", weights_only=True)
    assert all(tensor.eq(float(name)).all() for name, tensor in found.items())
    assert os.path.getsize(tmp_path / "a.ckpt") < 300 * 2**20 + 200_000


KILLED = """
import os, signal, sys, torch
from lightning_grow.files.spool import spooling
with spooling(sys.argv[1]) as spool:
    spool.keep(torch.ones(1000, 1000))
    os.kill(os.getpid(), signal.SIGKILL)
"""


def test_what_a_killed_writer_left_is_gone_with_the_next_one(tmp_path):
    path = tmp_path / "a.ckpt"
    subprocess.run([sys.executable, "-c", KILLED, str(path)], check=False)
    assert len(list(tmp_path.iterdir())) == 1
    assert not path.exists()
    written(path, everything)
    assert [item.name for item in tmp_path.iterdir()] == ["a.ckpt"]
    (tmp_path / "plain").touch()
    assert path.stat().st_mode == (tmp_path / "plain").stat().st_mode
