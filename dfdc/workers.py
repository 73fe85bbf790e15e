"""Many clips -> many predictions: worker processes under a supervisor that outlives each of them.

Decoders and nets are native code that meets untrusted files. A crash, a hang or the out-of-memory killer takes down
one worker; its clip gets a row with the reason, and another worker takes its place.
"""

from __future__ import annotations

import contextlib
import ctypes
import logging
import multiprocessing
import os
import signal
import time
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import TYPE_CHECKING

from dfdc.deadline import Deadline
from dfdc.inputs import InputError
from dfdc.prediction import Prediction
from dfdc.weights import WeightsError, WeightsFile

if TYPE_CHECKING:
    from dfdc.predict import Predictor

log = logging.getLogger(__name__)

# Loading torch and the nets; minutes on a cold disk.
START_LIMIT_S = 300.0
# Decoding ends at a clip's deadline, and what was decoded is scored; a worker that is so much later is taken to hang.
GRACE_S = 10.0
# A clip during which a worker died is given to one more worker: the fault may have been another's.
MAX_TRIES = 2
# After so many workers that died while they loaded, no more are started.
MAX_FAILED_STARTS = 2
# Workers are forked from a server process that has imported these: a worker then starts in a moment, and shares some
# 400 MB of imports with the others. Nothing in them may start threads or touch CUDA when it is imported.
PRELOADED = [
    "torch",
    "torchvision",
    "cv2",
    "av",
    "openvino",
    "scipy.optimize",
    "facenet_pytorch",
    "efficientnet_pytorch",
]
# Big buffers go back to the system after each use by default, and fetching them anew costs torch up to seven times
# the work. These keep all but the biggest; like the libraries' numbers of threads (clips run side by side instead;
# torch and OpenCV are told theirs by the worker) they must be there before a process starts.
ENVIRONMENT = {
    "MALLOC_MMAP_THRESHOLD_": str(2**25),
    "MALLOC_TRIM_THRESHOLD_": str(2**27),
    "MALLOC_TOP_PAD_": str(2**24),
    **{f"{library}_NUM_THREADS": "1" for library in ("OMP", "OPENBLAS", "MKL")},
}


@dataclass(frozen=True)
class WorkerSettings:
    """What a worker is made with.

    Attributes:
        weights: checked files.
        device: "auto", "cpu" or "cuda".
        n_frames: frames per clip; None for the device's own number.
        threads: native threads per worker.
        clip_limit_s: wall seconds that one clip may take.
    """

    weights: tuple[WeightsFile, ...]
    device: str = "auto"
    n_frames: int | None = None
    threads: int = 1
    clip_limit_s: float = 60.0


# Frames per clip where nothing is asked for: what two cores, or a GPU, have time for.
DEFAULT_FRAMES = {"cpu": 16, "cuda": 32}


@dataclass(frozen=True)
class Ready:
    """A worker's first word: it has loaded, and this is what runs its nets."""

    runtime: str


@dataclass(frozen=True)
class Refusal:
    """A worker's only word, where it cannot load by the user's mistake."""

    reason: str


@dataclass(frozen=True)
class LastWord:
    """A prediction after which a worker ends of itself, so that no clip is lost on it."""

    prediction: Prediction


Work = Callable[[Connection, WorkerSettings], None]


@dataclass
class _Worker:
    """A process and what it is doing.

    Attributes:
        due_s: on the monotonic clock, when it counts as hung; infinity while it waits.
        name: the row that it works on; None while it loads or waits.
        ready: whether it has loaded.
    """

    process: multiprocessing.Process
    connection: Connection
    due_s: float
    name: str | None = None
    ready: bool = False


def predict_clips(
    clips: dict[str, Path],
    settings: WorkerSettings,
    *,
    n_workers: int,
    deadline: Deadline,
    work: Work | None = None,
) -> Iterator[Prediction]:
    """Score clips in worker processes.

    Args:
        clips: row name -> path.
        settings: of the workers.
        n_workers: how many run at once.
        deadline: after it no clip is begun, and those begun are given up.
        work: what a worker process runs; `score_clips` unless a test brings its own.

    Yields:
        One prediction per clip, as they are done; where the deadline passes first, with the status "timeout".

    Raises:
        InputError: workers cannot start.
    """
    pool = _Pool(clips, settings, n_workers, deadline, work or score_clips)
    try:
        while pool.unfinished() and not deadline.expired():
            pool.staff()
            if not pool.workers:
                if pool.failed_starts >= MAX_FAILED_STARTS:
                    yield from pool.give_up("workers cannot be started")
                continue
            pool.assign()
            yield from pool.collect()
        for name in pool.unfinished():
            yield Prediction(name, status="timeout", reason="the run's time limit came first")
    finally:
        pool.close()


class _Pool:
    """The workers and the clips that wait for them."""

    def __init__(
        self, clips: dict[str, Path], settings: WorkerSettings, n_workers: int, deadline: Deadline, work: Work
    ) -> None:
        self.clips, self.settings, self.n_workers, self.deadline, self.work = clips, settings, n_workers, deadline, work
        self.waiting = deque(clips)
        self.tries = dict.fromkeys(clips, 0)
        self.workers: list[_Worker] = []
        self.failed_starts = 0
        self.started = False

    def unfinished(self) -> list[str]:
        """The clips that are being scored or wait."""
        return [worker.name for worker in self.workers if worker.name is not None] + list(self.waiting)

    def staff(self) -> None:
        """Start workers until there is one for each clip, but no more than wanted.

        Where workers die while they load, for want of memory perhaps, the run goes on with one fewer.
        """
        if self.failed_starts >= MAX_FAILED_STARTS and self.workers:
            self.n_workers, self.failed_starts = len(self.workers), 0
            log.warning("goes on with %d workers", self.n_workers)
        while len(self.workers) < min(self.n_workers, len(self.unfinished())):
            try:
                self.workers.append(_start(self.settings, self.work))
            except OSError as error:  # no more processes or descriptors, or the server that forks them has died
                self.failed_starts += 1
                log.warning("a worker cannot be started (%s)", error)
                break

    def assign(self) -> None:
        """Give each idle worker a clip."""
        for worker in self.workers:
            if worker.ready and worker.name is None and self.waiting:
                name = self.waiting.popleft()
                limit_s = min(self.settings.clip_limit_s, self.deadline.remaining_s())
                _give(worker, name, self.clips[name], limit_s)

    def collect(self) -> Iterator[Prediction]:
        """Wait until a worker answers, dies or is overdue, and deal with it."""
        due_s = min(worker.due_s for worker in self.workers)
        patience_s = min(due_s - time.monotonic(), self.deadline.remaining_s(), 5.0)
        answered = set(wait([worker.connection for worker in self.workers], timeout=max(patience_s, 0.01)))
        for worker in list(self.workers):
            if worker.connection in answered:
                message = _receive(worker)
                if isinstance(message, Prediction):
                    worker.name, worker.due_s = None, float("inf")
                    yield message
                elif isinstance(message, LastWord):
                    self._remove(worker)
                    yield message.prediction
                elif isinstance(message, Ready):
                    if not self.started:
                        log.info("nets run on %s", message.runtime)
                    worker.ready, worker.due_s, self.started = True, float("inf"), True
                elif isinstance(message, Refusal) and not self.started:
                    raise InputError(message.reason)
                else:
                    yield from self._bury(worker, _epitaph(worker), "error")
            elif worker.due_s < time.monotonic() and not worker.connection.poll():
                yield from self._bury(worker, "hung and was ended", "timeout")

    def _bury(self, worker: _Worker, fault: str, status: str) -> Iterator[Prediction]:
        """End a worker; its clip waits for another one or gets its row."""
        self._remove(worker)
        if not worker.ready:
            self.failed_starts += 1
            log.warning("a worker %s while it loaded", fault)
            if self.failed_starts >= MAX_FAILED_STARTS and not self.workers:
                yield from self.give_up(f"workers no longer start: the last {fault}")
        elif worker.name is not None:
            self.tries[worker.name] += 1
            log.warning("%s: its worker %s", worker.name, fault)
            if status == "error" and self.tries[worker.name] < MAX_TRIES:
                self.waiting.append(worker.name)
            else:
                yield Prediction(worker.name, status=status, reason=f"its worker {fault}")

    def _remove(self, worker: _Worker) -> None:
        _stop(worker)
        self.workers.remove(worker)

    def give_up(self, reason: str) -> Iterator[Prediction]:
        """What is left gets its rows; a run that has not begun ends instead."""
        if not self.started:
            raise InputError(f"{reason}; try --workers 1 or --device cpu")
        log.error("%s", reason)
        while self.waiting:
            yield Prediction(self.waiting.popleft(), status="error", reason=reason)

    def close(self) -> None:
        """End every worker."""
        while self.workers:
            _stop(self.workers.pop())


def _start(settings: WorkerSettings, work: Work) -> _Worker:
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(PRELOADED)
    ours, theirs = context.Pipe()
    process = context.Process(target=work, args=(theirs, settings), daemon=True)
    with _environment(ENVIRONMENT):  # the first start starts the server, whose environment all workers have
        process.start()
    theirs.close()
    return _Worker(process, ours, time.monotonic() + START_LIMIT_S)


@contextlib.contextmanager
def _environment(values: dict[str, str]) -> Iterator[None]:
    """Environment variables that hold for processes started inside."""
    before = {key: os.environ.get(key) for key in values}
    os.environ.update(values)
    try:
        yield
    finally:
        for key, value in before.items():
            if value is None:
                del os.environ[key]
            else:
                os.environ[key] = value


def _give(worker: _Worker, name: str, path: Path, limit_s: float) -> None:
    worker.name = name
    worker.due_s = time.monotonic() + limit_s + GRACE_S
    with contextlib.suppress(OSError):  # it died while idle: its closed connection is noticed at the next wait
        worker.connection.send((path, name, limit_s))


def _receive(worker: _Worker) -> Prediction | LastWord | Ready | Refusal | None:
    """A worker's message; None if it died."""
    try:
        return worker.connection.recv()
    except (EOFError, OSError):
        return None


def _epitaph(worker: _Worker) -> str:
    worker.process.join(timeout=5)
    code = worker.process.exitcode
    if code is not None and code < 0:
        return f"died: {signal.strsignal(-code)}" + (", perhaps out of memory" if code == -signal.SIGKILL else "")
    return f"ended with exit code {code}"


def _stop(worker: _Worker) -> None:
    worker.connection.close()
    worker.process.kill()
    worker.process.join(timeout=5)  # longer for none: one that a dead disk or driver holds cannot be killed


def score_clips(connection: Connection, settings: WorkerSettings) -> None:
    """A worker's life: load once, then one clip after another until the supervisor hangs up."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    try:
        predictor, runtime = _load(settings)
    except ImportError as error:
        connection.send(Refusal(f"{error}; install what requirements.txt names"))
        return
    except (InputError, WeightsError) as error:
        connection.send(Refusal(str(error)))
        return
    connection.send(Ready(runtime))
    with contextlib.suppress(EOFError, OSError):  # the supervisor hung up
        while True:
            path, name, limit_s = connection.recv()
            prediction = predictor.predict(path, name=name, deadline=Deadline.after(limit_s))
            release_memory()
            # A CUDA context does not recover from a fault: the next clip gets a new process.
            broken = prediction.status == "error" and predictor.device.type == "cuda"
            connection.send(LastWord(prediction) if broken else prediction)
            if broken:
                return


def release_memory() -> None:
    """Give what a clip left behind back to the system, so that clips of many sizes do not add up."""
    with contextlib.suppress(OSError, AttributeError):  # another C library than glibc
        ctypes.CDLL(None).malloc_trim(0)


def _load(settings: WorkerSettings) -> tuple[Predictor, str]:
    """The predictor, and what runs its nets; everything heavy is imported here, never by the supervisor."""
    import cv2
    import torch

    from dfdc.predict import Predictor
    from dfdc.runtime import DeviceError, choose_device, describe_runtime

    cv2.setNumThreads(settings.threads)
    torch.set_num_threads(settings.threads)
    try:
        device = choose_device(settings.device)
    except DeviceError as error:
        raise InputError(str(error)) from error
    n_frames = settings.n_frames or DEFAULT_FRAMES[device.type]
    return Predictor(list(settings.weights), device=device, n_frames=n_frames), describe_runtime(device)
