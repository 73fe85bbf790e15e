"""dfdc.run.journal: scored clips are known after a kill, and foreign entries are never used."""

from __future__ import annotations

import errno
import json
import os
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from dfdc.errors import InputError
from dfdc.files import Identity, identify
from dfdc.prediction import Prediction
from dfdc.run.journal import Journal, Past, journal_path, only_run, read_journal, scoring_key, seal
from dfdc.weights import ModelSpec, WeightsFile

KEY = {"models": ["ab"], "--device": "auto", "--frames": None, "code": "cd"}
ODD = 'comma, "quotes"\n視頻 latin\udce9.mp4'
FIRST = Prediction("a.mp4", 0.125, wanted=16, frames=15, faces=14, tracks=1, pairs=8, seconds=1.5, decode_s=0.5)


@pytest.fixture
def files(tmp_path: Path) -> dict[str, Identity | None]:
    names = ("a.mp4", "b.mp4", ODD)
    for name in names:
        (tmp_path / name).write_text("content")
    return {name: identify(tmp_path / name) for name in names}


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return journal_path(tmp_path / "submission.csv")


def write(path: Path, files: dict[str, Identity | None], *predictions: Prediction, end: int = 0) -> bytes:
    journal = Journal(path, KEY, end=end)
    for prediction in predictions:
        journal.record(prediction, files[prediction.filename])
    journal.close()
    return path.read_bytes()


def test_recorded_predictions_are_read_back_exactly(path: Path, files: dict) -> None:
    recorded = [FIRST, Prediction(ODD, status="no_face", reason="says 'no',\n\"really\""), Prediction("b.mp4")]
    write(path, files, *recorded)
    past = read_journal(path, KEY, files)
    assert past.done == {p.filename: p for p in recorded}
    assert past.end == path.stat().st_size


def test_each_line_is_on_disk_before_the_next_clip(path: Path, files: dict) -> None:
    journal = Journal(path, KEY)
    for n in range(1, 4):
        journal.record(replace(FIRST, frames=n), files["a.mp4"])
        assert read_journal(path, KEY, files).done == {"a.mp4": replace(FIRST, frames=n)}
    journal.close()


def test_waiting_for_a_slow_disk_takes_at_most_a_twentieth_of_the_time(
    path: Path, files: dict, monkeypatch: pytest.MonkeyPatch
) -> None:
    now, synced = [0.0], []

    def sync_slowly(_: int) -> None:
        synced.append(now[0])
        now[0] += 2.0

    monkeypatch.setattr(os, "fsync", sync_slowly)
    journal = Journal(path, KEY, clock=lambda: now[0])
    while now[0] < 400:
        journal.record(FIRST, files["a.mp4"])
        now[0] += 0.5
    journal.close()
    assert 2 <= len(synced) <= 10


def test_journal_of_an_earlier_run_is_kept_until_there_is_something_to_record(path: Path, files: dict) -> None:
    """A run with other settings that scores nothing must not lose the results of the run before."""
    before = write(path, files, FIRST)
    other = Journal(path, {**KEY, "--device": "cuda"})
    other.record(Prediction("a.mp4", status="timeout"), files["a.mp4"])
    other.close()
    assert path.read_bytes() == before
    other = Journal(path, {**KEY, "--device": "cuda"})
    other.record(FIRST, files["a.mp4"])
    other.close()
    assert read_journal(path, KEY, files) == Past()


def test_clip_without_an_identity_is_scored_again(path: Path, files: dict) -> None:
    journal = Journal(path, KEY)
    journal.record(FIRST, None)
    journal.record(Prediction("b.mp4"), files["b.mp4"])
    journal.close()
    assert list(read_journal(path, KEY, files).done) == ["b.mp4"]


def test_absent_journal_means_no_earlier_results(path: Path, files: dict, caplog: pytest.LogCaptureFixture) -> None:
    assert read_journal(path, KEY, files) == Past()
    assert caplog.text == ""


@pytest.mark.parametrize("status", ["timeout", "error", "unreadable"])
def test_clip_that_failed_because_of_the_machine_is_retried(path: Path, files: dict, status: str) -> None:
    write(path, files, Prediction("a.mp4", status=status, reason="x"), Prediction("b.mp4"))
    assert list(read_journal(path, KEY, files).done) == ["b.mp4"]


@pytest.mark.parametrize("status", ["ok", "no_face"])
def test_scored_clip_is_not_retried(path: Path, files: dict, status: str) -> None:
    write(path, files, Prediction("a.mp4", status=status))
    assert list(read_journal(path, KEY, files).done) == ["a.mp4"]


def test_clip_whose_reading_was_cut_by_its_limit_is_retried(path: Path, files: dict) -> None:
    write(path, files, replace(FIRST, wanted=32, frames=3, cut_s=5.0), Prediction("b.mp4", wanted=32, frames=3))
    assert list(read_journal(path, KEY, files).done) == ["b.mp4"]


def test_second_run_is_refused_while_the_first_is_running(path: Path) -> None:
    out = path.parent / "submission.csv"
    with only_run(out), pytest.raises(InputError), only_run(out):
        pass
    assert not path.exists()  # nothing was written
    with only_run(out):
        path.write_text("something")
    assert path.exists()


def test_run_that_would_overwrite_the_details_of_another_is_refused(tmp_path: Path) -> None:
    with only_run(tmp_path / "submission.csv", tmp_path / "predictions.csv"):
        with pytest.raises(InputError), only_run(tmp_path / "predictions.csv"):
            pass
        (tmp_path / "link.csv").symlink_to("submission.csv")
        with pytest.raises(InputError), only_run(tmp_path / "link.csv"):
            pass
        with only_run(tmp_path / "another.csv", tmp_path / "another.predictions.csv"):
            pass
    assert [entry.name for entry in tmp_path.iterdir()] == ["link.csv"]


def test_lock_is_retaken_if_its_file_was_removed_meanwhile(path: Path) -> None:
    """The first run removes its empty journal at its end, just after the second has opened it."""
    out = path.parent / "submission.csv"
    with only_run(out):
        path.unlink()
        with only_run(out), pytest.raises(InputError), only_run(out):
            pass


def test_journal_that_cannot_be_opened_does_not_stop_a_run(tmp_path: Path) -> None:
    with only_run(tmp_path), only_run(tmp_path / "gone" / "journal"):
        pass


def test_impossible_file_name_has_no_identity() -> None:
    assert identify(Path("a\0b.mp4")) is None


def test_last_line_of_a_clip_wins(path: Path, files: dict) -> None:
    better = replace(FIRST, label=0.75, wanted=32, frames=32)
    write(path, files, FIRST, better)
    assert read_journal(path, KEY, files).done == {"a.mp4": better}


def test_truncation_loses_only_the_last_line(path: Path, files: dict) -> None:
    one = write(path, files, FIRST)
    whole = write(path, files, FIRST, Prediction("b.mp4"))
    assert whole.startswith(one)
    for length in range(len(one), len(whole)):
        path.write_bytes(whole[:length])
        assert read_journal(path, KEY, files) == Past({"a.mp4": FIRST}, len(one))


def test_run_after_a_truncated_line_appends_after_the_last_complete_one(path: Path, files: dict) -> None:
    whole = write(path, files, FIRST, Prediction("b.mp4"))
    path.write_bytes(whole[:-9])
    end = read_journal(path, KEY, files).end
    assert write(path, files, Prediction("b.mp4"), end=end) == whole


def test_damaged_line_loses_only_its_own_clip(path: Path, files: dict, caplog: pytest.LogCaptureFixture) -> None:
    whole = write(path, files, FIRST, Prediction("b.mp4", 0.25))
    path.write_bytes(whole.replace(b"0.125", b"0.925"))
    assert list(read_journal(path, KEY, files).done) == ["b.mp4"]


def test_no_flipped_bit_changes_a_score(path: Path, files: dict) -> None:
    whole = write(path, files, FIRST, Prediction("b.mp4", 0.25))
    generator = np.random.default_rng(0)
    for _ in range(300):
        damaged = bytearray(whole)
        damaged[generator.integers(len(damaged))] ^= 1 << generator.integers(8)
        path.write_bytes(damaged)
        for name, prediction in read_journal(path, KEY, files).done.items():
            assert prediction == {"a.mp4": FIRST, "b.mp4": Prediction("b.mp4", 0.25)}[name]


@pytest.mark.parametrize(
    ("changed", "named"),
    [
        ({"models": ["other"]}, "models"),
        ({"--frames": 16}, "--frames"),
        ({"--device": "cpu"}, "--device"),
        ({"code": "x"}, "code"),
        ({"new": 1}, "new"),
    ],
)
def test_other_weights_or_settings_start_again_and_report_it(
    path: Path, files: dict, caplog: pytest.LogCaptureFixture, changed: dict, named: str
) -> None:
    write(path, files, FIRST)
    assert read_journal(path, {**KEY, **changed}, files) == Past()
    assert len(caplog.records) == 1 and named in caplog.text


@pytest.mark.parametrize(
    "text",
    [b"garbage\n", b"\0" * 100_000, b"[" * 60_000 + b"\n", b"{}\n", b'{"key": 1, "check": 0}\n', b"1" * 60_000 + b"\n"],
)
def test_unreadable_journal_starts_again_and_reports_it(
    path: Path, files: dict, caplog: pytest.LogCaptureFixture, text: bytes
) -> None:
    path.write_bytes(text)
    assert read_journal(path, KEY, files) == Past()
    assert len(caplog.records) == 1
    assert write(path, files, FIRST).count(b"\n") == 2


@pytest.mark.parametrize(
    "values",
    [
        {"label": 1.0},
        {"label": float("nan")},
        {"label": "0.5"},
        {"label": True},
        {"status": "fine"},
        {"frames": -1},
        {"frames": 1.5},
        {"frames": 10**30},
        {"seconds": float("inf")},
        {"reason": None},
        {"filename": ["a.mp4"]},
        {"surplus": 1},
    ],
)
def test_line_with_an_impossible_field_is_ignored(path: Path, files: dict, values: dict) -> None:
    whole = write(path, files, FIRST)
    fields = json.loads(whole.splitlines()[1])
    del fields["check"]
    path.write_bytes(whole.splitlines(keepends=True)[0] + seal({**fields, **values}))
    assert read_journal(path, KEY, files).done == {}


@pytest.mark.parametrize("change", ["content", "time", "absent"])
def test_another_file_under_the_same_name_is_scored_again(tmp_path: Path, path: Path, files: dict, change: str) -> None:
    write(path, files, FIRST, Prediction("b.mp4"))
    clip = tmp_path / "a.mp4"
    if change == "content":
        clip.write_text("another")
    elif change == "time":
        os.utime(clip, ns=(0, 1))
    else:
        clip.unlink()
    changed = {**files, "a.mp4": identify(clip)}
    assert list(read_journal(path, KEY, changed).done) == ["b.mp4"]


def test_clips_of_another_folder_are_different_clips(tmp_path: Path, path: Path, files: dict) -> None:
    write(path, files, FIRST)
    (tmp_path / "other").mkdir()
    shutil.copy2(tmp_path / "a.mp4", tmp_path / "other/a.mp4")
    assert read_journal(path, KEY, {"a.mp4": identify(tmp_path / "other/a.mp4")}).done == {}


def test_link_with_a_new_target_is_scored_again(tmp_path: Path, path: Path, files: dict) -> None:
    """The opened file counts, whatever its name led to before and after."""
    (tmp_path / "link.mp4").symlink_to("a.mp4")
    (tmp_path / "b.mp4").write_text("another")
    journal = Journal(path, KEY)
    journal.record(replace(FIRST, filename="link.mp4"), identify(tmp_path / "b.mp4"))
    journal.close()
    assert read_journal(path, KEY, {"link.mp4": identify(tmp_path / "link.mp4")}).done == {}


def test_full_disk_gives_one_warning(
    path: Path, files: dict, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    journal = Journal(path, KEY)
    journal.record(FIRST, files["a.mp4"])

    def full(*_: object) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "write", full)
    journal.record(Prediction("b.mp4"), files["b.mp4"])
    journal.record(Prediction("b.mp4"), files["b.mp4"])
    assert [record.getMessage().count("No space left on device") for record in caplog.records] == [1]
    journal.close()
    assert read_journal(path, KEY, files).done == {"a.mp4": FIRST}


@pytest.mark.parametrize("kind", ["folder", "pipe", "link"])
def test_irregular_journal_file_is_left_alone(
    tmp_path: Path, path: Path, files: dict, caplog: pytest.LogCaptureFixture, kind: str
) -> None:
    (tmp_path / "precious").write_text("kept")
    {"folder": path.mkdir, "pipe": lambda: os.mkfifo(path), "link": lambda: path.symlink_to("precious")}[kind]()
    assert read_journal(path, KEY, files) == Past()
    journal = Journal(path, KEY)
    journal.record(FIRST, files["a.mp4"])
    journal.close()
    assert (tmp_path / "precious").read_text() == "kept"


def test_key_changes_with_weights_device_and_frames(tmp_path: Path) -> None:
    spec = ModelSpec("efficientnet-b0", 224)
    weights = [WeightsFile(tmp_path, digest, spec) for digest in ("ab", "cd")]
    keys = [
        scoring_key(weights, device="auto", n_frames=None),
        scoring_key(weights[:1], device="auto", n_frames=None),
        scoring_key(weights, device="cpu", n_frames=None),
        scoring_key(weights, device="auto", n_frames=16),
    ]
    assert all(a != b for i, a in enumerate(keys) for b in keys[:i])
    assert keys[0] == json.loads(json.dumps(scoring_key(weights, device="auto", n_frames=None)))
