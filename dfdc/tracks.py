"""Face boxes -> tracks: one per person, linked over time by overlap."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.optimize import linear_sum_assignment

from dfdc.detect import Faces

# Sampled frames lie about half a second apart: a head that turns or nods keeps this much overlap with itself.
MIN_OVERLAP = 0.15
# A person who was not found for so many frames in a row starts a new track on return.
MAX_GAP = 4
# A track that is found in less than this share of the longest track's frames, or only once, is taken for a false hit.
MIN_SHARE = 0.15


@dataclass(frozen=True)
class Track:
    """One person over time.

    Attributes:
        frames: (T,) int64 indices of the frames, rising by one: gaps are filled.
        boxes: (T, 4) float32 x0, y0, x1, y1; interpolated where the face was not found.
        found: (T,) bool, whether the box was found rather than interpolated.
    """

    frames: np.ndarray
    boxes: np.ndarray
    found: np.ndarray

    def __len__(self) -> int:
        return len(self.frames)


def overlap(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Intersection over union of boxes.

    Args:
        a: (N, 4) x0, y0, x1, y1.
        b: (M, 4).

    Returns:
        (N, M) float64, 0 to 1.
    """
    a, b = np.asarray(a, float)[:, None], np.asarray(b, float)[None]
    sides = np.clip(np.minimum(a[..., 2:], b[..., 2:]) - np.maximum(a[..., :2], b[..., :2]), 0, None)
    shared = sides.prod(-1)
    union = (a[..., 2:] - a[..., :2]).prod(-1) + (b[..., 2:] - b[..., :2]).prod(-1) - shared
    return np.divide(shared, union, out=np.zeros_like(shared), where=union > 0)


def link_tracks(faces: list[Faces]) -> list[Track]:
    """Link the faces of successive frames.

    Each frame's boxes are matched to the tracks' last boxes so that the sum of overlaps is greatest. What is found
    once while others are found often is dropped; where everything is found once, everything is kept.

    Args:
        faces: one entry per frame, in order of time.

    Returns:
        Tracks by number of found boxes, most first.
    """
    hits: list[list[tuple[int, np.ndarray]]] = []
    for index, found in enumerate(faces):
        recent = [track for track in hits if index - track[-1][0] <= MAX_GAP + 1]
        free = set(range(len(found)))
        if recent and len(found):
            shares = overlap(np.stack([track[-1][1] for track in recent]), found.boxes)
            for row, column in zip(*linear_sum_assignment(-shares), strict=True):
                if shares[row, column] >= MIN_OVERLAP:
                    recent[row].append((index, found.boxes[column]))
                    free.discard(int(column))
        hits += [[(index, found.boxes[column])] for column in sorted(free)]
    longest = max((len(track) for track in hits), default=0)
    least = max(MIN_SHARE * longest, 2) if longest > 1 else 1
    return [_fill(track) for track in sorted(hits, key=len, reverse=True) if len(track) >= least]


def _fill(hits: list[tuple[int, np.ndarray]]) -> Track:
    """A track without gaps: boxes between hits lie on a straight line in time."""
    seen = np.array([index for index, _ in hits])
    boxes = np.stack([box for _, box in hits])
    frames = np.arange(seen[0], seen[-1] + 1)
    filled = np.stack([np.interp(frames, seen, boxes[:, side]) for side in range(4)], 1).astype(np.float32)
    return Track(frames, filled, np.isin(frames, seen))
