"""The package as others get it: a wheel, installed away from the checkout."""

import configparser
import os
import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

import lightning_grow

ROOT = Path(__file__).parent.parent


def run(*command, **options):
    """Run a program to its end and return what it printed."""
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True, **options)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """A wheel, built in a copy of what it is built from: a `build/` left in the checkout would end up in it."""
    folder = tmp_path_factory.mktemp("wheel")
    for name in ("lightning_grow", "conf"):
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("setup.cfg", "pyproject.toml", "LICENSE", "README.md"):
        shutil.copy(ROOT / name, folder)
    run(sys.executable, "-m", "build", "--wheel", "--no-isolation", folder)
    return next((folder / "dist").glob("*.whl"))


def test_the_wheel_holds_the_library_and_its_configuration(wheel):
    library = {path.relative_to(ROOT) for path in (ROOT / "lightning_grow").rglob("*.py")}
    conf = {"lightning_grow" / path.relative_to(ROOT) for path in (ROOT / "conf").rglob("*.yaml")}
    expected = {*map(str, library | conf), "lightning_grow/py.typed", "lightning_grow/conf/__init__.py"}
    names = zipfile.ZipFile(wheel).namelist()
    assert {name for name in names if ".dist-info/" not in name} == expected
    assert [name for name in names if name.endswith("licenses/LICENSE")]
    assert f"-{lightning_grow.__version__}-" in wheel.name


def test_the_wheel_works_away_from_the_checkout(wheel, tmp_path):
    run(sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-index", "--target", tmp_path, wheel)
    # -S leaves out the editable install of this environment; its other packages come by the path.
    path = os.pathsep.join([str(tmp_path), *(entry for entry in sys.path if entry.endswith("-packages"))])
    options = {"cwd": "/", "env": {**os.environ, "PYTHONPATH": path}}
    where = "import lightning_grow.conf; print(lightning_grow.conf.__file__)"
    assert run(sys.executable, "-S", "-c", where, **options).strip() == str(
        tmp_path / "lightning_grow/conf/__init__.py"
    )
    printed = run(sys.executable, "-S", "-m", "lightning_grow", "--cfg", "job", "experiment=market_large", **options)
    assert "hidden_dims:\n  - 256\n  - 256\n  - 128" in printed


def test_the_constraints_pin_what_the_package_asks_for():
    setup = configparser.ConfigParser()
    setup.read(ROOT / "setup.cfg")
    asked = "\n".join([setup["options"]["install_requires"], *setup["options.extras_require"].values()]).split()
    pinned = {line.split("==")[0] for line in (ROOT / "constraints.txt").read_text().splitlines() if line[0] != "#"}
    assert {re.split(r"[>\[]", requirement)[0] for requirement in asked} == pinned | {"setuptools"}
