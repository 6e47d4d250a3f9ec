"""Pictures of a growth: which entries came from where, and how the run went on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.colors import ListedColormap
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from torch import Tensor

from lightning_grow.plan.growth_plan import GrowthPlan

COLOURS = {"from the source": "#4c72b0", "new": "#dd8452", "new, 0": "#d9d9d9"}


def plot_transfer(plan: GrowthPlan, state: Mapping[str, Tensor], names: Sequence[str] | None = None) -> Figure:
    """Draw every matrix with its entries coloured by where they came from.

    Args:
        plan: The plan.
        state: The grown state dict.
        names: Which tensors; all that grew and have two dimensions when None.

    Returns:
        A figure with one panel per tensor, fan-out downwards and fan-in to the right.

    >>> from torch import nn, ones
    >>> from lightning_grow.grow import transfer
    >>> small, large = (nn.Sequential(nn.Linear(3, n), nn.ReLU(), nn.Linear(n, 2)) for n in (4, 6))
    >>> done = transfer(small, large, example_inputs=(ones(5, 3),))
    >>> [axes.get_title() for axes in plot_transfer(done.plan, done.state_dict).axes]
    ['0.weight', '2.weight']
    """
    grown = [name for name, item in plan.tensors.items() if len(item.target_shape) == 2 and not item.is_plain]
    chosen = list(names) if names is not None else grown
    figure = Figure(figsize=(2.4 * max(1, len(chosen)), 2.8), layout="constrained")
    panels = figure.subplots(1, max(1, len(chosen)), squeeze=False)[0]
    for axes, name in zip(panels, chosen, strict=False):
        axes.imshow(
            _origins(plan, name, state[name]),
            cmap=ListedColormap(list(COLOURS.values())),
            vmin=0,
            vmax=2,
            aspect="auto",
        )
        axes.set_title(name, fontsize=8)
        axes.tick_params(labelsize=7)
    handles = [Patch(color=colour, label=label) for label, colour in COLOURS.items()]
    figure.legend(handles=handles, loc="outside lower center", ncols=3, fontsize=8, frameon=False)
    return figure


def _origins(plan: GrowthPlan, name: str, tensor: Tensor) -> np.ndarray[tuple[int, ...], np.dtype[np.int64]]:
    """0 for the source's entries, 1 for new ones, 2 for new ones that are 0."""
    new = plan.new_entries(name)
    return np.asarray(new.int() + (new & (tensor.detach().cpu() == 0)).int(), dtype=np.int64)


def plot_curves(curves: Mapping[str, tuple[Sequence[float], Sequence[float]]], grown_at: float | None = None) -> Figure:
    """Draw learning curves.

    Args:
        curves: Label -> (timesteps, episode returns).
        grown_at: The timestep of the growth, marked by a line.

    Returns:
        One panel with all curves.

    >>> figure = plot_curves({"small": ([0, 1], [1.0, 2.0]), "large": ([1, 2], [2.0, 3.0])}, grown_at=1)
    >>> [line.get_label() for line in figure.axes[0].lines][:2]
    ['small', 'large']
    """
    figure = Figure(figsize=(6, 3), layout="constrained")
    axes = figure.subplots()
    for label, (steps, returns) in curves.items():
        axes.plot(steps, returns, label=label)
    if grown_at is not None:
        axes.axvline(grown_at, color="grey", linestyle="--", linewidth=1)
    axes.set_xlabel("timesteps")
    axes.set_ylabel("episode return")
    axes.legend(frameon=False)
    return figure
