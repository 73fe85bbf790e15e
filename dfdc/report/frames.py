"""Analyses -> a table with one row per frame and face, as CSV or Parquet."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING

from dfdc.analysis import FRAME_COLUMNS, Analysis
from dfdc.errors import InputError, OutputError
from dfdc.files import drafted, write_csv

if TYPE_CHECKING:
    import pyarrow

SUFFIXES = (".csv", ".parquet")
# Number of rows that are held in memory, and that make a row group of a Parquet file.
BLOCK_ROWS = 50_000


def check_table(out: Path) -> None:
    """Check, before any work, that a table of this name can be made.

    Raises:
        InputError: the name ends in neither .csv nor .parquet, or Parquet is wanted and pyarrow is not installed.
    """
    if out.suffix.lower() not in SUFFIXES:
        raise InputError(f"{out}: tables are written as {' or '.join(SUFFIXES)}; name a file that ends so")
    if out.suffix.lower() == ".parquet":
        _import_pyarrow(out)


def write_frames(analyses: Iterable[Analysis], out: Path) -> int:
    """Write the table of `Analysis.to_dataframe` for many clips; only some of them are in memory at a time.

    Args:
        analyses: one per clip; a clip without a face has no row.
        out: file to write, ending in .csv or .parquet (see `check_table`). CSV states scores with six decimals and
            other numbers with three; Parquet holds them as they were calculated.

    Returns:
        The number of rows.

    Raises:
        InputError: see `check_table`.
        OutputError: the file cannot be written.
    """
    check_table(out)
    n_rows = 0

    def count(rows: Iterable[list[object]]) -> Iterator[list[object]]:
        nonlocal n_rows
        for row in rows:
            n_rows += 1
            yield row

    rows = count(row for analysis in analyses for row in analysis.frame_rows())
    try:
        if out.suffix.lower() == ".csv":
            write_csv(out, FRAME_COLUMNS, (_round(row) for row in rows))
        else:
            _write_parquet(rows, out)
    except OSError as error:
        reason = error.strerror or error
        raise OutputError(f"{out}: the table cannot be written ({reason}); name another file") from error
    return n_rows


def _round(row: list[object]) -> list[object]:
    *others, score = row
    return [*(f"{value:.3f}" if isinstance(value, float) else value for value in others), f"{score:.6f}"]


def to_arrow(rows: Iterable[Sequence[object]]) -> pyarrow.Table:
    """The rows of `Analysis.frame_rows` as an Arrow table, with the columns `FRAME_COLUMNS`; there may be no row."""
    import pyarrow as pa

    box = [(side, pa.float32()) for side in ("x0", "y0", "x1", "y1")]
    schema = pa.schema(
        [
            ("filename", pa.string()),
            ("person", pa.int32()),
            ("frame", pa.int32()),
            ("time_s", pa.float64()),
            *box,
            ("found", pa.bool_()),
            ("score", pa.float64()),
        ]
    )
    columns = [list(column) for column in zip(*rows, strict=True)] or [[] for _ in schema]
    # A file name may hold bytes that are no text, which Arrow's texts cannot.
    columns[0] = [name.encode("utf-8", "replace").decode() for name in columns[0]]
    return pa.table(columns, schema=schema)


def _write_parquet(rows: Iterator[list[object]], out: Path) -> None:
    _import_pyarrow(out)
    import pyarrow.parquet

    schema = to_arrow([]).schema
    with drafted(out) as draft, pyarrow.parquet.ParquetWriter(draft, schema, compression="zstd") as writer:
        for first in rows:
            writer.write_table(to_arrow([first, *islice(rows, BLOCK_ROWS - 1)]))


def _import_pyarrow(out: Path) -> pyarrow:
    try:
        import pyarrow
    except ImportError as error:
        raise InputError(
            f"{out}: writing Parquet needs pyarrow ({error}); pip install 'dfdc[parquet]', or name a file that ends in "
            ".csv"
        ) from error
    return pyarrow
