"""The experiments: each exposes the real kernel to one kind of fault and returns the outcome."""

from __future__ import annotations

import contextlib
import json
import os
import random
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from tests.faults import kernels
from tests.faults.damage import damage, write_bases
from tests.faults.handmade import write_handmade
from tests.faults.kernels import Kernel, judge, labels, sampled, start, watched
from tests.faults.sabotage import DEEDS, GRACE_S, LIMIT_S

READ_ALONE = """
import os
import sys
from pathlib import Path
from dfdc.errors import VideoError
from dfdc.video import read_frames
if os.geteuid() == 0:  # root may read every file; all modules are loaded by now
    os.setuid(65534)
try:
    read_frames(Path(sys.argv[1]), 2)
except VideoError as error:
    print(error)
"""
# Frames per clip; the results of these tests do not depend on the number.
FRAMES = ("--frames", 4)


@dataclass(frozen=True)
class Outcome:
    """The outcome of one kind of fault.

    Attributes:
        fault: description of the fault.
        tried: number of tries.
        lost: number of rows that were missing at the end, over all tries.
        wrong: number of wrong rows, see `kernels.judge`, and of reads of the file that found it broken.
        delay_s: longest delay in seconds; None if nothing waits.
        delay_of: what was delayed.
        details: further observations by name.
    """

    fault: str
    tried: int
    lost: int
    wrong: int
    delay_s: float | None = None
    delay_of: str = ""
    details: dict[str, object] = field(default_factory=dict)


class Bench:
    """A folder to work in, the clips, and their labels in an undisturbed run."""

    def __init__(self, folder: Path, *, seed: int = 0, models: str = "real") -> None:
        """Make the clips and score them.

        Args:
            folder: folder to work in; it is created if it does not exist.
            seed: seed of all random choices.
            models: "real" or "fake", see `kernels.start`.
        """
        self.folder, self.seed, self.models = folder, seed, models
        folder.mkdir(parents=True, exist_ok=True)
        self.bases = write_bases(folder / "bases")
        self.expected = self._undisturbed()

    def _undisturbed(self) -> dict[str, float]:
        """Score the intact clips; return their labels by file name."""
        out = self.new_folder("undisturbed") / "submission.csv"
        kernel = self.start(self.folder / "bases", out)
        code = kernel.wait()
        found = {name: row["status"] for name, row in kernels.details(out).items()}
        if code or set(found.values()) != {"ok"}:
            raise AssertionError(f"the undisturbed run ended with {code}, {found}: {kernel.text}")
        return labels(out)

    def start(self, clips: Path, out: Path, *more: object, **how: object) -> Kernel:
        return start([clips, *FRAMES, *more], out, models=self.models, **how)

    def new_folder(self, name: str) -> Path:
        folder = self.folder / name
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        return folder

    def intact(self, folder: Path, n: int, *, base: str | None = None) -> dict[str, float]:
        """Link `n` intact clips into a folder; return the expected label by name."""
        found = {}
        for i in range(n):
            source = base or list(self.bases)[i % len(self.bases)]
            name = f"intact-{i:04d}-{source}"
            os.link(self.bases[source], folder / name)
            found[name] = self.expected[source]
        return found


def names_in(folder: Path) -> list[str]:
    """The rows that a folder of clips gives; the sub-folders here hold no clips."""
    return sorted(name for name in os.listdir(folder) if not os.path.isdir(folder / name))


def damaged_clips(bench: Bench, *, limit: int | None = None, large: bool = True) -> list[Outcome]:
    """Score damaged clips, hand-made clips and intact clips between them in one run.

    Args:
        bench: the bench to work on.
        limit: largest number of damaged clips, spread over all kinds; None for all.
        large: whether to include the hand-made clips that are merely large.
    """
    folder = bench.new_folder("damaged")
    clips = folder / "clips"
    clips.mkdir()
    harmed = list(damage({name: path.read_bytes() for name, path in bench.bases.items()}, seed=bench.seed))
    if limit is not None:
        harmed = harmed[:: -(-len(harmed) // limit)]
    for one in harmed:
        (clips / one.name).write_bytes(one.data)
    expected = bench.intact(clips, max(len(harmed) // 10, 4))
    for i, name in enumerate(list(expected)):  # rename some, so that they lie between the others
        if i % 2:
            kind = harmed[i * len(harmed) // len(expected)].kind.replace(" ", "-")
            (clips / name).rename(clips / f"{kind}-{name}")
            expected[f"{kind}-{name}"] = expected.pop(name)
    with listening() as (port, callers):
        written = write_handmade(clips, bench.bases["behind.mp4"], beside=next(iter(expected)), port=port, large=large)
        out = folder / "submission.csv"
        names = names_in(clips)
        handmade = [name for name in written if name in names]
        with watched(out, names) as seen:
            kernel = bench.start(clips, out)
            with sampled(kernel, every_s=0.25) as samples:
                code = kernel.wait()
    verdict = judge(out, names, expected)
    known = kernels.details(out)
    statuses = {name: row["status"] for name, row in known.items()}
    # Hand-made clips show a face only if their name says so; fake models find one in every clip.
    scored = [name for name in handmade if statuses.get(name) == "ok" and not name.startswith("face-")]
    tricked = scored if bench.models == "real" else []
    lists = [name for name in handmade if name.startswith("list-") and statuses.get(name) != "unreadable"]
    common = {
        "exit code": code,
        "statuses": dict(Counter(statuses.values())),
        "errors": [f"{name}: {row['reason']}" for name, row in known.items() if row["status"] in ("error", "timeout")],
        "reader": seen,
        "temporary files": kernels.leftovers(folder),
        "largest process, MB": max(sample.largest_mb for sample in samples),
        "all processes, MB": max(sample.pss_mb for sample in samples),
        "wrong rows": verdict.wrong[:20],
        "lost rows": verdict.lost[:20],
    }

    def outcome(fault: str, some: list[str], extra: int = 0, **more: object) -> Outcome:
        chosen = set(some)
        wrong = sum(line.split(": ")[0] in chosen for line in verdict.wrong)
        longest = max((float(known[name]["seconds"]) for name in some if name in known), default=0.0)
        lost = sum(name in chosen for name in verdict.lost)
        return Outcome(fault, len(some), lost, wrong + extra, longest, "one clip", more)

    of_kind: dict[str, list[str]] = {}
    for one in harmed:
        of_kind.setdefault(one.kind, []).append(one.name)
    found = [
        outcome(f"damaged clip: {kind}", some, statuses=dict(Counter(statuses.get(name) for name in some)))
        for kind, some in of_kind.items()
    ]
    broken = len(seen["faults"]) + (code != 0)
    extra = len(tricked) + len(lists) + len(callers)
    found.append(outcome("hand-made clip", handmade, extra, tricked=tricked, calls=len(callers), lists=lists))
    found.append(outcome("intact clip between them", list(expected), broken, **common))
    return found


@contextlib.contextmanager
def listening() -> Iterator[tuple[int, list[object]]]:
    """Listen on a local port; yield the port and the list of callers, which is filled at the end."""
    callers: list[object] = []
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.setblocking(False)
        yield server.getsockname()[1], callers
        with contextlib.suppress(BlockingIOError):
            while True:
                connection, address = server.accept()
                callers.append(address)
                connection.close()


def sabotaged_workers(bench: Bench, *, deeds: tuple[str, ...] = tuple(DEEDS), n_each: int = 2) -> list[Outcome]:
    """Run the kernel on clips of which some make their worker crash, hang or use up memory."""
    folder = bench.new_folder("sabotaged")
    clips = folder / "clips"
    clips.mkdir()
    expected = bench.intact(clips, 4 * len(deeds))
    bad = {f"{deed}!{i}.mp4": deed for deed in deeds for i in range(n_each)}
    for name in bad:
        os.link(bench.bases["behind.mp4"], clips / name)
    out, names = folder / "submission.csv", names_in(clips)
    with watched(out, names) as seen:
        kernel = bench.start(clips, out, limit_s=LIMIT_S)
        code = kernel.wait()
    verdict, known = judge(out, names, expected), kernels.details(out)
    left = [process.command for process in kernels.processes(kernel.process.pid)]
    found = []
    for deed in deeds:
        some = [name for name, its in bad.items() if its == deed]
        unnoticed = [name for name in some if known.get(name, {}).get("status") not in ("error", "timeout")]
        wrong = sum(line.split(": ")[0] in some for line in verdict.wrong) + len(unnoticed)
        lost = sum(name in some for name in verdict.lost)
        reasons = sorted({known[name]["reason"] for name in some if name in known})
        found.append(
            Outcome(
                f"worker: {DEEDS[deed].__doc__}",
                len(some),
                lost,
                wrong,
                details={"reasons": reasons},
            )
        )
    others = (
        sum(line.split(": ")[0] in expected for line in verdict.wrong) + len(seen["faults"]) + (code != 0) + len(left)
    )
    more = {
        "exit code": code,
        "reader": seen,
        "left processes": left,
        "wrong rows": verdict.wrong[:20],
        "log": tail(kernel),
    }
    more["limit, s"] = LIMIT_S + max(LIMIT_S, GRACE_S)
    found.append(
        Outcome(
            "intact clips beside those workers",
            len(expected),
            sum(n in expected for n in verdict.lost),
            others,
            kernel.age_s(),
            "the whole run",
            more,
        )
    )
    return found


def tail(kernel: Kernel, n: int = 12) -> list[str]:
    """The last lines that a kernel printed, without progress bars."""
    lines = [line.rpartition("\r")[2] for line in kernel.text.split("\n")]
    return [line for line in lines if line.strip() and "clip/s" not in line][-n:]


def killed_workers(bench: Bench, *, n_kills: int = 20, n_clips: int | None = None) -> list[Outcome]:
    """Kill the workers of one run again and again at random moments."""
    chance = random.Random(f"{bench.seed} workers")
    folder = bench.new_folder("killed-workers")
    clips = folder / "clips"
    clips.mkdir()
    # Enough clips to last until all kills are done; fake models take no time.
    expected = bench.intact(clips, n_clips or (800 if bench.models == "real" else 2000))
    out = folder / "submission.csv"
    journal = out.with_name(".submission.csv.journal")
    kills, delays = [], []
    with watched(out, list(expected)) as seen:
        kernel = bench.start(clips, out)
        # Workers that die one after another before any clip is finished end the run, because a machine without memory
        # looks the same. So the first kill waits for a row, and each kill falls at a random moment after a row.
        kernel.wait_until(lambda: len(lines(journal)) > 1)
        while len(kills) < n_kills and kernel.running():
            time.sleep(chance.uniform(0, 1.5))
            living = kernels.offspring(kernel.process.pid)
            if not living or not kernel.running():
                continue
            with contextlib.suppress(ProcessLookupError):
                os.kill(chance.choice(living), signal.SIGKILL)
                kills.append(kernel.age_s())
            known = len(lines(journal))
            # Results that were under way still arrive after the kill. Three more rows show that a living worker scores.
            if kernel.wait_until(lambda known=known: len(lines(journal)) > known + 3):
                delays.append(kernel.age_s() - kills[-1])
        code = kernel.wait()
    verdict = judge(out, list(expected), expected)
    errors = [f"{name}: {row['reason']}" for name, row in kernels.details(out).items() if row["status"] != "ok"]
    more = {
        "exit code": code,
        "reader": seen,
        "killed at, s": kills,
        "rows without a score": errors,
        "log": tail(kernel),
    }
    wrong = len(verdict.wrong) + len(seen["faults"]) + (code != 0)
    return [
        Outcome(
            "kill -9 of a worker",
            len(kills),
            len(verdict.lost),
            wrong,
            max(delays, default=None),
            "kill to the third row after it",
            more,
        )
    ]


def killed_trees(bench: Bench, *, n_kills: int = 20, n_clips: int = 400) -> list[Outcome]:
    """Kill a run with all its processes at random moments, and start it again each time."""
    chance = random.Random(f"{bench.seed} trees")
    folder = bench.new_folder("killed-trees")
    clips = folder / "clips"
    clips.mkdir()
    expected = bench.intact(clips, n_clips)
    names, out = list(expected), folder / "submission.csv"
    journal = out.with_name(".submission.csv.journal")
    kept: dict[str, dict[str, str]] = {}
    moments, broken, again, resumes = [], [], [], []
    with watched(out, names) as seen:
        for _ in range(n_kills):
            kernel, before = bench.start(clips, out), len(lines(journal))
            # One kill in four falls during the start, the others during scoring.
            goal = before + chance.randint(1, n_clips // n_kills)
            if chance.random() < 0.25:
                time.sleep(chance.uniform(0.05, 5.0))
            elif kernel.wait_until(lambda goal=goal: len(lines(journal)) >= goal):
                time.sleep(chance.uniform(0, 0.3))
            moments.append(kernel.age_s())
            kernel.kill()
            again += changed_rows(kept, kernels.details(out))
            kept.update(kernels.details(out))
            if out.exists() and (verdict := judge(out, names, expected, may_miss=True)):
                broken += verdict.wrong + verdict.lost
        kernel = bench.start(clips, out)
        code = kernel.wait()
        resumes.append(kernel.age_s())
    verdict = judge(out, names, expected)
    again += changed_rows(kept, kernels.details(out))
    counts = Counter(json.loads(line).get("filename") for line in lines(journal) if is_entry(line))
    twice = [name for name, n in counts.items() if n > 1]
    more = {
        "exit code": code,
        "reader": seen,
        "killed at, s": moments,
        "known when killed last": len(kept),
        "rows that changed after a kill": again[:20],
        "clips journalled twice": twice[:20],
        "temporary files": kernels.leftovers(folder),
        "log": tail(kernel),
    }
    wrong = len(verdict.wrong) + len(seen["faults"]) + len(broken) + len(again) + len(twice) + (code != 0)
    resumed = [float(s) for s in re.findall(r"(\d+) of \d+ clips were scored by an earlier run", kernel.text)]
    more["taken up, clips"] = resumed
    return [
        Outcome(
            "kill -9 of the whole process group, then the same command",
            len(moments),
            len(verdict.lost),
            wrong,
            None,
            "",
            more,
        )
    ]


def lines(path: Path) -> list[str]:
    """The complete lines of a file; empty if there is no file."""
    try:
        return path.read_text(errors="replace").split("\n")[:-1]
    except FileNotFoundError:
        return []


def is_entry(line: str) -> bool:
    """Whether a line of a journal holds a clip."""
    try:
        return "filename" in json.loads(line)
    except ValueError:
        return False


def changed_rows(before: dict[str, dict[str, str]], after: dict[str, dict[str, str]]) -> list[str]:
    """Clips whose row is missing or changed; a clip that was scored again would at least show another time."""
    return [name for name, row in before.items() if after.get(name) != row]


def lone_supervisor(bench: Bench) -> list[Outcome]:
    """Kill only the supervisor; its workers must end too."""
    folder = bench.new_folder("lone")
    clips = folder / "clips"
    clips.mkdir()
    expected = bench.intact(clips, 200)
    out = folder / "submission.csv"
    kernel = bench.start(clips, out)
    scoring = kernel.wait_until(lambda: kernel.n_done() > 4)
    os.kill(kernel.process.pid, signal.SIGKILL)
    began = time.monotonic()
    kernel.process.wait()
    while (left := kernels.processes(kernel.process.pid)) and time.monotonic() - began < 60:
        time.sleep(0.05)
    delay_s = time.monotonic() - began
    verdict = judge(out, list(expected), expected, may_miss=True)
    kernel.kill()
    wrong = len(verdict.wrong) + len(left) + (not scoring)
    return [
        Outcome(
            "kill -9 of the supervisor alone",
            1,
            len(verdict.lost),
            wrong,
            delay_s,
            "until its workers are gone",
            {"left": [p.command for p in left]},
        )
    ]


PHASES = ("starting", "loading", "scoring", "ending")


def signals(
    bench: Bench,
    *,
    phases: tuple[str, ...] = PHASES,
    numbers: tuple[signal.Signals, ...] = (signal.SIGTERM, signal.SIGINT),
    repeat: bool = True,
) -> list[Outcome]:
    """Send SIGTERM and SIGINT, once or twice, to the first process or to all, in each phase of a run."""
    chance = random.Random(f"{bench.seed} signals")
    found = []
    for number in numbers:
        for phase in phases:
            folder = bench.new_folder(f"signal-{number.name}-{phase}")
            clips = folder / "clips"
            clips.mkdir()
            # With fake models hundreds of clips may be done before the first row is seen.
            n_clips = {"scoring": 1500, "ending": 8}.get(phase, 200)
            expected = bench.intact(clips, n_clips, base="front.mp4")
            out = folder / "submission.csv"
            with watched(out, list(expected)) as seen:
                kernel = bench.start(clips, out)
                reached = await_phase(kernel, phase, len(expected), chance)
                # Ctrl-C reaches all processes of a terminal; `kill` and a container that stops reach only the first.
                send = os.killpg if number == signal.SIGINT else os.kill
                began = time.monotonic()
                with contextlib.suppress(ProcessLookupError):
                    send(kernel.process.pid, number)
                    if repeat and phase == "scoring":
                        time.sleep(0.05)
                        send(kernel.process.pid, number)
                kernel.process.wait(timeout=60)
                delay_s = time.monotonic() - began
                late = [p.command for p in kernels.processes(kernel.process.pid)]
                code = kernel.wait()
            verdict = judge(out, list(expected), expected, may_miss=True) if out.exists() else None
            codes = (128 + number, -number, *([0] if phase == "ending" else []))
            wrong = len(seen["faults"]) + (delay_s > 5) + (code not in codes)
            traces = ["Traceback"] if "Traceback" in kernel.text else []
            missing = verdict is None and phase != "starting"
            wrong += len(verdict.wrong) if verdict else int(missing)
            more = {
                "exit code": code,
                "phase reached": reached,
                "reader": seen,
                "processes left": late,
                "temporary files": kernels.leftovers(folder),
                "log": tail(kernel, 6),
                "tracebacks": traces,
            }
            found.append(
                Outcome(
                    f"{number.name} while {phase}",
                    1,
                    len(verdict.lost) if verdict else 0,
                    wrong,
                    delay_s,
                    "signal to end",
                    more,
                )
            )
    return found


def await_phase(kernel: Kernel, phase: str, n_clips: int, chance: random.Random) -> bool:
    """Wait until a run is in a phase; whether it reached it."""
    if phase == "starting":
        time.sleep(chance.uniform(0.02, 0.3))
        return kernel.running()
    if phase == "loading":
        reached = kernel.wait_until(kernel.out.exists)
        time.sleep(chance.uniform(0.1, 1.5))
        return reached and "models run on" not in kernel.text
    if phase == "scoring":
        return kernel.wait_until(lambda: kernel.n_done() > 4)
    journal = kernel.out.with_name(".submission.csv.journal")
    return kernel.wait_until(lambda: sum(map(is_entry, lines(journal))) >= n_clips)


def time_limit(bench: Bench, *, seconds: tuple[float, ...] = (8.0, 14.0, 20.0), n_clips: int = 1500) -> list[Outcome]:
    """Let the deadline pass in the middle of a run."""
    lost = wrong = 0
    delays, more = [], []
    for limit_s in seconds:
        folder = bench.new_folder(f"deadline-{limit_s:g}")
        clips = folder / "clips"
        clips.mkdir()
        expected = bench.intact(clips, n_clips, base="front.mp4")
        out = folder / "submission.csv"
        with watched(out, list(expected)) as seen:
            kernel = bench.start(clips, out, "--time-limit", limit_s)
            code = kernel.wait()
            delays.append(kernel.age_s() - limit_s)
        verdict = judge(out, list(expected), expected, may_miss=True)
        statuses = dict(Counter(row["status"] for row in kernels.details(out).values()))
        lost, wrong = lost + len(verdict.lost), wrong + len(verdict.wrong) + len(seen["faults"])
        wrong += code != int(
            "ok" not in statuses
        )  # on a busy machine nothing may be scored in time, which is a failure
        more.append(
            {
                "limit, s": limit_s,
                "exit code": code,
                "statuses": statuses,
                "reader": seen,
                "wrong rows": verdict.wrong[:5],
            }
        )
    return [Outcome("time limit in the middle", len(seconds), lost, wrong, max(delays), "limit to end", {"runs": more})]


@contextlib.contextmanager
def small_disk(folder: Path, size_kb: int) -> Iterator[Path]:
    """Mount a small disk in memory.

    Raises:
        PermissionError: the system does not let this process mount one.
    """
    folder.mkdir(parents=True, exist_ok=True)
    mount = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={size_kb}k", "tmpfs", str(folder)], capture_output=True, text=True
    )
    if mount.returncode:
        raise PermissionError(f"{folder}: cannot be mounted ({mount.stderr.strip()}); run as root")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


def disk_faults(
    bench: Bench, *, n_clips: int = 240, faults: tuple[str, ...] = ("fills", "is full", "turns read-only")
) -> list[Outcome]:
    """Run on a disk that the run itself fills, on one that another program fills, and on one that turns read-only."""
    return [_disk_fault(bench, fault, n_clips) for fault in faults]


def _disk_fault(bench: Bench, fault: str, n_clips: int) -> Outcome:
    folder = bench.new_folder(f"disk-{fault.replace(' ', '-')}")
    clips = folder / "clips"
    clips.mkdir()
    expected = bench.intact(clips, n_clips, base="front.mp4")
    with small_disk(folder / "disk", max(n_clips // 4, 24) if fault == "fills" else 1024) as disk:
        out = disk / "submission.csv"
        kernels.LOGS[out] = folder / "kernel.log"
        with watched(out, list(expected)) as seen:
            kernel = bench.start(clips, out)
            reached = kernel.wait_until(lambda: kernel.n_done() > 4)
            how = _spoil(disk, fault)
            began = time.monotonic()
            code = kernel.wait()
        at_failure = judge(out, list(expected), expected, may_miss=True)
        told = [
            line
            for line in tail(kernel, 40)
            if "No space left" in line
            or "Read-only" in line
            or "not permitted" in line
            or "could not be written" in line
        ]
        _mend(disk, fault)
        with watched(out, list(expected)) as seen_after:
            after = bench.start(clips, out)
            code_after = after.wait()
        verdict = judge(out, list(expected), expected)
        more = {
            "phase reached": reached,
            "how": how,
            "exit code": code,
            "told": told[-2:],
            "run on, s": time.monotonic() - began,
            "exit code of the next run": code_after,
            "reader": seen,
            "reader of the next run": seen_after,
            "temporary files": kernels.leftovers(disk),
            "taken up": re.findall(r"\d+ of \d+ clips were scored by an earlier run", after.text),
            "wrong rows": (at_failure.wrong + verdict.wrong)[:10],
        }
    wrong = len(at_failure.wrong) + len(verdict.wrong) + len(seen["faults"]) + len(seen_after["faults"])
    wrong += (code != 1) + (code_after != 0) + (not told)
    return Outcome(f"disk that {fault}", 1, len(at_failure.lost) + len(verdict.lost), wrong, None, "", more)


def _spoil(disk: Path, fault: str) -> str:
    """Make a disk fail; describe how."""
    if fault == "fills":
        return "the run's own files"
    if fault == "is full":
        with open(disk / "filler", "wb", buffering=0) as filler, contextlib.suppress(OSError):
            while True:
                filler.write(bytes(4096))
        return "another's file"
    # A disk with a file that is open for writing cannot be remounted. In that case its folder is made immutable.
    for command in (["mount", "-o", "remount,ro", str(disk)], ["chattr", "+i", str(disk)]):
        if subprocess.run(command, capture_output=True).returncode == 0:
            return " ".join(command[:-1])
    raise PermissionError(f"{disk}: cannot be made read-only")


def _mend(disk: Path, fault: str) -> None:
    subprocess.run(["chattr", "-i", str(disk)], capture_output=True)
    subprocess.run(["mount", "-o", "remount,rw,size=4096k", str(disk)], check=True)
    (disk / "filler").unlink(missing_ok=True)


def unreadable_clip(bench: Bench) -> list[Outcome]:
    """Read a clip without permission, as another user, because root may read every file."""
    folder = bench.new_folder("unreadable")
    path = folder / "locked.mp4"
    shutil.copy(bench.bases["behind.mp4"], path)
    path.chmod(0)
    run = subprocess.run(
        [sys.executable, "-c", READ_ALONE, str(path)],
        cwd=kernels.ROOT,
        capture_output=True,
        text=True,
    )
    wrong = int("Permission denied" not in run.stdout)
    return [
        Outcome(
            "clip without permission to read",
            1,
            0,
            wrong,
            None,
            "",
            {"said": run.stdout.strip(), "errors": run.stderr[-300:]},
        )
    ]
