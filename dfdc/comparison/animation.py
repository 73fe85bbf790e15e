"""A comparison of two clips -> a video of both and of their difference, side by side."""

from __future__ import annotations

from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path

import av
import cv2
import numpy as np

from dfdc.comparison.compare import Comparison, difference_levels, frame_rate
from dfdc.comparison.pair import Pair, heat_picture
from dfdc.data.align import walk_pairs

# Pixels of each of the three panels at most, and of the strip below them.
PANEL_WIDTH, PANEL_HEIGHT = 424, 480
STRIP_HEIGHT = 120


def write_clip(path: Path, pair: Pair) -> None:
    """Write all pairs of frames side by side with their heat maps, above a curve with a cursor, as H.264."""
    rate = Fraction(frame_rate(pair.comparison.alignment)).limit_denominator(1001)
    stream = None
    with av.open(str(path), "w", options={"movflags": "faststart"}) as container:
        for picture in _panels(pair):
            if stream is None:
                stream = container.add_stream("libx264", rate=rate, options={"crf": "21", "preset": "veryfast"})
                stream.height, stream.width = picture.shape[:2]
                stream.pix_fmt = "yuv420p"
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode(None))


def _panels(pair: Pair) -> Iterator[np.ndarray]:
    """Frames (H, W, 3) uint8 RGB of the video; H and W are even."""
    height, width = pair.comparison.alignment.fit.size
    scale = min(PANEL_WIDTH / width, PANEL_HEIGHT / height)
    size = max(round(width * scale / 2) * 2, 2), max(round(height * scale / 2) * 2, 2)
    strip = _strip(pair.comparison, 3 * size[0])
    for index, (_, first, second) in enumerate(walk_pairs(pair.original, pair.fake, pair.comparison.alignment)):
        panels = [cv2.resize(frame, size, interpolation=cv2.INTER_AREA) for frame in (first, second)]
        panels.append(heat_picture(difference_levels(*panels), pair.scale))
        labelled = [_label(panel, text) for panel, text in zip(panels, ("original", "fake", "difference"), strict=True)]
        below = strip.copy()
        x = _column(index, len(pair.comparison.alignment), below.shape[1])
        cv2.line(below, (x, 0), (x, STRIP_HEIGHT), (40, 40, 40), 2)
        yield np.vstack([np.hstack(labelled), below])


def _strip(comparison: Comparison, width: int) -> np.ndarray:
    """The difference over time as a picture (STRIP_HEIGHT, width, 3)."""
    strip = np.full((STRIP_HEIGHT, width, 3), 250, np.uint8)
    curves = [(comparison.outside, (119, 119, 119)), *((person.levels, (213, 94, 0)) for person in comparison.people)]
    top = max(float(np.nanmax(values, initial=1.0)) for values, _ in curves) * 1.1
    n_pairs = len(comparison.alignment)
    for values, colour in curves:
        points = [
            (_column(i, n_pairs, width), round((1 - value / top) * (STRIP_HEIGHT - 8)) + 3)
            for i, value in enumerate(values)
            if not np.isnan(value)
        ]
        cv2.polylines(strip, [np.array(points, np.int32).reshape(-1, 1, 2)], False, colour, 2, cv2.LINE_AA)
    for person in comparison.people:
        for i in np.flatnonzero(person.jumped):
            cv2.drawMarker(strip, (_column(i, n_pairs, width), 8), (184, 134, 11), cv2.MARKER_TRIANGLE_DOWN, 10, 2)
    return _label(strip, "difference over time: face (orange), background (grey), sudden changes (marks)", dark=True)


def _column(index: int, n_pairs: int, width: int) -> int:
    return round(4 + (width - 8) * index / max(n_pairs - 1, 1))


def _label(picture: np.ndarray, text: str, *, dark: bool = False) -> np.ndarray:
    picture = np.ascontiguousarray(picture)
    for colour, width in ((250, 250, 250) if dark else (0, 0, 0), 3), ((60, 60, 60) if dark else (255, 255, 255), 1):
        cv2.putText(picture, text, (8, 18), cv2.FONT_HERSHEY_SIMPLEX, 0.5, colour, width, cv2.LINE_AA)
    return picture
