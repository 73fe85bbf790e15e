"""A child process that works on untrusted files, and a parent that outlives it.

Ray would restart a worker that a clip kills, and give the same clips to it again without end. Here the child dies
instead: the clip is tried once more, and then it gets its row with the reason.
"""

from __future__ import annotations

import contextlib
import signal
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing.connection import Connection
from typing import Protocol

from dfdc.errors import DfdcError, MachineError
from dfdc.log import show_log
from dfdc.run.pool import MAX_TRIES
from dfdc.run.spawn import START_LIMIT_S, Worker, end_workers, start_worker
from dfdc.run.worker import Ready, Refusal, release_memory


class Craft(Protocol):
    """What a child does; it is sent to the child."""

    device: str

    def prepare(self) -> Callable[[object], object]:
        """Load what the work needs, in the child, and return the function that does one piece of work."""


@dataclass(frozen=True)
class Death:
    """What became of a piece of work that killed its child in each of `MAX_TRIES` tries.

    Attributes:
        status: "timeout" if the last child hung, otherwise "error".
        reason: how the last child ended.
    """

    status: str
    reason: str


class Guard:
    """Gives work to a child, and starts another child when it dies."""

    def __init__(self, craft: Craft) -> None:
        self.craft = craft
        self._worker: Worker | None = None
        # A child of multiprocessing runs the parent's main script again; Ray's imports all of Ray.
        with contextlib.suppress(KeyError, AttributeError):
            if "ray" in (sys.modules["__main__"].__file__ or ""):
                del sys.modules["__main__"].__file__

    def do(self, work: object, *, limit_s: float) -> object:
        """Let the child do a piece of work.

        Args:
            work: for the function of the craft; it is pickled, and so is the result.
            limit_s: wall seconds after which the child counts as hung.

        Returns:
            The function's result, or a `Death`.

        Raises:
            MachineError: no child can be started, or the work raised one.
        """
        death = Death("error", "")
        for _ in range(MAX_TRIES):
            worker = self._ready()
            with contextlib.suppress(OSError):  # it died while idle: the closed connection tells
                worker.connection.send(work)
            answered = worker.connection.poll(limit_s)
            message = worker.receive() if answered else None
            if isinstance(message, Refusal):
                raise MachineError(message.reason)
            if message is not None:
                return message[0]
            fault = worker.describe_end() if answered else f"hung for {limit_s:.0f} s and was killed"
            death = Death(
                "error" if answered else "timeout", f"its worker {fault}, in {MAX_TRIES} of {MAX_TRIES} tries"
            )
            self.close()
        return death

    def close(self) -> None:
        """End the child."""
        if self._worker is not None:
            end_workers([self._worker])
            self._worker = None

    def _ready(self) -> Worker:
        if self._worker is not None and self._worker.process.is_alive():
            return self._worker
        self.close()
        for attempt in range(MAX_TRIES):
            self._worker = start_worker(self.craft, serve)
            message = self._worker.receive() if self._worker.connection.poll(START_LIMIT_S) else None
            if isinstance(message, Ready):
                return self._worker
            reason = message.reason if isinstance(message, Refusal) else self._worker.describe_end()
            self.close()
            if isinstance(message, Refusal):
                break
            time.sleep(attempt)
        raise MachineError(f"no process can be started on this node: {reason}")


def serve(connection: Connection, craft: Craft) -> None:
    """The child: do one piece of work after another until the parent closes the connection."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    show_log("dfdc")
    try:
        do = craft.prepare()
    except (DfdcError, ImportError) as error:
        connection.send(Refusal(f"{error}"))
        return
    connection.send(Ready("", craft.device))
    with contextlib.suppress(EOFError, OSError):  # the parent closed the connection
        while True:
            work = connection.recv()
            try:
                answer: object = (do(work),)
            except (DfdcError, OSError) as error:
                answer = Refusal(f"{error}")
            connection.send(answer)
            del answer, work
            release_memory()
