"""Run the real kernel with workers that crash, hang or eat memory when a clip's name orders it, or without models.

Real decoders do not crash, hang or eat memory on demand. For the supervisor the faults here are the same.
"""

from __future__ import annotations

import ctypes
import os
import resource
import signal
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from multiprocessing.connection import Connection
from pathlib import Path

import numpy as np

import kernel
from dfdc.analysis import Analysis, Timings
from dfdc.deadline import Deadline, process_start_s
from dfdc.errors import VideoError, VideoTimeout
from dfdc.progress import Watch
from dfdc.run import limits, plan, pool, scoring, worker
from dfdc.run.inputs import Job
from dfdc.run.summary import Result
from dfdc.run.worker import WorkerSettings
from dfdc.video import Reading, read_clip

# Wall limit of a clip in a sabotaged run, and the grace after it; enough for an intact clip on a busy machine.
LIMIT_S = 20.0
GRACE_S = 4.0
# Address space that a worker may take in addition to what it has before its limit, or the out-of-memory killer, acts.
ROOM_BYTES = 512 * 2**20
REAL_WORK = pool.score_clips


def segfault() -> None:
    """a segmentation fault (address 0 read in C)"""
    ctypes.string_at(0)


def hang() -> None:
    """a hang in C that holds the interpreter's lock"""
    ctypes.PyDLL(None).pause()


def spin() -> None:
    """a computation that never ends"""
    while True:
        pass


def sleep() -> None:
    """a wait that never ends"""
    threading.Event().wait()


def _limit_memory() -> None:
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + ROOM_BYTES, resource.RLIM_INFINITY))


def eat() -> None:
    """memory used up to a limit (RLIMIT_AS), reported as MemoryError"""
    _limit_memory()
    kept = []
    try:
        while True:
            kept.append(bytearray(2**24))
    finally:
        kept.clear()
        resource.setrlimit(resource.RLIMIT_AS, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))


def eat_in_c() -> None:
    """memory used in C up to a limit, without checking the result of malloc"""
    _limit_memory()
    libc = ctypes.CDLL(None)
    libc.malloc.restype = ctypes.c_void_p
    while True:
        ctypes.memset(libc.malloc(ctypes.c_size_t(2**24)), 1, 2**24)


def be_killed() -> None:
    """memory used until a SIGKILL, as from the out-of-memory killer"""
    kept = bytearray(ROOM_BYTES // 4)
    kept[::4096] = b"\1" * len(kept[::4096])
    os.kill(os.getpid(), signal.SIGKILL)


def abort() -> None:
    """abort(), as after a failed assertion in C"""
    os.abort()


def leave() -> None:
    """exit(0) in the middle of a clip"""
    os._exit(0)


# The deeds by name. The docstring of each is its name in the table.
DEEDS = {deed.__name__: deed for deed in (segfault, hang, spin, sleep, eat, eat_in_c, be_killed, abort, leave)}


def read_or_misbehave(path: Path, *args: object, **kwargs: object) -> Reading:
    """Call `read_clip`, or do the deed that a clip's name (`DEED!...`) orders."""
    deed = DEEDS.get(path.name.partition("!")[0])
    if deed:
        deed()
    return read_clip(path, *args, **kwargs)


class FakeAnalyzer:
    """Uses the real reader and no models: a clip's label is computed from the mean of its pixels."""

    device = "cpu"

    def analyze(
        self,
        path: Path,
        n_frames: int,
        *,
        n_models: int,
        name: str,
        deadline: Deadline,
        thumbnails: bool,
        watch: Watch,
    ) -> Analysis:
        """Analyse one clip; the result has the form of `dfdc.analyze.Analyzer`'s."""
        started, blank = time.monotonic(), Analysis(name, n_wanted=n_frames)
        try:
            reading = read_or_misbehave(path, n_frames, deadline=deadline, watch=watch)
            frames = reading.frames
            label = 0.1 + 0.8 * sum(float(frame.pixels.mean()) for frame in frames) / len(frames) / 255
            times = np.array([frame.time_s for frame in frames])
            analysis = replace(blank, probability=label, times_s=times, identity=reading.identity)
        except VideoTimeout as error:
            analysis = replace(blank, status="timeout", reason=str(error))
        except VideoError as error:
            analysis = replace(blank, status="unreadable", reason=str(error))
        except Exception as error:
            analysis = replace(blank, status="error", reason=type(error).__name__)
        return replace(analysis, timings=Timings(time.monotonic() - started))


def score_sabotaged(connection: Connection, settings: WorkerSettings) -> None:
    """Run a real worker that also does what clips' names order."""
    import dfdc.findings

    dfdc.findings.read_clip = read_or_misbehave
    REAL_WORK(connection, settings)


def score_faked(connection: Connection, settings: WorkerSettings) -> None:
    """Run a worker without models."""
    worker.load_analyzer = lambda _: (FakeAnalyzer(), "nothing: the models are fakes")
    REAL_WORK(connection, settings)


def score_with_limit(
    score_job: Callable, limit_s: float, job: Job, out: Path, settings: WorkerSettings, **how: object
) -> Result:
    """Call `score_job` with another time limit per clip."""
    return score_job(job, out, replace(settings, clip_limit_s=limit_s), **how)


def main() -> int:
    """The kernel's command line.

    Environment: FAULTS_MODELS: "real" or "fake". FAULTS_LIMIT_S: wall limit of a clip in seconds. FAULTS_FSYNC_S:
    duration of each fsync in seconds; "inf" for one that never ends. FAULTS_STAT: any value makes the stat of clips
    hang. FAULTS_MEMORY: the bytes of memory that the machine reports.
    """
    if delay_s := os.environ.get("FAULTS_FSYNC_S"):
        os.fsync = lambda _: threading.Event().wait(None if delay_s == "inf" else float(delay_s))
    if os.environ.get("FAULTS_STAT"):
        scoring.identify = lambda _: threading.Event().wait()
    if memory := os.environ.get("FAULTS_MEMORY"):
        limits.count_memory = lambda: int(memory)
    if os.environ.get("FAULTS_MODELS") == "fake":
        scoring.answer_clips = partial(pool.answer_clips, work=score_faked)
    else:
        pool.score_clips = score_sabotaged
    if limit_s := os.environ.get("FAULTS_LIMIT_S"):
        plan.GRACE_S = GRACE_S
        scoring.score_job = partial(score_with_limit, scoring.score_job, float(limit_s))
    return kernel.main(sys.argv[1:], started_s=process_start_s())
