"""What the library raises: one root, and a child for each kind of fault."""


class GrowError(Exception):
    """Root of every error that lightning_grow raises on purpose."""


_CONSEQUENCES = 3


class RefusedGrowth(GrowError, ValueError):
    """The growth cannot keep the function, or has no meaning; nothing was changed.

    The message is the first reason, then at most three others, and how many there are besides.

    Args:
        refused: Every reason, the cause first, each a sentence that names the place and a way out.

    >>> print(RefusedGrowth(["the cause.", *(f"consequence {number}." for number in range(5))]))
    the cause.
    In the way too, or because of that:
      - consequence 0.
      - consequence 1.
      - consequence 2.
      and 2 more (in the error's `refused`).
    """

    def __init__(self, refused: str | list[str] | tuple[str, ...]) -> None:
        self.refused = [refused] if isinstance(refused, str) else list(refused)
        first, *others = self.refused
        more = len(others) - _CONSEQUENCES
        lines = ["In the way too, or because of that:"] if others else []
        lines += [f"  - {reason}" for reason in others[:_CONSEQUENCES]]
        lines += [f"  and {more} more (in the error's `refused`)."] if more > 0 else []
        super().__init__("\n".join([first, *lines]))


class CheckpointError(GrowError, RuntimeError):
    """A checkpoint file cannot be read, holds no weights, or would need code to load."""


class MissingCheckpoint(CheckpointError, FileNotFoundError):
    """There is no file at the path of a checkpoint; a FileNotFoundError, as Lightning raises it."""


class WrongSetting(GrowError, ValueError):
    """A setting has a value that nothing can be made of, or does not fit another."""


class NotFinite(GrowError, ArithmeticError):
    """A number of a run is NaN or infinite: the run ends before it is learnt from, or saved."""


class MissingExtra(GrowError, ImportError):
    """A package is not installed that only a part of the library needs."""


class UnknownStrategy(GrowError, LookupError):
    """No strategy is registered under that name."""


class BrokenInvariant(GrowError, AssertionError):
    """What the library takes for certain does not hold: a fault of its own, found before anything was changed.

    Args:
        where: What was being done, and to what.
        found: What does not hold.
    """

    def __init__(self, where: str, found: str) -> None:
        super().__init__(
            f"{where}: {found}. This is a fault of lightning_grow; nothing was changed. Report it with this message, "
            "both modules' code and the versions of torch and lightning_grow."
        )
