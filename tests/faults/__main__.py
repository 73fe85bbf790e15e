"""Run the fault suite against the real kernel and write the results.

python -m tests.faults --out docs                     # all parts: docs/faults.json and docs/faults.md
python -m tests.faults --out docs --only signals      # one part; the others keep their results
python -m tests.faults --out docs --only soak         # docs/soak.json and docs/soak.png
"""

from __future__ import annotations

import argparse
import datetime
import json
import platform
import shutil
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

from tests.faults import attacks, parts, soak
from tests.faults.parts import Bench, Outcome

PARTS: dict[str, Callable[[Bench], list[Outcome]]] = {
    "clips": parts.damaged_clips,
    "permission": parts.unreadable_clip,
    "sabotage": parts.sabotaged_workers,
    "workers": parts.killed_workers,
    "trees": parts.killed_trees,
    "supervisor": parts.lone_supervisor,
    "signals": parts.signals,
    "deadline": parts.time_limit,
    "disk": parts.disk_faults,
    "outputs": attacks.outputs,
    "waits": attacks.waits,
    "swaps": attacks.swaps,
    "locks": attacks.locks,
    "names": attacks.names,
    "environment": attacks.environments,
    "bombs": attacks.bombs,
}


def write_table(found: dict[str, dict], path: Path) -> None:
    """Write the table of all parts as Markdown; every number comes from the parts' results."""
    lines = [
        "# Faults: what was tried on the kernel, and the results",
        "",
        "`make faults` writes this page; the raw results are in [faults.json](faults.json). A *lost* row is missing in",
        "submission.csv. *Wrong* counts rows that hold no probability or another label than in the undisturbed run,",
        "reads that found the file broken, and runs that did not end as they should. The list at the end of this page",
        "states the date of each part and whether it used real or fake models. Fake models compute a label from the",
        "mean of the pixels; the kernel's processes, its reader, signals, disks and files are real in both cases.",
        "",
        "| Fault | Times tried | Rows lost | Wrong | Longest delay, s | Delay of |",
        "|---|---:|---:|---:|---:|---|",
    ]
    outcomes = [outcome for part in PARTS if part in found for outcome in found[part]["outcomes"]]
    for one in outcomes:
        delay = "" if one["delay_s"] is None else f"{one['delay_s']:.1f}"
        lines.append(
            f"| {one['fault']} | {one['tried']} | {one['lost']} | {one['wrong']} | {delay} | {one['delay_of']} |"
        )
    totals = {key: sum(one[key] for one in outcomes) for key in ("tried", "lost", "wrong")}
    lines.append(f"| **all** | **{totals['tried']}** | **{totals['lost']}** | **{totals['wrong']}** | | |")
    reads = [reader for one in outcomes for reader in find_readers(one["details"])]
    n_reads, n_versions = (sum(int(reader[key]) for reader in reads) for key in ("reads", "versions"))
    lines += [
        "",
        f"During these runs another process read submission.csv {n_reads:,} times. It saw {n_versions:,} versions",
        f"of it and found it broken {sum(len(reader['faults']) for reader in reads)} times.",
        "",
    ]
    for part, record in found.items():
        lines.append(
            f"- {part}: {record['date']}, {record['seconds']:.0f} s on {record['machine']}, {record['models']} models"
        )
    path.write_text("\n".join(lines) + "\n")


def without_places(text: str, folder: Path) -> str:
    """Replace the paths of this machine's folders in a text by names."""
    places = {str(folder): "BENCH", str(Path(__file__).resolve().parents[2]): "PROJECT"}
    places |= {sys.prefix: "PYTHON", sys.base_prefix: "PYTHON"}
    for place in sorted(places, key=len, reverse=True):
        text = text.replace(place, places[place])
    return text


def find_readers(details: object) -> list[dict]:
    """Find the reports of readers anywhere in an outcome's details."""
    if isinstance(details, dict):
        if "versions" in details and "reads" in details:
            return [details]
        details = list(details.values())
    return [reader for value in details for reader in find_readers(value)] if isinstance(details, list) else []


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--out", type=Path, default=Path("docs"), help="write the results into this folder (default: %(default)s)"
    )
    parser.add_argument(
        "--only",
        nargs="+",
        choices=[*PARTS, "soak"],
        default=list(PARTS),
        help="run only these parts (default: all but soak)",
    )
    parser.add_argument(
        "--models", choices=("real", "fake"), default="real", help="use real or fake models (default: %(default)s)"
    )
    parser.add_argument("--seed", type=int, default=0, help="seed of all random choices (default: %(default)s)")
    parser.add_argument("--clips", type=int, default=2000, help="number of clips of the soak (default: %(default)s)")
    parser.add_argument("--keep", type=Path, help="work in this folder and keep it (default: a temporary one)")
    args = parser.parse_args(argv)
    folder = args.keep or Path(tempfile.mkdtemp(prefix="faults-"))
    folder.mkdir(parents=True, exist_ok=True)
    results = args.out / "faults.json"
    found = json.loads(results.read_text()) if results.exists() else {}
    try:
        if "soak" in args.only:
            print(soak.soak(folder / "soak", args.out, n_clips=args.clips))
        wanted = [part for part in PARTS if part in args.only]
        bench = Bench(folder, seed=args.seed, models=args.models) if wanted else None
        for part in wanted:
            started = time.monotonic()
            outcomes = PARTS[part](bench)
            found[part] = {
                "date": datetime.date.today().isoformat(),
                "seconds": time.monotonic() - started,
                "machine": f"{len(parts.os.sched_getaffinity(0))} cores, Python {platform.python_version()}",
                "seed": args.seed,
                "models": args.models,
                "outcomes": [asdict(outcome) for outcome in outcomes],
            }
            results.write_text(without_places(json.dumps(found, indent=1), folder) + "\n")
            write_table(found, args.out / "faults.md")
            for one in outcomes:
                print(
                    f"{one.fault}: {one.tried} tried, {one.lost} lost, {one.wrong} wrong, {one.delay_s} s", flush=True
                )
    finally:
        if not args.keep:
            shutil.rmtree(folder, ignore_errors=True)
    return int(any(one["lost"] or one["wrong"] for part in found.values() for one in part["outcomes"]))


if __name__ == "__main__":
    sys.exit(main())
