"""tools/research/train_motion.py: pairs, simulated flicker, the last layer, and the weight in the ensemble."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from skimage.data import astronaut
from torch import Generator, Tensor

from dfdc.crop import CropGeometry
from dfdc.data.clips import LabelledClip, read_metadata
from dfdc.errors import DataError
from dfdc.networks import FrameModel
from dfdc.research import motion_training as motion
from dfdc.research.flicker import blend_steadily, flicker, flicker_second
from dfdc.research.fusion import SeenClip, calibrate, choose_weight, measure_motion
from dfdc.research.motion_training import (
    Described,
    PairSet,
    describe_pairs,
    fit_last_layer,
    last_layer,
    load_pairs,
    make_twins,
    score_pairs,
    split_sources,
)
from dfdc.weights import Calibration, ModelSpec, find_weights
from tests.models import lively
from tools.research.train_motion import main

ROOT = Path(__file__).resolve().parent.parent
SIDE = 64
SPEC = ModelSpec("efficientnet-lite0", 32, sees="motion")


def answer(model: FrameModel, values: np.ndarray) -> np.ndarray:
    return motion.last_layer(model)(torch.from_numpy(values)).squeeze(1).detach().numpy()


def seeded(seed: int = 0) -> Generator:
    return Generator().manual_seed(seed)


@pytest.fixture
def crops() -> Tensor:
    """(16, 3, 64, 64) float: neighbouring cuts of a portrait."""
    face = torch.from_numpy(astronaut()[20:200, 140:320].copy()).permute(2, 0, 1).float()
    return torch.stack([face[:, i : i + SIDE, 2 * i : 2 * i + SIDE] for i in range(16)])


@pytest.fixture
def pairs(crops: Tensor) -> PairSet:
    """Pairs that change: 8 of two real sources, 8 of two fake ones, one of which has a single pair."""
    change = torch.randint(-20, 21, crops.shape, generator=seeded())
    both = torch.cat([crops, (crops + change).clamp(0, 255)], 1).to(torch.uint8)
    sources = np.array(["a"] * 4 + ["b"] * 4 + ["c"] * 7 + ["d"])
    return PairSet(both, torch.tensor([0.0] * 8 + [1.0] * 8), np.char.add(sources, ".mp4"), sources)


# Made flicker


@pytest.mark.parametrize("seed", range(5))
def test_steady_blend_of_equal_frames_is_constant_and_flicker_is_not(seed: int, crops: Tensor) -> None:
    before = crops.clone()
    first, second = blend_steadily(crops, crops, seeded(seed))
    assert torch.equal(first, second) and not torch.equal(first, crops)
    first, second = flicker(crops, crops, seeded(seed))
    assert all(frame.shape == crops.shape and frame.min() >= 0 and frame.max() <= 255 for frame in (first, second))
    change = (second - first).abs().flatten(1).mean(1)
    assert (change > 0.05).all() and change.mean() < 40
    assert torch.equal(crops, before)
    again = flicker(crops, crops, seeded(seed))
    assert torch.equal(first, again[0]) and torch.equal(second, again[1])


@pytest.mark.parametrize("seed", range(6))
def test_corners_of_both_frames_are_unchanged(seed: int, crops: Tensor) -> None:
    """No hull reaches a corner, so both frames are unchanged there."""
    for make in (blend_steadily, flicker, flicker_second):
        first, second = make(crops, crops.flip(0), seeded(seed))
        assert torch.equal(first[..., 0, 0], crops[..., 0, 0]), make
        assert torch.equal(second[..., 0, 0], crops.flip(0)[..., 0, 0]), make


def test_flicker_is_limited_to_the_face(crops: Tensor) -> None:
    first, second = flicker(crops, crops, seeded())
    change = (second - first).abs().mean((0, 1))
    assert change[24:40, 24:40].mean() > 20 * change[:4, :4].mean()  # no hull reaches a corner


def test_either_frame_can_flicker(crops: Tensor) -> None:
    """The frame that does not flicker is that of a steady blend."""
    steady = {seed: blend_steadily(crops, crops, _after_a_coin(seed)) for seed in range(12)}
    jumps = [torch.equal(flicker(crops, crops, seeded(seed))[0], steady[seed][0]) for seed in range(12)]
    assert 0 < sum(jumps) < 12


def _after_a_coin(seed: int) -> Generator:
    generator = seeded(seed)
    torch.rand((), generator=generator)
    return generator


def test_flickering_frame_of_the_plain_kind_is_the_second(crops: Tensor) -> None:
    first, second = flicker_second(crops, crops, seeded(3))
    steady = blend_steadily(crops, crops, seeded(3))[0]
    assert torch.equal(first, steady) and not torch.equal(second, steady)


# What is fitted


def test_twins_are_reals_with_simulated_flicker(pairs: PairSet) -> None:
    still = pairs.pairs.clone()
    still[:, 3:] = still[:, :3]
    made = make_twins(still, 32, seeded())
    assert made.shape == (16, 6, 32, 32) and made.dtype == torch.uint8
    assert ((made[:, :3].float() - made[:, 3:]).abs().flatten(1).mean(1) > 0.1).all()
    assert torch.equal(made, make_twins(still, 32, seeded()))


def test_last_layer_gives_the_models_logits_from_its_features(pairs: PairSet) -> None:
    model = lively(FrameModel(SPEC))
    torch.nn.init.normal_(last_layer(model).weight)
    values = describe_pairs(model, pairs.pairs)
    assert values.shape == (16, 1280) and values.dtype == np.float32
    assert answer(model, values) == pytest.approx(score_pairs(model, pairs.pairs), abs=1e-4)
    assert describe_pairs(model, pairs.pairs[:0]).shape == (0, 1280)


def described(n: int = 40, *, seed: int = 0) -> Described:
    """Features of which 100 of 1,280 reveal the fakes; the first ten pairs share a source, the others do not."""
    generator = np.random.default_rng(seed)
    labels = np.arange(n) % 2
    values = generator.normal(0, 1, (n, 1280)).astype(np.float32)
    values[:, :100] = 5 + (2 * labels - 1)[:, None] + 0.3 * values[:, :100]
    sources = np.array([str(max(index, 9)) for index in range(n)])
    return Described(values, labels, sources, (labels == 1) & (np.arange(n) >= 30))


def test_fitting_finds_the_features_of_fakes_and_keeps_the_backbone() -> None:
    model = lively(FrameModel(SPEC))
    before = {name: value.clone() for name, value in model.state_dict().items()}
    fit_last_layer(model, described())
    others = described(seed=1)
    assert ((answer(model, others.values) > 0) == (others.labels == 1)).all()
    slopes = last_layer(model).weight.detach().abs().squeeze(0)
    assert slopes[:100].mean() > 2 * slopes[100:].mean()
    changed = {name for name, value in model.state_dict().items() if not torch.equal(value, before[name])}
    assert changed == {"net._fc.weight", "net._fc.bias"}


def test_a_last_layer_needs_both_classes() -> None:
    training = described()
    with pytest.raises(DataError, match="20 pairs of one class"):
        fit_last_layer(FrameModel(SPEC), training.part(training.labels == 0))


def test_classes_kinds_of_fakes_and_sources_have_equal_weight() -> None:
    training = described()
    weights, real = training.weights(), training.labels == 0
    assert weights.mean() == pytest.approx(1)
    found, made = ~real & ~training.made, training.made
    assert weights[real].sum() == pytest.approx(weights[~real].sum())
    assert weights[found].sum() == pytest.approx(weights[made].sum())
    of_reals = {source: weights[real & (training.sources == source)].sum() for source in set(training.sources[real])}
    assert list(of_reals.values()) == pytest.approx([20 / len(of_reals)] * len(of_reals))


def test_pairs_are_scored_as_in_the_kernel(pairs: PairSet) -> None:
    from dfdc.networks import PairNet

    torch.manual_seed(0)
    model = lively(FrameModel(SPEC))
    with torch.inference_mode():
        by_kernel = PairNet(model)(pairs.pairs.permute(0, 2, 3, 1)).numpy()
    assert score_pairs(model, pairs.pairs) == pytest.approx(by_kernel, abs=1e-4)


# Clips


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Two families of a real clip and a fake of it."""
    videos, metadata = tmp_path / "videos", {}
    videos.mkdir()
    for name in ("ann", "ben"):
        shutil.copy(ROOT / "samples/real.mp4", videos / f"{name}.mp4")
        shutil.copy(ROOT / "samples/doctored.mp4", videos / f"{name}_fake.mp4")
        metadata[f"{name}.mp4"] = {"label": "REAL"}
        metadata[f"{name}_fake.mp4"] = {"label": "FAKE", "original": f"{name}.mp4"}
    (videos / "metadata.json").write_text(json.dumps(metadata))
    return videos


def test_pairs_are_cut_only_once_and_kept(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clips = read_metadata(folder)[:2]
    cut = load_pairs(clips, tmp_path / "pairs", n_frames=4, progress=False)
    assert cut.pairs.shape[1:] == (6, 224, 224) and cut.pairs.dtype == torch.uint8
    assert set(zip(cut.videos.tolist(), cut.sources.tolist(), cut.labels.tolist(), strict=True)) == {
        ("ann.mp4", "ann.mp4", 0.0),
        ("ann_fake.mp4", "ann.mp4", 1.0),
    }
    detectors = []
    monkeypatch.setattr(motion, "FaceDetector", lambda: detectors.append(1))
    assert torch.equal(load_pairs(clips, tmp_path / "pairs", n_frames=4, progress=False).pairs, cut.pairs)
    assert not detectors
    with pytest.raises(AttributeError):  # other crops are cut again, which needs the detector
        load_pairs(clips, tmp_path / "pairs", n_frames=4, geometry=CropGeometry(size=96), progress=False)
    assert detectors


def test_fake_with_several_persons_gives_no_pairs(shared_videos: Path, tmp_path: Path) -> None:
    clip = LabelledClip(shared_videos / "two_faces.mp4", "FAKE")
    with pytest.raises(DataError, match="none of 1 clips gives a pair"):
        load_pairs([clip], tmp_path, n_frames=4, progress=False)


def test_no_source_is_in_two_folds(folder: Path) -> None:
    clips = read_metadata(folder)
    folds = split_sources(clips, 2)
    assert sorted(name for fold in folds for name in fold) == ["ann.mp4", "ben.mp4"]
    with pytest.raises(DataError, match="2 sources cannot be split into 5 folds"):
        split_sources(clips, 5)


def test_layer_of_a_fold_is_fitted_without_its_sources(monkeypatch: pytest.MonkeyPatch) -> None:
    fitted = []
    monkeypatch.setattr(motion, "fit_last_layer", lambda model, training: fitted.append(set(training.sources)))
    found = described()
    made = replace(found.part(found.labels == 0), made=np.ones(20, bool), labels=np.ones(20, int))
    sources = sorted(set(found.sources))
    folds = [set(sources[::2]), set(sources[1::2])]
    motion.cross_fit(lively(FrameModel(SPEC)), found, made, folds)
    assert fitted == [folds[1], folds[0]]


# What motion adds


def seen_clips(changes: dict[str, float]) -> list[SeenClip]:
    """Clips of one person each with uninformative frames; capital letters are fakes."""
    clips = [LabelledClip(Path(f"{name}.mp4"), "FAKE" if name.isupper() else "REAL") for name in changes]
    logits = np.array(list(changes.values()))[:, None]
    return [SeenClip(clip, (np.zeros(4),), change) for clip, change in zip(clips, logits, strict=True)]


def test_motion_gets_weight_only_if_it_helps() -> None:
    right = seen_clips({"A": 2.0, "B": 3.0, "c": -2.0, "d": -1.0})
    assert choose_weight(right, Calibration(), (0.01, 0.99)) == 3.0
    # By hand: 3 x 2 / 2 is 3, and the factor of four frames is 1 + .3 x 3/4.
    assert right[0].logit(Calibration(temperature=2.0), 3.0, (0.01, 0.99)) == pytest.approx(1.225 * 3.0)
    wrong = seen_clips({"A": -2.0, "B": -3.0, "c": 2.0, "d": 1.0})
    assert choose_weight(wrong, Calibration(), (0.01, 0.99)) == 0.0


def test_person_without_pairs_gets_no_motion_score_and_no_bias() -> None:
    (clip,) = seen_clips({"A": 0.0})
    assert clip.logit(Calibration(bias=1.0), 1.0, (0.01, 0.99)) == 0


def test_weight_of_a_fold_is_chosen_on_the_other_folds() -> None:
    """Motion is right in one fold and wrong in the other, so each fold gets the weight that suits the other."""
    seen = seen_clips({"A": 2.0, "B": 2.0, "c": -2.0, "d": -2.0, "E": -2.0, "F": -2.0, "g": 2.0, "h": 2.0})
    folds = [{f"{name}.mp4" for name in part} for part in ("ABcd", "EFgh")]
    sources = np.array([clip.clip.source for clip in seen])
    labels = torch.tensor([float(clip.clip.label == "FAKE") for clip in seen])
    logits = np.array([float(clip.changes[0]) for clip in seen])
    pairs = PairSet(torch.zeros(8, 6, 2, 2, dtype=torch.uint8), labels, sources, sources)
    right = np.where(labels.numpy() == 1, 1.0, -1.0) + np.array([0.5, -1.5, 0, 0] * 2)  # the input of the calibration
    report = measure_motion(seen, folds, pairs, right, (0.01, 0.99), samples=200)
    assert report["weights"][0] == 0 and report["weights"][1] > 0
    assert report["frames alone"]["log_loss"]["value"] == pytest.approx(np.log(2))
    assert report["with motion"]["log_loss"]["value"] > np.log(2)
    assert [report["clips"][name]["with motion"] for name in ("A.mp4", "d.mp4")] == [0, 0]
    assert report["clips"]["E.mp4"]["with motion"] < 0 and logits[4] < 0


def test_calibration_gives_both_classes_equal_weight() -> None:
    generator = np.random.default_rng(0)
    labels = np.repeat([0, 1], [100, 900])
    logits = generator.normal(np.where(labels == 1, 1.0, -1.0), 1.0)
    assert abs(calibrate(labels, logits).bias) < 0.35  # the class ratio of 9 to 1 would give 2.2
    with pytest.raises(DataError, match="0 real and 3 fake"):
        calibrate(np.ones(3), np.zeros(3))


def test_tool_trains_measures_and_writes_weights_for_the_kernel(
    folder: Path, tmp_path: Path, one_thread: None, capsys: pytest.CaptureFixture[str]
) -> None:
    run, out = tmp_path / "run", tmp_path / "weights"
    (init,) = (ROOT / "weights").glob("*.safetensors")
    out.mkdir()
    shutil.copy(init, out)
    small = ["--input-size", "32", "--folds", "2", "--frames", "2", "--pairs", "4"]
    arguments = [str(folder), "--init", str(init), "--run", str(run), "--out", str(out / "optional"), *small]
    assert main(arguments) == 0
    report = json.loads((run / "motion.json").read_text())
    assert set(report["clips"]) == {clip.name for clip in read_metadata(folder)}
    assert 0 <= report["flicker_auc"] <= 1 and 0 <= report["with motion"]["auc"]["value"] <= 1
    motion_file = find_weights(out, extras=["motion"])[-1]
    assert motion_file.spec.validation["auc"] == report["with motion"]["auc"]["value"]
    assert str(motion_file.path) in capsys.readouterr().out
    assert main([*arguments, "--folds", "9"]) == 1
    assert "cannot be split into 9 folds" in capsys.readouterr().err
