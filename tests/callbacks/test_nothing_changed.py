"""After a refusal, however late it comes, module and file are as they were, and so are their methods."""

import pytest
import torch
from stacks import Stack, batches, make_trainer, train_small

from lightning_grow import ArchTransfer, GrowError


class Scheduled(Stack):
    """Its cosine's length is a setting."""

    def __init__(self, hidden_dims=(8,), state_dim=4, length=40):
        super().__init__(hidden_dims, state_dim, schedule="cosine")

    def configure_optimizers(self):
        optimizer = torch.optim.AdamW(self.parameters(), lr=1e-2)
        return [optimizer], [torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, self.hparams.length)]


def as_it_is(content):
    pass


def without(*keys):
    return lambda content: [content.pop(key) for key in keys]


def lose(content):
    content["state_dict"]["net.0.weight"][0, 0] = float("nan")


def in_part(content):
    weights = dict(content["state_dict"])
    content["ema"] = {"other.0.weight": weights.pop("net.0.weight"), **weights}


# (settings of the target, options of the callback, what happened to the file, what is said)
REFUSALS = {
    "narrower": ({"hidden_dims": (4,)}, {}, as_it_is, "Growth only widens"),
    "more outputs of inputs": ({"state_dim": 6}, {}, as_it_is, "input"),
    "no progress": ({}, {}, lambda content: content["loops"].pop("fit_loop"), r"\['fit_loop'\] is missing"),
    "lost weights": ({}, {}, lose, "NaN or infinite weights in net.0.weight"),
    "a copy in part": ({}, {}, in_part, "in part"),
    "weights alone": ({}, {"optimizer": "transfer"}, without("optimizer_states", "lr_schedulers"), "weights alone"),
    "no optimizer states": (
        {},
        {"optimizer": "transfer"},
        lambda c: c.update(optimizer_states=[]),
        "holds no optimizer",
    ),
    "another length": ({"length": 50}, {"optimizer": "transfer"}, as_it_is, "T_max=40 in the checkpoint, 50"),
    "no version": ({}, {}, without("pytorch-lightning_version"), "which version of Lightning"),
    "a section": ({}, {}, lambda content: content.update(callbacks=3), r"\['callbacks'\] is int"),
}


@pytest.mark.parametrize(("settings", "options", "change", "said"), REFUSALS.values(), ids=REFUSALS)
def test_a_refusal_leaves_everything_as_it_was(tmp_path, settings, options, change, said):
    _, path = train_small(tmp_path, Scheduled, ArchTransfer())
    content = torch.load(path, weights_only=True)
    change(content)
    torch.save(content, path)
    torch.manual_seed(5)
    module = Scheduled(**{"hidden_dims": (12,), **settings})
    before = {name: item.clone() for name, item in module.state_dict().items()}
    whole, attributes = path.read_bytes(), {name: list(vars(part)) for name, part in module.named_modules()}
    trainer = make_trainer(tmp_path, ArchTransfer(**options), max_epochs=3)
    with pytest.raises(GrowError, match=said):
        trainer.fit(module, *[batches(module.hparams.state_dim)] * 2, ckpt_path=path)
    assert all(torch.equal(item, before[name]) for name, item in module.state_dict().items())
    assert path.read_bytes() == whole
    assert {name: [key for key in vars(part) if key != "_trainer"] for name, part in module.named_modules()} == {
        name: [key for key in keys if key != "_trainer"] for name, keys in attributes.items()
    }
    assert not {"load_checkpoint", "load_optimizer_state_dict"} & vars(trainer.strategy).keys()


def test_after_a_refusal_the_same_module_can_be_resumed(tmp_path):
    _, path = train_small(tmp_path, Scheduled, ArchTransfer())
    module = Scheduled((12,), length=50)
    callback = ArchTransfer(optimizer="transfer")
    with pytest.raises(GrowError, match="scheduler='reset'"):
        make_trainer(tmp_path, callback, max_epochs=3).fit(module, batches(), batches(), ckpt_path=path)
    trainer = make_trainer(tmp_path, ArchTransfer(optimizer="transfer", scheduler="reset"), max_epochs=3)
    trainer.fit(module, batches(), batches(), ckpt_path=path)
    assert trainer.global_step == 24


def test_an_error_in_the_middle_of_training_takes_nothing_back(tmp_path):
    class Failing(Stack):
        def training_step(self, batch, batch_idx):
            if batch_idx == 2:
                raise LookupError("the user's own")
            return super().training_step(batch, batch_idx)

    _, path = train_small(tmp_path, Stack, ArchTransfer())
    module = Failing((12,))
    fresh = module.net[0].weight.clone()
    with pytest.raises(LookupError):
        make_trainer(tmp_path, ArchTransfer(), max_epochs=3).fit(module, batches(), batches(), ckpt_path=path)
    grown = torch.load(path, weights_only=True)["state_dict"]["net.0.weight"]
    assert not torch.equal(module.net[0].weight, fresh)
    torch.testing.assert_close(module.net[0].weight[:8], grown, rtol=0, atol=0.03)  # two steps of at most 0.01 away


def test_a_fit_of_no_batches_leaves_nothing_to_take_back(tmp_path):
    _, path = train_small(tmp_path, Stack, ArchTransfer())
    module, callback = Stack((12,)), ArchTransfer()
    trainer = make_trainer(tmp_path, callback, max_epochs=3, limit_train_batches=0)
    trainer.fit(module, batches(), batches(), ckpt_path=path)
    grown = module.net[0].weight.clone()
    callback.on_exception(trainer, module, LookupError("of a later fit"))
    assert torch.equal(module.net[0].weight, grown)
