"""Folders behind a path or a URL (fsspec): read with retries, written whole or not at all."""

from __future__ import annotations

import os
import random
import secrets
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import BinaryIO, TypeVar

from fsspec.core import url_to_fs

from dfdc.errors import InputError, MachineError, VideoError
from dfdc.files import drafted

T = TypeVar("T")

# A step that fails is tried again after pauses of .2, .4, .8, 1.6 and 3.2 s, each varied by half of it, so that the
# nodes of a cluster do not all come back at the same moment. The store's own client retries as well.
TRIES, PAUSE_S = 6, 0.2
# These errors tell how things are, and another try would get the same answer.
LASTING = (FileNotFoundError, FileExistsError, PermissionError, IsADirectoryError, NotADirectoryError, InputError)
# A larger clip is not copied to a node; the decoder itself would read a minute of it.
MAX_CLIP_BYTES = 8 * 2**30


def persist(step: Callable[[], T], what: str, *, sleep: Callable[[float], None] = time.sleep) -> T:
    """Run a step, again if it fails for a reason that may pass, such as a store that throttles.

    Args:
        step: to run; running it twice must do no harm.
        what: for the error, what is read or written.
        sleep: waits for a number of seconds.

    Raises:
        MachineError: it failed `TRIES` times.
        FileNotFoundError, FileExistsError, PermissionError: another try would fail likewise.
    """
    for attempt in range(TRIES):
        try:
            return step()
        except LASTING:
            raise
        except Exception as error:  # the clients of stores raise their own kinds
            if attempt == TRIES - 1:
                reason = f"{type(error).__name__}: {next(iter(str(error).splitlines()), '')}"
                raise MachineError(f"{what}: failed {TRIES} times, the last time with {reason}") from error
            sleep(PAUSE_S * 2**attempt * random.uniform(0.5, 1.5))
    raise AssertionError("unreachable")


class Place:
    """A folder on a disk or in an object store.

    Attributes:
        url: as it was given, without a slash at its end.
        local: whether it is on a disk that this machine sees.
        root: the path in its file system.
    """

    def __init__(self, url: str) -> None:
        """Connect to a file system.

        Args:
            url: a path, or a URL such as s3://bucket/folder or gs://bucket/folder.

        Raises:
            InputError: the kind of URL is not known, or its package is not installed.
        """
        self.url = url.rstrip("/") or "/"
        try:
            self.fs, root = url_to_fs(self.url, **({} if _is_path(self.url) else {"use_listings_cache": False}))
        except (ImportError, ValueError, TypeError) as error:
            raise InputError(
                f"{url}: cannot be opened ({error}); allowed are paths and the URLs of fsspec's file systems, such as "
                "s3://bucket/folder (needs s3fs) and gs://bucket/folder (needs gcsfs)"
            ) from error
        self.local = "file" in (self.fs.protocol if isinstance(self.fs.protocol, tuple) else (self.fs.protocol,))
        self.root = root.rstrip("/") or "/"

    def at(self, name: str) -> str:
        """The path of a file in this folder, in its file system."""
        return f"{self.root.rstrip('/')}/{name}"

    def full(self, name: str) -> str:
        """The path or URL of a file in this folder."""
        return f"{self.url.rstrip('/')}/{name}"

    def read(self, name: str) -> bytes:
        """The content of a file.

        Raises:
            FileNotFoundError: there is none.
            MachineError, PermissionError: it cannot be read.
        """
        return persist(lambda: self.fs.cat_file(self.at(name)), self.full(name))

    def write(self, name: str, content: bytes) -> None:
        """Write a file; a reader sees the old one or the whole new one.

        Raises:
            MachineError, PermissionError: it cannot be written.
        """
        if not self.local:
            persist(lambda: self.fs.pipe_file(self.at(name), content), self.full(name))
            return
        path = Path(self.at(name))

        def write() -> None:
            path.parent.mkdir(parents=True, exist_ok=True)
            with drafted(path, durable=True) as draft:
                draft.write_bytes(content)

        persist(write, str(path))

    def create(self, name: str, content: bytes) -> bool:
        """Write a file unless there is one, even if another program tries the same at the same moment.

        Returns:
            Whether this call made the file. Stores without conditional writes cannot tell for sure: S3, Google Cloud
            Storage and disks can.
        """
        try:
            persist(lambda: self._create(name, content), self.full(name))
        except FileExistsError:
            # An answer that was lost on its way leads to a second try, which finds the file of the first.
            return self.read(name) == content
        return True

    def _create(self, name: str, content: bytes) -> None:
        if not self.local:
            self.fs.pipe_file(self.at(name), content, mode="create")
            return
        path = Path(self.at(name))
        path.parent.mkdir(parents=True, exist_ok=True)
        draft = path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")
        try:
            draft.write_bytes(content)
            os.link(draft, path)
        finally:
            with suppress(OSError):
                draft.unlink()

    def names(self, folder: str) -> list[str]:
        """The names of the files in a sub-folder, sorted; none if it does not exist."""

        def find() -> list[str]:
            try:
                found = self.fs.ls(self.at(folder), detail=False, refresh=True)
            except FileNotFoundError:
                return []
            names = [path.rstrip("/").rpartition("/")[2] for path in found]
            return sorted(name for name in names if not name.startswith("."))

        return persist(find, self.full(folder))

    def remove(self, name: str) -> None:
        """Remove a file; it may be absent already."""
        with suppress(FileNotFoundError):
            persist(lambda: self.fs.rm_file(self.at(name)), self.full(name))

    def open(self, name: str) -> BinaryIO:
        """Open a file for reading as a stream.

        Raises:
            InputError: there is none, or it must not be read.
        """
        try:
            return persist(lambda: self.fs.open(self.at(name), "rb"), self.full(name))
        except LASTING as error:
            raise InputError(f"{self.full(name)}: cannot be read ({_tell(error)}); {_cure(error)}") from error

    def walk(self) -> Iterator[str]:
        """The files below this folder, relative to it, sorted folder by folder; hidden ones are left out.

        Raises:
            InputError: the folder does not exist, or must not be listed.
        """
        waiting, n_listed = [""], 0
        while waiting:
            prefix = waiting.pop()
            try:
                entries = persist(
                    lambda prefix=prefix: self.fs.ls(self.at(prefix).rstrip("/"), detail=True), self.full(prefix)
                )
            except LASTING as error:
                if n_listed and isinstance(error, FileNotFoundError):
                    continue  # it was removed in the meantime
                raise InputError(f"{self.full(prefix)}: cannot be listed ({_tell(error)}); {_cure(error)}") from error
            n_listed += 1
            below = []
            for entry in sorted(entries, key=lambda entry: entry["name"]):
                name = entry["name"].rstrip("/").rpartition("/")[2]
                if not name or name.startswith(".") or entry["name"].rstrip("/") == self.at(prefix).rstrip("/"):
                    continue
                if entry["type"] != "directory":
                    yield f"{prefix}{name}"
                elif not entry.get("islink"):
                    below.append(f"{prefix}{name}/")
            waiting += reversed(below)

    def check_readable(self) -> None:
        """Check that this folder exists and may be read.

        Raises:
            InputError: it does not, or must not.
        """
        try:
            kind = persist(lambda: self.fs.info(self.root), self.url)["type"]
        except (*LASTING, OSError, MachineError) as error:
            raise InputError(f"{self.url}: cannot be listed ({_tell(error)}); {_cure(error)}") from error
        if kind != "directory":
            raise InputError(f"{self.url}: is a file; name a folder of clips, or a manifest (.txt or .csv)")

    def check_writable(self) -> None:
        """Check that files can be written here, by writing one and removing it.

        Raises:
            InputError: they cannot.
        """
        name = f"probe-{secrets.token_hex(4)}"
        try:
            self.write(name, b"")
            self.remove(name)
        except (*LASTING, OSError, MachineError) as error:
            raise InputError(f"{self.url}: cannot be written ({_tell(error)}); {_cure(error)}") from error


def resolve(base: str, line: str) -> str:
    """The path or URL of a clip that a manifest names, relative to the manifest's folder."""
    return line if "://" in line else f"{base.rstrip('/')}/{line}"


def fetch(url: str, folder: Path) -> Path:
    """Bring a clip to this machine.

    Args:
        url: of the clip; a file on a disk stays where it is.
        folder: for the copy; its name is random, and its suffix the clip's.

    Raises:
        VideoError: there is no such clip, it must not be read, or it is too large.
        MachineError: the store did not give it.
    """
    if _is_path(url):
        if not os.path.isfile(url):
            raise VideoError("there is no such file")
        return Path(url)
    home, _, name = url.rpartition("/")
    place = Place(home)
    copy = folder / f"{secrets.token_hex(8)}{Path(name).suffix[:10]}"
    try:
        size = persist(lambda: place.fs.size(place.at(name)), url)
        if size is not None and size > MAX_CLIP_BYTES:
            raise VideoError(f"it has {size / 2**30:.1f} GiB; allowed are {MAX_CLIP_BYTES / 2**30:.0f}")
        persist(lambda: place.fs.get_file(place.at(name), str(copy)), url)
    except FileNotFoundError as error:
        raise VideoError("there is no such file") from error
    except PermissionError as error:
        raise VideoError("the store refuses to give it; check the permissions of the nodes") from error
    if size is not None and copy.stat().st_size != size:
        raise MachineError(f"{url}: {copy.stat().st_size} of {size} bytes arrived")
    return copy


def _is_path(url: str) -> bool:
    return "://" not in url


def _tell(error: Exception) -> str:
    return next(iter(str(error).splitlines()), "") or type(error).__name__


def _cure(error: Exception) -> str:
    if isinstance(error, PermissionError):
        return "check the credentials and what they allow"
    if isinstance(error, FileNotFoundError):
        return "check the name"
    return "check that the store answers"
