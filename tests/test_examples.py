"""Every example runs as its text says: the small network, then the bigger one from its checkpoint."""

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

FOLDER = Path(__file__).parents[1] / "examples"
COMMAND = re.compile(r"^ *python (examples/\S+(?:.*\\\n)*.*)", re.MULTILINE)


def run(tmp_path, *arguments):
    env = os.environ | {"PYTHONWARNINGS": "ignore", "COLUMNS": "200"}
    command = [sys.executable, *arguments]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False, env=env)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.mark.parametrize("name", ["image_classifier", "language_model", "lightning_cli", "hydra_app"])
def test_an_example_runs_as_it_says(name, tmp_path):
    (tmp_path / "examples").symlink_to(FOLDER)
    (tmp_path / "README.md").write_bytes((FOLDER.parent / "README.md").read_bytes())
    small, large = (
        shlex.split(text.replace("\\\n", "")) for text in COMMAND.findall((FOLDER / f"{name}.py").read_text())
    )
    assert "function-preserving" not in run(tmp_path, *small)
    assert "function-preserving" in run(tmp_path, *large)


def test_the_agent_learns_and_grows_on_an_environment_of_its_own(tmp_path):
    printed = run(tmp_path, str(FOLDER / "own_environment.py"))
    small, large = map(float, re.findall(r"(?:a return of|from there on:) (-?[\d.]+)", printed))
    assert "function-preserving" in printed
    assert large > 0.5  # at random it is below 0
    assert large >= small - 0.1


def test_the_environment_is_found_by_the_command(tmp_path):
    text = (FOLDER / "own_environment.py").read_text()
    (tmp_path / "own_environment.py").write_text(text)
    first = shlex.split(re.search(r"^ *lightning-grow (.*)$", text, re.MULTILINE)[1])
    assert "episode_return" in run(tmp_path, "-m", "lightning_grow", *first)
