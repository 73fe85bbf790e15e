"""The pictures of an analysis, reduced in number and size until they fit a number of bytes."""

from __future__ import annotations

from dataclasses import dataclass, replace

import cv2
import numpy as np

from dfdc.analysis import Analysis, FaceTrack
from dfdc.illustrate import spread

JPEG_QUALITY = 70
# Frames of the 28 labelled clips take .08 to .2 bytes per pixel at this quality.
LEAST_BYTES_PER_PIXEL = 0.06


@dataclass(frozen=True)
class Budget:
    """How many pictures a clip shows, and how large they are.

    Attributes:
        n_faces: of each person; the first persons get them if there are more than `MAX_PERSONS`.
        face_side: longest side of a face in pixels.
        n_scenes: whole frames.
        scene_side: longest side of a whole frame in pixels.
    """

    n_faces: int
    face_side: int
    n_scenes: int
    scene_side: int

    @property
    def least_bytes(self) -> float:
        """Bytes in base64 that the pictures of one person hardly ever stay below; saves trying this budget in vain."""
        n_pixels = self.n_faces * self.face_side**2 + self.n_scenes * self.scene_side**2 * 9 / 16
        return n_pixels * LEAST_BYTES_PER_PIXEL * 4 / 3


# From rich to poor. The last ones let 4,000 clips fit one page of 50 MB, each with a frame and a face.
BUDGETS = (
    Budget(6, 160, 1, 640),
    Budget(6, 96, 1, 480),
    Budget(4, 96, 1, 320),
    Budget(2, 96, 1, 240),
    Budget(1, 96, 1, 240),
    Budget(1, 96, 1, 160),
    Budget(1, 64, 1, 112),
    Budget(1, 64, 0, 0),
    Budget(0, 0, 0, 0),
)
# Beyond the first budget, so many persons of a clip get pictures.
MAX_PERSONS = 3


def fit_pictures(analysis: Analysis, n_bytes: int) -> tuple[Analysis, bool]:
    """Reduce an analysis' pictures to a number of bytes in base64.

    Heat maps without their face are dropped.

    Returns:
        The analysis, and whether it is complete.
    """
    if _n_bytes(analysis) <= n_bytes:
        return analysis, True
    for budget in BUDGETS:
        if budget.least_bytes > n_bytes and budget is not BUDGETS[-1]:
            continue
        reduced = _apply(budget, analysis)
        if _n_bytes(reduced) <= n_bytes:
            break
    return reduced, False


def _apply(budget: Budget, analysis: Analysis) -> Analysis:
    tracks = [
        _reduce_track(budget, track) if number < MAX_PERSONS else replace(track, thumbnails={}, heat={})
        for number, track in enumerate(analysis.tracks)
    ]
    frames = sorted(analysis.scenes)
    # The middle one, if there is one only.
    kept = [frames[(2 * i + 1) * len(frames) // (2 * budget.n_scenes)] for i in range(budget.n_scenes) if frames]
    scenes = {frame: _reduce(analysis.scenes[frame], budget.scene_side) for frame in kept}
    return replace(analysis, tracks=tuple(tracks), scenes=scenes)


def _reduce_track(budget: Budget, track: FaceTrack) -> FaceTrack:
    with_heat = sorted(set(track.heat) & set(track.thumbnails))
    frames = with_heat if 0 < budget.n_faces <= len(with_heat) else sorted(track.thumbnails)
    chosen = [frames[i] for i in spread(len(frames), budget.n_faces)] if frames and budget.n_faces else []
    return replace(
        track,
        thumbnails={frame: _reduce(track.thumbnails[frame], budget.face_side) for frame in chosen},
        heat={frame: track.heat[frame] for frame in chosen if frame in track.heat},
    )


def _reduce(picture: bytes, side: int) -> bytes:
    """A JPEG whose longest side is at most this many pixels; one that cannot be read or is small enough stays."""
    pixels = cv2.imdecode(np.frombuffer(picture, np.uint8), cv2.IMREAD_COLOR)
    if pixels is None or max(pixels.shape[:2]) <= side:
        return picture
    scale = side / max(pixels.shape[:2])
    small = cv2.resize(pixels, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA)
    return cv2.imencode(".jpg", small, [cv2.IMWRITE_JPEG_QUALITY, JPEG_QUALITY])[1].tobytes()


def _n_bytes(analysis: Analysis) -> int:
    pictures = [*analysis.scenes.values(), *(face for track in analysis.tracks for face in track.thumbnails.values())]
    return sum(map(len, pictures)) * 4 // 3
