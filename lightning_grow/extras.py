"""Packages that only a part of the library needs."""

from collections.abc import Iterator
from contextlib import contextmanager

from lightning_grow.errors import MissingExtra


@contextmanager
def extra(name: str) -> Iterator[None]:
    """Import in here what an extra of this package brings.

    Args:
        name: Of the extra: "rl", "plot", "huggingface" or "all".

    Raises:
        MissingExtra: It is not installed; says how to.

    >>> with extra("plot"):
    ...     import no_such_package
    Traceback (most recent call last):
    lightning_grow.errors.MissingExtra: no_such_package is not installed: pip install 'lightning-grow[plot]'.
    """
    try:
        yield
    except ModuleNotFoundError as error:
        raise MissingExtra(f"{error.name} is not installed: pip install 'lightning-grow[{name}]'.") from error
