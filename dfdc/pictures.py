"""Pictures in the picture: blurred copies, posters and thumbnails beside a person do not decide a clip.

Each rule compares two tracks, so that a clip of one face is never touched: somebody films a screen, and asks about it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np

from dfdc.crop import CropGeometry, crop_face
from dfdc.quality import MEASURED_SIDE, measure_detail

# So many faces of a track are looked at, evenly over time.
SAMPLED = 6
# A face with half the detail of a smaller one beside it is a blurred enlargement: a face that fills more pixels shows
# more. In two_faces.mp4 the larger is the sharper by .3, blurs of 5 to 15 px on 1080 px cost 1 to 2.
MIN_BLUR = 0.8
# A face that changes less than this from one sampled frame to the next, as a share of its contrast, is a still.
# Living faces change by .09 to .9, two seconds of a quiet listener among them.
MAX_STILL, MIN_LIVING = 0.04, 0.16
# A thumbnail has few pixels, and few beside the person's.
MAX_THUMBNAIL, MAX_THUMBNAIL_RATIO = 48, 0.25
# Two persons' boxes hardly share more than this of the smaller one, on average over the frames that show both.
MAX_HIDDEN = 0.35
# Of two that do, the one that is seen in so many times as many frames is the person.
MIN_LONGER = 1.25

VIEW = CropGeometry(size=MEASURED_SIDE)
STILL_SIDE = 48


@dataclass(frozen=True)
class Look:
    """What one track shows.

    Attributes:
        frames: (T,) indices of frames.
        boxes: (T, 4) in pixels.
        side: median of the boxes' mean sides, in pixels.
        detail: median of `measure_detail`.
        change: median from sampled frame to sampled frame, as a share of the contrast; 1 if there is one frame only.
    """

    frames: np.ndarray
    boxes: np.ndarray
    side: float
    detail: float
    change: float


def look_at(images: Sequence[np.ndarray], frames: np.ndarray, boxes: np.ndarray, angles: np.ndarray) -> Look:
    """Look at some faces of a track.

    Args:
        images: (H, W, 3) uint8 RGB, the clip's frames.
        frames: (T,) indices of those that show the track.
        boxes: (T, 4) in pixels.
        angles: (T,) degrees.
    """
    some = np.unique(np.linspace(0, len(frames) - 1, SAMPLED).round().astype(int))
    crops = np.stack([crop_face(images[frames[i]], boxes[i], VIEW, angle=float(angles[i])) for i in some])
    # A camera that stands still shows a still in one place, where boxes tremble.
    steady = np.stack([crop_face(images[frames[i]], np.median(boxes, 0), VIEW) for i in some])
    # Of an enlarged copy behind the clip the lower half may be covered by the sharp one: brow and eyes tell.
    details = measure_detail(crops[:, : VIEW.size // 2])
    side = float(np.median((boxes[:, 2:] - boxes[:, :2]).mean(1)))
    return Look(frames, boxes, side, float(np.median(details)), min(_measure_change(crops), _measure_change(steady)))


def _measure_change(crops: np.ndarray) -> float:
    """The median change from one crop to the next, as a share of their contrast; 1 where there is one only."""
    size = (STILL_SIDE, STILL_SIDE)
    small = np.stack([cv2.resize(crop, size, interpolation=cv2.INTER_AREA) for crop in crops]).astype(np.float32)
    changes = np.abs(np.diff(small, axis=0)).mean((1, 2, 3)) / max(float(small.std()), 1.0)
    return float(np.median(changes)) if len(changes) else 1.0


def find_pictures(looks: Sequence[Look]) -> list[str]:
    """Which tracks are pictures beside a person, and why.

    Args:
        looks: of each track.

    Returns:
        A reason for each track; empty for persons. At least one track is a person.
    """
    reasons = [""] * len(looks)
    for rule in (_blurred, _still, _thumbnail, _seen_twice):
        for number, look in enumerate(looks):
            others = [other for place, other in enumerate(looks) if place != number and not reasons[place]]
            if not reasons[number]:
                reasons[number] = next(filter(None, (rule(look, other) for other in others)), "")
    return reasons


def _blurred(look: Look, person: Look) -> str:
    if look.detail + MIN_BLUR > person.detail or look.side < person.side:
        return ""
    return f"blurred beside a smaller face: detail {look.detail:.1f} against {person.detail:.1f}"


def _still(look: Look, person: Look) -> str:
    if look.change > MAX_STILL or person.change < MIN_LIVING:
        return ""
    return f"a still: it changes by {look.change:.2f} of its contrast, the person beside it by {person.change:.2f}"


def _thumbnail(look: Look, person: Look) -> str:
    if look.side > MAX_THUMBNAIL or look.side > MAX_THUMBNAIL_RATIO * person.side:
        return ""
    return f"a thumbnail of {look.side:.0f} px beside a face of {person.side:.0f} px"


def _seen_twice(look: Look, person: Look) -> str:
    if len(person.frames) < MIN_LONGER * len(look.frames) or (hidden := _hidden(look, person)) < MAX_HIDDEN:
        return ""
    return f"{hidden:.0%} of it lies on a face that is seen longer"


def _hidden(look: Look, other: Look) -> float:
    """The overlap of two tracks as a share of the smaller box, the mean over the frames that show both."""
    _, mine, others = np.intersect1d(look.frames, other.frames, return_indices=True)
    if not len(mine):
        return 0.0
    a, b = look.boxes[mine], other.boxes[others]
    shared = np.clip(np.minimum(a[:, 2:], b[:, 2:]) - np.maximum(a[:, :2], b[:, :2]), 0, None).prod(1)
    return float((shared / np.minimum((a[:, 2:] - a[:, :2]).prod(1), (b[:, 2:] - b[:, :2]).prod(1))).mean())
