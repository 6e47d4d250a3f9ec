"""Inputs whose names differ between checkpoint and module: at one size, in hyperparameters or in code."""

import pytest
import torch
from stacks import AtStart, GrowableStack, Stack, fit, outputs, train_small
from test_arch_transfer import read

from lightning_grow import ArchTransfer, GrowthSchedule, convert_checkpoint
from lightning_grow.errors import RefusedGrowth
from lightning_grow.files.checkpoint import KEY

OLD = ("a", "b", "c", "d")


def named(base):
    class Named(base):
        """Its names are hyperparameters."""

        def __init__(self, hidden_dims=(8,), names=OLD):
            super().__init__(hidden_dims, len(names))
            self.save_hyperparameters()

        @property
        def input_names(self):
            return list(self.hparams.names)

    return Named


class InCode(Stack):
    """Its names are the class's: those of today's code."""

    NAMES = OLD

    def __init__(self, hidden_dims=(8,), state_dim=4):
        super().__init__(hidden_dims, state_dim)

    @property
    def input_names(self):
        return list(self.NAMES)


class GrowableInCode(InCode, GrowableStack):
    transfer_options = {"allow_input_growth": True}  # noqa: RUF012


def expected(small, names):
    """What the source says of the target's example inputs."""
    example = torch.linspace(-1, 1, 3 * len(names)).reshape(3, len(names))
    with torch.no_grad():
        return small(example[:, [names.index(name) for name in OLD]])


CLOSE = {"rtol": 0, "atol": 1e-6}  # float32 outputs of about 1
OTHERS = {"reordered": ("d", "a", "b", "c"), "one more, in the middle": ("a", "b", "x", "c", "d")}


@pytest.mark.parametrize("hidden", [8, 12])
@pytest.mark.parametrize("names", OTHERS.values(), ids=OTHERS)
@pytest.mark.parametrize("where", ["hyperparameters", "code"])
@pytest.mark.parametrize("base", [Stack, GrowableStack])
def test_every_old_weight_and_moment_reads_the_input_that_it_read(tmp_path, monkeypatch, base, where, names, hidden):
    cls = named(base) if where == "hyperparameters" else InCode if base is Stack else GrowableInCode
    small, path = train_small(tmp_path, cls, ArchTransfer())
    monkeypatch.setattr(InCode, "NAMES", names)
    size = {"names": names} if where == "hyperparameters" else {"state_dim": len(names)}
    at_start, growing = AtStart(), ArchTransfer(optimizer="transfer", allow_input_growth=True)
    fit(cls((hidden,), **size), tmp_path, growing, at_start, ckpt_path=path, max_epochs=3)
    torch.testing.assert_close(at_start.outputs, expected(small, names), **CLOSE)
    moments = read(path)["optimizer_states"][0]["state"][0]["exp_avg"]
    places = [names.index(name) for name in OLD]
    assert torch.equal(at_start.state[0]["exp_avg"][:8, places], moments)
    assert at_start.step == 16


def test_reordered_inputs_are_found_in_every_way_to_read_a_file(tmp_path, monkeypatch):
    small, path = train_small(tmp_path, GrowableInCode)
    monkeypatch.setattr(InCode, "NAMES", OTHERS["reordered"])
    wanted = expected(small, OTHERS["reordered"])
    torch.testing.assert_close(outputs(GrowableInCode.load_from_checkpoint(path)), wanted, **CLOSE)
    convert_checkpoint(path, GrowableInCode(), tmp_path / "new.ckpt")
    assert read(tmp_path / "new.ckpt")[KEY]["architecture"]["input_names"] == list(OTHERS["reordered"])
    torch.testing.assert_close(outputs(InCode.load_from_checkpoint(tmp_path / "new.ckpt")), wanted, **CLOSE)
    with pytest.raises(RefusedGrowth, match=r"its inputs in another order.*ArchTransfer"):
        fit(GrowableInCode(), tmp_path, ckpt_path=path, max_epochs=3)


def test_inputs_of_other_names_at_the_same_size_are_refused_and_may_be_dropped(tmp_path):
    cls = named(Stack)
    small, path = train_small(tmp_path, cls)  # nothing recorded: the hyperparameters have the names
    target = cls(names=("a", "b", "c", "x"))
    with pytest.raises(RefusedGrowth, match=r"not in the target \(d\)"):
        fit(target, tmp_path, ArchTransfer(), ckpt_path=path, max_epochs=3)
    at_start, dropping = AtStart(), ArchTransfer(allow_input_growth=True, drop_inputs=["d"])
    fit(target, tmp_path, dropping, at_start, ckpt_path=path, max_epochs=3)
    weight = at_start.weights["net.0.weight"]
    assert torch.equal(weight[:, :3], small.net[0].weight[:, :3])
    assert not weight[:, 3].any()


def test_names_in_code_that_no_checkpoint_recorded_are_refused_or_said(tmp_path, monkeypatch):
    _, path = train_small(tmp_path, InCode)
    growing = ArchTransfer(allow_input_growth=True)
    with pytest.warns(UserWarning, match=r"records no input names, .* that InCode names today"):
        fit(InCode((12,)), tmp_path, growing, ckpt_path=path, max_epochs=3)
    monkeypatch.setattr(InCode, "NAMES", OTHERS["one more, in the middle"])
    with pytest.raises(RefusedGrowth, match="the source has 5 names for 4 positions, the target 5 for 5"):
        fit(InCode((12,), 5), tmp_path, growing, ckpt_path=path, max_epochs=3)


class Late(Stack):
    """Has names since it is told so."""

    def __init__(self, hidden_dims=(8,), state_dim=4, is_named=False):
        super().__init__(hidden_dims, state_dim)
        self.save_hyperparameters()
        self.input_names = list(OLD) if is_named else None


@pytest.mark.parametrize("recording", [[], [ArchTransfer]])
def test_names_that_only_the_target_has_are_said(tmp_path, recording):
    _, path = train_small(tmp_path, Late, *(callback() for callback in recording))
    with pytest.warns(UserWarning, match="records no input names"):
        fit(Late((12,), is_named=True), tmp_path, ArchTransfer(), ckpt_path=path, max_epochs=3)


def test_a_stage_may_reorder_the_inputs_alone(tmp_path):
    cls, names = named(Stack), OTHERS["reordered"]
    straight, moved = cls(), cls()
    moved.load_state_dict(straight.state_dict())
    fit(straight, tmp_path, max_epochs=1)
    fit(moved, tmp_path, GrowthSchedule([{"names": names}], at=[8]), max_epochs=1)
    torch.testing.assert_close(outputs(moved), expected(straight, names), **CLOSE)
