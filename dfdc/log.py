"""What the package says of its work -> stderr."""

from __future__ import annotations

import logging
import sys


def show_log(name: str = "kernel", level: int = logging.INFO) -> None:
    """Print the package's log lines after a program's name, whatever else logging was told to do with them.

    Kaggle's image sends the log of every Python process to a file that nobody sees, and logging.basicConfig leaves a
    log alone that goes somewhere already.
    """
    package = logging.getLogger(__package__)
    for handler in list(package.handlers):
        package.removeHandler(handler)
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(logging.Formatter(f"{name}: %(message)s"))
    package.addHandler(handler)
    package.setLevel(level)
