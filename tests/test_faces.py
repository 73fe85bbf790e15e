"""dfdc.faces: what landmarks tell, and frames that are turned."""

from __future__ import annotations

import numpy as np
import pytest

from dfdc.faces import Faces, roll_angles, turn_back

# Eyes, nose, corners of the mouth in pixels: from the front, and half from the side.
FRONT = np.array([[30, 40], [70, 40], [50, 60], [35, 78], [65, 78]], float)
SIDE = np.array([[30, 40], [45, 40], [26, 60], [32, 78], [43, 78]], float)


def rolled(points: np.ndarray, degrees: float) -> np.ndarray:
    """Points turned clockwise in the picture, whose y runs down."""
    a = np.radians(degrees)
    return points @ np.array([[np.cos(a), np.sin(a)], [-np.sin(a), np.cos(a)]])


@pytest.mark.parametrize("degrees", [-170.0, -90.0, -20.0, 0.0, 35.0, 90.0, 180.0])
def test_roll_is_what_landmarks_were_turned_by(degrees: float) -> None:
    (angle,) = roll_angles(rolled(FRONT, degrees)[None])
    assert (angle - degrees + 180) % 360 - 180 == pytest.approx(0, abs=1e-6)


def test_head_seen_from_the_side_is_not_rolled() -> None:
    assert abs(roll_angles(SIDE[None])[0]) < 8


def test_no_landmarks_have_no_angle() -> None:
    assert roll_angles(np.zeros((0, 5, 2))).shape == (0,)


@pytest.mark.parametrize("n_quarters", [0, 1, 2, 3])
def test_faces_of_a_turned_frame_lie_where_they_were(n_quarters: int) -> None:
    frame = np.zeros((60, 100), np.uint8)
    frame[10:30, 40:70] = 1
    frame[12, 45] = 2
    turned = np.rot90(frame, n_quarters)
    rows, columns = np.nonzero(turned)
    (y,), (x,) = np.nonzero(turned == 2)
    box = np.array([[columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]], np.float32)
    landmarks = np.full((1, 5, 2), [x + 0.5, y + 0.5], np.float32)
    faces = turn_back(Faces(box, np.array([0.9], np.float32), landmarks), n_quarters, frame.shape)
    assert faces.boxes.tolist() == [[40, 10, 70, 30]]
    assert faces.landmarks[0].tolist() == [[45.5, 12.5]] * 5
