"""The version of the package, and which commit of the code is at work."""

from __future__ import annotations

import subprocess
from pathlib import Path

__version__ = "1.0.0"


def read_commit(folder: Path = Path(__file__).parent) -> str:
    """The commit that a checkout is at, with -dirty where files differ from it.

    Args:
        folder: the top of a checkout, or a folder directly in it.

    Returns:
        12 hex digits or more; empty without git, or where the folder is no checkout, as in an installed package: one
        that is installed below a checkout is not told that checkout's commit.
    """
    if not any((top / ".git").exists() for top in (folder, folder.parent)):
        return ""
    command = ["git", "-C", str(folder), "describe", "--always", "--dirty", "--abbrev=12", "--exclude=*"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip()
    except OSError:
        return ""
