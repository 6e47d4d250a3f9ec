"""What a user may ask of a growth: one set of options, the same at every door, checked there once."""

import difflib
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from numbers import Integral, Real
from typing import Any, TypedDict

from lightning_grow.errors import WrongSetting
from lightning_grow.strategies import Strategy, find_strategy

# The types are evaluated, not strings: LightningCLI and typing.get_type_hints read them.


class OptionsBesideStrategy(TypedDict, total=False):
    """All of `GrowthOptions` but the strategy, for a door that takes it as its first argument; see there."""

    example_inputs: Any
    forward: Callable[..., Any] | None
    rename: Mapping[str, str] | None
    allow_input_growth: bool
    allow_output_growth: bool
    allow_attribute_changes: bool
    drop_inputs: Sequence[str]
    new_action_prob: float | None
    new_log_std: float | None
    verify: bool
    tolerance: float | None
    seed: int


class GrowthOptions(OptionsBesideStrategy, total=False):
    """The options of a growth, all keyword arguments of every function and callback that grows.

    Args:
        strategy: What new units start as: a name of `list_strategies`, or a `Strategy`; "preserve" by default.
        example_inputs: What the modules are traced and compared on: the positional arguments of `forward` (a tuple or
            a list) or its keyword arguments (a dict). Each module's own `example_input_array` when None, the default;
            in a Trainer, without that, what forward takes of the first batch.
        forward: A callable `(module, *inputs)` to trace and compare; the module's own forward when None, the default.
        rename: Target prefix -> source prefix, for tensors whose names differ (`{"body": "net"}`: what is now `body`
            was `net`). Names are matched in order where it says nothing, as by default.
        allow_input_growth: Whether inputs may have more positions; new ones are read with zeros. False by default.
        allow_output_growth: Whether outputs may have more positions; the old ones are kept. False by default.
        allow_attribute_changes: Whether module attributes (a norm's eps) may change where nothing else keeps the
            function. False by default. In a checkpoint they are kept under our key, and set again on every resume.
        drop_inputs: Names (of the modules' `input_names`) that the target may lack, or patterns of them ("rsi*"); the
            report then has the measured change of the outputs. None of them by default.
        new_action_prob: The total probability that new discrete actions begin with, in (0, 1), in the mean over the
            example inputs; the report has the KL divergence. The output that grows must be logits. As the target
            initialises them when None, the default.
        new_log_std: What new entries of a Gaussian policy's log_std begin with, a finite number; forward must return
            it. As the target initialises them when None, the default.
        verify: Whether source and target are run on the example inputs and compared. True by default.
        tolerance: The largest relative difference of outputs that a function-preserving strategy may make, 0 or more;
            ten times the model's own rounding when None, the default.
        seed: Of the random entries, a whole number; 0 by default.
    """

    strategy: str | Strategy


OptionsBesideStrategy.__doc__ = GrowthOptions.__doc__  # what the help of LightningCLI shows of them


@dataclass(frozen=True)
class Options:
    """The options of one growth, all there and all checked."""

    strategy: Strategy
    example_inputs: Any = None
    forward: Callable[..., Any] | None = None
    rename: Mapping[str, str] | None = None
    allow_input_growth: bool = False
    allow_output_growth: bool = False
    allow_attribute_changes: bool = False
    drop_inputs: Sequence[str] = ()
    new_action_prob: float | None = None
    new_log_std: float | None = None
    verify: bool = True
    tolerance: float | None = None
    seed: int = 0

    @property
    def starts_outputs(self) -> bool:
        """Whether new outputs begin with anything else than the target's own values."""
        return self.new_action_prob is not None or self.new_log_std is not None


NAMES = tuple(field.name for field in fields(Options))


def check_options(options: Mapping[str, Any], door: str, *own: str) -> Options:
    """Return the options of a call, with defaults for those that are not given.

    Args:
        options: As given.
        door: What was called, for the error.
        *own: Its own parameters, which an unknown name may have meant.

    Returns:
        The options.

    Raises:
        TypeError: There is no such option.
        WrongSetting: An option has a value that nothing can be made of.
        UnknownStrategy: No strategy has that name.

    >>> check_options({"sed": 1}, "grow")
    Traceback (most recent call last):
    TypeError: grow has no option 'sed'. Did you mean 'seed'? It takes: strategy, example_inputs, ...
    >>> check_options({"drop_inputs": "rsi"}, "grow")
    Traceback (most recent call last):
    lightning_grow.errors.WrongSetting: Expected drop_inputs to be a list of names, but got 'rsi'.
    """
    for name in options:
        if name not in NAMES:
            raise TypeError(_say_unknown(name, door, [*own, *NAMES]))
    for name, (expected, fits) in _EXPECTED.items():
        if name in options and not fits(options[name]):
            raise WrongSetting(f"Expected {name} to be {expected}, but got {options[name]!r}.")
    given = {name: _plain(value) for name, value in options.items()}
    return Options(**{**given, "strategy": find_strategy(options.get("strategy", "preserve"))})


def _say_unknown(name: str, door: str, known: Sequence[str]) -> str:
    near = difflib.get_close_matches(name, known, n=1)
    hint = f" Did you mean {near[0]!r}?" if near else ""
    return f"{door} has no option {name!r}.{hint} It takes: {', '.join(known)}."


def _plain(value: Any) -> Any:
    """A configuration's list, dict or number as Python's own; what a list holds may be tensors, and stays as it is."""
    if isinstance(value, Mapping):
        return dict(value)
    if isinstance(value, Integral) and not isinstance(value, bool):
        return int(value)
    return tuple(value) if isinstance(value, Sequence) and not isinstance(value, str | tuple) else value


def _is_number(value: Any, kind: type = Real) -> bool:
    return isinstance(value, kind) and not isinstance(value, bool)


def _is_flag(value: Any) -> bool:
    return isinstance(value, bool)


def _are_names(values: Any) -> bool:
    return (
        not isinstance(values, str) and isinstance(values, Sequence) and all(isinstance(item, str) for item in values)
    )


def _is_renaming(value: Any) -> bool:
    return isinstance(value, Mapping) and _are_names([*value.keys(), *value.values()])


def _or_none(fits: Callable[[Any], bool]) -> Callable[[Any], bool]:
    return lambda value: value is None or fits(value)


_EXPECTED: Mapping[str, tuple[str, Callable[[Any], bool]]] = {
    "strategy": ("a name or an instance of a Strategy", lambda value: isinstance(value, str | Strategy)),
    "forward": ("a callable (module, *inputs) or None", _or_none(callable)),
    "rename": ("a dict of target prefix -> source prefix, or None", _or_none(_is_renaming)),
    "allow_input_growth": ("True or False", _is_flag),
    "allow_output_growth": ("True or False", _is_flag),
    "allow_attribute_changes": ("True or False", _is_flag),
    "drop_inputs": ("a list of names", _are_names),
    "new_action_prob": ("in (0, 1) or None", _or_none(lambda value: _is_number(value) and 0 < value < 1)),
    "new_log_std": ("a finite number or None", _or_none(lambda value: _is_number(value) and math.isfinite(value))),
    "verify": ("True or False", _is_flag),
    "tolerance": ("a number of 0 or more, or None", _or_none(lambda value: _is_number(value) and value >= 0)),
    "seed": ("a whole number", lambda value: _is_number(value, Integral)),
}
