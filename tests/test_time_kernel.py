"""tools/bench/time_kernel.py: its arithmetic, its measurement of processes, and runs of a fake and the real kernel."""

from __future__ import annotations

import argparse
import json
import math
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from clips import write_clip

from dfdc.errors import InputError, MachineError, SettingError
from dfdc.prediction import Prediction
from dfdc.run.processes import measure_tree
from dfdc.run.submission import Submission
from tools.bench.time_kernel import (
    PlannedRun,
    Timing,
    describe,
    main,
    parse_duration,
    read_so_far,
    time_kernel,
    to_json,
)

ROOT = Path(__file__).resolve().parent.parent
JSON_KEYS = {
    *("seconds_per_clip", "p95_seconds_per_clip", "core_seconds_per_clip", "floor_seconds_per_clip"),
    *("ratio_to_floor", "startup_seconds", "peak_rss_mb", "projected_hours", "fits"),
}
needs_proc = pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="needs Linux's /proc")
# Four clips take 10 s, of which 2 are start-up: 2 s per clip. Of 14 core-seconds 3 belong to the start-up and 4 x 2 to
# the stages, so 3 remain: 0.75 per clip.
TIMING = Timing(
    predictions=(
        Prediction("a", frames=16, seconds=1.0, decode_s=1.0, detect_s=0.5, crop_s=0.125, score_s=0.375),
        Prediction("b", frames=16, seconds=2.0, decode_s=1.0, detect_s=0.5, crop_s=0.125, score_s=0.375),
        Prediction("c", frames=16, seconds=3.0, decode_s=1.0, detect_s=0.5, crop_s=0.25, score_s=0.25),
        Prediction("d", frames=16, seconds=6.0, decode_s=1.0, detect_s=1.0, status="no_face"),
    ),
    wall_s=10.0,
    cpu_s=14.0,
    startup_s=2.0,
    startup_cpu_s=3.0,
    peak_mb=1500.0,
    floor_s=0.8,
)

# Answers at once and records its arguments; with --hold it keeps memory for long enough to be measured.
FAKE_KERNEL = """
import csv, json, os, subprocess, sys, time
from pathlib import Path
clips = [Path(name) for name in sys.argv[sys.argv.index("--") + 1 :]]
out = Path(sys.argv[sys.argv.index("--out") + 1])
if "--fail" in sys.argv:
    sys.exit("no luck")
rows = [[c.name, 0.5, "ok" if c.stat().st_size else "unreadable", "", 3 if c.stat().st_size else 0] for c in clips]
with open(out.with_name("predictions.csv"), "w", newline="") as file:
    header = "filename label status reason frames seconds decode_s detect_s score_s new_column".split()
    csv.writer(file).writerows([header, *([*row, 0, 0, 0, 0, "?"] for row in rows)])
seen = {"clips": [c.name for c in clips], "cores": len(os.sched_getaffinity(0)), "argv": sys.argv[1:]}
seen["network"] = os.readlink("/proc/self/ns/net")
Path(__file__).with_name("seen.json").write_text(json.dumps(seen))
if "--child-holds" in sys.argv:
    subprocess.run([sys.executable, "-c", "import time; held = b'1' * 400_000_000; time.sleep(60)"])
if "--hold" in sys.argv:
    held = b"1" * 50_000_000
    time.sleep(1)
"""


@pytest.fixture
def fake(tmp_path: Path) -> list[str]:
    path = tmp_path / "fake.py"
    path.write_text(FAKE_KERNEL)
    return [sys.executable, str(path)]


@pytest.mark.parametrize(("text", "seconds"), [("9h", 32400), ("1.5h", 5400), ("30m", 1800), ("3600s", 3600)])
def test_durations_have_a_unit(text: str, seconds: float) -> None:
    assert parse_duration(text) == seconds


@pytest.mark.parametrize("text", ["", "9", "h", "-1h", "9d", "1h30", "nanh", "9 h"])
def test_text_that_is_no_duration_is_refused_with_examples(text: str) -> None:
    with pytest.raises(argparse.ArgumentTypeError, match="9h, 30m or 3600s"):
        parse_duration(text)


def test_times_per_clip_exclude_the_start_up() -> None:
    assert TIMING.seconds_per_clip == 2.0
    assert TIMING.core_seconds == (1.0, 0.625, 0.125, 0.25, 0.75)


def test_clips_without_a_frame_are_excluded_from_the_cost() -> None:
    broken = [Prediction(f"{number}.mp4", status="unreadable", seconds=0.01) for number in range(8)]
    both = replace(TIMING, predictions=(*TIMING.predictions, *broken))
    assert both.seconds_per_clip == TIMING.seconds_per_clip
    assert (both.core_seconds, both.worker_seconds) == (TIMING.core_seconds, TIMING.worker_seconds)


def test_percentiles_are_of_the_time_in_a_worker() -> None:
    # Of 1, 2, 3, 6 the 95th percentile lies at 0.95 x 3 = 2.85 steps: 3 + 0.85 x 3.
    assert TIMING.worker_seconds == pytest.approx((3.0, 2.5, 5.55, 6.0))


def test_other_time_is_never_negative() -> None:
    one = Timing(TIMING.predictions[:1], 3.0, 1.5, 1.0, 0.0, 100.0, 1.0)
    assert one.core_seconds == (1.0, 0.5, 0.125, 0.375, 0.0)


@pytest.mark.parametrize(
    ("plan", "fits", "verdict"),
    [
        (PlannedRun(), True, "2.22 h of 9.00 h: fits with 75% to spare"),
        (PlannedRun(n_clips=4000, limit_s=8002.0), True, "fits with 0% to spare"),
        (PlannedRun(n_clips=4000, limit_s=8001.9), False, "2.22 h of 2.22 h: does not fit"),
        (PlannedRun(n_clips=20_000), False, "11.11 h of 9.00 h: does not fit"),
        (PlannedRun(memory_gb=1.5), True, "fits with 75% to spare"),
        (PlannedRun(memory_gb=1.4), False, "does not fit in 1.4 GB of memory"),
    ],
)
def test_projection_and_verdict(plan: PlannedRun, fits: bool, verdict: str) -> None:
    # Start-up once, then 2 s a clip: 4,000 clips take 8,002 s.
    assert TIMING.projected_s(plan) == 2.0 + 2.0 * plan.n_clips
    assert TIMING.fits(plan) is fits
    assert describe(TIMING, plan).endswith(verdict)


def test_table_names_the_failures() -> None:
    assert "1 no_face failed" in describe(TIMING, PlannedRun())


def test_json_is_one_line_with_the_documented_keys() -> None:
    line = to_json(TIMING, PlannedRun())
    assert "\n" not in line
    assert json.loads(line) == {
        "seconds_per_clip": 2.0,
        "p95_seconds_per_clip": 5.55,
        "core_seconds_per_clip": 2.75,
        "floor_seconds_per_clip": 0.8,
        "ratio_to_floor": 2.5,
        "startup_seconds": 2.0,
        "peak_rss_mb": 1500.0,
        "projected_hours": 2.223,
        "fits": True,
    }


@pytest.mark.parametrize("values", [{"n_clips": 0}, {"limit_s": 0.0}, {"limit_s": math.nan}, {"memory_gb": -1.0}])
def test_plan_without_clips_time_or_memory_is_refused(values: dict[str, float]) -> None:
    with pytest.raises(SettingError, match="above 0"):
        PlannedRun(**values)


def test_kernel_output_is_read_back(tmp_path: Path) -> None:
    assert read_so_far(tmp_path / "predictions.csv") == []
    submission = Submission(tmp_path / "submission.csv", ["a, b.mp4", "c.mp4", "later.mp4"])
    written = [
        Prediction("a, b.mp4", frames=16, seconds=1.25, decode_s=0.5, detect_s=0.25, crop_s=0.375, score_s=0.125),
        Prediction("c.mp4", status="unreadable", reason='says "no"'),
    ]
    for prediction in written:
        submission.record(prediction)
    submission.save()
    assert read_so_far(tmp_path / "predictions.csv") == written


@needs_proc
def test_process_tree_includes_memory_and_cpu_time_of_grandchildren() -> None:
    """A child uses CPU time and ends, and a grandchild holds 200 MB until it is told to end."""
    script = """
import subprocess, sys
hog = "block = b'x' * 200_000_000; print(flush=True); input()"
subprocess.run([sys.executable, "-c", "import time\\nwhile time.process_time() < 0.3: pass"])
subprocess.run([sys.executable, "-c", hog])
"""
    before = measure_tree(os.getpid())
    child = subprocess.Popen([sys.executable, "-c", script], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    try:
        child.stdout.readline()
        cpu_s, peak = measure_tree(child.pid)
        assert cpu_s >= 0.25
        assert 200e6 < peak < 400e6
        assert measure_tree(os.getpid())[1] >= before[1] + 150e6
    finally:
        child.communicate(b"\n")
    assert measure_tree(child.pid) == (0.0, 0)


@needs_proc
def test_clips_are_repeated_under_new_names_on_the_chosen_cores_without_network(
    fake: list[str], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    clips = [write_clip(tmp_path / "a.mp4"), tmp_path / "b.mp4"]
    clips[1].touch()
    timing = time_kernel(clips, [*fake, "--frames=3", "--hold"], n_clips=3, cores=1)
    seen = json.loads((tmp_path / "seen.json").read_text())
    assert seen["clips"] == ["000000-a.mp4", "000001-b.mp4", "000002-a.mp4"]
    assert seen["cores"] == 1
    assert "--frames=3" in seen["argv"]
    assert [p.status for p in timing.predictions] == ["ok", "unreadable", "ok"]
    assert timing.floor_s > 0
    assert 0 < timing.startup_s <= timing.wall_s
    assert 50 < timing.peak_mb < 200
    assert (seen["network"] == os.readlink("/proc/self/ns/net")) is ("network stays on" in capfd.readouterr().err)


@needs_proc
def test_largest_process_is_killed_if_all_exceed_the_memory_limit(fake: list[str], tmp_path: Path) -> None:
    """A run that continues without it is timed; a run with no other process does not fit."""
    clip = write_clip(tmp_path / "a.mp4")
    timing = time_kernel([clip], [*fake, "--child-holds"], cores=1, memory_gb=0.2)
    assert timing.n_killed == 1
    assert timing.peak_mb > 200
    assert "MB, 1 killed of its processes" in describe(timing, PlannedRun(memory_gb=0.2))
    assert not timing.fits(PlannedRun(memory_gb=0.2))
    with pytest.raises(MachineError, match=r"does not fit in 0\.04 GB of memory: it ended with code -9 after 1 "):
        time_kernel([clip], [*fake, "--hold"], cores=1, memory_gb=0.04)


@needs_proc
def test_failing_kernel_is_reported(fake: list[str], tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(InputError, match="the kernel ended with code 1"):
        time_kernel([write_clip(tmp_path / "a.mp4")], [*fake, "--fail"], cores=1)
    assert "no luck" in capfd.readouterr().err


@needs_proc
def test_clips_without_a_frame_are_reported(fake: list[str], tmp_path: Path) -> None:
    (tmp_path / "a.mp4").touch()
    with pytest.raises(InputError, match="no clip gave a frame"):
        time_kernel([tmp_path / "a.mp4"], fake, cores=1)


@needs_proc
@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--cores", "100000"], "--cores 100000: allowed are 1 to"),
        (["--match", "b*", "--cores", "1"], "is left to run"),
    ],
)
def test_mistake_prints_one_line_and_exits_with_1(
    flags: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "a.mp4").touch()
    assert main([str(tmp_path), *flags]) == 1
    error = capsys.readouterr().err
    assert error.startswith("time_kernel: ")
    assert message in error
    assert error.count("\n") == 1


@needs_proc
def test_real_kernel_is_timed_and_judged(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    if not list((ROOT / "weights").glob("*.safetensors")):
        pytest.skip("weights/ holds no weights")
    write_clip(tmp_path / "a.mp4")
    flags = ["--repeat", "2", "--cores", "1", "--device", "cpu", "--frames", "2"]
    assert main([str(tmp_path), *flags, "--clips", "1000000", "--limit", "1s", "--memory-gb", "100"]) == 3
    table, line = capsys.readouterr().out.rstrip("\n").rsplit("\n", 1)
    figures = json.loads(line)
    assert set(figures) == JSON_KEYS
    assert figures["fits"] is False
    assert min(value for key, value in figures.items() if key != "fits") >= 0
    assert figures["peak_rss_mb"] > 50
    assert "2 no_face failed" in table
    assert main([str(tmp_path), *flags, "--memory-gb", "0.02"]) == 1
    assert "the kernel does not fit in 0.02 GB of memory" in capsys.readouterr().err
