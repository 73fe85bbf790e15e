"""A second look at a track: is it a face at all, and how far is it rolled?

The detector's cascade sees a candidate once, in the place that suits it best. A face is one in every view: a little
nearer and farther, mirrored, turned. What only looks like a face is one in some of them, and its landmarks lie
elsewhere in the mirror.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from dfdc.crop import CropGeometry, crop_face
from dfdc.detect import FaceDetector
from dfdc.faces import roll_angles
from dfdc.nets import ONET_SIDE

# So many faces of a track are looked at again, each in these views: zoom, and degrees of turn. The first is shown
# mirrored, too.
SECOND_LOOKS = 4
VIEWS = ((1.0, 0.0), (0.8, 0.0), (1.25, 0.0), (1.0, 12.0), (1.0, -12.0))
# The side of the first view over the mean side of the box: the square around it, as O-Net was trained on.
VIEW_RATIO = 1.1
# Left and right change sides in the mirror.
MIRRORED = [1, 0, 2, 4, 3]


@dataclass(frozen=True)
class SecondLook:
    """What the views of a track say together.

    Attributes:
        score: mean probability of a face, 0 to 1.
        mirror_error: mean distance of landmarks to those of the mirror image, in shares of the view's side.
        roll: degrees clockwise by which the faces are rolled beyond the angles that they were turned back by.
    """

    score: float
    mirror_error: float
    roll: float


def look_again(
    detector: FaceDetector, frames: Sequence[np.ndarray], boxes: np.ndarray, angles: np.ndarray
) -> SecondLook:
    """Look at faces of one track again.

    Args:
        detector: whose O-Net judges the views.
        frames: (H, W, 3) uint8 RGB each, N of them, N at least 1.
        boxes: (N, 4) one face in each, in pixels.
        angles: (N,) degrees clockwise by which they are rolled; the views show them turned back.
    """
    some = np.unique(np.linspace(0, len(frames) - 1, SECOND_LOOKS).round().astype(int))
    views = [_cut_views(frames[index], boxes[index], angles[index]) for index in some]
    scores, points = detector.judge_patches(np.concatenate(views))
    points = points.reshape(len(some), -1, *points.shape[1:])
    mirrored = (points[:, 1] * [-1, 1] + [1, 0])[:, MIRRORED]
    return SecondLook(
        float(scores.mean()),
        float(np.abs(points[:, 0] - mirrored).mean()),
        float(np.median(roll_angles(points[:, 0]))),
    )


def _cut_views(frame: np.ndarray, box: np.ndarray, angle: float) -> np.ndarray:
    """The views of one face, (V, 48, 48, 3) uint8 RGB; the second is the first one's mirror image."""
    cut = [
        crop_face(frame, box, CropGeometry(side_ratio=VIEW_RATIO * zoom, shift_ratio=0.0, size=ONET_SIDE), angle=a)
        for zoom, a in ((zoom, angle + turn) for zoom, turn in VIEWS)
    ]
    return np.stack([cut[0], cut[0][:, ::-1], *cut[1:]])
