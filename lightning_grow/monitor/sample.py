"""What one training batch shows of the units of a module, and of what a growth made new in it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from lightning_grow.monitor.units import DormantShare, EffectiveRank
from lightning_grow.trace.names import parameters_of

_LAYERS = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)
MOST_ROWS = 512


class Sample:
    """Watches one batch: open until `close`.

    Units are what linear and convolutional layers read, but for the inputs of the module, which no gradient reaches.

    Args:
        module: What is trained; hooks are put on its layers.
        tau: Of `DormantShare`.
        new: Parameter -> which entries are new; empty where nothing has grown lately.
    """

    def __init__(self, module: nn.Module, tau: float, new: Mapping[str, Tensor]) -> None:
        self.tau, self.new = tau, new
        self.layers: dict[str, tuple[DormantShare, EffectiveRank]] = {}
        self.reached: dict[str, Tensor] = {}
        self.gradient_shares: list[Tensor] = []
        self.before = {name: item.detach().clone() for name, item in parameters_of(module).items()} if new else {}
        layers = [(name, part) for name, part in module.named_modules() if isinstance(part, _LAYERS)]
        self.handles = [part.register_forward_pre_hook(self._reader(name)) for name, part in layers]

    def _reader(self, name: str) -> Callable[[nn.Module, tuple[Any, ...]], None]:
        def read(layer: nn.Module, inputs: tuple[Any, ...]) -> None:
            is_first = name not in self.layers  # a batch may have many forward passes: one tells enough
            if is_first and inputs and isinstance(inputs[0], Tensor) and inputs[0].requires_grad:
                rows = inputs[0].detach().movedim(1 - layer.weight.ndim, -1)  # type: ignore[arg-type,operator]
                self.layers[name] = self._metrics(rows)
                for metric in self.layers[name]:
                    metric.update(rows.reshape(-1, rows.shape[-1])[:MOST_ROWS])

        return read

    def _metrics(self, rows: Tensor) -> tuple[DormantShare, EffectiveRank]:
        metrics = DormantShare(self.tau, sync_on_compute=False), EffectiveRank(MOST_ROWS, sync_on_compute=False)
        return metrics[0].to(rows.device), metrics[1].to(rows.device)

    def take_gradients(self, module: nn.Module) -> None:
        """Look at the gradients just before an optimizer step."""
        whole, new = [], []
        for name, parameter in parameters_of(module).items() if self.new else ():
            if parameter.grad is not None:
                whole.append(parameter.grad.square().sum())
            if parameter.grad is not None and name in self.new:
                new.append(parameter.grad[self.new[name]].square().sum())
                reached = (parameter.grad != 0).cpu()
                self.reached[name] = self.reached.get(name, torch.tensor(False)) | reached
        if new:
            self.gradient_shares.append((torch.stack(new).sum() / torch.stack(whole).sum().clamp(min=1e-38)).sqrt())

    def close(self, module: nn.Module) -> dict[str, Tensor]:
        """Take the hooks off, and return what was seen: shares in [0, 1], those that can be told."""
        self.release()
        found: dict[str, Tensor] = {}
        if self.layers:
            sizes = torch.tensor([float(share.sizes.numel()) for share, _ in self.layers.values()])
            dormant = torch.stack([share.compute().cpu() for share, _ in self.layers.values()])
            found["dormant_share"] = (dormant * sizes).sum() / sizes.sum()
            found["effective_rank"] = torch.stack([rank.compute().cpu() for _, rank in self.layers.values()]).mean()
        if self.gradient_shares:
            found["new_gradient_share"] = torch.stack(self.gradient_shares).mean()
        now = parameters_of(module)
        changes = {name: now[name].detach() - before for name, before in self.before.items()}
        new = [changes[name][mask].square().sum() for name, mask in self.new.items()]
        if new and (whole := torch.stack([change.square().sum() for change in changes.values()]).sum()):
            found["new_update_share"] = (torch.stack(new).sum() / whole).sqrt()
        return found

    def release(self) -> None:
        """Take the hooks off."""
        for handle in self.handles:
            handle.remove()
