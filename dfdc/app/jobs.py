"""Uploaded clips -> analyses: a queue that one thread works off with supervised workers."""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
import secrets
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import IO, Literal

from dfdc.analysis import Analysis
from dfdc.analysis_files import SUFFIX, analysis_path, read_analysis, write_analysis
from dfdc.deadline import Deadline
from dfdc.errors import DfdcError, InputError
from dfdc.log import shown
from dfdc.prediction import DEFAULT_FRAMES
from dfdc.progress import Progress, Stage
from dfdc.run.pool import predict_clips
from dfdc.run.worker import WorkerSettings

# A clip and a queue may be so large; more is refused before it is stored.
MAX_BYTES = 2 * 2**30
MAX_WAITING = 20
# Reading and scoring one clip ends after so long, whatever it is.
CLIP_LIMIT_S = 300.0
CHUNK_BYTES = 2**20
UPLOADS = "uploads"
# The names of uploaded clips in that folder. Nothing else there is ever removed: it may be the user's own.
UPLOAD = re.compile(r"upload-[A-Za-z0-9_-]{22}")


class QueueFull(InputError):
    """So many clips wait already that no more is taken now."""


@dataclass(frozen=True)
class Job:
    """A clip that was added.

    Attributes:
        key: its file is called upload-KEY while it is here; hard to guess.
        filename: as the user's file is called, with a number where another clip has this name.
        stage: "uploading", "waiting", "loading" the models, one of the stages of `Progress`, "done" or "failed".
        n_done, n_all: see `Progress`.
        began_s: when its analysis began, in seconds since the epoch; 0 before.
        reason: why it failed; empty if it did not.
    """

    key: str
    filename: str
    stage: Literal["uploading", "waiting", "loading", "done", "failed"] | Stage = "uploading"
    n_done: int = 0
    n_all: int = 0
    began_s: float = 0.0
    reason: str = ""

    @property
    def queued(self) -> bool:
        """Whether its analysis has not begun."""
        return self.stage in ("uploading", "waiting")

    @property
    def ended(self) -> bool:
        """Whether its analysis has ended."""
        return self.stage in ("done", "failed")


class JobQueue:
    """The clips that were added, and the folder that keeps their analyses."""

    def __init__(self, folder: Path, settings: WorkerSettings) -> None:
        """Start the thread that works off the queue.

        Args:
            folder: for analyses, which stay, and uploads, which go when they are analyzed.
            settings: of the workers.

        Raises:
            InputError: the folder cannot be used, or another app uses it.
        """
        self.folder = folder
        self.settings = replace(settings, analyses=folder, n_frames=settings.n_frames or DEFAULT_FRAMES)
        self._uploads = folder / UPLOADS
        try:
            self._uploads.mkdir(parents=True, exist_ok=True)
            self._lock = _lock(self._uploads)
            self._remove_uploads()  # of an app that was killed
        except BlockingIOError as error:
            raise InputError(f"{folder}: another app uses it; stop that one, or name another folder") from error
        except OSError as error:
            raise InputError(f"{folder}: cannot be used ({error.strerror}); name another folder") from error
        self._jobs: dict[str, Job] = {}
        self._summaries: dict[Path, tuple[int, Analysis]] = {}
        self._changed = threading.Condition()
        self._closed = False
        self._thread = threading.Thread(target=self._work, daemon=True)
        self._thread.start()

    def add(self, filename: str, stream: IO[bytes]) -> Job:
        """Store a clip and queue it.

        Args:
            filename: as the user's file is called; it names no file here, and is shown with control characters escaped.
            stream: its content.

        Raises:
            QueueFull: too many clips wait.
            InputError: the clip is too large.
        """
        name = shown(Path(filename.replace("\\", "/")).name) or "clip"
        with self._changed:
            if sum(job.queued for job in self._jobs.values()) >= MAX_WAITING:
                raise QueueFull(f"{MAX_WAITING} clips are waiting already; hand in more when some are done")
            job = Job(secrets.token_urlsafe(16), self._free_name(name))
            self._jobs[job.key] = job  # now, because another upload may ask for the same name
        path, n_bytes = self._path_of(job), 0
        try:
            with open(path, "xb") as file:
                while chunk := stream.read(CHUNK_BYTES):
                    n_bytes += len(chunk)
                    if n_bytes > MAX_BYTES:
                        raise InputError(f"{name}: larger than {MAX_BYTES // 2**30} GB; cut the clip")
                    file.write(chunk)
        except BaseException:
            path.unlink(missing_ok=True)
            with self._changed:
                del self._jobs[job.key]
            raise
        return self._set(job.key, stage="waiting")

    def jobs(self) -> list[Job]:
        """All clips that were added since the start, in their order."""
        with self._changed:
            return list(self._jobs.values())

    def analyses(self) -> Iterator[Analysis]:
        """The analyses in the folder, those of earlier starts too."""
        for path in sorted(self.folder.glob(f"*{SUFFIX}")):
            with contextlib.suppress(DfdcError):  # deleted meanwhile, or of another version
                yield read_analysis(path)

    def summaries(self) -> list[Analysis]:
        """The analyses without pictures; each file is read once."""
        found: dict[Path, tuple[int, Analysis]] = {}
        for path in sorted(self.folder.glob(f"*{SUFFIX}")):
            with contextlib.suppress(DfdcError, OSError):
                changed = path.stat().st_mtime_ns
                kept = self._summaries.get(path)
                if kept is None or kept[0] != changed:
                    kept = changed, replace(read_analysis(path), tracks=(), scenes={})
                found[path] = kept
        self._summaries = found
        return [analysis for _, analysis in found.values()]

    def delete(self, filename: str) -> None:
        """Delete a clip's analysis, or take a clip that waits out of the queue.

        Raises:
            InputError: there is no such clip, or it is being analyzed.
        """
        with self._changed:
            found = [job for job in self._jobs.values() if job.filename == filename]
            if any(job.stage != "waiting" and not job.ended for job in found):
                raise InputError(f"{filename}: is being uploaded or analyzed; delete it when this is done")
            for job in found:
                del self._jobs[job.key]
                self._path_of(job).unlink(missing_ok=True)
        try:
            analysis_path(self.folder, filename).unlink()
        except FileNotFoundError as error:
            if not found:
                raise InputError(f"{filename}: there is no clip of this name") from error

    def close(self) -> None:
        """Take no clip from the queue any more, and remove what was uploaded."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
        self._remove_uploads()
        os.close(self._lock)

    def _remove_uploads(self) -> None:
        for path in self._uploads.iterdir():
            if UPLOAD.fullmatch(path.name):
                path.unlink(missing_ok=True)

    def _path_of(self, job: Job) -> Path:
        return self._uploads / f"upload-{job.key}"

    def _free_name(self, name: str) -> str:
        """The name, with a number where an analysis or a job has it already."""
        stem, suffix = Path(name).stem, Path(name).suffix
        taken = {job.filename for job in self._jobs.values()}
        number, wanted = 1, name
        while wanted in taken or analysis_path(self.folder, wanted).exists():
            number += 1
            wanted = f"{stem} ({number}){suffix}"
        return wanted

    def _work(self) -> None:
        while True:
            with self._changed:
                waiting = [job for job in self._jobs.values() if job.stage == "waiting"]
                while not waiting and not self._closed:
                    self._changed.wait()
                    waiting = [job for job in self._jobs.values() if job.stage == "waiting"]
                if self._closed:
                    return
                job = waiting[0]
                self._set(job.key, stage="loading", began_s=time.time())
            reason = ""
            try:
                self._analyze(job)
            except Exception as error:  # whatever it is, the next clip is to be analyzed
                reason = f"{type(error).__name__}: {error}"
            finally:
                self._path_of(job).unlink(missing_ok=True)
            self._set(job.key, stage="failed" if reason else "done", reason=reason)

    def _analyze(self, job: Job) -> None:
        clips, deadline = {job.filename: self._path_of(job)}, Deadline.after(CLIP_LIMIT_S)

        def watch(_: str, progress: Progress) -> None:
            self._set(job.key, stage=progress.stage, n_done=progress.n_done, n_all=progress.n_all)

        for prediction in predict_clips(clips, self.settings, n_workers=1, deadline=deadline, watch=watch):
            if not analysis_path(self.folder, job.filename).exists():  # the clip killed its worker
                blank = Analysis(job.filename, status=prediction.status, reason=prediction.reason)
                write_analysis(self.folder, blank)

    def _set(self, key: str, **changes: object) -> Job:
        with self._changed:
            self._jobs[key] = replace(self._jobs[key], **changes)
            self._changed.notify_all()
            return self._jobs[key]


def _lock(folder: Path) -> int:
    """Lock a folder, which no link may lead to, until the descriptor that is returned is closed, or the process ends.

    Raises:
        BlockingIOError: another process has locked it.
        OSError: it is not a folder.
    """
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        raise
    except OSError:  # the file system has no locks
        pass
    return descriptor
