"""Worker processes from outside: started, given clips, listened to and ended.

Each is a fresh interpreter. A server that forks them would start them somewhat faster, but it can die or be stopped,
and it needs a socket whose path fits into 107 bytes.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path

from dfdc.run.limits import end_with_parent
from dfdc.run.plan import Task
from dfdc.run.worker import Answer, Ready, Refusal, WorkerSettings

# Loading the models may take so long; minutes on a cold disk.
START_LIMIT_S = 300.0
# Ending all workers takes at most so long, or the run's last files come late; one that a dead disk or driver holds
# cannot be killed.
CLOSE_LIMIT_S = 1.5
# Big buffers go back to the system after each use by default, and fetching them anew costs torch up to seven times
# the work. These keep all but the biggest; like the libraries' numbers of threads (clips run side by side instead;
# torch and OpenCV are told theirs by the worker) they must be there before a process starts.
ENVIRONMENT = {
    "MALLOC_MMAP_THRESHOLD_": str(2**25),
    "MALLOC_TRIM_THRESHOLD_": str(2**27),
    "MALLOC_TOP_PAD_": str(2**24),
    **{f"{library}_NUM_THREADS": "1" for library in ("OMP", "OPENBLAS", "MKL")},
}

Work = Callable[[Connection, WorkerSettings], None]


@dataclass
class Worker:
    """A process and what it is doing.

    Attributes:
        due_s: on the monotonic clock, when it counts as hung; infinity while it waits.
        wanted: the device that it was told to use: "auto", "cpu" or "cuda".
        device: the one that it uses, "cpu" or "cuda"; None while it loads.
        name: the row that it works on; None while it loads or waits.
    """

    process: multiprocessing.Process
    connection: Connection
    due_s: float
    wanted: str
    device: str | None = None
    name: str | None = None

    @property
    def idle(self) -> bool:
        """Whether it waits for a clip."""
        return self.device is not None and self.name is None

    def give(self, task: Task, path: Path) -> None:
        """Let it look at a clip."""
        self.name = task.name
        self.due_s = time.monotonic() + task.most_s
        with contextlib.suppress(OSError):  # it died while idle: its closed connection is noticed at the next wait
            self.connection.send((path, task))

    def receive(self) -> Answer | Ready | Refusal | None:
        """Its message; None if it died."""
        try:
            message = self.connection.recv()
        except (EOFError, OSError):
            return None
        self.due_s = float("inf")
        if isinstance(message, Ready):
            self.device = message.device
        elif isinstance(message, Answer):
            self.name = None
        return message

    def overdue(self) -> bool:
        """Whether it counts as hung."""
        return self.due_s < time.monotonic() and not self.connection.poll()

    def was_killed(self) -> bool:
        """Whether somebody else killed it, as Linux does where memory is short."""
        self.process.join(timeout=5)
        return self.process.exitcode == -signal.SIGKILL

    def describe_end(self) -> str:
        """How it died, in words."""
        self.process.join(timeout=5)
        code = self.process.exitcode
        if code is not None and code < 0:
            return f"died: {signal.strsignal(-code)}" + (", perhaps out of memory" if self.was_killed() else "")
        return f"ended with exit code {code}"


def start_worker(settings: WorkerSettings, work: Work) -> Worker:
    """Start a worker.

    Args:
        settings: of it.
        work: what it runs.

    Raises:
        OSError: the system has no process, descriptor or memory for it.
    """
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    try:
        process = context.Process(target=_live, args=(work, theirs, settings, os.getpid()), daemon=True)
        with _environment():
            process.start()
    except BaseException:
        ours.close()
        raise
    finally:
        theirs.close()
    return Worker(process, ours, time.monotonic() + START_LIMIT_S, settings.device)


def _live(work: Work, connection: Connection, settings: WorkerSettings, parent: int) -> None:
    end_with_parent(parent)
    work(connection, settings)


def end_workers(workers: Sequence[Worker]) -> None:
    """Kill workers and wait for their ends, though not for ever."""
    for worker in workers:
        worker.connection.close()
        worker.process.kill()
    end_s = time.monotonic() + CLOSE_LIMIT_S
    for worker in workers:
        worker.process.join(timeout=max(end_s - time.monotonic(), 0))


@contextlib.contextmanager
def _environment() -> Iterator[None]:
    """`ENVIRONMENT`, and where this package lies, hold for processes started inside."""
    paths = [str(Path(__file__).resolve().parents[2]), os.environ.get("PYTHONPATH", "")]
    values = {**ENVIRONMENT, "PYTHONPATH": os.pathsep.join(filter(None, paths))}
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
