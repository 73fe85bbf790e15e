"""End the process at its deadline, even if it waits for a disk that does not answer or a pipe without a writer."""

from __future__ import annotations

import multiprocessing
import os
import select
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

from dfdc.deadline import Deadline

# The deadline is checked at least this often, because a machine that was suspended has lost time.
LOOK_S = 30.0
EXIT_CODE = 1


@contextmanager
def ending_in_time(deadline: Deadline, *, end: Callable[[], None] | None = None) -> Iterator[None]:
    """End this process at a deadline if the block has not ended by then.

    Args:
        deadline: deadline of the block.
        end: function to call at the deadline; None for `end_process`.
    """
    stop = threading.Event()

    def watch() -> None:
        while not deadline.expired():
            if stop.wait(min(deadline.remaining_s(), LOOK_S)):
                return
        (end or end_process)()

    if deadline.end_s < float("inf"):
        threading.Thread(target=watch, name="watchdog", daemon=True).start()
    try:
        yield
    finally:
        stop.set()


def end_process() -> None:
    """End this process and its workers at once; files that are complete stay complete."""
    for child in multiprocessing.active_children():
        with suppress(OSError):
            child.kill()
    with suppress(OSError, ValueError):
        if select.select([], [2], [], 0)[1]:  # a blocked stderr must not delay the end
            os.write(2, b"\nkernel: the time limit ended while a file or device did not answer; ended\n")
    os._exit(EXIT_CODE)
