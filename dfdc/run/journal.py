"""Keep a journal of predictions beside the submission, so that a run that was killed can continue.

The journal holds one JSON object per line. The first line states the models, settings and code: a run with others
starts a new journal. Each further line is a finished clip with the identity of the file that was opened, so that a
different file under the same name is scored again. Each line is written to the operating system before the next clip
is recorded, so that a kill cannot lose it. It is synced to the disk only as often as that costs little time. The
journal is read as untrusted data: a line that is torn, damaged or not ours is skipped, and its clip is scored again.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import logging
import os
import time
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import BinaryIO

from dfdc.deadline import Pace
from dfdc.errors import InputError
from dfdc.files import Identity, open_regular
from dfdc.prediction import SCORED, Prediction
from dfdc.weights import WeightsFile

log = logging.getLogger(__name__)

# These statuses describe the clip. The others may be the machine's fault, so such clips are tried again: a disk that
# fails for a moment also makes clips unreadable, and trying an unreadable clip again takes almost no time.
LASTING = (*SCORED, "no_face")
MAX_LINE_BYTES = 2**16
# All counts and seconds are below this value. A larger number was not written by this module.
MAX_NUMBER = 2**31


def journal_path(submission: Path) -> Path:
    """The path of a submission's journal."""
    return submission.parent / f".{submission.name}.journal"


def scoring_key(weights: Sequence[WeightsFile], *, device: str, n_frames: int | None) -> dict[str, object]:
    """The choices that the scores of a run depend on, besides its clips.

    Args:
        weights: weights of the ensemble's models, in their order.
        device, n_frames: as the user chose them; n_frames is None if the plan chooses the number of frames.
    """
    return {
        "models": [file.digest for file in weights],
        "--device": device,
        "--frames": n_frames,
        "code": digest_code(),
    }


def digest_code() -> str:
    """SHA-256 of the package's modules; it serves as a version number that nobody can forget to raise."""
    digest = hashlib.sha256()
    package = Path(__file__).resolve().parents[1]
    for module in sorted(package.rglob("*.py")):
        name = module.relative_to(package).as_posix()
        digest.update(name.encode() + b"\0" + module.read_bytes() + b"\0")
    return digest.hexdigest()


@dataclass(frozen=True)
class Past:
    """The usable results of an earlier run.

    Attributes:
        done: prediction by row name. `Prediction.wanted` states how many frames the last pass asked for.
        end: number of valid bytes in the journal; 0 if a new journal has to be started.
    """

    done: dict[str, Prediction] = field(default_factory=dict)
    end: int = 0


def read_journal(path: Path, key: dict[str, object], files: Mapping[str, Identity | None]) -> Past:
    """Read the results of an earlier run. Unusable lines are logged in one warning, and their clips are scored again.

    Args:
        path: of the journal, which may be absent.
        key: see `scoring_key`.
        files: row name -> current identity of its clip; None if there is no such file.
    """
    try:
        with open(open_regular(path, follow=False), "rb") as journal:
            return _read(journal, path, key, files)
    except FileNotFoundError:
        return Past()
    except OSError as error:
        log.warning("%s: cannot be read (%s); all clips are scored again", path, error.strerror or error)
        return Past()


def _read(journal: BinaryIO, path: Path, key: dict[str, object], files: Mapping[str, Identity | None]) -> Past:
    done: dict[str, Prediction] = {}
    n_unusable = 0
    head = journal.readline(MAX_LINE_BYTES)
    reason = _compare(_unseal(head), key) if head else ""
    if not head or reason:
        if reason:
            log.warning("%s: %s; all clips are scored again", path, reason)
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
        done.pop(prediction.filename, None)  # the last line of a clip counts
        now = files.get(prediction.filename)
        if _lasts(prediction) and now is not None and file == list(now):
            done[prediction.filename] = prediction
    if n_unusable:
        log.warning("%s: %d lines are torn or damaged; their clips are scored again", path, n_unusable)
    return Past(done, end)


class Journal:
    """The journal of one run. If it cannot be written, a warning is logged and the run continues without it."""

    def __init__(
        self, path: Path, key: dict[str, object], *, end: int = 0, clock: Callable[[], float] = time.monotonic
    ) -> None:
        """Continue a journal or start one. An existing file is not changed before the first prediction is recorded.

        Args:
            path, key: see `read_journal`.
            end: see `Past`.
            clock: monotonic clock in seconds.
        """
        self.path, self._key, self._end = path, key, end
        self._descriptor: int | None = None
        self._closed = False
        self._syncing = Pace(clock=clock)

    def record(self, prediction: Prediction, file: Identity | None) -> None:
        """Add one clip's prediction, unless the clip has to be tried again.

        Args:
            prediction: of the clip.
            file: identity of the file that was scored; None if it is not known, and then the clip is tried again.
        """
        if self._closed or file is None or not _lasts(prediction):
            return
        with self._failures_told():
            if self._descriptor is None:
                self._open()
            self._write({"file": list(file), **asdict(prediction)})
            if self._syncing.due():
                with self._syncing.measured():
                    os.fsync(self._descriptor)

    def close(self) -> None:
        """Close the journal; later calls of `record` do nothing."""
        self._closed = True
        descriptor, self._descriptor = self._descriptor, None
        if descriptor is not None:
            with contextlib.suppress(OSError):
                os.close(descriptor)

    def _open(self) -> None:
        self._descriptor = open_regular(self.path, os.O_RDWR | os.O_CREAT | os.O_APPEND, follow=False, mode=0o644)
        os.ftruncate(self._descriptor, self._end)
        if self._end == 0:
            self._write({"key": self._key})

    def _write(self, values: dict[str, object]) -> None:
        line = seal(values)
        while line:  # a disk that is nearly full may write only a part
            line = line[os.write(self._descriptor, line) :]

    @contextlib.contextmanager
    def _failures_told(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            reason = error.strerror or error
            log.warning("%s: cannot be written (%s); after a kill, further clips are scored again", self.path, reason)
            self.close()


def _lasts(prediction: Prediction) -> bool:
    """Whether another pass would give the same result; not if a time limit cut the reading short."""
    return prediction.status in LASTING and prediction.cut_s == 0


@contextlib.contextmanager
def only_run(*outputs: Path) -> Iterator[None]:
    """Lock output files for the duration of a run, so that no second run writes them.

    The lock is on the journal file beside each output, and it ends when the process ends, even if it is killed. A
    journal file that is empty at the end is removed.

    Args:
        outputs: files that the run writes. If the file system has no locks, they are not locked.

    Raises:
        InputError: another run has locked one of them.
    """
    with contextlib.ExitStack() as held:
        for output in outputs:
            held.enter_context(_hold(output))
        yield


@contextlib.contextmanager
def _hold(output: Path) -> Iterator[None]:
    path = journal_path(Path(os.path.realpath(output)))
    descriptor = _lock(path, output)
    if descriptor is None:
        yield
        return
    try:
        yield
    finally:
        with contextlib.suppress(OSError):  # the folder was removed
            if os.fstat(descriptor).st_size == 0 and _leads_to(path, descriptor):
                path.unlink()
        os.close(descriptor)


def _lock(path: Path, output: Path) -> int | None:
    """Lock a file and return its descriptor; None if the file cannot be opened or locked."""
    while True:
        try:
            descriptor = open_regular(path, os.O_RDWR | os.O_CREAT, follow=False, mode=0o644)
        except OSError:
            return None
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            os.close(descriptor)
            raise InputError(f"{output}: another run is writing this file; wait, or choose another --out") from error
        except OSError:  # the file system has no locks
            os.close(descriptor)
            return None
        if _leads_to(path, descriptor):
            return descriptor
        os.close(descriptor)  # another run has just removed this file: lock the one that exists now


def _leads_to(path: Path, descriptor: int) -> bool:
    """Whether a path still names an open file."""
    try:
        return os.path.samestat(os.lstat(path), os.fstat(descriptor))
    except OSError:
        return False


def seal(values: dict[str, object]) -> bytes:
    """Encode a line as JSON with a checksum, so that damage can be detected."""
    return json.dumps({**values, "check": _checksum(values)}).encode() + b"\n"


def _checksum(values: dict[str, object]) -> int:
    return zlib.crc32(json.dumps(values, sort_keys=True).encode())


def _unseal(line: bytes) -> dict[str, object] | None:
    """Decode a line that `seal` made; None if the line is not valid."""
    try:
        values = json.loads(line) if line.endswith(b"\n") else None
        check = values.pop("check", None) if isinstance(values, dict) else None
        return values if type(check) is int and check == _checksum(values) else None
    except (ValueError, RecursionError):
        return None


def _compare(head: dict[str, object] | None, key: dict[str, object]) -> str:
    """The reason why a journal with this first line cannot be used; empty if it can."""
    found = head.get("key") if head else None
    if not isinstance(found, dict):
        return "is not a journal of this program"
    other = [name for name in sorted({*key, *found}) if found.get(name) != key.get(name)]
    return f"was made with different {', '.join(other)}" if other else ""


def _parse(line: bytes) -> tuple[Prediction, object] | None:
    """The prediction and the file identity in a line; None if the line is not valid."""
    values = _unseal(line)
    if values is None:
        return None
    file = values.pop("file", None)
    try:
        for column in fields(Prediction):
            value = values.get(column.name)
            if value is not None or column.default is not None:  # in the other columns None means "not known"
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
