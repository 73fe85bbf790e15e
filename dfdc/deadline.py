"""How much time is left: one object, made once and passed down."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True)
class Deadline:
    """A moment after which nothing more is started.

    Attributes:
        end_s: the moment, on the clock's scale; infinity for never.
        clock: seconds that only grow; time.monotonic reads the same in every process of a machine.
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
        """A deadline that passes when a share of the time left has."""
        return Deadline(self.clock() + share * self.remaining_s(), self.clock)

    def expired(self) -> bool:
        return self.clock() >= self.end_s


NEVER = Deadline(float("inf"))
