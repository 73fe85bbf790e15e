"""Time the real kernel on clips, and say whether a run of thousands of them would end in time.

python tools/bench/time_kernel.py clips --match 'ff_*.mp4' --repeat 24 --frames 16 --device cpu --memory-gb 2

It prints a table, and the figures as JSON on the last line. "Reading alone" is by the CPU, also where a GPU decodes.
The exit code is 0 if the planned run fits, 1 if it does not, 2 for a mistake. It needs Linux, whose /proc tells what a
process and its children use. As Linux does where memory is short, it kills the largest of the kernel's processes as
often as all of them take more than --memory-gb.
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

from dfdc.errors import InputError
from dfdc.flags import positive, run_tool
from dfdc.prediction import Prediction
from dfdc.run.inputs import collect
from dfdc.run.processes import kill_largest, measure_tree
from dfdc.run.submission import details_path, read_predictions
from dfdc.video import read_frames
from dfdc.weights import EXTRAS

KERNEL = str(Path(__file__).resolve().parents[2] / "kernel.py")
# How often memory is looked at: a look takes some 25 ms, during which the process looked at may wait.
SAMPLE_S = 0.25
START_LIMIT_S = 60.0
# Before a command: a network of its own without any device, for a user who need not be root.
OFFLINE = ["unshare", "-rn"]


@dataclass(frozen=True)
class PlannedRun:
    """The run to project to: how many clips, in what time, in how much memory (10^9 bytes; None for any)."""

    n_clips: int = 4000
    limit_s: float = 9 * 3600.0
    memory_gb: float | None = None

    def __post_init__(self) -> None:
        if not (self.n_clips > 0 and self.limit_s > 0 and (self.memory_gb is None or self.memory_gb > 0)):
            raise InputError(f"{self}: --clips, --limit and --memory-gb must be above 0")


@dataclass(frozen=True)
class Timing:
    """The figures of a run; times per clip leave its start-up out, and are of clips that gave frames.

    Attributes:
        predictions: what the kernel wrote of each clip.
        wall_s, cpu_s: wall and core-seconds from the start of its process to its end, descendants included.
        startup_s, startup_cpu_s: the part of them before its first clip began.
        peak_mb: the most resident memory (10^6 bytes) that its processes had together.
        floor_s: wall time per clip of reading the same frames on the same cores and nothing else.
        n_killed: how many of its processes were killed for want of memory.
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
        """The predictions of clips that gave frames: others cost next to nothing, and would hide what these cost."""
        return [prediction for prediction in self.predictions if prediction.frames]

    @property
    def seconds_per_clip(self) -> float:
        return (self.wall_s - self.startup_s) / len(self.read)

    @property
    def worker_seconds(self) -> tuple[float, ...]:
        """Mean, median, 95th percentile and greatest of the wall time that a clip keeps one worker busy.

        Clips that timed out before their first frame count here: they are the worst.
        """
        seconds = [p.seconds for p in self.predictions if p.frames or p.status == "timeout"]
        return float(np.mean(seconds)), *np.percentile(seconds, (50, 95, 100)).tolist()

    @property
    def core_seconds(self) -> tuple[float, ...]:
        """Per clip: of decoding, of detecting, of cropping, of scoring, and of all else."""
        stages = np.sum([(p.decode_s, p.detect_s, p.crop_s, p.score_s) for p in self.predictions], axis=0).tolist()
        rest = max(self.cpu_s - self.startup_cpu_s - sum(stages), 0.0)
        return tuple(total / len(self.read) for total in (*stages, rest))

    def projected_s(self, plan: PlannedRun) -> float:
        """Seconds that the planned run takes, start-up included."""
        return self.startup_s + plan.n_clips * self.seconds_per_clip

    def fits(self, plan: PlannedRun) -> bool:
        return self.projected_s(plan) <= plan.limit_s and self.peak_mb <= 1000 * (plan.memory_gb or math.inf)


def time_kernel(
    clips: list[Path], kernel: list[str], *, n_clips: int | None = None, cores: int = 2, memory_gb: float | None = None
) -> Timing:
    """Run the kernel on clips, then read the same frames of them and do nothing else.

    Args:
        clips: videos; what is none gets its row from the kernel and counts as a failure.
        kernel: the command that scores, with all its flags but clips and --out.
        n_clips: how many are run: the given ones in turn, again and again under other names. None for each once.
        cores: how many cores the kernel, and then the reading, may use.
        memory_gb: how much memory the kernel's processes may take together (10^9 bytes); None for any.

    Raises:
        InputError: not so many cores, no clip, or a kernel that fails or reads no frame.
        MemoryError: a kernel that fails because its processes were killed for want of memory.
    """
    available = sorted(os.sched_getaffinity(0)) if sys.platform == "linux" else []
    if not 1 <= cores <= len(available):
        raise InputError(f"--cores {cores}: allowed are 1 to {len(available)}, those that Linux lets this process use")
    chosen = list(islice(cycle(clips), len(clips) if n_clips is None else max(n_clips, 0)))
    if not chosen:
        raise InputError(f"of {len(clips)} clips found none is to be run; look at --match and --repeat")
    for clip in clips:
        clip.read_bytes()  # into the system's cache, so that neither the kernel nor the reading waits for the disk
    with tempfile.TemporaryDirectory(prefix="time_kernel-") as scratch:
        out, links = Path(scratch, "submission.csv"), []
        for number, clip in enumerate(chosen):
            links.append(Path(scratch, f"{number:06d}-{clip.name}"))
            links[-1].symlink_to(clip.absolute())
        command = [*kernel, "--out", str(out), "--", *map(str, links)]
        if subprocess.run(" ".join([*OFFLINE, "true"]), shell=True, capture_output=True).returncode == 0:
            command = OFFLINE + command
        else:
            print(f"time_kernel: {' '.join(OFFLINE)} does not work here: the network stays on", file=sys.stderr)
        timing = run_kernel(command, out, available[:cores], memory_gb=memory_gb)
        reads = [(out.with_name(p.filename), p.frames) for p in timing.read]
        if not reads:
            raise InputError(f"no clip gave a frame ({timing.predictions[0].reason}); name other clips")
        return replace(timing, floor_s=time_reading(reads, available[:cores]) / len(reads))


def run_kernel(command: list[str], out: Path, cores: list[int], *, memory_gb: float | None = None) -> Timing:
    """Run a command that writes a submission, and watch what its processes use; see `time_kernel`.

    The first clip began when the first result appeared, less the seconds it took. Where several results appear at
    once, as those of very short clips do, it began at least as much earlier as a worker a core needs for all of them.

    Raises:
        InputError: the command fails or writes no prediction.
        MemoryError: it does so after some of its processes were killed for want of memory.
    """
    details, samples, peak_bytes, killed, first = details_path(out), [(0.0, 0.0)], 0, set(), []
    began, ended_cpu_s = time.monotonic(), sum(os.times()[2:4])
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, preexec_fn=lambda: os.sched_setaffinity(0, cores))
    try:
        while process.poll() is None:
            now_s, (cpu_s, resident) = time.monotonic() - began, measure_tree(process.pid)
            peak_bytes = max(peak_bytes, resident)
            if memory_gb is not None and resident > 1e9 * memory_gb:
                killed.add(kill_largest(process.pid))  # one that has not gone by the next look is the same one
            if not first:
                samples.append((now_s, cpu_s))
                first, first_s = read_so_far(details), now_s
            with suppress(subprocess.TimeoutExpired):
                process.wait(min(SAMPLE_S, 0.02 + now_s / 10))  # densest at first: a short run is seen too
    finally:
        process.terminate()  # where this tool is interrupted; the kernel then ends its workers
        process.wait()
    cpu_s = sum(os.times()[2:4]) - ended_cpu_s  # workers that the kernel killed are among them, for it waited for them
    wall_s, predictions = time.monotonic() - began, read_so_far(details)
    if killed and (process.returncode or not predictions):
        raise MemoryError(
            f"the kernel does not fit in {memory_gb} GB of memory: it ended with code {process.returncode} after "
            f"{len(killed)} of its processes were killed; allow more with --memory-gb, or take fewer --workers"
        )
    if process.returncode or not predictions:
        raise InputError(f"the kernel ended with code {process.returncode}; what it said stands above")
    if not first:
        first, first_s = predictions, wall_s
    seconds = [p.seconds for p in first]
    startup_s = max(first_s - max(*seconds, sum(seconds) / len(cores)), 0.0)
    startup_cpu_s = max(at_s for now_s, at_s in samples if now_s <= startup_s)
    return Timing(tuple(predictions), wall_s, cpu_s, startup_s, startup_cpu_s, peak_bytes / 1e6, n_killed=len(killed))


def read_so_far(details: Path) -> list[Prediction]:
    """What a predictions.csv says; nothing where there is none yet."""
    return read_predictions(details) if details.exists() else []


def time_reading(reads: list[tuple[Path, int]], cores: list[int]) -> float:
    """Wall seconds that reading so many frames of each clip takes, with a process a core."""
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
    """The figures for people: a table, its last line the verdict."""
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
    """The figures for machines, on one line."""
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
    """Seconds of a duration such as 9h, 1.5h, 30m or 3600s."""
    if not re.fullmatch(r"\d+(\.\d+)?[hms]", text):
        raise argparse.ArgumentTypeError(f"is {text!r}; allowed are numbers with a unit: 9h, 30m or 3600s")
    return float(text[:-1]) * {"h": 3600, "m": 60, "s": 1}[text[-1]]


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("paths", nargs="+", type=Path, metavar="PATH", help="clip or folder of clips")
    add("--match", metavar="GLOB", default="*", help="only clips of such names, as in 'ff_*.mp4' (default: all)")
    add("--repeat", type=int, metavar="N", help="N clips in all, in turn (default: each once)")
    add("--cores", type=int, default=2, help="cores that are used (default: %(default)s)")
    add("--workers", type=positive, help="clips at once (default: the kernel's)")
    add("--device", choices=("auto", "cpu", "cuda"), help="where nets run (default: the kernel's)")
    add("--frames", type=positive, default=16, help="frames looked at per clip (default: %(default)s)")
    add("--weights", type=Path, help="weights file or folder (default: the kernel's)")
    add("--with", dest="extras", action="append", choices=EXTRAS, default=[], help="as the kernel takes it")
    add("--memory-gb", type=float, help="10^9 bytes that the kernel's processes may take together (default: any)")
    add("--clips", type=int, default=PlannedRun.n_clips, help="clips of the planned run (default: %(default)s)")
    add("--limit", type=parse_duration, default="9h", help="how long it may take (default: %(default)s)")
    args = parser.parse_args(argv)
    names = [name for name in ("workers", "device", "frames", "weights") if getattr(args, name) is not None]
    kernel = [sys.executable, KERNEL, "--fresh", *(f"--{name}={getattr(args, name)}" for name in names)]
    kernel += [f"--with={extra}" for extra in args.extras]
    try:
        plan, job = PlannedRun(args.clips, args.limit, args.memory_gb), collect(args.paths)
        clips = [job.paths[name] for name in fnmatch.filter(job.names, args.match)]
        timing = time_kernel(clips, kernel, n_clips=args.repeat, cores=args.cores, memory_gb=args.memory_gb)
    except MemoryError as error:
        print(f"time_kernel: {error}", file=sys.stderr)
        return 1
    except (InputError, OSError) as error:
        print(f"time_kernel: {error}", file=sys.stderr)
        return 2
    print(describe(timing, plan), to_json(timing, plan), sep="\n")
    return 0 if timing.fits(plan) else 1


if __name__ == "__main__":
    run_tool(main)
