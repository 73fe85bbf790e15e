"""Many clips -> many predictions: worker processes under a supervisor that outlives each of them.

A crash, a hang or the out-of-memory killer takes down one worker; another takes its place, and the clip is tried once
more or gets a row with the reason. A clip that CUDA fails is tried again on the CPU, and a CUDA device that fails for
good is left. What is looked at next is decided by the plan.
"""

from __future__ import annotations

import logging
import time
from collections import Counter, deque
from collections.abc import Iterator, Mapping
from contextlib import closing
from dataclasses import replace
from multiprocessing.connection import wait
from pathlib import Path

from dfdc.deadline import Deadline
from dfdc.errors import InputError, MachineError
from dfdc.prediction import Prediction
from dfdc.run.limits import count_cores, share_memory
from dfdc.run.plan import Plan
from dfdc.run.spawn import START_LIMIT_S, Work, Worker, end_workers, start_worker
from dfdc.run.worker import Answer, Ready, Refusal, WorkerSettings, score_clips
from dfdc.weights import that_see

log = logging.getLogger(__name__)

# On CUDA so many more workers for each core, and one at least: while some wait for the device, others decode.
# Simulated with nets that take a T4's time and no core (docs/experiments.md).
MORE_ON_CUDA = 0.25
# A clip that could not be read or scored, or during which a worker crashed, is tried once more, behind the others: the
# fault may have been another's, or a disk's that was away for a moment.
MAX_TRIES = 2
# A clip whose worker was killed, as where memory is short, is tried once more, alone. When so many clips have survived
# that, memory is too short for all workers, and there is one fewer from then on.
MAX_KILLS = 2
# After so many workers in succession that died while they loaded, a run that has not begun ends; one that has begun
# waits longer: memory or processes may come back. Pauses double each time.
MAX_FAILED_STARTS = 2
MAX_RESTARTS = 10
START_PAUSE_S = 0.5
MAX_PAUSE_S = 60.0
# After so many clips in succession that CUDA failed, the run goes on on the CPU.
MAX_CUDA_FAULTS = 3
# Clips that CUDA failed, for each worker on the CPU.
MAX_WAITING = 8


def predict_clips(clips: dict[str, Path], settings: WorkerSettings, **how: object) -> Iterator[Prediction]:
    """Score clips; the predictions of `answer_clips`, whose arguments these are."""
    with closing(answer_clips(clips, settings, **how)) as answers:
        for answer in answers:
            yield answer.prediction


def answer_clips(
    clips: dict[str, Path],
    settings: WorkerSettings,
    *,
    n_workers: int | None = None,
    deadline: Deadline,
    known: Mapping[str, Prediction] | None = None,
    work: Work | None = None,
) -> Iterator[Answer]:
    """Score clips in worker processes.

    Args:
        clips: row name -> path.
        settings: of the workers; the models that they name answer, whatever happens.
        n_workers: how many run at once; None for one a core, and on CUDA some more.
        deadline: after it no clip is begun, and those begun are given up.
        known: what an earlier run found of some of the clips; None for nothing.
        work: what a worker process runs; `score_clips` unless a test brings its own.

    Yields:
        One answer for each clip that is not known, as they are done; where the deadline passes first, with the status
        "timeout". A clip that gets a further look comes again.

    Raises:
        InputError: the weights, the device or the installation that the user chose cannot be used.
        MachineError: no worker can be started.
    """
    n_started = min(n_workers or count_cores(), max(len(clips), 1))
    plan = Plan(
        clips,
        n_frames=settings.n_frames,
        n_workers=n_started,
        clip_limit_s=settings.clip_limit_s,
        deadline=deadline,
        n_nets=max(len(that_see("face", settings.weights)), 1),
        known=known,
    )
    settings = replace(settings, threads=max(count_cores() // n_started, 1), memory_bytes=share_memory(n_started))
    pool = _Pool(clips, plan, settings, deadline, work or score_clips, n_started, more_on_cuda=n_workers is None)
    try:
        yield from pool.run()
    finally:
        end_workers(pool.workers)


class _Pool:
    """The workers, and what has happened to them.

    Attributes:
        n_workers: how many there are to be.
        device: what workers to come are told to use.
        devices: the kinds that workers have used.
        suspects: clips whose worker was killed once; each is tried once more, alone.
        for_cpu: clips that CUDA failed; a worker on the CPU is to score them.
    """

    def __init__(
        self,
        clips: dict[str, Path],
        plan: Plan,
        settings: WorkerSettings,
        deadline: Deadline,
        work: Work,
        n_workers: int,
        *,
        more_on_cuda: bool,
    ) -> None:
        """Start nothing yet; see `predict_clips` for the arguments."""
        self.clips, self.plan, self.settings, self.deadline, self.work = clips, plan, settings, deadline, work
        self.n_workers, self.n_on_cpu, self.more_on_cuda = n_workers, n_workers, more_on_cuda
        self.n_cores = count_cores()
        self.device = settings.device
        self.devices: set[str] = set()
        self.workers: list[Worker] = []
        self.suspects: deque[str] = deque()
        self.for_cpu: deque[str] = deque()
        self.failures: Counter[str] = Counter()
        self.kills: Counter[str] = Counter()
        self.n_started = self.n_failed_starts = self.n_survived = self.n_cuda_faults = 0
        self.next_start_s = float("-inf")

    def run(self) -> Iterator[Answer]:
        while self.plan.n_open() and not self.deadline.expired():
            self.start()
            if self.workers:
                self.assign()
                yield from self.collect()
            elif self.n_failed_starts >= (MAX_RESTARTS if self.devices else MAX_FAILED_STARTS):
                if self.may_use_cuda():
                    self.leave_cuda(f"no worker can be started with --device {self.device}")
                    continue
                reason = f"no worker can be started after {self.n_failed_starts} attempts"
                if not self.devices:
                    raise MachineError(f"{reason}; free memory and processes, or try --workers 1 or --device cpu")
                log.error("%s; the clips that are left get 0.5", reason)
                yield from (Answer(Prediction(name, status="error", reason=reason)) for name in self.plan.unscored())
                return
            else:
                time.sleep(max(min(self.next_start_s - time.monotonic(), self.deadline.remaining_s()), 0))
        reason = "the run's time limit came first"
        if self.plan.n_open() and not self.devices:
            log.error("the time limit ended before the models had loaded")
        yield from (Answer(Prediction(name, status="timeout", reason=reason)) for name in self.plan.unscored())

    def start(self) -> None:
        """Start workers until there are as many as wanted, or as there are clips to look at.

        No more load at once than there are cores, so that the first does not wait for the others; and after one that
        failed to start the next one waits.
        """
        n_loading = sum(worker.device is None for worker in self.workers)
        while n_loading < self.n_cores and time.monotonic() >= self.next_start_s:
            n_helpers = sum(map(self.is_helper, self.workers))
            help_wanted = len(self.for_cpu) > MAX_WAITING * n_helpers
            if len(self.workers) >= (self.n_workers if help_wanted else min(self.n_workers, self.plan.n_open())):
                break
            device = "cpu" if help_wanted else self.device
            settings = replace(self.settings, device=device, place=self.n_started)
            try:
                self.workers.append(start_worker(settings, self.work))
            except OSError as error:  # no more processes, descriptors or memory
                self.note_failed_start(f"cannot be started ({error})")
            else:
                self.n_started, n_loading = self.n_started + 1, n_loading + 1

    def is_helper(self, worker: Worker) -> bool:
        """Whether a worker is on the CPU only for the clips that CUDA failed."""
        return worker.wanted == "cpu" != self.device

    def may_use_cuda(self) -> bool:
        """Whether CUDA may be the reason that workers do not start, and the user allows the CPU."""
        return self.device != "cpu" and ("cuda" in self.devices or (not self.devices and self.device == "auto"))

    def note_failed_start(self, fault: str) -> None:
        pause_s = min(START_PAUSE_S * 2**self.n_failed_starts, MAX_PAUSE_S)
        self.n_failed_starts += 1
        self.next_start_s = time.monotonic() + pause_s
        log.warning("a worker process %s", fault)

    def assign(self) -> None:
        """Give each idle worker a clip; let those go that have no more to do."""
        for worker in [worker for worker in self.workers if worker.idle]:
            busy = [other.name for other in self.workers if other.name is not None]
            task = None
            if any(name in self.kills for name in busy):  # it is being tried alone
                return
            off_duty = self.is_helper(worker) and not self.for_cpu
            left_behind = self.device == "cpu" and worker.device == "cuda"
            if off_duty or left_behind or len(self.workers) > self.n_workers:
                self.remove(worker)
            elif self.suspects:
                task = None if busy else self.plan.again(self.suspects.popleft())
            elif self.for_cpu and worker.device == "cpu":
                task = self.plan.again(self.for_cpu.popleft())
            elif not self.is_helper(worker):
                task = self.plan.next()
            if task is not None:
                worker.give(task, self.clips[task.name])

    def collect(self) -> Iterator[Answer]:
        """Wait until a worker answers, dies or is overdue, and deal with it."""
        if not self.workers:
            return
        due_s = min(worker.due_s for worker in self.workers)
        patience_s = min(due_s - time.monotonic(), self.deadline.remaining_s(), 5.0)
        answered = set(wait([worker.connection for worker in self.workers], timeout=max(patience_s, 0.01)))
        for worker in list(self.workers):
            if worker.connection in answered:
                message = worker.receive()
                if isinstance(message, Answer):
                    yield from self.take(worker, message)
                elif isinstance(message, Ready):
                    self.welcome(message)
                elif isinstance(message, Refusal):
                    if not self.devices:
                        raise InputError(message.reason)
                    yield from self.bury(worker, f"refused ({message.reason})", "error")
                else:
                    yield from self.bury(worker, worker.describe_end(), "error")
            elif worker.overdue():
                fault = "hung and was ended" if worker.device else f"had not loaded after {START_LIMIT_S:.0f} s"
                yield from self.bury(worker, fault, "timeout")

    def welcome(self, message: Ready) -> None:
        """Take note of a worker that has loaded."""
        if message.device not in self.devices:
            log.info("models run on %s", message.runtime)
            if message.device == "cuda" and self.more_on_cuda and self.device != "cpu":
                self.resize(min(self.n_workers + max(int(MORE_ON_CUDA * self.n_workers), 1), len(self.clips)))
        self.devices.add(message.device)
        self.n_failed_starts, self.next_start_s = 0, float("-inf")

    def resize(self, n_workers: int) -> None:
        self.n_workers = n_workers
        self.plan.resize(n_workers)

    def take(self, worker: Worker, answer: Answer) -> Iterator[Answer]:
        """Take over what a worker found."""
        prediction = answer.prediction
        if answer.last:
            self.remove(worker)
            if worker.device == "cuda":
                log.warning("%s: %s", prediction.filename, prediction.reason)
                yield from self.blame_cuda(prediction)
                return
        elif worker.device == "cuda":
            self.n_cuda_faults = 0
        if self.kills.pop(prediction.filename, 0):
            self.n_survived += 1
            if self.n_survived >= MAX_KILLS and self.n_workers > 1:
                self.n_survived = 0
                self.resize(self.n_workers - 1)
                log.warning("memory is short; the run goes on with %d worker(s)", self.n_workers)
        if prediction.status in ("unreadable", "error") and self.try_again(prediction.filename):
            return
        yield Answer(self.plan.record(prediction), answer.file)

    def bury(self, worker: Worker, fault: str, status: str) -> Iterator[Answer]:
        """End a worker; its clip waits for another one or gets its row."""
        killed = status == "error" and worker.was_killed()
        self.remove(worker)
        if worker.device is None:
            self.note_failed_start(f"{fault} while it loaded")
        elif worker.name is not None:
            log.warning("%s: its worker %s", worker.name, fault)
            prediction = Prediction(worker.name, status=status, reason=f"its worker {fault}")
            self.kills[worker.name] += killed
            if killed and self.kills[worker.name] < MAX_TRIES and worker.name not in self.plan.known:
                self.suspects.append(worker.name)
            elif worker.device == "cuda" and not killed:
                yield from self.blame_cuda(prediction)
            elif killed or status != "error" or not self.try_again(worker.name):
                yield Answer(self.plan.record(prediction))
            if worker.name not in self.suspects:
                del self.kills[worker.name]

    def try_again(self, name: str) -> bool:
        """Put a clip back whose look failed, unless it was tried often enough or has a score already."""
        self.failures[name] += 1
        again = self.failures[name] < MAX_TRIES and name not in self.plan.known
        if again:
            self.plan.retry(name)
        return again

    def blame_cuda(self, prediction: Prediction) -> Iterator[Answer]:
        """Let the CPU look at a clip that CUDA failed; leave CUDA if it fails on."""
        self.n_cuda_faults += 1
        if prediction.filename in self.plan.known:
            yield Answer(self.plan.record(prediction))
        else:
            self.for_cpu.append(prediction.filename)
        if self.n_cuda_faults >= MAX_CUDA_FAULTS:
            self.leave_cuda(f"CUDA failed {self.n_cuda_faults} clips in succession")

    def leave_cuda(self, reason: str) -> None:
        """From now on workers are on the CPU."""
        if self.device != "cpu":
            log.warning("%s; the run goes on on the CPU", reason)
            self.device = "cpu"
            self.n_failed_starts, self.next_start_s = 0, float("-inf")
            self.resize(self.n_on_cpu)

    def remove(self, worker: Worker) -> None:
        end_workers([worker])
        self.workers.remove(worker)
