"""The faces of one frame: boxes, scores and landmarks, and the head's roll derived from the landmarks."""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np

# Typical positions where O-Net puts the eyes, the nose and the corners of the mouth of an upright face, as x + iy in
# shares of its box, minus their mean. They are symmetric, so they add no roll of their own.
UPRIGHT = np.array([0.30 + 0.38j, 0.70 + 0.38j, 0.50 + 0.58j, 0.34 + 0.77j, 0.66 + 0.77j])
UPRIGHT -= UPRIGHT.mean()


@dataclass(frozen=True)
class Faces:
    """The faces of one frame, K of them.

    Attributes:
        boxes: (K, 4) float32 x0, y0, x1, y1 in pixels of the frame.
        scores: (K,) float32, 0 to 1, best first.
        landmarks: (K, 5, 2) float32 x, y of eyes, nose and corners of the mouth; the person's right eye and right
            corner come first; they are on the left of an upright face.
    """

    boxes: np.ndarray
    scores: np.ndarray
    landmarks: np.ndarray

    def __len__(self) -> int:
        return len(self.boxes)


NO_FACES = Faces(np.zeros((0, 4), np.float32), np.zeros(0, np.float32), np.zeros((0, 5, 2), np.float32))


def roll_angles(landmarks: np.ndarray) -> np.ndarray:
    """How far heads are rolled.

    The roll is the rotation of the similarity transform that best maps the landmarks of an upright face to the given
    ones, by least squares. When a head is seen from the side and its eyes are close together, the line from the eyes to
    the mouth determines the result.

    Args:
        landmarks: (K, 5, 2) in pixels, as in `Faces`.

    Returns:
        (K,) float64 degrees clockwise in the picture, -180 to 180; 0 is upright.
    """
    points = np.asarray(landmarks, float) @ [1, 1j]
    return np.degrees(np.angle((points - points.mean(1, keepdims=True)) @ UPRIGHT.conj()))


def turn_upright(frame: np.ndarray, angle: float) -> np.ndarray:
    """Turn a whole frame so that heads rolled by an angle are upright; its corners stay visible.

    Args:
        frame: (H, W, 3) uint8 RGB.
        angle: degrees clockwise by which the heads are rolled; multiples of 90 move whole pixels.

    Returns:
        (H', W', 3) uint8 RGB, black outside the frame.
    """
    if angle % 90 == 0:
        return np.ascontiguousarray(np.rot90(frame, int(angle // 90)))
    turn, offset, size = _turning(frame.shape, angle)
    # OpenCV's coordinates are those of pixel centres.
    offset = offset + turn @ [0.5, 0.5] - 0.5
    return cv2.warpAffine(frame, np.column_stack([turn, offset]), size)


def turn_back(faces: Faces, angle: float, shape: tuple[int, ...]) -> Faces:
    """Convert faces found in a frame turned by `turn_upright` to the pixels of the original frame.

    Args:
        faces: found in the turned frame.
        angle: as for `turn_upright`.
        shape: (H, W, ...) of the frame before it was turned.

    Returns:
        The same faces. A box keeps its size and its sides stay parallel to the frame's, as if the detector had found
        the rolled face.
    """
    turn, offset, _ = _turning(shape, angle)
    landmarks = (faces.landmarks - offset) @ turn  # the inverse of a rotation is its transpose
    centres = ((faces.boxes[:, :2] + faces.boxes[:, 2:]) / 2 - offset) @ turn
    halves = (faces.boxes[:, 2:] - faces.boxes[:, :2]) / 2
    if round(angle / 90) % 2:
        halves = halves[:, ::-1]
    boxes = np.concatenate([centres - halves, centres + halves], 1)
    return Faces(boxes.astype(np.float32), faces.scores, landmarks.astype(np.float32))


def _turning(shape: tuple[int, ...], angle: float) -> tuple[np.ndarray, np.ndarray, tuple[int, int]]:
    """How `turn_upright` moves a point p of a frame: to turn @ p + offset, in a frame of size (width, height)."""
    radians = np.radians(angle)
    turn = np.array([[np.cos(radians), np.sin(radians)], [-np.sin(radians), np.cos(radians)]])
    old = np.array([shape[1], shape[0]])
    size = np.ceil(np.abs(turn) @ old - 1e-6)
    return turn, size / 2 - turn @ old / 2, (int(size[0]), int(size[1]))
