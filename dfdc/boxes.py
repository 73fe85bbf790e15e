"""Bounding boxes: overlap, non-maximum suppression, and adjustments."""

from __future__ import annotations

import cv2
import numpy as np


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


def suppress(boxes: np.ndarray, scores: np.ndarray, groups: np.ndarray, most: float) -> np.ndarray:
    """Non-maximum suppression within groups.

    Args:
        boxes: (N, 4) x0, y0, x1, y1.
        scores: (N,).
        groups: (N,) ints; boxes of different groups do not suppress each other.
        most: the largest allowed overlap (intersection over union) with a better box.

    Returns:
        Indices of the boxes that are kept, best first.
    """
    rectangles = np.concatenate([boxes[:, :2], boxes[:, 2:] - boxes[:, :2]], 1)
    picked = cv2.dnn.NMSBoxesBatched(rectangles.tolist(), scores.tolist(), groups.tolist(), 0.0, most)
    return np.asarray(picked, int).reshape(-1)


def suppress_contained(boxes: np.ndarray, scores: np.ndarray, groups: np.ndarray, most: float) -> np.ndarray:
    """Like `suppress`, with the overlap as a share of the smaller box, so that part of a face is not a second face."""
    sides = np.minimum(boxes[:, None, 2:], boxes[None, :, 2:]) - np.maximum(boxes[:, None, :2], boxes[None, :, :2]) + 1
    areas = (boxes[:, 2:] - boxes[:, :2] + 1).prod(1)
    shares = np.clip(sides, 0, None).prod(2) / np.minimum(areas[:, None], areas)
    rivals = (shares > most) & (groups[:, None] == groups)
    picked: list[int] = []
    for index in np.argsort(-scores, kind="stable"):
        if not rivals[index, picked].any():
            picked.append(int(index))
    return np.array(picked, int)


def make_square(boxes: np.ndarray) -> np.ndarray:
    """The smallest squares (K, 4) that contain the boxes (K, 4) and have the same centres."""
    sides = boxes[:, 2:] - boxes[:, :2]
    side = sides.max(1, keepdims=True)
    low = boxes[:, :2] + sides / 2 - side / 2
    return np.concatenate([low, low + side], 1)


def move_boxes(boxes: np.ndarray, offsets: np.ndarray) -> np.ndarray:
    """Boxes (K, 4) moved by offsets, given as shares of their sides; a side counts both end pixels."""
    return boxes + offsets * np.tile(boxes[:, 2:] - boxes[:, :2] + 1, 2)
