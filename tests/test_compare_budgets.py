"""tools/bench/compare_budgets.py: what more frames cost and bring, by the real kernel."""

from __future__ import annotations

import csv
import json
import math
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

from dfdc.weights import find_weights
from tools.bench import compare_budgets

ROOT = Path(__file__).resolve().parent.parent
SAMPLES = ROOT / "samples"


def test_more_frames_are_scored_and_told_with_their_cost(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    figures, picture = tmp_path / "budgets.json", tmp_path / "budgets.png"
    arguments = [str(SAMPLES), "--frames", "1", "4", "--device", "cpu", "--json", str(figures)]
    assert compare_budgets.main([*arguments, "--picture", str(picture)]) == 0
    one, four, _, all_four = json.loads(figures.read_text())
    assert (one["n_frames"], four["n_frames"], all_four["n_frames"]) == (1, 4, 4)
    n_all = len(find_weights(ROOT / "weights"))
    assert n_all > 1
    assert (one["n_models"], four["n_models"], all_four["n_models"]) == (1, 1, n_all)
    assert one["core_seconds"] > 0 and four["core_seconds"] > 0
    command = [
        sys.executable,
        ROOT / "kernel.py",
        SAMPLES,
        "--frames",
        "4",
        "--models",
        "first",
        "--device",
        "cpu",
        "--out",
    ]
    subprocess.run([*command, tmp_path / "four.csv"], check=True, capture_output=True)
    with open(tmp_path / "four.csv", newline="") as file:
        labels = {row["filename"]: float(row["label"]) for row in csv.DictReader(file)}
    assert four["auc"] == float(labels["doctored.mp4"] > labels["real.mp4"])
    assert all_four["log_loss"] != four["log_loss"]
    by_hand = -(math.log(labels["doctored.mp4"]) + math.log(1 - labels["real.mp4"])) / 2
    assert four["log_loss"] == pytest.approx(by_hand, abs=1e-4)
    assert Image.open(picture).size[0] > 500
    said = capsys.readouterr().out
    assert "| 1 | 4 |" in said and f"| {n_all} | 4 |" in said


def test_users_mistakes_are_told_before_anything_runs(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    (tmp_path / "real.mp4").write_bytes(b"")
    (tmp_path / "metadata.json").write_text(json.dumps({"real.mp4": {"label": "REAL"}, "gone.mp4": {"label": "FAKE"}}))
    assert compare_budgets.main([str(tmp_path)]) == 1
    assert "all 1 clips are REAL; scores need both labels" in capsys.readouterr().err
    assert compare_budgets.main([str(SAMPLES), "--json", str(tmp_path)]) == 1
    assert "is a folder; name a file in it" in capsys.readouterr().err


def test_folder_without_labels_is_refused_in_one_line(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    assert compare_budgets.main([str(tmp_path)]) == 1
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and "metadata.json" in said
