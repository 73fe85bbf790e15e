"""A step that needs a face detector -> the same step over many arguments, in processes with a detector each."""

from __future__ import annotations

import multiprocessing
import signal
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from typing import TypeVar

import cv2

from dfdc.detect import FaceDetector

T = TypeVar("T")

_detectors: list[FaceDetector] = []


def detect_in_parallel(
    step: Callable[..., T], calls: Sequence[tuple], *, n_workers: int, device: str = "cpu"
) -> Iterator[T]:
    """What a step returns, in the order in which calls get done.

    Args:
        step: takes a `FaceDetector` and the arguments of a call; it and they go to other processes by pickle.
        calls: arguments.
        n_workers: calls at once; one works in this process, as does a single call.
        device: "cpu" or "cuda", where faces are looked for.

    Raises:
        BrokenProcessPool: a worker died.
        Exception: whatever the step raises.
    """
    if not calls:
        return
    if n_workers == 1 or len(calls) == 1:
        detector = FaceDetector(device)
        for arguments in calls:
            yield step(detector, *arguments)
        return
    context = multiprocessing.get_context("spawn")
    pool = ProcessPoolExecutor(n_workers, context, initializer=_start_worker, initargs=(device,))
    try:
        for future in as_completed([pool.submit(_step_in_worker, step, arguments) for arguments in calls]):
            yield future.result()
    finally:
        pool.shutdown(cancel_futures=True)


def _start_worker(device: str) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    cv2.setNumThreads(1)
    _detectors.append(FaceDetector(device, threads=1))


def _step_in_worker(step: Callable[..., T], arguments: tuple) -> T:
    return step(_detectors[0], *arguments)
