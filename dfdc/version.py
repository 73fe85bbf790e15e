"""The version of the package, and the commit of the running code."""

from __future__ import annotations

import subprocess
from pathlib import Path

__version__ = "1.0.0"


def read_commit(folder: Path = Path(__file__).parent) -> str:
    """The commit of a checkout, with the suffix -dirty if files differ from it.

    Args:
        folder: the top folder of a checkout, or a folder directly in it.

    Returns:
        12 hex digits or more. Empty without git, or if the folder is not part of a checkout, as in an installed
        package; a package that is installed somewhere below a checkout does not report that checkout's commit.
    """
    if not any((top / ".git").exists() for top in (folder, folder.parent)):
        return ""
    command = ["git", "-C", str(folder), "describe", "--always", "--dirty", "--abbrev=12", "--exclude=*"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip()
    except OSError:
        return ""
