"""An original and its fake -> where and when they differ, and the frame scores of both."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
from scipy.ndimage import median_filter

from dfdc.aggregate import clip_probability
from dfdc.audio import log_mel, read_sound
from dfdc.comparison.separate import read_pairs
from dfdc.comparison.sound import SoundComparison, compare_sounds
from dfdc.crop import CropGeometry, crop_face
from dfdc.data.align import Alignment, align_clips, frame_period, walk_pairs
from dfdc.detect import FaceDetector
from dfdc.ensemble import Ensemble
from dfdc.findings import score_tracks
from dfdc.tracks import Track, find_tracks

# A face as a person is shown it: with its surroundings, where the seam of a face swap lies.
SHOWN = CropGeometry(side_ratio=1.5, shift_ratio=0.0, size=256)
# A face as it is measured over time, and the blocks in which the differences of successive frames are compared.
MEASURED = CropGeometry(side_ratio=1.2, shift_ratio=0.0, size=112)
BLOCKS = 28
# Longest side in pixels at which the background is measured, and of the mean heat map.
OUTSIDE_SIDE = 320
# A sudden change exceeds the neighbouring frames by at least this many standard deviations and this many levels.
JUMP_DEVIATIONS, JUMP_LEVELS = 6.0, 1.0
# Number of neighbouring frames.
JUMP_NEIGHBOURS = 15
# If the background changes at least half as clearly, the codec is the cause.
JUMP_OUTSIDE_SHARE = 0.5
MAX_SHOWN_JUMPS = 3
# So many of the scored frames, evenly spread, are kept as pictures.
N_SHOTS = 4


@dataclass(frozen=True)
class Scores:
    """The scores of one clip.

    Attributes:
        probability: P(fake) of the clip, from the frames that were scored.
        frames: (S,) float64 P(fake) of each of these frames by itself; NaN where no face was found.
    """

    probability: float
    frames: np.ndarray

    @property
    def n_faces(self) -> int:
        """The number of frames in which a face was found."""
        return int((~np.isnan(self.frames)).sum())


@dataclass(frozen=True)
class Person:
    """One face over time.

    Attributes:
        boxes: (P, 4) float32 in pixels of the fitted frames; NaN where the person is absent.
        levels: (P,) float64 mean absolute difference 0..255 on the face; NaN likewise.
        jumped: (P,) bool, frames in which the difference changed suddenly.
        heat: (S, S) float32 mean over time of the absolute difference, S the size of `SHOWN`.
    """

    boxes: np.ndarray
    levels: np.ndarray
    jumped: np.ndarray
    heat: np.ndarray


@dataclass(frozen=True)
class Shot:
    """A moment of both clips.

    Attributes:
        index: of its pair.
        time_s: in the original.
        original, fake: (H, W, 3) uint8 RGB: whole frames, or crops of one face.
    """

    index: int
    time_s: float
    original: np.ndarray
    fake: np.ndarray


@dataclass(frozen=True)
class SoundDifference:
    """How the sounds differ.

    Attributes:
        comparison: of the waveforms, window by window.
        spectrograms: of original and fake, (bands, T) float32 decibels each, from `log_mel`.
    """

    comparison: SoundComparison
    spectrograms: tuple[np.ndarray, np.ndarray]


@dataclass(frozen=True)
class Comparison:
    """The result of comparing a pair of clips.

    Attributes:
        alignment: which frames belong together; P pairs.
        people: the faces, longest seen first.
        outside: (P,) float64 mean absolute difference 0..255 of the background, which is outside all faces.
        heat: (h, w) float32 mean over time of the absolute difference, reduced to `OUTSIDE_SIDE`.
        sampled: (S,) indices of the pairs that were scored.
        scores: of the original and the fake; None without models.
        shots: some of the sampled pairs, whole.
        jumps: for the clearest sudden changes, the frames before and after, as crops of the face.
        sound: None if one of the clips has none; `sound_note` says which.
    """

    alignment: Alignment
    people: list[Person]
    outside: np.ndarray
    heat: np.ndarray
    sampled: np.ndarray
    scores: tuple[Scores, Scores] | None
    shots: list[Shot]
    jumps: list[tuple[Shot, Shot]]
    sound: SoundDifference | None
    sound_note: str = ""

    @property
    def times(self) -> np.ndarray:
        """(P,) seconds in the original."""
        return self.alignment.times[:, 0]


def compare_clips(
    original: Path,
    fake: Path,
    detector: FaceDetector,
    ensemble: Ensemble | None,
    *,
    n_frames: int = 24,
) -> Comparison:
    """Compare two clips frame by frame.

    Args:
        original, fake: video files, one made from the other.
        detector: finds faces in the original for the comparison, and in both clips for the scores.
        ensemble: scores faces; None omits scores.
        n_frames: the number of evenly spread frames that are scored.

    Raises:
        Misaligned: see `align_clips`.
        VideoError: one of them has no readable frame.
    """
    alignment = align_clips(original, fake)
    sides = read_pairs(original, fake, alignment, n_frames)
    frames = [[alignment.fit.apply(frame.pixels) for frame in side] for side in sides]
    sampled = np.searchsorted(alignment.times[:, 0], [frame.time_s - 1e-6 for frame in sides[0]])
    tracks, faces = find_tracks(frames[0], detector)
    scores = None
    if ensemble is not None:
        scores = _score(frames[0], tracks, ensemble), _score(frames[1], find_tracks(frames[1], detector)[0], ensemble)
    times = alignment.times[:, 0]
    step_s = float(np.median(np.diff(times[sampled[list(faces)]]))) if len(faces) > 1 else np.inf
    boxes = [_boxes_over_time(track, times[sampled], step_s, times) for track in tracks]
    people, outside, heat, jumps = _walk(original, fake, alignment, boxes)
    kept = np.unique([len(sampled) * (2 * i + 1) // (2 * N_SHOTS) for i in range(N_SHOTS)])
    shots = [Shot(int(sampled[i]), float(alignment.times[sampled[i], 0]), frames[0][i], frames[1][i]) for i in kept]
    sound, note = compare_sound(original, fake)
    return Comparison(alignment, people, outside, heat, sampled, scores, shots, jumps, sound, note)


def _score(frames: list[np.ndarray], tracks: list[Track], ensemble: Ensemble) -> Scores:
    """A clip's scores as the kernel has them: each person's mean, then the chance that any is fake."""
    logits = score_tracks(ensemble, frames, tracks)
    alone = np.full(len(frames), np.nan)
    low, high = ensemble.bounds()
    for index in range(len(frames)):
        own = [part[track.frames == index] for part, track in zip(logits, tracks, strict=True)]
        own = [part for part in own if len(part)]
        if own:
            alone[index] = clip_probability(own, low=low, high=high)
    return Scores(clip_probability(logits, low=low, high=high), alone)


def _boxes_over_time(track: Track, sampled_times: np.ndarray, step_s: float, times: np.ndarray) -> np.ndarray:
    """A track's boxes (P, 4) at all times (P,), interpolated linearly between its frames; NaN outside the track.

    The track is extended by half a step before its first frame and after its last.
    """
    own = sampled_times[track.frames]
    boxes = np.stack([np.interp(times, own, track.boxes[:, side]) for side in range(4)], 1).astype(np.float32)
    boxes[(times < own[0] - step_s / 2 - 1e-6) | (times > own[-1] + step_s / 2 + 1e-6)] = np.nan
    return boxes


class _Walk:
    """Measurements of one face, collected pair by pair."""

    def __init__(self, boxes: np.ndarray) -> None:
        self.boxes = boxes
        self.levels = np.full(len(boxes), np.nan)
        self.changes = np.full(len(boxes), np.nan)
        self.heat = np.zeros((SHOWN.size, SHOWN.size), np.float64)
        self.before: np.ndarray | None = None
        self.shot: Shot | None = None
        self.candidates: list[tuple[float, int, Shot, Shot]] = []

    def add(self, index: int, time: float, original: np.ndarray, fake: np.ndarray) -> None:
        box = self.boxes[index]
        if np.isnan(box).any():
            self.before = self.shot = None
            return
        small = [crop_face(frame, box, MEASURED).astype(np.float32) for frame in (original, fake)]
        signed = small[1] - small[0]
        self.levels[index] = np.abs(signed).mean()
        blocks = cv2.resize(signed, (BLOCKS, BLOCKS), interpolation=cv2.INTER_AREA)
        shot = Shot(index, time, *(crop_face(frame, box, SHOWN) for frame in (original, fake)))
        self.heat += difference_levels(shot.original, shot.fake)
        if self.before is not None:
            self.changes[index] = np.abs(blocks - self.before).mean()
            self.candidates.append((self.changes[index], index, self.shot, shot))
            self.candidates = sorted(self.candidates, key=lambda entry: entry[0])[-4 * MAX_SHOWN_JUMPS :]
        self.before, self.shot = blocks, shot

    def finish(self, outside_changes: np.ndarray) -> Person:
        jumped = mark_jumps(self.changes, outside_changes)
        heat = (self.heat / max(int((~np.isnan(self.levels)).sum()), 1)).astype(np.float32)
        return Person(self.boxes, self.levels, jumped, heat)


def _walk(
    original: Path, fake: Path, alignment: Alignment, boxes: list[np.ndarray]
) -> tuple[list[Person], np.ndarray, np.ndarray, list[tuple[Shot, Shot]]]:
    """Measure all pairs: the people, the background (P,), the mean heat map (h, w), and shots of sudden changes."""
    walks = [_Walk(own) for own in boxes]
    height, width = alignment.fit.size
    scale = min(OUTSIDE_SIDE / max(height, width), 1)
    size = max(round(width * scale), 1), max(round(height * scale), 1)
    outside, changes = np.full((2, len(alignment)), np.nan)
    heat, before, n_seen = np.zeros(size[::-1]), None, 0
    for index, (time, first, second) in enumerate(walk_pairs(original, fake, alignment)):
        small = [cv2.resize(frame, size, interpolation=cv2.INTER_AREA) for frame in (first, second)]
        signed = small[1].astype(np.float32) - small[0]
        heat += difference_levels(*small)
        free = ~_covered(size, [own[index] * scale for own in boxes])
        if free.any():
            outside[index] = np.abs(signed).mean(2)[free].mean()
            if before is not None:
                changes[index] = np.abs(signed - before).mean(2)[free].mean()
        before, n_seen = signed, n_seen + 1
        for walk in walks:
            walk.add(index, time, first, second)
    people = [walk.finish(changes) for walk in walks]
    found = [
        (value, before_shot, shot)
        for walk, person in zip(walks, people, strict=True)
        for value, index, before_shot, shot in walk.candidates
        if person.jumped[index]
    ]
    jumps = [entry[1:] for entry in sorted(found, key=lambda entry: -entry[0])[:MAX_SHOWN_JUMPS]]
    return people, outside, (heat / max(n_seen, 1)).astype(np.float32), sorted(jumps, key=lambda pair: pair[1].index)


def _covered(size: tuple[int, int], boxes: list[np.ndarray]) -> np.ndarray:
    """A mask (h, w) of the pixels inside a face's square; size is (w, h)."""
    mask = np.zeros(size[::-1], bool)
    for box in boxes:
        if not np.isnan(box).any():
            left, top, side = SHOWN.square(box)
            mask[max(top, 0) : max(top + side, 0), max(left, 0) : max(left + side, 0)] = True
    return mask


def difference_levels(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """The absolute difference (H, W) float32 of two pictures (H, W, 3) uint8, in levels 0..255.

    The signed difference is smoothed slightly first, which removes most of the codec's noise.
    """
    signed = cv2.GaussianBlur(second.astype(np.float32) - first, (0, 0), 1.2)
    return np.abs(signed).mean(2)


def mark_jumps(changes: np.ndarray, outside: np.ndarray) -> np.ndarray:
    """Find the frames in which the difference on a face changes suddenly.

    Args:
        changes: (P,) levels by which the difference on the face changed since the previous frame; NaN where unknown.
        outside: (P,) the same for the background.

    Returns:
        (P,) bool. A codec's key frames change the background, too, and are not marked.
    """
    on_face, elsewhere = _excess(changes), _excess(outside)
    clear = on_face[0] > np.maximum(JUMP_DEVIATIONS * on_face[1], JUMP_LEVELS)
    surer = elsewhere[0] / elsewhere[1] < JUMP_OUTSIDE_SHARE * on_face[0] / on_face[1]
    return clear & surer


def _excess(values: np.ndarray) -> tuple[np.ndarray, float]:
    """By how much values (P,) exceed the median of their neighbours, and the standard deviation of that."""
    known = ~np.isnan(values)
    excess = np.zeros(len(values))
    if not known.any():
        return excess, 1.0
    excess[known] = values[known] - median_filter(values[known], JUMP_NEIGHBOURS, mode="nearest")
    # The factor 1.4826 turns the median deviation of a normal distribution into its standard deviation.
    return excess, max(1.4826 * float(np.median(np.abs(excess[known]))), 0.05)


def compare_sound(original: Path, fake: Path) -> tuple[SoundDifference | None, str]:
    """How the sounds of two clips differ; None and the reason if that cannot be determined.

    Raises:
        VideoError: one of them cannot be opened.
    """
    sounds = [read_sound(path) for path in (original, fake)]
    absent = [name for name, sound in zip(("original", "fake"), sounds, strict=True) if sound is None]
    if absent:
        return None, f"The {' and the '.join(absent)} {'has' if len(absent) == 1 else 'have'} no sound."
    return SoundDifference(compare_sounds(*sounds), tuple(map(log_mel, sounds))), ""


def frame_rate(alignment: Alignment) -> float:
    """The frame rate of the pairs in frames a second, 1 to 120."""
    period = frame_period(alignment.times[:, 0])
    return float(np.clip(1 / period, 1, 120)) if period > 0 else 25.0
