"""The two ways in which a cluster scores the clips of a job: whole on CPUs, or in two stages on CPUs and GPUs.

Without GPUs, Ray actors score clips from beginning to end. With GPUs, Ray Data streams them through two pools of
actors, each of which it scales by itself. It restarts actors of lost nodes, repeats their work, and holds the first
stage back while the second one is behind, so that findings never fill more than the object store.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa

from dfdc.cluster.crew import share_out
from dfdc.cluster.engine import Resources, told
from dfdc.cluster.manifest import PIECE_LINES, read_piece
from dfdc.cluster.places import Place
from dfdc.cluster.sink import to_table
from dfdc.cluster.stages import CarriedWeights, Judge, Scorer, Scout, StageSettings
from dfdc.errors import InputError
from dfdc.findings import blank_analysis

if TYPE_CHECKING:
    import ray.data

# Clips of one call at most. A call costs the command's process about a millisecond.
BATCH_CLIPS = 8
# A block of findings is closed at this size, about six clips of one person.
BLOCK_BYTES = 32 * 2**20
# Shares of a core. Without GPUs a core has a scout and a judge: whichever has work gets the time.
SCOUT_SHARE, JUDGE_SHARE = 0.5, 0.5
# Cores of the cluster that no actor of Ray Data gets: tasks that read the list of clips run there, and take next to no
# time.
LIST_CPUS = 1


@dataclass(frozen=True)
class _Piece:
    """A piece of a job's list: its number, and the places in it of the clips that have no row, uint16."""

    number: int
    open: np.ndarray


def score_whole(
    results: Place,
    done: np.ndarray,
    settings: StageSettings,
    weights: Sequence[CarriedWeights],
    names: Sequence[str],
    resources: Resources,
) -> Iterator[pa.Table]:
    """Score a job's clips on CPUs, and yield their rows as they are ready, each once.

    Args:
        results: where the list of clips lies.
        done: (n_clips,) bool, which clips have a row.
        settings, weights, names: see `dfdc.cluster.stages`.
        resources: of the cluster, read by `score_in_stages` only; here nodes that join later are used, too.

    Raises:
        MachineError: the cluster cannot do the work.
        InputError: a node runs another version.
    """

    def give_up(clip: tuple[int, str], reason: str) -> pa.Table:
        line, name = clip
        blank = blank_analysis(name, settings.n_frames, settings.digests)
        lost = replace(blank, status="error", reason=reason)
        return to_table([line], [lost], models=names, per_frame=settings.per_frame)

    clips = (clip for piece in _open_pieces(done) for clip in _read_open(results, piece))
    arguments = (settings, list(weights), list(names))
    n_open = int((~done).sum())
    with told():
        yield from share_out(Scorer, arguments, clips, n_pieces=n_open, batch=BATCH_CLIPS, give_up=give_up)


def score_in_stages(
    results: Place,
    done: np.ndarray,
    settings: StageSettings,
    weights: Sequence[CarriedWeights],
    names: Sequence[str],
    resources: Resources,
) -> Iterator[pa.Table]:
    """The same as `score_whole`, in two stages; the models run where `settings.device` says."""
    import ray.data  # it takes a core-second, and more in each of its processes

    if resources.n_cpus < LIST_CPUS + 1:
        raise InputError(f"the cluster has {resources.n_cpus:g} CPUs; with GPUs it needs at least {LIST_CPUS + 1}")
    _set_up(ray.data.DataContext.get_current())
    n_cores = max(int(min(resources.n_cpus - LIST_CPUS, (~done).sum())), 1)
    if settings.device == "cuda":
        n_judges, scout_cpus, judge = max(int(resources.n_gpus), 1), 1, {"num_cpus": 0, "num_gpus": 1}
    else:
        n_judges, scout_cpus, judge = n_cores, SCOUT_SHARE, {"num_cpus": JUDGE_SHARE}
    rows = (
        ray.data.from_items([{"piece": piece} for piece in _open_pieces(done)])
        .map_batches(_list_open(results.url), batch_size=1)
        .repartition(target_num_rows_per_block=BATCH_CLIPS)
        .map_batches(
            Scout,
            fn_constructor_args=(settings,),
            batch_size=None,
            num_cpus=scout_cpus,
            concurrency=(1, n_cores),
        )
        .map_batches(
            Judge,
            fn_constructor_args=(settings, list(weights), list(names)),
            batch_size=None,
            concurrency=(1, n_judges),
            **judge,
        )
    )
    with told():
        yield from rows.iter_batches(batch_size=None, batch_format="pyarrow", prefetch_batches=0)


def _set_up(context: ray.data.DataContext) -> None:
    context.target_max_block_size = BLOCK_BYTES
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    context.enable_fallback_to_arrow_object_ext_type = True  # findings are objects
    logging.getLogger("ray.data").setLevel(logging.ERROR)


def _open_pieces(done: np.ndarray) -> list[_Piece]:
    """The pieces of a job's list with clips that have no row."""
    pieces = []
    for number in range(-(-len(done) // PIECE_LINES)):
        open_ = np.flatnonzero(~done[number * PIECE_LINES : (number + 1) * PIECE_LINES])
        if len(open_):
            pieces.append(_Piece(number, open_.astype(np.uint16)))
    return pieces


def _read_open(results: Place, piece: _Piece) -> Iterator[tuple[int, str]]:
    """The lines and names of the clips of a piece that have no row."""
    names = read_piece(results, piece.number)
    for i in piece.open.tolist():
        yield piece.number * PIECE_LINES + i, names[i]


def _list_open(url: str) -> Callable[[dict[str, Sequence]], dict[str, list]]:
    """A function for Ray Data: the clips that `_read_open` gives for one piece."""

    def list_open(batch: dict[str, Sequence]) -> dict[str, list]:
        (piece,) = batch["piece"]
        lines, names = zip(*_read_open(Place(url), piece), strict=True)
        return {"line": list(lines), "name": list(names)}

    return list_open
