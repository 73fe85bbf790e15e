"""Shared parts of the command lines of all tools: argument types, common flags, and error messages."""

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
DEVICE_HELP = "run the models on this device (default: auto, which uses CUDA if it works and otherwise the CPU)"


def positive(text: str) -> int:
    """Parse a whole number from 1 up."""
    return _whole(text, 1)


def several(text: str) -> int:
    """Parse a whole number from 2 up."""
    return _whole(text, 2)


def even(text: str) -> int:
    """Parse an even whole number from 2 up."""
    number = _whole(text, 2)
    if number % 2:
        raise argparse.ArgumentTypeError(f"{text!r} is not allowed; give an even number")
    return number


def natural(text: str) -> int:
    """Parse a whole number from 0 up."""
    return _whole(text, 0)


def _whole(text: str, least: int, most: int | None = None) -> int:
    if not text.isdecimal() or int(text) < least or (most is not None and int(text) > most):
        allowed = f"from {least} up" if most is None else f"from {least} to {most}"
        raise argparse.ArgumentTypeError(f"{text!r} is not allowed; give a whole number {allowed}")
    return int(text)


def above_zero(text: str) -> float:
    """Parse a finite number above 0."""
    try:
        number = float(text)
    except ValueError:
        number = 0.0
    if not 0 < number < math.inf:
        raise argparse.ArgumentTypeError(f"{text!r} is not allowed; give a number above 0")
    return number


def input_side(text: str) -> int:
    """Parse the side length in pixels of a model's input, in the range that `ModelSpec` allows."""
    return _whole(text, 32, 1024)


def crop_side(text: str) -> int:
    """Parse the side length in pixels of a crop, in the range that `CropGeometry` allows."""
    return _whole(text, 16, 1024)


def png(text: str) -> Path:
    """Parse the path of a file that ends in .png."""
    if Path(text).suffix.lower() != ".png":
        raise argparse.ArgumentTypeError(f"{text!r} is not allowed; name a file that ends in .png")
    return Path(text)


def share(text: str) -> float:
    """Parse a number from 0 to 1."""
    try:
        number = float(text)
    except ValueError:
        number = -1.0
    if not 0 <= number <= 1:  # also rejects NaN
        raise argparse.ArgumentTypeError(f"{text!r} is not allowed; give a number from 0 to 1")
    return number


def named_number(text: str, *, wanted: str) -> tuple[str, float]:
    """Parse a name and a number, such as colour=0.

    Args:
        text: the value on the command line.
        wanted: what to give instead, with an example, for the error.
    """
    name, _, number = text.rpartition("=")
    try:
        return name, float(number)
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"{text!r} is not allowed; give {wanted}") from error


def family_share(text: str) -> tuple[str, float]:
    """Parse a family's name and its share, such as dfdc=0.4."""
    return named_number(text, wanted="a family and its share, such as dfdc=0.4")


def make_parser(description: str | None) -> argparse.ArgumentParser:
    """Make a parser that shows a tool's module docstring unchanged."""
    return argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)


def add_device(parser: argparse.ArgumentParser) -> None:
    """Add the flag --device."""
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto", help=DEVICE_HELP)


def check_outputs(outputs: Iterable[Path | None], *, inputs: Iterable[Path] = ()) -> None:
    """Check, before any work, that output files can be written and that none of them is an input.

    Args:
        outputs: files to write; their folders are created if they do not exist. None is an output that is not wanted.
        inputs: files that must not be overwritten.

    Raises:
        InputError: an output cannot be written, is a folder, or is an input.
    """
    inputs = list(inputs)
    for output in outputs:
        if output is not None:
            try:
                check_out(output, inputs)
            except OSError as error:
                raise InputError(str(error)) from error


def tool(main: Callable[..., int | None]) -> Callable[..., int]:
    """Decorate a tool's `main` so that a user's mistake prints `tool: message` to stderr and returns exit status 1.

    Only `DfdcError` is caught. Every other exception is a bug and keeps its traceback.

    Args:
        main: function that takes the command-line arguments, or None for those of the process, and returns the exit
            status, or None for 0.
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
    """End the process with the exit status of a tool's `main`; Ctrl-C prints one line instead of a traceback."""
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        print(f"{Path(sys.argv[0]).stem}: stopped", file=sys.stderr)
        # Let the signal itself end the process, so that a shell loop around the tool also ends.
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        os.kill(os.getpid(), signal.SIGINT)
