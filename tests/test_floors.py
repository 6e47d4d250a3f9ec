"""Imports go downward only: read off the imports of every file, so that no list of floors can be out of date."""

import ast
import subprocess
import sys
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

import lightning_grow

PACKAGE = Path(lightning_grow.__file__).parent
FILES = sorted(path for path in PACKAGE.rglob("*.py") if path.name not in ("__init__.py", "__main__.py"))
FOREIGN = {"lightning", "pytorch_lightning", "hydra", "omegaconf", "gymnasium", "pandas", "talib", "matplotlib"}


def name_of(path):
    return ".".join(path.relative_to(PACKAGE.parent).with_suffix("").parts)


DRAW = {"lightning_grow.pictures", "lightning_grow.plan.growth_plan", "lightning_grow.report"}  # when asked to
NAMES = {name_of(path): path for path in FILES}


def imports(path):
    """Every module that a file imports, at its top or inside a function; of a package the file that is meant."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield from (name if (name := f"{node.module}.{item.name}") in NAMES else node.module for item in node.names)


def room_of(name):
    """The folder right below the package, or the file where it stands alone."""
    return ".".join(name.split(".")[:2])


def files_below(*names):
    """The files that these files import, and those that they import in turn."""
    found, waiting = set(), list(names)
    while waiting:
        name = waiting.pop()
        if name in NAMES and name not in found:
            found.add(name)
            waiting.extend(imports(NAMES[name]))
    return sorted(found)


OURS = {name: {item for item in imports(path) if item.startswith("lightning_grow")} for name, path in NAMES.items()}


def test_no_file_imports_itself_in_a_circle():
    try:
        list(TopologicalSorter(OURS).static_order())
    except CycleError as error:
        pytest.fail(" imports ".join(reversed(error.args[1])))


def test_no_room_is_above_and_below_another():
    rooms = {}
    for name, found in OURS.items():
        rooms.setdefault(room_of(name), set()).update({room_of(item) for item in found} - {room_of(name)})
    try:
        list(TopologicalSorter(rooms).static_order())
    except CycleError as error:
        pytest.fail(" imports ".join(reversed(error.args[1])))


def test_no_room_looks_into_the_facade():
    assert {name for name, found in OURS.items() if "lightning_grow" in found} == set()


@pytest.mark.parametrize("name", files_below("lightning_grow.grow"))
def test_growing_a_module_needs_torch_only(name):
    drawn = {"matplotlib"} if name in DRAW else set()
    assert not {module.split(".")[0] for module in imports(NAMES[name])} & (FOREIGN - drawn)


@pytest.mark.parametrize("name", NAMES)
def test_the_command_line_alone_knows_hydra(name):
    if room_of(name) != "lightning_grow.app":
        assert "hydra" not in {module.split(".")[0] for module in imports(NAMES[name])}


def test_importing_the_library_imports_neither_lightning_nor_what_draws():
    slow = ["lightning", "hydra", "gymnasium", "matplotlib", "transformers", "torch.distributed.checkpoint"]
    code = f"import sys, lightning_grow; assert not set({slow}) & set(sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
