"""dfdc.run.watchdog: a process ends in time, whatever it waits for."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from dfdc.deadline import NEVER, Deadline, Pace
from dfdc.run.watchdog import ending_in_time

ROOT = Path(__file__).resolve().parents[1]
WAIT_FOR_A_PIPE = """
import sys
from dfdc.deadline import Deadline
from dfdc.run.watchdog import ending_in_time
with ending_in_time(Deadline.after(0.2)):
    open(sys.argv[1])
"""


def test_process_that_waits_for_a_pipe_is_ended(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    command = [sys.executable, "-c", WAIT_FOR_A_PIPE, str(tmp_path / "pipe")]
    ended = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60, check=False)
    assert ended.returncode == 1 and ended.stderr


@pytest.mark.parametrize("late", [True, False])
def test_only_a_late_block_is_ended(late: bool) -> None:
    now, ended = [0.0], threading.Event()
    with ending_in_time(Deadline(0.1, lambda: now[0]), end=ended.set):
        if late:
            now[0] = 1.0
            assert ended.wait(10)
    now[0] = 1.0
    assert ended.is_set() == late


def test_time_counts_from_the_start_of_the_process() -> None:
    script = "import time; from dfdc.deadline import process_start_s as start; print(time.monotonic() - start())"
    began_s = time.monotonic()
    ended = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=True)
    assert (
        0.01 < float(ended.stdout) <= time.monotonic() - began_s + 0.02
    )  # the system counts in hundredths of a second


def test_run_without_a_limit_is_not_watched() -> None:
    before = threading.active_count()
    with ending_in_time(NEVER):
        assert threading.active_count() == before


@pytest.mark.parametrize(
    ("cost_s", "least_s", "times"), [(1.0, 0.0, 6), (0.0, 10.0, 10), (1.0, 50.0, 2), (0.0, 0.0, 100)]
)
def test_paced_work_takes_at_most_its_share_of_the_time(cost_s: float, least_s: float, times: int) -> None:
    """In 100 seconds, a share of a twentieth allows work every 20th second, or at the requested interval."""
    now, n_done = [0.0], 0
    pace = Pace(0.05, least_s, lambda: now[0])
    while now[0] < 100:
        if pace.due():
            n_done += 1
            with pace.measured():
                now[0] += cost_s
        now[0] += 1.0 if cost_s == 0 else 0.5
    assert abs(n_done - times) <= 1
