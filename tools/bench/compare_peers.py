"""Measure the cost of decoding alone, of this kernel and of a published recipe, in one run on the same clips and cores.

python tools/bench/compare_peers.py clips --repeat 24

It prints a table in Markdown: seconds and core-seconds of a clip (the kernel's mean over the run, in which two workers
score at once; the other recipe's median over the clips, which it scores one after another on both cores), times reading
alone, memory and start-up. The other recipe is tools/bench/peer_mtcnn_b4.py. Measure on an idle machine.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from dfdc.errors import InputError
from dfdc.flags import make_parser, positive, run_tool, tool
from dfdc.run.inputs import collect

TIMER, PEER = (Path(__file__).with_name(name) for name in ("time_kernel.py", "peer_mtcnn_b4.py"))
# Exit status of TIMER if 4,000 clips would not fit into nine hours, which does not matter here.
DOES_NOT_FIT = 3
# Settings of the kernel, from the fastest to the best.
SETTINGS = {
    "this kernel, the default: 16 frames, first model": ["--frames=16", "--models=first"],
    "this kernel, 32 frames, first model": ["--frames=32", "--models=first"],
    "this kernel, as in Kaggle's notebook: 32 frames, all models": ["--frames=32", "--models=all"],
}


@dataclass(frozen=True)
class Cost:
    """The cost of one way of scoring.

    Attributes:
        name: name of the way of scoring.
        seconds: wall seconds per clip.
        core_seconds: CPU seconds per clip.
        reading_s: wall seconds per clip for reading alone, at the same time; None if not measured.
        peak_mb: peak resident memory (10^6 bytes) of all processes together.
        startup_s: seconds before the first clip.
    """

    name: str
    seconds: float
    core_seconds: float
    reading_s: float | None
    peak_mb: float
    startup_s: float


def measure_kernel(name: str, clips: Sequence[Path], flags: Sequence[str], *, n_clips: int, cores: int) -> Cost:
    """Measure the cost of the kernel with some flags, on the CPU.

    Raises:
        InputError: the kernel failed.
    """
    settings = ["--device=cpu", f"--repeat={n_clips}", f"--cores={cores}", *flags]
    found = _run(TIMER, [*settings, *map(str, clips)], allowed=(0, DOES_NOT_FIT))
    keys = ("seconds_per_clip", "core_seconds_per_clip", "floor_seconds_per_clip", "peak_rss_mb", "startup_seconds")
    return Cost(name, *(found[key] for key in keys))


def measure_peer(name: str, clips: Sequence[Path], *, n_frames: int, cores: int) -> Cost:
    """Measure the cost of the published recipe: the median over the clips, each of which is scored once.

    Raises:
        InputError: the recipe failed.
    """
    chosen = sorted(os.sched_getaffinity(0))[:cores]
    arguments = [f"--frames={n_frames}", f"--threads={cores}", *map(str, clips)]
    found = _run(PEER, arguments, cores=chosen)
    seconds, core_seconds = (float(np.median(found[key])) for key in ("seconds", "core_seconds"))
    return Cost(name, seconds, core_seconds, None, found["peak_mb"], found["startup_s"])


def _run(tool: Path, arguments: list[str], *, allowed: Sequence[int] = (0,), cores: Sequence[int] | None = None) -> Any:
    """Run a tool, and parse the JSON on the last line of its output."""
    bind = None if cores is None else lambda: os.sched_setaffinity(0, cores)
    done = subprocess.run(
        [sys.executable, str(tool), *arguments], stdout=subprocess.PIPE, text=True, check=False, preexec_fn=bind
    )
    if done.returncode not in allowed:
        raise InputError(f"{tool.name} ended with code {done.returncode}; its messages are above")
    return json.loads(done.stdout.splitlines()[-1])


def format_table(costs: Sequence[Cost]) -> str:
    """Format a Markdown table; ratios refer to the reading time of the same row, or else to the mean of all rows."""
    mean_s = float(np.mean([cost.reading_s for cost in costs if cost.reading_s is not None]))
    lines = ["| | s a clip | times reading | core-seconds | memory | start-up |", "|---|---|---|---|---|---|"]
    lines.append(f"| reading alone | {mean_s:.2f} | 1 | | | |")
    for cost in costs:
        ratio = cost.seconds / (mean_s if cost.reading_s is None else cost.reading_s)
        cells = (cost.name, f"{cost.seconds:.2f}", f"{ratio:.2f}", f"{cost.core_seconds:.2f}")
        lines.append(f"| {' | '.join(cells)} | {cost.peak_mb / 1000:.1f} GB | {cost.startup_s:.1f} s |")
    return "\n".join(lines)


@tool
def main(argv: list[str] | None = None) -> int:
    parser = make_parser(__doc__)
    add = parser.add_argument
    add("paths", nargs="+", type=Path, metavar="PATH", help="clips, or folders of clips")
    add(
        "--repeat",
        type=positive,
        default=24,
        metavar="N",
        help="clips in each run of the kernel (default: %(default)s)",
    )
    add("--cores", type=positive, default=2, help="number of cores to use (default: %(default)s)")
    peer_help = "frames per clip for the other recipe (default: %(default)s)"
    add("--peer-frames", type=positive, default=32, help=peer_help)
    args = parser.parse_args(argv)
    job = collect(args.paths)
    clips = [job.paths[name] for name in job.names]
    costs = [
        measure_kernel(name, clips, flags, n_clips=args.repeat, cores=args.cores) for name, flags in SETTINGS.items()
    ]
    peer = f"facenet-pytorch's MTCNN and EfficientNet-B4 in PyTorch, {args.peer_frames} frames"
    costs.append(measure_peer(peer, clips, n_frames=args.peer_frames, cores=args.cores))
    print(format_table(costs))
    return 0


if __name__ == "__main__":
    run_tool(main)
