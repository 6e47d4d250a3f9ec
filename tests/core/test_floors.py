"""Imports go downward only."""

import ast
from pathlib import Path

import pytest

import lightning_grow

ROOT = Path(lightning_grow.__file__).parent
CORE = [
    "errors",
    "axes",
    "tape",
    "meanings",
    "rules",
    "untouched",
    "trace",
    "roles",
    "cells",
    "scale",
    "probe",
    "twins",
    "maps",
    "pairing",
    "depth",
    "alignment",
    "mismatch",
    "tensor_plan",
    "apply",
    "plan",
    "draft",
    "verify",
    "rounding",
    "compare",
    "liveness",
    "report",
    "transfer",
]
FORBIDDEN = {"lightning", "pytorch_lightning", "hydra", "omegaconf", "gymnasium", "pandas", "talib"}


def imports(path):
    """Every module that a file imports, at its top or inside a function."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.module


def files(*names):
    found = [
        path
        for name in names
        for path in ([ROOT / f"{name}.py"] if (ROOT / f"{name}.py").exists() else (ROOT / name).rglob("*.py"))
    ]
    assert found
    return found


@pytest.mark.parametrize("path", files(*CORE, "interpret", "strategies"), ids=lambda path: str(path.relative_to(ROOT)))
def test_the_core_needs_torch_only(path):
    for module in imports(path):
        assert module.split(".")[0] not in FORBIDDEN
        assert not module.startswith(
            ("lightning_grow.rl", "lightning_grow.callbacks", "lightning_grow.cli", "lightning_grow.convert")
        )


@pytest.mark.parametrize("path", sorted(ROOT.rglob("*.py")), ids=lambda path: str(path.relative_to(ROOT)))
def test_hydra_is_the_command_lines_alone(path):
    if path.name not in ("cli.py",):
        assert not {"hydra"} & {module.split(".")[0] for module in imports(path)}
    if path.parent.name not in ("rl", "callbacks") and path.name not in ("cli.py", "__main__.py", "__init__.py"):
        assert not {"gymnasium"} & {module.split(".")[0] for module in imports(path)}


def test_importing_the_library_does_not_import_lightning():
    import subprocess
    import sys

    code = "import sys, lightning_grow; assert not {'lightning', 'hydra', 'gymnasium'} & set(sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
