"""The public names are there, and no more."""

import ast
import importlib
import re
from pathlib import Path

import pytest

import lightning_grow
import lightning_grow.rl
import lightning_grow.rules

ROOT = Path(__file__).parents[1]
PAGES = "\n".join(page.read_text() for page in (ROOT / "README.md", *(ROOT / "docs").glob("*.md")))
DESIGN = [
    "ArchTransfer",
    "GrowableMixin",
    "grow",
    "plan_growth",
    "convert_checkpoint",
    "GrowthOptions",
    "Strategy",
    "Block",
    "register_strategy",
    "list_strategies",
    "GrowthPlan",
    "TransferReport",
    "GrowError",
    "CheckpointError",
    "RefusedGrowth",
    "UnknownStrategy",
    "__version__",
]


@pytest.mark.parametrize("name", DESIGN)
def test_the_name_is_public(name):
    assert name in lightning_grow.__all__
    assert getattr(lightning_grow, name).__doc__


def test_all_is_what_can_be_had():
    assert lightning_grow.__all__ == sorted(lightning_grow.__all__, key=lambda name: (name.islower(), name))
    assert all(hasattr(lightning_grow, name) for name in lightning_grow.__all__)
    assert {"PPO", "ActorCritic"} <= set(lightning_grow.rl.__all__)


def test_another_name_is_an_error():
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = lightning_grow.nothing


@pytest.mark.parametrize(
    "child", [lightning_grow.CheckpointError, lightning_grow.RefusedGrowth, lightning_grow.UnknownStrategy]
)
def test_errors_have_one_root(child):
    assert issubclass(child, lightning_grow.GrowError)


@pytest.mark.parametrize("name", lightning_grow.rules.__all__)
def test_what_a_rule_is_made_of_is_public(name):
    assert getattr(lightning_grow.rules, name).__doc__


def test_rules_has_every_form_that_axis_rule_names():
    forms = re.findall(r"\* `\(?(?:axes, )?(\w+)", lightning_grow.axis_rule.__doc__)
    assert forms == ["pointwise", "call", "contract", "Along"]
    assert {*forms} - {"call"} <= {*lightning_grow.rules.__all__}


def imported_by(code):
    """(module, name) of everything that the code imports from this library."""
    for node in ast.walk(ast.parse(code)):
        if isinstance(node, ast.ImportFrom) and node.module.startswith("lightning_grow"):
            yield from ((node.module, alias.name) for alias in node.names)


def test_the_documentation_imports_public_names_only():
    names = {item for code in re.findall(r"```python\n(.*?)```", PAGES, re.DOTALL) for item in imported_by(code)}
    assert len(names) > 5
    assert [(module, name) for module, name in names if name not in importlib.import_module(module).__all__] == []
