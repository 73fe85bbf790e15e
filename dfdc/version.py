"""The version of the package, and which commit of the code is at work."""

from __future__ import annotations

import subprocess
from pathlib import Path

__version__ = "1.0.0"


def read_commit(folder: Path = Path(__file__).parent) -> str:
    """The commit of a folder, with -dirty where files differ from it; empty without git, or where it is no checkout."""
    command = ["git", "-C", str(folder), "describe", "--always", "--dirty", "--abbrev=12", "--exclude=*"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip()
    except OSError:
        return ""
