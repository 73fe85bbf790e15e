"""Predictions -> a journal beside the submission, so that a run that was killed goes on where it was.

One JSON object per line. The first says what was scored with: a run with other weights, settings or code starts
afresh. Each further one is a finished clip with the identity of its file, so that another file under its name is scored
anew. A line is on the disk before the next clip is recorded. What is read back is outside data: a line that is torn,
damaged or not ours is passed over, and its clip scored again.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import logging
import os
import stat
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import BinaryIO

from dfdc.errors import InputError
from dfdc.prediction import Prediction
from dfdc.weights import WeightsFile

log = logging.getLogger(__name__)

# These say something of the clip; the others may be the machine's doing, so such clips are tried again: a disk that was
# away for a moment makes clips unreadable, too, and what is unreadable is known to be so in no time.
LASTING = ("ok", "no_face")
MAX_LINE_BYTES = 2**16
# Counts and seconds are below it; what is not was not written by this module.
MAX_NUMBER = 2**31


def journal_path(submission: Path) -> Path:
    """Where the journal of a submission lies."""
    return submission.parent / f".{submission.name}.journal"


def scoring_key(weights: Sequence[WeightsFile], *, device: str, n_frames: int | None) -> dict[str, object]:
    """What the scores of a run depend on, besides its clips, as far as a user chooses it.

    Args:
        weights: of the run.
        device, n_frames: as the user chose them; None for what time allows.
    """
    return {
        "weights": [file.digest for file in weights],
        "--device": device,
        "--frames": n_frames,
        "code": digest_code(),
    }


def digest_code() -> str:
    """SHA-256 of the package's modules: a version number that nobody can forget to raise."""
    digest = hashlib.sha256()
    package = Path(__file__).resolve().parents[1]
    for module in sorted(package.rglob("*.py")):
        name = module.relative_to(package).as_posix()
        digest.update(name.encode() + b"\0" + module.read_bytes() + b"\0")
    return digest.hexdigest()


def identify(path: Path) -> list[object]:
    """What tells a file from another under its name: path, bytes, times of change; of no file, the path alone.

    The inode's time of change is kept too: it also moves when permissions change or an old file takes a name.
    """
    where = str(path)
    try:
        where = os.path.realpath(path)
        status = os.stat(where)
    except (OSError, ValueError):
        return [where]
    return [where, status.st_size, status.st_mtime_ns, status.st_ctime_ns]


@dataclass(frozen=True)
class Past:
    """What an earlier run left.

    Attributes:
        done: the clips that need no new look, by name; a `Prediction`'s `wanted` says how thorough the last one was.
        end: bytes of the journal that hold; 0 to begin a new one.
    """

    done: dict[str, Prediction] = field(default_factory=dict)
    end: int = 0


def read_journal(path: Path, key: dict[str, object], files: Mapping[str, list[object]]) -> Past:
    """Read what an earlier run left; what cannot be used is told in one line and costs nothing but its scores.

    Args:
        path: of the journal, which may be absent.
        key: see `scoring_key`.
        files: row name -> identity of its clip, see `identify`.
    """
    try:
        with open(_open_plain(path, os.O_RDONLY), "rb") as journal:
            return _read(journal, path, key, files)
    except FileNotFoundError:
        return Past()
    except OSError as error:
        log.warning("%s: cannot be read (%s); starts afresh", path, error.strerror or error)
        return Past()


def _read(journal: BinaryIO, path: Path, key: dict[str, object], files: Mapping[str, list[object]]) -> Past:
    done: dict[str, Prediction] = {}
    n_unusable = 0
    head = journal.readline(MAX_LINE_BYTES)
    reason = _compare(_unseal(head), key) if head else ""
    if not head or reason:
        if reason:
            log.warning("%s: %s; starts afresh", path, reason)
        return Past()
    end = journal.tell()
    while line := journal.readline(MAX_LINE_BYTES):
        if line.endswith(b"\n"):
            end = journal.tell()
        entry = _parse(line)
        if entry is None:
            n_unusable += 1
            continue
        prediction, file = entry
        done.pop(prediction.filename, None)  # a clip's last line holds
        known = prediction.filename in files and file == files[prediction.filename]
        if _lasts(prediction) and known:
            done[prediction.filename] = prediction
    if n_unusable:
        log.warning("%s: lines torn or damaged and passed over: %d", path, n_unusable)
    return Past(done, end)


class Journal:
    """The journal of one run. One that cannot be written costs a warning and ends, never the run."""

    def __init__(self, path: Path, key: dict[str, object], files: Mapping[str, list[object]], *, end: int = 0) -> None:
        """Go on with a journal, or begin one.

        Args:
            path, key, files: as `read_journal` takes them; the identities are those from before the clips are scored.
            end: see `Past`.
        """
        self.path, self._files = path, files
        self._descriptor: int | None = None
        with self._failures_told():
            self._descriptor = _open_plain(path, os.O_RDWR | os.O_CREAT | os.O_APPEND)
            os.ftruncate(self._descriptor, end)
            if end == 0:
                self._write({"key": key})

    def record(self, prediction: Prediction) -> None:
        """Add one clip's prediction, unless it is to be tried again; it is on the disk when this returns."""
        if self._descriptor is not None and _lasts(prediction):
            with self._failures_told():
                self._write({"file": self._files[prediction.filename], **asdict(prediction)})

    def close(self) -> None:
        """Record nothing more."""
        descriptor, self._descriptor = self._descriptor, None
        if descriptor is not None:
            with contextlib.suppress(OSError):
                os.close(descriptor)

    def _write(self, values: dict[str, object]) -> None:
        line = _seal(values)
        while line:  # a disk that fills may take a part
            line = line[os.write(self._descriptor, line) :]
        os.fsync(self._descriptor)

    @contextlib.contextmanager
    def _failures_told(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            reason = error.strerror or error
            log.warning("%s: cannot be written (%s); what comes now is scored again after a kill", self.path, reason)
            self.close()


def _lasts(prediction: Prediction) -> bool:
    """Whether another look would find the same; not where the time that a look had ended it."""
    return prediction.status in LASTING and prediction.cut_s == 0


@contextlib.contextmanager
def only_run(path: Path) -> Iterator[None]:
    """Hold a journal while a run lasts, so that no second one writes the same files; it ends with the process.

    Args:
        path: of the journal; where it cannot be opened or locked, nothing is held.

    Raises:
        InputError: another run holds it.
    """
    try:
        descriptor = _open_plain(path, os.O_RDWR | os.O_CREAT)
    except OSError:
        yield
        return
    held = False
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            held = True
        except BlockingIOError as error:
            raise InputError(f"{path}: another run writes the same files; wait, or name others with --out") from error
        except OSError:  # a file system without locks
            pass
        yield
    finally:
        with contextlib.suppress(OSError):  # its folder is gone
            if held and os.fstat(descriptor).st_size == 0:  # the run was refused before it began
                path.unlink()
        os.close(descriptor)


def _open_plain(path: Path, flags: int) -> int:
    """A descriptor of a plain file.

    Raises:
        OSError: it cannot be opened, or is a link, a pipe, a folder or the like.
    """
    # Non-blocking: a pipe of that name must not hold the run. A link is not followed: what it leads to is not ours.
    for name in ("O_NOFOLLOW", "O_NONBLOCK", "O_CLOEXEC", "O_BINARY"):
        flags |= getattr(os, name, 0)
    descriptor = os.open(path, flags, 0o644)
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise OSError("is no plain file")
    return descriptor


def _seal(values: dict[str, object]) -> bytes:
    """A line that tells when it was damaged: JSON with its own checksum."""
    return json.dumps({**values, "check": _checksum(values)}).encode() + b"\n"


def _checksum(values: dict[str, object]) -> int:
    return zlib.crc32(json.dumps(values, sort_keys=True).encode())


def _unseal(line: bytes) -> dict[str, object] | None:
    """The inverse of `_seal`; None for what is no such line."""
    try:
        values = json.loads(line) if line.endswith(b"\n") else None
        check = values.pop("check", None) if isinstance(values, dict) else None
        return values if type(check) is int and check == _checksum(values) else None
    except (ValueError, RecursionError):
        return None


def _compare(head: dict[str, object] | None, key: dict[str, object]) -> str:
    """Why a journal with this first line cannot serve; empty if it can."""
    found = head.get("key") if head else None
    if not isinstance(found, dict):
        return "is no journal of this program"
    other = [name for name in sorted({*key, *found}) if found.get(name) != key.get(name)]
    return f"was made with other {', '.join(other)}" if other else ""


def _parse(line: bytes) -> tuple[Prediction, object] | None:
    """A line's prediction and its file's identity; None for what is no such line."""
    values = _unseal(line)
    if values is None:
        return None
    file = values.pop("file", None)
    try:
        for column in fields(Prediction):
            value = values.get(column.name)
            if value is not None or column.default is not None:  # the rest has None for "nothing known", else a number
                kinds = {"filename": str, "picture": float, "voice": float}
                _check(column.name, value, kinds.get(column.name, type(column.default)))
        return Prediction(**values), file
    except (TypeError, ValueError):
        return None


def _check(name: str, value: object, kind: type) -> None:
    if type(value) is not kind:
        raise TypeError(f"{name} is {value!r}; allowed is a {kind.__name__}")
    if kind is not str and not 0 <= value < MAX_NUMBER:
        raise ValueError(f"{name} is {value}; allowed is 0 to {MAX_NUMBER}")
