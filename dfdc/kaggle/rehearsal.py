"""Rehearsal: run a bundle's kernel as Kaggle would, check its output, and project its time to 4,000 clips."""

from __future__ import annotations

import logging
import shutil
import tempfile
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from dfdc.kaggle.images import Image
from dfdc.kaggle.rules import PICTURES, find_faults
from dfdc.kaggle.sandbox import N_CORES, can_isolate, kernel_command, lay_out, run_limited
from dfdc.run.submission import read_predictions

log = logging.getLogger(__name__)

N_CLIPS, LIMIT_H = 4000, 9
MEMORY_BYTES = 13 * 10**9


@dataclass(frozen=True)
class Projection:
    """The projected time of a run over 4,000 clips.

    Attributes:
        wall_s: on this machine, under the load it had.
        idle_s: on two otherwise idle cores.
    """

    wall_s: float
    idle_s: float


@dataclass(frozen=True)
class Rehearsal:
    """The result of one run of the kernel.

    Attributes:
        faults: one sentence per fault; empty if there is none.
        wall_s: wall time from start to end.
        peak_bytes: peak memory of all its processes together.
        projection: to 4,000 clips; None if nothing was scored.
    """

    faults: tuple[str, ...]
    wall_s: float
    peak_bytes: int
    projection: Projection | None


def rehearse(
    bundle: Path,
    clips: list[Path],
    image: Image,
    python: Path,
    *,
    form: str,
    keep: Path,
    memory_bytes: int = MEMORY_BYTES,
) -> Rehearsal:
    """Run the kernel once in an image.

    Args:
        bundle: the folder that tools/make_bundle.py made.
        clips: the test videos.
        image: states where inputs are mounted.
        python: the image's interpreter.
        form: "notebook" or "script".
        keep: folder to which all output of the kernel is copied.
        memory_bytes: the limit for all processes together.
    """
    with tempfile.TemporaryDirectory(prefix="rehearsal-") as scratch:
        kaggle = Path(scratch, "kaggle")
        names = lay_out(kaggle, bundle, clips, image)
        isolated = can_isolate()
        if not isolated:
            log.warning(
                "namespaces are not allowed here, so sockets are blocked instead, and paths differ from Kaggle's"
            )
        command, environment = kernel_command(python, kaggle, form, isolated=isolated)
        began = time.monotonic()
        code, peak_bytes = run_limited(command, environment, memory_bytes=memory_bytes)
        wall_s = time.monotonic() - began
        faults = [f"it ended with exit code {code}"] if code else []
        if peak_bytes > memory_bytes:
            faults.append(f"it took {peak_bytes / 1e9:.1f} GB of memory; allowed are {memory_bytes / 1e9:.0f}")
        faults += find_faults(kaggle / "working" / "submission.csv", names)
        faults += find_failures(kaggle / "working" / "predictions.csv", [clip.name for clip in clips])
        if form == "notebook":
            absent = [name for name in PICTURES if not (kaggle / "working" / name).is_file()]
            faults += [f"its notebook did not draw {name}" for name in absent]
        shutil.rmtree(keep, ignore_errors=True)
        shutil.copytree(kaggle / "working", keep)
    return Rehearsal(tuple(faults), wall_s, peak_bytes, project(keep / "predictions.csv", wall_s))


def find_failures(details: Path, clips: list[str]) -> list[str]:
    """Find clips that a run failed to score; a submission with 0.5 in all rows would break no rule.

    Args:
        details: the run's predictions.csv.
        clips: names of the undamaged clips.
    """
    try:
        found = {prediction.filename: prediction for prediction in read_predictions(details)}
    except OSError:
        return [f"{details.name} is missing"]
    mine = [found[name] for name in clips if name in found]
    failed = [p for p in mine if p.status in ("error", "timeout")]
    faults = [f"{len(failed)} clips failed, such as {p.filename}: {p.status}, {p.reason}" for p in failed[:1]]
    if not any(p.scored for p in mine):
        faults.append(f"none of {len(clips)} clips got a score")
    return faults


def project(details: Path, wall_s: float) -> Projection | None:
    """Project the time of 4,000 clips from the predictions.csv of a run.

    Time that is not spent on clips, such as the start, counts once. Damaged clips take no time and are excluded,
    because the competition's clips are not damaged.

    Args:
        details: the run's predictions.csv.
        wall_s: wall time of the whole run.

    Returns:
        The projection; None if every clip was damaged or the file is missing.
    """
    with suppress(OSError):
        predictions = read_predictions(details)
        whole = [p for p in predictions if p.status in {"ok", "no_face"}]
        if whole:
            once_s = max(wall_s - sum(p.seconds for p in predictions) / N_CORES, 0.0)
            busy_s = sum(p.seconds for p in whole)
            core_s = sum(p.core_s for p in whole)
            share = N_CLIPS / len(whole) / N_CORES
            return Projection(once_s + busy_s * share, once_s + core_s * share)
    return None


def describe(name: str, form: str, run: Rehearsal) -> str:
    """A run in one line, then one line for each fault."""
    projected = "nothing was scored"
    if run.projection:
        wall_h, idle_h = run.projection.wall_s / 3600, run.projection.idle_s / 3600
        projected = (
            f"{N_CLIPS} clips would take {idle_h:.2f} of {LIMIT_H} h on two idle cores, {wall_h:.2f} h on this machine "
            "as busy as it is"
        )
    verdict = "passed" if not run.faults else f"{len(run.faults)} faults"
    line = f"image {name}, {form}: {run.wall_s:.0f} s, {run.peak_bytes / 1e9:.1f} GB, {verdict}; {projected}"
    return "\n".join([line, *(f"  {fault}" for fault in run.faults)])
