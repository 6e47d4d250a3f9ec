"""Copies of the weights that a module's own hook takes out of a checkpoint: it gets them grown."""

import copy

import pytest
import torch
from stacks import Stack, fit, train_small

from lightning_grow import ArchTransfer

INPUT = torch.linspace(-1, 1, 20).reshape(5, 4)


class Averaged(Stack):
    """Keeps an average that is no submodule; subclasses save and load it in ways of their own."""

    def __init__(self, hidden_dims=(8,), state_dim=4):
        super().__init__(hidden_dims, state_dim)
        self.average = [copy.deepcopy(self.net)]

    def on_train_batch_end(self, *rest):
        for old, new in zip(self.average[0].parameters(), self.net.parameters(), strict=True):
            old.data.lerp_(new.data, 0.5)

    def on_save_checkpoint(self, checkpoint):
        checkpoint["ema"] = self.average[0].state_dict()

    def on_load_checkpoint(self, checkpoint):
        self.average[0].load_state_dict(checkpoint["ema"])  # fails where it has not grown


class Listed(Averaged):
    """As torch_ema does: a list, taken as it is."""

    def on_save_checkpoint(self, checkpoint):
        checkpoint["ema"] = {"shadow": [item.detach().clone() for item in self.average[0].parameters()]}

    def on_load_checkpoint(self, checkpoint):
        for mine, saved in zip(self.average[0].parameters(), checkpoint["ema"]["shadow"], strict=True):
            mine.data = saved.clone()


class Popped(Listed):
    """Takes it out of the checkpoint, whose names it mends as well."""

    def on_save_checkpoint(self, checkpoint):
        super().on_save_checkpoint(checkpoint)
        checkpoint["state_dict"] = {f"old.{name}": item for name, item in checkpoint["state_dict"].items()}

    def on_load_checkpoint(self, checkpoint):
        checkpoint["state_dict"] = {name.removeprefix("old."): v for name, v in checkpoint["state_dict"].items()}
        super().on_load_checkpoint(checkpoint)
        del checkpoint["ema"]


CASES = [(Averaged, (12,)), (Averaged, (8, 8)), (Listed, (12,)), (Listed, (8, 8)), (Popped, (12,))]


@pytest.mark.parametrize(("cls", "hidden_dims"), CASES)
def test_the_hook_gets_the_average_grown(tmp_path, cls, hidden_dims):
    small, path = train_small(tmp_path, cls, ArchTransfer())
    expected, live = small.average[0](INPUT).detach(), small(INPUT).detach()
    big, found = cls(hidden_dims), {}

    class Look(ArchTransfer):
        def on_train_start(self, trainer, pl_module):
            found["average"], found["live"] = pl_module.average[0](INPUT).detach(), pl_module(INPUT).detach()

    fit(big, tmp_path, Look(), ckpt_path=path, max_epochs=3)
    torch.testing.assert_close(found["average"], expected)
    torch.testing.assert_close(found["live"], live)
    assert [p.shape for p in big.average[0].parameters()] == [p.shape for p in big.net.parameters()]


class Failing(Averaged):
    def on_load_checkpoint(self, checkpoint):
        raise LookupError("the hook's own error")


@pytest.mark.parametrize("hidden_dims", [(8,), (12,)])
def test_an_error_of_the_hook_is_its_own(tmp_path, hidden_dims):
    _, path = train_small(tmp_path, Failing, ArchTransfer())
    with pytest.raises(LookupError, match="the hook's own error"):
        fit(Failing(hidden_dims), tmp_path, ArchTransfer(), ckpt_path=path, max_epochs=3)
