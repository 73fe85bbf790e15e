"""Two clips -> the matching frames of both, or the reason why there are none.

A fake has the movement of its original almost everywhere. Therefore all frames are reduced to small grey pictures, the
mean picture of each clip is subtracted, and the remaining movement is correlated at every time offset.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np

from dfdc.data.crops import MAX_TRIM
from dfdc.errors import Misaligned, VideoError
from dfdc.video import stream_frames

# Longest side in pixels of the pictures that are compared to find the offset.
SMALL_SIDE = 96
# Maximum number of frames that are compared, from the start: 100 s at 30 frames a second.
MAX_FRAMES = 3000
# Least overlap in frames, and as a share of the shorter clip.
MIN_FRAMES, MIN_SHARE = 8, 0.5
# An offset other than 0 must have a correlation that is higher by this amount.
OFFSET_GAIN = 0.005
# Below this number of levels (root mean square over pixels and time) nothing moves, and no offset can be found.
STILL_LEVELS = 0.35
# Aspect ratios that differ by less are of the same picture in another size.
SAME_ASPECT = 0.01
# Least correlations of scene and movement. The lowest of the available fakes with their originals are .989 and .911;
# the highest of 18 pairs of different clips are .564 and .084.
MIN_SCENE, MIN_MOVEMENT = 0.75, 0.5


@dataclass(frozen=True)
class Fit:
    """How frames of two sizes are brought to one size.

    Attributes:
        original, fake: height and width in pixels of each clip's frames.
        scaled: whether the larger is reduced to the smaller; otherwise both are trimmed equally on opposite sides.
    """

    original: tuple[int, int]
    fake: tuple[int, int]
    scaled: bool

    @property
    def size(self) -> tuple[int, int]:
        """The common height and width in pixels."""
        if self.scaled:
            return min(self.original, self.fake)
        return min(self.original[0], self.fake[0]), min(self.original[1], self.fake[1])

    def apply(self, frame: np.ndarray) -> np.ndarray:
        """A frame (H, W, 3) of either clip in the common size (*size, 3); not always a copy."""
        height, width = self.size
        if frame.shape[:2] == (height, width):
            return frame
        if self.scaled:
            return cv2.resize(frame, (width, height), interpolation=cv2.INTER_AREA)
        top, left = (frame.shape[0] - height) // 2, (frame.shape[1] - width) // 2
        return frame[top : top + height, left : left + width]


@dataclass(frozen=True)
class Small:
    """A clip's frames as small grey pictures.

    Attributes:
        times: (T,) float64 seconds, as `dfdc.video.Frame` has them.
        pictures: (T, h, w) float32 levels 0..255.
    """

    times: np.ndarray
    pictures: np.ndarray


@dataclass(frozen=True)
class Alignment:
    """The matching frames of two clips.

    Attributes:
        fit: brings their frames to one size.
        times: (P, 2) float64 seconds from the first frame of original and fake, rising; P pairs.
        offset_s: the fake shows at t + offset_s what the original shows at t.
        movement: correlation of the movement, -1 to 1; 1 if nothing moves.
    """

    fit: Fit
    times: np.ndarray
    offset_s: float
    movement: float

    def __len__(self) -> int:
        return len(self.times)


def fit_frames(original: tuple[int, int], fake: tuple[int, int]) -> Fit:
    """How the frames of two clips are brought to one size, from their heights and widths.

    Raises:
        Misaligned: neither trimming nor scaling is possible.
    """
    original, fake = tuple(original), tuple(fake)
    aspects = original[1] / original[0], fake[1] / fake[0]
    differ = [a != b for a, b in zip(original, fake, strict=True)]
    if all(differ) and abs(aspects[0] / aspects[1] - 1) <= SAME_ASPECT:
        return Fit(original, fake, scaled=True)
    if max(abs(a - b) for a, b in zip(original, fake, strict=True)) <= MAX_TRIM:
        return Fit(original, fake, scaled=False)
    raise Misaligned(
        "it has {3}x{2} pixels, its original {1}x{0}, which is neither trimmed (by at most {4} px) nor scaled".format(
            *original, *fake, MAX_TRIM
        )
    )


def frame_size(path: Path) -> tuple[int, int]:
    """Height and width in pixels of a clip's first frame.

    Raises:
        VideoError: it gives none.
    """
    for frame in stream_frames(path):
        return frame.pixels.shape[:2]
    raise VideoError(f"{path.name}: no frame of it decodes")


def read_small(path: Path, fit: Fit) -> Small:
    """A clip's frames, fitted, grey and small.

    Raises:
        VideoError: it gives no frame.
    """
    height, width = fit.size
    scale = min(SMALL_SIDE / max(height, width), 1)
    size = max(round(width * scale), 1), max(round(height * scale), 1)
    times, pictures = [], []
    for frame in stream_frames(path):
        small = cv2.resize(fit.apply(frame.pixels), size, interpolation=cv2.INTER_AREA)
        times.append(frame.time_s)
        pictures.append(cv2.cvtColor(small, cv2.COLOR_RGB2GRAY))
        if len(times) == MAX_FRAMES:
            break
    if not times:
        raise VideoError(f"{path.name}: no frame of it decodes")
    return Small(np.array(times), np.stack(pictures).astype(np.float32))


def align_clips(original: Path, fake: Path) -> Alignment:
    """Find the matching frames of two clips.

    Args:
        original, fake: video files.

    Raises:
        Misaligned: their pictures or movements do not match; the message says which.
        VideoError: one of them has no readable frame.
    """
    fit = fit_frames(frame_size(original), frame_size(fake))
    return align_small(read_small(original, fit), read_small(fake, fit), fit)


def align_small(original: Small, fake: Small, fit: Fit) -> Alignment:
    """As `align_clips`, for clips that have been read.

    Raises:
        Misaligned: as there.
    """
    scene = correlate_pictures(original.pictures.mean(0), fake.pictures.mean(0))
    if scene < MIN_SCENE:
        raise Misaligned(f"another scene: the correlation of the mean pictures is {scene:.2f}, below {MIN_SCENE}")
    period = frame_period(original.times)
    # Both clips are sampled at the original's frame period, so that other frame rates are compared at the same times.
    last_s = max(original.times[-1], fake.times[-1])
    grid = np.arange(round(last_s / period) + 1) * period if period else np.zeros(1)
    on_grid = [grid[: round(clip.times[-1] / period) + 1 if period else 1] for clip in (original, fake)]
    rows = [nearest(clip.times, moments) for clip, moments in zip((original, fake), on_grid, strict=True)]
    least = max(min(MIN_FRAMES, *map(len, rows)), round(MIN_SHARE * min(map(len, rows))))
    moving = [_movement(clip.pictures)[row] for clip, row in zip((original, fake), rows, strict=True)]
    levels = [float(np.sqrt(np.mean(part**2))) for part in moving]
    steps, movement = 0, 1.0
    if max(levels) >= STILL_LEVELS:
        steps, movement = find_offset(*moving, least=least)
        if movement < MIN_MOVEMENT:
            raise Misaligned(
                f"the movement matches at no offset (correlation {movement:.2f}, below {MIN_MOVEMENT}): it is another "
                "person, another recording, or another speed"
            )
    offset_s = steps * period
    return Alignment(fit, _pair(original.times, fake.times, offset_s, period), offset_s, movement)


def find_offset(original: np.ndarray, fake: np.ndarray, *, least: int) -> tuple[int, float]:
    """The offset at which the movements of two clips match best.

    Args:
        original: (T, D) float32, movement of each frame.
        fake: (U, D).
        least: minimum number of overlapping frames, 1 up.

    Returns:
        k for which original[i] matches fake[i + k], and the correlation there, -1 to 1. An offset other than 0 is
        chosen only if it is clearly better.
    """
    products = original @ fake.T
    energies = [np.concatenate([[0], np.cumsum((part.astype(float) ** 2).sum(1))]) for part in (original, fake)]
    best, at_best, at_zero = 0, -1.0, -1.0
    for k in range(-len(original) + least, len(fake) - least + 1):
        start, stop = max(0, -k), min(len(original), len(fake) - k)
        if stop - start < least:
            continue
        norm = np.sqrt((energies[0][stop] - energies[0][start]) * (energies[1][stop + k] - energies[1][start + k]))
        value = float(np.trace(products, k)) / norm if norm > 0 else 0.0
        at_zero = value if k == 0 else at_zero
        if value > at_best:
            best, at_best = k, value
    return (0, at_zero) if at_best - at_zero <= OFFSET_GAIN else (best, at_best)


def walk_pairs(original: Path, fake: Path, alignment: Alignment) -> Iterator[tuple[float, np.ndarray, np.ndarray]]:
    """Yield all pairs of an alignment in order: the original's time, its frame, and the fake's frame.

    Each clip is decoded once.

    Frames are (*alignment.fit.size, 3) uint8 RGB.
    """
    sides = [_at(stream_frames(path), alignment.times[:, side]) for side, path in enumerate((original, fake))]
    for (time, _), first, second in zip(alignment.times, *sides, strict=False):
        yield float(time), alignment.fit.apply(first), alignment.fit.apply(second)


def _at(frames: Iterator, times: np.ndarray) -> Iterator[np.ndarray]:
    """The pixels of the frames at the given times, which never decrease."""
    frame = None
    for time in times:
        while frame is None or frame.time_s < time - 1e-6:
            frame = next(frames, None)
            if frame is None:
                return
        yield frame.pixels


def correlate_pictures(a: np.ndarray, b: np.ndarray) -> float:
    """Correlation, -1 to 1, of two pictures of one shape; 1 if both are uniform and equal."""
    a, b = a.ravel() - a.mean(dtype=float), b.ravel() - b.mean(dtype=float)
    norm = np.sqrt((a @ a) * (b @ b))
    return float(a @ b / norm) if norm > 1e-6 else float(max(np.abs(a).max(), np.abs(b).max()) < 1)


def frame_period(times: np.ndarray) -> float:
    """Median seconds between frames; 0 for a single one."""
    return float(np.median(np.diff(times))) if len(times) > 1 else 0.0


def nearest(times: np.ndarray, moments: np.ndarray) -> np.ndarray:
    """Indices (M,) of the rising times (T,) that are nearest to the moments (M,)."""
    after = np.clip(np.searchsorted(times, moments), 1, max(len(times) - 1, 1))
    before = after - 1
    after = np.minimum(after, len(times) - 1)
    return np.where(moments - times[before] <= times[after] - moments, before, after)


def _movement(pictures: np.ndarray) -> np.ndarray:
    """The difference of pictures (T, h, w) from their mean, (T, h * w)."""
    flat = pictures.reshape(len(pictures), -1)
    return flat - flat.mean(0)


def _pair(original: np.ndarray, fake: np.ndarray, offset_s: float, period: float) -> np.ndarray:
    """Times (P, 2) of the frames that are shown at the same moment to within half a frame, each frame at most once."""
    pairs, last = [], -1
    for time in original:
        i = bisect_left(fake, time + offset_s)
        i = min((j for j in (i - 1, i) if 0 <= j < len(fake)), key=lambda j: abs(fake[j] - time - offset_s))
        if i > last and abs(fake[i] - time - offset_s) <= max(0.5 * period, 0.001) + 1e-6:
            pairs.append((time, fake[i]))
            last = i
    return np.array(pairs).reshape(-1, 2)
