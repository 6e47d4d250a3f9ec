"""Moments that a growth cannot take along are named, wherever it happens; what is not there is not gone on with."""

import re

import pytest
import torch
from stacks import Stack, fit, train_small

from lightning_grow import ArchTransfer, CheckpointError, RefusedGrowth, convert_checkpoint
from lightning_grow.training_state.moments import _fill_second_moment


def edited(path, change):
    checkpoint = torch.load(path, weights_only=True)
    change(checkpoint["optimizer_states"][0]["state"])
    torch.save(checkpoint, path)
    return path


# parameter 2 of the optimizer is net.2.weight
FAULTS = {
    "NaN": (lambda state: state[2]["exp_avg"].fill_(torch.nan), "its state 'exp_avg' holds NaN or infinity"),
    "infinite": (lambda state: state[2]["exp_avg_sq"][0].fill_(torch.inf), "its state 'exp_avg_sq' holds NaN"),
    "missing": (lambda state: state.pop(2), "the checkpoint's optimizer has no state of it"),
    "another shape": (
        lambda state: state[2].update(exp_avg=torch.zeros(3, 3)),
        r"its state 'exp_avg' has the shape \(3, 3\), the parameter \(2, 8\)",
    ),
}


@pytest.mark.parametrize("optimizer", ["transfer", "asymmetric"])
@pytest.mark.parametrize(("change", "said"), FAULTS.values(), ids=FAULTS)
def test_moments_that_are_left_behind_are_named_in_the_log(tmp_path, caplog, change, said, optimizer):
    path = edited(train_small(tmp_path, Stack, ArchTransfer())[1], change)
    with caplog.at_level("INFO"):
        trainer = fit(Stack([16]), tmp_path, ArchTransfer(optimizer=optimizer), ckpt_path=path, max_epochs=3)
    (line,) = [item.getMessage() for item in caplog.records if item.getMessage().startswith("Optimizer: ")]
    assert "moments of 3 parameters moved" in line
    assert re.search(f"net.2.weight: {said}", line)
    state = trainer.optimizers[0].state_dict()["state"]
    assert all(torch.isfinite(value).all() for item in state.values() for value in item.values())


@pytest.mark.parametrize(("change", "said"), FAULTS.values(), ids=FAULTS)
def test_a_conversion_names_them_in_its_report(tmp_path, change, said):
    path = edited(train_small(tmp_path, Stack, ArchTransfer())[1], change)
    report = convert_checkpoint(path, Stack([16]), tmp_path / "large.ckpt", optimizer="transfer")
    assert any(re.search(f"Moments that start fresh: net.2.weight: {said}", note) for note in report.notes)


def test_a_frozen_parameter_has_no_state_to_miss(tmp_path, caplog):
    class Frozen(Stack):
        def configure_optimizers(self):
            self.net[2].weight.requires_grad_(False)
            return super().configure_optimizers()

    _, path = train_small(tmp_path, Frozen)
    with caplog.at_level("INFO"):
        fit(Frozen([16]), tmp_path, ArchTransfer(optimizer="transfer"), ckpt_path=path, max_epochs=3)
    assert "Fresh although" not in caplog.text


CHOICES = [{"optimizer": "transfer"}, {"optimizer": "asymmetric"}, {"scheduler": "keep"}]


@pytest.mark.parametrize("options", CHOICES, ids=str)
def test_weights_alone_have_nothing_to_go_on_with(tmp_path, options):
    small, path = train_small(tmp_path)
    fit(small, tmp_path, max_epochs=2).save_checkpoint(path, weights_only=True)
    big = Stack([16])
    before = {name: item.clone() for name, item in big.state_dict().items()}
    with pytest.raises(RefusedGrowth, match=r"weights alone .*optimizer='reset', scheduler='reset'"):
        fit(big, tmp_path, ArchTransfer(**options), ckpt_path=path, max_epochs=3)
    assert all(torch.equal(before[name], item) for name, item in big.state_dict().items())
    if options.get("optimizer") == "transfer":
        with pytest.raises(RefusedGrowth, match="weights alone"):
            convert_checkpoint(path, Stack([16]), tmp_path / "large.ckpt", **options)
        assert not (tmp_path / "large.ckpt").exists()
    advised = ArchTransfer(optimizer="reset", scheduler="reset")
    assert fit(Stack([16]), tmp_path, advised, ckpt_path=path, max_epochs=3).global_step == 24


@pytest.mark.parametrize("error", [CheckpointError, FileNotFoundError])
def test_a_missing_file_is_both_errors(tmp_path, error):
    with pytest.raises(error, match="Checkpoint file not found"):
        fit(Stack(), tmp_path, ArchTransfer(), ckpt_path=tmp_path / "none.ckpt")
    with pytest.raises(error, match="Checkpoint file not found"):
        convert_checkpoint(tmp_path / "none.ckpt", Stack([16]), tmp_path / "large.ckpt")


def test_squares_of_complex_parameters_are_filled_as_real_ones():
    moment = torch.tensor([[1.0, 2, 0], [5, 6, 0], [0, 0, 0]])
    known = torch.tensor([True, True, False]), torch.tensor([True, True, False])
    filled = _fill_second_moment(moment.clone(), known)
    assert torch.equal(_fill_second_moment(moment + 0j, known), filled + 0j)
    assert filled.tolist() == [[1, 2, 1.5], [5, 6, 5.5], [3, 4, 3.5]]  # of rows, of columns, of all
