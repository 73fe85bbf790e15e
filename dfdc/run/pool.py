"""Score many clips in worker processes, under a supervisor that survives the failure of any of them.

A crash, a hang or the out-of-memory killer ends one worker. Another worker takes its place, and the clip is tried once
more or gets a row with the reason. A clip that fails on CUDA is tried again on the CPU, and a CUDA device that keeps
failing is no longer used. The plan decides which clip is next.
"""

from __future__ import annotations

import logging
import time
from collections import Counter, deque
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing
from dataclasses import replace
from multiprocessing.connection import wait
from pathlib import Path

from dfdc.deadline import Deadline
from dfdc.errors import InputError, MachineError
from dfdc.prediction import Prediction
from dfdc.progress import Progress
from dfdc.run.limits import count_cores, share_memory
from dfdc.run.plan import Plan
from dfdc.run.spawn import START_LIMIT_S, Work, Worker, end_workers, start_worker
from dfdc.run.worker import Answer, Ready, Refusal, WorkerSettings, score_clips
from dfdc.weights import select

log = logging.getLogger(__name__)

# On CUDA there are this many more workers per core, and at least one: while some wait for the device, others decode.
# The value comes from a simulation with models that take the time of a T4 and no core (docs/experiments.md).
MORE_ON_CUDA = 0.25
# A clip that could not be read or scored, or whose worker crashed, is tried once more, after the others: the cause may
# have been something else, such as a disk that failed for a moment.
MAX_TRIES = 2
# A clip whose worker was killed, for example because memory is short, is tried once more while no other clip runs. When
# this many clips have succeeded alone, memory is too short for all workers, and one worker fewer is used from then on.
MAX_KILLS = 2
# A run that has not scored anything ends after this many workers in succession died while loading. A run that has begun
# waits longer, because memory or processes may become free again. The pause doubles each time.
MAX_FAILED_STARTS = 2
MAX_RESTARTS = 10
START_PAUSE_S = 0.5
MAX_PAUSE_S = 60.0
# After this many clips in succession failed on CUDA, the run continues on the CPU.
MAX_CUDA_FAULTS = 3
# Largest number of clips that failed on CUDA and wait for each worker on the CPU.
MAX_WAITING = 8
UNGUARDED = (
    "this script starts worker processes, and each of them imports the script and would start workers again; "
    'put the code that scores clips under the line `if __name__ == "__main__":`'
)
# Called with a row name and what a worker is doing to this clip.
WatchClips = Callable[[str, Progress], None]


def predict_clips(clips: dict[str, Path], settings: WorkerSettings, **how: object) -> Iterator[Prediction]:
    """Score clips and yield their predictions; the arguments are those of `answer_clips`."""
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
    watch: WatchClips | None = None,
    work: Work | None = None,
) -> Iterator[Answer]:
    """Score clips in worker processes.

    Args:
        clips: row name -> path.
        settings: settings of the workers. The ensemble consists of the models that they name, whatever happens.
        n_workers: number of workers; None for one per core, and some more on CUDA.
        deadline: after it no clip is started, and clips that were started are given up.
        known: results of an earlier run by row name; None for none.
        watch: told what the workers are doing; None if nobody asks, and then they send nothing.
        work: function that a worker process runs; None for `score_clips`. Tests pass their own.

    Yields:
        One answer for each clip that is not known, in the order in which they are finished; with the status "timeout"
        if the deadline passes first. A clip that gets another pass is yielded again.

    Raises:
        InputError: the weights, the device or the installation that the user chose cannot be used, or the script that
            called lacks the guard `if __name__ == "__main__":`.
        MachineError: no worker can be started.
    """
    n_started = min(n_workers or count_cores(), max(len(clips), 1))
    plan = Plan(
        clips,
        n_frames=settings.n_frames,
        n_workers=n_started,
        clip_limit_s=settings.clip_limit_s,
        deadline=deadline,
        n_models=max(len(select("face", settings.weights)), 1),
        known=known,
    )
    settings = replace(
        settings,
        threads=max(count_cores() // n_started, 1),
        memory_bytes=share_memory(n_started),
        tells_progress=watch is not None,
    )
    pool = _Pool(clips, plan, settings, deadline, work or score_clips, n_started, watch, more_on_cuda=n_workers is None)
    try:
        yield from pool.run()
    finally:
        end_workers(pool.workers)


class _Pool:
    """The workers and the record of their failures.

    Attributes:
        n_workers: number of workers wanted.
        device: device that new workers are told to use.
        devices: kinds of devices that workers have used.
        suspects: clips whose worker was killed once; each is tried once more while no other clip runs.
        for_cpu: clips that failed on CUDA; a worker on the CPU has to score them.
    """

    def __init__(
        self,
        clips: dict[str, Path],
        plan: Plan,
        settings: WorkerSettings,
        deadline: Deadline,
        work: Work,
        n_workers: int,
        watch: WatchClips | None,
        *,
        more_on_cuda: bool,
    ) -> None:
        """Set up the pool without starting workers; see `answer_clips` for the arguments."""
        self.clips, self.plan, self.settings, self.deadline, self.work = clips, plan, settings, deadline, work
        self.watch = watch
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
                log.error("%s; the remaining clips get 0.5", reason)
                yield from (Answer(Prediction(name, status="error", reason=reason)) for name in self.plan.unscored())
                return
            else:
                time.sleep(max(min(self.next_start_s - time.monotonic(), self.deadline.remaining_s()), 0))
        reason = "the time limit of the run ended first"
        if self.plan.n_open() and not self.devices:
            log.error("the time limit ended before the models had loaded")
        yield from (Answer(Prediction(name, status="timeout", reason=reason)) for name in self.plan.unscored())

    def start(self) -> None:
        """Start workers until there are as many as wanted, or as there are clips to score.

        At most one worker per core loads at the same time, so that the first one is ready early. After a failed start
        the next one is delayed.
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
            except OSError as error:  # no process, descriptor or memory is left
                self.note_failed_start(f"cannot be started ({error})")
            else:
                self.n_started, n_loading = self.n_started + 1, n_loading + 1

    def is_helper(self, worker: Worker) -> bool:
        """Whether a worker runs on the CPU only to score clips that failed on CUDA."""
        return worker.wanted == "cpu" != self.device

    def may_use_cuda(self) -> bool:
        """Whether workers may fail to start because of CUDA, and the user allows the CPU."""
        return self.device != "cpu" and ("cuda" in self.devices or (not self.devices and self.device == "auto"))

    def note_failed_start(self, fault: str) -> None:
        pause_s = min(START_PAUSE_S * 2**self.n_failed_starts, MAX_PAUSE_S)
        self.n_failed_starts += 1
        self.next_start_s = time.monotonic() + pause_s
        log.warning("a worker process %s", fault)

    def assign(self) -> None:
        """Give each idle worker a clip, and end workers that have nothing more to do."""
        for worker in [worker for worker in self.workers if worker.idle]:
            busy = [other.name for other in self.workers if other.name is not None]
            task = None
            if any(name in self.kills for name in busy):  # a suspect is being tried alone
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
        """Wait until a worker answers, dies or is overdue, and handle that."""
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
                elif isinstance(message, Progress):
                    self.watch(worker.name, message)
                elif isinstance(message, Ready):
                    self.welcome(message)
                elif isinstance(message, Refusal):
                    if not self.devices:
                        raise InputError(message.reason)
                    yield from self.bury(worker, f"refused ({message.reason})", "error")
                else:
                    yield from self.bury(worker, worker.describe_end(), "error")
            elif worker.overdue():
                fault = "hung and was killed" if worker.device else f"had not loaded after {START_LIMIT_S:.0f} s"
                yield from self.bury(worker, fault, "timeout")

    def welcome(self, message: Ready) -> None:
        """Register a worker that has loaded."""
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
        """Handle a worker's answer."""
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
                log.warning("memory is short; the run continues with %d worker(s)", self.n_workers)
        if prediction.status in ("unreadable", "error") and self.try_again(prediction.filename):
            return
        yield Answer(self.plan.record(prediction), answer.file)

    def bury(self, worker: Worker, fault: str, status: str) -> Iterator[Answer]:
        """End a worker; its clip is tried again by another worker or gets its row."""
        killed = status == "error" and worker.was_killed()
        if worker.device is None and status == "error" and worker.was_unguarded():
            raise InputError(UNGUARDED)
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
        """Put a clip back after a failed pass, unless it was tried often enough or has a score already."""
        self.failures[name] += 1
        again = self.failures[name] < MAX_TRIES and name not in self.plan.known
        if again:
            self.plan.retry(name)
        return again

    def blame_cuda(self, prediction: Prediction) -> Iterator[Answer]:
        """Let the CPU score a clip that failed on CUDA; stop using CUDA if it keeps failing."""
        self.n_cuda_faults += 1
        if prediction.filename in self.plan.known:
            yield Answer(self.plan.record(prediction))
        else:
            self.for_cpu.append(prediction.filename)
        if self.n_cuda_faults >= MAX_CUDA_FAULTS:
            self.leave_cuda(f"{self.n_cuda_faults} clips in succession failed on CUDA")

    def leave_cuda(self, reason: str) -> None:
        """Use only workers on the CPU from now on."""
        if self.device != "cpu":
            log.warning("%s; the run continues on the CPU", reason)
            self.device = "cpu"
            self.n_failed_starts, self.next_start_s = 0, float("-inf")
            self.resize(self.n_on_cpu)

    def remove(self, worker: Worker) -> None:
        end_workers([worker])
        self.workers.remove(worker)
