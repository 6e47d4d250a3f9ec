"""What else a user should know of a growth that keeps the function."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Mapping

from lightning_grow.pair.match import Match
from lightning_grow.trace.tape import atoms_of


def name_copies(copies: Mapping[str, str]) -> list[str]:
    """Say once per module what its tensors copy.

    >>> name_copies({"target.0.weight": "net.0.weight", "target.0.bias": "net.0.bias"})
    ["No forward runs 'target.0': it grows as 'net.0', which it copies."]
    """
    pairs = {
        (copy.rpartition(".")[0] or copy, original.rpartition(".")[0] or original) for copy, original in copies.items()
    }
    return [f"No forward runs '{copy}': it grows as '{original}', which it copies." for copy, original in sorted(pairs)]


def name_idle(match: Match, copies: Collection[str]) -> list[str]:
    """Say which growing tensors no check can run, for no forward uses them."""
    return [
        f"No forward uses the parameter '{name}': it grows along the axis of '{other}', with 0 at new entries, or the "
        "mean of the others where the units beside them have it."
        if match.target.tensors[name].trained
        else f"No forward uses the buffer '{name}': it grows as '{other}' beside it, with the target's own values at "
        "new entries."
        for name, other in match.beside.items()
        if name not in copies and any(map(match.grows, atoms_of([match.target.tensors[name]])))
    ]


def name_settings(match: Match) -> list[str]:
    """Say which buffers, of another size than the source's or gone, are as each module was built."""
    if not match.settings:
        return []
    own = ", ".join(map(repr, sorted(match.settings)))
    return [f"No forward reads {own}, as the source was built with: the target has its own."]


def name_shared_counts(match: Match) -> list[str]:
    """Say which statistics of inputs (a normaliser's mean and variance) have one count for old and new inputs."""
    new = {atom for atom in atoms_of(match.target.inputs) if match.grows(atom)}
    buffers = {name: value for name, value in match.target.tensors.items() if not value.trained}
    growing: dict[str, list[str]] = defaultdict(list)
    for name, value in buffers.items():
        if not new.isdisjoint(atoms_of([value])):
            growing[name.rpartition(".")[0]].append(name)
    return [
        f"'{name}' is one count for all inputs: statistics of the new ones ({', '.join(growing[owner])}) begin at the "
        "target's own values and adapt as slowly as the old ones. Keep a count for every input to let them adapt at "
        "once."
        for name, value in buffers.items()
        if not value.axes and "count" in name.rpartition(".")[2] and (owner := name.rpartition(".")[0]) in growing
    ]


def name_branches(match: Match) -> list[str]:
    """Say which forwards may go by the content of an input: only the example's way was followed and checked."""
    return [
        f"{repr(place) if place else 'The forward'} reads the content of an example input (.item(), an if or a loop on "
        "a tensor): only what it does for this one was followed and checked. If it does something else for other "
        "inputs, plan and grow with an example of these too."
        for place in dict.fromkeys(match.target.branches)
    ]


def name_moved_outputs(match: Match) -> list[str]:
    """Say which outputs grow elsewhere than at the end."""
    places = [
        (number, dim, match.old_positions(axis))
        for number, value in enumerate(match.target.outputs.values())
        for dim, axis in enumerate(value.axes)
    ]
    return [
        f"Output {number} grows between its positions along axis {dim}: the source's are at "
        f"{', '.join(map(str, at[:4].tolist()))}, ... (groups, heads or streams that grow inside)."
        for number, dim, at in places
        if len(at) and int(at[-1]) != len(at) - 1
    ]


def name_left_out(match: Match) -> list[str]:
    """Say what is carried from call to call in another size than the source's, and what else is not compared."""
    state, added = match.left_out
    said = []
    if state:
        said.append(
            f"{len(state)} tensors that the forward takes back in its next call are of other sizes than the source's, "
            f"or new ({min(state)}, say): such a state is not handed on from the source, nor compared."
        )
    if added:
        said.append(
            f"The target returns {len(added)} more tensors than the source ({min(added)}, say): new layers' own, not "
            "compared."
        )
    return said
