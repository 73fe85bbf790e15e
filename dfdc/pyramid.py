"""Frame -> image pyramid, and the windows and patches that the face detector's networks see."""

from __future__ import annotations

import math

import cv2
import numpy as np

from dfdc.crop import CropGeometry, crop_face
from dfdc.models import ONET_SIDE, PNET_SIDE

# Step of the scale pyramid, as in facenet-pytorch.
PYRAMID_FACTOR = 0.709
# A face that was found in another frame is searched for in a square of this many times its side around that position.
WINDOW_RATIO = 2.5
# The pyramid of a window has three steps, which find faces of .6 to 1.7 times the size.
WINDOW_SIZES = tuple(round(WINDOW_RATIO * PNET_SIDE * factor) for factor in (1 / PYRAMID_FACTOR, 1, PYRAMID_FACTOR))
WINDOW = CropGeometry(side_ratio=WINDOW_RATIO, shift_ratio=0.0, size=WINDOW_SIZES[0])

# A frame (H, W, 3) and its successive reductions by two, the largest first.
Pyramid = list[np.ndarray]


def build_pyramid(frame: np.ndarray) -> Pyramid:
    """A frame and its successive halvings; cutting a small patch from a small level takes a tenth of the time."""
    levels = [frame]
    while min(levels[-1].shape[:2]) >= 4 * ONET_SIDE:
        height, width = levels[-1].shape[:2]
        levels.append(cv2.resize(levels[-1], (width // 2, height // 2), interpolation=cv2.INTER_AREA))
    return levels


def choose_level(pyramid: Pyramid, reduction: float) -> int:
    """The index of the smallest level that is reduced by no more than `reduction`."""
    return min(int(math.log2(max(reduction, 1))), len(pyramid) - 1)


def cut_window(pyramid: Pyramid, box: np.ndarray) -> tuple[np.ndarray, np.ndarray, float]:
    """The window around a box, its top-left corner x, y and its width, both in pixels of the frame."""
    level = pyramid[choose_level(pyramid, WINDOW.square(box)[2] / WINDOW.size)]
    scale = level.shape[1] / pyramid[0].shape[1]
    left, top, side = WINDOW.square(box * scale)
    return crop_face(level, box * scale, WINDOW), np.array([left, top]) / scale, side / scale


def cut_patches(
    pyramids: list[Pyramid], boxes: np.ndarray, owners: np.ndarray, side: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Cut the candidates that a network scores, without those that lie outside their frame.

    Args:
        pyramids: of the frames.
        boxes: (N, 4) x0, y0, x1, y1 in pixels of the frame.
        owners: (N,) indices of the boxes' frames.
        side: of a patch in pixels.

    Returns:
        The remaining boxes (K, 4) and owners (K,), and their patches (K, side, side, 3) uint8.
    """
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
    """Brighten a dark frame by a gamma that brings its mean to a third of the range; bright frames are unchanged."""
    mean = float(frame.mean()) / 255
    if mean >= 1 / 3:
        return frame
    gamma = max(np.log(1 / 3) / np.log(max(mean, 1e-3)), 0.25)
    return cv2.LUT(frame, (255 * (np.arange(256) / 255) ** gamma).round().astype(np.uint8))
