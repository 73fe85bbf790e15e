"""Frames -> pictures in an analysis: each person's face over time, and some whole frames."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import cv2
import numpy as np

from dfdc.analysis import MAX_PICTURE_SIDE, MAX_SCENES, MAX_THUMBNAILS, THUMBNAIL, Analysis
from dfdc.crop import crop_face
from dfdc.video import Frame

JPEG_QUALITY = 85


def illustrate(analysis: Analysis, frames: Sequence[Frame]) -> Analysis:
    """Add pictures of its people and of some whole frames to an analysis.

    Args:
        analysis: of the clip.
        frames: the frames that it examined, in order of time.
    """
    tracks = []
    for track in analysis.tracks:
        chosen = spread(len(track), MAX_THUMBNAILS)
        pictures = {
            int(index): _encode(crop_face(frames[index].pixels, box, THUMBNAIL, angle=float(angle)))
            for index, box, angle in zip(track.frames[chosen], track.boxes[chosen], track.angles[chosen], strict=True)
        }
        tracks.append(replace(track, thumbnails=pictures))
    scenes = {}
    for index in spread(len(frames), MAX_SCENES):
        pixels = frames[index].pixels
        scale = min(MAX_PICTURE_SIDE / max(pixels.shape[:2]), 1.0)
        scenes[int(index)] = _encode(cv2.resize(pixels, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA))
    return replace(analysis, tracks=tuple(tracks), scenes=scenes)


def spread(n: int, most: int) -> np.ndarray:
    """At most `most` of the indices 0 to n - 1, evenly spread."""
    return np.unique(np.linspace(0, n - 1, min(n, most)).round().astype(int))


def _encode(picture: np.ndarray) -> bytes:
    """Encode a picture (H, W, 3) uint8 RGB as JPEG."""
    _, data = cv2.imencode(".jpg", cv2.cvtColor(picture, cv2.COLOR_RGB2BGR), [cv2.IMWRITE_JPEG_QUALITY, JPEG_QUALITY])
    return data.tobytes()
