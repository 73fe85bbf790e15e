"""Clip -> frames with times: choose which frames are read.

A clip is read twice from start to end, without seeking. The first pass only lists the times of the packets (20 ms for
ten seconds of 1080p), so missing or wrong frame counts and durations in the container do no harm. The second pass
decodes, and converts the frames that are nearest to evenly spread moments. DFDC's clips have two key frames each, so
seeking would decode half a clip for every frame; skipping the frames to which no other frame refers halves the work.
"""

from __future__ import annotations

import ctypes
import logging
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path

import av
import numpy as np
from av.codec.hwaccel import hwdevices_available

from dfdc.container import MediaFile
from dfdc.deadline import NEVER, Deadline
from dfdc.decoding import Frame, Seen, Window, decode, nearest
from dfdc.errors import MachineError, VideoError, VideoTimeout
from dfdc.files import Identity
from dfdc.listing import Listing, list_frames, span_s, spread
from dfdc.progress import Progress, Watch, ignore
from dfdc.webp import read_animation

log = logging.getLogger(__name__)

# Clips with more pixels than five minutes of 1080p at 30 frames per second (75 seconds of 4K). Decoding all of it would
# take most of a clip's time limit, so only key frames are decoded if there are enough of them.
LONG_CLIP_PIXELS = 9_000 * 1920 * 1080
# Pause in seconds before a clip is read once more after an error of the machine.
RETRY_PAUSE_S = 0.5
# NVIDIA's video decoder (NVDEC).
NVDEC_LIBRARY = "libnvcuvid.so.1"


@dataclass(frozen=True)
class Reading:
    """The frames that were read from a clip.

    Attributes:
        frames: at least one, in order of time.
        duration_s: duration of the clip in seconds: the duration that its container states for the video, and not less
            than the duration of its frames.
        stream: index of the video stream in the file.
        is_cut: whether listing the clip's frames ended before the end of the file, at the deadline or after
            `MAX_GAP_BYTES` without a frame.
        tone_mapped: whether frames were HDR10 and were tone-mapped to SDR.
        deinterlaced: whether frames were interlaced and were deinterlaced.
        identity: identity of the file that was read; None if it is not known.
    """

    frames: list[Frame]
    duration_s: float
    stream: int
    is_cut: bool = False
    tone_mapped: bool = False
    deinterlaced: bool = False
    identity: Identity | None = None

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
        """The share of the clip's duration that its frames cover: about 1 if they are spread over all of it.

        Frames lie in the middle of equal parts of the time, so n frames cover n / (n - 1) of the time between the first
        and the last one.
        """
        n_frames = len(self.frames)
        if n_frames == 1 or self.duration_s <= 0:
            return 1.0
        return min((self.to_s - self.from_s) * n_frames / (n_frames - 1) / self.duration_s, 1.0)


@cache
def has_gpu_decoder() -> bool:
    """Whether CUDA devices can decode: PyAV supports it, and NVIDIA's library is installed."""
    try:
        ctypes.CDLL(NVDEC_LIBRARY)
    except OSError:
        return False
    return "cuda" in hwdevices_available()


def read_clip(
    path: Path,
    n_frames: int,
    *,
    n_pairs: int = 0,
    deadline: Deadline = NEVER,
    gpu: int | None = None,
    watch: Watch = ignore,
) -> Reading:
    """Read frames that are spread evenly over the whole clip.

    Args:
        path: a video file or a photograph.
        n_frames: how many frames to read, at least 1.
        n_pairs: how many of them, also evenly spread, come with their neighbour. If frames to which no other frame
            refers are skipped, the neighbour is the next frame that is not skipped, usually two frames later; it costs
            only a conversion.
        deadline: when it passes, the frames that were read so far are returned.
        gpu: number of the CUDA device that decodes H.264 that needs no scaling, to the same pixels as the CPU (see
            `has_gpu_decoder`). The CPU decodes all other clips, and those that the GPU fails to decode. None for no
            GPU.
        watch: told the number of frames that were read, after each of them.

    Returns:
        1 to n_frames different frames of the main video stream, or of the next stream if no frame of the main one
        decodes. There are fewer than n_frames if the clip has fewer or is damaged.

    Raises:
        VideoError: the file is unreadable, not a video, too large, or no frame of it decodes.
        VideoTimeout: the deadline passed before the first frame.
        MachineError: the disk failed, or memory or threads were short, in two attempts.
    """
    if n_frames < 1:
        raise ValueError(f"n_frames is {n_frames}; allowed: 1 and up")
    if n_pairs < 0:
        raise ValueError(f"n_pairs is {n_pairs}; allowed: 0 and up")
    for pause_s in (RETRY_PAUSE_S, None):
        try:
            return _read(path, n_frames, n_pairs=n_pairs, deadline=deadline, gpu=gpu, watch=watch)
        except (MachineError, MemoryError) as error:
            if pause_s is None:
                raise error if isinstance(error, MachineError) else MachineError("memory is short") from error
            log.warning("%s; it is tried once more", error or "memory is short")
            time.sleep(min(pause_s, deadline.remaining_s()))
    raise AssertionError("unreachable")


def read_frames(
    path: Path, n_frames: int, *, n_pairs: int = 0, deadline: Deadline = NEVER, gpu: int | None = None
) -> list[Frame]:
    """Like `read_clip`, but return only the frames, in order of time."""
    return read_clip(path, n_frames, n_pairs=n_pairs, deadline=deadline, gpu=gpu).frames


def read_frames_at(path: Path, times_s: list[float]) -> list[Frame]:
    """Read the frames nearest to some moments, independently of the encoding, by decoding every frame.

    `read_frames` skips frames to which no other frame refers, and these differ between encodings: on FaceForensics++, a
    third of a fake's frames were off by one from those of its original.

    Args:
        path: a video file.
        times_s: in seconds from the first frame, ascending.

    Returns:
        Different frames in order of time; a frame that is nearest to several moments is returned once.

    Raises:
        VideoError: the file is unreadable, not a video, or too large.
        MachineError: the disk failed, or memory was short.
    """
    with MediaFile(path) as file:
        listing = next(list_frames(file))
        return list(decode(file, listing, [listing.times[0] + time_s for time_s in times_s]))


def stream_frames(path: Path) -> Iterator[Frame]:
    """Yield every frame of a clip; only one is in memory at a time.

    Args:
        path: a video file.

    Raises:
        VideoError: the file is unreadable, not a video, or too large.
        MachineError: the disk failed, or memory was short.
    """
    with MediaFile(path) as file:
        yield from decode(file, next(list_frames(file)), None)


def _read(path: Path, n_frames: int, *, n_pairs: int, deadline: Deadline, gpu: int | None, watch: Watch) -> Reading:
    with MediaFile(path, deadline=deadline) as file:
        if pictures := read_animation(file):
            reading = _pick(list(pictures), n_frames)
        else:
            reading = _read_first(file, n_frames, n_pairs=n_pairs, gpu=gpu, watch=watch)
        file.check()
        return replace(reading, identity=file.identity)


def _read_first(file: MediaFile, n_frames: int, *, n_pairs: int, gpu: int | None, watch: Watch) -> Reading:
    """Read the first of the video streams of which a frame decodes."""
    problem: VideoError | None = None
    for listing in list_frames(file):
        try:
            return _read_stream(file, listing, n_frames, n_pairs=n_pairs, gpu=gpu, watch=watch)
        except VideoTimeout:
            raise
        except VideoError as error:
            problem = problem or error
    raise problem or AssertionError("unreachable")


def _pick(pictures: list[tuple[float, np.ndarray]], n_frames: int) -> Reading:
    """The pictures of an animation that are spread evenly over its time."""
    times = [time_s for time_s, _ in pictures]
    windows = ((time_s, Window(picture)) for time_s, picture in pictures)
    chosen = nearest(windows, spread(times, n_frames))
    return Reading([Frame(time_s, window.frame) for time_s, window in chosen], span_s(times), 0)


def _read_stream(
    file: MediaFile, listing: Listing, n_frames: int, *, n_pairs: int, gpu: int | None, watch: Watch
) -> Reading:
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
                if len(found) > len(frames):  # a later attempt begins anew
                    watch(Progress("reading", len(found), len(moments)))
        except (VideoError, MachineError, av.FFmpegError) as error:
            if number is None:
                raise
            _tell_once(f"{getattr(error, 'strerror', None) or error}")
        if len(found) > len(frames):
            frames, seen = found, shown
        if len(frames) == len(moments) or file.deadline.expired():
            break
    else:
        # Some packets do not decode, because the stream lacks its first key frame or is damaged. The frames are then
        # spread anew over the times of those that do decode.
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
    """The values of FFmpeg's skip_frame to try, the cheapest first; each may yield too few frames."""
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
