"""Pictures in the picture: blurred copies, posters and thumbnails beside a person, which must not decide a clip.

Each rule compares two tracks, so a clip with a single face is never affected: somebody may film a screen and ask
whether the face on it is real.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np

from dfdc.crop import CropGeometry, crop_face
from dfdc.quality import MEASURED_SIDE, measure_detail

# Number of faces of a track that are examined, evenly spread over time.
SAMPLED = 6
# A larger face shows more detail than a smaller one beside it. If its detail (log2) is lower by this much, it is a
# blurred enlargement. In two_faces.mp4 the larger face has .3 more detail; blurs of 5 to 15 px on 1080 px cost 1 to 2.
MIN_BLUR = 0.8
# A face that changes by less than MAX_STILL from one sampled frame to the next, as a share of its contrast, is a still
# image. Living faces change by .09 to .9; these include two seconds of a quiet listener.
MAX_STILL, MIN_LIVING = 0.04, 0.16
# A thumbnail is at most this many pixels wide, and at most this share of the person's width.
MAX_THUMBNAIL, MAX_THUMBNAIL_RATIO = 48, 0.25
# The boxes of two persons rarely share more than this part of the smaller box, averaged over the frames with both.
MAX_HIDDEN = 0.35
# If they do, the track that is seen in at least this many times as many frames is the person.
MIN_LONGER = 1.25

VIEW = CropGeometry(size=MEASURED_SIDE)
STILL_SIDE = 48


@dataclass(frozen=True)
class TrackSummary:
    """Measurements of one track.

    Attributes:
        frames: (T,) indices of frames.
        boxes: (T, 4) in pixels.
        side: median of the boxes' mean sides, in pixels.
        detail: median of `measure_detail`.
        change: median change between sampled frames, as a share of the contrast; 1 if there is only one frame.
    """

    frames: np.ndarray
    boxes: np.ndarray
    side: float
    detail: float
    change: float


def measure_track(
    images: Sequence[np.ndarray], frames: np.ndarray, boxes: np.ndarray, angles: np.ndarray
) -> TrackSummary:
    """Measure some faces of a track.

    Args:
        images: (H, W, 3) uint8 RGB, the clip's frames.
        frames: (T,) indices of those that show the track.
        boxes: (T, 4) in pixels.
        angles: (T,) degrees.
    """
    some = np.unique(np.linspace(0, len(frames) - 1, SAMPLED).round().astype(int))
    crops = np.stack([crop_face(images[frames[i]], boxes[i], VIEW, angle=float(angles[i])) for i in some])
    # With a fixed camera, a still image stays in one place while its detected boxes jitter.
    steady = np.stack([crop_face(images[frames[i]], np.median(boxes, 0), VIEW) for i in some])
    # The sharp clip may cover the lower half of an enlarged copy behind it, so only brow and eyes are measured.
    details = measure_detail(crops[:, : VIEW.size // 2])
    side = float(np.median((boxes[:, 2:] - boxes[:, :2]).mean(1)))
    return TrackSummary(
        frames, boxes, side, float(np.median(details)), min(_measure_change(crops), _measure_change(steady))
    )


def _measure_change(crops: np.ndarray) -> float:
    """The median change from one crop to the next, as a share of their contrast; 1 if there is only one crop."""
    size = (STILL_SIDE, STILL_SIDE)
    small = np.stack([cv2.resize(crop, size, interpolation=cv2.INTER_AREA) for crop in crops]).astype(np.float32)
    changes = np.abs(np.diff(small, axis=0)).mean((1, 2, 3)) / max(float(small.std()), 1.0)
    return float(np.median(changes)) if len(changes) else 1.0


def find_pictures(measured: Sequence[TrackSummary]) -> list[str]:
    """Find the tracks that are pictures beside a person.

    Args:
        measured: measurements of each track.

    Returns:
        A reason for each track; empty for persons. At least one track is a person.
    """
    reasons = [""] * len(measured)
    for rule in (_blurred, _still, _thumbnail, _seen_twice):
        for number, track in enumerate(measured):
            others = [other for place, other in enumerate(measured) if place != number and not reasons[place]]
            if not reasons[number]:
                reasons[number] = next(filter(None, (rule(track, other) for other in others)), "")
    return reasons


def _blurred(track: TrackSummary, person: TrackSummary) -> str:
    if track.detail + MIN_BLUR > person.detail or track.side < person.side:
        return ""
    return f"blurred beside a smaller face: detail {track.detail:.1f} against {person.detail:.1f}"


def _still(track: TrackSummary, person: TrackSummary) -> str:
    if track.change > MAX_STILL or person.change < MIN_LIVING:
        return ""
    return f"still image: it changes by {track.change:.2f} of its contrast, the person beside it by {person.change:.2f}"


def _thumbnail(track: TrackSummary, person: TrackSummary) -> str:
    if track.side > MAX_THUMBNAIL or track.side > MAX_THUMBNAIL_RATIO * person.side:
        return ""
    return f"a thumbnail of {track.side:.0f} px beside a face of {person.side:.0f} px"


def _seen_twice(track: TrackSummary, person: TrackSummary) -> str:
    if len(person.frames) < MIN_LONGER * len(track.frames) or (hidden := _hidden(track, person)) < MAX_HIDDEN:
        return ""
    return f"{hidden:.0%} of its box overlaps a face that is seen longer"


def _hidden(track: TrackSummary, other: TrackSummary) -> float:
    """The overlap of two tracks as a share of the smaller box, averaged over the frames that show both."""
    _, mine, others = np.intersect1d(track.frames, other.frames, return_indices=True)
    if not len(mine):
        return 0.0
    a, b = track.boxes[mine], other.boxes[others]
    shared = np.clip(np.minimum(a[:, 2:], b[:, 2:]) - np.maximum(a[:, :2], b[:, :2]), 0, None).prod(1)
    return float((shared / np.minimum((a[:, 2:] - a[:, :2]).prod(1), (b[:, 2:] - b[:, :2]).prod(1))).mean())
