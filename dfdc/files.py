"""Files: written whole or not at all, and described by their digest."""

from __future__ import annotations

import csv
import hashlib
import json
import os
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import chain
from pathlib import Path

from dfdc.errors import InputError


@dataclass(frozen=True)
class Entry:
    """A file of the bundle: its size in bytes and its SHA-256 as 64 hex digits."""

    size: int
    sha256: str


def describe_file(path: Path) -> Entry:
    """Size and digest of a file."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while chunk := file.read(2**20):
            digest.update(chunk)
        return Entry(file.tell(), digest.hexdigest())


@contextmanager
def drafted(path: Path) -> Iterator[Path]:
    """A file to write beside another: it takes the other's place where the block ends well, and goes where it fails.

    Its suffix is the other's, for those who choose a format by it. Its name is always the same: what a killed process
    leaves, the next one overwrites.
    """
    draft = _draft_of(path)
    try:
        yield draft
        draft.replace(path)
    finally:
        draft.unlink(missing_ok=True)


def write_json(path: Path, content: object) -> None:
    """Write a file in JSON."""
    with drafted(path) as draft:
        draft.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


def write_csv(path: Path, header: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    """Write a CSV file so that a reader at any moment sees the old one or the new one, whole.

    Raises:
        OSError: the folder cannot be written or the disk is full; the old file is left as it was.
    """
    draft = path.with_name(f".{path.name}.tmp")  # always the same: what a killed run leaves, the next one takes up
    try:
        with open(draft, "w", newline="", encoding="utf-8", errors="surrogateescape") as file:
            plain = csv.writer(file, lineterminator="\n")
            # Python's writer leaves a carriage return bare beside this line end, and readers take it for a row's end.
            quoting = csv.writer(file, lineterminator="\n", quoting=csv.QUOTE_ALL)
            for row in chain([header], rows):
                (quoting if any("\r" in str(cell) for cell in row) else plain).writerow(row)
            file.flush()
            os.fsync(file.fileno())
        os.replace(draft, path)
    except BaseException:  # a signal's SystemExit, too
        draft.unlink(missing_ok=True)
        raise


def check_out(out: Path, inputs: Iterable[Path] = ()) -> None:
    """See to it, before any work, that a file can be written, and is none of those that are read.

    Args:
        out: the file; its folder is made if absent.
        inputs: files that must stay.

    Raises:
        OSError: it cannot be written, is a folder, or is one of the inputs.
    """
    if out.is_dir():
        raise OSError(f"{out}: is a folder; name a file in it")
    if out.exists() and any(path.exists() and out.samefile(path) for path in inputs):
        raise OSError(f"{out}: is one of the clips, and would be lost; name another file")
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        _draft_of(out).touch()
        _draft_of(out).unlink()
    except OSError as error:
        raise OSError(f"{out}: cannot be written ({error.strerror}); name another file") from error


def make_folder(path: Path) -> None:
    """Make a folder for output, where it is absent.

    Raises:
        InputError: it cannot be made or written.
    """
    try:
        path.mkdir(parents=True, exist_ok=True)
        if not os.access(path, os.W_OK):
            raise PermissionError(13, "no permission to write")
    except OSError as error:
        raise InputError(f"{path}: no folder for output ({error.strerror}); name another") from error


def _draft_of(path: Path) -> Path:
    return path.with_name(f".{path.stem}.tmp{path.suffix}")
