"""dfdc.detect: the results of facenet-pytorch's MTCNN, but faster."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from facenet_pytorch.models.mtcnn import ONet, PNet, RNet
from facenet_pytorch.models.utils.detect_face import detect_face
from skimage.data import astronaut

from dfdc.boxes import iou
from dfdc.detect import HARD, HARD_FRAMES, NO_FACES, QUICK, FaceDetector, Faces
from dfdc.models import MTCNN
from dfdc.mtcnn import load_mtcnn
from dfdc.tracks import Track, find_tracks, link_tracks
from dfdc.video import read_frames


@pytest.fixture(scope="module")
def detector() -> FaceDetector:
    return FaceDetector()


@pytest.fixture(scope="module")
def portrait() -> np.ndarray:
    return astronaut()


@pytest.fixture
def whole(detector: FaceDetector, monkeypatch: pytest.MonkeyPatch) -> list[np.ndarray]:
    """Record which frames are searched completely."""
    searched, detect = [], detector.detect

    def listed(frames: list[np.ndarray], *settings: object) -> list[Faces]:
        searched.extend(frames)
        return detect(frames, *settings)

    monkeypatch.setattr(detector, "detect", listed)
    return searched


def scene(portrait: np.ndarray, *places: tuple[int, int]) -> np.ndarray:
    """A grey frame of 640x360 with heads of 110 px whose upper left corners lie at x, y."""
    head = cv2.resize(portrait[:224, 112:336], (110, 110), interpolation=cv2.INTER_AREA)
    frame = np.full((360, 640, 3), 128, np.uint8)
    for x, y in places:
        frame[y : y + 110, x : x + 110] = head
    return frame


@pytest.mark.parametrize(("number", "package_network"), [(0, PNet), (1, RNet), (2, ONet)])
def test_networks_equal_those_of_the_package(number: int, package_network: type) -> None:
    images = torch.randint(0, 256, (3, 48, 48, 3), dtype=torch.uint8)[:, : (48, 24, 48)[number], : (48, 24, 48)[number]]
    with torch.inference_mode():
        expected = package_network().eval()((images.permute(0, 3, 1, 2).float() - 127.5) / 128)
        for ours, theirs in zip(load_mtcnn(MTCNN.read_bytes())[number](images), expected, strict=True):
            assert torch.equal(ours, theirs)


def test_boxes_and_landmarks_equal_those_of_the_package(detector: FaceDetector, portrait: np.ndarray) -> None:
    (found,) = detector.detect([portrait])
    models = [network().eval() for network in (PNet, RNet, ONet)]
    with torch.inference_mode():
        boxes, points = detect_face(portrait, 20.0, *models, list(QUICK.thresholds), 0.709, "cpu")
    boxes, points = np.asarray(boxes[0], float), np.asarray(points[0], float)
    assert len(found) == len(boxes) == 1
    # Resizing differs (OpenCV averages exact areas, torch whole windows), so boxes agree within a few pixels.
    assert iou(found.boxes, boxes[:, :4])[0, 0] > 0.9
    assert np.abs(found.landmarks[0] - points[0]).max() < 3
    assert found.scores[0] == pytest.approx(boxes[0, 4], abs=0.01)


def test_landmarks_lie_on_eyes_nose_and_mouth(detector: FaceDetector, portrait: np.ndarray) -> None:
    (found,) = detector.detect([portrait])
    left_eye, right_eye, nose, left_mouth, right_mouth = found.landmarks[0]
    assert left_eye[0] < nose[0] < right_eye[0]
    assert left_mouth[0] < nose[0] < right_mouth[0]
    assert max(left_eye[1], right_eye[1]) < nose[1] < min(left_mouth[1], right_mouth[1])


def test_batch_equals_one_by_one(detector: FaceDetector, portrait: np.ndarray) -> None:
    frames = [portrait, np.zeros_like(portrait), portrait[:, ::-1].copy(), portrait[:300, :400].copy()]
    together = detector.detect(frames)
    for frame, found in zip(frames, together, strict=True):
        (alone,) = detector.detect([frame])
        assert len(found) == len(alone)
        assert found.boxes == pytest.approx(alone.boxes, abs=0.01)


def test_box_follows_the_scale_of_the_frame(detector: FaceDetector, portrait: np.ndarray) -> None:
    (small,) = detector.detect([portrait])
    (large,) = detector.detect([cv2.resize(portrait, None, fx=3, fy=3, interpolation=cv2.INTER_CUBIC)])
    assert iou(large.boxes[:1] / 3, small.boxes[:1])[0, 0] > 0.85


def test_face_that_leaves_the_frame_is_handled(detector: FaceDetector, portrait: np.ndarray) -> None:
    for frame in (portrait[:, 200:], portrait[100:], portrait[:140, :240]):
        for found in detector.detect([np.ascontiguousarray(frame)]):
            assert np.isfinite(found.boxes).all()


@pytest.mark.parametrize("shape", [(1, 1), (5, 400), (11, 11), (12, 12), (400, 13)])
def test_tiny_and_odd_frames_hold_no_face_and_raise_nothing(detector: FaceDetector, shape: tuple[int, int]) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (*shape, 3), dtype=np.uint8)
    for settings in (QUICK, HARD):
        (found,) = detector.detect([noise], settings)
        assert found.boxes.shape[1:] == (4,)


def test_no_frames_give_no_faces(detector: FaceDetector) -> None:
    assert detector.detect([]) == []


def test_thorough_search_finds_small_dark_faces_that_a_quick_search_misses(
    detector: FaceDetector, portrait: np.ndarray
) -> None:
    frame = np.zeros((1080, 1920, 3), np.uint8)
    small = cv2.resize(portrait, (128, 128), interpolation=cv2.INTER_AREA)
    frame[400:528, 900:1028] = small * 0.25
    (quick,), (hard,) = detector.detect([frame]), detector.detect([frame], HARD)
    assert len(quick) == 0
    # The portrait is reduced to a quarter, so the centre of the face is (223, 120) / 4.
    centres = (hard.boxes[:, :2] + hard.boxes[:, 2:]) / 2
    assert np.abs(centres - [900 + 56, 400 + 30]).max(1).min() < 12


def test_some_frames_are_searched_thoroughly_if_no_face_is_found(
    detector: FaceDetector, portrait: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked, (face,) = [], detector.detect([portrait])
    monkeypatch.setattr(detector, "follow", lambda frames: [NO_FACES] * len(frames))
    monkeypatch.setattr(detector, "find_turn", lambda frames, found: 0)
    monkeypatch.setattr(detector, "detect", lambda frames, settings=QUICK: asked.append(settings) or [face])
    frames = [portrait] * 20
    searched, found = detector.search(frames)
    assert asked == [HARD] * HARD_FRAMES and found == [face] * HARD_FRAMES
    assert searched[0] == 0 and searched[-1] == 19 and searched == sorted(set(searched))
    # The frame numbers of a track refer to the clip, not to the searched frames.
    (track,), faces = find_tracks(frames, detector)
    assert track.frames.tolist() == searched == list(faces)


def test_moving_face_is_followed_without_searching_every_frame(
    detector: FaceDetector, portrait: np.ndarray, whole: list[np.ndarray]
) -> None:
    frames = [scene(portrait, (20 + 25 * i, 60 + 8 * i)) for i in range(16)]
    followed = detector.follow(frames)
    assert [np.array_equal(frame, frames[5 * i]) for i, frame in enumerate(whole)] == [True] * 4
    for faces, alone in zip(followed, detector.detect(frames), strict=True):
        # The candidates have another scale and place, but the networks refine them to nearly the same box.
        assert iou(faces.boxes, alone.boxes).shape == (1, 1)
        assert iou(faces.boxes, alone.boxes)[0, 0] > 0.75


def test_face_that_jumps_is_searched_for(detector: FaceDetector, portrait: np.ndarray) -> None:
    places = [((37 * i * i) % 500, (53 * i) % 240) for i in range(16)]
    for (x, y), faces in zip(places, detector.follow([scene(portrait, place) for place in places]), strict=True):
        centre = (faces.boxes[0, :2] + faces.boxes[0, 2:]) / 2
        assert np.abs(centre - [x + 55, y + 60]).max() < 20


def test_person_who_appears_later_is_found_from_their_first_frame_on(
    detector: FaceDetector, portrait: np.ndarray
) -> None:
    frames = [scene(portrait, (50, 100), *([(400, 150)] if i >= 6 else [])) for i in range(16)]
    assert [len(faces) for faces in detector.follow(frames)] == [1] * 6 + [2] * 10


def test_face_between_frames_without_faces_is_found(detector: FaceDetector, portrait: np.ndarray) -> None:
    frames = [scene(portrait, *([(200, 100)] if i in (5, 6, 7) else [])) for i in range(16)]
    assert [len(faces) for faces in detector.follow(frames)] == [int(i in (5, 6, 7)) for i in range(16)]


def test_few_frames_are_far_apart_and_all_searched(
    detector: FaceDetector, portrait: np.ndarray, whole: list[np.ndarray]
) -> None:
    assert [len(faces) for faces in detector.follow([scene(portrait, (200, 100))] * 6)] == [1] * 6
    assert len(whole) == 6


def test_frame_size_may_change_within_a_clip(detector: FaceDetector, portrait: np.ndarray) -> None:
    large = scene(portrait, (200, 100))
    small = cv2.resize(large, (480, 270), interpolation=cv2.INTER_AREA)
    for size, faces in zip((640, 480) * 8, detector.follow([large, small] * 8), strict=True):
        centre = (faces.boxes[0, :2] + faces.boxes[0, 2:]) / 2
        assert np.abs(centre - np.array([255, 160]) * size / 640).max() < 20


def test_two_faces_give_two_tracks(detector: FaceDetector, shared_videos: Path) -> None:
    frames = read_frames(shared_videos / "two_faces.mp4", 16)
    tracks = link_tracks(detector.follow([frame.pixels for frame in frames]))
    assert [len(track) for track in tracks] == [16, 16]


# The other clips show the same in more time.
SLOW_CLIPS = [pytest.param(name, marks=pytest.mark.slow) for name in ("anndvqgoko", "knqhpwoigk", "widuwuoiur")]


@pytest.mark.parametrize("name", ["aajsqyyjni", "brtujopkby", "yhffcuhhjy", *SLOW_CLIPS])
def test_faces_are_found_in_nearly_every_frame_of_dfdc_clips(
    detector: FaceDetector, shared_videos: Path, name: str
) -> None:
    frames = read_frames(shared_videos / f"{name}.mp4", 20)
    found = detector.follow([frame.pixels for frame in frames])
    assert sum(len(faces) > 0 for faces in found) >= 0.95 * len(frames)


@pytest.fixture(scope="module")
def upright(detector: FaceDetector, portrait: np.ndarray) -> tuple[list[np.ndarray], Track]:
    """Frames of an upright head that moves, and its track."""
    frames = [scene(portrait, (200 + 10 * i, 100)) for i in range(6)]
    (track,), _ = find_tracks(frames, detector)
    assert (track.angles == 0).all() and len(track) == 6
    return frames, track


@pytest.mark.parametrize("n_quarters", [1, 2, 3])
def test_clip_lying_on_its_side_gives_the_boxes_of_the_upright_clip(
    detector: FaceDetector, upright: tuple[list[np.ndarray], Track], n_quarters: int
) -> None:
    frames, expected = upright
    (track,), _ = find_tracks([np.ascontiguousarray(np.rot90(frame, -n_quarters)) for frame in frames], detector)
    assert len(track) == len(expected) and (track.angles % 360 == 90 * n_quarters).all()
    boxes = track.boxes.reshape(-1, 2, 2)
    # Mapped back: a quarter turn counterclockwise takes x, y to y, width - x.
    for width in (360, 640, 360)[:n_quarters][::-1]:
        boxes = np.stack([boxes[..., 1], width - boxes[..., 0]], -1)
    boxes = np.concatenate([boxes.min(1), boxes.max(1)], 1)
    assert np.diag(iou(boxes, expected.boxes)).min() > 0.95


@pytest.mark.parametrize("degrees", [20, 40, 45, -45, 135])
def test_angle_of_a_rolled_head_is_found(detector: FaceDetector, portrait: np.ndarray, degrees: int) -> None:
    frames = [scene(portrait, (260 + 4 * i, 130)) for i in range(6)]
    centre = (319.5, 179.5)
    matrix = cv2.getRotationMatrix2D(centre, -degrees, 1)
    (track,), _ = find_tracks([cv2.warpAffine(frame, matrix, (640, 360)) for frame in frames], detector)
    # The astronaut's head itself is rolled by a few degrees, too few to be turned upright.
    assert len(track) == 6 and np.abs(track.angles - degrees).max() < 12


def test_upright_clip_is_not_searched_in_other_orientations(
    detector: FaceDetector, portrait: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(detector, "find_turn", lambda *_: pytest.fail("was turned"))
    assert all(map(len, detector.search([scene(portrait, (200, 100))] * 4)[1]))


@pytest.mark.parametrize("name", ["gravel", "coffee", pytest.param("grass", marks=pytest.mark.slow)])
def test_pictures_of_objects_contain_no_person(detector: FaceDetector, name: str) -> None:
    from skimage import data

    picture = getattr(data, name)()
    picture = np.stack([picture] * 3, -1) if picture.ndim == 2 else picture
    assert find_tracks([picture, np.roll(picture, 8, 1), np.roll(picture, 16, 1)], detector)[0] == []


def test_photograph_is_a_person_in_one_frame(detector: FaceDetector, portrait: np.ndarray) -> None:
    (track,), _ = find_tracks([portrait], detector)
    assert track.frames.tolist() == [0] and track.kind == "person"


def test_still_face_beside_a_moving_person_is_a_picture(detector: FaceDetector, portrait: np.ndarray) -> None:
    frames = [scene(portrait, (40, 200)) for _ in range(6)]
    for index, frame in enumerate(frames):
        # Size and light differ in every frame, as of a moving person.
        head = cv2.convertScaleAbs(portrait[:224, 112:336], alpha=0.7 + 0.1 * index, beta=0)
        head = cv2.resize(head, (120 + 6 * index,) * 2, interpolation=cv2.INTER_AREA)
        frame[20 : 20 + len(head), 400 : 400 + len(head)] = head
    tracks, _ = find_tracks(frames, detector)
    assert [(track.kind, bool(track.boxes[0, 0] > 300)) for track in tracks] == [("person", True), ("picture", False)]
    assert "still" in tracks[1].reason


def test_person_who_appears_late_is_scored(detector: FaceDetector, portrait: np.ndarray) -> None:
    frames = [scene(portrait, (20 + 4 * index, 200)) for index in range(24)]
    for index, frame in enumerate(frames[21:]):  # an eighth of the clip
        head = cv2.convertScaleAbs(portrait[:224, 112:336], alpha=0.7 + 0.1 * index, beta=0)
        head = cv2.resize(head, (120 + 6 * index,) * 2, interpolation=cv2.INTER_AREA)
        frame[20 : 20 + len(head), 400 : 400 + len(head)] = head
    tracks, _ = find_tracks(frames, detector)
    assert [(track.kind, track.n_hits) for track in tracks if track.boxes[0, 0] > 300] == [("person", 3)]


def test_all_twelve_persons_of_a_video_call_are_scored(detector: FaceDetector, portrait: np.ndarray) -> None:
    places = [(10 + 155 * column, 5 + 118 * row) for row in range(3) for column in range(4)]
    tracks, _ = find_tracks([scene(portrait, *places)] * 4, detector)
    assert [track.kind for track in tracks] == ["person"] * 12
    # The budget of 4 frames is 32 crops.
    assert [len(track) for track in tracks] == [2] * 12
