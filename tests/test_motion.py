"""dfdc.research.motion: pairs of neighbouring frames, the model's input, and its contribution to a score."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from skimage.data import astronaut

from dfdc.aggregate import clip_probability
from dfdc.analyze import Analyzer
from dfdc.crop import CropGeometry, crop_face
from dfdc.networks import FrameModel, PairNet, load_model, save_model, see_change
from dfdc.research.motion import N_PAIRS, Motion, align, correlate, cut_pair, cut_track
from dfdc.tracks import Track, find_tracks
from dfdc.video import Frame
from dfdc.weights import Calibration, ModelSpec, WeightsFile, find_weights, open_weights
from tests.models import lively

ROOT = Path(__file__).resolve().parent.parent
GEOMETRY = CropGeometry(size=64)
FACE = ModelSpec("efficientnet-lite0", 32, crop=GEOMETRY)
MOTION = replace(FACE, sees="motion")
PORTRAIT = astronaut()[:256, 96:352]
BOX = np.array([70, 40, 190, 200], np.float32)


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> list[WeightsFile]:
    """A face model and a motion model."""
    folder = tmp_path_factory.mktemp("weights")
    (folder / "optional").mkdir()
    torch.manual_seed(0)
    save_model(lively(FrameModel(FACE)), folder, name="face")
    save_model(lively(FrameModel(replace(MOTION, weight=0.5))), folder / "optional", name="motion")
    return find_weights(folder, extras=["motion"])


def moved(picture: np.ndarray, *, turn: float = 0, scale: float = 1, shift: tuple[float, float] = (0, 0)) -> np.ndarray:
    """Turn a picture (degrees) and scale it about its middle, then shift it (pixels)."""
    height, width = picture.shape[:2]
    place = cv2.getRotationMatrix2D(((width - 1) / 2, (height - 1) / 2), turn, scale)
    place[:, 2] += shift
    return cv2.warpAffine(picture, place, (width, height), borderMode=cv2.BORDER_REPLICATE)


def difference(a: np.ndarray, b: np.ndarray) -> float:
    """Mean difference in levels, away from the edges."""
    return float(np.abs(a.astype(int) - b)[16:-16, 16:-16].mean())


def track(n: int) -> Track:
    return Track(np.arange(n), np.tile(BOX, (n, 1)), np.ones(n, bool), 0.99, np.zeros(n))


# Pairs


@pytest.mark.parametrize(
    "move", [{"shift": (3, -2)}, {"turn": 2.0}, {"scale": 1.04}, {"turn": -1.5, "scale": 0.97, "shift": (-2.5, 1.5)}]
)
def test_alignment_reverses_the_movement_of_a_head(move: dict) -> None:
    first = crop_face(PORTRAIT, BOX, CropGeometry())
    second = moved(first, **move)
    assert difference(first, second) > 4
    # Two interpolations blur the edges; the rest is equal.
    assert difference(first, align(first, second)) < difference(first, second) / 3


def test_equal_frames_stay_equal() -> None:
    first = crop_face(PORTRAIT, BOX, CropGeometry())
    assert np.array_equal(align(first, first), first)
    pair = cut_pair(Frame(0, PORTRAIT, PORTRAIT), BOX, GEOMETRY)
    assert pair.shape == (64, 64, 6) and pair.dtype == np.uint8
    assert np.array_equal(pair[..., :3], pair[..., 3:])


def test_first_half_of_a_pair_is_the_crop_of_the_face_models() -> None:
    pair = cut_pair(Frame(0, PORTRAIT, moved(PORTRAIT, shift=(2, 1))), BOX, GEOMETRY)
    assert np.array_equal(pair[..., :3], crop_face(PORTRAIT, BOX, GEOMETRY))


def test_change_on_the_skin_remains_after_alignment() -> None:
    changed = PORTRAIT.copy()
    changed[110:130, 115:135] = np.clip(changed[110:130, 115:135].astype(int) + 40, 0, 255)
    geometry = CropGeometry(side_ratio=1.0, shift_ratio=0.0, size=140)  # one pixel of the crop is one of the frame
    pair = cut_pair(Frame(0, PORTRAIT, moved(changed, shift=(2, 1))), BOX, geometry).astype(int)
    change = np.abs(pair[..., 3:] - pair[..., :3]).mean(2)
    left, top, side = geometry.square(BOX)
    assert side == 140
    spot = change[112 - top : 128 - top, 117 - left : 133 - left]
    assert spot.mean() > 25 and spot.mean() > 4 * change.mean()


def test_frames_without_neighbours_and_scene_changes_give_no_pair() -> None:
    other = np.random.default_rng(0).integers(0, 256, PORTRAIT.shape, dtype=np.uint8)
    frames = [Frame(0, PORTRAIT), Frame(1, PORTRAIT, other), Frame(2, PORTRAIT, PORTRAIT[:, ::-1].copy())]
    assert [cut_pair(frame, BOX, GEOMETRY) for frame in frames] == [None] * 3
    assert cut_track(frames, track(3), GEOMETRY).shape == (0, 64, 64, 6)
    frames.append(Frame(3, PORTRAIT, PORTRAIT))
    assert cut_track(frames, track(4), GEOMETRY).shape == (1, 64, 64, 6)


def test_pairs_show_rolled_heads_upright() -> None:
    rolled = moved(PORTRAIT, turn=-30)  # clockwise
    frames = [Frame(0, rolled, rolled)]
    pairs = cut_track(frames, replace(track(1), angles=np.array([30.0])), GEOMETRY)
    assert np.array_equal(pairs[0, ..., :3], crop_face(rolled, BOX, GEOMETRY, angle=30.0))
    assert not np.array_equal(pairs, cut_track(frames, track(1), GEOMETRY))


def test_uniform_pictures_are_not_aligned_and_raise_no_error() -> None:
    grey, white = np.full((64, 64, 3), 90, np.uint8), np.full((64, 64, 3), 255, np.uint8)
    assert np.array_equal(align(grey, white), white)
    assert correlate(grey, white) == 1
    assert correlate(grey, PORTRAIT[:64, :64]) == 0


# The model's input


def test_unchanged_pixels_are_grey_and_changes_are_amplified_three_times() -> None:
    first = torch.tensor([10.0, 100.0, 200.0, 128.0]).view(1, 1, 2, 2).expand(1, 3, 2, 2)
    second = torch.tensor([10.0, 110.0, 100.0, 255.0]).view(1, 1, 2, 2).expand(1, 3, 2, 2)
    seen = see_change(torch.cat([first, second], 1), 2)
    assert seen.shape == (1, 3, 2, 2)
    assert seen[0, 0].tolist() == [[127, 157], [0, 255]]  # 127 + 3 x 10, and both ends


def test_motion_model_depends_on_the_change_only() -> None:
    network = PairNet(load_model(find_weights(ROOT / "weights")[0])).eval()  # any trained model
    crop = torch.from_numpy(crop_face(PORTRAIT, BOX, CropGeometry()))[None].clamp(0, 200)
    shifted = crop.roll(3, 2)
    with torch.inference_mode():
        moving, brighter, still = (
            float(network(torch.cat(halves, 3)))
            for halves in ((crop, shifted), (crop + 40, shifted + 40), (crop, crop))
        )
    # Half levels may be rounded up or down.
    assert brighter == pytest.approx(moving, abs=0.01) and abs(moving - still) > 0.1


# The contribution to a clip's score


def frames(n: int, n_pairs: int) -> list[Frame]:
    return [Frame(index, PORTRAIT, PORTRAIT if index < n_pairs else None) for index in range(n)]


def test_score_of_a_track_is_the_weighted_mean_of_its_calibrated_pairs(files: list[WeightsFile]) -> None:
    specs = [replace(MOTION, weight=0.5, calibration=Calibration(2.0, 1.0)), replace(MOTION, weight=2.0)]
    opened = [replace(files[1], spec=spec) for spec in specs]
    models = [lambda pairs: (np.arange(len(pairs), dtype=np.float32),), lambda pairs: (np.full(len(pairs), -1.0),)]
    scores = Motion(opened, models=models).score(frames(5, 3), [track(5), track(2)])
    # Pairs 0, 1, 2 of the first person: 0.5 x (1 / 2 + 1) + 2 x -1; pairs 0, 1 of the second: 0.5 x (.5 / 2 + 1) - 2.
    assert scores == pytest.approx([-1.25, -1.375])


def test_without_pairs_or_models_nothing_is_added(files: list[WeightsFile]) -> None:
    motion = Motion(files[1:], models=[lambda pairs: (np.ones(len(pairs), np.float32),)])
    assert motion.n_pairs == N_PAIRS
    assert motion.score(frames(3, 0), [track(3)]).tolist() == [0]
    blind = Motion([])
    assert blind.n_pairs == 0
    assert blind.score(frames(3, 3), [track(3), track(2)]).tolist() == [0, 0]


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_logits_that_are_not_finite_are_an_error(files: list[WeightsFile], value: float) -> None:
    motion = Motion(files[1:], "cuda", models=[lambda pairs: (np.full(len(pairs), value),)])
    with pytest.raises(FloatingPointError, match="not finite"):
        motion.score(frames(2, 2), [track(2)])


def test_score_of_a_clip_combines_frames_and_motion(files: list[WeightsFile]) -> None:
    clip = ROOT / "samples/real.mp4"
    both, faces = Analyzer(files), Analyzer(files[:1])
    joined, alone = both.analyze(clip, 12), faces.analyze(clip, 12)
    sighting = both.find_people(clip, 12)
    changes = both.motion.score(sighting.frames, sighting.tracks)
    assert np.all(changes != 0)
    for with_motion, without, change in zip(joined.tracks, alone.tracks, changes, strict=True):
        assert with_motion.logits == pytest.approx(without.logits + change, abs=1e-5)
    low, high = both.ensemble.bounds()
    for analysis in (joined, alone):
        expected = clip_probability([track.logits for track in analysis.tracks], low=low, high=high)
        assert analysis.probability == pytest.approx(expected, abs=1e-6)
    assert joined.probability != alone.probability
    assert (joined.n_pairs, alone.n_pairs) == (N_PAIRS, 0)


def test_failing_optional_models_leave_the_other_scores(
    files: list[WeightsFile], monkeypatch: pytest.MonkeyPatch
) -> None:
    clip = ROOT / "samples/real.mp4"
    alone = Analyzer(files[:1]).analyze(clip, 4)
    analyzer = Analyzer(files)
    for network, method in ((analyzer.motion, "score"), (analyzer.voices, "score_clip")):
        monkeypatch.setattr(network, method, lambda *_: 1 / 0)
    prediction = analyzer.analyze(clip, 4)
    assert (prediction.status, prediction.probability) == ("ok", pytest.approx(alone.probability, abs=1e-6))
    # A failure on CUDA may have damaged its context, so another worker scores that clip on the CPU.
    analyzer.device = "cuda"
    assert (analyzer.analyze(clip, 4).status, analyzer.analyze(clip, 4).probability) == ("error", 0.5)


def test_motion_of_each_person_is_added_to_their_own_frames(
    files: list[WeightsFile], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A clip with two persons, one of whom is visible in half of the frames."""

    def find_two(*arguments: object) -> tuple[list[Track], dict]:
        (track,), faces = find_tracks(*arguments)
        return [track, track.at(np.arange(0, len(track), 2))], faces

    monkeypatch.setattr("dfdc.findings.find_tracks", find_two)
    joined = Analyzer(files)
    found = joined.find_people(ROOT / "samples/real.mp4", 12)
    changes = joined.motion.score(found.frames, found.tracks)
    alone = Analyzer(files[:1]).analyze(ROOT / "samples/real.mp4", 12)
    seen = joined.analyze(ROOT / "samples/real.mp4", 12)
    assert (seen.status, len(seen.tracks)) == ("ok", 2)
    assert changes[0] != changes[1]
    for track, plain, change in zip(seen.tracks, alone.tracks, changes, strict=True):
        assert track.logits == pytest.approx(plain.logits + change, abs=1e-5)


def test_few_frames_give_at_most_as_many_pairs(files: list[WeightsFile]) -> None:
    prediction = Analyzer(files).analyze(ROOT / "samples/real.mp4", 2)
    assert (prediction.status, len(prediction.times_s), prediction.n_pairs) == ("ok", 2, 2)


def test_weights_state_that_their_input_is_motion(files: list[WeightsFile]) -> None:
    spec = open_weights(files[1].path).spec
    assert (spec.sees, spec.channels, spec.weight) == ("motion", 3, 0.5)
