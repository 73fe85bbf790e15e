"""Animated WebP -> pictures with times, because FFmpeg cannot decode it."""

from __future__ import annotations

from collections.abc import Iterator

import cv2
import numpy as np

from dfdc.container import MAX_PIXELS, MediaFile
from dfdc.errors import VideoError
from dfdc.pixels import MAX_SIDE

# Pixels of all pictures together: 32 pictures of 1080p. They take four bytes per pixel while they are decoded.
MAX_ANIMATION_PIXELS = 32 * 1920 * 1080
MAX_BYTES = 1 << 26
# WebP container specification: the file header has 12 bytes, chunks follow; this flag marks an animation.
HEADER_BYTES = 12
ANIMATION_FLAG = 2


def read_animation(file: MediaFile) -> Iterator[tuple[float, np.ndarray]] | None:
    """Read an animated WebP.

    Args:
        file: open for reading; its position changes.

    Returns:
        For each picture its time in seconds and its pixels, (H, W, 3) uint8 RGB, reduced to `MAX_SIDE`; at most as many
        pictures as `MAX_ANIMATION_PIXELS` allows. None if the file is not an animated WebP.

    Raises:
        VideoError: the file is damaged or too large, or OpenCV is too old to read it.
    """
    file.seek(0)
    head = file.read(HEADER_BYTES + 18)
    is_webp = head[:4] == b"RIFF" and head[8:16] == b"WEBPVP8X" and len(head) == HEADER_BYTES + 18
    if not is_webp or not head[20] & ANIMATION_FLAG:
        return None
    width, height = (int.from_bytes(head[start : start + 3], "little") + 1 for start in (24, 27))
    if width * height > MAX_PIXELS or file.status.st_size > MAX_BYTES:
        raise VideoError(
            f"{width} x {height} pixels in {file.status.st_size} bytes; allowed are {MAX_PIXELS} in {MAX_BYTES}"
        )
    if not hasattr(cv2, "imdecodeanimation"):
        raise VideoError("an animated WebP, which OpenCV reads from version 4.11 on")
    file.seek(0)
    data = b"".join(iter(lambda: file.read(1 << 20), b""))
    file.check()
    limit = max(MAX_ANIMATION_PIXELS // (width * height), 1)
    try:
        found, animation = cv2.imdecodeanimation(np.frombuffer(data, np.uint8), start=0, count=limit)
    except cv2.error as error:
        raise VideoError(f"an animated WebP that does not decode ({error.err})") from error
    if not found or not len(animation.frames):
        raise VideoError("an animated WebP that does not decode")
    return _pictures(animation.frames, animation.durations)


def _pictures(frames: list[np.ndarray], durations_ms: list[int]) -> Iterator[tuple[float, np.ndarray]]:
    times_s = np.concatenate([[0.0], np.cumsum(durations_ms)[:-1] / 1000])
    for time_s, frame in zip(times_s.tolist(), frames, strict=True):
        scale = min(1.0, MAX_SIDE / max(frame.shape[:2]))
        if scale < 1:
            frame = cv2.resize(frame, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA)
        yield time_s, cv2.cvtColor(frame, cv2.COLOR_BGRA2RGB if frame.shape[2] == 4 else cv2.COLOR_BGR2RGB)
