"""What every test shares."""

import hashlib
import os
from pathlib import Path

import lightning as L
import pytest
import torch
from hypothesis import settings
from lightning.pytorch.loops.fit_loop import _FitLoop as FitLoop
from stacks import equal

from lightning_grow import GrowError

# Small networks: one thread is as fast, does not fight xdist's workers, and sums in one order.
torch.set_num_threads(1)

# The first example of a test pays for torch's lazy imports, so a deadline would be about the machine.
settings.register_profile("repeatable", deadline=None, derandomize="CI" in os.environ)
settings.load_profile("repeatable")

CALLS = {"load_checkpoint", "load_optimizer_state_dict", "on_load_checkpoint"}


def see(module, ckpt_path):
    """What a refusal must leave alone."""
    file = Path(str(ckpt_path)) if isinstance(ckpt_path, (str, Path)) else None
    tensors = {} if module is None else {**dict(module.named_parameters()), **dict(module.named_buffers())}
    return {
        "tensors": {name: item.detach().clone() for name, item in tensors.items()},
        "trained": {name: item.requires_grad for name, item in tensors.items()},
        "training": module is not None and [part.training for part in module.modules()],
        "file": hashlib.sha256(file.read_bytes()).hexdigest() if file is not None and file.is_file() else None,
    }


@pytest.fixture(autouse=True)
def nothing_changes_in_a_refusal(monkeypatch):
    """Whatever refusal a test provokes before the first step: module and file stay the same."""
    running = []

    def watch(name):
        own = getattr(L.Trainer, name)

        def call(self, model=None, *arguments, ckpt_path=None, **options):
            running.clear()
            before = see(model, ckpt_path)
            try:
                return own(self, model, *arguments, ckpt_path=ckpt_path, **options)
            except GrowError:
                after = see(model, ckpt_path)
                assert after["file"] == before["file"]
                assert not CALLS & {*vars(self.strategy), *vars(model)}
                if not running:
                    assert equal(after, before)
                raise

        monkeypatch.setattr(L.Trainer, name, call)

    def run(self):
        running.append(self)
        return own_run(self)

    own_run = FitLoop.run
    monkeypatch.setattr(FitLoop, "run", run)
    for name in ("fit", "validate", "test", "predict"):
        watch(name)
