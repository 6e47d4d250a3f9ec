"""A growth where every process holds a part of each parameter (FSDP2): one whole parameter at a time, on the CPU."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import LightningModule
from torch import Tensor, nn
from torch.distributed.tensor import DTensor, distribute_tensor

from lightning_grow.apply.apply import write_tensor
from lightning_grow.apply.count import report_tensor
from lightning_grow.apply.meta_target import set_buffers
from lightning_grow.comparison import describing, find_differing
from lightning_grow.convert import Growth
from lightning_grow.errors import RefusedGrowth
from lightning_grow.files.checkpoint import check_finite
from lightning_grow.files.hparams import find_hparams
from lightning_grow.files.rebuild import Source, build_module, configure, rebuild_source
from lightning_grow.files.record import restore_attributes
from lightning_grow.grow import Transfer, make_growth_plan
from lightning_grow.options import Options
from lightning_grow.plan.growth_plan import GrowthPlan, refuse
from lightning_grow.private import EXAMPLE, tree_leaves
from lightning_grow.report import TensorReport, TransferReport
from lightning_grow.trace.names import align_names, parameters_of, strip_compiled
from lightning_grow.trace.untouched import untouched_rng
from lightning_grow.training_state.optimizers import Keep, OptimizerChoice
from lightning_grow.training_state.warmup import local
from lightning_grow.training_state.weight_copies import NOT_COPIES
from lightning_grow.verify.run import set_attributes


def check_moments(optimizer: OptimizerChoice) -> None:
    """Refuse moments that no process could hold."""
    if optimizer == "asymmetric":
        raise RefusedGrowth(
            "optimizer='asymmetric' gives new entries moments of their own, which no process of a sharded strategy "
            "holds whole. Use optimizer='transfer', with warmup_scope='new' to let new entries start slowly."
        )


def plan_sharded(
    module: LightningModule, checkpoint: Mapping[str, Any], options: Options, path: str | Path, source: Source | None
) -> GrowthPlan:
    """What growing a checkpoint into a module whose parameters are sharded would do; changes nothing.

    Args:
        module: Set up by its strategy; the new entries keep its own initial values.
        checkpoint: A full one; its tensors may lie in a mapped file.
        options: How to grow.
        path: Named in errors.
        source: A callable ``hparams -> nn.Module``; the module's class when None.

    Raises:
        CheckpointError: The weights are not finite.
        RefusedGrowth: The growth cannot be done.
    """
    state, twin = align_names(checkpoint["state_dict"], module.state_dict()), _twin(module)
    small = rebuild_source(twin, checkpoint, state, source)
    restore_attributes(small, checkpoint)
    check_finite(state, (name for name, _ in small.named_parameters()), path)
    with untouched_rng(), describing(checkpoint, module):
        plan = make_growth_plan(small, twin, options)
        refuse(plan)
    _refuse_copies(checkpoint, plan)
    return plan


def write_sharded(module: LightningModule, checkpoint: Mapping[str, Any], plan: GrowthPlan, seed: int) -> Growth:
    """Do it, in every process at once; the outputs are not compared, for no process has a whole model."""
    state = align_names(checkpoint["state_dict"], module.state_dict())
    tensors = _write(plan, state, module, seed)
    set_attributes(module, plan.attributes)
    report = TransferReport(
        tensors=tuple(tensors),
        strategy=plan.strategy.name,
        seed=seed,
        function_preserving=plan.strategy.function_preserving and not plan.lost,
        refused=list(plan.lost),
        attributes=dict(plan.attributes),
        notes=(*plan.notes, "Not compared, and dead units not counted: no process holds a whole model."),
        plan=plan,
    )
    return Growth(Transfer(plan, {}, report), find_differing(checkpoint, module), {})


def whole(tensor: Tensor) -> Tensor:
    """All of a tensor, on the CPU; every process has to ask for it."""
    tensor = tensor.detach()
    return (tensor.full_tensor() if isinstance(tensor, DTensor) else tensor).cpu()


def part_like(tensor: Tensor, other: Tensor) -> Tensor:
    """A whole tensor as another one of its shape lies: this process's part of it, without asking the others."""
    if not isinstance(other, DTensor) or tensor.shape != other.shape:
        return tensor.clone()
    return distribute_tensor(tensor, other.device_mesh, other.placements, src_data_rank=None)


def parts_of(module: nn.Module) -> Keep:
    """What takes of a grown moment the part that this process holds of its parameter."""
    parameters = parameters_of(module)
    return lambda name, tensor: part_like(tensor, parameters[name])


def _twin(module: LightningModule) -> nn.Module:
    """The module again, whole and without memory, with its buffers and its example inputs."""
    with torch.device("meta"):
        twin = configure(build_module(module, find_hparams(module)), _shapes(module))
    if _shapes(twin) != _shapes(module):
        raise RefusedGrowth(
            f"{type(module).__name__} cannot be built again from its hyperparameters, as a growth in a sharded "
            "strategy needs it: __init__ and configure_model have to make the same layers without a mesh "
            "(self.device_mesh is None). Or grow the file first: lightning_grow.convert_checkpoint."
        )
    set_buffers(twin, {name: buffer.detach() for name, buffer in module.named_buffers()})
    setattr(twin, EXAMPLE, module.example_input_array)
    return twin.train(module.training)


def _shapes(module: nn.Module) -> dict[str, tuple[int, ...]]:
    return {name: tuple(item.shape) for name, item in module.named_parameters()}


def _refuse_copies(checkpoint: Mapping[str, Any], plan: GrowthPlan) -> None:
    grown = {item.source_shape for item in plan.tensors.values() if item.source_shape and not item.is_plain}
    for key in checkpoint.keys() - NOT_COPIES:
        if any(isinstance(leaf, Tensor) and tuple(leaf.shape) in grown for leaf in tree_leaves(checkpoint[key])):
            raise RefusedGrowth(
                f"checkpoint[{key!r}] holds what may be a copy of the weights (an average), which grows from file to "
                "file only: use lightning_grow.convert_checkpoint(..., optimizer='transfer'), and resume from its file."
            )


@torch.no_grad()
def _write(plan: GrowthPlan, state: Mapping[str, Any], module: nn.Module, seed: int) -> list[TensorReport]:
    generator, sources = torch.Generator().manual_seed(seed), {strip_compiled(name): name for name in state}
    live = {strip_compiled(name): item for name, item in module.state_dict(keep_vars=True).items()}
    reports = dict[str, TensorReport]()
    written = set[int]()  # a tied tensor is written once
    for name in sorted(plan.tensors, key=lambda name: plan.tensors[name].like is not None):
        item, tensor = plan.tensors[name], live[name]
        initial = whole(tensor)
        grown = torch.empty_like(initial) if item.like is None else whole(live[item.like])
        if id(tensor) not in written:
            old = None if item.source_name is None else state[sources[item.source_name]].detach()
            write_tensor(item, old, initial, grown, plan.strategy, generator)
            local(tensor).copy_(local(part_like(grown, tensor)))
            written.add(id(tensor))
        reports[name] = report_tensor(item, whole(tensor), plan.explain(name))
    return [reports[name] for name in plan.tensors]
