"""A worker process: what it is made with, what it says, and its life.

Decoders and models are native code that meets untrusted files, so they run in processes that `dfdc.run.pool` outlives.
"""

from __future__ import annotations

import contextlib
import ctypes
import logging
import signal
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import TYPE_CHECKING

from dfdc.analysis_files import write_analysis
from dfdc.deadline import Deadline
from dfdc.errors import InputError, WeightsError
from dfdc.files import Identity, identify
from dfdc.log import show_log
from dfdc.prediction import Prediction
from dfdc.run.limits import limit_memory
from dfdc.weights import WeightsFile

if TYPE_CHECKING:
    from dfdc.analyze import Analyzer

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class WorkerSettings:
    """What a worker is made with.

    Attributes:
        weights: checked files of the models that answer: whoever makes the settings chooses them, and nothing changes
            the choice during a run.
        device: "auto", "cpu" or "cuda".
        n_frames: frames per clip; None for as many as time allows.
        models: "all", or "first" to leave out the weights of the folder further/.
        threads: native threads per worker; `dfdc.run.pool.predict_clips` shares the cores out.
        clip_limit_s: wall seconds that reading one clip may take.
        memory_bytes: of data that a worker on the CPU may hold, see `dfdc.run.limits.limit_memory`; None for no limit.
        analyses: folder that gets each clip's analysis as JSON; None for none.
        thumbnails: whether these analyses hold pictures of faces and scenes.
        place: how many workers were started before; where there are several GPUs, they take turns.
    """

    weights: tuple[WeightsFile, ...]
    device: str = "auto"
    n_frames: int | None = None
    models: str = "all"
    threads: int = 1
    clip_limit_s: float = 60.0
    memory_bytes: int | None = None
    analyses: Path | None = None
    thumbnails: bool = True
    place: int = 0

    def __post_init__(self) -> None:
        if self.models == "first":
            object.__setattr__(self, "weights", tuple(file for file in self.weights if not file.further))


@dataclass(frozen=True)
class Ready:
    """A worker's first word: it has loaded, this is what runs its nets, in words, and the kind of device."""

    runtime: str
    device: str = "cpu"


@dataclass(frozen=True)
class Refusal:
    """A worker's only word, where it cannot load by the user's mistake."""

    reason: str


@dataclass(frozen=True)
class Answer:
    """What a worker found.

    Attributes:
        prediction: of the clip.
        file: that was scored; None where nobody knows.
        last: whether the worker ends now, so that no clip is lost on it.
    """

    prediction: Prediction
    file: Identity | None = None
    last: bool = False


def score_clips(connection: Connection, settings: WorkerSettings) -> None:
    """A worker's life: load once, then one clip after another until the supervisor hangs up."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    show_log()
    try:
        analyzer, runtime = _load(settings)
    except ImportError as error:
        connection.send(Refusal(_describe_missing(error)))
        return
    except (InputError, WeightsError) as error:
        connection.send(Refusal(str(error)))
        return
    if analyzer.device == "cpu":  # CUDA reserves more addresses than there is memory
        limit_memory(settings.memory_bytes)
    connection.send(Ready(runtime, analyzer.device))
    with contextlib.suppress(EOFError, OSError):  # the supervisor hung up
        while True:
            path, task = connection.recv()
            before = identify(path)
            deadline = Deadline.after(task.limit_s)
            analysis = analyzer.analyze(
                path,
                task.n_frames,
                n_models=task.n_nets,
                name=task.name,
                deadline=deadline,
                thumbnails=settings.analyses is not None and settings.thumbnails,
            )
            if settings.analyses is not None:
                try:
                    write_analysis(settings.analyses, analysis)
                except OSError as error:  # the score stands
                    log.warning("%s: the analysis cannot be written (%s)", task.name, error)
            prediction = analysis.prediction
            release_memory()
            # A CUDA context does not recover from a fault, and not every fault's message names it: whatever fails
            # beside CUDA is tried again without it.
            broken = prediction.status == "error" and analyzer.device == "cuda"
            if before != identify(path):
                reason = "the file was changed or replaced while it was read"
                prediction = Prediction(task.name, status="error", reason=reason)
            connection.send(Answer(prediction, before, last=broken))
            if broken:
                return


def _load(settings: WorkerSettings) -> tuple[Analyzer, str]:
    """The analyzer, and what runs its nets; everything heavy is imported here, never by the supervisor."""
    import cv2

    from dfdc.analyze import Analyzer
    from dfdc.errors import DeviceError
    from dfdc.runtime import choose_device, describe_runtime

    cv2.setNumThreads(settings.threads)
    try:
        device = choose_device(settings.device, place=settings.place)
    except DeviceError as error:
        raise InputError(str(error)) from error
    analyzer = Analyzer(list(settings.weights), device=device, threads=settings.threads)
    return analyzer, describe_runtime(device) + ("; NVDEC decodes H.264" if analyzer.gpu is not None else "")


def release_memory() -> None:
    """Give what a clip left behind back to the system, so that clips of many sizes do not add up."""
    with contextlib.suppress(OSError, AttributeError):  # another C library than glibc
        ctypes.CDLL(None).malloc_trim(0)


def _describe_missing(error: ImportError) -> str:
    return f"{error}; install what requirements.txt names"
