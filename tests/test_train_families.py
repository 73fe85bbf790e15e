"""Training on families of crops: shares, fixed norms, matched pairs, exact resumption, and scores of each family."""

from __future__ import annotations

import csv
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

from dfdc.data.dataset import load_crops
from dfdc.evaluation.metrics import measure_calibrated, measure_families
from dfdc.networks import FrameModel
from dfdc.training import loop
from dfdc.training.loop import TrainSettings, train
from dfdc.weights import ModelSpec, find_weights
from tools.train import main

SIDE = 32
SETTINGS = TrainSettings(
    epochs=2,
    batch_size=8,
    ema_decay=0.5,
    shares={"swaps": 2.0, "faces": 1.0},
    epoch_pairs=12,
    fixed_norms=True,
    match_strangers=True,
)
pytestmark = pytest.mark.usefixtures("one_thread")


def write_family(folder: Path, family: str, *, paired: bool) -> Path:
    """Write a table of 8 reals and 8 fakes in each split; fakes are bright in the middle."""
    folder.mkdir()
    generator, rows = np.random.default_rng(len(family)), []
    for split in ("train", "val"):
        for label in ("REAL", "FAKE"):
            for n in range(8):
                name = f"{family}{split}{label}{n}"
                pixels = generator.integers(60, 120, (SIDE, SIDE, 3), dtype=np.uint8)
                pixels[8:24, 8:24] += 110 * (label == "FAKE")
                cv2.imwrite(str(folder / f"{name}.png"), pixels)
                original = f"{family}{split}REAL{n}" if paired and label == "FAKE" else ""
                rows.append([f"{name}.png", name, label, original, split, family, "kind", "24"])
    with open(folder / "crops.csv", "w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["path", "video", "label", "original", "split", "family", "manipulation", "source_size"])
        writer.writerows(rows)
    return folder / "crops.csv"


@pytest.fixture
def tables(tmp_path: Path) -> list[Path]:
    return [write_family(tmp_path / name, name, paired=name == "swaps") for name in ("swaps", "faces")]


def make_model() -> FrameModel:
    torch.manual_seed(0)
    return FrameModel(ModelSpec("efficientnet-lite0", SIDE))


def test_run_with_families_resumes_exactly(tmp_path: Path, tables: list[Path], monkeypatch: pytest.MonkeyPatch) -> None:
    crops, val = (load_crops(*tables, split=split, progress=False) for split in ("train", "val"))
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    for folder in (whole, killed):
        folder.mkdir()
    wanted, scores, _ = train(make_model(), crops, val, whole, SETTINGS, progress=False)
    drawn = loop.draw_pairs

    def fail_at_the_second(*args):
        pairs = drawn(*args)
        if (killed / "state.pt").exists():
            raise KeyboardInterrupt
        return pairs

    monkeypatch.setattr(loop, "draw_pairs", fail_at_the_second)
    with pytest.raises(KeyboardInterrupt):
        train(make_model(), crops, val, killed, SETTINGS, progress=False)
    monkeypatch.undo()
    found, found_scores, _ = train(make_model(), crops, val, killed, SETTINGS, progress=False)
    assert found_scores == scores
    for name, value in wanted.state_dict().items():
        assert torch.equal(found.state_dict()[name], value), name
    assert {"auc swaps", "auc faces", "log_loss swaps", "log_loss faces"} <= set(scores)


def test_fixed_norms_keep_their_statistics(tmp_path: Path, tables: list[Path]) -> None:
    crops, val = (load_crops(*tables, split=split, progress=False) for split in ("train", "val"))
    model = make_model()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    train(model, crops, val, tmp_path, SETTINGS, progress=False)
    for name, value in model.state_dict().items():
        if "running" in name:
            assert torch.equal(value, before[name]), name
    assert not torch.equal(model.state_dict()["net._conv_stem.weight"], before["net._conv_stem.weight"])


def test_train_tool_leaves_a_family_out_and_reports_it(tmp_path: Path, tables: list[Path]) -> None:
    command = ["--crops", *map(str, tables), "--run", str(tmp_path / "run"), "--input-size", str(SIDE), "--epochs", "1"]
    command += ["--batch-size", "8", "--family-share", "swaps=1", "--epoch-pairs", "8", "--val-limit", "4"]
    assert main([*command, "--leave-out", "faces", "--fixed-norms"]) == 0
    (weights,) = find_weights(tmp_path / "run")
    assert weights.spec.validation["n"] == 16 and "auc faces" in weights.spec.validation
    assert weights.spec.trained_on.startswith("16 crops")


def test_unknown_family_is_refused(tmp_path: Path, tables: list[Path], capsys: pytest.CaptureFixture) -> None:
    command = ["--crops", *map(str, tables), "--run", str(tmp_path / "run"), "--leave-out", "voices"]
    assert main(command) == 1
    assert "voices: no such family; the tables have faces, swaps" in capsys.readouterr().err


def test_fixed_norms_need_the_cpu_without_compilation(tables: list[Path]) -> None:
    with pytest.raises(ValueError, match="choose one"):
        replace(SETTINGS, compiled=True)
    with pytest.raises(ValueError, match="share"):
        replace(SETTINGS, shares={"swaps": 0.0})


def test_families_have_equal_weight_in_calibration_and_scores() -> None:
    generator = np.random.default_rng(0)
    labels = np.tile([0, 1], 300)
    families = np.where(np.arange(600) < 500, "many", "few")
    logits = generator.normal(labels * np.where(families == "many", 4.0, 0.2), 1)
    scores, _ = measure_families(labels, logits, families)
    assert scores["auc"] == pytest.approx((scores["auc many"] + scores["auc few"]) / 2)
    assert scores["balanced_log_loss"] == pytest.approx((scores["log_loss many"] + scores["log_loss few"]) / 2)
    copies = np.concatenate([np.arange(600), *[np.flatnonzero(families == "many")] * 3])
    again, _ = measure_families(labels[copies], logits[copies], families[copies])
    assert again["balanced_log_loss"] == pytest.approx(scores["balanced_log_loss"], abs=1e-3)
    alone, _ = measure_families(labels, logits, np.full(600, "one"))
    assert alone == measure_calibrated(labels, logits)[0]
