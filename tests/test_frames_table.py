"""dfdc.report.frames: CSV and Parquet tables of all frames, in bounded memory; a missing package is reported."""

from __future__ import annotations

import csv
import sys
from pathlib import Path

import numpy as np
import pytest

import dfdc
from dfdc.analysis_files import write_analysis
from dfdc.cli import main
from dfdc.errors import InputError
from dfdc.report import frames as frames_module
from dfdc.report.frames import write_frames


def clip(name: str, *lengths: int) -> dfdc.Analysis:
    """An analysis with one track of each of these lengths."""
    tracks = tuple(
        dfdc.FaceTrack(
            frames=np.arange(n) * 2,
            times_s=np.arange(n) / 3,
            boxes=np.arange(4 * n, dtype=np.float32).reshape(n, 4) + 0.25,
            found=np.arange(n) % 2 == 0,
            angles=np.zeros(n, np.float32),
            logits=np.linspace(-2, 2, n),
            detection_score=0.9,
        )
        for n in lengths
    )
    return dfdc.Analysis(name, tracks=tracks, times_s=np.arange(max(lengths, default=0) * 2))


def test_csv_has_one_row_per_frame_and_face(tmp_path: Path) -> None:
    clips = [clip("a, b.mp4", 3, 1), clip("none.mp4"), clip('"c".mp4', 2)]
    assert write_frames(clips, tmp_path / "frames.csv") == 6
    with open(tmp_path / "frames.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [(row["filename"], row["person"], row["frame"]) for row in rows] == [
        *(("a, b.mp4", "0", frame) for frame in "024"),
        ("a, b.mp4", "1", "0"),
        *(('"c".mp4', "0", frame) for frame in "02"),
    ]
    # exp(2) / (1 + exp(2)) = 0.880797
    assert rows[2] == {
        **{"filename": "a, b.mp4", "person": "0", "frame": "4", "time_s": "0.667"},
        **{"x0": "8.250", "y0": "9.250", "x1": "10.250", "y1": "11.250", "found": "True", "score": "0.880797"},
    }


def test_parquet_equals_the_data_frame_even_over_many_blocks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    parquet = pytest.importorskip("pyarrow.parquet")
    pd = pytest.importorskip("pandas")
    monkeypatch.setattr(frames_module, "BLOCK_ROWS", 4)
    clips = [clip(f"{n}.mp4", n, 2) for n in range(1, 6)]
    assert write_frames(iter(clips), tmp_path / "frames.parquet") == 25
    assert parquet.ParquetFile(tmp_path / "frames.parquet").num_row_groups == 7
    table = pd.read_parquet(tmp_path / "frames.parquet")
    wanted = pd.concat([each.to_dataframe() for each in clips], ignore_index=True)
    pd.testing.assert_frame_equal(table, wanted, check_dtype=False)


def test_parquet_without_a_face_and_with_a_non_unicode_name(tmp_path: Path) -> None:
    parquet = pytest.importorskip("pyarrow.parquet")
    assert write_frames([clip("none.mp4")], tmp_path / "none.parquet") == 0
    assert parquet.read_table(tmp_path / "none.parquet").num_rows == 0
    write_frames([clip("\udcff.mp4", 1)], tmp_path / "odd.parquet")
    assert parquet.read_table(tmp_path / "odd.parquet")["filename"].to_pylist() == ["?.mp4"]


def test_missing_pyarrow_is_reported_before_anything_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    write_analysis(tmp_path, clip("a.mp4", 2))
    page = tmp_path / "report.html"
    assert main(["report", str(tmp_path), "--out", str(page), "--table", str(tmp_path / "frames.parquet")]) == 1
    assert "pip install 'dfdc[parquet]'" in capsys.readouterr().err
    assert not page.exists() and not (tmp_path / "frames.parquet").exists()


def test_other_file_types_and_unwritable_files_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"\.csv or \.parquet"):
        write_frames([clip("a.mp4", 1)], tmp_path / "frames.xlsx")
    with pytest.raises(InputError, match="name another file"):
        write_frames([clip("a.mp4", 1)], tmp_path / "absent" / "frames.csv")


def test_report_command_writes_page_and_table(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_analysis(tmp_path, clip("a.mp4", 2))
    page, table = tmp_path / "report.html", tmp_path / "frames.csv"
    assert main(["report", str(tmp_path), "--out", str(page), "--table", str(table)]) == 0
    assert "2 rows" in capsys.readouterr().out
    assert page.is_file() and len(table.read_text().splitlines()) == 3
