"""`lightning-grow-checkpoint`: look into a checkpoint of any kind, plan its growth, grow it, compare two.

What is heavy loads within the commands, so that help and completion answer at once.
"""

import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import version as installed
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer
from rich.console import Console

if TYPE_CHECKING:
    from lightning_grow.formats.models import Described
    from lightning_grow.formats.weights import Weights
    from lightning_grow.options import GrowthOptions

DIFFERS, USAGE, UNREADABLE = 1, 2, 3
"""Exit codes: refused, or different; asked for what there is not; a file that cannot be read or written."""

app = typer.Typer(name="lightning-grow-checkpoint", no_args_is_help=True, pretty_exceptions_enable=False)

File = Annotated[Path, typer.Argument(help="A file (Lightning, torch, safetensors) or a folder (Hugging Face, FSDP2).")]
Key = Annotated[str, typer.Option(help="Where in a torch file the weights are: model.state_dict.")]
Model = Annotated[str, typer.Option(help="The class that wrote the weights: module:Class. A folder knows it.")]
Set = Annotated[list[str], typer.Option("--set", help="What differs in the bigger model: hidden_dims=[256,256].")]
Was = Annotated[list[str], typer.Option(help="What the source was built with, where the file does not say: width=64.")]
Inputs = Annotated[list[str], typer.Option(help="An example input: 4x64, or 4x16:50 for whole numbers below 50.")]
Moments = Annotated[
    Literal["reset", "transfer"], typer.Option(help="Of a Lightning checkpoint: start fresh, or move the moments.")
]
Strategy = Annotated[str, typer.Option(help="What new units start as.")]
Outputs = Annotated[bool, typer.Option("--allow-output-growth", help="Outputs may have more positions.")]
NewInputs = Annotated[bool, typer.Option("--allow-input-growth", help="Inputs may have more positions.")]
Seed = Annotated[int, typer.Option(help="Of the random entries.")]
Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]


@app.callback(invoke_without_command=True)
def about(version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False) -> None:
    """Look into a checkpoint of any kind, plan its growth, grow it, compare two."""
    if version:
        print(f"lightning-grow {installed('lightning-grow')}")
        raise typer.Exit


@app.command("inspect")
def inspect_command(file: File, key: Key = "", as_json: Json = False) -> None:
    """Say what a checkpoint holds; no tensor's content is read."""
    with faults():
        from lightning_grow.formats.facts import inspect_checkpoint

        show(inspect_checkpoint(file, key), as_json)


@app.command("plan")
def plan_command(
    file: File,
    changes: Set,
    model: Model = "",
    was: Was = [],  # noqa: B006 - typer copies it
    key: Key = "",
    inputs: Inputs = [],  # noqa: B006
    strategy: Strategy = "preserve",
    outputs: Outputs = False,
    new_inputs: NewInputs = False,
    as_json: Json = False,
) -> None:
    """Say what a growth would do, and change nothing; exit code 1 where it is refused."""
    with faults():
        from lightning_grow.formats.growth import plan_file

        options = chosen(strategy, outputs, new_inputs, 0)
        plan = plan_file(*read(file, key), describe(model, was, changes, inputs), options)
        show(plan, as_json)
        if plan.refused:
            raise typer.Exit(DIFFERS)


@app.command("convert")
def convert_command(
    file: File,
    out: Annotated[Path, typer.Argument(help="Where to: .ckpt, .pt, .safetensors, or a folder for a folder.")],
    changes: Set,
    model: Model = "",
    was: Was = [],  # noqa: B006
    key: Key = "",
    inputs: Inputs = [],  # noqa: B006
    strategy: Strategy = "preserve",
    optimizer: Moments = "reset",
    outputs: Outputs = False,
    new_inputs: NewInputs = False,
    seed: Seed = 0,
    as_json: Json = False,
) -> None:
    """Grow a checkpoint into another file or folder, verified; nothing is overwritten."""
    with faults():
        from lightning_grow.formats.growth import convert_file

        options = chosen(strategy, outputs, new_inputs, seed)
        described = describe(model, was, changes, inputs)
        show(convert_file(*read(file, key), out, described, options, optimizer), as_json)


@app.command("diff")
def diff_command(one: File, other: File, key: Key = "", as_json: Json = False) -> None:
    """Say what differs between two checkpoints; exit code 1 if anything does."""
    with faults():
        from lightning_grow.formats.difference import find_difference

        difference = find_difference(one, other, key)
        show(difference, as_json)
        if not difference.is_empty:
            raise typer.Exit(DIFFERS)


@app.command("verify")
def verify_command(
    small: File,
    large: File,
    model: Model = "",
    was: Was = [],  # noqa: B006
    changes: Set = [],  # noqa: B006
    key: Key = "",
    inputs: Inputs = [],  # noqa: B006
    outputs: Outputs = False,
    new_inputs: NewInputs = False,
    as_json: Json = False,
) -> None:
    """Compare the outputs of a model and its growth; exit code 1 where they differ by more than rounding."""
    with faults():
        from lightning_grow.formats.growth import verify_files

        options = chosen("preserve", outputs, new_inputs, 0)
        described = describe(model, was, changes, inputs)
        error, limit = verify_files(*read(small, key), *read(large, key), described, options)
        found = {"max_output_error": error, "tolerance": limit, "same": error <= limit}
        words = f"Largest output difference {error:.1e}, rounding alone up to {limit:.1e}: "
        show(found if as_json else words + ("the same function." if error <= limit else "another function."), as_json)
        if not error <= limit:
            raise typer.Exit(DIFFERS)


def read(path: Path, key: str) -> "tuple[Weights, Path]":
    """The weights at a path, and the path."""
    from lightning_grow.formats.weights import read_weights

    return read_weights(path, key), path


def describe(model: str, was: list[str], changes: list[str], inputs: list[str]) -> "Described":
    """What was said of the two models."""
    from lightning_grow.formats.models import Described, parse_settings

    return Described(model, parse_settings(was), parse_settings(changes), inputs)


def chosen(strategy: str, outputs: bool, new_inputs: bool, seed: int) -> "GrowthOptions":
    """The options of a growth."""
    return {
        "strategy": strategy,
        "allow_output_growth": outputs,
        "allow_input_growth": new_inputs,
        "seed": seed,
    }


def show(found: Any, as_json: bool) -> None:
    """Print what was found: for people, or as JSON."""
    if as_json:
        print(json.dumps(found if isinstance(found, dict) else found.to_dict(), indent=2, default=str))
    else:
        Console().print(found)


@contextmanager
def faults() -> Iterator[None]:
    """End with a message and an exit code where the library raises one of its own errors."""
    from lightning_grow.errors import CheckpointError, GrowError, RefusedGrowth

    try:
        yield
    except GrowError as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
        codes = ((RefusedGrowth, DIFFERS), (CheckpointError, UNREADABLE))
        raise typer.Exit(next((code for kind, code in codes if isinstance(error, kind)), USAGE)) from error


def main() -> None:
    """Run the command line."""
    app()


if __name__ == "__main__":
    main()
