"""Measure what Ray costs on one machine: the same clips by the plain tool and by `--ray`, one after the other.

python tools/bench/time_cluster.py CLIPS --n 100

The clips are linked as often as needed to get N of them. Core-seconds are those of all processes, Ray's own included;
they are read from /proc several times a second, so that those of processes that end in between are nearly complete.
Wall time is told too, and means little while other programs run.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from itertools import cycle, islice
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent.parent))

from dfdc.cluster.sink import read_results
from dfdc.errors import InputError
from dfdc.flags import make_parser, positive, run_tool, tool
from dfdc.run.inputs import collect
from dfdc.run.limits import count_cores
from dfdc.run.processes import find_tree
from dfdc.run.submission import read_predictions

ROOT = Path(__file__).resolve().parent.parent.parent
POLL_S = 0.2


@dataclass(frozen=True)
class Cost:
    """Wall seconds and core-seconds of a run, and the core-seconds of the process that was started."""

    wall_s: float
    core_s: float
    driver_s: float


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
    began_s, used = time.monotonic(), {}
    process = subprocess.Popen(
        command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, env={**os.environ}
    )
    while process.poll() is None:
        for pid in find_tree(process.pid):
            used[pid] = max(_core_s(pid), used.get(pid, 0.0))
        time.sleep(POLL_S)
    if process.returncode:
        raise InputError(f"{' '.join(command)}: failed with {process.stderr.read()}")
    return Cost(time.monotonic() - began_s, sum(used.values()), used.get(process.pid, 0.0))


def _core_s(pid: int) -> float:
    """The core-seconds of a process without its children; 0 if it has ended."""
    try:
        # proc(5): the text after the name in brackets starts with field 3; fields 14 and 15 are its core time.
        fields = Path(f"/proc/{pid}/stat").read_text(errors="replace").rpartition(")")[2].split()
    except OSError:
        return 0.0
    return sum(map(int, fields[11:13])) / os.sysconf("SC_CLK_TCK")


@tool
def main(argv: list[str] | None = None) -> int:
    parser = make_parser(__doc__)
    add = parser.add_argument
    add("clips", type=Path, help="folder of clips")
    add("--n", type=positive, default=100, help="clips to score (default: %(default)s)")
    add("--frames", type=positive, default=32, help="frames per clip (default: %(default)s)")
    add("--repeat", type=positive, default=1, help="times to run both, by turns (default: %(default)s)")
    args = parser.parse_args(argv)
    job = collect([args.clips])
    with tempfile.TemporaryDirectory(prefix="dfdc-") as temporary:
        home = Path(temporary)
        folder = link_clips([job.paths[name] for name in job.names], home / "clips", args.n)
        for turn in range(args.repeat):
            out, results = home / f"{turn}.csv", home / f"results-{turn}"
            common = ["score", str(folder), "--frames", str(args.frames), "--device", "cpu"]
            program = [sys.executable, "-m", "dfdc.cli", *common]
            plain = measure([*program, "--out", str(out), "--workers", str(count_cores())])
            ray = measure([*program, "--out", str(results), "--ray"])
            labels = {p.filename: p.label for p in read_predictions(out.with_name(f"{turn}.predictions.csv"))}
            found = {row["filename"]: row["label"] for row in read_results(str(results)).to_pylist()}
            differs = max(abs(labels[name] - found[name]) for name in labels)
            for name, cost in (("plain", plain), ("--ray", ray)):
                print(
                    f"{name}: {cost.core_s:.1f} core-seconds ({cost.core_s / args.n:.2f} a clip), of them "
                    f"{cost.driver_s:.1f} in the process that was started; {cost.wall_s:.0f} s",
                    flush=True,
                )
            print(
                f"--ray takes {ray.core_s / plain.core_s - 1:+.1%} core-seconds and "
                f"{ray.wall_s / plain.wall_s - 1:+.1%} wall time; {len(found)} rows, labels differ by at most "
                f"{differs:.0e} (predictions.csv has six decimals)",
                flush=True,
            )
    return 0


if __name__ == "__main__":
    run_tool(main)
