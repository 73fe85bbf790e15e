"""Start worker processes, send them clips, receive their messages and end them.

Each worker is a fresh interpreter. A fork server would start workers somewhat faster, but it can die or be stopped, and
it needs a socket whose path fits into 107 bytes.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path

from dfdc.progress import Progress
from dfdc.run.limits import end_with_parent
from dfdc.run.plan import Task
from dfdc.run.worker import Answer, Ready, Refusal, WorkerSettings

# Loading the models may take this many seconds; it takes minutes on a cold disk.
START_LIMIT_S = 300.0
# Waiting for all workers to end takes at most this long, because otherwise the run's last files come late. A worker
# that a dead disk or driver blocks cannot be killed.
CLOSE_LIMIT_S = 1.5
# By default glibc returns big buffers to the system after each use, and allocating them again costs torch up to seven
# times the work itself. The MALLOC settings keep all but the biggest. The libraries use one thread each, because clips
# run in parallel instead (the worker sets the threads of torch and OpenCV). All of these must be set before a process
# starts.
ENVIRONMENT = {
    "MALLOC_MMAP_THRESHOLD_": str(2**25),
    "MALLOC_TRIM_THRESHOLD_": str(2**27),
    "MALLOC_TOP_PAD_": str(2**24),
    **{f"{library}_NUM_THREADS": "1" for library in ("OMP", "OPENBLAS", "MKL")},
}

# Exit code of a worker that was about to start workers of its own; none of the usual failures has it.
UNGUARDED_EXIT = 93

Work = Callable[[Connection, WorkerSettings], None]


@dataclass
class Worker:
    """A worker process and its state.

    Attributes:
        due_s: time on the monotonic clock after which it counts as hung; infinity while it waits.
        wanted: device that it was told to use: "auto", "cpu" or "cuda".
        device: device that it uses, "cpu" or "cuda"; None while it loads.
        name: row that it works on; None while it loads or waits.
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
        """Send the worker a clip to score."""
        self.name = task.name
        self.due_s = time.monotonic() + task.most_s
        with contextlib.suppress(OSError):  # it died while idle; the next wait sees its closed connection
            self.connection.send((path, task))

    def receive(self) -> Answer | Progress | Ready | Refusal | None:
        """Receive its message; None if it died."""
        try:
            message = self.connection.recv()
        except (EOFError, OSError):
            return None
        if isinstance(message, Progress):  # its clip must still be done in time
            return message
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
        """Whether it was killed from outside, as Linux does when memory runs out."""
        self.process.join(timeout=5)
        return self.process.exitcode == -signal.SIGKILL

    def was_unguarded(self) -> bool:
        """Whether the script that it imported tried to start workers in its turn."""
        self.process.join(timeout=5)
        return self.process.exitcode == UNGUARDED_EXIT

    def describe_end(self) -> str:
        """Describe how it ended, in words."""
        self.process.join(timeout=5)
        code = self.process.exitcode
        if code is not None and code < 0:
            return f"died: {signal.strsignal(-code)}" + (", perhaps out of memory" if self.was_killed() else "")
        return f"ended with exit code {code}"


def start_worker(settings: WorkerSettings, work: Work) -> Worker:
    """Start a worker.

    Args:
        settings: settings of the worker.
        work: function that it runs.

    Raises:
        OSError: the system has no process, descriptor or memory left.
        SystemExit: this process is itself a worker that still imports the user's script, which lacks the guard
            `if __name__ == "__main__":`; its parent tells the user.
    """
    if getattr(multiprocessing.current_process(), "_inheriting", False):  # as multiprocessing itself finds out
        sys.exit(UNGUARDED_EXIT)
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    try:
        process = context.Process(target=_live, args=(work, theirs, settings, os.getpid()), daemon=True)
        with environment():
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
    """Kill workers and wait until they have ended, for at most `CLOSE_LIMIT_S`."""
    for worker in workers:
        worker.connection.close()
        worker.process.kill()
    end_s = time.monotonic() + CLOSE_LIMIT_S
    for worker in workers:
        worker.process.join(timeout=max(end_s - time.monotonic(), 0))


@contextlib.contextmanager
def environment() -> Iterator[None]:
    """Set `ENVIRONMENT` and the path of this package for processes that are started inside the block."""
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
