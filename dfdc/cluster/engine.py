"""Ray: connect to a cluster, and run a job's stages on it with Ray Data's streaming execution.

Ray Data schedules, scales the two pools of actors each by itself, restarts actors of lost nodes and repeats their work,
and holds a stage back while the next one is behind, so that blocks never fill more than the object store.
"""

from __future__ import annotations

import contextlib
import logging
import os
import socket
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import ray
import ray.data

from dfdc.cluster.manifest import PIECE_LINES, read_piece
from dfdc.cluster.places import Place
from dfdc.cluster.stages import CarriedWeights, Judge, Scout, StageSettings
from dfdc.errors import InputError, MachineError
from dfdc.run.limits import count_cores
from dfdc.run.spawn import environment

# A block of findings is closed at this size, about six clips of one person; a block of clips at this number. Work that
# a lost node repeats is at most a block of clips for each of its actors and what had not been passed on.
BLOCK_BYTES, BLOCK_CLIPS = 32 * 2**20, 8
# A cluster that was started for one command holds so much for blocks on their way: a few for each actor.
STORE_BYTES = 2**30
# An address that does not answer is given up after so many seconds.
CONNECT_S = 15
# Shares of a core. Without GPUs a core has a scout and a judge: whichever has work gets the time.
SCOUT_SHARE, JUDGE_SHARE = 0.5, 0.5
# Cores of the cluster that no actor gets: tasks that read the list of clips run there, and take next to no time.
LIST_CPUS = 1


@dataclass(frozen=True)
class Resources:
    """What a cluster has for actors."""

    n_cpus: float
    n_gpus: float
    n_nodes: int


@contextlib.contextmanager
def cluster(address: str | None) -> Iterator[Resources]:
    """Connect to a cluster for the duration of a job.

    Args:
        address: host:port of its head, or "auto" for the one that this machine belongs to; None starts one on this
            machine, which ends with the job.

    Raises:
        InputError: no cluster answers there.
        MachineError: none can be started here.
    """
    mine = not ray.is_initialized()
    if mine:
        check_address(address)
        _connect(address)
    try:
        found = ray.cluster_resources()
        if found.get("CPU", 0) < LIST_CPUS + 1:
            raise InputError(f"the cluster has {found.get('CPU', 0):.0f} CPUs; it needs at least {LIST_CPUS + 1}")
        yield Resources(found["CPU"] - LIST_CPUS, found.get("GPU", 0.0), len(ray.nodes()))
    finally:
        if mine:
            ray.shutdown()


def _connect(address: str | None) -> None:
    # By default Ray runs its workers at niceness 15, so that they get next to nothing beside other programs.
    os.environ.setdefault("RAY_worker_niceness", "0")
    common = {"log_to_driver": False, "logging_level": logging.ERROR, "include_dashboard": False}
    try:
        if address is None:
            with environment():  # Ray's workers need the same settings as the kernel's
                ray.init("local", num_cpus=count_cores() + LIST_CPUS, object_store_memory=STORE_BYTES, **common)
            return
    except Exception as error:  # Ray raises many kinds
        raise MachineError(f"Ray cannot be started on this machine ({_first_line(error)}); free some memory") from error
    del common["include_dashboard"]
    try:
        ray.init(address, **common)
    except Exception as error:
        raise _no_answer(address, error) from error


def check_address(address: str | None) -> None:
    """See whether anything answers at the address of a cluster; Ray itself would try for minutes.

    Raises:
        InputError: nothing does.
    """
    if address is None or address == "auto":
        return
    host, _, port = address.rpartition(":")
    try:
        socket.create_connection((host, int(port)), timeout=CONNECT_S).close()
    except (OSError, ValueError, OverflowError) as error:
        raise _no_answer(address, error) from error


def _no_answer(address: str, error: Exception) -> InputError:
    return InputError(
        f"--ray {address}: no cluster answers there ({_first_line(error)}); allowed are HOST:PORT of a cluster's head, "
        "as `ray start --head` prints it, and auto; this machine must be one of its nodes"
    )


def _first_line(error: Exception) -> str:
    return next(iter(str(error).strip().splitlines()), type(error).__name__)[:200]


def prepare() -> None:
    """Set Ray Data up for the stages of this package."""
    context = ray.data.DataContext.get_current()
    context.target_max_block_size = BLOCK_BYTES
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    context.enable_fallback_to_arrow_object_ext_type = True  # findings are objects
    logging.getLogger("ray.data").setLevel(logging.ERROR)


def score_clips(
    results: Place,
    done: np.ndarray,
    settings: StageSettings,
    weights: Sequence[CarriedWeights],
    names: Sequence[str],
    resources: Resources,
) -> Iterator[pa.Table]:
    """Score a job's clips, and yield their rows as they are ready, each once.

    Args:
        results: where the list of clips lies.
        done: (n_clips,) bool, which clips have a row.
        settings, weights, names: see `dfdc.cluster.stages`.
        resources: of the cluster.

    Raises:
        MachineError: the cluster cannot do the work.
        InputError: a node runs another version.
    """
    prepare()
    pieces = [
        {"piece": number, "done": done[number * PIECE_LINES : (number + 1) * PIECE_LINES].tobytes()}
        for number in range(-(-len(done) // PIECE_LINES))
    ]
    pieces = [piece for piece in pieces if b"\0" in piece["done"]]
    n_open = int((~done).sum())
    n_cores = max(int(min(resources.n_cpus, n_open)), 1)
    if settings.device == "cuda":
        n_judges, scout_cpus, judge = max(int(resources.n_gpus), 1), 1, {"num_cpus": 0, "num_gpus": 1}
    else:
        n_judges, scout_cpus, judge = n_cores, SCOUT_SHARE, {"num_cpus": JUDGE_SHARE}
    rows = (
        ray.data.from_items(pieces)
        .map_batches(_list_open(results.url), batch_size=1)
        .repartition(target_num_rows_per_block=BLOCK_CLIPS)
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


def _list_open(results: str) -> Callable[[dict[str, Sequence]], dict[str, list]]:
    """A function for Ray Data: the open clips of one piece."""

    def list_open(batch: dict[str, Sequence]) -> dict[str, list]:
        (number,), (done,) = batch["piece"], batch["done"]
        lines = read_piece(Place(results), int(number))
        open_ = [i for i, is_done in enumerate(done) if not is_done]
        return {"line": [int(number) * PIECE_LINES + i for i in open_], "name": [lines[i] for i in open_]}

    return list_open


@contextlib.contextmanager
def told() -> Iterator[None]:
    """Tell errors of the nodes as errors of ours."""
    try:
        yield
    except ray.exceptions.RayError as error:
        cause: BaseException | None = error
        while cause is not None and not isinstance(cause, InputError | MachineError):
            cause = getattr(cause, "cause", None) or cause.__cause__
        if cause is not None:
            raise type(cause)(str(cause)) from error
        raise MachineError(
            f"the cluster gave up ({_first_line(error)}); the same command goes on from what is written"
        ) from error
