"""A checkpoint's module, built again in the float type that the target has."""

import pytest
import torch
from stacks import Stack, fit, outputs

from lightning_grow import ArchTransfer, convert_checkpoint


@pytest.mark.parametrize("optimizer", ["reset", "transfer"])
@pytest.mark.parametrize("precision", ["64-true", "bf16-true"])
def test_a_file_of_another_float_type_grows(tmp_path, precision, optimizer):
    small = Stack()
    fit(small, tmp_path, precision=precision, max_epochs=1).save_checkpoint(tmp_path / "small.ckpt")
    large = Stack(hidden_dims=[12])
    transfer = ArchTransfer(optimizer=optimizer)
    fit(large, tmp_path, transfer, ckpt_path=tmp_path / "small.ckpt", precision=precision, max_epochs=2)
    assert large.dtype == small.dtype
    report = convert_checkpoint(tmp_path / "small.ckpt", Stack(hidden_dims=[12]), tmp_path / "large.ckpt")
    assert report.function_preserving
    large.load_state_dict(torch.load(tmp_path / "large.ckpt")["state_dict"])
    # rounded to bfloat16 again, the check having run in float32; float32 keeps 1e-7 of 64 bits
    tolerance = 1e-6 if precision == "64-true" else 0.02
    torch.testing.assert_close(outputs(large.float()), outputs(small.float()), rtol=0, atol=tolerance)
