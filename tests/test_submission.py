"""dfdc.run.submission: complete from the first second, replaced atomically."""

from __future__ import annotations

import csv
import errno
import os
import stat
from pathlib import Path

import pytest

from dfdc.deadline import Deadline
from dfdc.errors import InputError
from dfdc.files import write_csv
from dfdc.prediction import Prediction
from dfdc.run.submission import Submission, check_outputs
from dfdc.run.summary import Result, summarize

NAMES = ["plain.mp4", "with space.mp4", 'with,comma and "quotes".mp4', "Übung–視頻.mp4", "=formula.mp4"]


def rows(path: Path) -> list[dict[str, str]]:
    with open(path, newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def test_every_row_is_there_from_the_start_with_the_prior(tmp_path: Path) -> None:
    Submission(tmp_path / "submission.csv", NAMES)
    assert [row["filename"] for row in rows(tmp_path / "submission.csv")] == NAMES
    assert {row["label"] for row in rows(tmp_path / "submission.csv")} == {"0.500000"}


def test_recorded_labels_are_written_to_their_rows(tmp_path: Path) -> None:
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


def test_full_disk_leaves_the_last_complete_file_and_no_draft(
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


@pytest.mark.parametrize("out", ["missing/submission.csv", ".", "clip.MP4", "pipe", "/dev/null", "loop"])
def test_impossible_output_is_refused_at_once(tmp_path: Path, out: str) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "loop").symlink_to("loop")
    with pytest.raises(InputError):
        check_outputs(tmp_path / out)
    assert {entry.name for entry in tmp_path.iterdir()} == {"pipe", "loop"}
    assert stat.S_ISCHR(os.stat("/dev/null").st_mode)


@pytest.mark.parametrize(
    ("clip", "out"),
    [("clip", "clip"), ("a.predictions.csv", "a.csv"), (".a.csv.journal", "a.csv"), ("clip", "link"), ("link", "clip")],
)
def test_output_that_is_an_input_is_refused_at_once(tmp_path: Path, clip: str, out: str) -> None:
    (tmp_path / "clip").write_text("precious")
    (tmp_path / "link").symlink_to("clip")
    if clip not in ("clip", "link"):
        (tmp_path / clip).write_text("precious")
    with pytest.raises(InputError):
        check_outputs(tmp_path / out, [tmp_path / "absent", tmp_path / clip])
    assert (tmp_path / clip).read_text() == "precious"


def test_each_submission_has_its_own_details_file(tmp_path: Path) -> None:
    for name in ("submission.csv", "mine.csv", "predictions.csv"):
        Submission(tmp_path / name, NAMES)
    names = {"submission.csv", "mine.csv", "predictions.csv", "mine.predictions.csv", "predictions.predictions.csv"}
    assert {entry.name for entry in tmp_path.iterdir()} == names


def test_unwritable_folder_is_refused_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def denied(*_: object, **__: object) -> None:
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(os, "open", denied)
    with pytest.raises(InputError, match="Permission denied"):
        check_outputs(tmp_path / "submission.csv")
    with pytest.raises(InputError, match="Permission denied"):
        Submission(tmp_path / "submission.csv", NAMES)


def test_files_of_an_earlier_run_are_kept_until_the_first_result(tmp_path: Path) -> None:
    first = Submission(tmp_path / "submission.csv", NAMES)
    for name in NAMES:
        first.record(Prediction(name, 0.25))
    assert first.save()
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    second = Submission(tmp_path / "submission.csv", NAMES)
    second.record(Prediction(NAMES[0], status="unreadable", reason="x"))
    second.record(Prediction(NAMES[1], status="timeout", reason="x"))
    assert second.save() and second.kept_earlier
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before
    second.record(Prediction(NAMES[2], 0.75))
    assert second.save() and not second.kept_earlier
    assert [row["label"] for row in rows(second.path)] == ["0.500000"] * 2 + ["0.750000"] + ["0.500000"] * 2
    assert [row["filename"] for row in rows(second.details)] == NAMES[:3]


def test_earlier_files_are_replaced_at_once_on_request(tmp_path: Path) -> None:
    (tmp_path / "submission.csv").write_text("filename,label\nplain.mp4,0.25\n")
    Submission(tmp_path / "submission.csv", NAMES, fresh=True)
    assert [row["label"] for row in rows(tmp_path / "submission.csv")] == ["0.500000"] * len(NAMES)


def test_refused_run_changes_no_file(tmp_path: Path) -> None:
    (tmp_path / "predictions.csv").write_text("precious")
    Submission(tmp_path / "submission.csv", NAMES).withdraw()
    assert [(path.name, path.read_text()) for path in tmp_path.iterdir()] == [("predictions.csv", "precious")]


def test_details_count_the_models_that_were_used(tmp_path: Path) -> None:
    submission = Submission(tmp_path / "submission.csv", NAMES, models=["first-ab", "second-cd"])
    submission.record(Prediction(NAMES[0], 0.25, n_models=2))
    submission.record(Prediction(NAMES[1], 0.25, n_models=1))
    submission.record(Prediction(NAMES[2], status="timeout"))
    submission.save()
    assert [row["models"] for row in rows(submission.details)] == ["first-ab second-cd", "first-ab", ""]


def test_saving_takes_at_most_a_twentieth_of_the_time_and_ends_before_the_deadline(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = [0.0]

    def sync_slowly(_: int) -> None:
        now[0] += 2.0

    monkeypatch.setattr(os, "fsync", sync_slowly)
    deadline = Deadline(400.0, lambda: now[0])
    submission = Submission(tmp_path / "submission.csv", NAMES, deadline=deadline)
    began_s, n_records = now[0], 0
    while not deadline.expired():
        now[0] += 0.1
        submission.record(Prediction(NAMES[0], 0.25))
        n_records += 1
        assert now[0] <= 400.2
    assert now[0] - began_s - n_records * 0.1 <= 0.05 * 400 + submission.cost_s


def test_csv_quotes_what_needs_it(tmp_path: Path) -> None:
    write_csv(tmp_path / "a.csv", ("a", "b"), [('x,"y"', 1)])
    assert (tmp_path / "a.csv").read_text() == 'a,b\n"x,""y""",1\n'


@pytest.mark.parametrize("values", [{"status": "fine"}, {"label": 0.0}, {"label": 1.0}])
def test_probability_that_the_metric_rejects_is_refused(values: dict[str, object]) -> None:
    with pytest.raises(ValueError, match="allowed"):
        Prediction("a.mp4", **values)


@pytest.mark.parametrize(("status", "warning"), [("ok", "the models cannot tell"), ("no_face", "no clip shows a face")])
def test_summary_states_why_every_label_is_one_half(tmp_path: Path, status: str, warning: str) -> None:
    said = summarize(Result(tmp_path / "submission.csv", [Prediction("a.mp4", 0.5, status=status)], 1.0))
    assert f"WARNING: {warning}; every label is 0.5" in said
