"""Start, watch, kill and judge runs of the real kernel."""

from __future__ import annotations

import contextlib
import csv
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PRIOR = 0.5
# Statuses of clips that have a score of their own.
SCORED = ("ok", "partial", "low_quality")
# A run that takes longer than this counts as hung; on an idle machine no run here comes near it.
PATIENCE_S = 1800.0
SABOTAGED = "import sys; from tests.faults.sabotage import main; sys.exit(main())"


@dataclass(frozen=True)
class Process:
    """One process of a run, as /proc describes it."""

    pid: int
    parent: int
    session: int
    command: str


def processes(session: int) -> list[Process]:
    """The living processes of a session; zombies are left out."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with contextlib.suppress(OSError):
                # proc(5): id, (name), state, parent, group, session; the name may hold any character.
                state, parent, _, its_session = (entry / "stat").read_text().rpartition(")")[2].split()[:4]
                command = (entry / "cmdline").read_text().replace("\0", " ")
                if int(its_session) == session and state not in "ZX":
                    found.append(Process(int(entry.name), int(parent), session, command))
    return found


def offspring(kernel: int) -> list[int]:
    """The process ids of a kernel's workers.

    Python's own resource tracker is left out: nothing here needs it, and nothing replaces it.
    """
    return sorted(p.pid for p in processes(kernel) if p.pid != kernel and "resource_tracker" not in p.command)


@dataclass(frozen=True)
class Sample:
    """The resources that a run uses at one moment.

    Attributes:
        time_s: seconds since the start of the run.
        n_done: number of rows of predictions.csv.
        pss_mb: memory of all its processes, with shared pages counted once. Pages of libraries count less while other
            programs use them too, so the value depends on what else runs on the machine.
        own_mb: the part of it that the run itself has allocated, without pages of files.
        largest_mb: memory of its largest process.
        n_processes, n_threads, n_descriptors: totals over all its processes.
    """

    time_s: float
    n_done: int
    pss_mb: float
    own_mb: float
    largest_mb: float
    n_processes: int
    n_threads: int
    n_descriptors: int


def _memory_mb(pid: int) -> tuple[float, float]:
    """A process's share of memory in MB, in total and without pages of files."""
    lines = (line.split() for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()[1:])
    kb = {words[0]: int(words[1]) for words in lines}
    return kb["Pss:"] / 1024, kb["Pss_Anon:"] / 1024


@dataclass
class Kernel:
    """A kernel that runs in its own process group.

    Attributes:
        process: its first process.
        out: path of its submission.
        log: file of its output.
        started_s: time of its start on the monotonic clock.
    """

    process: subprocess.Popen
    out: Path
    log: Path
    started_s: float = field(default_factory=time.monotonic)

    @property
    def text(self) -> str:
        return self.log.read_text(errors="replace")

    def age_s(self) -> float:
        return time.monotonic() - self.started_s

    def running(self) -> bool:
        return self.process.poll() is None

    def wait(self) -> int:
        """Wait for its exit code; after `PATIENCE_S` it is killed and the fault suite ends with an error."""
        try:
            return self.process.wait(timeout=PATIENCE_S)
        finally:
            self.kill()

    def wait_until(self, condition: Callable[[], bool], *, patience_s: float = PATIENCE_S) -> bool:
        """Wait for a condition; whether it became true before the run or the patience ended."""
        end_s = time.monotonic() + patience_s
        while self.running() and time.monotonic() < end_s:
            if condition():
                return True
            time.sleep(0.01)
        return False

    def kill(self) -> None:
        """Send SIGKILL to the whole group."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()

    def n_done(self) -> int:
        return len(details(self.out))

    def sample(self) -> Sample:
        """Measure the resources that it uses now."""
        memory, threads, descriptors = [], 0, 0
        for process in processes(self.process.pid):
            with contextlib.suppress(OSError):  # the process has just ended
                n_open = len(os.listdir(f"/proc/{process.pid}/fd"))
                n_threads = len(os.listdir(f"/proc/{process.pid}/task"))
                memory.append(_memory_mb(process.pid))
                threads, descriptors = threads + n_threads, descriptors + n_open
        both = [sum(column) for column in zip(*memory, strict=True)] or [0.0, 0.0]
        largest = max((whole for whole, _ in memory), default=0.0)
        return Sample(self.age_s(), self.n_done(), *both, largest, len(memory), threads, descriptors)


def start(
    arguments: list[object],
    out: Path,
    *,
    models: str = "real",
    limit_s: float | None = None,
    orders: Mapping[str, str] | None = None,
    environment: Mapping[str, str | None] | None = None,
    prefix: Sequence[str] = (),
) -> Kernel:
    """Start the kernel on two workers and the CPU.

    Args:
        arguments: arguments of kernel.py other than --out, --workers and --device.
        out: path of the submission.
        models: "real", or "fake" for workers that read clips and load no models, see `sabotage`.
        limit_s: wall seconds per clip; with a limit, workers also do what the clips' names order. None for the kernel's
            own limit.
        orders: further environment variables for `sabotage`.
        environment: variables to set, or to remove if their value is None.
        prefix: command that starts the kernel, such as env or sh.
    """
    honest = models == "real" and limit_s is None and not orders
    command = [sys.executable, *([str(ROOT / "kernel.py")] if honest else ["-c", SABOTAGED])]
    arguments = [*arguments, "--out", out, "--workers", 2, "--device", "cpu"]
    orders = {"FAULTS_MODELS": models, **({"FAULTS_LIMIT_S": str(limit_s)} if limit_s else {}), **(orders or {})}
    variables = {**os.environ, **orders, "PYTHONPATH": str(ROOT), "CUDA_VISIBLE_DEVICES": "", **(environment or {})}
    log = LOGS.get(out, out.with_name("kernel.log"))
    with open(log, "ab") as file:
        process = subprocess.Popen(
            [*prefix, *command, *map(str, arguments)],
            env={name: value for name, value in variables.items() if value is not None},
            # A suite that runs in the background ignores Ctrl-C, and the kernel would inherit that.
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
            stdin=subprocess.DEVNULL,
            stdout=file,
            stderr=file,
            start_new_session=True,
        )
    return Kernel(process, out, log)


# Path of a kernel's log by its submission, if it must not lie beside it, as on a full disk.
LOGS: dict[Path, Path] = {}


@contextlib.contextmanager
def watched(out: Path, names: list[str]) -> Iterator[dict[str, object]]:
    """Read a submission again and again in a separate process; its report is in the dictionary at the end."""
    folder = LOGS.get(out, out).parent
    wanted = folder / f"{out.stem}-names.json"
    wanted.write_text(json.dumps(names))
    found: dict[str, object] = {}
    command = [sys.executable, "-m", "tests.faults.reader", str(out), str(wanted)]
    reader = subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    try:
        yield found
    finally:
        text, _ = reader.communicate()
        found.update(json.loads(text))


@contextlib.contextmanager
def sampled(kernel: Kernel, *, every_s: float = 1.0) -> Iterator[list[Sample]]:
    """Sample a run's resources at a regular interval into the list."""
    samples: list[Sample] = []
    stop = threading.Event()

    def look() -> None:
        while not stop.wait(every_s):
            if kernel.running():
                samples.append(kernel.sample())

    thread = threading.Thread(target=look, daemon=True)
    thread.start()
    try:
        yield samples
    finally:
        stop.set()
        thread.join()


def rows(path: Path) -> list[dict[str, str]]:
    """The rows of a CSV file; empty if there is no file."""
    try:
        with open(path, newline="", encoding="utf-8", errors="surrogateescape") as file:
            return list(csv.DictReader(file))
    except FileNotFoundError:
        return []


def details(out: Path) -> dict[str, dict[str, str]]:
    """The rows of predictions.csv beside a submission, by file name."""
    return {row["filename"]: row for row in rows(out.with_name("predictions.csv"))}


def labels(out: Path) -> dict[str, float]:
    """The labels of a submission, by file name."""
    return {row["filename"]: float(row["label"]) for row in rows(out)}


@dataclass(frozen=True)
class Verdict:
    """The faults in a run's files.

    Attributes:
        lost: names without a row.
        wrong: names with a wrong row: its label is not a probability, differs from the undisturbed run's, or is not the
            prior although the clip could not be scored.
    """

    lost: list[str]
    wrong: list[str]


def judge(out: Path, names: list[str], expected: Mapping[str, float], *, may_miss: bool = False) -> Verdict:
    """Compare a run's files with the expected rows.

    Args:
        out: path of the submission.
        names: names of the rows that it must hold.
        expected: name -> label of the undisturbed run, for the intact clips.
        may_miss: whether an intact clip may have the prior instead, as after a deadline.
    """
    found, known = labels(out), details(out)
    wrong = []
    for name, label in found.items():
        status = known[name]["status"] if name in known else "not scored"
        right = 0 < label < 1 if status in SCORED else label == PRIOR
        if name in expected and not (may_miss and status != "ok"):
            right = label == expected[name]
        elif name in expected and name not in known:  # the details are written after the submission
            right |= label == expected[name]
        if not right or name not in names:
            wrong.append(f"{name}: {status}, {label}")
    return Verdict([name for name in names if name not in found], wrong)


def leftovers(folder: Path) -> list[str]:
    """Temporary files that were left in a folder."""
    return sorted(path.name for path in folder.iterdir() if ".tmp" in path.suffixes)
