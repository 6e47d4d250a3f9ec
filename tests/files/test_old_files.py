"""Files of the first version (commit e3cd11f) resume as that version resumed them, and grow.

`old/*.ckpt` were written at step 16 of 24, `old/*.weights.pt` are the weights that it had after the other 8.
"""

from pathlib import Path

import lightning as L
import pytest
import torch
from stacks import AtStart, GrowableStack, Stack, fit, outputs, weights

from lightning_grow import ArchTransfer, GrowthSchedule

pytestmark = pytest.mark.filterwarnings("ignore:The loaded checkpoint was produced with Lightning")  # by a later one

OLD = Path(__file__).parent / "old"
ASYMMETRIC = {"optimizer": "asymmetric", "num_warmup_steps": 20}


def schedule(*more):
    stages = [{"hidden_dims": [12]}, *({"hidden_dims": [width]} for width, _ in more)]
    return GrowthSchedule(stages=stages, at=[10, *(step for _, step in more)], **ASYMMETRIC)


# the module of the run, and its callback: a plain run, in the middle of a warm-up, in the middle of a stage
CASES = {
    "plain": (lambda: GrowableStack(schedule="cosine"), ArchTransfer),
    "warming": (lambda: GrowableStack([12]), lambda: ArchTransfer(**ASYMMETRIC)),
    "stage": (Stack, schedule),
}


@pytest.mark.parametrize("name", CASES)
def test_an_old_file_resumes_as_it_did(tmp_path, name):
    module, callback = (make() for make in CASES[name])
    L.seed_everything(1, verbose=False)
    fit(module, tmp_path, callback, ckpt_path=OLD / f"{name}.ckpt", max_epochs=3)
    expected = torch.load(OLD / f"{name}.weights.pt", weights_only=True)
    # float32: 8 steps of sums of at most 12 terms, whose order may be another one on another machine
    torch.testing.assert_close(weights(module), expected, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("name", CASES)
def test_an_old_file_grows(tmp_path, name):
    file = torch.load(OLD / f"{name}.ckpt", weights_only=True)
    old = (GrowableStack if name == "plain" else Stack)([8] if name == "plain" else [12])
    old.load_state_dict(file["state_dict"])
    at_start = AtStart()
    callback = schedule((20, 30)) if name == "stage" else ArchTransfer(**ASYMMETRIC)
    grown = Stack() if name == "stage" else GrowableStack([20], schedule="cosine" if name == "plain" else None)
    fit(grown, tmp_path, callback, at_start, ckpt_path=OLD / f"{name}.ckpt", max_epochs=5)
    torch.testing.assert_close(at_start.outputs, outputs(old), rtol=1e-5, atol=1e-6)  # float32: rounding of its sums
    assert at_start.step == 16
    assert grown.net[0].weight.shape == (20, 4)
