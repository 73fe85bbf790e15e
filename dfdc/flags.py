"""What the command lines of all tools share: checked numbers, and one place that turns errors into messages."""

from __future__ import annotations

import argparse
import functools
import math
import os
import signal
import sys
from collections.abc import Callable, Iterable
from pathlib import Path

from dfdc.errors import DfdcError, InputError
from dfdc.files import check_out
from dfdc.log import shown

COMPILE_HELP = "compile the model for faster CUDA steps (needs a C compiler; the first step takes a minute or more)"
DEVICE_HELP = "run the models on this device (default: auto, which is CUDA where it works and else the CPU)"


def positive(text: str) -> int:
    """A whole number from 1 up."""
    return _whole(text, 1)


def several(text: str) -> int:
    """A whole number from 2 up."""
    return _whole(text, 2)


def even(text: str) -> int:
    """An even whole number from 2 up."""
    number = _whole(text, 2)
    if number % 2:
        raise argparse.ArgumentTypeError(f"{text!r} is not allowed; give an even number")
    return number


def natural(text: str) -> int:
    """A whole number from 0 up."""
    return _whole(text, 0)


def _whole(text: str, least: int, most: int | None = None) -> int:
    if not text.isdecimal() or int(text) < least or (most is not None and int(text) > most):
        allowed = f"from {least} up" if most is None else f"from {least} to {most}"
        raise argparse.ArgumentTypeError(f"{text!r} is not allowed; give a whole number {allowed}")
    return int(text)


def above_zero(text: str) -> float:
    """A finite number above 0."""
    try:
        number = float(text)
    except ValueError:
        number = 0.0
    if not 0 < number < math.inf:
        raise argparse.ArgumentTypeError(f"{text!r} is not allowed; give a number above 0")
    return number


def input_side(text: str) -> int:
    """The side in pixels of a model's input, as `ModelSpec` allows it."""
    return _whole(text, 32, 1024)


def crop_side(text: str) -> int:
    """The side in pixels of a crop, as `CropGeometry` allows it."""
    return _whole(text, 16, 1024)


def png(text: str) -> Path:
    """A file that ends in .png."""
    if Path(text).suffix.lower() != ".png":
        raise argparse.ArgumentTypeError(f"{text!r} is not allowed; name a file that ends in .png")
    return Path(text)


def share(text: str) -> float:
    """A number from 0 to 1."""
    try:
        number = float(text)
    except ValueError:
        number = -1.0
    if not 0 <= number <= 1:  # not a number, either
        raise argparse.ArgumentTypeError(f"{text!r} is not allowed; give a number from 0 to 1")
    return number


def make_parser(description: str | None) -> argparse.ArgumentParser:
    """A parser that shows a tool's module docstring as it is written."""
    return argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)


def add_device(parser: argparse.ArgumentParser) -> None:
    """Add the flag --device."""
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto", help=DEVICE_HELP)


def check_outputs(outputs: Iterable[Path | None], *, inputs: Iterable[Path] = ()) -> None:
    """Make sure before any work that output files can be written and that none of them is an input.

    Args:
        outputs: files; their folders are made if absent. None stands for an output that was not asked for.
        inputs: files that must stay.

    Raises:
        InputError: one cannot be written, is a folder, or is an input.
    """
    inputs = list(inputs)
    for output in outputs:
        if output is not None:
            try:
                check_out(output, inputs)
            except OSError as error:
                raise InputError(str(error)) from error


def make_folder(folder: Path) -> Path:
    """Make a folder for outputs where it is absent, before any work.

    Raises:
        InputError: it cannot be made, or is a file.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"{folder}: cannot be made a folder ({error.strerror}); name another one") from error
    return folder


def tool(main: Callable[..., int | None]) -> Callable[..., int]:
    """Make a tool's command line: what the user did wrong becomes `tool: message` on stderr and exit status 1.

    Only `DfdcError` is caught. Every other exception is a bug and keeps its traceback.

    Args:
        main: takes the arguments of the command line, or None for those of the process; returns the exit status, or
            None for 0.
    """
    name = Path(main.__code__.co_filename).stem

    @functools.wraps(main)
    def run(argv: list[str] | None = None) -> int:
        try:
            return main(argv) or 0
        except DfdcError as error:
            print(f"{name}: {shown(error)}", file=sys.stderr)
            return 1

    return run


def run_tool(main: Callable[[], int]) -> None:
    """End the process with the exit status of a tool's `main`; Ctrl-C ends it with a word instead of a traceback."""
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        print(f"{Path(sys.argv[0]).stem}: stopped", file=sys.stderr)
        # End by the signal itself, so that a shell loop around the tool ends, too.
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        os.kill(os.getpid(), signal.SIGINT)
