"""Types of the tools' flags: numbers that are checked before anything is read."""

from __future__ import annotations

import argparse

COMPILE_HELP = "the net, for faster steps on CUDA: takes a minute or more first, and a C compiler"


def positive(text: str) -> int:
    """A whole number from 1 up."""
    return _whole(text, 1)


def several(text: str) -> int:
    """A whole number from 2 up."""
    return _whole(text, 2)


def natural(text: str) -> int:
    """A whole number from 0 up."""
    return _whole(text, 0)


def _whole(text: str, least: int) -> int:
    if not text.isdecimal() or int(text) < least:
        raise argparse.ArgumentTypeError(f"is {text}; allowed are whole numbers from {least} up")
    return int(text)
