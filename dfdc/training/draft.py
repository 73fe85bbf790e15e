"""A file is written whole or not at all."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path


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


def _draft_of(path: Path) -> Path:
    return path.with_name(f".{path.stem}.tmp{path.suffix}")
