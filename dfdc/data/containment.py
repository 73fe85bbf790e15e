"""A name in a table -> the path of a file in the table's folder, or an error where it leads outside."""

from __future__ import annotations

import os
from pathlib import Path, PureWindowsPath

from dfdc.errors import DataError


def resolve_inside(folder: Path, name: str) -> Path:
    """The path of a file that a table or metadata names, in the table's own folder or below it.

    Tables come from other people. Without this check one could make a tool read, score or serve any file of this
    machine, by an absolute path, by "..", or by a link that came with the table.

    Args:
        folder: that holds the table.
        name: relative path of the file, which may be absent.

    Returns:
        folder / name, with links as they are.

    Raises:
        DataError: the name is empty or absolute, or the file lies outside the folder.
    """
    if not name or "\0" in name or PureWindowsPath(name).is_absolute() or os.path.isabs(name) or "\\" in name:
        raise DataError(f"{folder}: {name!r} is not allowed; a table names files in its own folder by relative paths")
    root = os.path.realpath(folder)
    if os.path.commonpath([root, os.path.realpath(os.path.join(root, name))]) != root:
        raise DataError(f"{folder}: {name!r} lies outside the folder; a table names files in its own folder only")
    return folder / name


def check_name(name: str) -> bool:
    """Whether a text can be the name of a file in a folder, and nothing more: no path, no "..", no zero byte."""
    return PureWindowsPath(name).name == name and name not in ("", ".", "..") and "\0" not in name
