"""Print the package's log to stderr, with control characters escaped."""

from __future__ import annotations

import logging
import os
import sys
import unicodedata

# Move to the start of the line and clear it, because a progress bar may be there.
CLEAR_LINE = "\r\x1b[K"


def shown(name: object) -> str:
    r"""Make a name, or a text that holds one, safe to print in one line.

    Control characters, line and paragraph separators, marks that change the direction of writing, and bytes that are
    not valid Unicode become escapes such as ``\x1b``.
    """
    return "".join(_escape(character) for character in str(name))


def _escape(character: str) -> str:
    if character.isprintable() or unicodedata.category(character) == "Zs":  # Zs: spaces of other widths
        return character
    return character.encode("unicode_escape").decode("ascii")


class _Formatter(logging.Formatter):
    """Formats each record as one line, followed by its traceback if there is one."""

    def __init__(self, name: str, *, over_bar: bool) -> None:
        super().__init__()
        self._start = f"{CLEAR_LINE * over_bar}{shown(name)}: "

    def format(self, record: logging.LogRecord) -> str:
        text = self._start + shown(record.getMessage())
        if record.exc_info:
            lines = self.formatException(record.exc_info).splitlines()
            text = "\n".join([text, *map(shown, lines)])
        return text


def show_log(name: str = "kernel", level: int = logging.INFO) -> None:
    """Print the package's log lines to stderr after a program's name, whatever other handlers exist.

    Kaggle's image sends the log of every Python process to a file that nobody sees, and logging.basicConfig does
    nothing if the root logger already has a handler.
    """
    open_streams()
    package = logging.getLogger(__package__)
    for handler in list(package.handlers):
        package.removeHandler(handler)
    handler = logging.StreamHandler(sys.stderr)
    over_bar = bool(getattr(sys.stderr, "isatty", lambda: False)())
    handler.setFormatter(_Formatter(name, over_bar=over_bar))
    package.addHandler(handler)
    package.setLevel(level)


def open_streams() -> None:
    """Open the null device for each of stdin, stdout and stderr that was closed when the process started.

    Otherwise the next file that is opened gets its number, and printed text ends up in that file.
    """
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        try:
            os.fstat(number)
        except OSError:
            opened = os.open(os.devnull, os.O_RDWR)
            if opened != number:
                os.dup2(opened, number)
                os.close(opened)
        if getattr(sys, name) is None:
            setattr(sys, name, open(number, "r" if number == 0 else "w", closefd=False))  # noqa: SIM115
