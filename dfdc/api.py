"""The public Python API: a detector that analyzes clips and scores face crops."""

from __future__ import annotations

import operator
import tempfile
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from dfdc.analysis import Analysis
from dfdc.analysis_files import analysis_path, read_analysis
from dfdc.analyze import Analyzer
from dfdc.deadline import NEVER, Deadline
from dfdc.errors import DeviceError, InputError
from dfdc.prediction import DEFAULT_FRAMES, MAX_FRAMES
from dfdc.run.inputs import collect
from dfdc.run.pool import predict_clips
from dfdc.run.worker import WorkerSettings
from dfdc.runtime import choose_device
from dfdc.weights import WeightsFile, choose_answering, find_weights, shipped_weights, sigmoid

if TYPE_CHECKING:
    from numpy.typing import ArrayLike, NDArray


def load_detector(
    weights: str | Path | None = None,
    *,
    device: str = "auto",
    n_frames: int | None = None,
    models: Literal["first", "all"] = "first",
    extras: Sequence[str] = (),
) -> Detector:
    """Load the models.

    Args:
        weights: a weights file, or a folder whose files form an ensemble; None for the weights that the package ships.
        device: "cpu", "cuda", or "auto" for CUDA if there is a GPU that works.
        n_frames: number of frames to examine per clip, 1 to 256; None for 16.
        models: "first" for the models directly in the folder, "all" for those in its folder further/, too, which know
            DFDC's face swaps better and photographs worse.
        extras: optional models to use as well, "motion" or "sound".

    Raises:
        WeightsError: the weights are missing, damaged or do not fit.
        DeviceError: the device cannot be used.
        InputError: a setting is not allowed.
    """
    if models not in ("first", "all"):
        raise InputError(f"models is {models!r}; allowed are 'first' and 'all'")
    if device not in ("auto", "cpu", "cuda"):
        raise InputError(f"device is {device!r}; allowed are 'auto', 'cpu' and 'cuda'")
    if isinstance(extras, str):  # a text is a sequence, too: of letters
        raise InputError(f"extras is {extras!r}; allowed are sequences, as in extras=[{extras!r}]")
    files = find_weights(Path(weights) if weights is not None else shipped_weights(), extras=extras)
    return Detector(
        choose_answering(files, models),
        device=choose_device(device),
        n_frames=DEFAULT_FRAMES if n_frames is None else n_frames,
    )


class Detector:
    """Estimates the probability that faces in clips were faked; create one with `load_detector`.

    Threads may share a detector; its methods `analyze` and `score_crops` then run one after the other. To use several
    cores, call `analyze_many`. A detector that is sent to another process loads its models there again, so load one in
    each process, or send one only once.

    Attributes:
        weights: the files of its models.
        device: "cpu" or "cuda"; the models run there.
        n_frames: number of frames to examine per clip.
    """

    def __init__(
        self, weights: tuple[WeightsFile, ...], *, device: str = "cpu", n_frames: int = DEFAULT_FRAMES
    ) -> None:
        self.weights, self.device, self.n_frames = weights, device, _check_frames(n_frames)
        try:
            self._analyzer = Analyzer(list(weights), device=device)
        except ImportError as error:
            extra = "dfdc[cuda]" if device == "cuda" else "dfdc"
            raise DeviceError(
                f"the device {device} needs a package that cannot be imported ({error}); pip install '{extra}'"
            ) from error
        # The models write into buffers of their own, so two threads would get each other's outputs.
        self._lock = threading.Lock()

    def __reduce__(self) -> tuple[Callable[..., Detector], tuple[tuple[WeightsFile, ...], str, int]]:
        # Compiled models cannot be sent to another process.
        return _load_again, (self.weights, self.device, self.n_frames)

    def analyze(self, path: str | Path, *, n_frames: int | None = None, thumbnails: bool = False) -> Analysis:
        """Analyze one clip in this process.

        Args:
            path: of the clip.
            n_frames: number of frames to examine, 1 to 256; None for the detector's own setting.
            thumbnails: whether to keep pictures of faces and scenes, which the report needs.

        Returns:
            The analysis of the clip. If the clip cannot be read, its probability is 0.5, and its status and reason say
            why.

        Raises:
            InputError: there is no such file, or `n_frames` is not allowed.
        """
        n_frames = self.n_frames if n_frames is None else _check_frames(n_frames)
        if "://" in str(path):
            raise InputError(f"{path}: is a web address; download the clip and name the file")
        path = Path(path)
        if path.is_dir():
            raise InputError(f"{path}: is a folder; analyze_many([{str(path)!r}]) analyzes the clips in it")
        if not path.is_file():
            raise InputError(f"{path}: no such file; name a video or a picture")
        with self._lock:
            deadline = Deadline.after(WorkerSettings.clip_limit_s)
            return self._analyzer.analyze(path, n_frames, deadline=deadline, thumbnails=thumbnails)

    def analyze_many(
        self,
        paths: str | Path | Iterable[str | Path],
        *,
        n_workers: int | None = None,
        time_limit_s: float | None = None,
    ) -> Iterator[Analysis]:
        """Analyze clips in worker processes under a supervisor that outlives a worker's crash.

        A script that calls this method needs the usual guard `if __name__ == "__main__":`, because workers import the
        script.

        Args:
            paths: clips, or folders of clips; one or several.
            n_workers: number of processes that run in parallel; None for one per core.
            time_limit_s: seconds after which the remaining clips get the status "timeout"; None for no limit.

        Yields:
            One analysis per clip, in the order in which they are finished.

        Raises:
            InputError: a path does not exist, no clip is found, two clips share a name, or the script lacks the guard.
            MachineError: no worker process can be started.
        """
        job = collect([Path(path) for path in ([paths] if isinstance(paths, (str, Path)) else paths)])
        clips = {name: job.paths[name] for name in job.names}
        deadline = NEVER if time_limit_s is None else Deadline.after(time_limit_s)
        with tempfile.TemporaryDirectory(prefix="dfdc-") as folder:
            settings = WorkerSettings(
                self.weights,
                device=self.device,
                n_frames=self.n_frames,
                models="all",  # that this detector has
                analyses=Path(folder),
                thumbnails=False,
            )
            for prediction in predict_clips(clips, settings, n_workers=n_workers, deadline=deadline):
                path = analysis_path(Path(folder), prediction.filename)
                if path.is_file():
                    yield read_analysis(path)
                else:  # the clip killed its worker, or was not reached
                    yield Analysis(prediction.filename, status=prediction.status, reason=prediction.reason)

    def score_crops(self, crops: ArrayLike) -> NDArray[np.float64]:
        """Score face crops.

        Args:
            crops: (N, H, W, 3) uint8 RGB; H and W are the crop size that the models were trained on (224 for the
                shipped ones), cut as `dfdc.crop.crop_face` cuts them.

        Returns:
            (N,) float64, the probability that each face is fake, 0 to 1.

        Raises:
            InputError: the array has another shape or dtype.
            WeightsError: the crop size is not the one that the models were trained on.
        """
        images: Any = np.asarray(crops)
        if images.ndim != 4 or images.shape[3] != 3 or images.dtype != np.uint8:
            raise InputError(f"crops are {images.dtype} {images.shape}; allowed is uint8 (N, H, W, 3)")
        low, high = self._analyzer.ensemble.bounds()
        with self._lock:
            logits = self._analyzer.ensemble.score_crops(images.transpose(0, 3, 1, 2))
        return np.clip(sigmoid(logits), low, high)


def _load_again(weights: tuple[WeightsFile, ...], device: str, n_frames: int) -> Detector:
    return Detector(weights, device=device, n_frames=n_frames)


def _check_frames(n_frames: int) -> int:
    try:
        number = operator.index(n_frames)  # NumPy's whole numbers are allowed as well
    except TypeError:
        number = 0
    if not 1 <= number <= MAX_FRAMES:
        raise InputError(f"n_frames is {n_frames!r}; allowed are whole numbers from 1 to {MAX_FRAMES}")
    return number
