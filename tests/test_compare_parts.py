"""tools/research/compare_parts.py: partly faked clips are simulated from analyses, and each margin is measured."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from dfdc.analysis import Analysis, FaceTrack
from dfdc.analysis_files import write_analysis
from tools.research.compare_parts import fake_thirds, main


def analyse(name: str, logit: float) -> Analysis:
    frames = np.arange(12)
    track = FaceTrack(
        frames,
        frames / 1.0,
        np.zeros((12, 4)),
        np.ones(12, bool),
        np.zeros(12),
        np.full(12, logit),
        detection_score=1.0,
    )
    return Analysis(name, status="ok", times_s=frames / 1.0, tracks=(track,))


def test_partly_faked_clips_have_one_third_of_the_fakes_scores() -> None:
    first, middle, last = fake_thirds(np.zeros(7), np.arange(1.0, 7.0))
    assert first.tolist() == [1, 2, 0, 0, 0, 0]
    assert middle.tolist() == [0, 0, 3, 4, 0, 0]
    assert last.tolist() == [0, 0, 0, 0, 5, 6]


def test_suspicious_third_finds_fakes_that_the_mean_misses(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name, logit in (("real.mp4", -2.0), ("fake.mp4", 3.0)):
        write_analysis(tmp_path, analyse(name, logit))
    clips = {"real.mp4": {"label": "REAL"}, "fake.mp4": {"label": "FAKE", "original": "real.mp4"}}
    (tmp_path / "metadata.json").write_text(json.dumps(clips))
    assert main([str(tmp_path), str(tmp_path / "metadata.json")]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "1 originals, 1 fakes, 3 partly faked"
    rows = {line.split(" | ")[0].strip("| "): line.split(" | ")[1:] for line in lines[3:]}
    # The mean of eight frames of -2 and four of 3 is -.33; the suspicious third has 3.
    assert rows["the mean alone"][2].startswith("1.000, 1.000")
    assert rows["0.75, used"][2].startswith("1.000, 0.000")
    assert {cells[0] for cells in rows.values()} == {"0.000, 0.075"}  # -log(sigmoid(1.275 x 2)): twelve frames


def test_analyses_without_a_pair_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_analysis(tmp_path, analyse("fake.mp4", 3.0))
    (tmp_path / "metadata.json").write_text(json.dumps({"fake.mp4": {"label": "FAKE", "original": "real.mp4"}}))
    assert main([str(tmp_path), str(tmp_path / "metadata.json")]) == 1
    assert "no original and its fake both show a person" in capsys.readouterr().err
