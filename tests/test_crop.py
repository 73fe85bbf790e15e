"""dfdc.crop: the one crop function."""

from __future__ import annotations

import cv2
import numpy as np
import pytest

from dfdc.crop import CropGeometry, crop_face

GEOMETRY = CropGeometry(side_ratio=1.0, shift_ratio=0.0, size=32)


def gradient(height: int = 100, width: int = 120) -> np.ndarray:
    y, x = np.mgrid[:height, :width]
    return np.stack([x, y, x + y], -1).astype(np.uint8)


def test_square_follows_from_the_box_by_hand() -> None:
    # Mean side (80 + 120) / 2 = 100, times .93 = 93; centre (60, 80) moved down by .09 * 93 = 8.37.
    left, top, side = CropGeometry().square(np.array([20, 20, 100, 140]))
    assert side == 93
    assert left == round(60 - 46.5)
    assert top == round(80 + 8.37 - 46.5)


def test_crop_without_resizing_equals_the_frame() -> None:
    frame = gradient()
    assert np.array_equal(crop_face(frame, np.array([10, 20, 42, 52]), GEOMETRY), frame[20:52, 10:42])


def test_reduction_averages_areas() -> None:
    frame = gradient()
    crop = crop_face(frame, np.array([0, 0, 64, 64]), GEOMETRY)
    by_hand = frame[:64, :64].reshape(32, 2, 32, 2, 3).astype(float).mean((1, 3))
    assert np.abs(crop - by_hand).max() <= 0.5


def test_enlargement_is_bilinear() -> None:
    frame = gradient()
    crop = crop_face(frame, np.array([10, 10, 26, 26]), GEOMETRY)
    assert np.array_equal(crop, cv2.resize(frame[10:26, 10:26], (32, 32), interpolation=cv2.INTER_LINEAR))


@pytest.mark.parametrize("corner", [(-16, -16), (104, -16), (-16, 84), (104, 84)])
def test_edge_pixels_are_repeated_outside_the_frame(corner: tuple[int, int]) -> None:
    frame, (x, y) = gradient(), corner
    crop = crop_face(frame, np.array([x, y, x + 32, y + 32]), GEOMETRY)
    rows = np.clip(np.arange(y, y + 32), 0, 99)
    columns = np.clip(np.arange(x, x + 32), 0, 119)
    assert np.array_equal(crop, frame[rows][:, columns])


def test_box_outside_the_frame_still_gives_a_crop() -> None:
    crop = crop_face(gradient(), np.array([500, 500, 532, 532]), GEOMETRY)
    assert crop.shape == (32, 32, 3)
    assert (crop == gradient()[-1, -1]).all()


def test_crop_is_not_a_view_of_the_frame() -> None:
    frame = gradient()
    crop_face(frame, np.array([10, 20, 42, 52]), GEOMETRY)[:] = 0
    assert np.array_equal(frame, gradient())


@pytest.mark.parametrize("frame", [np.zeros((9, 9), np.uint8), np.zeros((9, 9, 4), np.uint8), np.zeros((9, 9, 3))])
def test_frame_of_wrong_shape_is_refused(frame: np.ndarray) -> None:
    with pytest.raises(ValueError, match="allowed: uint8"):
        crop_face(frame, np.array([0, 0, 5, 5]), GEOMETRY)


def test_box_that_is_not_finite_is_refused() -> None:
    with pytest.raises(ValueError, match="finite"):
        crop_face(gradient(), np.array([0, 0, np.nan, 5]), GEOMETRY)


@pytest.mark.parametrize("values", [{"side_ratio": 0.0}, {"shift_ratio": 2.0}, {"size": 8}])
def test_impossible_geometry_is_refused(values: dict[str, float]) -> None:
    with pytest.raises(ValueError, match="allowed"):
        CropGeometry(**values)


@pytest.mark.parametrize("n_quarters", [1, 2, 3])
def test_quarter_turns_keep_whole_pixels(n_quarters: int) -> None:
    # With an even side and an integer centre, the square of the turned frame covers the same pixels.
    frame, box = gradient(), np.array([20, 24, 52, 56])
    geometry = CropGeometry(side_ratio=1.0, shift_ratio=0.25, size=32)
    turned = np.ascontiguousarray(np.rot90(frame, -n_quarters))
    x0, y0, x1, y1 = box
    for height in (100, 120, 100)[:n_quarters]:  # a quarter clockwise takes x, y to height - y, x
        x0, y0, x1, y1 = height - y1, x0, height - y0, x1
    crop = crop_face(turned, np.array([x0, y0, x1, y1]), geometry, angle=90.0 * n_quarters)
    assert np.array_equal(crop, crop_face(frame, box, geometry))


@pytest.mark.parametrize("angle", [-40.0, 15.0, 30.0, 135.0])
def test_rolled_face_is_cut_upright(angle: float) -> None:
    frame = cv2.GaussianBlur(np.random.default_rng(0).integers(0, 256, (200, 200, 3), dtype=np.uint8), (0, 0), 4)
    frame = cv2.normalize(frame, None, 0, 255, cv2.NORM_MINMAX)
    # OpenCV's angles are counterclockwise about a centre in the middle of a pixel.
    rolled = cv2.warpAffine(frame, cv2.getRotationMatrix2D((99.5, 99.5), -angle, 1), (200, 200), flags=cv2.INTER_CUBIC)
    box = np.array([68, 68, 132, 132])
    crop = crop_face(rolled, box, CropGeometry(side_ratio=1.0, shift_ratio=0.0, size=64), angle=angle)
    upright = crop_face(frame, box, CropGeometry(side_ratio=1.0, shift_ratio=0.0, size=64))
    assert np.abs(crop.astype(int) - upright).mean() < 2


def test_square_of_a_rolled_face_moves_towards_its_chin() -> None:
    # By .25 x 40 = 10 px: down when upright, to the left when its right side lies below.
    geometry, box = CropGeometry(side_ratio=1.0, shift_ratio=0.25), np.array([40, 40, 80, 80])
    assert geometry.square(box) == (40, 50, 40)
    assert geometry.square(box, 90) == (30, 40, 40)
    assert geometry.square(box, 180) == (40, 30, 40)


def test_angle_that_is_not_finite_is_refused() -> None:
    with pytest.raises(ValueError, match="finite"):
        crop_face(gradient(), np.array([0, 0, 5, 5]), GEOMETRY, angle=float("nan"))


def test_every_pixel_counts_when_a_crop_is_reduced() -> None:
    """Stripes finer than the crop's pixels become grey; plain sampling would give stripes or moire."""
    stripes = np.zeros((896, 896, 3), np.uint8)
    stripes[:, ::2] = 200
    crop = crop_face(stripes, np.array([0.0, 0.0, 896.0, 896.0]), CropGeometry(side_ratio=1.0, shift_ratio=0.0))
    assert np.all(crop == 100)
    sampled = np.zeros((672, 672, 3), np.uint8)
    sampled[:, ::3] = 150  # one column in three: the mean is 50, a sample is 0 or 150
    crop = crop_face(sampled, np.array([0.0, 0.0, 672.0, 672.0]), CropGeometry(side_ratio=1.0, shift_ratio=0.0))
    assert np.all(crop == 50)
