"""Face boxes -> tracks: one per person, linked over time by overlap."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from dfdc.assignment import assign
from dfdc.detect import FaceDetector, Faces

# Sampled frames lie about half a second apart: a head that turns or nods keeps this much overlap with itself.
MIN_OVERLAP = 0.15
# A person who was not found for more than so many frames in a row starts a new track on return.
MAX_GAP = 4
# A track that is found in less than this share of the longest track's frames, or only once, is taken for a false hit,
# and so is one whose hits the detector doubts on average: on ten clips, patterned cloth scored .89, persons .97 up.
MIN_SHARE = 0.25
MIN_SCORE = 0.92
# Persons beyond these are left out: a crowd's clip must not cost more than its share. The longest tracks go first.
MAX_TRACKS = 8


@dataclass(frozen=True)
class Track:
    """One person over time.

    Attributes:
        frames: (T,) int64 indices of frames, rising, without gaps among those that were searched.
        boxes: (T, 4) float32 x0, y0, x1, y1; interpolated where the face was not found.
        found: (T,) bool, whether the box was found rather than interpolated.
        score: mean of the detector's scores where it was found, 0 to 1.
    """

    frames: np.ndarray
    boxes: np.ndarray
    found: np.ndarray
    score: float

    def __len__(self) -> int:
        return len(self.frames)


def find_tracks(frames: Sequence[np.ndarray], detector: FaceDetector) -> tuple[list[Track], dict[int, Faces]]:
    """Find the persons of a clip.

    Args:
        frames: (H, W, 3) uint8 RGB each, in order of time; there may be none.
        detector: finds faces.

    Returns:
        At most `MAX_TRACKS` tracks, the longest first, and the faces of every frame that was searched, in order of
        time; both by index into the frames.
    """
    if not frames:
        return [], {}
    searched, faces = detector.search(frames)
    places = np.array(searched)
    tracks = [replace(track, frames=places[track.frames]) for track in link_tracks(faces)[:MAX_TRACKS]]
    return tracks, dict(zip(searched, faces, strict=True))


def iou(a: np.ndarray, b: np.ndarray) -> np.ndarray:
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
    rarely or doubtfully beside others is dropped; where nothing else is found, it is kept.

    Args:
        faces: one entry per frame, in order of time.

    Returns:
        Tracks by number of found boxes, most first.
    """
    linked: list[list[_Hit]] = []
    for index, found in enumerate(faces):
        hits: list[_Hit | None] = [
            _Hit(index, box, float(score)) for box, score in zip(found.boxes, found.scores, strict=True)
        ]
        recent = [track for track in linked if index - track[-1].frame <= MAX_GAP + 1]
        if recent and hits:
            shares = iou(np.stack([track[-1].box for track in recent]), found.boxes)
            shares[shares < MIN_OVERLAP] = 0
            for row, column in assign(shares):
                if shares[row, column] > 0:
                    recent[row].append(hits[column])
                    hits[column] = None
        linked += [[hit] for hit in hits if hit]
    longest = max((len(track) for track in linked), default=0)
    least = max(MIN_SHARE * longest, 2) if longest > 1 else 1
    tracks = [_fill(track) for track in sorted(linked, key=len, reverse=True) if len(track) >= least]
    return [track for track in tracks if track.score >= MIN_SCORE] or tracks


@dataclass(frozen=True)
class _Hit:
    """A box (4,) that was found in a frame."""

    frame: int
    box: np.ndarray
    score: float


def _fill(hits: list[_Hit]) -> Track:
    """A track without gaps: boxes between hits lie on a straight line in time."""
    seen = np.array([hit.frame for hit in hits])
    boxes = np.stack([hit.box for hit in hits])
    frames = np.arange(seen[0], seen[-1] + 1)
    filled = np.stack([np.interp(frames, seen, boxes[:, side]) for side in range(4)], 1).astype(np.float32)
    return Track(frames, filled, np.isin(frames, seen), float(np.mean([hit.score for hit in hits])))
