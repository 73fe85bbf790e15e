"""The two halves of an analysis: finding the faces in a clip, which needs no fake detection model, and scoring them.

The kernel runs both in one process. On a cluster they are separate stages (`dfdc.cluster`), which exchange a clip's
`Findings`: its crops, but not its frames.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeVar

import numpy as np

from dfdc.aggregate import clip_probability
from dfdc.analysis import Analysis, FaceTrack, Timings
from dfdc.deadline import NEVER, Deadline
from dfdc.detect import FaceDetector
from dfdc.ensemble import Ensemble, cut_for
from dfdc.errors import MachineError, VideoError, VideoTimeout
from dfdc.progress import Progress, Watch, ignore
from dfdc.quality import MIN_TRUST, TRUST
from dfdc.runtime import current_gpu
from dfdc.tracks import Track, find_tracks
from dfdc.video import Frame, Reading, has_gpu_decoder, read_clip
from dfdc.weights import DIGEST_DIGITS, ModelSpec

log = logging.getLogger(__name__)
T = TypeVar("T")

# Share of a clip's duration that must be examined; below it, the clip's status is "partial".
MIN_SHARE = 0.5
# Heads that are rolled by more than this are said to have been turned upright; lesser rolls are ordinary.
NOTED_DEGREES = 20.0


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


@dataclass(frozen=True)
class Findings:
    """The input of the models for one clip: crops of the faces, without the frames.

    Attributes:
        analysis: the analysis without tracks and scores. If the clip could not be read, it is complete.
        tracks: the persons.
        crops: for each model in use, (N, S, S, 3) uint8 RGB: the faces of the first track, the second and so on.
            Models with the same crop geometry share an array. Empty without tracks.
    """

    analysis: Analysis
    tracks: tuple[Track, ...] = ()
    crops: tuple[np.ndarray, ...] = ()


class Finder:
    """Reads clips and finds their people."""

    def __init__(self, device: str = "cpu", *, threads: int | None = None, n_pairs: int = 0) -> None:
        """Load the face detector.

        Args:
            device: "cpu" or "cuda"; the detector runs there, and clips are decoded there if possible.
            threads: number of threads per network on the CPU; None for one per core.
            n_pairs: how many frames are read with their neighbour, which a motion model needs.
        """
        self.device = device
        self.gpu = current_gpu() if device == "cuda" and has_gpu_decoder() else None
        self.detector = FaceDetector(device, threads=threads)
        self.n_pairs = n_pairs

    def find_people(
        self,
        path: Path,
        n_frames: int,
        *,
        n_pairs: int | None = None,
        deadline: Deadline = NEVER,
        watch: Watch = ignore,
    ) -> Sighting:
        """Read frames of a clip and find its people.

        Args:
            path: of the clip.
            n_frames: number of frames to examine.
            n_pairs: how many of them come with their neighbour; None for the number that the motion models need.
            deadline: when it passes, reading ends.
            watch: told the stages reading and detecting.

        Raises:
            VideoTimeout: the deadline passed before the first frame was read.
            VideoError: no frame of the clip can be read.
        """
        clock, started, began_s = time.process_time, time.process_time(), time.monotonic()
        n_pairs = min(self.n_pairs if n_pairs is None else n_pairs, n_frames)
        watch(Progress("reading", 0, n_frames))
        reading = read_clip(path, n_frames, n_pairs=n_pairs, deadline=deadline, gpu=self.gpu, watch=watch)
        decoded = clock()
        cut_s = time.monotonic() - began_s if len(reading.frames) < n_frames and deadline.expired() else 0.0
        watch(Progress("detecting"))
        tracks, faces = find_tracks([frame.pixels for frame in reading.frames], self.detector)
        n_faces = sum(len(found) > 0 for found in faces.values()) if tracks else 0
        persons = [track for track in tracks if track.kind == "person"]
        aside = [track for track in tracks if track.kind != "person"]
        return Sighting(reading, persons, aside, n_faces, cut_s, decoded - started, clock() - decoded)

    def look(self, path: Path, blank: Analysis, specs: Sequence[ModelSpec], *, deadline: Deadline = NEVER) -> Findings:
        """The first half of an analysis; a clip that cannot be read gets the prior, a status and a reason.

        Args:
            path: of the clip; any file is allowed.
            blank: see `blank_analysis`.
            specs: specifications of the models in use.
            deadline: when it passes, reading ends.
        """
        began_s = time.monotonic()
        found = settle(
            lambda: gather(self.find_people(path, blank.n_wanted, deadline=deadline), blank, specs), path, blank
        )
        findings = found if isinstance(found, Findings) else Findings(found)
        return replace(findings, analysis=_add_seconds(findings.analysis, time.monotonic() - began_s))


def blank_analysis(name: str, n_frames: int, digests: Sequence[str]) -> Analysis:
    """The analysis of a clip that was not opened yet; `digests` are those of the models in use."""
    answering = tuple(digest[:DIGEST_DIGITS] for digest in digests)
    return Analysis(name, n_wanted=n_frames, n_models=len(answering), weights=answering)


def settle(step: Callable[[], T], path: Path, blank: Analysis) -> T | Analysis:
    """Run a step of an analysis; if it fails, return `blank` with the prior, a status and a reason."""
    try:
        return step()
    except VideoTimeout as error:
        return replace(blank, status="timeout", reason=str(error))
    except VideoError as error:
        return replace(blank, status="unreadable", reason=str(error))
    except MachineError as error:
        log.warning("%s: %s", path, error)
        return replace(blank, status="error", reason=str(error))
    except Exception as error:  # a bug or a broken device: the clip gets its row, the log its traceback
        log.exception("%s: the analysis failed", path)
        return replace(blank, status="error", reason=_describe(error))


def gather(sighting: Sighting, blank: Analysis, specs: Sequence[ModelSpec]) -> Findings:
    """Cut the faces of a clip for the models, and fill in the analysis as far as it is known before scoring.

    Args:
        sighting: the people in the clip.
        blank: see `blank_analysis`.
        specs: specifications of the models in use.
    """
    frames, tracks = sighting.frames, sighting.tracks
    height, width = frames[0].pixels.shape[:2]
    started = time.process_time()
    crops = cut_tracks(specs, [frame.pixels for frame in frames], tracks) if tracks else ()
    crop_s = time.process_time() - started
    status, reason = _judge_reading(sighting) if tracks else ("no_face", f"no face in {len(frames)} frames")
    analysis = replace(
        blank,
        status=status,
        reason=reason,
        times_s=np.array([frame.time_s for frame in frames]),
        duration_s=sighting.reading.duration_s or None,
        notes=_take_notes(sighting),
        identity=sighting.reading.identity,
        n_persons=len(tracks) + sum(track.kind == "left out" for track in sighting.aside),
        frame_size=(width, height),
        n_faces=sighting.n_faces,
        n_pairs=sum(frame.neighbour is not None for frame in frames),
        cut_s=sighting.cut_s,
        timings=Timings(decode_s=sighting.decode_s, detect_s=sighting.detect_s, crop_s=crop_s),
    )
    return Findings(analysis, tuple(tracks), tuple(crops))


def judge(ensemble: Ensemble, findings: Findings, *, changes: Sequence[np.ndarray] | None = None) -> Analysis:
    """The second half of an analysis: score the tracks and combine them to the clip's probability.

    Args:
        ensemble: face models; the first ones are used, as many as there are arrays of crops.
        findings: findings of the clip.
        changes: for each track, log-odds (T,) float64 to add, from the motion models; None for none.
    """
    analysis, tracks = findings.analysis, findings.tracks
    if not tracks:
        return analysis
    began_s, started = time.monotonic(), time.process_time()
    logits = score_cut_tracks(ensemble, findings.crops, tracks)
    if changes is not None:
        logits = [track + change for track, change in zip(logits, changes, strict=True)]
    low, high = ensemble.bounds(analysis.n_models)
    scored = replace(
        analysis,
        probability=clip_probability(logits, low=low, high=high),
        tracks=tuple(
            FaceTrack(
                track.frames,
                analysis.times_s[track.frames],
                track.boxes,
                track.found,
                track.angles,
                scores,
                track.score,
                trust=track.trust,
            )
            for track, scores in zip(tracks, logits, strict=True)
        ),
        timings=replace(analysis.timings, score_s=time.process_time() - started),
    )
    return _add_seconds(scored, time.monotonic() - began_s)


def cut_tracks(specs: Sequence[ModelSpec], frames: Sequence[np.ndarray], tracks: Sequence[Track]) -> list[np.ndarray]:
    """Cut the faces of tracks out of frames (H, W, 3) uint8 RGB; see `Findings.crops` for the result."""
    faces = [
        (frames[index], box, float(angle))
        for track in tracks
        for index, box, angle in zip(track.frames, track.boxes, track.angles, strict=True)
    ]
    return cut_for(specs, faces)


def score_cut_tracks(ensemble: Ensemble, crops: Sequence[np.ndarray], tracks: Sequence[Track]) -> list[np.ndarray]:
    """The ensemble's calibrated log-odds (T,) float64 for each track, nearer to 0 where its faces are small or blurred.

    Args:
        ensemble: face models.
        crops: see `Findings`.
        tracks: people in these frames, at least one.
    """
    lengths = [len(track) for track in tracks]
    logits = np.split(ensemble.score_cut(list(crops), lengths=lengths), np.cumsum(lengths)[:-1])
    return [TRUST.temper(part, track.trust) for part, track in zip(logits, tracks, strict=True)]


def score_tracks(ensemble: Ensemble, frames: Sequence[np.ndarray], tracks: Sequence[Track]) -> list[np.ndarray]:
    """Cut and score the frames (H, W, 3) uint8 RGB of each track; see `score_cut_tracks`. There may be no track."""
    return score_cut_tracks(ensemble, cut_tracks(ensemble.specs, frames, tracks), tracks) if tracks else []


def _judge_reading(sighting: Sighting) -> tuple[str, str]:
    """Status and reason of a clip with people, by how much of it was examined and how well its faces are visible."""
    reading, tracks = sighting.reading, sighting.tracks
    if max(track.trust for track in tracks) < MIN_TRUST:
        side = max(float((track.boxes[:, 2:] - track.boxes[:, :2]).mean()) for track in tracks)
        return "low_quality", f"the faces, {side:.0f} px wide at most, are too small or too blurred to judge"
    if reading.share < MIN_SHARE:
        span = f"from {reading.from_s:.1f} to {reading.to_s:.1f} s of {reading.duration_s:.1f} s"
        return "partial", f"only a part of the clip could be read, {span}"
    return "ok", ""


def _take_notes(sighting: Sighting) -> tuple[str, ...]:
    """Remarks on how a clip was read and which faces were scored."""
    notes, reading = [], sighting.reading
    if len(sighting.frames) == 1 and sighting.tracks:
        notes.append("a single frame says less than a clip")
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


def _add_seconds(analysis: Analysis, seconds: float) -> Analysis:
    return replace(analysis, timings=replace(analysis.timings, total_s=analysis.timings.total_s + seconds))


def _describe(error: Exception) -> str:
    """Describe an error in one line; torch's messages have many."""
    return " ".join([type(error).__name__, *str(error).splitlines()[:1]])
