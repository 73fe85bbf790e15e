"""tools/evaluate.py: labelled crops and clips give scores with intervals, and pictures."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator
from inspect import signature
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from sklearn.metrics import log_loss, roc_auc_score

from dfdc.crop import CropGeometry
from dfdc.errors import DataError
from dfdc.evaluation import scored as scores_of
from dfdc.evaluation.scored import HEADINGS, Scored, draw_pictures, format_table, report_scores
from dfdc.networks import CropNet, FrameModel, load_model, save_model
from dfdc.prediction import Prediction
from dfdc.run.pool import answer_clips
from dfdc.weights import Calibration, ModelSpec, find_weights, sigmoid
from tests.models import lively
from tools import evaluate as tool
from tools.evaluate import evaluate, main, score_crop_table

SIDE = 32
PICTURES = ("roc.png", "reliability.png", "histogram.png", "mistakes.png")


pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two random models, each with its own calibration; most logits of 24 crops lie inside the bounds."""
    folder = tmp_path_factory.mktemp("weights")
    for seed, calibration in enumerate((Calibration(0.5, 0.3, 0.02, 0.9), Calibration(1.0, -0.5, 0.04, 0.98))):
        torch.manual_seed(seed)
        spec = ModelSpec("mobilenet-v2", SIDE, crop=CropGeometry(size=SIDE), calibration=calibration)
        save_model(lively(FrameModel(spec)), folder, name=f"model{seed}")
    return folder


@pytest.fixture(scope="module")
def table(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Eight videos with three crops each in the split val, two of them fakes of one original; one crop in train."""
    folder = tmp_path_factory.mktemp("crops")
    generator = np.random.default_rng(0)
    rows = []
    for video in range(8):
        for frame in range(3):
            path = f"{video}-{frame}.png"
            cv2.imwrite(str(folder / path), generator.integers(0, 256, (SIDE, SIDE, 3), dtype=np.uint8))
            label, manipulation = ("FAKE", "swap" if video > 5 else "lips") if video >= 4 else ("REAL", "")
            original = "0.mp4" if manipulation == "swap" else ""
            rows.append((path, f"{video}.mp4", label, original, "val", manipulation))
    rows.append(("0-0.png", "train.mp4", "REAL", "", "train", ""))
    with open(folder / "crops.csv", "w", newline="") as file:
        csv.writer(file).writerows([("path", "video", "label", "original", "split", "manipulation"), *rows])
    return folder / "crops.csv"


@pytest.fixture
def scored() -> Scored:
    """20 reals and 20 fakes of two kinds, with some mistakes on both sides."""
    generator = np.random.default_rng(0)
    labels = np.repeat([0, 1], 20)
    names = [f"{i}.mp4" for i in range(40)]
    kinds = np.array([""] * 20 + ["swap"] * 12 + ["lips"] * 8)
    probabilities = sigmoid(generator.normal(2.0 * labels - 1, 1))
    return Scored(names, labels, probabilities, kinds, np.array(names), lambda index: None)


def test_ensemble_scores_crops_with_the_mean_of_calibrated_logits(weights: Path, table: Path) -> None:
    both = score_crop_table(table, weights, device="cpu")
    crops = np.stack([cv2.imread(str(table.with_name(name)))[:, :, ::-1] for name in both.names])
    with torch.inference_mode():
        models = [CropNet(load_model(file)).eval() for file in find_weights(weights)]
        raw = [
            torch.stack(network(torch.from_numpy(np.concatenate([crops, crops], 3)))).mean(0).numpy()
            for network in models
        ]
    logits = [file.spec.calibration.logits(z) for file, z in zip(find_weights(weights), raw, strict=True)]
    assert all(np.ptp(z) > 0.3 for z in logits)
    expected = np.clip(sigmoid(np.mean(logits, 0)), 0.03, 0.94)  # means of the models' bounds
    assert np.ptp(expected) > 0.1
    # The kernel's runtime sums in another order, and in noise some pixels are rounded to another level.
    assert both.probabilities == pytest.approx(expected, abs=5e-3)
    assert both.names[4] == "1-1.png" and both.sources[4] == "1.mp4" and both.manipulations[-1] == "swap"
    assert set(both.sources[12:]) == {
        "4.mp4",
        "5.mp4",
        "0.mp4",
    }  # the source of a fake is its original, if that is named
    assert both.labels.tolist() == [0] * 12 + [1] * 12
    written = cv2.cvtColor(cv2.imread(str(table.with_name("1-1.png"))), cv2.COLOR_BGR2RGB)
    assert np.array_equal(both.picture(4), written)


def test_probabilities_stay_within_the_mean_of_the_bounds(table: Path, tmp_path: Path) -> None:
    for seed, bounds in enumerate(((0.45, 0.5), (0.49, 0.6))):
        torch.manual_seed(seed)
        spec = ModelSpec(
            "mobilenet-v2", SIDE, crop=CropGeometry(size=SIDE), calibration=Calibration(0.01, 0.0, *bounds)
        )
        save_model(lively(FrameModel(spec)), tmp_path, name=f"model{seed}")
    probabilities = score_crop_table(table, tmp_path, device="cpu").probabilities
    assert (probabilities.min(), probabilities.max()) == pytest.approx((0.47, 0.55))


def test_crops_give_json_table_and_pictures(
    weights: Path, table: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    out = tmp_path / "new/scores.json"
    command = ["--crops", str(table), "--weights", str(weights), "--device", "cpu", "--samples", "20"]
    assert main([*command, "--json", str(out), "--pictures", str(tmp_path / "pictures")]) == 0
    scores = json.loads(out.read_text())
    expected = score_crop_table(table, weights, device="cpu")
    assert set(scores) == {"overall", "by_manipulation"} and set(scores["by_manipulation"]) == {"lips", "swap"}
    for group in (scores["overall"], *scores["by_manipulation"].values()):
        assert set(group) == {*HEADINGS, "n", "n_groups", "level"}
        assert all(set(group[name]) == {"value", "low", "high"} for name in HEADINGS)
    assert scores["overall"]["n"] == 24 and scores["by_manipulation"]["lips"]["n"] == 12 + 6
    assert scores["overall"]["auc"]["value"] == pytest.approx(roc_auc_score(expected.labels, expected.probabilities))
    assert "overall" in capsys.readouterr().out
    for name in PICTURES:
        assert cv2.imread(str(tmp_path / "pictures" / name)).std() > 5, name


def test_fakes_of_each_manipulation_are_measured_against_all_reals(scored: Scored) -> None:
    scores = report_scores(scored, samples=10)
    part = (scored.labels == 0) | (scored.manipulations == "lips")
    lips = scores["by_manipulation"]["lips"]
    assert lips["n"] == 28
    assert lips["auc"]["value"] == pytest.approx(roc_auc_score(scored.labels[part], scored.probabilities[part]))
    assert lips["log_loss"]["value"] == pytest.approx(log_loss(scored.labels[part], scored.probabilities[part]))


def test_same_seed_gives_the_same_intervals(scored: Scored) -> None:
    first, again, other = (report_scores(scored, samples=10, seed=seed) for seed in (3, 3, 4))
    assert first == again != other


def test_table_has_a_row_for_every_group(scored: Scored) -> None:
    scores = report_scores(scored, samples=10)
    lines = format_table(scores).splitlines()
    assert [line.split()[:2] for line in lines[1:]] == [["overall", "40"], ["lips", "28"], ["swap", "32"]]
    auc = scores["overall"]["auc"]
    assert f"{auc['value']:.3f} ({auc['low']:.3f}-{auc['high']:.3f})" in lines[1]


def test_contact_sheet_shows_the_worst_mistakes_of_both_classes(scored: Scored, tmp_path: Path, monkeypatch) -> None:
    drawn = []
    monkeypatch.setattr(scores_of, "draw_contact_sheet", lambda path, tiles, title: drawn.append((tiles, title)))
    draw_pictures(scored, report_scores(scored, samples=5), tmp_path)
    ((tiles, title),) = drawn
    missed = sorted(p for p, label in zip(scored.probabilities, scored.labels, strict=True) if label and p < 0.5)
    accused = sorted((p for p, y in zip(scored.probabilities, scored.labels, strict=True) if not y and p > 0.5))
    assert [tile.probability for tile in tiles] == missed + accused[::-1]
    assert [tile.fake for tile in tiles] == [True] * len(missed) + [False] * len(accused)
    assert f"{len(missed)} of 20 fakes missed, {len(accused)} of 20 reals" in title


def test_pictures_are_drawn_even_without_a_mistake_or_a_face(scored: Scored, tmp_path: Path) -> None:
    right = np.where(scored.labels == 1, 0.9, 0.1)
    scored = Scored(scored.names, scored.labels, right, scored.manipulations, scored.sources, scored.picture)
    draw_pictures(scored, report_scores(scored, samples=5), tmp_path)
    assert all((tmp_path / name).stat().st_size > 1000 for name in PICTURES)


def test_single_class_is_refused(scored: Scored) -> None:
    reals = Scored(scored.names[:20], np.zeros(20, int), scored.probabilities[:20], *[np.array([""] * 20)] * 2, None)
    with pytest.raises(DataError, match="20 reals and 0 fakes; scores need both"):
        evaluate(reals)


def test_clips_are_scored_by_the_kernels_workers(
    weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    metadata = {
        "a.mp4": {"label": "REAL"},
        "b.mp4": {"label": "FAKE", "manipulation": "swap"},
        "gone.mp4": {"label": "FAKE"},
    }
    (tmp_path / "metadata.json").write_text(json.dumps(metadata))
    for name in ("a.mp4", "b.mp4"):
        (tmp_path / name).write_bytes(b"no video")
    given = {}

    def predict(*args: object, **how: object) -> Iterator[Prediction]:
        given.update(signature(answer_clips).bind(*args, **how).arguments)
        yield Prediction("b.mp4", label=0.8)
        yield Prediction("a.mp4", status="unreadable", reason="not a video")

    monkeypatch.setattr(tool, "predict_clips", predict)
    out = tmp_path / "scores.json"
    command = ["--videos", str(tmp_path), "--weights", str(weights), "--frames", "5", "--workers", "2"]
    assert main([*command, "--samples", "5", "--json", str(out), "--pictures", str(tmp_path / "pictures")]) == 0
    said = capsys.readouterr().err
    assert "1 of 3 listed clips are absent and left out" in said and "a.mp4: unreadable, not a video" in said
    assert given["clips"] == {name: tmp_path / name for name in ("a.mp4", "b.mp4")}
    assert given["settings"].n_frames == 5 and len(given["settings"].weights) == 2 and given["n_workers"] == 2
    scores = json.loads(out.read_text())
    assert scores["overall"]["n"] == 2
    assert scores["overall"]["log_loss"]["value"] == pytest.approx(-(np.log(0.8) + np.log(0.5)) / 2)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--crops", "{}/none.csv"], "not a readable CSV file"),
        (["--videos", "{}"], "metadata.json: cannot be read"),
        (["--crops", "{}/none.csv", "--weights", "{}/none"], "no such weights file or folder"),
    ],
)
def test_mistakes_end_with_one_line(
    weights: Path, tmp_path: Path, capsys: pytest.CaptureFixture, arguments: list[str], said: str
) -> None:
    arguments = [argument.format(tmp_path) for argument in arguments]
    assert main(["--weights", str(weights), "--device", "cpu", *arguments]) == 1
    error = capsys.readouterr().err
    assert said in error and error.count("\n") == 1


@pytest.mark.parametrize(
    ("source", "flag", "needed"),
    [
        ("--crops", ["--with", "motion"], "--videos"),
        ("--crops", ["--frames", "4"], "--videos"),
        ("--videos", ["--split", "train"], "--crops"),
        ("--videos", ["--limit", "4"], "--crops or --protocol"),
        ("--protocol", ["--pictures", "p"], "--crops or --videos"),
    ],
)
def test_flags_without_effect_are_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture, source: str, flag: list[str], needed: str
) -> None:
    with pytest.raises(SystemExit):
        main([source, str(tmp_path), *flag])
    assert f"{flag[0]}: works with {needed} only" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("flag", "value", "said"),
    [(flag, "0", "from 1 up") for flag in ("--samples", "--workers", "--frames")] + [("--seed", "-1", "from 0 up")],
)
def test_impossible_numbers_are_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture, flag: str, value: str, said: str
) -> None:
    with pytest.raises(SystemExit):
        main(["--crops", str(tmp_path / "crops.csv"), flag, value])
    assert f"argument {flag}: {value!r} is not allowed; give a whole number {said}" in capsys.readouterr().err
