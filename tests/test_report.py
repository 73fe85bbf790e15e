"""dfdc.report.gallery: the faces in the picture of a run, which is drawn whatever clips and names are like."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest

import dfdc
from dfdc.prediction import Prediction
from dfdc.report import gallery
from dfdc.report.gallery import analyze_extremes, draw_report, find_portrait, main
from dfdc.report.panels import draw_panels, paint_heat
from dfdc.report.words import describe_finding, format_percent
from dfdc.run.submission import read_predictions

SAMPLES = Path(__file__).resolve().parent.parent / "samples"
DETAILS = """filename,label,status,reason
real.mp4,0.435000,ok,
gone $x_1$ and a name that is far too long.mp4,0.900000,ok,
doctored.mp4,0.886000,ok,
empty.mp4,0.500000,unreadable,"empty, as it is"
"""


def test_rows_written_by_the_kernel_are_read_back(tmp_path: Path) -> None:
    path = tmp_path / "predictions.csv"
    path.write_text(DETAILS)
    rows = read_predictions(path)
    assert rows[0] == Prediction("real.mp4", 0.435)
    assert rows[3] == Prediction("empty.mp4", status="unreadable", reason="empty, as it is")


def test_picture_is_drawn_even_if_a_clip_is_gone(tmp_path: Path, one_thread: None) -> None:
    (tmp_path / "predictions.csv").write_text(DETAILS)
    out = tmp_path / "report.png"
    assert main([str(tmp_path / "predictions.csv"), "--clips", str(SAMPLES), "--out", str(out)]) == 0
    picture = cv2.imread(str(out))
    assert picture.shape[:2] == (656, 960)
    assert np.unique(picture.reshape(-1, 3), axis=0).shape[0] > 1000, "the picture contains no photograph"


def test_most_likely_fakes_are_shown_first_and_each_clip_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shown: list[str] = []
    monkeypatch.setattr(gallery, "FaceDetector", lambda device: None)
    monkeypatch.setattr(gallery, "find_portrait", lambda path, detector: shown.append(path.name))
    draw_report([Prediction(f"{n}.mp4", n / 10) for n in (5, 1, 9)], tmp_path, tmp_path / "report.png")
    assert shown == ["9.mp4", "5.mp4", "1.mp4"]


def test_picture_is_drawn_for_a_run_without_a_score(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gallery, "FaceDetector", lambda device: None)
    assert draw_report([Prediction("a.mp4", 0.5, "timeout")], tmp_path, tmp_path / "report.png").is_file()


def test_file_that_is_no_video_gets_no_portrait(tmp_path: Path) -> None:
    (tmp_path / "text.mp4").write_text("not a video")
    assert find_portrait(tmp_path / "text.mp4", None) is None


def test_file_without_predictions_is_reported(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "predictions.csv").write_text("a,b\n1,2\n")
    assert main([str(tmp_path / "predictions.csv"), "--clips", str(tmp_path)]) == 1
    assert "name the predictions.csv that kernel.py wrote" in capsys.readouterr().err


def test_extreme_clips_are_analyzed_again_with_the_runs_settings(one_thread: None) -> None:
    """The picture shows the submitted scores, from as many frames and models as in the run."""
    predictions = [
        Prediction("doctored.mp4", 0.9, wanted=4, n_models=1),
        Prediction("gone.mp4", 0.95, wanted=4, n_models=1),
        Prediction("real.mp4", 0.1, wanted=6, n_models=2),
        Prediction("unread.mp4", status="unreadable"),
    ]
    first, second = analyze_extremes(predictions, SAMPLES)
    assert (first.filename, len(first.times_s), first.n_models) == ("doctored.mp4", 4, 1)
    assert (second.filename, len(second.times_s), second.n_models) == ("real.mp4", 6, 2)
    assert first.scenes and first.tracks[0].thumbnails and first.tracks[0].heat


def test_panels_are_drawn_of_faces_and_of_clips_without_one(tmp_path: Path, one_thread: None) -> None:
    shown = analyze_extremes([Prediction("doctored.mp4", 0.9, wanted=4, n_models=1)], SAMPLES)
    clips = [*shown, dfdc.Analysis("$x_1$ \udcff.mp4", status="unreadable", reason="no video")]
    picture = cv2.imread(str(draw_panels(clips, tmp_path / "details.png")))
    alone = cv2.imread(str(draw_panels(shown, tmp_path / "alone.png")))
    assert picture.shape[1] == alone.shape[1] == 960 and picture.shape[0] > 1.5 * alone.shape[0]
    assert np.unique(alone.reshape(-1, 3), axis=0).shape[0] > 1000, "the picture contains no photograph"


def test_heat_is_orange_where_it_raises_and_blue_where_it_lowers_the_score() -> None:
    grey = cv2.imencode(".png", np.full((160, 160, 3), 128, np.uint8))[1].tobytes()
    heat = np.zeros((7, 7))
    heat[:, :2], heat[:, 5:] = 4.0, -2.0
    track = dfdc.FaceTrack(*(np.zeros(1) for _ in range(6)), 1.0, thumbnails={0: grey}, heat={0: heat})
    painted = paint_heat(track, 0, 4.0).astype(int)
    left, middle, right = painted[80, 45], painted[80, 80], painted[80, 115]
    assert left[0] - left[2] > 100 and right[2] - right[0] > 40 and (middle == 128).all()
    assert (painted[:5] == 128).all() and (painted[:, :5] == 128).all(), "pixels outside the model's crop were painted"


@pytest.mark.parametrize(
    ("probability", "words", "percent"),
    [
        (0.95, "strong signs of a known manipulation", "95 %"),
        (0.7, "signs of a known manipulation", "70 %"),
        (0.69, "unclear", "69 %"),
        (0.29, "no sign of a known manipulation found", "29 %"),
        (0.011, "no sign of a known manipulation found", "1.1 %"),
    ],
)
def test_low_scores_are_never_described_as_real(probability: float, words: str, percent: str) -> None:
    finding = describe_finding(dfdc.Analysis("a.mp4", probability))
    assert finding.text == words and "real" not in finding.text and format_percent(probability) == percent
    assert describe_finding(dfdc.Analysis("a.mp4", status="no_face")).text == "not scored"
