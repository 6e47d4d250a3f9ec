"""The documentation builds without a warning, every block of code in it runs, and what it links to is there."""

import io
import re
import shutil
import subprocess
import sys
import threading
from contextlib import redirect_stdout
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import torch
from torch import nn

from lightning_grow.strategies import base
from lightning_grow.trace import table

ROOT = Path(__file__).parents[1]
HOMES = [
    "https://github.com/lightning-grow/lightning_grow/blob/main/",
    "https://raw.githubusercontent.com/lightning-grow/lightning_grow/main/",
]  # where the README's links lead
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]


def code_of(page):
    return re.findall(r"^```python\n(.*?)^```", page.read_text(), re.DOTALL | re.MULTILINE)


WITH_CODE = [page for page in PAGES if code_of(page)]


def as_a_user_has_them(folder):
    """What the README's blocks and those on stages take for granted: a module of one's own, and its checkpoint."""
    from stacks import Stack, train_small

    class BigModel(Stack):
        def train_dataloader(self):
            return torch.utils.data.DataLoader(torch.utils.data.TensorDataset(torch.ones(8, 4), torch.ones(8, 2)), 4)

    train_small(folder, BigModel, hidden_dims=[128, 128, 64])
    small, large = (nn.Sequential(nn.Linear(3, n), nn.Tanh(), nn.Linear(n, 2)) for n in (4, 6))
    return {"BigModel": BigModel, "small": small, "large": large, "x": torch.ones(5, 3)}


@pytest.mark.filterwarnings("ignore::UserWarning")  # of Lightning, about workers and short epochs
@pytest.mark.parametrize("page", WITH_CODE, ids=[page.stem for page in WITH_CODE])
def test_every_block_of_code_runs(page, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(base, "_REGISTRY", dict(base._REGISTRY))  # what a page registers is gone after it
    monkeypatch.setattr(table, "RULES", dict(table.RULES))
    names = {"__name__": "__docs__", **as_a_user_has_them(tmp_path)}
    for number, block in enumerate(code_of(page), start=1):
        exec(compile(block, f"{page.name}, block {number}", "exec"), names)


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """The documentation as it is published."""
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(folder)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return folder


def test_the_documentation_builds_without_a_warning(site):
    assert "Resume a run with a bigger network" in (site / "api" / "index.html").read_text()
    assert len(list(site.glob("*/index.html"))) == len(PAGES) - 2  # but for the README and the first page


BROWSER = shutil.which("chromium") or shutil.which("google-chrome")
OFFLINE = [
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-sync",
]


@pytest.mark.skipif(BROWSER is None, reason="there is no chromium; CI installs one")
def test_a_page_opens_in_a_browser(site, tmp_path):
    with ThreadingHTTPServer(("127.0.0.1", 0), partial(SimpleHTTPRequestHandler, directory=site)) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        page = f"http://127.0.0.1:{server.server_port}/index.html"
        command = [BROWSER, *OFFLINE, f"--user-data-dir={tmp_path}", "--virtual-time-budget=5000", "--dump-dom", page]
        shown = subprocess.run(command, capture_output=True, text=True, check=True, timeout=120).stdout
        server.shutdown()
    assert re.search(r'<html[^>]* class="[^"]*\bjs\b', shown)  # the theme's script has run
    assert (
        shown.count("md-code__button") == len(re.findall(r"^```", (ROOT / "docs" / "index.md").read_text(), re.M)) // 2
    )
    assert "<h1" in shown


@pytest.mark.parametrize("page", PAGES, ids=[page.stem for page in PAGES])
def test_what_a_page_links_to_is_there(page):
    links = re.findall(r"\]\(([^)#]+)(?:#[^)]*)?\)", page.read_text())
    ours = [ROOT / link.removeprefix(home) for link in links for home in HOMES if link.startswith(home)]
    ours += [page.parent / link for link in links if "://" not in link]
    assert ours or page.name != "README.md"
    assert not [path for path in ours if not path.exists()]
    assert page.name != "README.md" or all("://" in link for link in links), "the README is read elsewhere too"


def test_the_readme_is_a_page():
    assert len((ROOT / "README.md").read_text().splitlines()) <= 150


def test_the_messages_of_the_troubleshooting_are_the_librarys_own():
    page, printed = ROOT / "docs" / "practice.md", io.StringIO()
    with redirect_stdout(printed):
        exec(code_of(page)[0], {"__name__": "__docs__"})
    quoted = re.findall(r"^\| `(.+?)` \|", page.read_text(), re.MULTILINE)
    sources = "".join(path.read_text() for path in (ROOT / "lightning_grow").rglob("*.py"))
    sources = re.sub(r'"\s*\n\s*f?"', "", sources)  # a string on two lines
    assert len(quoted) > 10
    assert not [
        part for message in quoted for part in message.split(" ... ") if part not in sources + printed.getvalue()
    ]
