"""What stands under a key in the wrong form is named with its place, before anything uses it."""

import pytest
import torch
from lightning.pytorch import Callback
from stacks import Stack, batches, fit, make_trainer, train_small

from lightning_grow import ArchTransfer, CheckpointError, RefusedGrowth, convert_checkpoint


def put(*path):
    *owners, key, value = path

    def change(content):
        for owner in owners:
            content = content[owner]
        content[key] = value

    return change


def drop(*path):
    *owners, key = path

    def change(content):
        for owner in owners:
            content = content[owner]
        del content[key]

    return change


OURS = ("lightning_grow", "architecture")
GROUP = ("optimizer_states", 0, "param_groups", 0)
WRONG = {
    "a key that is no name": (put(7, 1), "7 is a key, and should be a name"),
    "epoch": (put("epoch", "two"), r"\['epoch'\] is str 'two', and should be int"),
    "callbacks": (put("callbacks", [1]), r"\['callbacks'\] is list"),
    "optimizers": (put("optimizer_states", {"a": 1}), r"\['optimizer_states'\] is dict"),
    "a group": (put(*GROUP[:-1], 0, 5), r"\['optimizer_states'\]\[0\]\['param_groups'\] is list"),
    "parameters": (put(*GROUP, "params", "all"), r"\['params'\] is str 'all', and should be a list"),
    "a rate": (put(*GROUP, "lr", {}), r"\['param_groups'\]\[0\]\['lr'\] is dict"),
    "no states": (drop("optimizer_states", 0, "state"), r"\['optimizer_states'\]\[0\]\['state'\] is missing"),
    "a sparse weight": (put("state_dict", "net.0.weight", torch.eye(4).to_sparse()), "torch.sparse_coo"),
    "a weight without content": (put("state_dict", "net.0.weight", torch.ones(8, 4, device="meta")), "without content"),
    "version": (put("pytorch-lightning_version", "new"), "'new', and should be a version"),
    "our record": (put("lightning_grow", 1), r"\['lightning_grow'\] is int '1'"),
    "our names": (put(*OURS, "optimizers", [["net.0.weight"]]), r"\['architecture'\]\['optimizers'\] is list"),
    "our shapes": (put(*OURS, "shapes", {"net.0.weight": 8}), r"\['shapes'\] is dict"),
    "a warm-up": (put("lightning_grow", "pending", {"new_entries": 3}), r"\['lightning_grow'\]\['pending'\] is dict"),
}


@pytest.fixture
def small(tmp_path):
    return train_small(tmp_path, Stack, ArchTransfer())[1]


def change_file(path, change):
    content = torch.load(path, weights_only=True)
    change(content)
    torch.save(content, path)


@pytest.mark.parametrize(("change", "said"), WRONG.values(), ids=WRONG)
def test_a_section_of_the_wrong_form_is_named(tmp_path, small, change, said):
    change_file(small, change)
    with pytest.raises(CheckpointError, match=said):
        convert_checkpoint(small, Stack(hidden_dims=(12,)), tmp_path / "big.ckpt", optimizer="transfer")
    with pytest.raises(CheckpointError, match=said):
        fit(Stack(hidden_dims=(12,)), tmp_path, ArchTransfer(), ckpt_path=small, max_epochs=3)
    assert not (tmp_path / "big.ckpt").exists()


LOOP = ("loops", "fit_loop", "epoch_loop.batch_progress")
RESUMED = {
    "no version": (drop("pytorch-lightning_version"), CheckpointError, "does not say which version of Lightning"),
    "no loop": (drop("loops", "fit_loop"), CheckpointError, r"\['loops'\]\['fit_loop'\] is missing"),
    "no progress": (drop(*LOOP, "current"), CheckpointError, r"\['current'\] is missing"),
    "a count that is none": (put(*LOOP, "current", "ready", None), CheckpointError, "is None, and should be a int"),
    "beyond counting": (put(*LOOP, "total", "ready", 10**30), CheckpointError, "should be a int"),
    "progress that is none": (put(*LOOP, "total", 3), CheckpointError, "is 3, and should be a dict"),
    "betas": (
        put(*GROUP, "betas", True),
        CheckpointError,
        r"has betas=True, where the config's AdamW has \(0.9, 0.999",
    ),
    "a rate that is lost": (put(*GROUP, "weight_decay", float("nan")), CheckpointError, "has weight_decay=nan"),
    "no optimizers": (put("optimizer_states", []), RefusedGrowth, "the checkpoint holds no optimizer states"),
}


@pytest.mark.parametrize(("change", "error", "said"), RESUMED.values(), ids=RESUMED)
def test_what_a_trainer_could_not_take_up_is_refused_before_a_step(tmp_path, small, change, error, said):
    change_file(small, change)
    with pytest.raises(error, match=said):
        fit(Stack(hidden_dims=(12,)), tmp_path, ArchTransfer(optimizer="transfer"), ckpt_path=small, max_epochs=3)


LOST = {
    "a list": (put("optimizer_states", 0, "state", 0, "exp_avg", [1.0]), "exp_avg' is of the type list"),
    "sparse": (put("optimizer_states", 0, "state", 0, "exp_avg", torch.eye(8, 4).to_sparse()), "exp_avg' is no dense"),
    "complex": (put("optimizer_states", 0, "state", 0, "exp_avg_sq", torch.ones(8, 4) + 0j), "exp_avg_sq' is complex"),
    "a negative step": (put("optimizer_states", 0, "state", 0, "step", torch.tensor(-3.0)), "'step' is -3"),
    "no step": (drop("optimizer_states", 0, "state", 0, "step"), "AdamW needs the state 'step'"),
    "a step that is none": (put("optimizer_states", 0, "state", 0, "step", "x"), "'step' is of the type str"),
}


@pytest.mark.parametrize(("change", "said"), LOST.values(), ids=LOST)
def test_moments_that_are_none_start_fresh_and_are_named(tmp_path, small, change, said):
    change_file(small, change)
    report = convert_checkpoint(small, Stack(hidden_dims=(12,)), tmp_path / "big.ckpt", optimizer="transfer")
    assert any(said in note for note in report.notes)


def test_how_torch_computes_a_step_is_the_configs_business(tmp_path, small):
    change_file(small, put(*GROUP, "capturable", True))  # as it was saved on a GPU
    trainer = fit(Stack(hidden_dims=(12,)), tmp_path, ArchTransfer(optimizer="transfer"), ckpt_path=small, max_epochs=3)
    assert trainer.optimizers[0].param_groups[0]["capturable"] is False
    assert trainer.global_step == 24


def test_a_converted_file_can_be_resumed_whatever_it_was_made_of(tmp_path, small):
    change_file(small, drop("pytorch-lightning_version"))
    convert_checkpoint(small, Stack(hidden_dims=(12,)), tmp_path / "big.ckpt")
    assert "pytorch-lightning_version" in torch.load(tmp_path / "big.ckpt", weights_only=True)


def test_what_lightning_takes_for_empty_is_empty(tmp_path, small):
    change_file(small, lambda content: content.update(optimizer_states={}, lr_schedulers={}, callbacks={}))
    assert fit(Stack(), tmp_path, ArchTransfer(), ckpt_path=small, max_epochs=3).global_step == 24
    assert fit(Stack([12]), tmp_path, ArchTransfer(), ckpt_path=small, max_epochs=3).global_step == 24


class OfItsClass(Callback):
    """Kept under its class, as before Lightning 1.5."""

    state = None
    state_key = property(lambda self: type(self))

    def state_dict(self):
        return {"count": 3}

    def load_state_dict(self, state_dict):
        self.state = state_dict


def test_callbacks_may_be_kept_under_their_classes(tmp_path):
    _, path = train_small(tmp_path, Stack, OfItsClass())
    trainer = make_trainer(tmp_path, again := OfItsClass(), ArchTransfer(), max_epochs=3)
    trainer.fit(Stack([12]), batches(), batches(), ckpt_path=path, weights_only=False)
    assert again.state == {"count": 3}
