"""Many clips -> many predictions: worker processes under a supervisor that outlives each of them.

Decoders and nets are native code that meets untrusted files. A crash, a hang or the out-of-memory killer takes down
one worker; its clip gets a row with the reason, and another worker takes its place.
"""

from __future__ import annotations

import contextlib
import logging
import multiprocessing
import os
import signal
import time
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from pathlib import Path

from dfdc.deadline import Deadline
from dfdc.inputs import InputError
from dfdc.prediction import Prediction
from dfdc.weights import WeightsFile

log = logging.getLogger(__name__)

# Loading torch and the nets; minutes on a cold disk.
START_LIMIT_S = 300.0
# A worker checks its clip's deadline between steps; one that is so much later is taken to hang.
GRACE_S = 10.0
# A clip during which a worker died is given to one more worker: the fault may have been another's.
MAX_TRIES = 2
# Big buffers go back to the system after each use by default, and fetching them anew costs torch up to seven times
# the work. These keep them; they must be there before a process starts.
ALLOCATOR = {
    "MALLOC_MMAP_MAX_": "0",
    "MALLOC_TRIM_THRESHOLD_": str(2**34),
    "MALLOC_TOP_PAD_": str(2**26),
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


@dataclass
class _Worker:
    """A process and what it is doing."""

    process: multiprocessing.Process
    connection: Connection
    due_s: float
    name: str | None = None
    ready: bool = False


def predict_clips(
    clips: dict[str, Path], settings: WorkerSettings, *, n_workers: int, deadline: Deadline
) -> Iterator[Prediction]:
    """Score clips in worker processes.

    Args:
        clips: row name -> path.
        settings: of the workers.
        n_workers: how many run at once.
        deadline: after it no clip is begun, and those begun are given up.

    Yields:
        One prediction per clip, as they are done; where the deadline passes first, with the status "timeout".

    Raises:
        InputError: workers cannot start.
    """
    waiting = deque(clips)
    tries = dict.fromkeys(clips, 0)
    workers: list[_Worker] = []
    failed_starts = 0
    try:
        while (waiting or any(worker.name for worker in workers)) and not deadline.expired():
            while len(workers) < min(n_workers, len(waiting) + sum(worker.name is not None for worker in workers)):
                workers.append(_start(settings))
            for worker in workers:
                if worker.ready and worker.name is None and waiting:
                    name = waiting.popleft()
                    _give(worker, name, clips[name], min(settings.clip_limit_s, deadline.remaining_s()))
            now = time.monotonic()
            patience = min(min(worker.due_s for worker in workers) - now, deadline.remaining_s(), 5.0)
            answered = set(wait([worker.connection for worker in workers], timeout=max(patience, 0.01)))
            for worker in list(workers):
                if worker.connection in answered:
                    answer = _receive(worker)
                    if isinstance(answer, Prediction):
                        worker.name, worker.due_s = None, float("inf")
                        yield answer
                        continue
                    if answer == "ready":
                        worker.ready, worker.due_s, failed_starts = True, float("inf"), 0
                        continue
                    if isinstance(answer, str):
                        raise InputError(answer)
                    fault, status = _epitaph(worker), "error"
                elif worker.due_s < time.monotonic():
                    fault, status = "hung and was ended", "timeout"
                else:
                    continue
                _stop(worker)
                workers.remove(worker)
                if not worker.ready:
                    failed_starts += 1
                    log.warning("a worker %s while it started", fault)
                    if failed_starts >= MAX_TRIES and not any(other.ready for other in workers):
                        raise InputError(f"workers do not start: the last {fault}; try --workers 1 or --device cpu")
                elif worker.name is not None:
                    tries[worker.name] += 1
                    log.warning("%s: its worker %s", worker.name, fault)
                    if status == "error" and tries[worker.name] < MAX_TRIES:
                        waiting.append(worker.name)
                    else:
                        yield Prediction(worker.name, status=status, reason=f"its worker {fault}")
        for name in [worker.name for worker in workers if worker.name] + list(waiting):
            yield Prediction(name, status="timeout", reason="the run's time limit came first")
    finally:
        for worker in workers:
            _stop(worker)


def _start(settings: WorkerSettings) -> _Worker:
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    threads = {f"{library}_NUM_THREADS": str(settings.threads) for library in ("OMP", "OPENBLAS", "MKL")}
    inherited = {key: os.environ.get(key) for key in (*ALLOCATOR, *threads)}
    os.environ.update({**ALLOCATOR, **threads})
    try:
        process = context.Process(target=_work, args=(theirs, settings), daemon=True)
        process.start()
    finally:
        for key, value in inherited.items():
            if value is None:
                del os.environ[key]
            else:
                os.environ[key] = value
    theirs.close()
    return _Worker(process, ours, time.monotonic() + START_LIMIT_S)


def _give(worker: _Worker, name: str, path: Path, limit_s: float) -> None:
    worker.name = name
    worker.due_s = time.monotonic() + limit_s + GRACE_S
    with contextlib.suppress(OSError):  # it died while idle: its closed connection is noticed at the next wait
        worker.connection.send((path, name, limit_s))


def _receive(worker: _Worker) -> Prediction | str | None:
    """A worker's answer; None if it died."""
    try:
        return worker.connection.recv()
    except (EOFError, OSError):
        return None


def _epitaph(worker: _Worker) -> str:
    worker.process.join(timeout=5)
    code = worker.process.exitcode
    if code is not None and code < 0:
        return f"died of {signal.Signals(-code).name}" + (", perhaps out of memory" if code == -9 else "")
    return f"ended with exit code {code}"


def _stop(worker: _Worker) -> None:
    worker.connection.close()
    worker.process.kill()
    worker.process.join()
    worker.process.close()


def _work(connection: Connection, settings: WorkerSettings) -> None:
    """A worker's life: load once, then one clip after another until the supervisor hangs up."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    import cv2
    import torch

    from dfdc.predict import Predictor
    from dfdc.runtime import DeviceError, choose_device
    from dfdc.weights import WeightsError

    cv2.setNumThreads(settings.threads)
    torch.set_num_threads(settings.threads)
    try:
        device = choose_device(settings.device)
        n_frames = settings.n_frames or DEFAULT_FRAMES[device.type]
        predictor = Predictor(list(settings.weights), device=device, n_frames=n_frames)
    except (DeviceError, WeightsError) as error:
        connection.send(str(error))
        return
    connection.send("ready")
    while True:
        try:
            path, name, limit_s = connection.recv()
        except (EOFError, OSError):
            return
        connection.send(predictor.predict(path, name=name, deadline=Deadline.after(limit_s)))
