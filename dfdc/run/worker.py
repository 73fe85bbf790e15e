"""The worker process: its settings, its messages and its main loop.

Decoders and models are native code that reads untrusted files. They run in processes whose failure `dfdc.run.pool`
survives.
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
from dfdc.files import REPLACED, Identity, identify
from dfdc.log import show_log
from dfdc.prediction import Prediction
from dfdc.progress import ignore
from dfdc.run.limits import limit_memory
from dfdc.weights import WeightsFile, choose_answering

if TYPE_CHECKING:
    from dfdc.analyze import Analyzer

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class WorkerSettings:
    """The settings of a worker.

    Attributes:
        weights: checked weights of the ensemble. They are chosen once, and nothing changes them during a run.
        device: "auto", "cpu" or "cuda".
        n_frames: frames per clip; None for as many as time allows.
        models: "first" for the models directly in the folder of weights, "all" for those in its folder further/, too.
        threads: native threads per worker; `dfdc.run.pool.answer_clips` divides the cores among the workers.
        clip_limit_s: wall seconds that reading one clip may take.
        memory_bytes: limit of data of a worker on the CPU, see `dfdc.run.limits.limit_memory`; None for no limit.
        analyses: folder to which each clip's analysis is written as JSON; None to write none.
        thumbnails: whether these analyses hold pictures of faces and scenes.
        tells_progress: whether a worker sends a `Progress` for each stage of a clip and each frame that it read.
        place: number of workers that were started before; with several GPUs it decides which one is used.
    """

    weights: tuple[WeightsFile, ...]
    device: str = "auto"
    n_frames: int | None = None
    models: str = "first"
    threads: int = 1
    clip_limit_s: float = 60.0
    memory_bytes: int | None = None
    analyses: Path | None = None
    thumbnails: bool = True
    tells_progress: bool = False
    place: int = 0

    def __post_init__(self) -> None:
        object.__setattr__(self, "weights", choose_answering(self.weights, self.models))


@dataclass(frozen=True)
class Ready:
    """A worker's first message, sent after loading: a description of the runtime, and the kind of device."""

    runtime: str
    device: str = "cpu"


@dataclass(frozen=True)
class Refusal:
    """A worker's only message if it cannot load because of a mistake of the user."""

    reason: str


@dataclass(frozen=True)
class Answer:
    """A worker's result for one clip.

    Attributes:
        prediction: prediction of the clip.
        file: identity of the file that was opened and scored; None if it is not known.
        last: whether the worker ends after this answer, so that it must not get another clip.
    """

    prediction: Prediction
    file: Identity | None = None
    last: bool = False


def score_clips(connection: Connection, settings: WorkerSettings) -> None:
    """Load the models, then score one clip after another until the supervisor closes the connection."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    show_log()
    try:
        analyzer, runtime = load_analyzer(settings)
    except ImportError as error:
        connection.send(Refusal(_describe_missing(error)))
        return
    except (InputError, WeightsError) as error:
        connection.send(Refusal(str(error)))
        return
    if analyzer.device == "cpu":  # on CUDA there is no limit: it reserves more addresses than there is memory
        limit_memory(settings.memory_bytes)
    connection.send(Ready(runtime, analyzer.device))
    with contextlib.suppress(EOFError, OSError):  # the supervisor closed the connection
        while True:
            path, task = connection.recv()
            deadline = Deadline.after(task.limit_s)
            analysis = analyzer.analyze(
                path,
                task.n_frames,
                n_models=task.n_models,
                name=task.name,
                deadline=deadline,
                thumbnails=settings.analyses is not None and settings.thumbnails,
                watch=connection.send if settings.tells_progress else ignore,
            )
            if settings.analyses is not None:
                try:
                    write_analysis(settings.analyses, analysis)
                except OSError as error:  # the score is still valid
                    log.warning("%s: the analysis cannot be written (%s)", task.name, error)
            prediction = analysis.prediction
            release_memory()
            # A CUDA context does not recover from a fault, and not every such error message names CUDA. So every clip
            # that fails while CUDA is used is tried again without it.
            broken = prediction.status == "error" and analyzer.device == "cuda"
            # The journal must not keep the score of a file to which the clip's path no longer leads.
            if analysis.identity not in (None, identify(path)):
                prediction = Prediction(task.name, status="error", reason=REPLACED)
            connection.send(Answer(prediction, analysis.identity, last=broken))
            if broken:
                return


def load_analyzer(settings: WorkerSettings) -> tuple[Analyzer, str]:
    """Load the analyzer and describe its runtime. Heavy modules are imported here and never by the supervisor."""
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
    """Return freed memory to the system, so that clips of different sizes do not add up."""
    with contextlib.suppress(OSError, AttributeError):  # the C library is not glibc
        ctypes.CDLL(None).malloc_trim(0)


def _describe_missing(error: ImportError) -> str:
    return f"{error}; install the packages in requirements.txt"
