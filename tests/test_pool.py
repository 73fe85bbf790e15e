"""dfdc.run.pool and dfdc.run.worker: a worker's death is its clip's row, never the run's end."""

from __future__ import annotations

import multiprocessing
import os
from pathlib import Path
from types import SimpleNamespace

import pytest

from dfdc import analyze
from dfdc.deadline import NEVER, Deadline
from dfdc.errors import InputError, VideoError
from dfdc.prediction import Prediction
from dfdc.run import pool, worker
from dfdc.run.plan import Plan
from dfdc.run.pool import predict_clips
from dfdc.run.worker import Prepared, WorkerSettings, prepare
from dfdc.runtime import choose_device
from dfdc.weights import ModelSpec, WeightsFile
from tests.gpu import pretend_gpus
from tests.workers import (
    die_at_once,
    echo_frames,
    fail_at_place_1,
    fail_beside_a_look,
    fail_on_cuda,
    fail_one_clip,
    leave_after_one,
    load_after_a_famine,
    load_alone,
    load_but_at_place_1,
    load_first_only,
    load_on_the_cpu_only,
    load_once,
    meet_and_leave,
    meet_on_the_cpu,
    misbehave,
    prepare_and_die,
    prepare_on_cuda,
    refuse,
    refuse_at_the_second_place,
    report_environment,
    report_modules,
)

SETTINGS = WorkerSettings(weights=())


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


def test_clips_whose_workers_are_killed_are_looked_at_by_fewer(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """As where memory is short: two kills cost a worker and no clip; what kills the last one, twice, is at fault."""
    found = run(["killed.mp4", *(f"{i}.mp4" for i in range(5))], n_workers=2)
    assert caplog.text.count("goes on with 1 worker(s)") == 1
    assert caplog.text.count("killed.mp4: its worker died: Killed, perhaps out of memory") == 4
    assert [name for name, p in found.items() if p.status != "ok"] == ["killed.mp4"]


def test_clip_whose_worker_died_once_is_tried_again(tmp_path: Path) -> None:
    clips = {"once.mp4": tmp_path / "was here"}
    (only,) = predict_clips(clips, SETTINGS, n_workers=1, deadline=NEVER, work=misbehave)
    assert (only.status, only.label) == ("ok", 0.25)


def test_clip_that_cannot_be_read_is_tried_once_more_behind_the_others(tmp_path: Path) -> None:
    clips = {name: tmp_path / name for name in ("unreadable.mp4", "better.mp4", "a.mp4")}
    found = list(predict_clips(clips, SETTINGS, n_workers=1, deadline=NEVER, work=misbehave))
    assert [p.filename for p in found] == ["a.mp4", "unreadable.mp4", "better.mp4"]
    assert [p.status for p in found] == ["ok", "unreadable", "ok"] and found[1].reason == "cannot be opened"
    assert (tmp_path / "unreadable.looks").read_text() == "xx"


def test_hanging_worker_is_ended_and_its_clip_times_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dfdc.run.plan.GRACE_S", 0.2)
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


def test_worker_that_refuses_leaves_the_run_to_the_others(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One GPU of two does not serve: its worker's word comes while the other one loads."""
    monkeypatch.setattr(pool, "count_cores", lambda: 2)
    settings = WorkerSettings(weights=(), device=str(tmp_path / "starts"))
    found = run(["a.mp4", "b.mp4"], work=refuse_at_the_second_place, settings=settings, n_workers=2)
    assert {p.status for p in found.values()} == {"ok"}
    assert caplog.text.count("a worker refused (GPU 1 is taken) while it loaded") == 2
    assert "goes on with 1 worker(s)" in caplog.text


def test_workers_that_never_load_end_the_run() -> None:
    with pytest.raises(InputError, match=r"workers no longer start: the last ended with exit code 3; try"):
        run(["a.mp4"], work=die_at_once)


def test_run_that_has_begun_waits_for_workers_that_load_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dfdc.run.pool.START_PAUSE_S", 0.001)
    settings = WorkerSettings(weights=(), device=str(tmp_path / "starts"))
    found = run(["a.mp4", "b.mp4", "c.mp4"], work=load_after_a_famine, settings=settings, n_workers=1)
    assert {p.status for p in found.values()} == {"ok"}
    assert (tmp_path / "starts").read_text() == "x" * 8


def test_run_that_has_begun_ends_with_rows_when_no_worker_loads_any_more(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("dfdc.run.pool.START_PAUSE_S", 0.001)
    settings = WorkerSettings(weights=(), device=str(tmp_path / "first was here"))
    found = run(["a.mp4", "b.mp4", "c.mp4"], work=load_once, settings=settings, n_workers=1)
    assert found["a.mp4"].status == "ok"
    assert {found[name].status for name in ("b.mp4", "c.mp4")} == {"error"}
    assert "workers no longer start" in found["b.mp4"].reason


def test_machine_that_starts_no_process_ends_the_run_with_the_cause(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse_to_start(*_: object) -> None:
        raise OSError("Resource temporarily unavailable")

    monkeypatch.setattr("dfdc.run.pool._start", refuse_to_start)
    with pytest.raises(InputError, match="workers cannot be started"):
        run(["a.mp4"])


def test_slot_whose_workers_never_load_is_given_up(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    settings = WorkerSettings(weights=(), device=str(tmp_path / "starts"))
    names = [f"{i}.mp4" for i in range(6)]
    found = run(names, work=load_first_only, settings=settings, n_workers=2)
    assert {p.status for p in found.values()} == {"ok"}
    assert (tmp_path / "starts").read_text().count("x") <= 4
    assert "goes on with 1 worker(s)" in caplog.text


def test_worker_takes_the_place_of_one_that_left(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pool, "count_cores", lambda: 2)
    settings = WorkerSettings(weights=(), device=str(tmp_path / "place"))
    found = run([f"{i}.mp4" for i in range(6)], work=meet_and_leave, settings=settings)
    assert {p.label for p in found.values()} == {0.25, 0.5}


def test_no_more_workers_load_at_once_than_there_are_cores(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """On CUDA there are more of them, and the first is not to wait for the others."""
    monkeypatch.setattr(pool, "count_cores", lambda: 1)
    settings = WorkerSettings(weights=(), device=str(tmp_path))
    found = run([f"{i}.mp4" for i in range(9)], work=load_alone, settings=settings, n_workers=3)
    assert {p.status for p in found.values()} == {"ok"}
    assert not (tmp_path / "together").exists()


def test_places_that_had_no_turn_yet_outlive_one_whose_workers_do_not_load(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(pool, "count_cores", lambda: 2)
    settings = WorkerSettings(weights=(), device=str(tmp_path))
    names = [f"{i}.mp4" for i in range(6)]
    found = run(names, work=load_but_at_place_1, settings=settings, n_workers=3)
    assert {p.status for p in found.values()} == {"ok"}
    assert "goes on with 2 worker(s)" in caplog.text and "goes on with 1" not in caplog.text


@pytest.mark.parametrize("dies", [False, True])
def test_what_prepared_a_run_on_cuda_is_its_first_worker(dies: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pool, "prepare", prepare_and_die if dies else prepare_on_cuda)
    monkeypatch.setattr(pool, "score_clips", misbehave)
    settings = WorkerSettings(weights=(), device="cuda", n_frames=7)
    names = [f"{i}.mp4" for i in range(4)]
    done = list(predict_clips({n: Path(n) for n in names}, settings, n_workers=1, deadline=NEVER))
    assert sorted(p.filename for p in done) == names
    assert {(p.label, p.frames) for p in done} == ({(0.25, 0)} if dies else {(0.75, 7)})
    assert not multiprocessing.active_children()


def test_preparing_on_cuda_leaves_a_process_that_can_work(monkeypatch: pytest.MonkeyPatch) -> None:
    ours, theirs = multiprocessing.Pipe()
    monkeypatch.setattr("dfdc.runtime.choose_device", lambda wanted: "cuda")
    monkeypatch.setattr("dfdc.run.worker.score_clips", lambda connection, settings: connection.send(settings))
    monkeypatch.setattr("dfdc.run.worker.signal.signal", lambda *_: None)
    told = WorkerSettings(weights=(), n_frames=7)
    ours.send(told)
    prepare(theirs, SETTINGS)
    assert ours.recv() == Prepared("cuda")
    assert ours.poll() and ours.recv() == told


@pytest.mark.parametrize(("device", "decodes", "gpu"), [("cuda", True, 1), ("cuda", False, None), ("cpu", True, None)])
def test_clips_are_decoded_where_nets_run_if_that_can(
    device: str, decodes: bool, gpu: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []

    def refuse_to_read(*_: object, gpu: int | None, **__: object) -> None:
        asked.append(gpu)
        raise VideoError("no frames here")

    for part in ("FaceDetector", "Ensemble", "Motion", "VoiceModels"):
        monkeypatch.setattr(analyze, part, lambda *_, **__: SimpleNamespace(n_pairs=0, nets=[]))
    monkeypatch.setattr(analyze, "has_gpu_decoder", lambda: decodes)
    monkeypatch.setattr(analyze, "current_gpu", lambda: 1)
    monkeypatch.setattr(analyze, "read_frames", refuse_to_read)
    monkeypatch.setattr("dfdc.runtime.choose_device", lambda wanted, place: device)
    monkeypatch.setattr("dfdc.runtime.describe_runtime", lambda device: "a net")
    monkeypatch.setattr("cv2.setNumThreads", lambda _: None)  # which later tests would keep
    predictor, runtime = worker._load(SETTINGS)
    assert predictor.analyze(Path("a.mp4"), 4).status == "unreadable"
    assert asked == [gpu]
    assert runtime == ("a net; NVDEC decodes H.264" if gpu is not None else "a net")


@pytest.mark.parametrize(
    ("quota", "n_cores"),
    [("150000 100000\n", 2), ("50000 100000", 1), ("900000 100000", 4), ("max 1", 4), ("", 4)],
)
def test_a_containers_quota_counts_as_cores(
    quota: str, n_cores: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 1, 2, 3}, raising=False)
    assert pool.count_cores(tmp_path / "absent") == 4
    (tmp_path / "cpu.max").write_text(quota)
    assert pool.count_cores(tmp_path / "cpu.max") == n_cores


@pytest.mark.parametrize(
    ("device", "wanted", "n_clips", "n_workers", "threads"),
    [("cpu", None, 9, 4, 1), ("cuda", None, 9, 5, 1), ("cuda", 2, 9, 2, 2), ("cpu", None, 1, 1, 4)],
)
def test_workers_share_the_cores_and_on_cuda_there_are_more(
    device: str, wanted: int | None, n_clips: int, n_workers: int, threads: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = []

    class Spy(pool._Pool):
        def __init__(self, clips: dict, plan: Plan, settings: WorkerSettings, *rest: object) -> None:
            made.append((plan.n_workers, settings.threads, settings.device))
            super().__init__(clips, plan, settings, *rest)

    monkeypatch.setattr(pool, "count_cores", lambda: 4)
    monkeypatch.setattr(pool, "_prepare", lambda *_: Prepared(device))
    monkeypatch.setattr(pool, "_Pool", Spy)
    monkeypatch.setattr(pool, "score_clips", misbehave)
    clips = {f"{i}.mp4": Path("a.mp4") for i in range(n_clips)}
    done = list(predict_clips(clips, WorkerSettings(weights=()), n_workers=wanted, deadline=NEVER))
    assert {p.label for p in done} == {0.25}
    assert made == [(n_workers, threads, "cpu" if device == "cpu" else "auto")]


@pytest.mark.parametrize(("models", "n_nets"), [("all", 2), ("first", 1)])
@pytest.mark.parametrize("n_frames", [16, None])
def test_models_that_are_asked_for_answer_whatever_the_number_of_frames(
    models: str, n_nets: int, n_frames: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pool, "_prepare", lambda *_: Prepared("cpu"))
    monkeypatch.setattr(pool, "score_clips", misbehave)
    face = ModelSpec("efficientnet-lite0", 32)
    weights = (WeightsFile(Path("a"), "a", face), WeightsFile(Path("b"), "b", face, further=True))
    settings = WorkerSettings(weights=weights, n_frames=n_frames, models=models)
    assert [file.digest for file in settings.weights] == ["a", "b"][:n_nets]
    (done,) = predict_clips({"a.mp4": Path("a.mp4")}, settings, deadline=NEVER)
    assert done.nets == n_nets


@pytest.mark.parametrize(("n_frames", "asked"), [(16, True), (None, False)])
def test_score_of_fewer_nets_than_answer_now_is_taken_again_where_frames_are_fixed(
    n_frames: int | None, asked: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A run begun on the CPU and gone on with on CUDA is one by all nets; with time to plan by, that is the plan's."""
    monkeypatch.setattr(pool, "_prepare", lambda *_: Prepared("cuda"))
    monkeypatch.setattr(pool, "score_clips", misbehave)
    face = ModelSpec("efficientnet-lite0", 32)
    weights = (WeightsFile(Path("a"), "a", face), WeightsFile(Path("b"), "b", face, further=True))
    known = {
        "one.mp4": Prediction("one.mp4", 0.99, wanted=16, nets=1, frames=16),
        "two.mp4": Prediction("two.mp4", 0.99, wanted=16, nets=2, frames=16),
        "three.mp4": Prediction("three.mp4", 0.99, wanted=16, nets=3, frames=16),
    }
    clips = {name: Path(name) for name in known}
    settings = WorkerSettings(weights=weights, n_frames=n_frames)
    done = [p.filename for p in predict_clips(clips, settings, deadline=NEVER, known=known)]
    assert done == ["one.mp4"] * asked


def test_score_of_fewer_nets_stays_where_no_time_is_left() -> None:
    known = {"one.mp4": Prediction("one.mp4", 0.99, wanted=16, nets=2, frames=16)}
    settings = WorkerSettings(weights=(), n_frames=16)
    assert not list(predict_clips({"one.mp4": Path("one.mp4")}, settings, deadline=Deadline.after(0), known=known))


@pytest.mark.parametrize(("place", "gpu"), [(0, 0), (1, 1), (2, 0)])
def test_workers_take_turns_on_several_gpus(place: int, gpu: int, monkeypatch: pytest.MonkeyPatch) -> None:
    chosen = pretend_gpus(monkeypatch, 2)
    assert choose_device("auto", place=place) == "cuda"
    assert chosen == [gpu]


def test_worker_that_leaves_costs_no_clip() -> None:
    names = [f"{i}.mp4" for i in range(4)]
    assert {p.status for p in run(names, work=leave_after_one).values()} == {"ok"}


@pytest.mark.parametrize("name", ["fault.mp4", "crash.mp4", "stall.mp4"])
@pytest.mark.parametrize("n_workers", [1, 2])
def test_clip_that_cuda_failed_is_scored_on_the_cpu(
    name: str, n_workers: int, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("dfdc.run.plan.GRACE_S", 0.2)
    settings = WorkerSettings(weights=(), device="auto", clip_limit_s=2.0)
    found = run([name, *(f"{i}.mp4" for i in range(5))], work=fail_on_cuda, settings=settings, n_workers=n_workers)
    assert (found[name].label, found[name].status) == (0.75, "ok")
    assert {found[f"{i}.mp4"].label for i in range(5)} == {0.25}
    assert "CUDA failed 1 clips; a worker on the CPU takes them" in caplog.text


def test_clips_that_cuda_fails_now_and_then_do_not_all_wait_for_the_end(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(pool, "MAX_HELD", 2)
    monkeypatch.setattr(pool, "MAX_CUDA_FAULTS", 100)
    names = [f"fault {i}.mp4" if i % 3 == 0 else f"{i}.mp4" for i in range(30)]
    found = run(names, work=fail_on_cuda, settings=WorkerSettings(weights=(), device="auto"))
    assert {found[name].label for name in names if name.startswith("fault")} == {0.75}
    assert "CUDA failed 3 clips; a worker on the CPU takes them" in caplog.text


def test_the_last_worker_stays_on_cuda_while_there_is_something_else_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pool, "MAX_HELD", 1)
    names = ["fault a.mp4", "0.mp4", "fault b.mp4", "1.mp4", "fault c.mp4", "2.mp4", "3.mp4"]
    found = run(names, work=fail_on_cuda, settings=WorkerSettings(weights=(), device="auto"), n_workers=1)
    assert {name: p.label for name, p in found.items()} == {name: 0.75 if "fault" in name else 0.25 for name in names}


def test_further_looks_stay_on_cuda_beside_a_clip_that_it_failed(tmp_path: Path) -> None:
    known = {f"{i}.mp4": Prediction(f"{i}.mp4", 0.4, wanted=8, nets=1, frames=8) for i in range(40)}
    clips = {name: tmp_path / name for name in ("fault.mp4", *known)}
    looks = predict_clips(clips, SETTINGS, n_workers=2, deadline=NEVER, work=fail_one_clip, known=known)
    found = {p.filename: p for p in looks}
    assert found["fault.mp4"].label == 0.75
    labels = [found[name].label for name in known]
    # Were CUDA left altogether, it would answer at most for the one look that it was at.
    assert len(found) == 41 and labels.count(0.25) > 10 and set(labels) <= {0.25, 0.75}


def test_worker_on_the_cpu_starts_where_nobody_works(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dfdc.run.plan.GRACE_S", 0.2)
    settings = WorkerSettings(weights=(), device=str(tmp_path), clip_limit_s=5.0)
    known = {"0.mp4": Prediction("0.mp4", 0.4, wanted=8, nets=1, frames=8)}
    clips = {name: tmp_path / name for name in ("fault.mp4", *known)}
    looks = predict_clips(clips, settings, n_workers=2, deadline=NEVER, work=fail_beside_a_look, known=known)
    found = {p.filename: (p.label, p.status) for p in looks}
    assert found == {"fault.mp4": (0.75, "ok"), "0.mp4": (0.25, "ok")}


@pytest.mark.parametrize("fault", ["fault", "crash"])
def test_cuda_device_that_fails_for_good_sends_the_rest_to_the_cpu(
    fault: str, caplog: pytest.LogCaptureFixture
) -> None:
    names = [f"{fault}{i}.mp4" for i in range(9)]
    found = run(names, work=fail_on_cuda, settings=WorkerSettings(weights=(), device="cuda"))
    assert {(p.label, p.status) for p in found.values()} == {(0.75, "ok")}
    assert sorted(found) == names
    assert 1 <= caplog.text.count("the CPU goes on there") <= 2


def test_gpu_that_fails_for_good_is_left_and_the_other_one_goes_on(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    clips = {f"{i:02}.mp4": tmp_path / f"{i:02}.mp4" for i in range(12)}
    found = {p.filename: p for p in predict_clips(clips, SETTINGS, n_workers=2, deadline=NEVER, work=fail_at_place_1)}
    assert sorted(found) == list(clips)
    assert {p.label for p in found.values()} == {0.25, 0.75}
    assert caplog.text.count("launch failure") == 3
    assert "3 clips of worker 1 in succession; the CPU goes on there" in caplog.text


def test_workers_that_do_not_load_on_auto_are_tried_on_the_cpu(caplog: pytest.LogCaptureFixture) -> None:
    assert run(["a.mp4"], work=load_on_the_cpu_only)["a.mp4"].label == 0.75
    assert "the last ended with exit code 3; the CPU goes on" in caplog.text


def test_as_many_take_over_on_the_cpu_as_there_are_cores(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not only the one that was left when the others had died of CUDA."""
    monkeypatch.setattr("dfdc.run.pool.count_cores", lambda: 2)
    settings = WorkerSettings(weights=(), clip_limit_s=2.0)
    clips = {name: tmp_path / name for name in ("a.mp4", "b.mp4", "c.mp4")}
    found = list(predict_clips(clips, settings, n_workers=3, deadline=NEVER, work=meet_on_the_cpu))
    assert {p.filename: p.label for p in found} == dict.fromkeys(clips, 0.25)


def test_workers_that_do_not_load_on_a_device_that_was_asked_for_end_the_run() -> None:
    with pytest.raises(InputError, match="try --workers 1 or --device cpu"):
        run(["a.mp4"], work=load_on_the_cpu_only, settings=WorkerSettings(weights=(), device="cuda"))


def test_fixed_frames_reach_the_worker_and_the_record() -> None:
    found = run(["a.mp4"], work=echo_frames, settings=WorkerSettings(weights=(), n_frames=5))
    assert (found["a.mp4"].frames, found["a.mp4"].wanted) == (5, 5)


def test_known_clips_are_not_looked_at_again() -> None:
    known = {"a.mp4": Prediction("a.mp4", 0.5, wanted=32, nets=1, frames=32)}
    assert list(run(["a.mp4", "b.mp4"], work=echo_frames, known=known)) == ["b.mp4"]
    assert run(["a.mp4"], work=die_at_once, known=known) == {}


def test_worker_that_dies_in_a_further_look_costs_no_score() -> None:
    known = {"lethal.mp4": Prediction("lethal.mp4", 0.4, wanted=8, nets=1, frames=8)}
    found = run(["lethal.mp4", "a.mp4"], work=echo_frames, known=known)
    assert found["lethal.mp4"] == Prediction("lethal.mp4", 0.4, wanted=32, nets=1, frames=8)
    assert found["a.mp4"].frames == 32


def test_no_process_is_left_when_the_consumer_stops_in_the_middle() -> None:
    clips = {name: Path(name) for name in ("a.mp4", "hang.mp4", "hang2.mp4")}
    predictions = predict_clips(clips, SETTINGS, n_workers=2, deadline=NEVER, work=misbehave)
    next(predictions)
    predictions.close()
    assert multiprocessing.active_children() == []


def test_workers_share_openvino_which_reports_nothing() -> None:
    pytest.importorskip("openvino")
    assert run(["a.mp4"], work=report_modules, n_workers=1)["a.mp4"].reason == "True None"


def test_workers_keep_their_buffers_and_leave_other_cores_alone() -> None:
    found = run(["a.mp4"], work=report_environment, n_workers=1)
    assert found["a.mp4"].reason == f"{2**24} 1"
    assert "MALLOC_TOP_PAD_" not in os.environ
