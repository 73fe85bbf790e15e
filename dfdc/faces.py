"""The faces of one frame: boxes, scores and landmarks, and the head's roll derived from the landmarks."""

from __future__ import annotations

from dataclasses import dataclass

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


def turn_back(faces: Faces, n_quarters: int, shape: tuple[int, ...]) -> Faces:
    """Convert faces found in a frame turned by `np.rot90` to the pixels of the original frame.

    Args:
        faces: found in the turned frame.
        n_quarters: number of quarter turns counterclockwise, 0 to 3.
        shape: (H, W, ...) of the frame before it was turned.
    """
    boxes, landmarks = faces.boxes.reshape(-1, 2, 2), faces.landmarks
    for done in range(n_quarters, 0, -1):
        # A quarter turn counterclockwise moved x, y of a frame of this width to y, width - x.
        width = shape[1] if done % 2 else shape[0]
        boxes, landmarks = (np.stack([width - points[..., 1], points[..., 0]], -1) for points in (boxes, landmarks))
    return Faces(np.concatenate([boxes.min(1), boxes.max(1)], 1), faces.scores, landmarks)
