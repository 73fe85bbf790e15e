"""Measure what a long list of clips takes: `dfdc score LIST --ray` on clips that do not exist.

python tools/bench/stream_manifest.py --n 1000000

Each clip gets its row, which says that there is no such file, so that nothing is measured but the way of the list
through the cluster and of the rows back: clips per second, core-seconds, and the most memory at any time. The object
store counts in the memory of all processes.
"""

from __future__ import annotations

import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent.parent))

from dfdc.cluster.sink import read_results
from dfdc.errors import InputError
from dfdc.flags import make_parser, positive, run_tool, tool
from dfdc.run.processes import find_tree, measure_process

ROOT = Path(__file__).resolve().parent.parent.parent
POLL_S = 1.0


@tool
def main(argv: list[str] | None = None) -> int:
    parser = make_parser(__doc__)
    add = parser.add_argument
    add("--n", type=positive, default=1_000_000, help="lines of the list (default: %(default)s)")
    add("--seconds", type=positive, help="interrupt the command after so many seconds (default: when it ends)")
    args = parser.parse_args(argv)
    with tempfile.TemporaryDirectory(prefix="dfdc-") as temporary:
        source, results = Path(temporary) / "list.txt", Path(temporary) / "results"
        with source.open("w") as file:
            file.writelines(f"absent/{number:09d}.mp4\n" for number in range(args.n))
        command = [sys.executable, "-m", "dfdc.cli", "score", str(source), "--ray", "--device", "cpu"]
        process = subprocess.Popen([*command, "--out", str(results)], cwd=ROOT, stdout=subprocess.DEVNULL)
        began_s, used, own_bytes, all_bytes = time.monotonic(), {}, 0, 0
        while process.poll() is None:
            if args.seconds and time.monotonic() > began_s + args.seconds:
                process.send_signal(signal.SIGINT)
                process.wait()
                break
            found = {pid: measure_process(pid) for pid in find_tree(process.pid)}
            used.update({pid: core_s for pid, (core_s, _) in found.items() if core_s})
            own_bytes = max(own_bytes, found[process.pid][1])
            all_bytes = max(all_bytes, sum(resident for _, resident in found.values()))
            time.sleep(POLL_S)
        took_s = time.monotonic() - began_s
        if process.returncode not in (0, 130):
            raise InputError(f"{' '.join(command)}: failed")
        n_rows = len(set(read_results(str(results))["line"].to_pylist()))
    own_s = used.pop(process.pid)
    print(f"{args.n} lines, {n_rows} rows in {took_s:.0f} s")
    print(f"the command's process: {own_s:.0f} core-seconds, {own_bytes / 1e6:.0f} MB at most")
    print(f"all others: {sum(used.values()):.0f} core-seconds; {all_bytes / 1e6:.0f} MB at most with the command's")
    return 0


if __name__ == "__main__":
    run_tool(main)
