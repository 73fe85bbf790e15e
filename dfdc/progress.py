"""What is being done to a clip, for somebody who waits for its result."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

# The stages of a clip, in order.
Stage = Literal["reading", "detecting", "scoring", "writing"]


@dataclass(frozen=True)
class Progress:
    """A stage that has begun, or gone on.

    Attributes:
        stage: "reading" frames, "detecting" faces, "scoring" them, or "writing" pictures, heat maps and results.
        n_done, n_all: frames that were read, and that are wanted; both 0 in the other stages.
    """

    stage: Stage
    n_done: int = 0
    n_all: int = 0


# Called with each step as it begins, in the process that does the work.
Watch = Callable[[Progress], None]


def ignore(progress: Progress) -> None:
    """Watch nothing."""
