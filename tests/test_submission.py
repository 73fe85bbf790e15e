"""dfdc.run.submission: complete from the first second, replaced atomically."""

from __future__ import annotations

import csv
import errno
import os
from pathlib import Path

import pytest

from dfdc.errors import InputError
from dfdc.files import write_csv
from dfdc.prediction import Prediction
from dfdc.run.submission import Submission

NAMES = ["plain.mp4", "with space.mp4", 'with,comma and "quotes".mp4', "Übung–視頻.mp4", "=formula.mp4"]


def rows(path: Path) -> list[dict[str, str]]:
    with open(path, newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def test_every_row_is_there_from_the_start_with_the_prior(tmp_path: Path) -> None:
    Submission(tmp_path / "submission.csv", NAMES)
    assert [row["filename"] for row in rows(tmp_path / "submission.csv")] == NAMES
    assert {row["label"] for row in rows(tmp_path / "submission.csv")} == {"0.500000"}


def test_recorded_labels_arrive_in_their_rows(tmp_path: Path) -> None:
    submission = Submission(tmp_path / "submission.csv", NAMES)
    submission.record(Prediction(NAMES[2], 0.125, frames=16, faces=15, tracks=1, seconds=1.5))
    submission.record(Prediction(NAMES[0], status="unreadable", reason='not a video (bad, "really")'))
    assert submission.save()
    assert [row["label"] for row in rows(submission.path)] == [
        "0.500000",
        "0.500000",
        "0.125000",
        "0.500000",
        "0.500000",
    ]
    first, second = rows(tmp_path / "predictions.csv")
    assert (first["filename"], first["status"], first["reason"]) == (
        NAMES[0],
        "unreadable",
        'not a video (bad, "really")',
    )
    assert (second["filename"], second["frames"], second["faces"], second["tracks"]) == (NAMES[2], "16", "15", "1")


def test_unknown_row_is_refused(tmp_path: Path) -> None:
    with pytest.raises(KeyError, match="other"):
        Submission(tmp_path / "submission.csv", NAMES).record(Prediction("other.mp4"))


def test_reader_never_sees_half_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "submission.csv"
    submission = Submission(path, NAMES)
    seen: list[list[dict[str, str]]] = []
    replace = os.replace
    monkeypatch.setattr(os, "replace", lambda *names: (seen.append(rows(path)), replace(*names)))
    submission.record(Prediction(NAMES[0], 0.9))
    submission.save()
    assert seen
    assert all(len(table) == len(NAMES) for table in seen)


def test_full_disk_leaves_the_last_good_file_and_no_draft(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    submission = Submission(tmp_path / "submission.csv", NAMES)
    before = (tmp_path / "submission.csv").read_bytes()

    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    submission.record(Prediction(NAMES[0], 0.9))
    assert not submission.save()
    assert "No space left on device" in caplog.text
    assert (tmp_path / "submission.csv").read_bytes() == before
    assert {entry.name for entry in tmp_path.iterdir()} == {"submission.csv", "predictions.csv"}


@pytest.mark.parametrize(
    ("out", "message"),
    [
        ("missing/submission.csv", "its folder does not exist; make it"),
        (".", "is a folder"),
        ("clip.MP4", "has a video's name"),
    ],
)
def test_output_that_cannot_be_is_refused_at_once(tmp_path: Path, out: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        Submission(tmp_path / out, NAMES)


def test_submissions_of_several_names_have_each_its_details(tmp_path: Path) -> None:
    for name in ("submission.csv", "mine.csv", "predictions.csv"):
        Submission(tmp_path / name, NAMES)
    names = {"submission.csv", "mine.csv", "predictions.csv", "mine.predictions.csv", "predictions.predictions.csv"}
    assert {entry.name for entry in tmp_path.iterdir()} == names


def test_folder_that_cannot_be_written_is_refused_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def denied(*_: object, **__: object) -> None:
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr("builtins.open", denied)
    with pytest.raises(InputError, match=r"cannot be written \(Permission denied\)"):
        Submission(tmp_path / "submission.csv", NAMES)


def test_csv_quotes_what_needs_it(tmp_path: Path) -> None:
    write_csv(tmp_path / "a.csv", ("a", "b"), [('x,"y"', 1)])
    assert (tmp_path / "a.csv").read_text() == 'a,b\n"x,""y""",1\n'


@pytest.mark.parametrize("values", [{"status": "fine"}, {"label": 0.0}, {"label": 1.0}])
def test_prediction_that_the_metric_could_not_take_is_refused(values: dict[str, object]) -> None:
    with pytest.raises(ValueError, match="allowed"):
        Prediction("a.mp4", **values)
