"""Clip -> frames with times: which frames are read, and how far.

A clip is read twice from start to end and never sought in. The first pass only lists the packets' times (20 ms for
ten seconds of 1080p), so that frame counts and durations that containers omit or misstate do not matter. The
second decodes and converts the frames that are nearest to evenly spread moments. DFDC's clips have two key frames
each: seeking would decode half a clip for every frame, and skipping the frames that no other frame refers to halves
the work.
"""

from __future__ import annotations

import ctypes
import logging
import time
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import av
import numpy as np
from av.codec.hwaccel import hwdevices_available

from dfdc.container import MediaFile
from dfdc.deadline import NEVER, Deadline
from dfdc.decoding import Frame, Seen, Window, decode, nearest
from dfdc.errors import MachineError, VideoError, VideoTimeout
from dfdc.listing import Listing, list_frames, span_s, spread
from dfdc.webp import read_animation

log = logging.getLogger(__name__)

# Clips of more pixels than five minutes of 1080p at 30 frames a second, which are 75 seconds of 4K: decoding them takes
# most of a clip's limit, and key frames alone will do where there are enough of them.
LONG_CLIP_PIXELS = 9_000 * 1920 * 1080
# Pause in seconds before a clip is read once more where the machine failed.
RETRY_PAUSE_S = 0.5
# NVIDIA's video decoder (NVDEC).
NVDEC_LIBRARY = "libnvcuvid.so.1"


@dataclass(frozen=True)
class Reading:
    """What was read of a clip.

    Attributes:
        frames: at least one, in order of time.
        duration_s: of the clip in seconds: what its container states of the video, at least what its frames take.
        stream: number of the video stream in the file.
        is_cut: whether listing the clip's frames ended before the file did: at the deadline, or where `MAX_GAP_BYTES`
            held no frame.
        tone_mapped: whether frames came in HDR10's range and were brought to a standard display's.
        deinterlaced: whether frames were interlaced.
    """

    frames: list[Frame]
    duration_s: float
    stream: int
    is_cut: bool = False
    tone_mapped: bool = False
    deinterlaced: bool = False

    @property
    def from_s(self) -> float:
        """Time of the first frame that was read, in seconds."""
        return self.frames[0].time_s

    @property
    def to_s(self) -> float:
        """Time of the last frame that was read, in seconds."""
        return self.frames[-1].time_s

    @property
    def share(self) -> float:
        """The share of the clip's time that its frames stand for: about 1 where they are spread over all of it.

        Frames lie in the middles of equal parts of time, so that n of them stand for n / (n - 1) of their span.
        """
        n_frames = len(self.frames)
        if n_frames == 1 or self.duration_s <= 0:
            return 1.0
        return min((self.to_s - self.from_s) * n_frames / (n_frames - 1) / self.duration_s, 1.0)


@cache
def has_gpu_decoder() -> bool:
    """Whether CUDA devices may decode: PyAV can use their decoder, and NVIDIA's library is there."""
    try:
        ctypes.CDLL(NVDEC_LIBRARY)
    except OSError:
        return False
    return "cuda" in hwdevices_available()


def read_clip(
    path: Path, n_frames: int, *, n_pairs: int = 0, deadline: Deadline = NEVER, gpu: int | None = None
) -> Reading:
    """Read frames that are spread evenly over a clip's whole time.

    Args:
        path: a video file or a photograph.
        n_frames: how many are wanted, at least 1.
        n_pairs: how many of them, spread evenly too, come with their neighbour. Where frames that no other refers to
            are skipped, it is the next one of the others: mostly two frames later, at no more than a conversion's cost.
        deadline: when it passes, what has been read so far is returned.
        gpu: number of the CUDA device that decodes, to the same pixels, what it can (see `has_gpu_decoder`): H.264 that
            is not to be scaled. None for the CPU, which also decodes what the GPU could not.

    Returns:
        1 to n_frames different frames of the main video stream, or of the next one where none of its frames decodes;
        fewer than asked for where the clip has fewer or is damaged.

    Raises:
        VideoError: the file is unreadable, not a video, too large, or no frame of it decodes.
        VideoTimeout: the deadline passed before the first frame.
        MachineError: the disk failed, or memory or threads were short, twice.
    """
    if n_frames < 1:
        raise ValueError(f"n_frames is {n_frames}; allowed: 1 and up")
    if n_pairs < 0:
        raise ValueError(f"n_pairs is {n_pairs}; allowed: 0 and up")
    for pause_s in (RETRY_PAUSE_S, None):
        try:
            return _read(path, n_frames, n_pairs=n_pairs, deadline=deadline, gpu=gpu)
        except (MachineError, MemoryError) as error:
            if pause_s is None:
                raise error if isinstance(error, MachineError) else MachineError("memory is short") from error
            log.warning("%s; it is tried once more", error or "memory is short")
            time.sleep(min(pause_s, deadline.remaining_s()))
    raise AssertionError("unreachable")


def read_frames(
    path: Path, n_frames: int, *, n_pairs: int = 0, deadline: Deadline = NEVER, gpu: int | None = None
) -> list[Frame]:
    """The frames alone of what `read_clip` reads, in order of time."""
    return read_clip(path, n_frames, n_pairs=n_pairs, deadline=deadline, gpu=gpu).frames


def read_frames_at(path: Path, times_s: list[float]) -> list[Frame]:
    """Read the frames nearest to some moments, whatever the encoding: everything is decoded.

    `read_frames` skips frames that no other refers to, which are others in every encoding: on FaceForensics++ a third
    of a fake's frames were one off its original's.

    Args:
        path: a video file.
        times_s: in seconds from the first frame, rising.

    Returns:
        Different frames in order of time; one for several moments that it is nearest to.

    Raises:
        VideoError: the file is unreadable, not a video, or too large.
        MachineError: the disk failed, or memory was short.
    """
    with MediaFile(path) as file:
        listing = next(list_frames(file))
        return list(decode(file, listing, [listing.times[0] + time_s for time_s in times_s]))


def stream_frames(path: Path) -> Iterator[Frame]:
    """Every frame of a clip, one after another, so that memory holds only one.

    Args:
        path: a video file.

    Raises:
        VideoError: the file is unreadable, not a video, or too large.
        MachineError: the disk failed, or memory was short.
    """
    with MediaFile(path) as file:
        yield from decode(file, next(list_frames(file)), None)


def _read(path: Path, n_frames: int, *, n_pairs: int, deadline: Deadline, gpu: int | None) -> Reading:
    with MediaFile(path, deadline=deadline) as file:
        if pictures := read_animation(file):
            return _pick(list(pictures), n_frames)
        problem: VideoError | None = None
        for listing in list_frames(file):
            try:
                return _read_stream(file, listing, n_frames, n_pairs=n_pairs, gpu=gpu)
            except VideoTimeout:
                raise
            except VideoError as error:
                problem = problem or error
    raise problem or AssertionError("unreachable")


def _pick(pictures: list[tuple[float, np.ndarray]], n_frames: int) -> Reading:
    """Of an animation's pictures those that are spread evenly over its time."""
    times = [time_s for time_s, _ in pictures]
    windows = ((time_s, Window(picture)) for time_s, picture in pictures)
    chosen = nearest(windows, spread(times, n_frames))
    return Reading([Frame(time_s, window.frame) for time_s, window in chosen], span_s(times), 0)


def _read_stream(file: MediaFile, listing: Listing, n_frames: int, *, n_pairs: int, gpu: int | None) -> Reading:
    moments = spread(listing.times, n_frames)
    attempts = [(plan, None) for plan in _plans(listing, n_frames)]
    if gpu is not None and listing.suits_gpu:
        attempts.insert(0, (attempts[0][0], gpu))
    frames, seen = [], Seen()
    for plan, number in attempts:
        found, shown = [], Seen()
        try:
            for frame in decode(file, listing, moments, plan=plan, n_pairs=n_pairs, gpu=number, seen=shown):
                found.append(frame)
        except (VideoError, MachineError, av.FFmpegError) as error:
            if number is None:
                raise
            _tell_once(f"{getattr(error, 'strerror', None) or error}")
        if len(found) > len(frames):
            frames, seen = found, shown
        if len(frames) == len(moments) or file.deadline.expired():
            break
    else:
        # Some packets do not decode: a stream without its first key frame, or a damaged one. The frames are spread
        # anew, over the times of those that do.
        if len(shown.times) > len(frames):
            moments, shown = spread(shown.times, n_frames), Seen()
            found = list(decode(file, listing, moments, n_pairs=n_pairs, seen=shown))
            if len(found) > len(frames):
                frames, seen = found, shown
    if not frames:
        if file.deadline.expired():
            raise VideoTimeout("out of time before the first frame")
        raise VideoError(f"none of its {len(listing.times)} video packets decodes")
    return Reading(frames, listing.duration_s, listing.stream, listing.is_cut, seen.tone_mapped, seen.deinterlaced)


def _plans(listing: Listing, n_frames: int) -> list[str]:
    """Which frames to decode, in FFmpeg's words for skip_frame, the cheapest plan first; each may give too few."""
    plans = ["DEFAULT"]
    if listing.rate is None and len(listing.times) >= 3 * n_frames:
        plans.insert(0, "NONREF")
    if (
        listing.rate is None
        and len(listing.times) * listing.n_pixels > LONG_CLIP_PIXELS
        and listing.n_keys >= 2 * n_frames
    ):
        plans.insert(0, "NONKEY")
    return plans


@cache
def _tell_once(reason: str) -> None:
    log.warning("a GPU did not decode a clip to its end (%s); the CPU does", reason)
