"""What is not public in torch and Lightning stands in one file, and each name of it still means what we take it for."""

import ast
import io
import pickle

import lightning as L
import pytest
import torch
from lightning.pytorch.callbacks import EMAWeightAveraging, StochasticWeightAveraging
from stacks import Stack, batches, make_trainer, train_small
from test_floors import FILES
from torch import nn

from lightning_grow import private

PUBLIC = {"_fields"}  # of a named tuple


def private_names(path):
    """Attributes, imports and names in strings that begin with an underscore and are not the file's own."""
    tree = ast.parse(path.read_text())
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id in ("self", "cls"):
            continue
        if isinstance(node, ast.Attribute) and not ast.unparse(node).startswith("torch.ops.aten."):
            yield node.attr
        elif isinstance(node, ast.ImportFrom):
            yield from (node.module or "").split(".")
            yield from (item.name for item in node.names)
        elif isinstance(node, ast.Call) and getattr(node.func, "id", "") in ("getattr", "hasattr", "setattr"):
            yield from (item.value for item in node.args[1:2] if isinstance(item, ast.Constant))


def test_no_private_name_of_others_stands_anywhere_else():
    own = {
        name
        for path in FILES
        for node in ast.walk(ast.parse(path.read_text()))
        for name in (getattr(node, "name", None), getattr(node, "attr", None))
        if isinstance(node, (ast.FunctionDef, ast.ClassDef))
        or (isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store))
    }
    found = {
        (path.name, name)
        for path in FILES
        for name in private_names(path)
        if name.startswith("_") and not name.startswith("__") and name not in own
    }
    assert {(file, name) for file, name in found if file != "private.py" and name not in PUBLIC} == set()
    assert len(found) > 10  # the look itself still sees them


def test_torch_keeps_a_modules_hooks_where_we_look():
    module = nn.Linear(1, 1)
    assert not private.has_hooks(module)
    for register in (module.register_forward_hook, module.register_forward_pre_hook):
        hook = register(lambda *given: None)
        assert private.has_hooks(module)
        hook.remove()
        assert not private.has_hooks(module)


def test_torch_keeps_a_modules_parts_where_we_look():
    module = nn.BatchNorm1d(2)
    module.register_buffer("own", torch.zeros(1), persistent=False)
    module.part = nn.Linear(1, 1)
    found = private.tables(module)
    assert found.parameters is module._parameters
    assert dict(found.buffers) == dict(module.named_buffers(recurse=False))
    assert dict(found.modules) == {"part": module.part}
    assert found.non_persistent == {"own"}
    compiled = torch.compile(nn.Sequential(nn.Linear(1, 1)), backend="eager")
    assert all(name.startswith(private.COMPILED) for name in compiled.state_dict())


def test_torch_counts_writes_and_knows_a_views_base():
    tensor = torch.zeros(2)
    before = private.version(tensor)
    tensor[0] = 1
    assert private.version(tensor) == before + 1
    assert private.base(tensor[:1]) is tensor
    assert private.base(tensor) is None


def test_torch_describes_its_operators():
    add = private.schema(torch.ops.aten.add_.Tensor)
    assert isinstance(torch.ops.aten.add_.Tensor, private.Operator)
    assert (add.name, add.is_mutable) == ("aten::add_", True)
    assert [item.name for item in add.arguments] == ["self", "other", "alpha"]
    assert add.returns[0].alias_info
    assert torch.ops.aten.addcmul.default in private.decompositions()


def test_torch_can_leave_a_dispatch_mode_and_its_kernels():
    class Counting(private.TorchDispatchMode):
        count = 0

        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            self.count += 1
            return func(*args, **kwargs or {})

    with Counting() as mode:
        torch.ones(1).neg()
        seen = mode.count
        with private.no_dispatch():
            torch.ones(1).neg()
        assert mode.count == seen > 0
    had = torch._C._get_mkldnn_enabled()
    with private.no_onednn():
        assert not torch._C._get_mkldnn_enabled()
    assert torch._C._get_mkldnn_enabled() is had


def test_torch_flattens_trees_in_order():
    tree = {"a": [1, (2,)], "b": 3}
    assert private.tree_leaves(tree) == [1, 2, 3]
    assert private.tree_map(str, tree) == {"a": ["1", ("2",)], "b": "3"}
    paths = [private.keystr(path) for path, _ in private.tree_flatten_with_path(tree)[0]]
    assert paths == ["['a'][0]", "['a'][1][0]", "['b']"]


def test_torch_pickles_memory_under_the_names_that_it_reads():
    class Pickler(pickle.Pickler):
        def persistent_id(self, item):
            found = private.stored(item)
            if found is not None:
                met.append((found.kind, found.entries, found.storage.nbytes(), found.identity))
            return None if found is None else str(found.identity)

    met, item = [], torch.ones(3)
    content = [item, item[1:], item.untyped_storage(), torch.ones(2, dtype=torch.int64), "text"]
    Pickler(io.BytesIO(), protocol=2).dump(content)
    kinds = [torch.FloatStorage, torch.FloatStorage, torch.UntypedStorage, torch.LongStorage]
    assert [entry[:3] for entry in met] == list(zip(kinds, (3, 3, 12, 2), (12, 12, 12, 16), strict=True))
    assert met[0][3] == met[1][3] == met[2][3] != met[3][3]


@pytest.mark.parametrize("name", private.RESETS)
def test_torch_draws_values_anew(name):
    assert any(hasattr(kind, name) for kind in (nn.Linear, nn.MultiheadAttention))


def test_torch_keeps_what_a_scheduler_and_an_optimizer_are():
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=0.5)
    inner = torch.optim.lr_scheduler.ConstantLR(optimizer, factor=0.5)
    scheduler = torch.optim.lr_scheduler.SequentialLR(optimizer, [inner], milestones=[])
    assert getattr(inner, private.LAST_RATES) == inner.state_dict()[private.LAST_RATES] == [0.25]
    assert getattr(scheduler, private.SCHEDULERS) == [inner]
    assert [*scheduler.state_dict()[private.SCHEDULERS][0]] == [*inner.state_dict()]
    handle = optimizer.register_state_dict_post_hook(print)
    assert [*getattr(optimizer, private.STATE_DICT_HOOKS).values()] == [print]
    handle.remove()
    module, name = private.LAYOUT
    assert callable(getattr(__import__(module, fromlist=[name]), name))


def test_lightning_keeps_a_modules_own_where_we_look(tmp_path):
    module = Stack((8,))
    assert getattr(module, private.EXAMPLE) is module.example_input_array
    assert getattr(module, private.TRAINER) is None
    small, _ = train_small(tmp_path, Stack)
    assert isinstance(getattr(small, private.TRAINER), L.Trainer)

    class OfOne(L.LightningModule):
        def __init__(self, settings):
            super().__init__()
            self.save_hyperparameters("settings")

    assert hasattr(OfOne({"a": 1}), private.HPARAMS_NAME)


class Looking(L.Callback):
    def on_fit_start(self, trainer, pl_module):
        self.source = private.data_source(trainer)

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        self.same = [torch.equal(*pair) for pair in zip(private.transfer_batch(pl_module, batch), batch, strict=True)]

    def on_validation_end(self, trainer, pl_module):
        self.logged = dict(private.metrics_of_validation(trainer)), dict(trainer.callback_metrics)

    def on_train_start(self, trainer, pl_module):
        self.skips = private.skips_validation(trainer)


class Logging(Stack):
    def validation_step(self, batch, batch_idx):
        self.log("val", 1.0)


def test_lightnings_loops_say_what_we_ask_them(tmp_path):
    looking = Looking()
    trainer = make_trainer(tmp_path, looking, max_epochs=2, num_sanity_val_steps=0)
    trainer.fit(Logging((8,)), loader := batches(), loader)
    assert looking.source.is_defined()
    assert looking.source.dataloader() is loader
    assert looking.same == [True, True]
    assert looking.skips is False
    assert looking.logged[0] == {"val": 1.0}
    trainer.save_checkpoint(path := tmp_path / "a.ckpt")
    assert private.ended_epochs(torch.load(path)) == 2


@pytest.mark.parametrize("averaging", [lambda: EMAWeightAveraging(), lambda: StochasticWeightAveraging(swa_lrs=1e-3)])
def test_lightnings_averages_are_where_we_look(tmp_path, averaging):
    callback = averaging()
    trainer = make_trainer(tmp_path, callback, max_epochs=2)
    trainer.fit(Stack((8,)), batches(), batches())
    assert isinstance(getattr(callback, private.AVERAGE), nn.Module)
    if isinstance(callback, EMAWeightAveraging):
        trainer.save_checkpoint(path := tmp_path / "a.ckpt")
        checkpoint = torch.load(path)
        assert checkpoint[private.STEPPED_STATE].keys() == checkpoint["state_dict"].keys()


def test_lightnings_spawning_launchers_are_of_the_name():
    spawned = L.Trainer(accelerator="cpu", devices=2, strategy="ddp_spawn", logger=False).strategy
    launched = L.Trainer(accelerator="cpu", devices=2, strategy="ddp", logger=False).strategy
    spawned._configure_launcher(), launched._configure_launcher()
    names = [{cls.__name__ for cls in type(item.launcher).__mro__} for item in (spawned, launched)]
    assert [private.SPAWNING in item for item in names] == [True, False]
