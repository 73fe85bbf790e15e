"""tools/research/simulate_cluster.py: the simulation agrees with queueing theory and with calculations by hand."""

from __future__ import annotations

from math import factorial
from pathlib import Path

import numpy as np
import pytest

from dfdc.files import write_csv
from tools.research.simulate_cluster import DAY_S, Setup, main, simulate


def erlang_wait_s(rate: float, service_s: float, n_servers: int) -> float:
    """The mean wait of an M/M/c queue (Erlang's C formula)."""
    load = rate * service_s
    top = load**n_servers / factorial(n_servers) * n_servers / (n_servers - load)
    waits = top / (sum(load**k / factorial(k) for k in range(n_servers)) + top)
    return waits * service_s / (n_servers - load)


@pytest.mark.parametrize("stage", [0, 1])
def test_mean_latency_agrees_with_queueing_theory(stage: int) -> None:
    """One stage takes exponential times, the other none. Over 30,000 clips the mean is within 6 % of the formula."""
    times = np.random.default_rng(1).exponential(2.0, 20_000)
    rate, zeros = 1.6, np.zeros_like(times)
    setup = Setup(rate * DAY_S, 4, 4, waiting=10**9)
    pair = (times, zeros) if stage == 0 else (zeros, times)
    course = simulate(*pair, setup, n_clips=30_000)
    expected = erlang_wait_s(rate, times.mean(), 4) + times.mean()
    assert course.latencies_s.mean() == pytest.approx(expected, rel=0.06)
    busy = (course.scouts_busy, course.judges_busy)[stage]
    assert busy == pytest.approx(rate * times.mean() / 4, rel=0.03)


def test_clip_takes_the_time_of_both_stages_if_nothing_waits() -> None:
    course = simulate(np.array([2.0]), np.array([3.0]), Setup(1.0, 1, 1), n_clips=20)
    assert course.latencies_s == pytest.approx(5.0)


def test_slow_judges_hold_back_scouts() -> None:
    """All clips arrive at once; one scout takes 1 s, one judge 4 s, and at most two findings may wait."""
    setup = Setup(1e12, 1, 1, waiting=2)
    course = simulate(np.array([1.0]), np.array([4.0]), setup, n_clips=5)
    assert course.latencies_s.max() == pytest.approx(1 + 5 * 4, abs=1e-3)
    # The scout works 5 s of 21; the rest of the time it waits.
    assert course.scouts_busy == pytest.approx(5 / 21, abs=1e-3)
    assert course.longest_queue == 4


def test_lost_nodes_cost_time_but_no_clip() -> None:
    times = np.array([1.0, 2.0, 3.0])
    setup = Setup(0.5 * DAY_S, 16, 8, per_node=4)
    calm = simulate(times, times / 2, setup, n_clips=3_000)
    rough = simulate(
        times, times / 2, Setup(0.5 * DAY_S, 16, 8, per_node=4, mtbf_s=600.0, repair_s=60.0), n_clips=3_000
    )
    assert calm.n_lost_nodes == calm.n_again == 0
    assert rough.n_lost_nodes > 20
    assert rough.n_again > 0
    assert not np.isnan(rough.latencies_s).any()
    assert rough.latencies_s.mean() > calm.latencies_s.mean()


def test_tool_reads_the_times_of_a_run(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    path = tmp_path / "predictions.csv"
    header = ("filename", "label", "status", "n_models", "decode_s", "detect_s", "crop_s", "score_s")
    write_csv(path, header, [("a.mp4", 0.5, "ok", 2, 0.9, 0.3, 0.1, 0.8), ("b.mp4", 0.5, "unreadable", 0, 0, 0, 0, 0)])
    assert main([str(path), "--clips", "200", "--mtbf-h", "1"]) == 0
    out = capsys.readouterr().out
    assert "1 measured clips: 1.30 s to find faces, 0.80 s to judge them" in out
    assert "nodes lost" in out
    assert main([str(tmp_path / "absent.csv")]) == 1
