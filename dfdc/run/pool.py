"""Many clips -> many predictions: worker processes under a supervisor that outlives each of them.

A crash, a hang or the out-of-memory killer takes down one worker; its clip gets a row with the reason, and another
worker takes its place. A clip that CUDA fails is looked at again on the CPU, and a CUDA device that fails for good is
left for it. What is looked at next is the plan's affair.
"""

from __future__ import annotations

import contextlib
import logging
import math
import multiprocessing
import os
import signal
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from multiprocessing import forkserver
from multiprocessing.connection import Connection, wait
from pathlib import Path

from dfdc.deadline import Deadline
from dfdc.errors import InputError
from dfdc.prediction import Prediction
from dfdc.run.plan import Plan, Task
from dfdc.run.worker import LastWord, Prepared, Ready, Refusal, WorkerSettings, prepare, score_clips
from dfdc.runtime import may_have_cuda
from dfdc.weights import that_see

log = logging.getLogger(__name__)

# On CUDA so many more workers for each core, and one at least: while some wait for the device, others decode.
# Simulated with nets that take a T4's time and no core (docs/experiments.md).
MORE_ON_CUDA = 0.25
# Loading torch and the nets; minutes on a cold disk.
START_LIMIT_S = 300.0
# A clip during which a worker died on the CPU, or that it could not read or score, is looked at once more, behind the
# others: the fault may have been another's, or a disk's that was away for a moment.
MAX_TRIES = 2
# After so many workers in succession that died while they loaded, a run that has not begun ends; one that has begun
# goes on with fewer, or on the CPU.
MAX_FAILED_STARTS = 2
# Killed at a clip, workers may have been too many for the memory: after so many the run goes on with one fewer. While
# there are several, it is not held against the clip.
MAX_KILLS = 2
# Where none is left by then, memory or processes may come back: so many are tried, after pauses that double each time.
MAX_RESTARTS = 10
START_PAUSE_S = 0.5
MAX_PAUSE_S = 60.0
# After so many looks in succession that CUDA failed at one worker's place, workers there run on the CPU. With several
# GPUs a place has always the same one.
MAX_CUDA_FAULTS = 3
# Where CUDA fails clips now and then, so many may wait for each worker on the CPU, and for a first one: all at the end,
# which the plan does not reckon with, they would take hours.
MAX_HELD = 8
# Ending all workers takes at most so long, or the run's last files come late; one that a dead disk or driver holds
# cannot be killed.
CLOSE_LIMIT_S = 1.5
# Workers are forked from a server process that has imported these, and with them OpenCV, PyAV and OpenVINO: a
# worker then starts in a moment, and shares them with the others. Nothing in them may start threads or touch CUDA when
# it is imported.
PRELOADED = ["dfdc.analyze", "dfdc.nets.graphs", "dfdc.run.worker"]
# Big buffers go back to the system after each use by default, and fetching them anew costs torch up to seven times
# the work. These keep all but the biggest; like the libraries' numbers of threads (clips run side by side instead;
# torch and OpenCV are told theirs by the worker) they must be there before a process starts.
ENVIRONMENT = {
    "MALLOC_MMAP_THRESHOLD_": str(2**25),
    "MALLOC_TRIM_THRESHOLD_": str(2**27),
    "MALLOC_TOP_PAD_": str(2**24),
    **{f"{library}_NUM_THREADS": "1" for library in ("OMP", "OPENBLAS", "MKL")},
}

Work = Callable[[Connection, WorkerSettings], None]


@dataclass
class _Worker:
    """A process and what it is doing.

    Attributes:
        due_s: on the monotonic clock, when it counts as hung; infinity while it waits.
        name: the row that it works on; None while it loads or waits.
        device: "cpu" or "cuda"; None while it loads.
        place: see `WorkerSettings`.
    """

    process: multiprocessing.Process
    connection: Connection
    due_s: float
    place: int = 0
    name: str | None = None
    device: str | None = None


def predict_clips(
    clips: dict[str, Path],
    settings: WorkerSettings,
    *,
    n_workers: int | None = None,
    deadline: Deadline,
    known: Mapping[str, Prediction] | None = None,
    work: Work | None = None,
) -> Iterator[Prediction]:
    """Score clips in worker processes.

    Args:
        clips: row name -> path.
        settings: of the workers.
        n_workers: how many run at once; None for one a core, and on CUDA some more.
        deadline: after it no clip is begun, and those begun are given up.
        known: what an earlier run found of some of the clips; None for nothing.
        work: what a worker process runs; `score_clips` unless a test brings its own.

    Yields:
        One prediction for each clip that is not known, as they are done; where the deadline passes first, with the
        status "timeout". A clip that gets a further look comes again.

    Raises:
        InputError: workers cannot start.
    """

    def make_plan(settings: WorkerSettings) -> Plan:
        return Plan(
            clips,
            n_frames=settings.n_frames,
            n_workers=n_workers or count_cores(),
            clip_limit_s=settings.clip_limit_s,
            deadline=deadline,
            n_nets=max(len(that_see("face", settings.weights)), 1),
            known=known,
        )

    plan, workers = make_plan(settings), []
    try:
        if work is None and plan.n_open():
            prepared = _prepare(settings, deadline, workers)
            # "auto" stays where CUDA serves: a worker whose own GPU does not is to run on the CPU.
            device = "cpu" if prepared.device == "cpu" else settings.device
            settings = replace(settings, device=device)
            plan = make_plan(settings)
            if n_workers is None and prepared.device == "cuda":
                plan.n_workers += max(int(MORE_ON_CUDA * plan.n_workers), 1)
        plan.n_workers = max(min(plan.n_workers, len(clips)), 1)
        settings = replace(settings, threads=max(count_cores() // plan.n_workers, 1))
        pool = _Pool(clips, plan, settings, deadline, work or score_clips, workers)
        while plan.n_open() and not pool.given_up and not deadline.expired():
            pool.staff()
            if not pool.workers:
                if pool.out_of_patience():
                    yield from pool.give_up("workers cannot be started")
                continue
            pool.assign()
            yield from pool.collect()
        if not pool.given_up:
            for name in plan.unscored():
                yield Prediction(name, status="timeout", reason="the run's time limit came first")
    finally:
        _end(workers)


class _Pool:
    """The workers, and what has befallen them.

    Attributes:
        places: of the workers that are wanted.
        on_cpu: those of them whose workers run on the CPU.
        devices: the kinds that workers have run on.
        started: those at which a worker was started.
        held: clips that CUDA failed; a worker on the CPU is to score them.
        cuda_faults: how many in succession, by place.
        n_wanted: how many there were to be at first.
        n_cores: that they share.
        n_killed: workers that something killed at a clip, since there was one fewer.
        given_up: whether no worker can be had any more.
    """

    def __init__(
        self,
        clips: dict[str, Path],
        plan: Plan,
        settings: WorkerSettings,
        deadline: Deadline,
        work: Work,
        workers: list[_Worker],
    ) -> None:
        """Take over what prepared the run, if it is there, as the first worker.

        Args:
            clips, plan, settings, deadline, work: see `predict_clips`.
            workers: that are there; it is kept up to date.
        """
        self.clips, self.plan, self.settings = clips, plan, settings
        self.deadline, self.work = deadline, work
        self.workers = workers
        self.failures: Counter[str] = Counter()
        self.failed_starts = 0
        self.places = set(range(plan.n_workers))
        self.n_wanted, self.n_cores = plan.n_workers, count_cores()
        self.on_cpu = self.places if settings.device == "cpu" else set()
        self.devices: set[str] = set()
        self.held: list[str] = []
        self.cuda_faults: Counter[int] = Counter()
        self.n_killed = 0
        self.given_up = False
        self.started = {worker.place for worker in workers}
        for worker in workers:
            with contextlib.suppress(OSError):  # it died: its closed connection is noticed at the next wait
                worker.connection.send(self._settings_at(worker.place))

    def staff(self) -> None:
        """Start workers until there is one for each look to take, but no more than wanted.

        No more load at once than there are cores, so that the first does not wait for the others. Where workers die
        while they load, for want of memory perhaps, the run goes on with one fewer.
        """
        if self._holds_too_many():
            # Where nobody works, best: a worker that has a clip would have to end it first.
            on_cuda = self.places - self.on_cpu
            place = min(on_cuda - {worker.place for worker in self.workers} or on_cuda)
            self._leave_cuda({place}, f"CUDA failed {len(self.held)} clips; a worker on the CPU takes them")
        for worker in [w for w in self.workers if w.device == "cuda" and w.name is None and w.place in self.on_cpu]:
            self._remove(worker)
        if self.failed_starts >= MAX_FAILED_STARTS and self.workers:
            self._keep({worker.place for worker in self.workers} | (self.places - self.started))
        if self.failed_starts and not self.workers:
            pause_s = START_PAUSE_S * 2 ** (self.failed_starts - 1)
            time.sleep(max(min(pause_s, MAX_PAUSE_S, self.deadline.remaining_s()), 0))
        # A worker on the CPU has to be there for held clips, and starts at its place.
        n_looks = len(self.places) if self.held and self.on_cpu else self.plan.n_open() - len(self.held)
        n_loading = sum(worker.device is None for worker in self.workers)
        n_more = min(min(len(self.places), n_looks) - len(self.workers), self.n_cores - n_loading)
        for _ in range(n_more):
            try:
                place = min(self.places - {worker.place for worker in self.workers})
                self.started.add(place)
                self.workers.append(_start(self._settings_at(place), self.work))
            # no more processes or descriptors, or the server that forks them has died (EOFError: in the middle of it)
            except (OSError, EOFError) as error:
                self.failed_starts += 1
                log.warning("a worker cannot be started (%s)", error)
                break

    def _holds_too_many(self) -> bool:
        """Whether one more worker is to be on the CPU, for the clips that CUDA failed."""
        nothing_else = not self.on_cpu and len(self.plan.unscored()) == len(self.held)
        several = len(self.places - self.on_cpu) > 1  # the last one stays on CUDA while there is something else to do
        too_many = several and len(self.held) > MAX_HELD * (1 + len(self.on_cpu))
        return bool(self.held) and (nothing_else or too_many)

    def _keep(self, places: set[int]) -> None:
        """Go on with workers at these places alone."""
        self.places, self.on_cpu = places, self.on_cpu & places
        self.plan.n_workers, self.failed_starts, self.n_killed = len(places), 0, 0
        log.warning("goes on with %d worker(s)", len(places))

    def _settings_at(self, place: int) -> WorkerSettings:
        device = "cpu" if place in self.on_cpu else self.settings.device
        return replace(self.settings, place=place, device=device)

    def assign(self) -> None:
        """Give each idle worker a look to take."""
        for worker in self.workers:
            if worker.device and worker.name is None:
                held = self.held and worker.device == "cpu"
                task = self.plan.again(self.held.pop(0)) if held else self.plan.next()
                if task is not None:
                    _give(worker, task, self.clips[task.name])

    def collect(self) -> Iterator[Prediction]:
        """Wait until a worker answers, dies or is overdue, and deal with it."""
        due_s = min(worker.due_s for worker in self.workers)
        patience_s = min(due_s - time.monotonic(), self.deadline.remaining_s(), 5.0)
        answered = set(wait([worker.connection for worker in self.workers], timeout=max(patience_s, 0.01)))
        for worker in list(self.workers):
            if worker.connection in answered:
                message = _receive(worker)
                if isinstance(message, Prediction):
                    worker.name, worker.due_s = None, float("inf")
                    del self.cuda_faults[worker.place]
                    failed = message.status in ("unreadable", "error")
                    if not (failed and self._try_again(message.filename)):
                        yield self.plan.record(message)
                elif isinstance(message, LastWord):
                    self._remove(worker)
                    if worker.device == "cuda":
                        log.warning("%s: %s", worker.name, message.prediction.reason)
                        yield from self._blame_cuda(worker, message.prediction)
                    else:
                        yield self.plan.record(message.prediction)
                elif isinstance(message, Ready):
                    if message.device not in self.devices:
                        log.info("nets run on %s", message.runtime)
                    worker.device, worker.due_s = message.device, float("inf")
                    self.devices.add(message.device)
                    self.failed_starts = 0
                elif isinstance(message, Refusal):
                    if not self.devices and len(self.workers) == 1 and self.started >= self.places:
                        raise InputError(message.reason)
                    yield from self._bury(worker, f"refused ({message.reason})", "error")
                else:
                    yield from self._bury(worker, _epitaph(worker), "error")
            elif worker.due_s < time.monotonic() and not worker.connection.poll():
                fault = "hung and was ended" if worker.device else f"had not loaded after {START_LIMIT_S:.0f} s"
                yield from self._bury(worker, fault, "timeout")

    def _bury(self, worker: _Worker, fault: str, status: str) -> Iterator[Prediction]:
        """End a worker; its clip waits for another one or gets its row."""
        self._remove(worker)
        if worker.device is None:
            self.failed_starts += 1
            log.warning("a worker %s while it loaded", fault)
            if self.out_of_patience():
                yield from self.give_up(f"workers no longer start: the last {fault}")
        elif worker.name is not None:
            log.warning("%s: its worker %s", worker.name, fault)
            prediction = Prediction(worker.name, status=status, reason=f"its worker {fault}")
            if worker.process.exitcode == -signal.SIGKILL and status == "error" and self._make_room(worker):
                self.plan.retry(worker.name)
            elif worker.device == "cuda":
                yield from self._blame_cuda(worker, prediction)
            elif not (status == "error" and self._try_again(worker.name)):
                yield self.plan.record(prediction)

    def _make_room(self, worker: _Worker) -> bool:
        """Where a worker was killed beside others: go on without it if it is not the first, and look at its clip anew.

        Returns:
            Whether the clip is to be put back: not where no other worker takes memory, or it has a score already.
        """
        if len(self.places) == 1:
            return False
        self.n_killed += 1
        if self.n_killed >= MAX_KILLS:
            self._keep(self.places - {worker.place})
        return worker.name not in self.plan.known

    def _try_again(self, name: str) -> bool:
        """Put a clip back whose first look failed, unless it was tried often enough."""
        self.failures[name] += 1
        again = self.failures[name] < MAX_TRIES and name not in self.plan.known
        if again:
            self.plan.retry(name)
        return again

    def _blame_cuda(self, worker: _Worker, prediction: Prediction) -> Iterator[Prediction]:
        """Hold a clip whose first look CUDA failed for the CPU; leave CUDA where that worker worked, if it fails on."""
        if prediction.filename in self.plan.known:
            yield self.plan.record(prediction)
        else:
            self.held.append(prediction.filename)
        self.cuda_faults[worker.place] += 1
        if self.cuda_faults[worker.place] >= MAX_CUDA_FAULTS and worker.place not in self.on_cpu:
            reason = f"CUDA failed {MAX_CUDA_FAULTS} clips of worker {worker.place} in succession"
            self._leave_cuda({worker.place}, f"{reason}; the CPU goes on there")

    def _leave_cuda(self, places: set[int], reason: str) -> None:
        """From now on workers at these places start on the CPU."""
        log.warning("%s", reason)
        self.on_cpu = self.on_cpu | places
        self.failed_starts = 0

    def _remove(self, worker: _Worker) -> None:
        _end([worker])
        self.workers.remove(worker)

    def _may_use_cuda(self) -> bool:
        """Whether workers to come may run on CUDA, as far as is known."""
        return self.on_cpu != self.places and (not self.devices or "cuda" in self.devices)

    def out_of_patience(self) -> bool:
        """Whether no worker is left, and waiting for another one has no point."""
        on_the_cpu_for_good = self.devices and not self._may_use_cuda()
        return not self.workers and self.failed_starts >= (MAX_RESTARTS if on_the_cpu_for_good else MAX_FAILED_STARTS)

    def give_up(self, reason: str) -> Iterator[Prediction]:
        """Try the CPU where CUDA may be the cause; else what is left gets its rows, and a run not begun ends."""
        if self._may_use_cuda() and (self.devices or self.settings.device == "auto"):
            if not self.devices:  # it was CUDA, and not the machine, that had no room for so many
                self._keep(set(range(min(self.n_wanted, self.n_cores))))
            self._leave_cuda(self.places, f"{reason}; the CPU goes on")
            return
        if not self.devices:
            cure = "--workers 1" if self.on_cpu == self.places else "--workers 1 or --device cpu"
            raise InputError(f"{reason}; try {cure}, or a machine that has more memory or less to do")
        log.error("%s", reason)
        self.given_up = True
        for name in self.plan.unscored():
            yield Prediction(name, status="error", reason=reason)


def count_cores(quota: Path = Path("/sys/fs/cgroup/cpu.max")) -> int:
    """The cores that this process may use: those it may run on, and no more than a container's quota is worth.

    Args:
        quota: where Linux states it: microseconds of core time, or "max", in how many of wall time.
    """
    n_cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    with contextlib.suppress(OSError, ValueError):  # there is none
        core_us, wall_us = map(int, quota.read_text().split())
        n_cores = min(n_cores, max(math.ceil(core_us / wall_us), 1))
    return n_cores


def _prepare(settings: WorkerSettings, deadline: Deadline, workers: list[_Worker]) -> Prepared:
    """The device that serves; where it may be CUDA, `prepare` tries it in a process of its own.

    Args:
        settings, deadline: see `predict_clips`.
        workers: gets the process on CUDA, where it is to be the first of them; elsewhere it has ended.

    Raises:
        InputError: the device does not serve.
    """
    if settings.device == "cpu" or (settings.device == "auto" and not may_have_cuda()):
        return Prepared("cpu")
    multiprocessing.get_context("forkserver").set_forkserver_preload(PRELOADED)
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(target=prepare, args=(theirs, settings), daemon=True)
    message = None
    try:
        with _environment():
            process.start()
            forkserver.ensure_running()
        theirs.close()
        if ours.poll(min(START_LIMIT_S, deadline.remaining_s())):
            message = ours.recv()
            if isinstance(message, Prepared) and message.device == "cuda":
                workers.append(_Worker(process, ours, time.monotonic() + START_LIMIT_S))
        else:
            log.warning("CUDA was not ready after %.0f s", START_LIMIT_S)
    except (EOFError, OSError) as error:  # it died, or cannot be started: workers may still do without it
        log.warning("CUDA could not be tried (%s)", str(error) or "the process died")
    finally:
        if not workers:
            ours.close()
            if process.pid:
                process.kill()
                process.join(timeout=5)
    if isinstance(message, Refusal):
        raise InputError(message.reason)
    return message or Prepared(settings.device)


def _start(settings: WorkerSettings, work: Work) -> _Worker:
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(PRELOADED)
    ours, theirs = context.Pipe()
    process = context.Process(target=work, args=(theirs, settings), daemon=True)
    with _environment():  # the first start starts the server, whose environment all workers have
        process.start()
    theirs.close()
    return _Worker(process, ours, time.monotonic() + START_LIMIT_S, settings.place)


@contextlib.contextmanager
def _environment() -> Iterator[None]:
    """`ENVIRONMENT`, and where this package lies, hold for processes started inside."""
    paths = [str(Path(__file__).resolve().parents[2]), os.environ.get("PYTHONPATH", "")]
    values = {**ENVIRONMENT, "PYTHONPATH": os.pathsep.join(filter(None, paths))}
    before = {key: os.environ.get(key) for key in values}
    os.environ.update(values)
    try:
        yield
    finally:
        for key, value in before.items():
            if value is None:
                del os.environ[key]
            else:
                os.environ[key] = value


def _give(worker: _Worker, task: Task, path: Path) -> None:
    worker.name = task.name
    worker.due_s = time.monotonic() + task.most_s
    with contextlib.suppress(OSError):  # it died while idle: its closed connection is noticed at the next wait
        worker.connection.send((path, task))


def _receive(worker: _Worker) -> Prediction | LastWord | Ready | Refusal | None:
    """A worker's message; None if it died."""
    try:
        return worker.connection.recv()
    except (EOFError, OSError):
        return None


def _epitaph(worker: _Worker) -> str:
    worker.process.join(timeout=5)
    code = worker.process.exitcode
    if code is not None and code < 0:
        return f"died: {signal.strsignal(-code)}" + (", perhaps out of memory" if code == -signal.SIGKILL else "")
    return f"ended with exit code {code}"


def _end(workers: list[_Worker]) -> None:
    for worker in workers:
        worker.connection.close()
        worker.process.kill()
    end_s = time.monotonic() + CLOSE_LIMIT_S
    for worker in workers:
        worker.process.join(timeout=max(end_s - time.monotonic(), 0))
