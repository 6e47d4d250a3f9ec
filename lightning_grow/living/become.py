"""Turn a living module into one of another architecture, in place: whoever holds it goes on holding it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from lightning_grow.living.attributes import has_same_values, is_alike, named_parts, redirect
from lightning_grow.private import TABLES, tables, tree_leaves

Table = Mapping[str, Any]


@dataclass(frozen=True)
class Contested:
    """What both the architecture and the run have a say in.

    Args:
        lost: Tensors that no state dict carries, that the run has changed and that had to take the new architecture's
            shape: their values are lost.
        kept: Other attributes that the run has changed: they stay, and are not those of the new architecture.
    """

    lost: list[str] = field(default_factory=list)
    kept: list[str] = field(default_factory=list)


def become(module: nn.Module, grown: nn.Module, fresh: nn.Module) -> Contested:
    """Give a module the architecture of another; what a run has put into it stays.

    Every submodule keeps its identity, its hooks and its mode, and every attribute in which `fresh` and `grown` agree
    (counters, environments, metrics). Where they differ, the architecture decides: an attribute that is still as
    `fresh` has it becomes `grown`'s. What points at parts of the module (a list of its parameters) points at the new
    ones. Values are not carried: load a state dict afterwards.

    Args:
        module: Changed in place.
        grown: A newly built module of the new architecture; given away, its parts are used.
        fresh: A newly built module of the architecture that `module` has.

    Returns:
        The names of what has changed on both sides.

    >>> import torch
    >>> module, fresh, grown = (nn.Sequential(nn.Linear(2, size), nn.Linear(size, 2)) for size in (3, 3, 5))
    >>> first = module[0]
    >>> become(module, grown, fresh)
    Contested(lost=[], kept=[])
    >>> module[0] is first, first.out_features, module(torch.ones(1, 2)).shape
    (True, 5, torch.Size([1, 2]))
    """
    trained = {name: parameter.requires_grad for name, parameter in module.named_parameters()}
    change = _Change(module, grown, fresh)
    change.apply(module, grown, fresh, "")
    change.redirect(module)
    for name, parameter in module.named_parameters():
        parameter.requires_grad_(trained.get(name, parameter.requires_grad))
    return change.contested


class _Change:
    """One module becoming another: what its parts are called, and what is still to point at the new ones."""

    def __init__(self, *modules: nn.Module) -> None:
        self.before = [(name, part) for module in modules for name, part in named_parts(module)]  # alive, so ids hold
        self.names = {id(part): name for name, part in self.before}
        self.taken: list[tuple[dict[str, Any], str, Any]] = []  # attributes, name, value
        self.contested = Contested()

    def apply(self, module: nn.Module, grown: nn.Module, fresh: nn.Module, path: str) -> None:
        """Take over the tensors, then the submodules, then all other attributes."""
        own = vars(module)  # not setattr: a compiled module passes it on to the one inside
        mine, theirs = tables(module), tables(grown)
        parameters = {
            name: mine.parameters[name] if _fits(mine.parameters.get(name), new) else new
            for name, new in theirs.parameters.items()
        }
        buffers = {name: self._buffer(module, grown, fresh, name, path) for name in theirs.buffers}
        children: dict[str, nn.Module | None] = {}
        for name, child in theirs.modules.items():
            kept, old = mine.modules.get(name), tables(fresh).modules.get(name)
            if child is not None and kept is not None and old is not None and type(kept) is type(child) is type(old):
                self.apply(kept, child, old, f"{path}{name}.")
                children[name] = kept
            else:
                children[name] = child if child is None else child.train(module.training)
        own.update(zip(TABLES, (parameters, buffers, children, theirs.non_persistent), strict=True))
        for name in [name for name in vars(grown) if name not in TABLES]:
            self._take_attribute(own, vars(fresh), vars(grown), name, path)

    def redirect(self, module: nn.Module) -> None:
        """Set what was taken over, pointing at the parts that the module has now."""
        now = dict(named_parts(module))
        parts = {id(part): now.get(name, part) for name, part in self.before}
        for attributes, name, value in self.taken:
            attributes[name] = redirect(value, parts)

    def _buffer(self, module: nn.Module, grown: nn.Module, fresh: nn.Module, name: str, path: str) -> Tensor | None:
        own, old = tables(module).buffers.get(name), tables(fresh).buffers.get(name)
        new = tables(grown).buffers[name]
        if name not in tables(grown).non_persistent:
            return own if _fits(own, new) else new  # a state dict brings the values
        if has_same_values(own, old):
            return own if has_same_values(old, new) else new
        if not _fits(old, new):
            self.contested.lost.append(f"{path}{name}")
        return own if _fits(old, new) else new

    def _take_attribute(self, own: dict[str, Any], fresh: Table, grown: Table, name: str, path: str) -> None:
        if name not in fresh:
            self.taken.append((own, name, grown[name]))
        elif name in own and not is_alike(own[name], fresh[name], self.names):
            if self._shapes(fresh[name]) != self._shapes(grown[name]):
                self.contested.lost.append(f"{path}{name}")
                own[name] = grown[name]
            elif not is_alike(fresh[name], grown[name], self.names):
                self.contested.kept.append(f"{path}{name}")
            if any(id(leaf) in self.names for leaf in tree_leaves(own[name])):
                self.taken.append((own, name, own[name]))
        elif name in own:
            value = own[name] if is_alike(fresh[name], grown[name], self.names) else _beside(own[name], grown[name])
            self.taken.append((own, name, value))

    def _shapes(self, value: Any) -> list[torch.Size]:
        """Of the tensors that it holds and that are no part of a module."""
        return [leaf.shape for leaf in tree_leaves(value) if isinstance(leaf, Tensor) and id(leaf) not in self.names]


def _fits(own: Tensor | None, new: Tensor | None) -> bool:
    return (own is None) == (new is None) and (own is None or new is None or own.shape == new.shape)


def _beside(own: Any, new: Any) -> Any:
    return new.to(own.device) if isinstance(own, Tensor) and isinstance(new, Tensor) else new
