"""Second look at a face track: whether it is a face at all, and how far it is rolled.

The detector's cascade scores a candidate once, in the position that suits it best. A real face keeps a high score in
every view: slightly closer or farther, mirrored, or rotated. A false detection does so in some views only, and its
landmarks move when the image is mirrored.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from dfdc.crop import CropGeometry, crop_face
from dfdc.detect import FaceDetector
from dfdc.faces import roll_angles
from dfdc.models import ONET_SIDE

# SECOND_LOOKS faces of a track are examined, each in these views: zoom factor and degrees of rotation. The first view
# is also shown mirrored.
SECOND_LOOKS = 4
VIEWS = ((1.0, 0.0), (0.8, 0.0), (1.25, 0.0), (1.0, 12.0), (1.0, -12.0))
# Side of the first view over the mean side of the box; O-Net was trained on such squares around a face.
VIEW_RATIO = 1.1
# Order of the landmarks in the mirror image: left and right are swapped.
MIRRORED = [1, 0, 2, 4, 3]


@dataclass(frozen=True)
class SecondLook:
    """The combined result of all views of a track.

    Attributes:
        score: mean probability of a face, 0 to 1.
        mirror_error: mean distance between the landmarks and those of the mirror image, as a share of the view's side.
        roll: degrees clockwise by which the faces are still rolled after they were turned upright by the given angles.
    """

    score: float
    mirror_error: float
    roll: float


def look_again(
    detector: FaceDetector, frames: Sequence[np.ndarray], boxes: np.ndarray, angles: np.ndarray
) -> SecondLook:
    """Take a second look at the faces of one track.

    Args:
        detector: its O-Net scores the views.
        frames: (H, W, 3) uint8 RGB each, N of them, N at least 1.
        boxes: (N, 4) one face per frame, x0, y0, x1, y1 in pixels.
        angles: (N,) degrees clockwise by which the faces are rolled; the views show them upright.
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
