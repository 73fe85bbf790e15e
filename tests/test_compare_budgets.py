"""tools/bench/compare_budgets.py: cost and accuracy by the number of frames, with a fake and with the real kernel."""

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
# Takes the kernel's flags. Its label depends on the clip's name, the number of frames and the number of models.
FAKE_KERNEL = f"""
import argparse, sys
from pathlib import Path
sys.path.insert(0, {str(ROOT)!r})
from dfdc.cli import add_score_arguments
from dfdc.prediction import Prediction
from dfdc.run.submission import Submission
parser = argparse.ArgumentParser()
add_score_arguments(parser)
args = parser.parse_args()
n_models = len(list(args.weights.glob("*.safetensors")))
submission = Submission(args.out, [path.name for path in args.paths])
for path in args.paths:
    label = 0.5 + 0.1 * args.frames * (1 if path.name.startswith("fake") else -1) / n_models
    costs = dict(seconds=args.frames, decode_s=args.frames / 2, detect_s=0.25, score_s=n_models / 4)
    submission.record(Prediction(path.name, label, frames=args.frames, n_models=n_models, **costs))
submission.save()
"""


def test_each_number_of_frames_is_scored_with_the_first_models_and_with_all(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    (tmp_path / "kernel.py").write_text(FAKE_KERNEL)
    monkeypatch.setattr(compare_budgets, "KERNEL", tmp_path / "kernel.py")
    clips = tmp_path / "clips"
    clips.mkdir()
    for name in ("real.mp4", "fake.mp4"):
        (clips / name).write_bytes(b"")
    (clips / "metadata.json").write_text(json.dumps({"real.mp4": {"label": "REAL"}, "fake.mp4": {"label": "FAKE"}}))
    figures, picture = tmp_path / "budgets.json", tmp_path / "budgets.png"
    arguments = [str(clips), "--frames", "1", "4", "--device", "cpu", "--json", str(figures)]
    assert compare_budgets.main([*arguments, "--picture", str(picture)]) == 0
    budgets = json.loads(figures.read_text())
    n_all = len(find_weights(ROOT / "weights"))
    assert n_all > 1
    assert [(b["n_models"], b["n_frames"]) for b in budgets] == [(1, 1), (1, 4), (n_all, 1), (n_all, 4)]
    # Both clips of a setting are equally far from 0.5, on the right side.
    distances = [0.1, 0.4, 0.1 / n_all, 0.4 / n_all]
    assert [b["log_loss"] for b in budgets] == pytest.approx([-math.log(0.5 + d) for d in distances], abs=1e-5)
    assert [b["auc"] for b in budgets] == [1.0] * 4
    assert [b["seconds"] for b in budgets] == [1, 4, 1, 4]
    assert [b["core_seconds"] for b in budgets] == [1.0, 2.5, 0.75 + n_all / 4, 2.25 + n_all / 4]
    assert Image.open(picture).size[0] > 500
    said = capsys.readouterr().out
    assert "| 1 | 4 | 4.00 | 2.50 |" in said and f"| {n_all} | 4 |" in said


@pytest.mark.slow
def test_more_frames_are_scored_and_reported_with_their_cost(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
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


def test_mistakes_of_the_user_are_reported_before_anything_runs(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
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
