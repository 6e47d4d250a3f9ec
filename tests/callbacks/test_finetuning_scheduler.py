"""FinetuningScheduler regroups the optimizers, and loads files in the middle of a run: both work, in any order."""

import warnings

import pytest
import torch
from stacks import equal, outputs
from test_beside_others import Backboned, Seen, run

from lightning_grow import ArchTransfer

with warnings.catch_warnings():
    warnings.simplefilter("ignore", DeprecationWarning)  # torch's own, of what it imports
    import finetuning_scheduler as theirs


class Scheduled(Backboned):
    def configure_optimizers(self):
        (optimizer,), _ = super().configure_optimizers()
        return [optimizer], [torch.optim.lr_scheduler.LambdaLR(optimizer, lambda epoch: 0.9**epoch)]


def in_phases(folder):
    """The head alone for two epochs, then more of the backbone every two; the best of a phase begins the next."""
    scheduled = [["head.*"], ["backbone.2.*"], ["backbone.0.*"]]
    schedule = {
        at: {"params": params, "max_transition_epoch": 2 * at + 2 if at < 2 else 7}
        for at, params in enumerate(scheduled)
    }
    saver = theirs.FTSCheckpoint(folder, filename="{epoch}", monitor="val_loss", save_top_k=-1)
    return [theirs.FinetuningScheduler(schedule, epoch_transitions_only=True), saver]


@pytest.mark.filterwarnings("ignore::UserWarning", "ignore::FutureWarning")  # of FinetuningScheduler, at every phase
@pytest.mark.parametrize("optimizer", ["reset", "transfer", "asymmetric"])
@pytest.mark.parametrize(("epochs", "groups"), [(1, 1), (2, 1), (3, 2), (4, 2), (5, 3)])
def test_a_finetuning_schedule_grows_in_every_phase_wherever_it_stands(tmp_path, optimizer, epochs, groups):
    run(8, tmp_path, *in_phases(tmp_path / "small"), ArchTransfer(), epochs=7, module_class=Scheduled)
    path = tmp_path / "small" / f"epoch={epochs - 1}.ckpt"
    small = Scheduled.load_from_checkpoint(path)
    results = []
    for ours_first in (True, False):
        seen, ours = Seen(), ArchTransfer(optimizer=optimizer, num_warmup_steps=4)
        phases = in_phases(tmp_path / f"{ours_first}")
        callbacks = [ours, *phases, seen] if ours_first else [*phases, ours, seen]
        trainer = run(12, tmp_path, *callbacks, epochs=7, ckpt_path=path, module_class=Scheduled)
        torch.testing.assert_close(seen.outputs, outputs(small), rtol=1e-5, atol=1e-6)  # float32: sums of 12 terms
        assert (seen.step, seen.groups) == (4 * epochs, groups)
        assert seen.moments == (0 if optimizer == "reset" else 2 * groups)
        share = 0.9 ** (0 if optimizer == "reset" else epochs)
        assert seen.rates == pytest.approx([share * rate for rate in (1e-2, 1e-5, 1e-5)[:groups]])
        (group, *_) = trainer.optimizers[0].param_groups
        assert group["lr"] == pytest.approx(1e-2 * 0.9 ** (7 - epochs if optimizer == "reset" else 7))
        assert (trainer.global_step, len(trainer.optimizers[0].param_groups)) == (28, 3)
        results.append((trainer.lightning_module.state_dict(), trainer.optimizers[0].state_dict()))
    assert equal(*results)
