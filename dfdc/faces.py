"""What is found in one frame: boxes, scores and landmarks, and the roll that landmarks tell."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

# About where O-Net puts eyes, nose and corners of the mouth of an upright face, as x + iy in shares of its box, less
# their mean. Both sides are alike, so that it tells no roll of its own.
UPRIGHT = np.array([0.30 + 0.38j, 0.70 + 0.38j, 0.50 + 0.58j, 0.34 + 0.77j, 0.66 + 0.77j])
UPRIGHT -= UPRIGHT.mean()


@dataclass(frozen=True)
class Faces:
    """The faces of one frame, K of them.

    Attributes:
        boxes: (K, 4) float32 x0, y0, x1, y1 in pixels of the frame.
        scores: (K,) float32, 0 to 1, best first.
        landmarks: (K, 5, 2) float32 x, y of eyes, nose and corners of the mouth; the person's right eye and corner
            come first, which an upright face shows on the left.
    """

    boxes: np.ndarray
    scores: np.ndarray
    landmarks: np.ndarray

    def __len__(self) -> int:
        return len(self.boxes)


NO_FACES = Faces(np.zeros((0, 4), np.float32), np.zeros(0, np.float32), np.zeros((0, 5, 2), np.float32))


def roll_angles(landmarks: np.ndarray) -> np.ndarray:
    """How far heads are rolled.

    It is the turn of the similarity transform that takes an upright face's landmarks nearest to these, by least
    squares: where a head is seen from the side and its eyes lie close together, the line from eyes to mouth decides.

    Args:
        landmarks: (K, 5, 2) as those of `Faces`, in pixels.

    Returns:
        (K,) float64 degrees clockwise in the picture, -180 to 180; 0 is upright.
    """
    points = np.asarray(landmarks, float) @ [1, 1j]
    return np.degrees(np.angle((points - points.mean(1, keepdims=True)) @ UPRIGHT.conj()))


def turn_back(faces: Faces, n_quarters: int, shape: tuple[int, ...]) -> Faces:
    """Faces of a frame that was turned by `np.rot90`, in the pixels of the frame as it was.

    Args:
        faces: of the turned frame.
        n_quarters: by how many quarters it was turned counterclockwise, 0 to 3.
        shape: (H, W, ...) of the frame before it was turned.
    """
    boxes, landmarks = faces.boxes.reshape(-1, 2, 2), faces.landmarks
    for done in range(n_quarters, 0, -1):
        # A quarter counterclockwise took x, y of a frame of this width to y, width - x.
        width = shape[1] if done % 2 else shape[0]
        boxes, landmarks = (np.stack([width - points[..., 1], points[..., 0]], -1) for points in (boxes, landmarks))
    return Faces(np.concatenate([boxes.min(1), boxes.max(1)], 1), faces.scores, landmarks)
