import pytest
import torch
from stacks import AtStart, GrowableStack, Stack, equal, fit, outputs, train_small, weights

from lightning_grow.callbacks import ArchTransfer
from lightning_grow.convert import convert_checkpoint
from lightning_grow.errors import CheckpointError, RefusedGrowth

CLOSE = {"rtol": 0, "atol": 1e-6}  # float32 outputs of about 1


@pytest.mark.parametrize("cls", [Stack, GrowableStack])
@pytest.mark.parametrize("callbacks", [[], [ArchTransfer]], ids=["plain", "with the callback"])
@pytest.mark.parametrize("optimizer", ["reset", "transfer"])
def test_a_converted_file_resumes_in_any_trainer(tmp_path, cls, callbacks, optimizer):
    small, path = train_small(tmp_path, cls)
    target = cls([16])
    before = weights(target)
    report = convert_checkpoint(path, target, tmp_path / "large.ckpt", optimizer=optimizer)
    assert report.max_output_error < 1e-6
    assert equal(weights(target), before)
    at_start = AtStart()
    made = [callback() for callback in callbacks]
    trainer = fit(cls([16]), tmp_path, *made, at_start, ckpt_path=tmp_path / "large.ckpt", max_epochs=4)
    torch.testing.assert_close(at_start.outputs, outputs(small), **CLOSE)
    assert (at_start.step, at_start.epoch, trainer.global_step) == (16, 2, 32)
    assert len(at_start.state) == (4 if optimizer == "transfer" else 0)


def test_a_converted_schedule_goes_on(tmp_path):
    _, path = train_small(tmp_path, schedule="cosine")
    convert_checkpoint(path, Stack([16], schedule="cosine"), tmp_path / "large.ckpt", optimizer="transfer")
    at_start = AtStart()
    fit(Stack([16], schedule="cosine"), tmp_path, at_start, ckpt_path=tmp_path / "large.ckpt", max_epochs=3)
    assert at_start.rates == pytest.approx([0.006545], abs=1e-6)  # step 16 of cosine over 40 from 0.01


def test_a_converted_file_loads_without_arguments(tmp_path):
    small, path = train_small(tmp_path)
    convert_checkpoint(path, Stack([16]), tmp_path / "large.ckpt")
    big = Stack.load_from_checkpoint(tmp_path / "large.ckpt")
    assert big.hparams.hidden_dims == [16]
    torch.testing.assert_close(outputs(big), outputs(small), **CLOSE)


def test_it_equals_growing_on_resume(tmp_path):
    _, path = train_small(tmp_path)

    def resume(ckpt_path, *callbacks):
        big = Stack([16])
        big.load_state_dict(fresh)
        at_start = AtStart()
        fit(big, tmp_path, *callbacks, at_start, ckpt_path=ckpt_path, max_epochs=3)
        return at_start.outputs, weights(big)

    target = Stack([16])
    fresh = weights(target)
    convert_checkpoint(path, target, tmp_path / "large.ckpt")
    assert equal(resume(tmp_path / "large.ckpt"), resume(path, ArchTransfer(num_warmup_steps=0)))


def test_the_source_is_never_overwritten(tmp_path):
    _, path = train_small(tmp_path)
    before = path.read_bytes()
    (tmp_path / "link.ckpt").symlink_to(path)
    for out in (path, tmp_path / "link.ckpt"):
        with pytest.raises(RefusedGrowth, match="never overwritten"):
            convert_checkpoint(path, Stack([16]), out)
    assert path.read_bytes() == before


def test_a_refusal_writes_nothing(tmp_path):
    _, path = train_small(tmp_path)
    with pytest.raises(RefusedGrowth):
        convert_checkpoint(path, Stack([4]), tmp_path / "out" / "large.ckpt")
    with pytest.raises(CheckpointError):
        convert_checkpoint(tmp_path / "none.ckpt", Stack([16]), tmp_path / "out" / "large.ckpt")
    assert not (tmp_path / "out").exists()


def test_a_source_callable_builds_what_hyperparameters_cannot(tmp_path):
    small, path = train_small(tmp_path)
    checkpoint = torch.load(path)
    del checkpoint["hyper_parameters"]
    torch.save(checkpoint, path)
    with pytest.raises(RefusedGrowth, match="no hyperparameters"):
        convert_checkpoint(path, Stack([16]), tmp_path / "large.ckpt")
    convert_checkpoint(path, Stack([16]), tmp_path / "large.ckpt", source=lambda hparams: Stack([8]))
    big = Stack.load_from_checkpoint(tmp_path / "large.ckpt")
    torch.testing.assert_close(outputs(big), outputs(small), **CLOSE)


def test_moments_need_optimizers_that_build_without_a_trainer(tmp_path):
    class Needy(Stack):
        def configure_optimizers(self):
            return torch.optim.SGD(self.parameters(), lr=1 / self.trainer.max_epochs)

    _, path = train_small(tmp_path, Needy)
    with pytest.raises(RefusedGrowth, match=r"does not run without a Trainer.*Use ArchTransfer"):
        convert_checkpoint(path, Needy([16]), tmp_path / "large.ckpt", optimizer="transfer")


def test_new_moments_are_gathered_in_a_run_only(tmp_path):
    _, path = train_small(tmp_path)
    with pytest.raises(ValueError, match=r"got 'asymmetric'.*use ArchTransfer"):
        convert_checkpoint(path, Stack([16]), tmp_path / "large.ckpt", optimizer="asymmetric")
    assert not (tmp_path / "large.ckpt").exists()
