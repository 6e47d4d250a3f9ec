"""The package as others get it: a wheel, installed away from the checkout."""

import configparser
import os
import re
import shutil
import subprocess
import sys
import textwrap
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
    names = {re.split(r"[>\[]", requirement)[0] for requirement in asked} - {"lightning-grow"}  # its own extras
    assert names == pinned | {"setuptools"}


RL = ("gymnasium", "pandas", "ta_lib", "talib", "gym_anytrading")
PLOT = ("matplotlib", "mpl_toolkits", "pylab", "PIL", "pillow")


def run_without(hidden, code, wheel, folder):
    """What a process prints, errors too, whose environment has all but these packages, and the wheel."""
    (own,) = [Path(entry) for entry in sys.path if entry.endswith("site-packages")][:1]
    for entry in own.iterdir():
        if not entry.name.startswith((*hidden, "__editable__", "lightning_grow")):
            (folder / entry.name).symlink_to(entry)
    run(sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-index", "--target", folder, wheel)
    others = [entry for entry in sys.path if entry.endswith("-packages") and entry != str(own)]
    path = os.pathsep.join([str(folder), str(Path(__file__).parent), *others])
    options = {"cwd": folder, "env": {**os.environ, "PYTHONPATH": path}, "capture_output": True, "text": True}
    done = subprocess.run([sys.executable, "-S", "-c", textwrap.dedent(code)], check=False, **options)
    return done.returncode, done.stdout + done.stderr


def test_a_run_grows_and_is_watched_without_any_extra(wheel, tmp_path):
    code = """
        from lightning.pytorch.loggers import CSVLogger
        from stacks import Stack, fit
        from lightning_grow import GrowthMonitor, GrowthSchedule

        class Logging(Stack):
            def training_step(self, batch, batch_idx):
                loss = super().training_step(batch, batch_idx)
                self.log("loss", loss)
                return loss

        watch, module = GrowthMonitor("loss", every_n_batches=1), Logging()
        fit(module, ".", GrowthSchedule([{"hidden_dims": [12]}], at=[8]), watch, logger=CSVLogger("."))
        print(module.net[0].out_features, len(watch.recoveries))
    """
    status, printed = run_without(RL + PLOT, code, wheel, tmp_path)
    assert status == 0, printed
    assert "12 1" in printed.splitlines()
    assert "No growth.png: matplotlib is not installed: pip install 'lightning-grow[plot]'." in printed


COMMAND = "import sys; from lightning_grow.app import cli; sys.argv[1:] = ['experiment=cartpole_small']; cli.main()"
PICTURE = """
    import torch
    from torch import nn
    from lightning_grow import grow
    small, large = (nn.Sequential(nn.Linear(2, n), nn.Linear(n, 1)) for n in (2, 3))
    grow(small, large, example_inputs=(torch.ones(1, 2),)).plot()
"""


@pytest.mark.parametrize(
    ("hidden", "code", "words"),
    [
        pytest.param(RL, "import lightning_grow.rl", "gymnasium.*'lightning-grow[rl]'", id="no rl"),
        pytest.param(("talib", "ta_lib"), "import lightning_grow.rl", "talib.*'lightning-grow[rl]'", id="no talib"),
        pytest.param(PLOT, PICTURE, "matplotlib.*'lightning-grow[plot]'", id="no plot"),
        pytest.param(PLOT, COMMAND, "(matplotlib|PIL).*'lightning-grow[all]'", id="a command without plot"),
        pytest.param(RL, COMMAND, "gymnasium.*'lightning-grow[rl]'", id="a command without rl"),
    ],
)
def test_what_needs_an_extra_says_which(hidden, code, words, wheel, tmp_path):
    status, printed = run_without(hidden, code, wheel, tmp_path)
    assert status == 1
    package, extra = words.split(".*")
    assert re.search(f"{package} is not installed: pip install {re.escape(extra)}", printed), printed
