"""The picture of a run: which faces it shows, and that nothing in a clip or a name keeps it from being drawn."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest

from dfdc.prediction import Prediction
from dfdc.report import gallery
from dfdc.report.gallery import draw_report, find_portrait, main
from dfdc.run.submission import read_predictions

SAMPLES = Path(__file__).resolve().parent.parent / "samples"
DETAILS = """filename,label,status,reason
real.mp4,0.435000,ok,
gone $x_1$ and a name that is far too long.mp4,0.900000,ok,
doctored.mp4,0.886000,ok,
empty.mp4,0.500000,unreadable,"empty, as it is"
"""


def test_rows_are_read_as_the_kernel_writes_them(tmp_path: Path) -> None:
    path = tmp_path / "predictions.csv"
    path.write_text(DETAILS)
    rows = read_predictions(path)
    assert rows[0] == Prediction("real.mp4", 0.435)
    assert rows[3] == Prediction("empty.mp4", status="unreadable", reason="empty, as it is")


def test_picture_is_drawn_where_a_clip_is_gone(tmp_path: Path, one_thread: None) -> None:
    (tmp_path / "predictions.csv").write_text(DETAILS)
    out = tmp_path / "report.png"
    assert main([str(tmp_path / "predictions.csv"), "--clips", str(SAMPLES), "--out", str(out)]) == 0
    picture = cv2.imread(str(out))
    assert picture.shape[:2] == (656, 960)
    assert np.unique(picture.reshape(-1, 3), axis=0).shape[0] > 1000, "photographs have many colours"


def test_most_likely_fakes_are_shown_first_and_each_clip_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shown: list[str] = []
    monkeypatch.setattr(gallery, "FaceDetector", lambda device: None)
    monkeypatch.setattr(gallery, "find_portrait", lambda path, detector: shown.append(path.name))
    draw_report([Prediction(f"{n}.mp4", n / 10) for n in (5, 1, 9)], tmp_path, tmp_path / "report.png")
    assert shown == ["9.mp4", "5.mp4", "1.mp4"]


def test_run_without_a_score_is_drawn(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gallery, "FaceDetector", lambda device: None)
    assert draw_report([Prediction("a.mp4", 0.5, "timeout")], tmp_path, tmp_path / "report.png").is_file()


def test_clip_that_is_no_video_has_no_portrait(tmp_path: Path) -> None:
    (tmp_path / "text.mp4").write_text("not a video")
    assert find_portrait(tmp_path / "text.mp4", None) is None


def test_file_that_is_no_predictions_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "predictions.csv").write_text("a,b\n1,2\n")
    assert main([str(tmp_path / "predictions.csv"), "--clips", str(tmp_path)]) == 1
    assert "name the predictions.csv that kernel.py wrote" in capsys.readouterr().err
