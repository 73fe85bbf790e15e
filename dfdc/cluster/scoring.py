"""`dfdc score SOURCE --ray`: score a corpus on a cluster into a folder of Parquet files, and go on after a kill."""

from __future__ import annotations

import json
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import asdict, dataclass

import pyarrow as pa
from tqdm import tqdm

from dfdc.cluster.engine import Resources, check_address, cluster
from dfdc.cluster.layouts import score_in_stages, score_whole
from dfdc.cluster.lease import hold
from dfdc.cluster.manifest import MANIFESTS, Frozen, digest, freeze, open_source
from dfdc.cluster.places import Place
from dfdc.cluster.sink import PREDICTIONS, Sink
from dfdc.cluster.stages import CarriedWeights, StageSettings
from dfdc.errors import InputError
from dfdc.prediction import DEFAULT_FRAMES, STATUSES
from dfdc.run.journal import digest_code, scoring_key
from dfdc.weights import WeightsFile, select

JOB, SCHEMA = "job.json", "dfdc.job/1"
# Rows are written after so many seconds or clips; a kill costs what was scored since.
WRITE_S, WRITE_ROWS = 30.0, 5000
# Clips without a row at the end of a pass, which only faults of the cluster leave, get another one.
MAX_PASSES = 3


@dataclass(frozen=True)
class ScoreSettings:
    """How a corpus is scored.

    Attributes:
        weights: checked weights of the face models.
        device: "auto" for GPUs if the cluster has some when the work begins, "cpu" or "cuda".
        n_frames: frames to look at per clip.
        per_frame: whether to write the per-frame table.
    """

    weights: tuple[WeightsFile, ...]
    device: str = "auto"
    n_frames: int = DEFAULT_FRAMES
    per_frame: bool = False


@dataclass(frozen=True)
class Outcome:
    """What a job did.

    Attributes:
        results: path or URL of the folder.
        n_clips: number of the job's clips; each has one row.
        n_before: how many of them had their row before.
        statuses: number of this run's rows by status.
        seconds: wall time.
    """

    results: str
    n_clips: int
    n_before: int
    statuses: dict[str, int]
    seconds: float

    def __str__(self) -> str:
        told = ", ".join(f"{self.statuses[status]} {status}" for status in STATUSES if self.statuses.get(status))
        lines = [f"{self.n_clips} clips: {self.n_before} had a row before; this run: {told or 'none'}"]
        lines += [f"{self.results}/{PREDICTIONS}: one row per clip, complete, after {self.seconds:.1f} s"]
        return "\n".join(lines)


def score_corpus(source: str, out: str, settings: ScoreSettings, *, address: str | None = None) -> Outcome:
    """Score every clip of a corpus; the results have exactly one row for each in the end.

    Args:
        source: folder or manifest, a path or a URL; see `dfdc.cluster.manifest`.
        out: folder for the results, a path or a URL.
        settings: how.
        address: see `dfdc.cluster.engine.cluster`.

    Raises:
        InputError: the source, the results, the cluster or a setting cannot be used, or another job writes there.
        MachineError: the cluster or the store cannot do the work; the same call goes on.
    """
    began_s = time.monotonic()
    base, read_names = open_source(source)
    place = Place(out)
    if place.url == Place(source).url:
        raise InputError(f"{out}: holds the clips; name another folder for the results")
    weights = select("face", list(settings.weights))
    wanted = {
        "schema": SCHEMA,
        "source": source,
        "per_frame": settings.per_frame,
        **scoring_key(weights, device=settings.device, n_frames=settings.n_frames),
    }
    check_address(address)
    place.check_writable()
    statuses: Counter[str] = Counter()
    with hold(place) as lease:
        job = _find_job(source, read_names, place, wanted)
        sink = Sink(place, lease, n_clips=job.n_clips) if job else None
        n_before = sink.n_done if sink else 0
        if job is None or sink is None or n_before < job.n_clips:
            with cluster(address) as resources:
                stages = StageSettings(
                    base=base,
                    specs=tuple(file.spec for file in weights),
                    digests=tuple(file.digest for file in weights),
                    code=digest_code(),
                    n_frames=settings.n_frames,
                    device=_choose_device(settings.device, resources),
                    per_frame=settings.per_frame,
                )
                if job is None or sink is None:
                    job = freeze(source, base, read_names(), place)
                    place.write(JOB, json.dumps({**wanted, **asdict(job)}, indent=1).encode())
                    sink = Sink(place, lease, n_clips=job.n_clips)
                carried = [CarriedWeights.of(file) for file in weights]
                names = [file.path.stem for file in weights]
                for _ in range(MAX_PASSES):
                    if sink.n_done < job.n_clips:
                        score = score_whole if stages.device == "cpu" else score_in_stages
                        rows = score(place, sink.done.copy(), stages, carried, names, resources)
                        with closing(rows):
                            statuses += _write_rows(rows, sink)
        sink.finish()
    return Outcome(place.url, job.n_clips, n_before, dict(statuses), time.monotonic() - began_s)


def _choose_device(wanted: str, resources: Resources) -> str:
    if wanted == "cuda" and not resources.n_gpus:
        raise InputError("--device cuda: the cluster has no GPU; add nodes with GPUs, or leave --device out")
    return "cuda" if wanted != "cpu" and resources.n_gpus else "cpu"


def _write_rows(rows: Iterator[pa.Table], sink: Sink) -> Counter[str]:
    """Write rows in parts as they come; returns how many have each status."""
    held: list[pa.Table] = []
    statuses: Counter[str] = Counter()
    next_s = time.monotonic() + WRITE_S

    def write() -> None:
        if held:
            part = pa.concat_tables(held)
            held.clear()
            statuses.update(sink.write(part)["status"].to_pylist())

    bar = tqdm(total=len(sink.done), initial=sink.n_done, desc="scoring", unit="clip", disable=None)
    try:
        with bar:
            for table in rows:
                held.append(table)
                bar.update(table.num_rows)
                if time.monotonic() >= next_s or sum(table.num_rows for table in held) >= WRITE_ROWS:
                    write()
                    next_s = time.monotonic() + WRITE_S
    finally:
        write()  # what was scored before an error or Ctrl-C counts
    return statuses


def _find_job(
    source: str, read_names: Callable[[], Iterator[str]], place: Place, wanted: dict[str, object]
) -> Frozen | None:
    """The clips of the job whose results lie there; None if there are none.

    Raises:
        InputError: the results belong to another job.
    """
    try:
        found = json.loads(place.read(JOB))
    except FileNotFoundError:
        if place.names(PREDICTIONS):
            raise InputError(f"{place.url}: holds results without {JOB}; name another --out") from None
        return None
    except ValueError as error:
        raise InputError(f"{place.full(JOB)}: is not a job of this program ({error}); name another --out") from error
    other = [name for name, value in wanted.items() if found.get(name) != value]
    if other:
        told = "; ".join(f"{name} was {_short(found.get(name))}, is {_short(wanted[name])}" for name in other)
        raise InputError(f"{place.url}: holds another job: {told}; use the same settings, or name another --out")
    frozen = Frozen(found["base"], found["n_clips"], found["sha256"])
    if source.lower().endswith(MANIFESTS) and digest(read_names()) != (frozen.n_clips, frozen.sha256):
        raise InputError(f"{source}: has changed since its job began; name another --out for the new list")
    return frozen


def _short(value: object) -> str:
    text = str(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
