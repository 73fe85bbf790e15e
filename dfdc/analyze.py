"""One clip -> one analysis, even for a broken clip: frames, faces, tracks, crops, scores, and a probability."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timezone
from functools import cached_property
from pathlib import Path
from typing import TypeVar

import numpy as np

from dfdc.aggregate import add_voice, clip_probability, voice_probability
from dfdc.analysis import Analysis, FaceTrack, Model, Provenance, Timings
from dfdc.deadline import NEVER, Deadline
from dfdc.detect import FaceDetector
from dfdc.ensemble import Ensemble, cut_crops
from dfdc.errors import MachineError, VideoError, VideoTimeout
from dfdc.files import describe_file
from dfdc.illustrate import illustrate, spread
from dfdc.models import open_heat_map
from dfdc.quality import MIN_TRUST, TRUST
from dfdc.research.motion import Motion
from dfdc.research.voice import VoiceModels
from dfdc.runtime import Network, current_gpu
from dfdc.tracks import Track, find_tracks
from dfdc.version import __version__
from dfdc.video import Frame, Reading, has_gpu_decoder, read_clip
from dfdc.weights import DIGEST_DIGITS, WeightsFile, select

log = logging.getLogger(__name__)
T = TypeVar("T")

# Share of a clip's duration that must be examined; below it, the clip's status is "partial".
MIN_SHARE = 0.5
# Heads that are rolled by more than this are said to have been turned upright; lesser rolls are ordinary.
NOTED_DEGREES = 20.0
# Heat maps of a clip. A map costs as much as scoring a frame by the first model, so that twelve cost 8 % of a clip's
# scoring; three cost 2 %.
MAX_HEAT_MAPS = 3


@dataclass(frozen=True)
class Sighting:
    """The people found in a clip, before scoring.

    Attributes:
        reading: the frames, in order of time, and facts about their stream.
        tracks: the persons, the longest track first; they refer to frames by index.
        aside: tracks that are not scored: pictures in the picture, and persons beyond the budget.
        n_faces: number of frames in which a face was found.
        cut_s: wall seconds after which the deadline ended reading; 0 if it did not.
        decode_s, detect_s: core-seconds for reading frames and for finding faces.
    """

    reading: Reading
    tracks: list[Track]
    aside: list[Track]
    n_faces: int
    cut_s: float
    decode_s: float
    detect_s: float

    @property
    def frames(self) -> list[Frame]:
        """The frames, in order of time, at least one."""
        return self.reading.frames


class Analyzer:
    """Finds the faces in clips and scores them with an ensemble on a device."""

    def __init__(self, files: list[WeightsFile], *, device: str = "cpu", threads: int | None = None) -> None:
        """Load the models.

        Args:
            files: checked weights; at least one is of a face model.
            device: "cpu" or "cuda"; models run there, and clips are decoded there if possible.
            threads: number of threads per model on the CPU; None for one per core.

        Raises:
            WeightsError: a file's tensors do not fit its architecture.
        """
        self.device = device
        self.gpu = current_gpu() if device == "cuda" and has_gpu_decoder() else None
        self.digests = [file.digest for file in select("face", files)]
        self.detector = FaceDetector(device, threads=threads)
        self._files, self._threads = select("face", files), threads
        self.ensemble = Ensemble(select("face", files), device, threads=threads)
        self.motion = Motion(select("motion", files), device, threads=threads)
        self.listener = VoiceModels(select("sound", files), device, threads=threads)

    def analyze(
        self,
        path: Path,
        n_frames: int,
        *,
        n_models: int | None = None,
        name: str | None = None,
        deadline: Deadline = NEVER,
        thumbnails: bool = False,
    ) -> Analysis:
        """Analyze one clip; a clip that cannot be scored gets the prior, a status and a reason.

        Args:
            path: of the clip; any file is allowed.
            n_frames: number of frames to examine.
            n_models: use only the first n face models; None for all.
            name: of the clip in the submission; None for the file name.
            deadline: when it passes, reading ends, and the frames that were read are scored.
            thumbnails: whether to keep pictures of faces and scenes.
        """
        started = time.monotonic()
        answering = tuple(digest[:DIGEST_DIGITS] for digest in self.digests[:n_models])
        blank = Analysis(name or path.name, n_wanted=n_frames, n_models=len(answering), weights=answering)
        try:
            sighting = self.find_people(path, n_frames, deadline=deadline)
            analysis = self._score(path, sighting, blank, deadline)
            if thumbnails:
                analysis = self._add_heat(illustrate(analysis, sighting.frames), sighting)
                analysis = replace(analysis, provenance=self._describe_origin(path, blank.n_models))
        except VideoTimeout as error:
            analysis = replace(blank, status="timeout", reason=str(error))
        except VideoError as error:
            analysis = replace(blank, status="unreadable", reason=str(error))
        except MachineError as error:
            log.warning("%s: %s", path, error)
            analysis = replace(blank, status="error", reason=str(error))
        except Exception as error:  # a bug or a broken device: the clip gets its row, the log its traceback
            log.exception("%s: the analysis failed", path)
            analysis = replace(blank, status="error", reason=_describe(error))
        return replace(analysis, timings=replace(analysis.timings, total_s=time.monotonic() - started))

    def find_people(
        self, path: Path, n_frames: int, *, n_pairs: int | None = None, deadline: Deadline = NEVER
    ) -> Sighting:
        """Read frames of a clip and find its people.

        Args:
            path: of the clip.
            n_frames: number of frames to examine.
            n_pairs: how many of them come with their neighbour; None for the number that the motion models need.
            deadline: when it passes, reading ends.

        Raises:
            VideoTimeout: the deadline passed before the first frame was read.
            VideoError: no frame of the clip can be read.
        """
        clock, started, began_s = time.process_time, time.process_time(), time.monotonic()
        n_pairs = min(self.motion.n_pairs if n_pairs is None else n_pairs, n_frames)
        reading = read_clip(path, n_frames, n_pairs=n_pairs, deadline=deadline, gpu=self.gpu)
        decoded = clock()
        cut_s = time.monotonic() - began_s if len(reading.frames) < n_frames and deadline.expired() else 0.0
        tracks, faces = find_tracks([frame.pixels for frame in reading.frames], self.detector)
        n_faces = sum(len(found) > 0 for found in faces.values()) if tracks else 0
        persons = [track for track in tracks if track.kind == "person"]
        aside = [track for track in tracks if track.kind != "person"]
        return Sighting(reading, persons, aside, n_faces, cut_s, decoded - started, clock() - decoded)

    def _score(self, path: Path, sighting: Sighting, blank: Analysis, deadline: Deadline) -> Analysis:
        started = time.process_time()
        frames, tracks, crop_s = sighting.frames, sighting.tracks, 0.0
        times = np.array([frame.time_s for frame in frames])
        height, width = frames[0].pixels.shape[:2]
        analysis = replace(
            blank,
            times_s=times,
            duration_s=sighting.reading.duration_s or None,
            notes=_take_notes(sighting),
            n_persons=len(tracks) + sum(track.kind == "left out" for track in sighting.aside),
            frame_size=(width, height),
            n_faces=sighting.n_faces,
            n_pairs=sum(frame.neighbour is not None for frame in frames),
            cut_s=sighting.cut_s,
        )
        if tracks:
            pixels = [frame.pixels for frame in frames]
            logits, crop_s = score_tracks(self.ensemble, pixels, tracks, n_models=blank.n_models)
            changes = self._beside(path, lambda: self.motion.score(frames, tracks))
            if changes is not None:
                logits = [track + change for track, change in zip(logits, changes, strict=True)]
            low, high = self.ensemble.bounds(blank.n_models)
            analysis = replace(
                analysis,
                probability=clip_probability(logits, low=low, high=high),
                tracks=tuple(
                    FaceTrack(
                        track.frames,
                        times[track.frames],
                        track.boxes,
                        track.found,
                        track.angles,
                        scores,
                        track.score,
                        trust=track.trust,
                    )
                    for track, scores in zip(tracks, logits, strict=True)
                ),
            )
            status, reason = _judge_reading(sighting)
            analysis = replace(analysis, status=status, reason=reason)
        else:
            analysis = replace(analysis, status="no_face", reason=f"no face in {len(frames)} frames")
        analysis = self._add_voice(path, analysis, deadline)
        score_s = time.process_time() - started - crop_s
        timings = Timings(0.0, sighting.decode_s, sighting.detect_s, crop_s, score_s)
        return replace(analysis, timings=timings)

    @cached_property
    def _heat_map(self) -> Network | None:
        """The first model's class activation maps; opened at the first use, because few runs need them."""
        return open_heat_map(self._files[0], threads=self._threads)

    def _add_heat(self, analysis: Analysis, sighting: Sighting) -> Analysis:
        """Add heat maps of some of the thumbnails, evenly spread over time and shared by all persons."""
        if self._heat_map is None:
            return analysis
        tracks = []
        for track in analysis.tracks:
            rows = np.flatnonzero(np.isin(track.frames, list(track.thumbnails)))
            rows = rows[spread(len(rows), max(MAX_HEAT_MAPS // len(analysis.tracks), 1))]
            faces = [(sighting.frames[track.frames[i]].pixels, track.boxes[i], float(track.angles[i])) for i in rows]
            (maps,) = self._heat_map(cut_crops(faces, self._files[0].spec.crop))
            heat = {int(track.frames[i]): each for i, each in zip(rows, maps, strict=True)}
            tracks.append(replace(track, heat=heat))
        return replace(analysis, tracks=tuple(tracks))

    def _describe_origin(self, path: Path, n_models: int) -> Provenance:
        specs, digests = self.ensemble.specs[:n_models], self.digests[:n_models]
        models = [Model(s.architecture, digest, s.trained_on) for s, digest in zip(specs, digests, strict=True)]
        entry = describe_file(path)
        created = datetime.now(timezone.utc).strftime("%Y-%m-%d %H:%M:%S UTC")
        return Provenance(__version__, created, entry.sha256, entry.size, self.device, tuple(models))

    def _add_voice(self, path: Path, seen: Analysis, deadline: Deadline) -> Analysis:
        """Add the score of the clip's voice to the analysis of its picture."""
        score = None if deadline.expired() else self._beside(path, lambda: self.listener.listen(path))
        if score is None:
            return seen
        voice = voice_probability(score)
        probability = add_voice(seen.probability, voice, high=self.listener.high)
        return replace(seen, probability=probability, picture=seen.probability, voice=voice)

    def _beside(self, path: Path, score: Callable[[], T]) -> T | None:
        """Run an optional model; if it fails on the CPU, the scores of the other models are kept (returns None).

        On CUDA the error is raised, because it may have broken the device; the clip is tried again on the CPU.
        """
        try:
            return score()
        except VideoError as error:
            log.warning("%s: %s; the score of the other models is kept", path, error)
        except Exception:
            if self.device == "cuda":
                raise
            log.exception("%s: an optional model failed; the score of the other models is kept", path)
        return None


def score_tracks(
    ensemble: Ensemble, frames: Sequence[np.ndarray], tracks: Sequence[Track], *, n_models: int | None = None
) -> tuple[list[np.ndarray], float]:
    """Score the frames of each track.

    Args:
        ensemble: face models.
        frames: (H, W, 3) uint8 RGB each.
        tracks: people in these frames; there may be none.
        n_models: use only the first n models; None for all.

    Returns:
        The ensemble's calibrated log-odds (T,) float64 for each track, nearer to 0 where its faces are small or
        blurred, and the core-seconds that cutting took.
    """
    if not tracks:
        return [], 0.0
    faces = [
        (frames[index], box, float(angle))
        for track in tracks
        for index, box, angle in zip(track.frames, track.boxes, track.angles, strict=True)
    ]
    started = time.process_time()
    crops = ensemble.cut(faces, n_models=n_models)
    crop_s = time.process_time() - started
    lengths = [len(track) for track in tracks]
    logits = np.split(ensemble.score_cut(crops, lengths=lengths), np.cumsum(lengths)[:-1])
    return [TRUST.temper(part, track.trust) for part, track in zip(logits, tracks, strict=True)], crop_s


def _judge_reading(sighting: Sighting) -> tuple[str, str]:
    """Status and reason of a clip with people, by how much of it was examined and how well its faces are visible."""
    reading, tracks = sighting.reading, sighting.tracks
    if max(track.trust for track in tracks) < MIN_TRUST:
        side = max(float((track.boxes[:, 2:] - track.boxes[:, :2]).mean()) for track in tracks)
        return "low_quality", f"the faces, {side:.0f} px wide at most, are too small or too blurred to judge"
    if reading.share < MIN_SHARE:
        span = f"from {reading.from_s:.1f} to {reading.to_s:.1f} s of {reading.duration_s:.1f} s"
        return "partial", f"only a part of the clip could be looked at, {span}"
    return "ok", ""


def _take_notes(sighting: Sighting) -> tuple[str, ...]:
    """Remarks on how a clip was read and which faces were scored."""
    notes, reading = [], sighting.reading
    n_pictures = sum(track.kind == "picture" for track in sighting.aside)
    n_left_out = len(sighting.aside) - n_pictures
    if n_pictures:
        notes.append(f"{n_pictures} face{'s' * (n_pictures > 1)} in a picture within the picture did not count")
    if n_left_out:
        notes.append(f"{n_left_out} of {n_left_out + len(sighting.tracks)} persons were left out")
    if any(np.abs(track.angles).max() > NOTED_DEGREES for track in sighting.tracks):
        notes.append("rolled heads were turned upright")
    if reading.tone_mapped:
        notes.append("HDR was tone-mapped to SDR")
    if reading.deinterlaced:
        notes.append("interlaced video was deinterlaced")
    return tuple(notes)


def _describe(error: Exception) -> str:
    """Describe an error in one line; torch's messages have many."""
    return " ".join([type(error).__name__, *str(error).splitlines()[:1]])
