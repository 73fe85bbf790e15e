"""One clip -> one prediction, whatever the clip is: the one place that catches a bad clip."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TypeVar

import numpy as np

from dfdc.aggregate import add_voice, clip_probability, voice_probability
from dfdc.deadline import NEVER, Deadline
from dfdc.detect import FaceDetector
from dfdc.ensemble import Ensemble
from dfdc.errors import VideoError, VideoTimeout
from dfdc.prediction import Prediction
from dfdc.research.motion import Motion
from dfdc.research.voice import Listener
from dfdc.runtime import current_gpu
from dfdc.tracks import Track, find_tracks
from dfdc.video import Frame, has_gpu_decoder, read_frames
from dfdc.weights import WeightsFile, that_see

log = logging.getLogger(__name__)
T = TypeVar("T")


class Predictor:
    """Scores clips with an ensemble on a device.

    Attributes:
        crop_s: core-seconds that cutting the last clip's faces took.
    """

    def __init__(self, files: list[WeightsFile], *, device: str = "cpu", threads: int | None = None) -> None:
        """Load nets.

        Args:
            files: checked weights; at least one sees faces.
            device: "cpu" or "cuda", where nets run and, where it can, clips are decoded.
            threads: that a net uses on the CPU; None for as many as there are cores.
        """
        self.device, self.crop_s = device, 0.0
        self.gpu = current_gpu() if device == "cuda" and has_gpu_decoder() else None
        self.detector = FaceDetector(device, threads=threads)
        self.ensemble = Ensemble(that_see("face", files), device, threads=threads)
        self.motion = Motion(that_see("motion", files), device, threads=threads)
        self.listener = Listener(that_see("sound", files), device, threads=threads)

    def predict(
        self,
        path: Path,
        n_frames: int,
        *,
        n_nets: int | None = None,
        name: str | None = None,
        deadline: Deadline = NEVER,
    ) -> Prediction:
        """Score one clip; bad ones get the prior and a reason.

        Args:
            path: of the clip, whatever it is.
            n_frames: how many of its frames are looked at.
            n_nets: how many nets that see faces answer, the first ones; None for all.
            name: of its row; None for the file's own.
            deadline: after it decoding ends, and what was decoded is scored.
        """
        started = time.monotonic()
        blank = Prediction(name or path.name, wanted=n_frames, nets=n_nets or len(self.ensemble.nets))
        try:
            prediction = self._predict(path, blank, deadline)
        except VideoTimeout as error:
            prediction = replace(blank, status="timeout", reason=str(error))
        except VideoError as error:
            prediction = replace(blank, status="unreadable", reason=str(error))
        except Exception as error:  # a bug or a broken device: the clip gets its row, the log its traceback
            log.exception("%s: failed", path)
            prediction = replace(blank, status="error", reason=_describe(error))
        return replace(prediction, seconds=time.monotonic() - started)

    def _predict(self, path: Path, blank: Prediction, deadline: Deadline) -> Prediction:
        clock, self.crop_s = time.process_time, 0.0
        started, began_s = clock(), time.monotonic()
        frames = read_frames(
            path, blank.wanted, n_pairs=min(self.motion.n_pairs, blank.wanted), deadline=deadline, gpu=self.gpu
        )
        decoded = clock()
        cut_s = time.monotonic() - began_s if len(frames) < blank.wanted and deadline.expired() else 0.0
        n_pairs = sum(frame.neighbour is not None for frame in frames)
        seen = replace(blank, frames=len(frames), pairs=n_pairs, cut_s=cut_s, decode_s=decoded - started)
        tracks, faces = find_tracks([frame.pixels for frame in frames], self.detector)
        detected = clock()
        n_faces = sum(len(found) > 0 for found in faces.values())
        seen = replace(seen, faces=n_faces, tracks=len(tracks), detect_s=detected - decoded)
        if tracks:
            logits = self.score_tracks(frames, tracks, n_nets=seen.nets)
            changes = self._beside(path, lambda: self.motion.score(frames, tracks))
            if changes is not None:
                logits = [track + change for track, change in zip(logits, changes, strict=True)]
            low, high = self.ensemble.bounds(seen.nets)
            seen = replace(seen, label=clip_probability(logits, low=low, high=high))
        else:
            seen = replace(seen, status="no_face", reason=f"no face in {len(frames)} frames")
        heard = self._hear(path, seen, deadline)
        return replace(heard, crop_s=self.crop_s, score_s=clock() - detected - self.crop_s)

    def _hear(self, path: Path, seen: Prediction, deadline: Deadline) -> Prediction:
        """What was seen of a clip, and what its voice adds."""
        score = None if deadline.expired() else self._beside(path, lambda: self.listener.listen(path))
        if score is None:
            return seen
        voice = voice_probability(score)
        return replace(
            seen, label=add_voice(seen.label, voice, high=self.listener.high), picture=seen.label, voice=voice
        )

    def _beside(self, path: Path, look: Callable[[], T]) -> T | None:
        """What an optional net finds; where it fails, what the others found stands.

        Beside CUDA it does not: whatever failed may have broken the device, and the clip is looked at on the CPU.
        """
        try:
            return look()
        except VideoError as error:
            log.warning("%s: %s; the others' score stands", path, error)
        except Exception:
            if self.device == "cuda":
                raise
            log.exception("%s: an optional net failed; the others' score stands", path)
        return None

    def score_tracks(self, frames: list[Frame], tracks: list[Track], *, n_nets: int | None = None) -> list[np.ndarray]:
        """The calibrated logits (T,) of each track's frames, by the first so many nets; None for all."""
        faces = [
            (frames[index].pixels, box)
            for track in tracks
            for index, box in zip(track.frames, track.boxes, strict=True)
        ]
        started = time.process_time()
        crops = self.ensemble.cut(faces, n_nets=n_nets)
        self.crop_s = time.process_time() - started
        lengths = [len(track) for track in tracks]
        return np.split(self.ensemble.score_cut(crops, lengths=lengths), np.cumsum(lengths)[:-1])


def _describe(error: Exception) -> str:
    """An error in one line; torch's run over many."""
    return " ".join([type(error).__name__, *str(error).splitlines()[:1]])
