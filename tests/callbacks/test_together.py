"""Two processes of which one fails: both raise the same error, neither waits, neither dies of a closed connection."""

import re
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
from stacks import train_small

RUN = """
    import os
    import sys
    from datetime import timedelta

    import lightning as L
    import torch
    from lightning.pytorch.strategies import DDPStrategy
    from stacks import Stack, batches

    from lightning_grow import ArchTransfer

    folder, case, start = sys.argv[1:]


    class Failing(Stack):
        def on_load_checkpoint(self, checkpoint):
            raise LookupError("the hook's own error")


    class Rank(L.Callback):
        def on_exception(self, trainer, pl_module, error):
            line = f"rank {trainer.global_rank}: {type(error).__name__}: {error}"
            print(line.replace(chr(10), " ") + chr(10), end="", flush=True)


    class Late(L.Callback):
        def setup(self, trainer, pl_module, stage):
            if trainer.global_rank == 1:
                spoil(pl_module)


    def spoil(module):
        if case == "refused":
            module.net[0] = torch.nn.Linear(4, 4)
            module.net[2] = torch.nn.Linear(4, 2)
        elif case == "hook":
            module.__class__ = Failing


    if __name__ == "__main__":
        torch.set_num_threads(1)
        strategy = DDPStrategy(process_group_backend="gloo", timeout=timedelta(seconds=60), start_method=start)
        trainer = L.Trainer(
            accelerator="cpu", devices=2, strategy=strategy, max_epochs=3, default_root_dir=folder, logger=False,
            enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False,
            callbacks=[Rank(), Late(), ArchTransfer(optimizer="transfer")],
        )
        path = f"{folder}/small.ckpt"
        if start == "popen" and os.environ.get("LOCAL_RANK") == "1":
            path = {"missing": f"{folder}/none.ckpt", "damaged": f"{folder}/bad.ckpt"}.get(case, path)
        trainer.fit(Stack([16]), batches(), ckpt_path=path)
"""

CASES = {
    "missing": "MissingCheckpoint: Checkpoint file not found: .*none.ckpt",
    "damaged": "CheckpointError: .*bad.ckpt is cut short",
    "refused": "RefusedGrowth: ",
    "hook": "(GrowError: LookupError|LookupError): the hook's own error",
}


STARTS = [*((case, "popen") for case in CASES), ("refused", "spawn")]


@pytest.mark.parametrize(("case", "start"), STARTS)
def test_what_fails_in_one_process_fails_in_both(tmp_path, case, start):
    _, path = train_small(tmp_path)
    (tmp_path / "bad.ckpt").write_bytes(path.read_bytes()[:5000])
    script = tmp_path / "run.py"
    script.write_text(textwrap.dedent(RUN))
    import_path = ":".join(filter(None, [str(Path(__file__).parents[1]), *sys.path]))
    done = subprocess.run(
        [sys.executable, "-W", "ignore", str(script), str(tmp_path), case, start],
        env={"PYTHONPATH": import_path, "PATH": "/usr/bin:/bin"},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode
    assert "closed by peer" not in done.stderr
    if start == "spawn":  # the parent ends the others when one has failed: not all of them come to speak
        assert re.search(CASES[case], done.stderr)
        return
    lines = {line for line in done.stdout.splitlines() if line.startswith("rank ")}
    assert {line[:7] for line in lines} == {"rank 0:", "rank 1:"}, done.stderr[-2000:]
    assert all(re.search(CASES[case], line) for line in lines), lines
