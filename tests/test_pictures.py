"""dfdc.pictures: which of several tracks are pictures in the picture."""

from __future__ import annotations

from dataclasses import replace

import cv2
import numpy as np

from dfdc.pictures import TrackSummary, find_pictures, measure_track


def at(x: float, side: float, n: int = 8) -> tuple[np.ndarray, np.ndarray]:
    return np.arange(n), np.tile(np.array([x, 0, x + side, side], np.float32), (n, 1))


PERSON = TrackSummary(*at(0, 120), side=120.0, detail=-3.4, change=0.3)
BYSTANDER = TrackSummary(*at(300, 60), side=60.0, detail=-4.6, change=0.3)


def test_near_and_distant_persons_are_persons() -> None:
    assert find_pictures([PERSON, BYSTANDER, PERSON]) == ["", "", ""]


def test_single_face_is_a_person_even_if_blurred_still_and_small() -> None:
    assert find_pictures([replace(PERSON, detail=-9.0, change=0.0, side=15.0)]) == [""]


def test_blurred_enlargement_is_a_picture_and_a_blurred_bystander_is_not() -> None:
    blurred = replace(PERSON, detail=-4.6, side=240.0)
    assert [bool(reason) for reason in find_pictures([blurred, PERSON])] == [True, False]
    assert find_pictures([PERSON, BYSTANDER]) == ["", ""]


def test_poster_is_a_picture_only_beside_a_person() -> None:
    poster = replace(PERSON, change=0.01)
    assert [bool(reason) for reason in find_pictures([poster, PERSON])] == [True, False]
    assert find_pictures([poster, poster]) == ["", ""]


def test_thumbnail_is_a_picture_if_much_smaller_than_the_person() -> None:
    assert [bool(r) for r in find_pictures([PERSON, replace(BYSTANDER, side=25.0)])] == [False, True]
    # A face of the same size in a clip in which all faces are small.
    assert find_pictures([replace(PERSON, side=60.0), replace(BYSTANDER, side=25.0)]) == ["", ""]


def test_of_two_overlapping_faces_the_one_seen_longer_is_the_person() -> None:
    frames, boxes = at(10, 100, n=3)
    part = replace(PERSON, frames=frames, boxes=boxes, side=100.0)
    assert [bool(reason) for reason in find_pictures([PERSON, part])] == [False, True]
    assert find_pictures([PERSON, replace(part, boxes=boxes + 300)]) == ["", ""]


def test_blurred_copy_that_is_seen_longer_does_not_displace_the_person() -> None:
    frames, boxes = at(10, 100, n=3)
    part = replace(PERSON, frames=frames, boxes=boxes, side=100.0)
    blurred = replace(PERSON, detail=-4.8, side=320.0)
    assert [bool(reason) for reason in find_pictures([blurred, part])] == [True, False]


def test_measurements_cover_side_change_and_detail() -> None:
    generator = np.random.default_rng(0)
    texture = cv2.resize(generator.integers(0, 256, (40, 40, 3), dtype=np.uint8), (200, 200))
    images = [np.ascontiguousarray(np.hstack([texture, np.roll(texture, 40 * i, 0)])) for i in range(4)]
    blurred = [cv2.GaussianBlur(image, (0, 0), 4) for image in images]
    frames, boxes = at(40, 100, n=4)
    still = measure_track(images, frames, boxes, np.zeros(4))
    moving = measure_track(images, frames, boxes + np.array([200, 0, 200, 0]), np.zeros(4))
    soft = measure_track(blurred, frames, boxes, np.zeros(4))
    assert still.side == 100 and still.change == 0 and moving.change > 0.3
    assert soft.detail < still.detail - 1
