"""Measure what Ray costs on one machine: the same clips by the plain tool and by `--ray`, one after the other.

python tools/bench/time_cluster.py CLIPS --n 10 100

The clips are linked as often as needed to get N of them. Core-seconds are those of all processes, Ray's own included;
they are read from /proc several times a second, so that those of processes that end in between are nearly complete.
With two numbers, the difference of the runs says what a further clip costs, without the start. Wall time is told too,
and means little while other programs run.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from collections import Counter
from dataclasses import dataclass
from itertools import cycle, islice
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent.parent))

from dfdc.cluster.sink import read_results
from dfdc.errors import InputError
from dfdc.flags import make_parser, positive, run_tool, tool
from dfdc.prediction import DEFAULT_FRAMES
from dfdc.run.inputs import collect
from dfdc.run.limits import count_cores
from dfdc.run.processes import find_tree
from dfdc.run.submission import read_predictions

ROOT = Path(__file__).resolve().parent.parent.parent
POLL_S = 0.2


# What the processes of a run are, by a part of their command line; the first that fits counts.
KINDS = {
    "multiprocessing": "processes that read and score clips",
    "ray::Dashboard": "Ray's agents",
    "ray::RuntimeEnv": "Ray's agents",
    "dashboard/agent": "Ray's agents",
    "runtime_env/agent": "Ray's agents",
    "ray::": "Ray's actors",
    "default_worker": "Ray's actors",
    "gcs_server": "Ray's servers",
    "raylet/raylet": "Ray's servers",
    "dashboard/": "Ray's dashboard",
    "log_monitor": "Ray's log monitor",
    "autoscaler": "Ray's autoscaler",
    "dfdc.cli": "the command's process",
}
OTHERS = "others"


@dataclass(frozen=True)
class Cost:
    """Wall seconds and core-seconds of a run, and the core-seconds by kind of process."""

    wall_s: float
    core_s: float
    by_kind: dict[str, float]


def link_clips(clips: list[Path], folder: Path, n: int) -> Path:
    """A folder with n links to clips, which come in turns."""
    folder.mkdir()
    for number, clip in enumerate(islice(cycle(clips), n)):
        (folder / f"{number:04d}{clip.suffix}").symlink_to(clip.resolve())
    return folder


def measure(command: list[str]) -> Cost:
    """Run a command and measure it.

    Raises:
        InputError: it fails.
    """
    began_s, used, kinds = time.monotonic(), {}, {}
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    while process.poll() is None:
        for pid in find_tree(process.pid):
            used[pid] = max(_core_s(pid), used.get(pid, 0.0))
            kinds[pid] = _find_kind(pid) or kinds.get(pid, OTHERS)
        time.sleep(POLL_S)
    if process.returncode:
        raise InputError(f"{' '.join(command)}: failed with {process.stderr.read()}")
    by_kind: Counter[str] = Counter()
    for pid, core_s in used.items():
        by_kind[kinds[pid]] += core_s
    return Cost(time.monotonic() - began_s, sum(used.values()), dict(by_kind))


def _find_kind(pid: int) -> str:
    """What a process is; empty if that is not known, or it has ended."""
    try:
        command = Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
    except OSError:
        return ""
    return next((kind for part, kind in KINDS.items() if part in command), "")


def _core_s(pid: int) -> float:
    """The core-seconds of a process without its children; 0 if it has ended."""
    try:
        # proc(5): the text after the name in brackets starts with field 3; fields 14 and 15 are its core time.
        fields = Path(f"/proc/{pid}/stat").read_text(errors="replace").rpartition(")")[2].split()
    except OSError:
        return 0.0
    return sum(map(int, fields[11:13])) / os.sysconf("SC_CLK_TCK")


def compare(clips: list[Path], n: int, n_frames: int, home: Path) -> tuple[Cost, Cost]:
    """Score n clips by the plain tool and by Ray, and tell what both took.

    Raises:
        InputError: a run fails, or the labels differ.
    """
    folder, out, results = link_clips(clips, home / "clips", n), home / "plain.csv", home / "results"
    program = [sys.executable, "-m", "dfdc.cli", "score", str(folder), "--frames", str(n_frames), "--device", "cpu"]
    plain = measure([*program, "--out", str(out), "--workers", str(count_cores())])
    ray = measure([*program, "--out", str(results), "--ray"])
    labels = {p.filename: f"{p.label:.6f}" for p in read_predictions(home / "plain.predictions.csv")}
    found = {row["filename"]: f"{row['label']:.6f}" for row in read_results(str(results)).to_pylist()}
    if labels != found:
        raise InputError(f"{folder}: the labels of the plain tool and of Ray differ")
    for name, cost in (("plain", plain), ("--ray", ray)):
        print(f"{name}: {n} clips, {cost.core_s:.1f} core-seconds, {cost.wall_s:.0f} s")
        for kind, core_s in sorted(cost.by_kind.items(), key=lambda entry: -entry[1]):
            print(f"    {core_s:6.1f}  {kind}")
    print(f"--ray takes {_tell_ratio(ray.core_s, plain.core_s)} core-seconds; all {n} labels are equal", flush=True)
    return plain, ray


def _tell_ratio(ray: float, plain: float) -> str:
    return f"{ray / plain - 1:+.1%}"


@tool
def main(argv: list[str] | None = None) -> int:
    parser = make_parser(__doc__)
    add = parser.add_argument
    add("clips", type=Path, help="folder of clips")
    add("--n", type=positive, nargs="+", default=[10, 100], help="clips to score in each run (default: 10 100)")
    add("--frames", type=positive, default=DEFAULT_FRAMES, help="frames per clip (default: %(default)s)")
    args = parser.parse_args(argv)
    job = collect([args.clips])
    clips = [job.paths[name] for name in job.names]
    costs = {}
    for n in sorted(args.n):
        with tempfile.TemporaryDirectory(prefix="dfdc-") as home:
            costs[n] = compare(clips, n, args.frames, Path(home))
    few, many = min(costs), max(costs)
    if few < many:
        plain, ray = ((costs[many][i].core_s - costs[few][i].core_s) / (many - few) for i in range(2))
        print(f"a further clip takes {plain:.2f} and {ray:.2f} core-seconds ({_tell_ratio(ray, plain)})")
    return 0


if __name__ == "__main__":
    run_tool(main)
