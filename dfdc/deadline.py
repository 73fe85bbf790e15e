"""Track how much time is left, and limit how often a costly step runs."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path


@dataclass(frozen=True)
class Deadline:
    """A moment after which nothing more is started.

    Attributes:
        end_s: the moment on the clock's scale; infinity for never.
        clock: monotonic clock in seconds; time.monotonic is the same in every process of a machine.
    """

    end_s: float
    clock: Callable[[], float] = time.monotonic

    @classmethod
    def after(cls, seconds: float, *, clock: Callable[[], float] = time.monotonic) -> Deadline:
        return cls(clock() + seconds, clock)

    def remaining_s(self) -> float:
        """Seconds left, never below zero."""
        return max(self.end_s - self.clock(), 0.0)

    def part(self, share: float) -> Deadline:
        """A deadline that passes after a share of the time left."""
        return Deadline(self.clock() + share * self.remaining_s(), self.clock)

    def expired(self) -> bool:
        return self.clock() >= self.end_s


NEVER = Deadline(float("inf"))


def process_start_s() -> float:
    """The start time of this process on the scale of time.monotonic; the current time if it is not known."""
    with suppress(OSError, ValueError, IndexError, AttributeError):
        # proc(5): the text after the name in brackets starts with field 3; field 22 is the start in ticks since boot.
        ticks = int(Path("/proc/self/stat").read_text(errors="replace").rpartition(")")[2].split()[19])
        age_s = time.clock_gettime(time.CLOCK_BOOTTIME) - ticks / os.sysconf("SC_CLK_TCK")
        return time.monotonic() - max(age_s, 0.0)
    return time.monotonic()


@dataclass
class Pace:
    """Limits how often a step runs, so that it takes no more than a share of the time.

    Attributes:
        share: largest share of the time, above 0.
        least_s: smallest pause in seconds between two steps, however short they are.
        clock: monotonic clock in seconds.
        cost_s: duration of the last step in seconds; 0 before the first.
    """

    share: float = 0.05
    least_s: float = 0.0
    clock: Callable[[], float] = time.monotonic
    cost_s: float = 0.0
    _next_s: float = field(default=float("-inf"), repr=False)

    def due(self) -> bool:
        """Whether the step may run now."""
        return self.clock() >= self._next_s

    @contextmanager
    def measured(self) -> Iterator[None]:
        """Measure the step, which runs inside the block, whether it succeeds or fails."""
        began_s = self.clock()
        try:
            yield
        finally:
            end_s = self.clock()
            self.cost_s = end_s - began_s
            self._next_s = end_s + max(self.cost_s * (1 / self.share - 1), self.least_s)
