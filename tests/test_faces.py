"""dfdc.faces: the roll of a head from its landmarks, and turned frames."""

from __future__ import annotations

import cv2
import numpy as np
import pytest

from dfdc.faces import Faces, roll_angles, turn_back, turn_upright

# Eyes, nose, corners of the mouth in pixels: from the front, and half from the side.
FRONT = np.array([[30, 40], [70, 40], [50, 60], [35, 78], [65, 78]], float)
SIDE = np.array([[30, 40], [45, 40], [26, 60], [32, 78], [43, 78]], float)


def rolled(points: np.ndarray, degrees: float) -> np.ndarray:
    """Turn points clockwise in a picture, whose y axis points down."""
    a = np.radians(degrees)
    return points @ np.array([[np.cos(a), np.sin(a)], [-np.sin(a), np.cos(a)]])


@pytest.mark.parametrize("degrees", [-170.0, -90.0, -20.0, 0.0, 35.0, 90.0, 180.0])
def test_roll_equals_the_angle_that_landmarks_were_turned_by(degrees: float) -> None:
    (angle,) = roll_angles(rolled(FRONT, degrees)[None])
    assert (angle - degrees + 180) % 360 - 180 == pytest.approx(0, abs=1e-6)


def test_head_seen_from_the_side_has_no_roll() -> None:
    assert abs(roll_angles(SIDE[None])[0]) < 8


def test_missing_landmarks_give_no_angle() -> None:
    assert roll_angles(np.zeros((0, 5, 2))).shape == (0,)


@pytest.mark.parametrize("n_quarters", [0, 1, 2, 3])
def test_faces_found_in_a_turned_frame_are_mapped_back(n_quarters: int) -> None:
    frame = np.zeros((60, 100), np.uint8)
    frame[10:30, 40:70] = 1
    frame[12, 45] = 2
    turned = np.rot90(frame, n_quarters)
    rows, columns = np.nonzero(turned)
    (y,), (x,) = np.nonzero(turned == 2)
    box = np.array([[columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]], np.float32)
    landmarks = np.full((1, 5, 2), [x + 0.5, y + 0.5], np.float32)
    faces = turn_back(Faces(box, np.array([0.9], np.float32), landmarks), 90 * n_quarters, frame.shape)
    assert faces.boxes.tolist() == [[40, 10, 70, 30]]
    assert faces.landmarks[0].tolist() == [[45.5, 12.5]] * 5


@pytest.mark.parametrize("angle", [-50.0, 20.0, 45.0, 90.0, 200.0])
def test_faces_found_in_a_slanted_frame_are_mapped_back(angle: float) -> None:
    frame = np.zeros((200, 300, 3), np.uint8)
    cv2.circle(frame, (210, 60), 8, (255, 255, 255), -1)
    turned = turn_upright(frame, angle)
    rows, columns = np.nonzero(turned[..., 0] > 128)
    x, y = columns.mean() + 0.5, rows.mean() + 0.5
    box = np.array([[x - 30, y - 20, x + 30, y + 20]], np.float32)
    faces = turn_back(Faces(box, np.ones(1, np.float32), np.full((1, 5, 2), [x, y], np.float32)), angle, frame.shape)
    assert faces.landmarks[0] == pytest.approx(np.tile([210.5, 60.5], (5, 1)), abs=0.3)
    x0, y0, x1, y1 = faces.boxes[0]
    assert ((x0 + x1) / 2, (y0 + y1) / 2) == pytest.approx((210.5, 60.5), abs=0.3)
    assert sorted([x1 - x0, y1 - y0]) == pytest.approx([40, 60], abs=1e-3)


def test_turned_frame_keeps_its_corners() -> None:
    frame = np.full((90, 160, 3), 255, np.uint8)
    turned = turn_upright(frame, 30)
    assert turned.shape[:2] == (158, 184)  # 160 sin 30 + 90 cos 30 and 160 cos 30 + 90 sin 30, rounded up
    assert (turned > 128).all(2).sum() == pytest.approx(90 * 160, rel=0.02)
