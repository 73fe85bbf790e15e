"""What the tools' command lines share: numbers that are checked before anything is read, and an end by Ctrl-C."""

from __future__ import annotations

import argparse
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path

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


def run_tool(main: Callable[[], int]) -> None:
    """End the process with what a tool's `main` returns, or with a word where Ctrl-C ends it."""
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        print(f"{Path(sys.argv[0]).stem}: stopped", file=sys.stderr)
        # By the signal itself, so that a shell's loop around the tool ends, too.
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        os.kill(os.getpid(), signal.SIGINT)
