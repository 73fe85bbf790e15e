"""dfdc.run.scoring: a job becomes a submission, and the same command resumes a killed run."""

from __future__ import annotations

import csv
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import pytest

from dfdc.deadline import NEVER, Deadline
from dfdc.errors import InputError
from dfdc.files import identify
from dfdc.prediction import Prediction
from dfdc.run.inputs import Job
from dfdc.run.scoring import score_job
from dfdc.run.summary import Result, summarize
from dfdc.run.worker import Answer, WorkerSettings

NAMES = ("a.mp4", "b.mp4", "c.mp4", "d.mp4")
LABELS = {"a.mp4": 0.25, "b.mp4": 0.75, "c.mp4": 0.5, "d.mp4": 0.125}


class Killed(BaseException):
    """The end of a run without any clean-up."""


class FakeWorkers:
    """Scores unknown clips, records them, and dies before a given clip."""

    def __init__(self) -> None:
        self.scored: list[str] = []
        self.deadline = NEVER
        self.dies_before: str | None = None
        self.statuses: dict[str, str] = {}

    def __call__(
        self, clips: dict[str, Path], settings: WorkerSettings, *, deadline: Deadline, known: Mapping, n_workers: int
    ) -> Iterator[Answer]:
        self.scored, self.deadline = [], deadline
        for name in clips:
            if name not in known:
                if name == self.dies_before:
                    raise Killed
                self.scored.append(name)
                found = Prediction(name, LABELS[name], status=self.statuses.get(name, "ok"), wanted=8, frames=8)
                yield Answer(found, identify(clips[name]))


@pytest.fixture
def workers(monkeypatch: pytest.MonkeyPatch) -> FakeWorkers:
    fake = FakeWorkers()
    monkeypatch.setattr("dfdc.run.scoring.answer_clips", fake)
    return fake


@pytest.fixture
def job(tmp_path: Path) -> Job:
    for name in NAMES:
        (tmp_path / name).write_text(name)
    return Job(NAMES, {name: tmp_path / name for name in NAMES})


@pytest.fixture
def score(tmp_path: Path, job: Job) -> Callable[..., Result]:
    def run(*, fresh: bool = False, deadline: Deadline = NEVER, **settings: object) -> Result:
        settings = WorkerSettings(weights=(), **settings)
        return score_job(job, tmp_path / "submission.csv", settings, n_workers=2, deadline=deadline, fresh=fresh)

    return run


def labels(folder: Path) -> dict[str, float]:
    with open(folder / "submission.csv", newline="") as file:
        return {row["filename"]: float(row["label"]) for row in csv.DictReader(file)}


def kill_before(name: str, workers: FakeWorkers, score: Callable[..., Result]) -> None:
    workers.dies_before = name
    with pytest.raises(Killed):
        score()
    workers.dies_before = None


def test_same_command_resumes_after_a_kill(tmp_path: Path, workers: FakeWorkers, score: Callable[..., Result]) -> None:
    kill_before("c.mp4", workers, score)
    result = score()
    assert workers.scored == ["c.mp4", "d.mp4"]
    assert labels(tmp_path) == LABELS
    assert [p.filename for p in result.predictions] == list(NAMES)


def test_earlier_scores_are_in_the_file_from_the_first_second(
    tmp_path: Path, workers: FakeWorkers, score: Callable[..., Result]
) -> None:
    kill_before("c.mp4", workers, score)
    (tmp_path / "submission.csv").unlink()
    workers.dies_before = "c.mp4"
    with pytest.raises(Killed):
        score()
    assert labels(tmp_path) == {**LABELS, "c.mp4": 0.5, "d.mp4": 0.5}


def test_fresh_scores_everything_again(workers: FakeWorkers, score: Callable[..., Result]) -> None:
    kill_before("c.mp4", workers, score)
    score(fresh=True)
    assert workers.scored == list(NAMES)
    score()
    assert workers.scored == []


@pytest.mark.parametrize("settings", [{"n_frames": 16}, {"device": "cpu"}])
def test_other_settings_score_everything_again(
    workers: FakeWorkers, score: Callable[..., Result], settings: dict[str, object]
) -> None:
    score()
    score(**settings)
    assert workers.scored == list(NAMES)


def test_finished_run_is_written_again(tmp_path: Path, workers: FakeWorkers, score: Callable[..., Result]) -> None:
    score()
    (tmp_path / "submission.csv").unlink()
    (tmp_path / "predictions.csv").unlink()
    assert "4 clips (4 ok)" in summarize(score())
    assert workers.scored == []
    assert labels(tmp_path) == LABELS
    assert (tmp_path / "predictions.csv").exists()


def test_changed_clip_is_scored_again(job: Job, workers: FakeWorkers, score: Callable[..., Result]) -> None:
    score()
    job.paths["b.mp4"].write_text("another")
    score()
    assert workers.scored == ["b.mp4"]


def test_clip_that_may_have_failed_because_of_the_machine_is_retried(
    workers: FakeWorkers, score: Callable[..., Result]
) -> None:
    workers.statuses = {"a.mp4": "timeout", "b.mp4": "unreadable", "c.mp4": "error", "d.mp4": "no_face"}
    score()
    score()
    assert workers.scored == ["a.mp4", "b.mp4", "c.mp4"]


def test_unwritable_journal_gives_one_warning(
    tmp_path: Path, workers: FakeWorkers, score: Callable[..., Result], caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / ".submission.csv.journal").mkdir()
    score(fresh=True)
    assert labels(tmp_path) == LABELS
    assert [record.levelname for record in caplog.records if "journal" in record.getMessage()] == ["WARNING"]


def test_summary_states_what_a_voice_adds_to_a_clip_without_a_face(tmp_path: Path) -> None:
    heard = Prediction("a.mp4", 0.9, status="no_face", reason="no face in 8 frames", picture=0.5, voice=0.9)
    text = summarize(Result(tmp_path / "x.csv", [heard, Prediction("b.mp4", status="no_face", reason="none")], 1.0))
    assert "a.mp4   90.0% fake, no_face: no face in 8 frames\nb.mp4  no_face: none\n" in text
    assert str(tmp_path / "x.predictions.csv") in text


def test_summary_counts_clips_that_were_not_read_to_the_end(tmp_path: Path) -> None:
    cut = Prediction("a.mp4", 0.9, wanted=32, frames=9, cut_s=60.02)
    text = summarize(Result(tmp_path / "x.csv", [cut, Prediction("b.mp4", 0.2)], 1.0))
    line, other, *_ = text.splitlines()
    assert "9 of 32 frames" in line and "60 s" in line and "of 32" not in other


def test_passes_end_before_the_run_does(workers: FakeWorkers, score: Callable[..., Result]) -> None:
    score(deadline=Deadline(1000.0, lambda: 0.0))
    assert workers.deadline.end_s == 997.0
    score(deadline=Deadline(10.0, lambda: 0.0), fresh=True)
    assert workers.deadline.end_s == 7.5


@pytest.mark.parametrize("settings", [{"n_frames": 16}, {"device": "cpu"}])
def test_run_that_scores_nothing_keeps_earlier_results(
    tmp_path: Path, workers: FakeWorkers, score: Callable[..., Result], settings: dict[str, object]
) -> None:
    score()
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    workers.statuses = dict.fromkeys(NAMES, "timeout")
    result = score(**settings)
    assert (result.n_judged, result.kept_earlier) == (0, True)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before
    workers.statuses = {}
    score()
    assert workers.scored == []


def test_refused_run_keeps_earlier_results(
    tmp_path: Path, workers: FakeWorkers, score: Callable[..., Result], monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object, **__: object) -> Iterator[Answer]:
        raise InputError("--device cuda: no CUDA device is visible")
        yield

    score()
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    monkeypatch.setattr("dfdc.run.scoring.answer_clips", refuse)
    with pytest.raises(InputError):
        score(device="cuda")
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before
    for path in tmp_path.glob("*.csv"):
        path.unlink()
    with pytest.raises(InputError):
        score(device="cuda")
    assert not list(tmp_path.glob("*.csv"))


@pytest.mark.parametrize(
    ("statuses", "n_judged"), [({}, 4), (dict.fromkeys(NAMES, "no_face"), 4), (dict.fromkeys(NAMES, "error"), 0)]
)
def test_run_that_scores_nothing_reports_it(
    workers: FakeWorkers, score: Callable[..., Result], statuses: dict[str, str], n_judged: int
) -> None:
    workers.statuses = statuses
    result = score()
    assert result.n_judged == n_judged
    assert ("WARNING" in summarize(result).splitlines()[-1]) == (n_judged == 0)


def test_run_with_all_labels_at_one_half_warns(tmp_path: Path) -> None:
    blank = [Prediction(f"{i}.mp4", status="no_face", reason="none") for i in range(50)]
    assert "WARNING" in summarize(Result(tmp_path / "x.csv", blank, 1.0)).splitlines()[-1]


def test_names_cannot_forge_a_line_of_the_summary(tmp_path: Path) -> None:
    forged = "a.mp4\nreal.mp4  1.0% fake\x1b[2K\x9b1A\u202e"
    text = summarize(Result(tmp_path / "x.csv", [Prediction(forged, 0.9), Prediction("b.mp4", 0.2)], 1.0))
    honest = summarize(Result(tmp_path / "x.csv", [Prediction("a.mp4", 0.9), Prediction("b.mp4", 0.2)], 1.0))
    assert text.count("\n") == honest.count("\n")
    assert text.replace("\n", "").isprintable()


def test_output_never_overwrites_a_clip(tmp_path: Path, job: Job, workers: FakeWorkers) -> None:
    with pytest.raises(InputError):
        score_job(
            Job(("a",), {"a": tmp_path / "a.mp4"}),
            tmp_path / "a.mp4",
            WorkerSettings(weights=()),
            deadline=NEVER,
        )
    (tmp_path / "a.mp4").rename(tmp_path / "clip")
    with pytest.raises(InputError):
        score_job(
            Job(("clip",), {"clip": tmp_path / "clip"}), tmp_path / "clip", WorkerSettings(weights=()), deadline=NEVER
        )
    assert (tmp_path / "clip").read_text() == "a.mp4"
