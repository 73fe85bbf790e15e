"""Open only regular files, write files completely or not at all, and describe files by digest and identity."""

from __future__ import annotations

import csv
import errno
import hashlib
import json
import os
import re
import secrets
import stat
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import NamedTuple

from dfdc.errors import InputError, OutputError

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None

# The name of a draft: the target's stem, a random number, and the target's suffix.
DRAFT = re.compile(r"\.(?P<stem>.*)\.[0-9a-f]{8}\.tmp(?P<suffix>\.[^.]*)?", re.DOTALL)
# The reason that a clip gets if it does not stay the same file while it is read.
REPLACED = "the file was changed or replaced while it was read"
# For each folder, the drafts that existed when this process first wrote there; killed processes may have left them.
_left: dict[Path, list[str]] = {}


@dataclass(frozen=True)
class Entry:
    """A file of the bundle: its size in bytes and its SHA-256 as 64 hex digits."""

    size: int
    sha256: str


class Identity(NamedTuple):
    """The identity of a file, independent of its name; two equal identities mean the same content.

    The inode's change time also moves when somebody changes the content and sets the modification time back.
    """

    device: int
    inode: int
    size: int
    modified_ns: int
    changed_ns: int

    @classmethod
    def of(cls, status: os.stat_result) -> Identity:
        return cls(status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns)


def identify(path: Path) -> Identity | None:
    """The identity of the file that a path leads to now; None if there is none."""
    try:
        return Identity.of(os.stat(path))
    except (OSError, ValueError):  # ValueError: no file can have this name
        return None


def open_regular(path: Path, flags: int = os.O_RDONLY, *, follow: bool = True, mode: int = 0o666) -> int:
    """Open a regular file, and never block on a pipe or a device.

    Args:
        path: path of the file.
        flags, mode: see `os.open`.
        follow: whether to follow a symbolic link.

    Returns:
        The file descriptor, which the caller closes.

    Raises:
        OSError: the file cannot be opened or is not a regular file.
    """
    flags |= 0 if follow else getattr(os, "O_NOFOLLOW", 0)
    for name in ("O_NONBLOCK", "O_CLOEXEC", "O_BINARY"):
        flags |= getattr(os, name, 0)
    descriptor = os.open(path, flags, mode)
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise OSError(errno.EINVAL, "is not a regular file", str(path))
    return descriptor


def read_file(path: Path) -> bytes:
    """The content of a regular file; a pipe or a device is refused and never waited for.

    Raises:
        OSError: the file cannot be read or is not a regular file.
    """
    with open(open_regular(path), "rb") as file:
        return file.read()


def describe_file(path: Path, *, expected: Identity | None = None) -> Entry:
    """The size and digest of a regular file.

    Args:
        path: path of the file.
        expected: identity that the file must have; None for any.

    Raises:
        OSError: the file cannot be read, is not a regular file, or is not the expected one.
    """
    digest = hashlib.sha256()
    with open(open_regular(path), "rb") as file:
        if expected not in (None, Identity.of(os.fstat(file.fileno()))):
            raise OSError(errno.ESTALE, "was replaced since it was read", str(path))
        while chunk := file.read(2**20):
            digest.update(chunk)
        return Entry(file.tell(), digest.hexdigest())


@contextmanager
def drafted(path: Path, *, durable: bool = False) -> Iterator[Path]:
    """Yield a draft file that replaces `path` when the block succeeds and is removed when it fails.

    The draft lies in the same folder under a random name that nobody can have prepared. It keeps the suffix, for
    writers that choose a format by it, and the permissions of an existing file. A symbolic link is kept, and its target
    is replaced. Drafts that killed processes left behind are removed.

    Args:
        path: file to write; a regular file, or none yet.
        durable: whether to sync the content to the disk before the file is replaced.

    Raises:
        OSError: the file cannot be written, or is a folder, a pipe, a device or the like; the old file is unchanged.
    """
    target = _resolve(path)
    _sweep(target)
    draft = target.with_name(f".{target.stem}.{secrets.token_hex(4)}.tmp{target.suffix}")
    # O_EXCL follows no link and fails if the file exists.
    descriptor = os.open(draft, os.O_RDWR | os.O_CREAT | os.O_EXCL | getattr(os, "O_CLOEXEC", 0), 0o666)
    try:
        _lock(descriptor)
        yield draft
        if durable:
            os.fsync(descriptor)
        with suppress(FileNotFoundError):
            os.chmod(draft, stat.S_IMODE(os.stat(target).st_mode))
        os.replace(draft, _resolve(target))
    finally:
        with suppress(OSError):
            draft.unlink(missing_ok=True)
        os.close(descriptor)


def write_text(path: Path, text: str) -> None:
    """Write a text file in UTF-8; file names that are not valid Unicode keep their bytes."""
    with drafted(path) as draft:
        draft.write_text(text, encoding="utf-8", errors="surrogateescape")


def write_json(path: Path, content: object) -> None:
    """Write a JSON file."""
    write_text(path, json.dumps(content, indent=1) + "\n")


def write_csv(path: Path, header: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    """Write a CSV file; a reader sees either the complete old file or the complete new one.

    Raises:
        OSError: the folder cannot be written or the disk is full; the old file is unchanged.
    """
    with (
        drafted(path, durable=True) as draft,
        open(draft, "w", newline="", encoding="utf-8", errors="surrogateescape") as file,
    ):
        plain = csv.writer(file, lineterminator="\n")
        # With this line end Python's writer does not quote a carriage return, which readers take for a row's end.
        quoting = csv.writer(file, lineterminator="\n", quoting=csv.QUOTE_ALL)
        for row in chain([header], rows):
            (quoting if any("\r" in str(cell) for cell in row) else plain).writerow(row)


def check_out(out: Path, inputs: Iterable[Path] = ()) -> None:
    """Check, before any work, that a file can be written and is not an input.

    Args:
        out: file to write; its folder is created if it does not exist.
        inputs: files that must not be overwritten.

    Raises:
        OutputError: the file cannot be written, is not a regular file, or is one of the inputs.
    """
    if out.is_dir():
        raise OutputError(f"{out}: is a folder; name a file in it")
    try:
        target = _resolve(out)
        target.parent.mkdir(parents=True, exist_ok=True)
        probe = target.with_name(f".{target.stem}.{secrets.token_hex(4)}.tmp{target.suffix}")
        os.close(os.open(probe, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600))
        probe.unlink()
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise OutputError(f"{out}: cannot be written ({reason}); name another file") from error
    refuse_inputs(out, inputs)


def make_folder(path: Path) -> Path:
    """Create a folder for outputs, before any work, if it does not exist, and return it.

    Raises:
        InputError: the folder cannot be created or written.
    """
    try:
        path.mkdir(parents=True, exist_ok=True)
        if not os.access(path, os.W_OK):
            raise PermissionError(13, "no permission to write")
    except OSError as error:
        raise InputError(f"{path}: cannot be made a folder ({error.strerror}); name another one") from error
    return path


def refuse_inputs(out: Path, inputs: Iterable[Path]) -> None:
    """Check that an output file is not one of the inputs, under whatever name.

    Raises:
        OutputError: it is one of the inputs.
    """
    there = identify(out)
    if there is not None:
        for path in inputs:
            found = identify(path)
            if found is not None and found[:2] == there[:2]:
                raise OutputError(f"{out}: is the input {path}, which would be lost; name another file")


def _resolve(path: Path) -> Path:
    """Resolve symbolic links; the target must be a regular file or not exist."""
    target = Path(os.path.realpath(path))
    with suppress(FileNotFoundError):
        if not stat.S_ISREG(os.lstat(target).st_mode):
            raise OSError(errno.EINVAL, "is not a regular file", str(path))
    return target


def _lock(descriptor: int) -> None:
    """Lock a draft, to mark it as being written by a running process."""
    if fcntl is not None:
        with suppress(OSError):  # the file system has no locks
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)


def _sweep(target: Path) -> None:
    """Remove drafts of a file that no running process is writing."""
    if fcntl is None:
        return
    with suppress(OSError):
        if target.parent not in _left:
            _left[target.parent] = list(filter(DRAFT.fullmatch, os.listdir(target.parent)))
    for name in list(_left.get(target.parent, [])):
        parts = DRAFT.fullmatch(name)
        if (parts["stem"], parts["suffix"] or "") == (target.stem, target.suffix):
            _left[target.parent].remove(name)
            with suppress(OSError):  # it is not a regular file, or it is still being written
                descriptor = open_regular(target.with_name(name), follow=False)
                try:
                    fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    target.with_name(name).unlink()
                finally:
                    os.close(descriptor)
