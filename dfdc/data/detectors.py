"""Run a function that needs a face detector on many arguments, in processes with a detector each."""

from __future__ import annotations

import multiprocessing
import signal
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from typing import TypeVar

import cv2

from dfdc.detect import FaceDetector
from dfdc.run.limits import limit_memory, share_memory

T = TypeVar("T")

_detectors: list[FaceDetector] = []


def detect_in_parallel(
    step: Callable[..., T], calls: Sequence[tuple], *, n_workers: int, device: str = "cpu"
) -> Iterator[T]:
    """Yield the results of a function in the order in which its calls finish.

    Args:
        step: takes a `FaceDetector` and the arguments of a call; both are pickled for other processes.
        calls: the arguments of each call.
        n_workers: number of processes; with one, or a single call, this process does the work.
        device: "cpu" or "cuda", for the detectors.

    Raises:
        BrokenProcessPool: a worker died.
        Exception: whatever the function raises.
    """
    if not calls:
        return
    if n_workers == 1 or len(calls) == 1:
        detector = FaceDetector(device)
        for arguments in calls:
            yield step(detector, *arguments)
        return
    context = multiprocessing.get_context("spawn")
    start = (device, share_memory(n_workers))
    pool = ProcessPoolExecutor(n_workers, context, initializer=_start_worker, initargs=start)
    try:
        for future in as_completed([pool.submit(_step_in_worker, step, arguments) for arguments in calls]):
            yield future.result()
    finally:
        pool.shutdown(cancel_futures=True)


def _start_worker(device: str, memory_bytes: int | None) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    cv2.setNumThreads(1)
    _detectors.append(FaceDetector(device, threads=1))
    if device == "cpu":  # CUDA reserves more addresses than there is memory
        limit_memory(memory_bytes)


def _step_in_worker(step: Callable[..., T], arguments: tuple) -> T:
    return step(_detectors[0], *arguments)
