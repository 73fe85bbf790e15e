"""Time the kernel on clips, and project whether a run over thousands of clips ends in time.

python tools/bench/time_kernel.py clips --match 'ff_*.mp4' --repeat 24 --frames 16 --device cpu --memory-gb 2

It prints a table, and the figures as JSON on the last line. "Reading alone" uses the CPU even if a GPU decodes. The
exit status is 0 if the planned run fits, 3 if it does not, and 1 or 2 for a mistake. The tool needs Linux, whose /proc
shows the resources of a process and its children. Like Linux when memory is short, it kills the largest of the kernel's
processes whenever all of them together take more than --memory-gb.
"""

from __future__ import annotations

import argparse
import fnmatch
import json
import math
import multiprocessing
import os
import re
import subprocess
import sys
import tempfile
import time
from collections import Counter
from contextlib import suppress
from dataclasses import dataclass, replace
from itertools import cycle, islice
from multiprocessing.synchronize import Barrier
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from dfdc.errors import InputError, MachineError, SettingError
from dfdc.flags import above_zero, make_parser, positive, run_tool, tool
from dfdc.prediction import Prediction
from dfdc.run.inputs import collect
from dfdc.run.processes import kill_largest, measure_tree
from dfdc.run.submission import details_path, read_predictions
from dfdc.video import read_frames
from dfdc.weights import EXTRAS

KERNEL = str(Path(__file__).resolve().parents[2] / "kernel.py")
# Interval between measurements of memory; one takes about 25 ms, for which the measured process may wait.
SAMPLE_S = 0.25
START_LIMIT_S = 60.0
# Exit status if the planned run does not fit; 1 and 2 are mistakes of the user.
DOES_NOT_FIT = 3
# Prefix of a command: it runs in a network namespace without devices, also for a user who is not root.
OFFLINE = ["unshare", "-rn"]


@dataclass(frozen=True)
class PlannedRun:
    """The planned run: number of clips, time limit, and memory limit (10^9 bytes; None for no limit)."""

    n_clips: int = 4000
    limit_s: float = 9 * 3600.0
    memory_gb: float | None = None

    def __post_init__(self) -> None:
        if not (self.n_clips > 0 and self.limit_s > 0 and (self.memory_gb is None or self.memory_gb > 0)):
            raise SettingError(f"{self}: --clips, --limit and --memory-gb must be above 0")


@dataclass(frozen=True)
class Timing:
    """The measurements of a run. Times per clip exclude the start-up and clips without a readable frame.

    Attributes:
        predictions: the kernel's predictions.
        wall_s, cpu_s: wall time and CPU time of the kernel's process and its descendants.
        startup_s, startup_cpu_s: their parts before the first clip began.
        peak_mb: peak resident memory (10^6 bytes) of all its processes together.
        floor_s: wall time per clip for reading the same frames on the same cores and nothing else.
        n_killed: number of its processes that were killed because of the memory limit.
    """

    predictions: tuple[Prediction, ...]
    wall_s: float
    cpu_s: float
    startup_s: float
    startup_cpu_s: float
    peak_mb: float
    floor_s: float = math.nan
    n_killed: int = 0

    @property
    def read(self) -> list[Prediction]:
        """The predictions of clips with readable frames; the others cost almost nothing."""
        return [prediction for prediction in self.predictions if prediction.frames]

    @property
    def seconds_per_clip(self) -> float:
        return (self.wall_s - self.startup_s) / len(self.read)

    @property
    def worker_seconds(self) -> tuple[float, ...]:
        """Mean, median, 95th percentile and maximum of the wall time for which a clip occupies a worker.

        Clips that timed out before their first frame are included, since they are the worst.
        """
        seconds = [p.seconds for p in self.predictions if p.frames or p.status == "timeout"]
        return float(np.mean(seconds)), *np.percentile(seconds, (50, 95, 100)).tolist()

    @property
    def core_seconds(self) -> tuple[float, ...]:
        """Mean CPU time per clip for decoding, detection, cropping, scoring, and everything else."""
        stages = np.sum([(p.decode_s, p.detect_s, p.crop_s, p.score_s) for p in self.predictions], axis=0).tolist()
        rest = max(self.cpu_s - self.startup_cpu_s - sum(stages), 0.0)
        return tuple(total / len(self.read) for total in (*stages, rest))

    def projected_s(self, plan: PlannedRun) -> float:
        """Projected seconds of the planned run, including start-up."""
        return self.startup_s + plan.n_clips * self.seconds_per_clip

    def fits(self, plan: PlannedRun) -> bool:
        return self.projected_s(plan) <= plan.limit_s and self.peak_mb <= 1000 * (plan.memory_gb or math.inf)


def time_kernel(
    clips: list[Path], kernel: list[str], *, n_clips: int | None = None, cores: int = 2, memory_gb: float | None = None
) -> Timing:
    """Run the kernel on clips, then only read the same frames.

    Args:
        clips: videos; other files get a row from the kernel and count as failures.
        kernel: the command that scores, with all flags except clips and --out.
        n_clips: total number of clips, which repeats the given ones under other names; None runs each once.
        cores: number of cores that the kernel, and then the reading, may use.
        memory_gb: memory limit of all the kernel's processes together (10^9 bytes); None for no limit.

    Raises:
        InputError: too few cores, no clip, or a kernel that fails or reads no frame.
        MachineError: the kernel failed because its processes were killed at the memory limit.
    """
    available = sorted(os.sched_getaffinity(0)) if sys.platform == "linux" else []
    if not 1 <= cores <= len(available):
        raise InputError(f"--cores {cores}: allowed are 1 to {len(available)}, the cores that this process may use")
    chosen = list(islice(cycle(clips), len(clips) if n_clips is None else max(n_clips, 0)))
    if not chosen:
        raise InputError(f"none of the {len(clips)} clips is left to run; check --match and --repeat")
    for clip in clips:
        clip.read_bytes()  # into the page cache, so that neither the kernel nor the reading waits for the disk
    with tempfile.TemporaryDirectory(prefix="time_kernel-") as scratch:
        out, links = Path(scratch, "submission.csv"), []
        for number, clip in enumerate(chosen):
            links.append(Path(scratch, f"{number:06d}-{clip.name}"))
            links[-1].symlink_to(clip.absolute())
        command = [*kernel, "--out", str(out), "--", *map(str, links)]
        if subprocess.run(" ".join([*OFFLINE, "true"]), shell=True, capture_output=True).returncode == 0:
            command = OFFLINE + command
        else:
            print(
                f"time_kernel: {' '.join(OFFLINE)} does not work here, so the kernel has network access",
                file=sys.stderr,
            )
        timing = run_kernel(command, out, available[:cores], memory_gb=memory_gb)
        reads = [(out.with_name(p.filename), p.frames) for p in timing.read]
        if not reads:
            raise InputError(f"no clip gave a frame ({timing.predictions[0].reason}); name other clips")
        return replace(timing, floor_s=time_reading(reads, available[:cores]) / len(reads))


def run_kernel(command: list[str], out: Path, cores: list[int], *, memory_gb: float | None = None) -> Timing:
    """Run a command that writes a submission, and measure its processes; see `time_kernel`.

    The first clip began its own duration before the first result appeared. If several results appear at once, as with
    very short clips, it began at least as much earlier as one worker for each core needs for all of them.

    Raises:
        InputError: the command fails or writes no prediction.
        MachineError: it fails after some of its processes were killed at the memory limit.
    """
    details, samples, peak_bytes, killed, first = details_path(out), [(0.0, 0.0)], 0, set(), []
    began, ended_cpu_s = time.monotonic(), sum(os.times()[2:4])
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, preexec_fn=lambda: os.sched_setaffinity(0, cores))
    try:
        while process.poll() is None:
            now_s, (cpu_s, resident) = time.monotonic() - began, measure_tree(process.pid)
            peak_bytes = max(peak_bytes, resident)
            if memory_gb is not None and resident > 1e9 * memory_gb:
                killed.add(
                    kill_largest(process.pid)
                )  # a process that still exists at the next measurement is the same one
            if not first:
                samples.append((now_s, cpu_s))
                first, first_s = read_so_far(details), now_s
            with suppress(subprocess.TimeoutExpired):
                process.wait(
                    min(SAMPLE_S, 0.02 + now_s / 10)
                )  # frequent at first, so that short runs are measured, too
    finally:
        process.terminate()  # if this tool is interrupted, the kernel ends its workers
        process.wait()
    cpu_s = sum(os.times()[2:4]) - ended_cpu_s  # includes workers that the kernel killed
    wall_s, predictions = time.monotonic() - began, read_so_far(details)
    if killed and (process.returncode or not predictions):
        raise MachineError(
            f"the kernel does not fit in {memory_gb} GB of memory: it ended with code {process.returncode} after "
            f"{len(killed)} of its processes were killed; allow more with --memory-gb, or use fewer --workers"
        )
    if process.returncode or not predictions:
        raise InputError(f"the kernel ended with code {process.returncode}; its messages are above")
    if not first:
        first, first_s = predictions, wall_s
    seconds = [p.seconds for p in first]
    startup_s = max(first_s - max(*seconds, sum(seconds) / len(cores)), 0.0)
    startup_cpu_s = max(at_s for now_s, at_s in samples if now_s <= startup_s)
    return Timing(tuple(predictions), wall_s, cpu_s, startup_s, startup_cpu_s, peak_bytes / 1e6, n_killed=len(killed))


def read_so_far(details: Path) -> list[Prediction]:
    """The predictions written so far."""
    return read_predictions(details) if details.exists() else []


def time_reading(reads: list[tuple[Path, int]], cores: list[int]) -> float:
    """Wall seconds for reading the given numbers of frames of clips, with one process for each core."""
    context = multiprocessing.get_context("spawn")
    ready = context.Barrier(len(cores) + 1)
    with context.Pool(len(cores), _enter, (ready, cores)) as pool:
        ready.wait(START_LIMIT_S)
        began = time.monotonic()
        pool.starmap(_read, reads, chunksize=1)
        return time.monotonic() - began


def _enter(ready: Barrier, cores: list[int]) -> None:
    os.sched_setaffinity(0, cores)
    ready.wait(START_LIMIT_S)


def _read(path: Path, n_frames: int) -> None:
    read_frames(path, n_frames)


def describe(timing: Timing, plan: PlannedRun) -> str:
    """The figures as a table for people; its last line is the verdict."""
    spare = 1 - timing.projected_s(plan) / plan.limit_s
    misfit = "does not fit" + (f" in {plan.memory_gb} GB of memory" if spare >= 0 else "")
    verdict = f"fits with {spare:.0%} to spare" if timing.fits(plan) else misfit
    failures = Counter(p.status for p in timing.predictions if p.status != "ok")
    failed = ", ".join(f"{n} {status}" for status, n in failures.items()) or "none"
    killed = f", {timing.n_killed} killed of its processes" if timing.n_killed else ""
    names = ("decode", "detect", "crop", "score", "other")
    stages = (f"{name} {seconds:.2f}" for name, seconds in zip(names, timing.core_seconds, strict=True))
    rows = {
        "seconds per clip": f"{timing.seconds_per_clip:.2f}",
        "  reading alone": f"{timing.floor_s:.2f}, ratio {timing.seconds_per_clip / timing.floor_s:.2f}",
        "  in its worker": "mean {:.2f}, median {:.2f}, p95 {:.2f}, worst {:.2f}".format(*timing.worker_seconds),
        "core-seconds per clip": f"{sum(timing.core_seconds):.2f}",
        "  by stage": ", ".join(stages),
        "start-up": f"{timing.startup_s:.1f} s, {timing.startup_cpu_s:.1f} core-seconds",
        "peak memory": f"{timing.peak_mb:.0f} MB{killed}",
        f"{len(timing.predictions)} clips run": f"{failed} failed",
        f"{plan.n_clips} clips": f"{timing.projected_s(plan) / 3600:.2f} h of {plan.limit_s / 3600:.2f} h: {verdict}",
    }
    return "\n".join(f"{name:<23}{value}" for name, value in rows.items())


def to_json(timing: Timing, plan: PlannedRun) -> str:
    """The figures as JSON on one line."""
    figures = {
        "seconds_per_clip": timing.seconds_per_clip,
        "p95_seconds_per_clip": timing.worker_seconds[2],
        "core_seconds_per_clip": sum(timing.core_seconds),
        "floor_seconds_per_clip": timing.floor_s,
        "ratio_to_floor": timing.seconds_per_clip / timing.floor_s,
        "startup_seconds": timing.startup_s,
        "peak_rss_mb": timing.peak_mb,
        "projected_hours": timing.projected_s(plan) / 3600,
    }
    return json.dumps({key: round(value, 3) for key, value in figures.items()} | {"fits": timing.fits(plan)})


def parse_duration(text: str) -> float:
    """The seconds of a duration such as 9h, 1.5h, 30m or 3600s."""
    if not re.fullmatch(r"\d+(\.\d+)?[hms]", text):
        raise argparse.ArgumentTypeError(
            f"{text!r} is not allowed; give a number with a unit, such as 9h, 30m or 3600s"
        )
    return float(text[:-1]) * {"h": 3600, "m": 60, "s": 1}[text[-1]]


@tool
def main(argv: list[str] | None = None) -> int:
    parser = make_parser(__doc__)
    add = parser.add_argument
    add("paths", nargs="+", type=Path, metavar="PATH", help="clips, or folders of clips")
    add("--match", metavar="GLOB", default="*", help="use only clips with such names, as in 'ff_*.mp4' (default: all)")
    add("--repeat", type=positive, metavar="N", help="run N clips in total by repeating them (default: each once)")
    add("--cores", type=positive, default=2, help="number of cores to use (default: %(default)s)")
    add("--workers", type=positive, help="number of clips scored in parallel (default: the kernel's)")
    add("--device", choices=("auto", "cpu", "cuda"), help="run the models on this device (default: the kernel's)")
    add("--frames", type=positive, default=16, help="number of frames of each clip (default: %(default)s)")
    add("--weights", type=Path, help="weights file or folder (default: the kernel's)")
    add("--models", choices=("all", "first"), help="models of the folder that answer (default: the kernel's)")
    with_help = "add models that are off by default, as the kernel's --with does (default: none)"
    add("--with", dest="extras", action="append", choices=EXTRAS, default=[], help=with_help)
    memory_help = "memory limit of all the kernel's processes together in 10^9 bytes (default: none)"
    add("--memory-gb", type=above_zero, help=memory_help)
    add("--clips", type=positive, default=PlannedRun.n_clips, help="clips of the planned run (default: %(default)s)")
    add("--limit", type=parse_duration, default="9h", help="time limit of the planned run (default: %(default)s)")
    args = parser.parse_args(argv)
    names = [name for name in ("workers", "device", "frames", "weights", "models") if getattr(args, name) is not None]
    kernel = [sys.executable, KERNEL, "--fresh", *(f"--{name}={getattr(args, name)}" for name in names)]
    kernel += [f"--with={extra}" for extra in args.extras]
    plan, job = PlannedRun(args.clips, args.limit, args.memory_gb), collect(args.paths)
    clips = [job.paths[name] for name in fnmatch.filter(job.names, args.match)]
    timing = time_kernel(clips, kernel, n_clips=args.repeat, cores=args.cores, memory_gb=args.memory_gb)
    print(describe(timing, plan), to_json(timing, plan), sep="\n")
    return 0 if timing.fits(plan) else DOES_NOT_FIT


if __name__ == "__main__":
    run_tool(main)
