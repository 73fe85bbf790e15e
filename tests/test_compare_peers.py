"""tools/bench/compare_peers.py: the real programs of this kernel and of a published recipe on the same clips."""

from __future__ import annotations

from pathlib import Path

import pytest

from tools.bench import compare_peers
from tools.bench.compare_peers import Cost, format_table

SAMPLES = Path(__file__).resolve().parent.parent / "samples"


def test_ratios_use_the_rows_own_reading_time_or_else_the_mean() -> None:
    costs = [
        Cost("fast", 1.0, 1.5, 0.5, 800, 1.0),
        Cost("slow", 3.0, 5.0, 1.0, 1200, 1.5),
        Cost("other", 9.0, 17.0, None, 2500, 6.0),
    ]
    lines = format_table(costs).splitlines()
    assert lines[2] == "| reading alone | 0.75 | 1 | | | |"
    assert [line.split(" | ")[2] for line in lines[3:]] == ["2.00", "3.00", "12.00"]
    assert lines[5] == "| other | 9.00 | 12.00 | 17.00 | 2.5 GB | 6.0 s |"


@pytest.mark.slow
def test_every_way_of_scoring_is_measured(capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("facenet_pytorch")
    clip = sorted(SAMPLES.glob("*.mp4"))[0]
    assert compare_peers.main([str(clip), "--repeat", "1", "--peer-frames", "2", "--cores", "1"]) == 0
    rows = [line.split(" | ") for line in capsys.readouterr().out.splitlines()[2:]]
    assert [row[0].strip("| ") for row in rows[1:-1]] == list(compare_peers.SETTINGS)
    assert "MTCNN" in rows[-1][0]
    assert all(float(row[3]) > 0 for row in rows[1:])  # core-seconds
