"""dfdc.run.pool and dfdc.run.worker: the death of a worker costs one clip its score and never ends the run."""

from __future__ import annotations

import multiprocessing
import os
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest

from dfdc import analyze, findings
from dfdc.deadline import NEVER, Deadline
from dfdc.errors import InputError, MachineError, VideoError
from dfdc.prediction import Prediction
from dfdc.progress import Progress
from dfdc.run import limits, pool, worker
from dfdc.run.pool import predict_clips
from dfdc.run.spawn import start_worker
from dfdc.run.worker import WorkerSettings
from dfdc.runtime import choose_device
from dfdc.weights import ModelSpec, WeightsFile
from tests.gpu import pretend_gpus
from tests.workers import (
    bomb_or_count,
    count_together,
    die_at_once,
    echo_frames,
    fail_on_cuda,
    fail_one_clip,
    leave_after_one,
    limited,
    load_after_a_famine,
    load_alone,
    load_on_the_cpu_only,
    load_once,
    misbehave,
    refuse,
    report_environment,
    tell_progress,
)

SETTINGS = WorkerSettings(weights=())


@pytest.fixture
def quick_restarts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pool, "START_PAUSE_S", 0.001)


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


def test_clip_that_kills_its_worker_twice_does_not_slow_the_others(tmp_path: Path) -> None:
    """A memory bomb does so. The clip is retried once, alone, and then both workers run again."""
    names = ["bomb.mp4", *(f"{i}.mp4" for i in range(20))]
    clips = {name: tmp_path / name for name in names}
    found = {p.filename: p for p in predict_clips(clips, SETTINGS, n_workers=2, deadline=NEVER, work=bomb_or_count)}
    assert [name for name, p in found.items() if p.status != "ok"] == ["bomb.mp4"]
    assert found["bomb.mp4"].status == "error" and found["bomb.mp4"].label == 0.5
    assert (tmp_path / "bomb.passes").read_text() == "xx"
    assert max(p.label for p in found.values() if p.status == "ok") == 0.02  # two at once


def test_steps_of_each_clip_are_told_in_order_and_only_where_somebody_asks() -> None:
    told: list[tuple[str, Progress]] = []
    found = run(["a.mp4", "b.mp4", "c.mp4"], work=tell_progress, watch=lambda *step: told.append(step))
    assert {p.label for p in found.values()} == {0.75}
    for name in found:
        assert [step for clip, step in told if clip == name] == [Progress("reading", 1, 2), Progress("scoring")]
    assert run(["a.mp4"], work=tell_progress)["a.mp4"].label == 0.25


def test_a_worker_that_hangs_after_telling_a_step_is_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dfdc.run.plan.GRACE_S", 0.2)
    settings = WorkerSettings(weights=(), clip_limit_s=2.0)
    told: list[str] = []
    found = run(
        ["hang.mp4", "a.mp4"],
        work=tell_progress,
        settings=settings,
        n_workers=1,
        deadline=Deadline.after(60.0),
        watch=lambda name, step: told.append(f"{name} {step.stage}"),
    )
    assert (found["hang.mp4"].status, found["a.mp4"].status) == ("timeout", "ok")
    assert told == [f"{name} {stage}" for name in ("hang.mp4", "a.mp4") for stage in ("reading", "scoring")]


def test_fewer_workers_run_if_memory_is_too_short_for_all(tmp_path: Path) -> None:
    """Each of these clips kills its worker if another worker runs, but not alone."""
    clips = {name: tmp_path / name for name in ["once a.mp4", "once b.mp4", *(f"{i}.mp4" for i in range(9))]}
    found = list(predict_clips(clips, SETTINGS, n_workers=2, deadline=NEVER, work=count_together))
    assert sorted(p.filename for p in found) == sorted(clips) and {p.status for p in found} == {"ok"}
    survived = [i for i, p in enumerate(found) if p.filename.startswith("once")]
    assert {found[i].label for i in survived} == {0.01}  # alone
    assert {p.label for p in found[survived[-1] + 2 :]} == {0.01}


@pytest.mark.parametrize(
    ("name", "cause"), [("segfault.mp4", "died: Segmentation fault"), ("killed.mp4", "died: Killed")]
)
def test_clip_that_kills_its_worker_twice_gets_a_row(name: str, cause: str) -> None:
    found = run(["a.mp4", name, "b.mp4", "c.mp4"])
    assert found[name].status == "error"
    assert cause in found[name].reason
    assert found[name].label == 0.5
    assert {found[n].label for n in ("a.mp4", "b.mp4", "c.mp4")} == {0.25}


def test_clip_whose_worker_died_once_is_retried(tmp_path: Path) -> None:
    clips = {"once.mp4": tmp_path / "was here"}
    (only,) = predict_clips(clips, SETTINGS, n_workers=1, deadline=NEVER, work=misbehave)
    assert (only.status, only.label) == ("ok", 0.25)


def test_unreadable_clip_is_retried_once_after_the_others(tmp_path: Path) -> None:
    clips = {name: tmp_path / name for name in ("unreadable.mp4", "better.mp4", "a.mp4")}
    found = list(predict_clips(clips, SETTINGS, n_workers=1, deadline=NEVER, work=misbehave))
    assert [p.filename for p in found] == ["a.mp4", "unreadable.mp4", "better.mp4"]
    assert [p.status for p in found] == ["ok", "unreadable", "ok"] and found[1].reason == "cannot be opened"
    assert (tmp_path / "unreadable.passes").read_text() == "xx"


def test_hanging_worker_is_killed_and_its_clip_times_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dfdc.run.plan.GRACE_S", 0.2)
    settings = WorkerSettings(weights=(), clip_limit_s=2.0)
    found = run(["hang.mp4", "a.mp4"], settings=settings, n_workers=1)
    assert found["hang.mp4"].status == "timeout"
    assert found["a.mp4"].status == "ok"


def test_deadline_gives_every_remaining_clip_a_row() -> None:
    found = run(["hang.mp4", "hang2.mp4", "a.mp4"], deadline=Deadline.after(3.0))
    assert [found[name].status for name in ("hang.mp4", "hang2.mp4", "a.mp4")] == ["timeout"] * 3


def test_expired_deadline_starts_no_worker() -> None:
    found = run(["a.mp4"], work=die_at_once, deadline=Deadline.after(0.0))
    assert found["a.mp4"].status == "timeout"


def test_worker_that_refuses_ends_the_run_with_its_reason() -> None:
    with pytest.raises(InputError, match="weights/x: do not fit"):
        run(["a.mp4"], work=refuse)


def test_workers_that_never_load_end_the_run(quick_restarts: None) -> None:
    with pytest.raises(MachineError):
        run(["a.mp4"], work=die_at_once, settings=WorkerSettings(weights=(), device="cpu"))


@pytest.mark.parametrize("error", [OSError("Resource temporarily unavailable"), BlockingIOError("fork")])
def test_failure_to_start_any_process_ends_the_run_with_the_cause(
    error: OSError, quick_restarts: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse_to_start(*_: object) -> None:
        raise error

    monkeypatch.setattr(pool, "start_worker", refuse_to_start)
    with pytest.raises(MachineError):
        run(["a.mp4"])


def test_run_continues_without_a_worker_that_cannot_be_started(
    quick_restarts: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    started = []

    def start_one(*arguments: object) -> object:
        if started:
            raise OSError("Resource temporarily unavailable")
        started.append(pool_start(*arguments))
        return started[0]

    pool_start = pool.start_worker
    monkeypatch.setattr(pool, "start_worker", start_one)
    assert {p.status for p in run([f"{i}.mp4" for i in range(6)]).values()} == {"ok"}


def test_run_in_progress_waits_until_workers_load_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pool, "START_PAUSE_S", 0.001)
    settings = WorkerSettings(weights=(), device=str(tmp_path / "starts"))
    found = run(["a.mp4", "b.mp4", "c.mp4"], work=load_after_a_famine, settings=settings, n_workers=1)
    assert {p.status for p in found.values()} == {"ok"}
    assert (tmp_path / "starts").read_text() == "x" * 8


def test_run_in_progress_ends_with_rows_if_no_worker_loads_any_more(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pool, "START_PAUSE_S", 0.001)
    monkeypatch.setattr(pool, "MAX_RESTARTS", 3)
    settings = WorkerSettings(weights=(), device=str(tmp_path / "first was here"))
    found = run(["a.mp4", "b.mp4", "c.mp4"], work=load_once, settings=settings, n_workers=1)
    assert found["a.mp4"].status == "ok"
    assert {found[name].status for name in ("b.mp4", "c.mp4")} == {"error"}
    assert found["b.mp4"].reason


def test_at_most_one_worker_per_core_loads_at_a_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """On CUDA there are more workers than cores, and the first should not wait for the others."""
    monkeypatch.setattr(pool, "count_cores", lambda: 1)
    settings = WorkerSettings(weights=(), device=str(tmp_path))
    found = run([f"{i}.mp4" for i in range(9)], work=load_alone, settings=settings, n_workers=3)
    assert {p.status for p in found.values()} == {"ok"}
    assert not (tmp_path / "together").exists()


@pytest.mark.parametrize(("device", "decodes", "gpu"), [("cuda", True, 1), ("cuda", False, None), ("cpu", True, None)])
def test_clips_are_decoded_on_the_gpu_if_it_can_decode(
    device: str, decodes: bool, gpu: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []

    def refuse_to_read(*_: object, gpu: int | None, **__: object) -> None:
        asked.append(gpu)
        raise VideoError("no frames here")

    for part in ("Ensemble", "Motion", "VoiceModels"):
        monkeypatch.setattr(analyze, part, lambda *_, **__: SimpleNamespace(n_pairs=0, models=[]))
    monkeypatch.setattr(findings, "FaceDetector", lambda *_, **__: None)
    monkeypatch.setattr(findings, "has_gpu_decoder", lambda: decodes)
    monkeypatch.setattr(findings, "current_gpu", lambda: 1)
    monkeypatch.setattr(findings, "read_clip", refuse_to_read)
    monkeypatch.setattr("dfdc.runtime.choose_device", lambda wanted, place: device)
    monkeypatch.setattr("dfdc.runtime.describe_runtime", lambda device: "a runtime")
    monkeypatch.setattr("cv2.setNumThreads", lambda _: None)  # which would affect later tests
    predictor, runtime = worker.load_analyzer(SETTINGS)
    assert predictor.analyze(Path("a.mp4"), 4).status == "unreadable"
    assert asked == [gpu]
    assert runtime == ("a runtime; NVDEC decodes H.264" if gpu is not None else "a runtime")


@pytest.mark.parametrize(
    ("quota", "n_cores"),
    [("150000 100000\n", 2), ("50000 100000", 1), ("900000 100000", 4), ("max 1", 4), ("", 4)],
)
def test_cpu_quota_of_a_container_limits_the_cores(
    quota: str, n_cores: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 1, 2, 3}, raising=False)
    assert limits.count_cores(tmp_path / "absent") == 4
    (tmp_path / "cpu.max").write_text(quota)
    assert limits.count_cores(tmp_path / "cpu.max") == n_cores


@pytest.mark.parametrize(("place", "gpu"), [(0, 0), (1, 1), (2, 0)])
def test_workers_are_distributed_over_several_gpus(place: int, gpu: int, monkeypatch: pytest.MonkeyPatch) -> None:
    chosen = pretend_gpus(monkeypatch, 2)
    assert choose_device("auto", place=place) == "cuda"
    assert chosen == [gpu]


def test_worker_that_ends_costs_no_clip() -> None:
    names = [f"{i}.mp4" for i in range(4)]
    assert {p.status for p in run(names, work=leave_after_one).values()} == {"ok"}


@pytest.mark.parametrize("name", ["fault.mp4", "crash.mp4", "stall.mp4"])
@pytest.mark.parametrize("n_workers", [1, 2])
def test_clip_that_failed_on_cuda_is_scored_on_the_cpu(
    name: str, n_workers: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("dfdc.run.plan.GRACE_S", 0.2)
    settings = WorkerSettings(weights=(), device="auto", clip_limit_s=2.0)
    found = run([name, *(f"{i}.mp4" for i in range(5))], work=fail_on_cuda, settings=settings, n_workers=n_workers)
    assert (found[name].label, found[name].status) == (0.75, "ok")
    assert {found[f"{i}.mp4"].label for i in range(5)} == {0.25}


def test_further_passes_stay_on_cuda_after_one_clip_failed_there(tmp_path: Path) -> None:
    known = {f"{i}.mp4": Prediction(f"{i}.mp4", 0.4, wanted=8, n_models=1, frames=8) for i in range(40)}
    clips = {name: tmp_path / name for name in ("fault.mp4", *known)}
    results = predict_clips(clips, SETTINGS, n_workers=2, deadline=NEVER, work=fail_one_clip, known=known)
    found = {p.filename: p for p in results}
    assert found["fault.mp4"].label == 0.75
    labels = [found[name].label for name in known]
    # If CUDA were abandoned, at most the pass in progress would be answered there.
    assert len(found) == 41 and labels.count(0.25) > 10 and set(labels) <= {0.25, 0.75}


@pytest.mark.parametrize("fault", ["fault", "crash"])
def test_permanently_failing_cuda_sends_the_rest_to_the_cpu(fault: str) -> None:
    names = [f"{fault}{i}.mp4" for i in range(6)] + [f"{i}.mp4" for i in range(6)]
    found = run(names, work=fail_on_cuda, settings=WorkerSettings(weights=(), device="cuda"), n_workers=1)
    assert {(p.label, p.status) for p in found.values()} == {(0.75, "ok")}
    assert sorted(found) == sorted(names)


def test_workers_that_fail_to_load_on_auto_are_started_on_the_cpu(quick_restarts: None) -> None:
    assert run(["a.mp4"], work=load_on_the_cpu_only)["a.mp4"].label == 0.75


def test_workers_that_fail_to_load_on_a_requested_device_end_the_run(quick_restarts: None) -> None:
    with pytest.raises(MachineError):
        run(["a.mp4"], work=load_on_the_cpu_only, settings=WorkerSettings(weights=(), device="cuda"))


def test_fixed_frames_reach_the_worker_and_the_record() -> None:
    found = run(["a.mp4"], work=echo_frames, settings=WorkerSettings(weights=(), n_frames=5))
    assert (found["a.mp4"].frames, found["a.mp4"].wanted) == (5, 5)


def test_known_clips_are_not_scored_again() -> None:
    known = {"a.mp4": Prediction("a.mp4", 0.5, wanted=32, n_models=1, frames=32)}
    assert list(run(["a.mp4", "b.mp4"], work=echo_frames, known=known)) == ["b.mp4"]
    assert run(["a.mp4"], work=die_at_once, known=known) == {}


def test_worker_that_dies_in_a_further_pass_costs_no_score() -> None:
    known = {"lethal.mp4": Prediction("lethal.mp4", 0.4, wanted=8, n_models=1, frames=8)}
    found = run(["lethal.mp4", "a.mp4"], work=echo_frames, known=known)
    assert found["lethal.mp4"] == Prediction("lethal.mp4", 0.4, wanted=16, n_models=1, frames=8)
    assert found["a.mp4"].frames == 16


def test_no_process_remains_when_the_consumer_stops_early() -> None:
    clips = {name: Path(name) for name in ("a.mp4", "hang.mp4", "hang2.mp4")}
    predictions = predict_clips(clips, SETTINGS, n_workers=2, deadline=NEVER, work=misbehave)
    next(predictions)
    predictions.close()
    assert multiprocessing.active_children() == []


def test_workers_keep_their_buffers_and_use_one_core() -> None:
    found = run(["a.mp4"], work=report_environment, n_workers=1)
    assert found["a.mp4"].reason == f"{2**24} 1"
    assert "MALLOC_TOP_PAD_" not in os.environ


@pytest.mark.parametrize(("asked", "n_workers"), [(None, 5), (2, 2)])
def test_more_workers_run_if_models_run_on_cuda(
    asked: int | None, n_workers: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pool, "count_cores", lambda: 4)
    started = []
    monkeypatch.setattr(pool, "start_worker", lambda *a: started.append(a) or start_worker(*a))
    names = [f"{i}.mp4" for i in range(12)]
    run(names, work=fail_on_cuda, n_workers=asked, settings=WorkerSettings(weights=(), device="auto"))
    assert len(started) == n_workers


def test_number_of_workers_fits_cores_and_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pool, "count_cores", lambda: 4)
    monkeypatch.setattr(limits, "count_memory", lambda: 10 * 2**30)
    started = []
    monkeypatch.setattr(pool, "start_worker", lambda *a: started.append(a[0]) or start_worker(*a))
    run(["a.mp4", "b.mp4"], n_workers=2)
    assert {(s.threads, s.memory_bytes) for s in started} == {(2, 4 * 2**30)}


@pytest.mark.parametrize(
    ("files", "membership", "expected"),
    [
        ({}, "", 8 * 2**30),
        ({"memory.max": "2147483648"}, "", 2 * 2**30),
        ({"memory.max": "max"}, "", 8 * 2**30),
        ({"memory/memory.limit_in_bytes": "1073741824"}, "", 2**30),
        ({"memory/a/b/memory.limit_in_bytes": "1073741824"}, "4:memory:/a/b/c\n", 2**30),
        ({"a/memory.max": "1073741824"}, "0::/a\n", 2**30),
        ({"b/memory.max": "1073741824"}, "0::/a\n", 8 * 2**30),
        ({"memory/memory.limit_in_bytes": "9223372036854771712"}, "", 8 * 2**30),
    ],
)
def test_memory_limit_of_a_container_counts(tmp_path: Path, files: dict, membership: str, expected: int) -> None:
    (tmp_path / "meminfo").write_text(f"MemTotal: {8 * 2**20} kB\nMemFree: 1 kB\n")
    (tmp_path / "membership").write_text(membership)
    for name, text in files.items():
        (tmp_path / "groups" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "groups" / name).write_text(text)
    assert limits.count_memory(tmp_path / "groups", tmp_path / "meminfo", tmp_path / "membership") == expected


def test_clip_that_needs_too_much_memory_gets_its_row(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "count_memory", lambda: 2**20)
    found = run(["hungry.mp4", "a.mp4"], work=limited, n_workers=1)
    assert found["hungry.mp4"].reason == "MemoryError" and found["a.mp4"].status == "ok"


def test_workers_end_when_the_supervisor_ends_in_any_way(tmp_path: Path) -> None:
    script = f"""
import os, signal
from dfdc.deadline import NEVER
from dfdc.run.pool import predict_clips
from dfdc.run.spawn import start_worker
from dfdc.run.worker import WorkerSettings
from tests.workers import misbehave
from pathlib import Path
for found in predict_clips({{n: Path(n) for n in ("a", "hang")}}, WorkerSettings(()), n_workers=1, deadline=NEVER,
                           work=misbehave):
    import multiprocessing
    Path({str(tmp_path / "pid")!r}).write_text(str(multiprocessing.active_children()[0].pid))
    os.kill(os.getpid(), signal.SIGKILL)
"""
    root = Path(__file__).resolve().parents[1]
    subprocess.run([sys.executable, "-c", script], cwd=root, check=False)
    worker_id = int((tmp_path / "pid").read_text())
    for _ in range(500):
        if not Path(f"/proc/{worker_id}").exists() or " Z " in Path(f"/proc/{worker_id}/stat").read_text():
            return
        time.sleep(0.01)
    pytest.fail("the worker outlives its supervisor")


@pytest.mark.parametrize(("models", "n_models"), [("all", 2), ("first", 1)])
@pytest.mark.parametrize("n_frames", [16, None])
def test_requested_models_run_whatever_the_number_of_frames(models: str, n_models: int, n_frames: int | None) -> None:
    face = ModelSpec("efficientnet-lite0", 32)
    weights = (WeightsFile(Path("a"), "a", face), WeightsFile(Path("b"), "b", face, further=True))
    settings = WorkerSettings(weights=weights, n_frames=n_frames, models=models)
    assert [file.digest for file in settings.weights] == ["a", "b"][:n_models]
    assert run(["a.mp4"], settings=settings)["a.mp4"].n_models == n_models
