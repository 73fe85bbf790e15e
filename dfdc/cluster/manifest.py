"""The clips of a job: listed from a folder or read from a manifest as a stream, checked, and frozen beside the results.

A manifest has one clip a line: its path relative to the manifest's folder, or its URL in a store. It is a .txt file, or
a .csv file with the column path. It is read twice and never held: once to find its mistakes before anything is written,
and once to copy it to the results in pieces of `PIECE_LINES`, which the nodes read. A clip's number is its line there.

Manifests and names in a store come from other people. A name must not make a node read another file of its disk, and
must not be a second spelling of another clip's name, which would get two rows: see `_find_fault`.
"""

from __future__ import annotations

import csv
import hashlib
import re
import tempfile
from array import array
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import islice

import numpy as np

from dfdc.cluster.places import Place, resolve
from dfdc.errors import InputError
from dfdc.log import shown
from dfdc.run.inputs import SUFFIXES

MANIFESTS = (".txt", ".csv")
COLUMN = "path"
PIECES = "job"
PIECE_LINES = 10_000
# An error names so many lines.
NAMED_LINES = 5
MAX_LINE_BYTES = 4096
# A part of a path that is empty, "." or "..".
EMPTY_PART = re.compile(r"(?:^|[/\\])\.{0,2}(?:[/\\]|$)")
ABSOLUTE = re.compile(r"[/\\]|[A-Za-z]:[/\\]|(?:file|local)://", re.IGNORECASE)


@dataclass(frozen=True)
class Frozen:
    """The clips of a job as they stand beside its results.

    Attributes:
        base: folder to which the lines are relative.
        n_clips: number of lines.
        sha256: of all lines, as 64 hex digits.
    """

    base: str
    n_clips: int
    sha256: str

    @property
    def n_pieces(self) -> int:
        return -(-self.n_clips // PIECE_LINES)


def piece_name(number: int) -> str:
    """The name of a piece beside the results."""
    return f"{PIECES}/clips-{number:06d}.txt"


def read_piece(results: Place, number: int) -> list[str]:
    """The lines of a piece."""
    return results.read(piece_name(number)).decode().splitlines()


def open_source(source: str) -> tuple[str, Callable[[], Iterator[str]]]:
    """See what the clips of a job are.

    Args:
        source: a folder, or a manifest.

    Returns:
        The folder to which the names are relative, and a function that reads the names from the beginning.

    Raises:
        InputError: it is neither, it cannot be read, or it has lines that cannot be used.
    """
    if not source.lower().endswith(MANIFESTS):
        place = Place(source)
        place.check_readable()
        return place.url, lambda: _list_clips(place)
    folder, _, name = source.rpartition("/")
    place = Place(folder or ".")
    _check(source, place, name)
    return place.url, lambda: (line for _, line, _ in _read_lines(source, place, name))


def digest(names: Iterable[str]) -> tuple[int, str]:
    """The number and the SHA-256 of names, as `Frozen` states them."""
    total, n_clips = hashlib.sha256(), 0
    for name in names:
        total.update(name.encode() + b"\n")
        n_clips += 1
    return n_clips, total.hexdigest()


def freeze(source: str, base: str, names: Iterable[str], results: Place) -> Frozen:
    """Copy the names of a job's clips to its results, in pieces; all names are checked before the first is written.

    Raises:
        InputError: there is none, or one cannot be used.
    """
    total, n_clips = hashlib.sha256(), 0
    with tempfile.TemporaryFile(prefix="dfdc-") as draft:
        for name in names:
            if fault := _find_fault(base, name):
                raise InputError(f"{source}: the clip {name!r} {fault}; rename it")
            line = name.encode() + b"\n"
            total.update(line)
            draft.write(line)
            n_clips += 1
        if not n_clips:
            raise InputError(f"{source}: holds no clip (looked for {', '.join(sorted(SUFFIXES))})")
        frozen = Frozen(base, n_clips, total.hexdigest())
        draft.seek(0)
        for number in range(frozen.n_pieces):
            results.write(piece_name(number), b"".join(islice(draft, PIECE_LINES)))
    return frozen


def _list_clips(place: Place) -> Iterator[str]:
    for name in place.walk():
        if any(name.lower().endswith(suffix) for suffix in SUFFIXES):
            yield name


def _find_fault(base: str, name: str) -> str:
    """Why a name cannot be used; empty if it can."""
    if not name.strip():
        return "is blank"
    if shown(name) != name:
        return "has control characters, or bytes that are not UTF-8"
    if len(name.encode()) > MAX_LINE_BYTES:
        return f"has more than {MAX_LINE_BYTES} bytes"
    if ABSOLUTE.match(name):
        return "is absolute, and allowed are paths below the manifest's folder, and URLs of a store"
    if "::" in name and "://" in resolve(base, name):
        return "has '::', by which fsspec chains file systems"
    path = re.split(r"[?#]", name.partition("://")[2])[0] if "://" in name else name
    if EMPTY_PART.search(path):
        return "has a part that is empty, '.' or '..'"
    return ""


def _read_lines(source: str, place: Place, name: str) -> Iterator[tuple[int, str, str]]:
    """The number of each line, from 1, its clip, and why it cannot be used, which is mostly empty."""
    column: int | None = None
    with place.open(name) as file:
        for number, raw in enumerate(file, 1):
            text = raw.decode("utf-8-sig" if number == 1 else "utf-8", errors="replace").rstrip("\r\n")
            fault = "is not UTF-8" if "\ufffd" in text else ""
            if name.lower().endswith(".csv"):
                cells = next(csv.reader([text]), []) if text else []
                if column is None:
                    if COLUMN not in cells:
                        raise InputError(f"{source}: its first line has the columns {cells}; it needs {COLUMN!r}")
                    column, n_columns = cells.index(COLUMN), len(cells)
                    continue
                if len(cells) != n_columns and text:
                    fault = fault or f"has {len(cells)} cells instead of {n_columns}"
                text = cells[column] if len(cells) > column else ""
            yield number, text, fault or _find_fault(place.url, text)


def _check(source: str, place: Place, name: str) -> None:
    """Refuse a manifest with lines that cannot be used. Digests of 16 bytes a line are held, to find duplicates."""
    faults: list[str] = []
    n_faults, digests, numbers = 0, array("Q"), array("Q")
    for number, text, fault in _read_lines(source, place, name):
        if fault:
            n_faults += 1
            faults += [f"line {number} {fault}"] * (len(faults) < NAMED_LINES)
        else:
            url = resolve(place.url, text)  # a relative path and a URL may name the same clip
            digests.frombytes(hashlib.blake2b(url.encode(), digest_size=16).digest())
            numbers.append(number)
    if faults:
        more = f" and {n_faults - len(faults)} more" if n_faults > len(faults) else ""
        raise InputError(f"{source}: {', '.join(faults)}{more}; correct or remove these lines")
    if not numbers:
        raise InputError(f"{source}: names no clip; it needs one path or URL a line")
    halves = np.frombuffer(digests, np.uint64).reshape(-1, 2)
    order = np.lexsort((halves[:, 1], halves[:, 0]))  # stable: equal lines keep their order
    twins = np.flatnonzero((halves[order[1:]] == halves[order[:-1]]).all(1))
    if len(twins):
        named = sorted((numbers[order[i + 1]], numbers[order[i]]) for i in twins)[:NAMED_LINES]
        told = ", ".join(f"line {later} repeats line {first}" for later, first in named)
        more = f" and {len(twins) - len(named)} more" if len(twins) > len(named) else ""
        raise InputError(f"{source}: {told}{more}; a clip gets one row: remove the repeated lines")
