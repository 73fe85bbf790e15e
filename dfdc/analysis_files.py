"""Analyses in a folder: one JSON file per clip."""

from __future__ import annotations

import hashlib
import string
from collections.abc import Iterable, Iterator
from pathlib import Path

from dfdc.analysis import Analysis
from dfdc.errors import InputError
from dfdc.files import drafted, read_file

SUFFIX = ".analysis.json"
# Characters that an analysis file's name takes over from the clip's name; the others are written as %XX.
SAFE = frozenset(string.ascii_letters + string.digits + " ()+,-=@[]._~")


def analysis_path(folder: Path, filename: str) -> Path:
    """The path of a clip's analysis in a folder; different clip names always get different files."""
    content = filename.encode("utf-8", "surrogateescape")
    safe = "".join(chr(byte) if chr(byte) in SAFE else f"%{byte:02X}" for byte in content)
    if len(safe) > 200:
        safe = safe[:150] + hashlib.sha256(content).hexdigest()[:16]
    return folder / f"{safe}{SUFFIX}"


def write_analysis(folder: Path, analysis: Analysis) -> Path:
    """Write an analysis into a folder, replacing an earlier one of the same clip, and return its path."""
    path = analysis_path(folder, analysis.filename)
    with drafted(path) as draft:
        draft.write_text(analysis.to_json(), encoding="utf-8")
    return path


def read_analyses(folder: Path) -> Iterator[Analysis]:
    """Yield the analyses in a folder, sorted by file name.

    Raises:
        InputError: a file is not an analysis, or the folder contains none.
    """
    paths = sorted(folder.glob(f"*{SUFFIX}"))
    if not paths:
        raise InputError(f"{folder}: holds no analysis (*{SUFFIX}); `dfdc score --analyses FOLDER` writes them")
    for path in paths:
        yield read_analysis(path)


def read_some(folder: Path, filenames: Iterable[str]) -> Iterator[Analysis]:
    """Yield the analyses of some clips from a folder; a clip without one was not reached and gets an empty one."""
    for filename in filenames:
        path = analysis_path(folder, filename)
        if path.is_file():
            yield read_analysis(path)
        else:
            yield Analysis(filename, status="timeout", reason="no analysis was written")


def read_analysis(path: Path) -> Analysis:
    """Read an analysis from a file.

    Raises:
        InputError: the file cannot be read or is not an analysis.
    """
    try:
        return Analysis.from_json(read_file(path).decode("utf-8"))
    except (OSError, UnicodeError) as error:
        raise InputError(f"{path}: cannot be read ({error}); name an analysis that `dfdc score` wrote") from error
    except InputError as error:
        raise InputError(f"{path}: {error}") from error
