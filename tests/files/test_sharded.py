import dataclasses
import os
import pickle
import subprocess
import sys
import textwrap
import warnings
from pathlib import Path

import pytest
import torch
import torch.distributed.checkpoint as dcp
from torch import nn
from torch.distributed.checkpoint.metadata import _MEM_FORMAT_ENCODING, Metadata

from lightning_grow import CheckpointError, RefusedGrowth
from lightning_grow.files.checkpoint import REST, read_checkpoint
from lightning_grow.files.metadata import read_metadata
from lightning_grow.files.sharded import check_sharded, find_differing_shapes

SHARDED = """
    import subprocess, sys
    import lightning as L
    import torch
    from lightning.pytorch.strategies import ModelParallelStrategy
    from torch import nn
    from torch.distributed.fsdp import fully_shard
    from torch.utils._pytree import tree_leaves
    from lightning_grow.callbacks import ArchTransfer
    from lightning_grow.convert import convert_checkpoint
    from stacks import Stack, batches

    torch.set_num_threads(1)
    folder = sys.argv[1]

    class Sharded(Stack):
        def configure_model(self):
            if self.device_mesh is None:
                return
            mesh = self.device_mesh["data_parallel"]
            for layer in self.net:
                if isinstance(layer, nn.Linear):
                    fully_shard(layer, mesh=mesh)
            fully_shard(self, mesh=mesh)

    def fit(hidden_dims, max_epochs, ckpt_path=None):
        strategy = ModelParallelStrategy(1, 1, process_group_backend="gloo")
        trainer = L.Trainer(
            accelerator="cpu", devices=1, strategy=strategy, max_epochs=max_epochs, default_root_dir=folder,
            logger=False, enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False,
            callbacks=[ArchTransfer()],
        )
        trainer.fit(Sharded(hidden_dims), batches(), ckpt_path=ckpt_path)
        return trainer

    fit([8], 1).save_checkpoint(f"{folder}/small.ckpt")
    print("same size:", fit([8], 2, f"{folder}/small.ckpt").global_step)
    print("grown:", fit([16], 2, f"{folder}/small.ckpt").global_step)
    tool = "lightning.fabric.utilities.consolidate_checkpoint"
    subprocess.run([sys.executable, "-m", tool, f"{folder}/small.ckpt"], check=True)
    grown = []
    for path in (f"{folder}/small.ckpt.consolidated", f"{folder}/small.ckpt"):
        torch.manual_seed(0)
        convert_checkpoint(path, Stack([16]), f"{path}.large", optimizer="transfer")
        grown.append(torch.load(f"{path}.large", weights_only=True))
        print("converted:", fit([16], 2, f"{path}.large").global_step)
    leaves = [tree_leaves([item["state_dict"], item["optimizer_states"]]) for item in grown]
    same = [torch.equal(a, b) if torch.is_tensor(a) else a == b for a, b in zip(*leaves, strict=True)]
    print("same:", all(same), len(same))
"""


def test_the_folder_of_a_sharded_run_grows_as_one_file_of_it_does(tmp_path):
    script = tmp_path / "run.py"
    script.write_text(textwrap.dedent(SHARDED))
    import_path = ":".join(filter(None, [str(Path(__file__).parents[1]), *sys.path]))
    done = subprocess.run(
        [sys.executable, "-W", "ignore", str(script), str(tmp_path)],
        env={"PYTHONPATH": import_path, "PATH": "/usr/bin:/bin"},
        capture_output=True,
        text=True,
        timeout=200,
        check=False,
    )
    assert "same size: 16" in done.stdout, done.stderr[-2000:]
    assert "grown: 16" in done.stdout, done.stderr[-2000:]
    assert done.stdout.count("converted: 16") == 2, done.stderr[-2000:]
    assert "same: True" in done.stdout


class Call:
    """A pickle that calls a function when it is read."""

    def __init__(self, function, *given):
        self.function, self.given = function, given

    def __reduce__(self):
        return self.function, self.given


@pytest.fixture
def folder(tmp_path):
    module = nn.Linear(2, 3)
    optimizer = torch.optim.Adam(module.parameters())
    module(torch.ones(1, 2)).sum().backward()
    optimizer.step()
    state = {"state_dict": module.state_dict(), "optimizer": optimizer.state_dict(), "epoch": 3, "h": {"a": [1]}}
    dcp.save(state, checkpoint_id=tmp_path, no_dist=True)
    return tmp_path


@pytest.mark.filterwarnings("ignore")
def test_the_metadata_of_torchs_writer_is_read(folder):
    expected = dcp.FileSystemReader(folder).read_metadata()
    assert read_metadata(folder).state_dict_metadata == expected.state_dict_metadata
    check_sharded(folder, nn.Linear(2, 3))
    with pytest.raises(
        RefusedGrowth, match=r"'bias' is \(3,\) in the checkpoint and \(4,\) in the module.*convert_checkpoint"
    ):
        check_sharded(folder, nn.Linear(2, 4))
    with pytest.raises(RefusedGrowth, match=r"1 tensors differ, e.g. 'bias' is \(3,\) in the checkpoint and absent"):
        check_sharded(folder, nn.Linear(2, 3, bias=False))


def test_an_enum_that_python_3_11_0_to_3_11_3_pickled_by_name_is_read(tmp_path):
    written = Metadata({}, planner_data=Call(getattr, _MEM_FORMAT_ENCODING, "TORCH_CONTIGUOUS_FORMAT"))
    (tmp_path / ".metadata").write_bytes(pickle.dumps(written))
    assert read_metadata(tmp_path).planner_data is _MEM_FORMAT_ENCODING.TORCH_CONTIGUOUS_FORMAT


def test_hostile_metadata_runs_no_code(tmp_path):
    canary = tmp_path / "canary"
    for call in (
        Call(os.system, f"touch {canary}"),
        Call(eval, f"open({str(canary)!r}, 'w')"),
        Call(getattr(torch.serialization, "load"), str(canary)),  # noqa: B009 - a name, for the pickle
        Call(torch.hub.load, str(canary), "m"),
    ):
        (tmp_path / ".metadata").write_bytes(pickle.dumps(call))
        with pytest.raises(CheckpointError, match="would need code to load"):
            check_sharded(tmp_path, nn.Linear(2, 2))
    assert not canary.exists()


FAULTS = {
    "missing": (None, r"without a \.metadata file"),
    "empty": (b"", "is damaged"),
    "cut short": (pickle.dumps([1, 2, 3])[:-3], "is damaged"),
    "text": (b"hello", "is damaged"),
    "more than a member by name": (pickle.dumps(Call(getattr, Metadata, "__init__")), r"builtins\.getattr"),
    "another object": (pickle.dumps({"a": 1}), "holds a dict"),
}


@pytest.mark.parametrize(("content", "said"), FAULTS.values(), ids=FAULTS)
def test_a_damaged_folder_is_said(tmp_path, content, said):
    if content is not None:
        (tmp_path / ".metadata").write_bytes(content)
    with pytest.raises(CheckpointError, match=said):
        check_sharded(tmp_path, nn.Linear(2, 2))


@pytest.fixture(params=["state_dict"])
def saved(tmp_path, request):
    """A folder of two state dicts, as Lightning saves them."""
    content = {
        request.param: {"weight": torch.arange(600.0).view(20, 30), "count": torch.tensor(3)},
        "optimizer_0": {"state": {"weight": {"exp_avg": torch.ones(20, 30), "step": torch.tensor(2.0)}}, "groups": [1]},
        "pair": [torch.zeros(2), {"second": torch.ones(2)}],
    }
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that one process saves
        dcp.save(content, storage_writer=dcp.FileSystemWriter(tmp_path / "folder"), no_dist=True)
    torch.save({"global_step": 4, "pytorch-lightning_version": "2.6.6"}, tmp_path / "folder" / REST)
    return tmp_path / "folder"


@pytest.mark.parametrize("saved", ["state_dict", "model"], indirect=True)
def test_a_folder_is_read_as_one_file(saved):
    found = read_checkpoint(saved)
    module = nn.Module()
    module.register_buffer("weight", torch.zeros(20, 31))
    assert find_differing_shapes(saved, module) == {"weight": ((20, 30), (20, 31)), "count": ((), None)}
    assert torch.equal(found["state_dict"]["weight"], torch.arange(600.0).view(20, 30))
    assert found["state_dict"]["count"] == 3
    assert torch.equal(found["optimizer_states"][0]["state"]["weight"]["exp_avg"], torch.ones(20, 30))
    assert found["optimizer_states"][0]["groups"] == [1]
    assert torch.equal(found["pair"][1]["second"], torch.ones(2))
    assert found["global_step"] == 4
    assert sorted(item.name for item in saved.iterdir()) == [".metadata", "__0_0.distcp", REST]


def flip(saved):
    part = saved / "__0_0.distcp"
    content = bytearray(part.read_bytes())
    at = content.index(torch.arange(600.0).numpy().tobytes()[:64])
    content[at + 9] ^= 1
    part.write_bytes(content)


def cut(saved):
    part = saved / "__0_0.distcp"
    part.write_bytes(part.read_bytes()[:-700])


def lose(saved):
    (saved / "__0_0.distcp").unlink()


def change(saved, **changes):
    """Say something else of where the weight lies."""
    metadata = read_metadata(saved)
    index = next(item for item in metadata.storage_data if item.fqn == "state_dict.weight")
    metadata.storage_data[index] = dataclasses.replace(metadata.storage_data[index], **changes)
    (saved / ".metadata").write_bytes(pickle.dumps(metadata))


def point_outside(saved):
    (saved.parent / "other").write_bytes((saved / "__0_0.distcp").read_bytes())
    change(saved, relative_path="../other")


def compress(saved):
    change(saved, transform_descriptors=["zstd"])


def leave_out(saved):
    metadata = read_metadata(saved)
    entry = metadata.state_dict_metadata["state_dict.weight"]
    entry.size = torch.Size([40, 30])
    (saved / ".metadata").write_bytes(pickle.dumps(metadata))


def swap(saved):
    metadata = read_metadata(saved)
    places = metadata.storage_data
    names = ("state_dict.weight", "optimizer_0.state.weight.step")
    weight, step = (next(item for item in places if item.fqn == name) for name in names)
    places[weight] = places[step]
    (saved / ".metadata").write_bytes(pickle.dumps(metadata))


class Runs:
    def __reduce__(self):
        return os.system, ("echo hacked > hacked",)


def hold_code(saved):
    part = saved / "__0_0.distcp"
    torch.save(Runs(), evil := saved / "evil")
    start = part.stat().st_size
    part.write_bytes(part.read_bytes() + evil.read_bytes())
    change(saved, offset=start, length=evil.stat().st_size)


def say_nonsense(saved):
    metadata = read_metadata(saved)
    metadata.storage_data = dict.fromkeys(metadata.storage_data, "weight")
    (saved / ".metadata").write_bytes(pickle.dumps(metadata))


FAULTS_OF_PARTS = {
    say_nonsense: "metadata is damaged",
    flip: "do not match their checksum",
    cut: "cut short or damaged",
    lose: "cannot be read",
    point_outside: "in a way that torch never writes",
    compress: "in a way that torch never writes",
    leave_out: "have 600 entries of 1,200",
    swap: "not what .metadata says",
    hold_code: "would need code to load",
}


@pytest.mark.parametrize("fault", FAULTS_OF_PARTS, ids=lambda fault: fault.__name__)
def test_a_folder_with_a_fault_is_named_and_runs_nothing(saved, fault, monkeypatch):
    monkeypatch.chdir(saved.parent)
    fault(saved)
    with pytest.raises(CheckpointError, match=FAULTS_OF_PARTS[fault]) as caught:
        read_checkpoint(saved)
    assert "weight" in str(caught.value) or fault in (cut, say_nonsense)
    assert not (saved.parent / "hacked").exists()
    assert not list(saved.parent.glob(".growing*"))
