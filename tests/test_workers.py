"""dfdc.workers: a worker's death is its clip's row, never the run's end."""

from __future__ import annotations

import ctypes
import multiprocessing
import os
import signal
import threading
from multiprocessing.connection import Connection
from pathlib import Path

import pytest

from dfdc.deadline import NEVER, Deadline
from dfdc.inputs import InputError
from dfdc.prediction import Prediction
from dfdc.workers import LastWord, Ready, Refusal, WorkerSettings, predict_clips

SETTINGS = WorkerSettings(weights=())


def misbehave(connection: Connection, settings: WorkerSettings) -> None:
    """A worker whose clips' names say what happens to it."""
    connection.send(Ready("a fake"))
    while True:
        try:
            path, name, _ = connection.recv()
        except EOFError:
            return
        if name.startswith("segfault"):
            ctypes.string_at(0)
        if name.startswith("killed"):
            os.kill(os.getpid(), signal.SIGKILL)
        if name.startswith("hang"):
            threading.Event().wait()
        if name.startswith("once") and not path.exists():
            path.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        connection.send(Prediction(name, 0.25))


def refuse(connection: Connection, settings: WorkerSettings) -> None:
    connection.send(Refusal("weights/x: do not fit"))


def die_at_once(connection: Connection, settings: WorkerSettings) -> None:
    os._exit(3)


def load_once(connection: Connection, settings: WorkerSettings) -> None:
    """The first worker scores a clip and dies; no other one loads. What is there says who was first."""
    flag = Path(settings.device)
    if flag.exists():
        os._exit(4)
    flag.touch()
    connection.send(Ready("a fake"))
    _, name, _ = connection.recv()
    connection.send(Prediction(name, 0.25))
    connection.recv()
    os._exit(5)


def load_first_only(connection: Connection, settings: WorkerSettings) -> None:
    """The first worker works, slowly enough for others to try; all others die while they load."""
    flag = Path(settings.device)
    first = not flag.exists()
    with open(flag, "a") as file:
        file.write("x")
    if not first:
        os._exit(4)
    connection.send(Ready("a fake"))
    while True:
        try:
            _, name, _ = connection.recv()
        except EOFError:
            return
        threading.Event().wait(1.0)
        connection.send(Prediction(name, 0.25))


def leave_after_one(connection: Connection, settings: WorkerSettings) -> None:
    connection.send(Ready("a fake"))
    _, name, _ = connection.recv()
    connection.send(LastWord(Prediction(name, 0.25)))


def report_environment(connection: Connection, settings: WorkerSettings) -> None:
    connection.send(Ready("a fake"))
    _, name, _ = connection.recv()
    connection.send(Prediction(name, reason=os.environ["MALLOC_TOP_PAD_"] + " " + os.environ["OMP_NUM_THREADS"]))


def run(names: list[str], *, work: object = misbehave, settings: WorkerSettings = SETTINGS, **options: object) -> dict:
    options = {"n_workers": 2, "deadline": NEVER, **options}
    clips = {name: Path(name) for name in names}
    return {p.filename: p for p in predict_clips(clips, settings, work=work, **options)}


def test_every_clip_gets_one_prediction() -> None:
    names = [f"{i}.mp4" for i in range(7)]
    done = [
        p.filename
        for p in predict_clips({n: Path(n) for n in names}, SETTINGS, n_workers=2, deadline=NEVER, work=misbehave)
    ]
    assert sorted(done) == names


@pytest.mark.parametrize(
    ("name", "cause"), [("segfault.mp4", "died: Segmentation fault"), ("killed.mp4", "died: Killed")]
)
def test_clip_that_kills_its_worker_twice_gets_a_row_and_the_others_are_scored(name: str, cause: str) -> None:
    found = run(["a.mp4", name, "b.mp4", "c.mp4"])
    assert found[name].status == "error"
    assert cause in found[name].reason
    assert found[name].label == 0.5
    assert {found[n].label for n in ("a.mp4", "b.mp4", "c.mp4")} == {0.25}


def test_clip_whose_worker_died_once_is_tried_again(tmp_path: Path) -> None:
    clips = {"once.mp4": tmp_path / "was here"}
    (only,) = predict_clips(clips, SETTINGS, n_workers=1, deadline=NEVER, work=misbehave)
    assert (only.status, only.label) == ("ok", 0.25)


def test_hanging_worker_is_ended_and_its_clip_times_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dfdc.workers.GRACE_S", 0.2)
    settings = WorkerSettings(weights=(), clip_limit_s=2.0)
    found = run(["hang.mp4", "a.mp4"], settings=settings, n_workers=1)
    assert found["hang.mp4"].status == "timeout"
    assert found["a.mp4"].status == "ok"


def test_deadline_gives_every_clip_left_a_row() -> None:
    found = run(["hang.mp4", "hang2.mp4", "a.mp4"], deadline=Deadline.after(3.0))
    assert [found[name].status for name in ("hang.mp4", "hang2.mp4", "a.mp4")] == ["timeout"] * 3


def test_deadline_that_has_passed_starts_no_worker() -> None:
    found = run(["a.mp4"], work=die_at_once, deadline=Deadline.after(0.0))
    assert found["a.mp4"].status == "timeout"


def test_worker_that_refuses_ends_the_run_with_its_reason() -> None:
    with pytest.raises(InputError, match="weights/x: do not fit"):
        run(["a.mp4"], work=refuse)


def test_workers_that_never_load_end_the_run() -> None:
    with pytest.raises(InputError, match=r"workers no longer start: the last ended with exit code 3; try"):
        run(["a.mp4"], work=die_at_once)


def test_run_that_has_begun_ends_with_rows_when_no_worker_loads_any_more(tmp_path: Path) -> None:
    settings = WorkerSettings(weights=(), device=str(tmp_path / "first was here"))
    found = run(["a.mp4", "b.mp4", "c.mp4"], work=load_once, settings=settings, n_workers=1)
    assert found["a.mp4"].status == "ok"
    assert {found[name].status for name in ("b.mp4", "c.mp4")} == {"error"}
    assert "workers no longer start" in found["b.mp4"].reason


def test_machine_that_starts_no_process_ends_the_run_with_the_cause(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse_to_start(*_: object) -> None:
        raise OSError("Resource temporarily unavailable")

    monkeypatch.setattr("dfdc.workers._start", refuse_to_start)
    with pytest.raises(InputError, match="workers cannot be started"):
        run(["a.mp4"])


def test_slot_whose_workers_never_load_is_given_up(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    settings = WorkerSettings(weights=(), device=str(tmp_path / "starts"))
    names = [f"{i}.mp4" for i in range(6)]
    found = run(names, work=load_first_only, settings=settings, n_workers=2)
    assert {p.status for p in found.values()} == {"ok"}
    assert (tmp_path / "starts").read_text().count("x") <= 4
    assert "goes on with 1 workers" in caplog.text


def test_worker_that_leaves_costs_no_clip() -> None:
    names = [f"{i}.mp4" for i in range(4)]
    assert {p.status for p in run(names, work=leave_after_one).values()} == {"ok"}


def test_no_process_is_left_when_the_consumer_stops_in_the_middle() -> None:
    clips = {name: Path(name) for name in ("a.mp4", "hang.mp4", "hang2.mp4")}
    predictions = predict_clips(clips, SETTINGS, n_workers=2, deadline=NEVER, work=misbehave)
    next(predictions)
    predictions.close()
    assert multiprocessing.active_children() == []


def test_workers_keep_their_buffers_and_leave_other_cores_alone() -> None:
    found = run(["a.mp4"], work=report_environment, n_workers=1)
    assert found["a.mp4"].reason == f"{2**24} 1"
    assert "MALLOC_TOP_PAD_" not in os.environ
