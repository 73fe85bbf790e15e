"""Frame -> its halves, and what the face detector's nets see of it: windows and patches cut from the right half."""

from __future__ import annotations

import math

import cv2
import numpy as np

from dfdc.crop import CropGeometry, crop_face
from dfdc.nets import ONET_SIDE, PNET_SIDE

# Step of the scale pyramid, facenet-pytorch's own.
PYRAMID_FACTOR = 0.709
# A face that was found in another frame is looked for in a square of so many times its side around where it was.
WINDOW_RATIO = 2.5
# There the pyramid has three steps: faces of .6 to 1.7 times the size are found.
WINDOW_SIZES = tuple(round(WINDOW_RATIO * PNET_SIDE * factor) for factor in (1 / PYRAMID_FACTOR, 1, PYRAMID_FACTOR))
WINDOW = CropGeometry(side_ratio=WINDOW_RATIO, shift_ratio=0.0, size=WINDOW_SIZES[0])

# A frame (H, W, 3) and its halves, the largest first.
Pyramid = list[np.ndarray]


def build_pyramid(frame: np.ndarray) -> Pyramid:
    """A frame and its successive halves: what is looked at small is cut out of a small one, for a tenth of the time."""
    levels = [frame]
    while min(levels[-1].shape[:2]) >= 4 * ONET_SIDE:
        height, width = levels[-1].shape[:2]
        levels.append(cv2.resize(levels[-1], (width // 2, height // 2), interpolation=cv2.INTER_AREA))
    return levels


def choose_level(pyramid: Pyramid, reduction: float) -> int:
    """Which is the smallest level that is reduced no more than so many times."""
    return min(int(math.log2(max(reduction, 1))), len(pyramid) - 1)


def cut_window(pyramid: Pyramid, box: np.ndarray) -> tuple[np.ndarray, np.ndarray, float]:
    """The surroundings of a box, where they begin and how many pixels of the frame they are wide."""
    level = pyramid[choose_level(pyramid, WINDOW.square(box)[2] / WINDOW.size)]
    scale = level.shape[1] / pyramid[0].shape[1]
    left, top, side = WINDOW.square(box * scale)
    return crop_face(level, box * scale, WINDOW), np.array([left, top]) / scale, side / scale


def cut_patches(
    pyramids: list[Pyramid], boxes: np.ndarray, owners: np.ndarray, side: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """What a net sees of its candidates, (K, side, side, 3) uint8, without those that lie outside their frame."""
    limits = np.array([pyramid[0].shape[1::-1] for pyramid in pyramids])[owners]
    low = np.maximum(boxes[:, :2].astype(int), 1) - 1
    high = np.minimum(boxes[:, 2:].astype(int), limits)
    inside = np.flatnonzero((high > low).all(1))
    patches = np.empty((len(inside), side, side, 3), np.uint8)
    for patch, owner, ends in zip(patches, owners[inside], np.hstack([low, high])[inside].tolist(), strict=True):
        shorter = min(ends[2] - ends[0], ends[3] - ends[1])
        number = choose_level(pyramids[owner], shorter / side)
        x0, y0, x1, y1 = (round(end / 2**number) for end in ends)
        patch[:] = cv2.resize(pyramids[owner][number][y0:y1, x0:x1], (side, side), interpolation=cv2.INTER_AREA)
    return boxes[inside], owners[inside], patches


def brighten(frame: np.ndarray) -> np.ndarray:
    """Lift shadows by a gamma that brings a dark frame's mean to a third of the range; bright frames stay."""
    mean = float(frame.mean()) / 255
    if mean >= 1 / 3:
        return frame
    gamma = max(np.log(1 / 3) / np.log(max(mean, 1e-3)), 0.25)
    return cv2.LUT(frame, (255 * (np.arange(256) / 255) ** gamma).round().astype(np.uint8))
