"""Runs of the real kernel: started, watched, hurt and judged."""

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
# A run that takes longer than this has lost its way; nothing here comes near it on an idle machine.
PATIENCE_S = 1800.0
SABOTAGED = "import sys; from tests.faults.sabotage import main; sys.exit(main())"


@dataclass(frozen=True)
class Process:
    """One process of a run, as /proc tells."""

    pid: int
    parent: int
    session: int
    command: str


def processes(session: int) -> list[Process]:
    """The living processes of a session; the dead that nobody has buried are not among them."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with contextlib.suppress(OSError):
                # proc(5): number, (name), state, parent, group, session; the name may hold anything.
                state, parent, _, its_session = (entry / "stat").read_text().rpartition(")")[2].split()[:4]
                command = (entry / "cmdline").read_text().replace("\0", " ")
                if int(its_session) == session and state not in "ZX":
                    found.append(Process(int(entry.name), int(parent), session, command))
    return found


def offspring(kernel: int) -> list[int]:
    """The process ids of all that a kernel has started to work for it: workers, and the server that forks them.

    Python's own tracker of resources is not among them: nothing here needs it, and nothing replaces it.
    """
    return sorted(p.pid for p in processes(kernel) if p.pid != kernel and "resource_tracker" not in p.command)


@dataclass(frozen=True)
class Sample:
    """What a run holds at a moment.

    Attributes:
        time_s: since the run's start.
        n_done: rows of predictions.csv.
        pss_mb: memory of all its processes, what they share counted once; libraries' pages count less while other
            programs on the machine use them too, so it moves with what else runs.
        own_mb: of that, what is no file's: what the run itself has allocated.
        largest_mb: of the process that holds most.
        n_processes, n_threads, n_descriptors: of all its processes.
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
    """A process's share of memory, in all and without files' pages."""
    lines = (line.split() for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()[1:])
    kb = {words[0]: int(words[1]) for words in lines}
    return kb["Pss:"] / 1024, kb["Pss_Anon:"] / 1024


@dataclass
class Kernel:
    """A kernel in a process group of its own, and what is known of it.

    Attributes:
        process: its first process.
        out: its submission.
        log: what it prints.
        started_s: on the monotonic clock.
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
        """Its exit code; it is killed and the fault suite stopped where it never ends."""
        try:
            return self.process.wait(timeout=PATIENCE_S)
        finally:
            self.kill()

    def wait_until(self, condition: Callable[[], bool], *, patience_s: float = PATIENCE_S) -> bool:
        """Whether something came true before the run, or patience, ended."""
        end_s = time.monotonic() + patience_s
        while self.running() and time.monotonic() < end_s:
            if condition():
                return True
            time.sleep(0.01)
        return False

    def kill(self) -> None:
        """SIGKILL for the whole group."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()

    def n_done(self) -> int:
        return len(details(self.out))

    def sample(self) -> Sample:
        """What it holds now."""
        memory, threads, descriptors = [], 0, 0
        for process in processes(self.process.pid):
            with contextlib.suppress(OSError):  # it has just ended
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
    nets: str = "real",
    limit_s: float | None = None,
    orders: Mapping[str, str] | None = None,
    environment: Mapping[str, str | None] | None = None,
    prefix: Sequence[str] = (),
) -> Kernel:
    """Start the kernel on two workers and the CPU.

    Args:
        arguments: of kernel.py, but for --out, --workers and --device.
        out: the submission to write.
        nets: "real", or "fake" for workers that read clips and load no nets, see `sabotage`.
        limit_s: wall seconds per clip; then workers also do what clips' names say. None for the kernel's own.
        orders: what else `sabotage` is to do, see there.
        environment: variables to set, or to remove where they are None.
        prefix: a command that starts it, such as env or sh.
    """
    honest = nets == "real" and limit_s is None and not orders
    command = [sys.executable, *([str(ROOT / "kernel.py")] if honest else ["-c", SABOTAGED])]
    arguments = [*arguments, "--out", out, "--workers", 2, "--device", "cpu"]
    orders = {"FAULTS_NETS": nets, **({"FAULTS_LIMIT_S": str(limit_s)} if limit_s else {}), **(orders or {})}
    variables = {**os.environ, **orders, "PYTHONPATH": str(ROOT), "CUDA_VISIBLE_DEVICES": "", **(environment or {})}
    log = LOGS.get(out, out.with_name("kernel.log"))
    with open(log, "ab") as file:
        process = subprocess.Popen(
            [*prefix, *command, *map(str, arguments)],
            env={name: value for name, value in variables.items() if value is not None},
            # A suite run in the background has Ctrl-C switched off, and would hand that on.
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
            stdin=subprocess.DEVNULL,
            stdout=file,
            stderr=file,
            start_new_session=True,
        )
    return Kernel(process, out, log)


# Where a kernel's log goes if not beside its submission, by submission: a full disk is no place for it.
LOGS: dict[Path, Path] = {}


@contextlib.contextmanager
def watched(out: Path, names: list[str]) -> Iterator[dict[str, object]]:
    """Read a submission all the time in a process of its own; what it saw is in the dictionary at the end."""
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
    """Sample a run all the time; the list grows meanwhile."""
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
    """A CSV file's rows; none where there is no file."""
    try:
        with open(path, newline="", encoding="utf-8", errors="surrogateescape") as file:
            return list(csv.DictReader(file))
    except FileNotFoundError:
        return []


def details(out: Path) -> dict[str, dict[str, str]]:
    """predictions.csv beside a submission, by name."""
    return {row["filename"]: row for row in rows(out.with_name("predictions.csv"))}


def labels(out: Path) -> dict[str, float]:
    """A submission, by name."""
    return {row["filename"]: float(row["label"]) for row in rows(out)}


@dataclass(frozen=True)
class Verdict:
    """What a run's files say.

    Attributes:
        lost: names that have no row.
        wrong: names whose row is not what it should be: not a probability, other than the undisturbed run's, or not the
            prior where the clip could not be scored.
    """

    lost: list[str]
    wrong: list[str]


def judge(out: Path, names: list[str], expected: Mapping[str, float], *, may_miss: bool = False) -> Verdict:
    """Hold a run's files against what they should say.

    Args:
        out: the submission.
        names: of the rows that it must hold.
        expected: name -> label of the undisturbed run, for the intact clips.
        may_miss: whether an intact clip may have the prior instead, as after a deadline.
    """
    found, known = labels(out), details(out)
    wrong = []
    for name, label in found.items():
        status = known[name]["status"] if name in known else "not scored"
        right = label == PRIOR if status != "ok" else 0 < label < 1
        if name in expected and not (may_miss and status != "ok"):
            right = label == expected[name]
        if not right or name not in names:
            wrong.append(f"{name}: {status}, {label}")
    return Verdict([name for name in names if name not in found], wrong)


def leftovers(folder: Path) -> list[str]:
    """Temporary files that lie about."""
    return sorted(path.name for path in folder.iterdir() if ".tmp" in path.suffixes)
