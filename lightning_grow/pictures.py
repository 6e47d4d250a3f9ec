"""Pictures of growths, drawn from plain data: where entries come from, which units are new, how a run went on."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from lightning_grow.extras import extra

if TYPE_CHECKING:
    from matplotlib.figure import Figure

ORIGINS = {
    "from the source": "#4c72b0",
    "a copy": "#9db8d9",
    "a mean": "#55a868",
    "new": "#dd8452",
    "new, 0": "#d9d9d9",
}
"""What an entry may be, and its colour."""
COLUMNS, MOST_PANELS, MOST_GROUPS = 4, 24, 40


@dataclass(frozen=True)
class Panel:
    """One tensor in runs of alike positions.

    Args:
        title: Above it.
        origins: One of `ORIGINS` for each run of rows and of columns.
        rows: Where the runs of rows begin, and the end.
        columns: Likewise.
    """

    title: str
    origins: Sequence[Sequence[str]]
    rows: Sequence[int]
    columns: Sequence[int]


def runs(*labels: torch.Tensor) -> list[int]:
    """Where positions begin to differ from the ones before in any of their labels, and the end.

    >>> runs(torch.tensor([0, 0, 1, 1]), torch.tensor([True, False, False, False]))
    [0, 1, 2, 4]
    """
    table = torch.stack([label.long() for label in labels], 1)
    changes = torch.nonzero((table[1:] != table[:-1]).any(1)).flatten() + 1
    return [0, *changes.tolist(), len(table)]


def plot_tensors(panels: Sequence[Panel]) -> Figure:
    """Draw tensors, fan-out downwards and fan-in to the right, each entry coloured by where it comes from.

    Args:
        panels: Those that come first are drawn, `MOST_PANELS` of them: a page.

    >>> new_row = Panel("weight", [["from the source"], ["new"]], [0, 4, 6], [0, 3])
    >>> plot_tensors([new_row]).axes[0].get_title()
    'weight'
    """
    with extra("plot"):
        from matplotlib.colors import ListedColormap
        from matplotlib.figure import Figure
        from matplotlib.patches import Patch

    shown, names = panels[:MOST_PANELS], list(ORIGINS)
    rows, columns = max(1, -(-len(shown) // COLUMNS)), max(1, min(COLUMNS, len(shown)))
    figure = Figure(figsize=(2.4 * columns, 2.0 * rows + 0.5), layout="constrained")
    places = figure.subplots(rows, columns, squeeze=False).ravel()
    colours = {"cmap": ListedColormap(list(ORIGINS.values())), "vmin": 0, "vmax": len(names) - 1}
    for axes, panel in zip(places, shown, strict=False):
        codes = [[names.index(origin) for origin in row] for row in panel.origins]
        axes.pcolormesh(panel.columns, panel.rows, codes, **colours)
        axes.invert_yaxis()
        axes.set_title(panel.title, fontsize=7)
        axes.tick_params(labelsize=6)
    for axes in places[len(shown) :]:
        axes.remove()
    more = f"and {len(panels) - len(shown)} more tensors" if len(panels) > len(shown) else None
    handles = [Patch(color=colour, label=label) for label, colour in ORIGINS.items()]
    legend: dict[str, Any] = {"loc": "outside lower center", "fontsize": 7, "frameon": False, "title": more}
    figure.legend(handles=handles, ncols=min(len(handles), columns + 1), **legend)
    return figure


def plot_groups(groups: Sequence[tuple[str, int, int, str, Iterable[str]]]) -> Figure:
    """Draw how many units of each group are the source's and how many are new, and how many tensors widen with it.

    Args:
        groups: Name, units of the source, of the target, whether new ones are "fresh" or "copied", and its tensors.

    >>> [text.get_text() for text in plot_groups([("hidden", 4, 6, "fresh", ["a", "b"])]).axes[0].texts]
    [' 4 -> 6, in 2 tensors']
    """
    with extra("plot"):
        from matplotlib.figure import Figure

    shown = groups[:MOST_GROUPS]
    figure = Figure(figsize=(7, 0.8 + 0.28 * max(1, len(shown))), layout="constrained")
    axes = figure.subplots()
    for row, (_, old, new, mode, tensors) in enumerate(shown):
        axes.barh(row, old, color=ORIGINS["from the source"], height=0.7)
        axes.barh(row, new - old, left=old, color=ORIGINS["a copy" if mode == "copied" else "new"], height=0.7)
        axes.text(new, row, f" {old} -> {new}, in {len(set(tensors))} tensors", va="center", fontsize=7)
    axes.set_yticks(range(len(shown)), [group[0] for group in shown], fontsize=7)
    axes.set(ylim=(len(shown) - 0.5, -0.5), xlabel="units", xmargin=0.25)
    axes.spines[["top", "right"]].set_visible(False)
    if len(groups) > len(shown):
        axes.set_title(f"the first {len(shown)} of {len(groups)} unit groups", fontsize=8)
    return figure


Curves = Mapping[str, tuple[Sequence[float], Sequence[float]]]


def plot_curves(
    curves: Curves, grown_at: Sequence[float] = (), xlabel: str = "timesteps", ylabel: str = "episode return"
) -> Figure:
    """Draw learning curves.

    Args:
        curves: Label -> (steps, values).
        grown_at: The steps of growths, each marked by a line.
        xlabel: What the steps are.
        ylabel: What the values are.

    Returns:
        One panel with all curves.

    >>> figure = plot_curves({"small": ([0, 1], [1.0, 2.0]), "large": ([1, 2], [2.0, 3.0])}, grown_at=[1])
    >>> [line.get_label() for line in figure.axes[0].lines][:2]
    ['small', 'large']
    """
    with extra("plot"):
        from matplotlib.figure import Figure

    figure = Figure(figsize=(6, 3), layout="constrained")
    axes = figure.subplots()
    for label, (steps, values) in curves.items():
        axes.plot(steps, values, label=label)
    for step in grown_at:
        axes.axvline(step, color="grey", linestyle="--", linewidth=1)
        axes.annotate(" grown", (step, 0.93), xycoords=("data", "axes fraction"), color="grey", fontsize=8)
    axes.set(xlabel=xlabel, ylabel=ylabel)
    if len(curves) > 1:
        axes.legend(frameon=False)
    return figure


def plot_points(groups: Mapping[str, Sequence[float]], xlabel: str) -> Figure:
    """Draw numbers of groups, a line of points a group and a bar at its median.

    Args:
        groups: Label -> numbers; the first is on top.
        xlabel: What the numbers are.

    >>> [label.get_text() for label in plot_points({"a": [1.0, 2.0], "b": []}, "return").axes[0].get_yticklabels()]
    ['a', 'b']
    """
    with extra("plot"):
        from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 0.8 + 0.35 * len(groups)), layout="constrained")
    axes = figure.subplots()
    for row, numbers in enumerate(groups.values()):
        axes.plot(numbers, [row] * len(numbers), "o", color="#4c72b0", alpha=0.6)
        middle = [statistics.median(numbers)] if numbers else []
        axes.plot(middle, [row] * len(middle), "|", color="black", markersize=16)
    axes.set(xlabel=xlabel, yticks=range(len(groups)), ylim=(len(groups) - 0.5, -0.5))
    axes.set_yticklabels(list(groups))
    return figure
