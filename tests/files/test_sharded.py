import os
import pickle
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
import torch
import torch.distributed.checkpoint as dcp
from torch import nn
from torch.distributed.checkpoint.metadata import _MEM_FORMAT_ENCODING, Metadata

from lightning_grow import CheckpointError
from lightning_grow.files.sharded import check_sharded, read_metadata

SHARDED = """
    import subprocess, sys
    import lightning as L
    import torch
    from lightning.pytorch.strategies import ModelParallelStrategy
    from torch import nn
    from torch.distributed.fsdp import fully_shard
    from lightning_grow.callbacks import ArchTransfer
    from lightning_grow.convert import convert_checkpoint
    from lightning_grow.errors import RefusedGrowth
    from stacks import Stack, batches

    torch.set_num_threads(1)
    folder = sys.argv[1]

    class Sharded(Stack):
        def configure_model(self):
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
    try:
        fit([16], 2, f"{folder}/small.ckpt")
    except RefusedGrowth as error:
        print(error)
    tool = "lightning.fabric.utilities.consolidate_checkpoint"
    subprocess.run([sys.executable, "-m", tool, f"{folder}/small.ckpt"], check=True)
    convert_checkpoint(f"{folder}/small.ckpt.consolidated", Stack([16]), f"{folder}/large.ckpt", optimizer="transfer")
    print("converted:", fit([16], 2, f"{folder}/large.ckpt").global_step)
"""


def test_a_sharded_run_is_told_how_to_grow_and_that_way_works(tmp_path):
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
    assert "'net.0.bias' is (8,) in the checkpoint and (16,) in the module" in done.stdout
    assert "convert_checkpoint" in done.stdout
    assert "converted: 16" in done.stdout, done.stderr[-2000:]


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
