"""dfdc.tracks: one track per person."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torchvision.ops import box_iou

from dfdc.boxes import iou
from dfdc.faces import Faces
from dfdc.tracks import Track, link_tracks, settle_angles, share_crops


def faces(*boxes: tuple[float, ...], score: float = 0.99) -> Faces:
    array = np.array(boxes, np.float32).reshape(-1, 4)
    return Faces(array, np.full(len(boxes), score, np.float32), np.zeros((len(boxes), 5, 2), np.float32))


def at(x: float, y: float = 0.0, side: float = 100.0) -> tuple[float, ...]:
    return (x, y, x + side, y + side)


def test_overlap_equals_torchvision() -> None:
    generator = np.random.default_rng(0)
    corners = generator.uniform(0, 100, (2, 20, 2))
    a, b = (np.concatenate([c, c + generator.uniform(1, 60, c.shape)], 1) for c in corners)
    assert iou(a, b) == pytest.approx(box_iou(torch.tensor(a), torch.tensor(b)).numpy(), abs=1e-12)


def test_overlap_of_empty_boxes_is_zero() -> None:
    assert iou(np.zeros((1, 4)), np.zeros((1, 4))) == pytest.approx(np.zeros((1, 1)))


def test_two_persons_are_two_tracks_in_any_order_of_detection() -> None:
    left, right = [at(10 * i) for i in range(8)], [at(500 - 10 * i) for i in range(8)]
    found = [faces(a, b) if i % 2 else faces(b, a) for i, (a, b) in enumerate(zip(left, right, strict=True))]
    tracks = link_tracks(found)
    assert len(tracks) == 2
    firsts = sorted(track.boxes[:, 0].tolist() for track in tracks)
    assert firsts == [[box[0] for box in left], [box[0] for box in right]]


def test_weak_overlaps_never_outweigh_a_valid_one() -> None:
    # Overlaps .205, .143 / .149, 0: the cross pairs sum to more, and both are below the limit.
    before = [at(0), at(0, 75)]
    after = [at(66), at(75, 0)]
    assert iou(np.array(before), np.array(after))[0] == pytest.approx([0.205, 0.143], abs=1e-3)
    tracks = link_tracks([faces(*before), faces(*after)])
    assert [len(track) for track in tracks] == [2]


def test_gap_is_filled_on_a_straight_line() -> None:
    (track,) = link_tracks([faces(at(0)), faces(), faces(), faces(at(30, 60))])
    assert track.frames.tolist() == [0, 1, 2, 3]
    assert track.boxes[:, 0].tolist() == [0, 10, 20, 30]
    assert track.boxes[:, 3].tolist() == [100, 120, 140, 160]
    assert track.found.tolist() == [True, False, False, True]


def test_long_absence_starts_a_new_track() -> None:
    found = [faces(at(0)), faces(at(0)), *[faces()] * 5, faces(at(0)), faces(at(0))]
    assert [len(track) for track in link_tracks(found)] == [2, 2]


def test_false_detection_in_one_frame_is_dropped() -> None:
    found = [faces(at(0)) for _ in range(8)]
    found[3] = faces(at(0), at(700))
    assert len(link_tracks(found)) == 1


def test_person_who_appears_late_has_a_track() -> None:
    found = [faces(at(0)) for _ in range(32)]
    found[30] = found[31] = faces(at(0), at(700))
    assert [track.n_hits for track in link_tracks(found)] == [32, 2]


def test_only_detection_is_kept() -> None:
    (track,) = link_tracks([faces(), faces(at(5)), faces()])
    assert (track.frames.tolist(), track.boxes[0].tolist()) == ([1], list(at(5)))


def test_uncertain_track_is_dropped_beside_a_certain_one_and_kept_alone() -> None:
    sure, doubtful = at(0), at(600)
    both = Faces(np.array([sure, doubtful], np.float32), np.array([0.99, 0.85], np.float32), np.zeros((2, 5, 2)))
    (track,) = link_tracks([both] * 6)
    assert track.boxes[0].tolist() == list(sure)
    (track,) = link_tracks([faces(doubtful, score=0.85)] * 6)
    assert track.score == pytest.approx(0.85)


def test_no_faces_give_no_tracks() -> None:
    assert link_tracks([]) == []
    assert link_tracks([faces(), faces()]) == []


def turned(degrees: float) -> np.ndarray:
    """Landmarks (5, 2) of a head that is rolled clockwise."""
    a = np.radians(degrees)
    points = np.array([[30, 40], [70, 40], [50, 60], [35, 78], [65, 78]], float)
    return points @ np.array([[np.cos(a), np.sin(a)], [-np.sin(a), np.cos(a)]])


def rolled(*degrees: float) -> list[Faces]:
    one = np.array([at(0)], np.float32), np.array([0.99], np.float32)
    return [Faces(*one, turned(angle)[None].astype(np.float32)) for angle in degrees]


def test_angles_are_medians_over_time_and_interpolated_linearly() -> None:
    # The 60 degrees of a single frame are an outlier; the seventh frame has no landmarks.
    found = rolled(30, 30, 30, 60, 30, 30, 30, 30, 30)
    found[6] = faces()
    (track,) = link_tracks(found)
    assert track.angles.tolist() == pytest.approx([30] * 9, abs=1e-3)


def test_upright_heads_are_cut_without_rotation() -> None:
    (track,) = link_tracks(rolled(-6, 7, 3, -2, 5))
    assert track.angles.tolist() == [0] * 5


def test_angles_near_whole_quarters_settle_without_a_jump() -> None:
    settled = settle_angles(np.array([0.0, 8, 12, 16, 30, -12, 84, 97, 104, 179, -176, 250]))
    assert settled.tolist() == pytest.approx([0, 0, 0, 10, 30, 0, 90, 90, 95, 180, 180, -110])


def person(n_frames: int, start: int = 0) -> Track:
    frames = np.arange(start, start + n_frames)
    return Track(frames, np.zeros((n_frames, 4)), np.ones(n_frames, bool), 0.99, np.zeros(n_frames))


def test_sufficient_budget_changes_nothing() -> None:
    tracks = [person(32)] * 8
    assert [len(track) for track in share_crops(tracks, 256)] == [32] * 8


def test_twelve_persons_are_all_scored_in_fewer_frames() -> None:
    shared = share_crops([person(32)] * 12, 256)
    assert [len(track) for track in shared] == [21] * 12 and {track.kind for track in shared} == {"person"}
    assert shared[-1].frames[0] == 0 and shared[-1].frames[-1] == 31


def test_persons_who_are_seen_briefly_keep_all_their_frames() -> None:
    assert [len(track) for track in share_crops([*[person(32)] * 9, person(5)], 100)] == [10] * 9 + [5]


def test_persons_who_cannot_all_be_scored_are_reported() -> None:
    shared = share_crops([person(8)] * 40, 64)
    assert [track.kind for track in shared] == ["person"] * 32 + ["left out"] * 8
    assert {len(track) for track in shared[:32]} == {2} and "only 32 of 40 persons are scored" in shared[-1].reason
