"""Box -> face crop: the one place where a face is cut out of a frame, in training and in the kernel."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from dfdc.errors import SettingError


@dataclass(frozen=True)
class CropGeometry:
    """How the square crop is derived from a face box. It belongs to the weights and is stored with them.

    The defaults are the middle of the values measured on the crops that the shipped weights were trained on.

    Attributes:
        side_ratio: side of the square divided by the mean of the box's width and height, 0.1 to 10.
        shift_ratio: how far the square's centre lies below the box's centre, as a share of the side, -1 to 1.
        size: side of the finished crop in pixels, 16 to 1024.
    """

    side_ratio: float = 0.93
    shift_ratio: float = 0.09
    size: int = 224

    def __post_init__(self) -> None:
        if not 0.1 <= self.side_ratio <= 10:
            raise SettingError(f"side_ratio is {self.side_ratio}; allowed: 0.1 to 10")
        if not -1 <= self.shift_ratio <= 1:
            raise SettingError(f"shift_ratio is {self.shift_ratio}; allowed: -1 to 1")
        if type(self.size) is not int or not 16 <= self.size <= 1024:
            raise SettingError(f"crop size is {self.size} px; allowed: 16 to 1024")

    def square(self, box: np.ndarray, angle: float = 0.0) -> tuple[int, int, int]:
        """The square that is cut for a box, before it is rotated about its centre.

        Args:
            box: (4,) x0, y0, x1, y1 in pixels of the frame.
            angle: degrees clockwise by which the face is rolled; the shift towards the chin follows it.

        Returns:
            Left, top and side in whole pixels; the side is at least 2. The square may extend beyond the frame.
        """
        x0, y0, x1, y1 = (float(v) for v in box)
        side = max(self.side_ratio * (x1 - x0 + y1 - y0) / 2, 2.0)
        down_x, down_y = _axis(angle)
        centre_x = (x0 + x1) / 2 + self.shift_ratio * side * down_x
        centre_y = (y0 + y1) / 2 + self.shift_ratio * side * down_y
        return round(centre_x - side / 2), round(centre_y - side / 2), round(side)


def crop_face(frame: np.ndarray, box: np.ndarray, geometry: CropGeometry, *, angle: float = 0.0) -> np.ndarray:
    """Cut one face out of a frame, upright.

    Where the square extends beyond the frame, the frame's edge is repeated. A rolled face is rotated at the frame's
    own resolution with bicubic interpolation, which keeps detail; quarter turns move whole pixels. Crops are enlarged
    with bilinear interpolation and reduced by averaging areas, so resizing neither invents detail nor aliases.

    Args:
        frame: (H, W, 3) uint8 RGB.
        box: (4,) x0, y0, x1, y1 in pixels of the frame.
        geometry: crop geometry of the model that will see the crop.
        angle: degrees clockwise by which the face is rolled in the frame.

    Returns:
        (size, size, 3) uint8 RGB, a new array.

    Raises:
        ValueError: the frame is not (H, W, 3) uint8, or the box or the angle holds a value that is not finite.
    """
    import cv2  # here: the supervisor reads geometries from weights files but cuts no crops

    if frame.ndim != 3 or frame.shape[2] != 3 or frame.dtype != np.uint8:
        raise ValueError(f"frame is {frame.dtype} {frame.shape}; allowed: uint8 (H, W, 3)")
    if not np.isfinite(box).all():
        raise ValueError(f"box is {box}; allowed: four finite numbers x0, y0, x1, y1")
    if not np.isfinite(angle):
        raise ValueError(f"angle is {angle}; allowed: a finite number of degrees")
    left, top, side = geometry.square(box, angle)
    patch = _cut_turned(frame, left, top, side, angle) if angle % 360 else _cut(frame, left, top, side)
    shrinks = patch.shape[0] > geometry.size
    interpolation = cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR
    return cv2.resize(patch, (geometry.size, geometry.size), interpolation=interpolation)


def _cut(frame: np.ndarray, left: int, top: int, side: int) -> np.ndarray:
    """A square of a frame, (side, side, 3)."""
    import cv2

    height, width = frame.shape[:2]
    # For a box far outside the frame, at least one row and one column of the frame are kept and repeated.
    x0, x1 = np.clip([left, left + side], [0, 1], [width - 1, width])
    y0, y1 = np.clip([top, top + side], [0, 1], [height - 1, height])
    patch = frame[y0:y1, x0:x1]
    margins = (y0 - top, top + side - y1, x0 - left, left + side - x1)
    if any(margins):
        patch = cv2.copyMakeBorder(patch, *(max(int(m), 0) for m in margins), cv2.BORDER_REPLICATE)
    return patch


def _cut_turned(frame: np.ndarray, left: int, top: int, side: int, angle: float) -> np.ndarray:
    """The same square rotated clockwise about its centre, so that the face is upright in the result."""
    import cv2

    down_x, down_y = _axis(angle)
    turn = np.array([[down_y, down_x], [-down_x, down_y]])
    # The crop's pixel u, v shows the frame at turn @ (u, v) + corner; the middle of the square stays in place.
    middle = (side - 1) / 2
    corner = np.array([left, top]) + middle - turn @ [middle, middle]
    flags = cv2.INTER_CUBIC | cv2.WARP_INVERSE_MAP
    matrix = np.column_stack([turn, corner])
    return cv2.warpAffine(frame, matrix, (side, side), flags=flags, borderMode=cv2.BORDER_REPLICATE)


def _axis(angle: float) -> tuple[float, float]:
    """The direction x, y from brow to chin of a face that is rolled clockwise by `angle` degrees."""
    radians = math.radians(angle)
    return -math.sin(radians), math.cos(radians)
