"""A file is written whole or not at all."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def drafted(path: Path) -> Iterator[Path]:
    """A file to write beside another: it takes the other's place where the block ends well, and goes where it fails.

    Its suffix is the other's, for those who choose a format by it. Its name is always the same: what a killed process
    leaves, the next one overwrites.
    """
    draft = path.with_name(f".{path.stem}.tmp{path.suffix}")
    try:
        yield draft
        draft.replace(path)
    finally:
        draft.unlink(missing_ok=True)


def write_json(path: Path, content: object) -> None:
    """Write a file in JSON."""
    with drafted(path) as draft:
        draft.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
