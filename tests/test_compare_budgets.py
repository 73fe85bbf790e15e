"""tools/compare_budgets.py: what more frames cost and bring, by the real kernel."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from PIL import Image

from tools import compare_budgets

SAMPLES = Path(__file__).resolve().parent.parent / "samples"


def test_more_frames_are_scored_and_told_with_their_cost(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    figures, picture = tmp_path / "budgets.json", tmp_path / "budgets.png"
    arguments = [str(SAMPLES), "--frames", "1", "4", "--device", "cpu", "--json", str(figures)]
    assert compare_budgets.main([*arguments, "--picture", str(picture)]) == 0
    one, four = json.loads(figures.read_text())
    assert (one["n_frames"], four["n_frames"]) == (1, 4)
    assert four["core_seconds"] > one["core_seconds"] > 0
    assert four["auc"] == 1 and 0 < four["log_loss"] < 0.69  # the doctored sample scores above the real one
    assert Image.open(picture).size[0] > 500
    assert "| 4 |" in capsys.readouterr().out


def test_folder_without_labels_is_refused_in_one_line(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    assert compare_budgets.main([str(tmp_path)]) == 1
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and "metadata.json" in said
