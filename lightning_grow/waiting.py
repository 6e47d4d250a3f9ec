"""A progress bar for what takes longer than a moment: on a terminal, and gone when it is done."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from threading import Timer
from typing import TypeVar

from rich.console import Console
from rich.progress import Progress

PATIENCE = 2.0
"""Seconds before a bar is shown."""
T = TypeVar("T")


@contextmanager
def waiting(what: str, total: float | None = None, console: Console | None = None) -> Iterator[Callable[[float], None]]:
    """Show how far something is once it has taken two seconds.

    Args:
        what: Is going on.
        total: When it is done; None where nobody knows, and the bar only shows that it goes on.
        console: Standard error by default; nothing is shown where that is no terminal.

    Returns:
        What to call with how much is done.

    >>> with waiting("counting", 3) as show:
    ...     for number in range(3): show(number)
    """
    console = console or Console(stderr=True)
    if not console.is_terminal:
        yield lambda _: None
        return
    progress = Progress(console=console, transient=True)
    task, timer = progress.add_task(what, total=total), Timer(PATIENCE, progress.start)
    timer.daemon = True
    timer.start()
    try:
        yield lambda done: progress.update(task, completed=done)
    finally:
        timer.cancel()
        timer.join()
        progress.stop()


def each(items: Iterable[T], what: str, sizes: Sequence[float]) -> Iterator[T]:
    """Go through items of these sizes, as `waiting` shows it.

    >>> list(each("abc", "spelling", [1, 1, 1]))
    ['a', 'b', 'c']
    """
    done = 0.0
    with waiting(what, sum(sizes)) as show:
        for item, size in zip(items, sizes, strict=True):
            yield item
            done += size
            show(done)
