"""Results as Parquet: one row for each clip, in parts that are written whole, and the per-frame table beside them.

results/
    job.json                     what the job is: written before the first part
    job/clips-000000.txt         its clips
    predictions/part-000001-000000.parquet
    frames/part-000001-000000.parquet     on request: one row for each frame and face
    complete.json                written at the end, when every clip has exactly one row

A part of predictions is the commit: a part of frames without its twin does not count, and is written over.
"""

from __future__ import annotations

import io
import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, fields
from functools import cache

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from dfdc.analysis import Analysis
from dfdc.cluster.lease import Lease
from dfdc.cluster.places import Place, persist
from dfdc.errors import InputError
from dfdc.prediction import Prediction
from dfdc.report.frames import to_arrow

PREDICTIONS, FRAMES, COMPLETE = "predictions", "frames", "complete.json"
# In a row on its way to the sink: the clip's part of the per-frame table, as Arrow's stream.
FRAME_ROWS = "frame_rows"


@cache
def row_schema() -> pa.Schema:
    """The columns of predictions: `line`, those of predictions.csv with its order, and `models`."""
    kinds = {str: pa.string(), int: pa.int32(), float: pa.float64()}
    columns = [("line", pa.int64()), ("filename", pa.string())]
    for column in fields(Prediction)[1:]:
        columns.append((column.name, pa.float64() if column.default is None else kinds[type(column.default)]))
    return pa.schema([*columns, ("models", pa.string())])


def to_table(
    lines: Sequence[int], analyses: Sequence[Analysis], *, models: Sequence[str], per_frame: bool = False
) -> pa.Table:
    """The rows of clips.

    Args:
        lines: their lines in the job's list of clips, from 0.
        analyses: of the clips.
        models: names of the ensemble's models; those that answered stand in the row.
        per_frame: whether the rows carry the clip's part of the per-frame table.
    """
    rows = [
        {"line": line, **asdict(analysis.prediction), "models": " ".join(models[: analysis.n_models])}
        for line, analysis in zip(lines, analyses, strict=True)
    ]
    for row in rows:
        for name in ("filename", "reason", "notes"):
            row[name] = str(row[name]).encode("utf-8", "backslashreplace").decode()
    table = pa.Table.from_pylist(rows, schema=row_schema())
    if per_frame:
        parts = pa.array([_frame_rows(analysis) for analysis in analyses], pa.binary())
        table = table.append_column(FRAME_ROWS, parts)
    return table


def _frame_rows(analysis: Analysis) -> bytes:
    frames = to_arrow(analysis.frame_rows())
    stream = pa.BufferOutputStream()
    with pa.ipc.new_stream(stream, frames.schema) as writer:
        writer.write_table(frames)
    return stream.getvalue().to_pybytes()


class Sink:
    """Writes the parts of one run of a job."""

    def __init__(self, place: Place, lease: Lease, *, n_clips: int) -> None:
        """Read which clips have a row.

        Args:
            place: the folder of results.
            lease: of this run.
            n_clips: number of the job's clips.

        Raises:
            InputError: a part cannot be read, or a clip has two rows.
        """
        self.place, self._lease, self._n_parts = place, lease, 0
        self.done = np.zeros(n_clips, bool)
        for name in place.names(PREDICTIONS):
            self._mark(read_part(place, name, columns=["line"])["line"].to_numpy(), name)

    @property
    def n_done(self) -> int:
        return int(self.done.sum())

    def write(self, table: pa.Table) -> pa.Table:
        """Write rows as one part; a clip that has a row already, or has come twice, gets no second one.

        Ray repeats the work of lost nodes, and what it repeats may be divided into other blocks than before.

        Args:
            table: see `to_table`.

        Returns:
            The rows that were written.

        Raises:
            MachineError: the part cannot be written, or another job has taken over.
        """
        name = f"part-{self._lease.number:06d}-{self._n_parts:06d}.parquet"
        lines = table["line"].to_numpy()
        first = np.zeros(len(lines), bool)
        first[np.unique(lines, return_index=True)[1]] = True
        table = table.filter(pa.array(first & ~self.done[lines])).combine_chunks()
        if not table.num_rows:
            return table
        self._mark(table["line"].to_numpy(), name)
        self._lease.check()
        if FRAME_ROWS in table.column_names:
            streams = table[FRAME_ROWS].to_pylist()
            frames = pa.concat_tables([pa.ipc.open_stream(stream).read_all() for stream in streams])
            self.place.write(f"{FRAMES}/{name}", _to_parquet(frames))
            table = table.drop_columns([FRAME_ROWS])
        self.place.write(f"{PREDICTIONS}/{name}", _to_parquet(table))
        self._n_parts += 1
        return table

    def finish(self) -> None:
        """Read all parts again, check that every clip has exactly one row, and mark the results as complete.

        Raises:
            InputError: a clip has no row, or two.
        """
        check = Sink(self.place, self._lease, n_clips=len(self.done))
        if check.n_done < len(self.done):
            line = int(np.flatnonzero(~check.done)[0])
            raise InputError(
                f"{self.place.url}: {len(self.done) - check.n_done} of {len(self.done)} clips have no row, such as "
                f"that of line {line}; run the same command again"
            )
        kept = set(self.place.names(PREDICTIONS))
        for name in self.place.names(FRAMES):
            if name not in kept:  # its run was killed before the commit
                self.place.remove(f"{FRAMES}/{name}")
        self.place.write(COMPLETE, json.dumps({"rows": len(self.done), "parts": len(kept)}).encode())

    def _mark(self, lines: np.ndarray, name: str) -> None:
        known = (lines >= 0) & (lines < len(self.done))
        if not known.all():
            raise InputError(
                f"{self.place.full(PREDICTIONS)}/{name}: has the line {int(lines[~known][0])}, which the job does not "
                "have; another job wrote here: choose another --out"
            )
        twice = lines[self.done[lines]].tolist() or [line for line, n in Counter(lines.tolist()).items() if n > 1]
        if twice:
            raise InputError(
                f"{self.place.full(PREDICTIONS)}/{name}: line {twice[0]} has a row already; two jobs wrote here: "
                "choose another --out"
            )
        self.done[lines] = True


def read_part(place: Place, name: str, *, columns: Sequence[str] | None = None) -> pa.Table:
    """Read a part of the predictions.

    Raises:
        InputError: it is not a part.
    """
    content = persist(lambda: place.read(f"{PREDICTIONS}/{name}"), name)
    try:
        return pq.read_table(io.BytesIO(content), columns=None if columns is None else list(columns))
    except (pa.ArrowException, OSError) as error:
        raise InputError(
            f"{place.full(PREDICTIONS)}/{name}: is no part of these results ({error}); remove it, and its clips are "
            "scored again"
        ) from error


def read_results(results: str) -> pa.Table:
    """All rows of a job's results, by line.

    Raises:
        InputError: there is none, or a part cannot be read.
    """
    place = Place(results)
    names = place.names(PREDICTIONS)
    if not names:
        raise InputError(f"{results}: holds no results of a job")
    return pa.concat_tables([read_part(place, name) for name in names]).sort_by("line")


def _to_parquet(table: pa.Table) -> bytes:
    buffer = io.BytesIO()
    pq.write_table(table, buffer, compression="zstd")
    return buffer.getvalue()
