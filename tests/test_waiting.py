"""A bar is shown on a terminal once something takes its time, and leaves nothing behind."""

import io
import threading
import time

import pytest
from rich.console import Console

from lightning_grow import waiting as module
from lightning_grow.waiting import each, waiting


@pytest.fixture
def terminal():
    return Console(file=io.StringIO(), force_terminal=True, width=60)


def ends_at(count):
    """Whether no more threads are left than there were; rich's own ends a moment after its display."""
    deadline = time.monotonic() + 10
    while threading.active_count() > count and time.monotonic() < deadline:
        time.sleep(0.01)
    return threading.active_count() == count


@pytest.mark.parametrize("total", [4, None])
def test_it_is_shown_after_a_while(terminal, monkeypatch, total):
    monkeypatch.setattr(module, "PATIENCE", 0.01)
    before = threading.active_count()
    with waiting("counting", total, terminal) as show:
        deadline = time.monotonic() + 10
        while "counting" not in terminal.file.getvalue() and time.monotonic() < deadline:
            show(2)
            time.sleep(0.01)
    assert "counting" in terminal.file.getvalue()
    assert ("50%" in terminal.file.getvalue()) == (total is not None)
    assert ends_at(before)


def test_what_is_quick_shows_nothing(terminal):
    with waiting("counting", 4, terminal) as show:
        show(2)
    assert not terminal.file.getvalue()


def test_a_file_is_no_terminal(monkeypatch):
    monkeypatch.setattr(module, "PATIENCE", 0.0)
    into = Console(file=io.StringIO())
    with waiting("counting", 4, into) as show:
        time.sleep(0.05)
        show(2)
    assert not into.file.getvalue()


def test_an_error_ends_it(terminal, monkeypatch):
    monkeypatch.setattr(module, "PATIENCE", 0.0)

    def fail():
        with waiting("counting", 4, terminal):
            time.sleep(0.05)
            raise ValueError("broken")

    before = threading.active_count()
    with pytest.raises(ValueError, match="broken"):
        fail()
    assert ends_at(before)


def test_items_come_in_order():
    assert list(each(iter("abc"), "spelling", [1, 2, 3])) == ["a", "b", "c"]
