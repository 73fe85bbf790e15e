"""Video file -> frames with times: the only decoder.

A clip is read twice from start to end and never sought in. The first pass only lists the packets' times (under 20 ms
for ten seconds of 1080p), so that frame counts and durations that containers omit or misstate do not matter. The
second decodes and converts the frames that are nearest to evenly spread moments. DFDC's clips have two key frames
each: seeking would decode half a clip for every frame, and skipping the frames that no other frame refers to halves
the work.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import av
import numpy as np
from av.container import InputContainer
from av.video.frame import VideoFrame
from av.video.reformatter import Interpolation, VideoReformatter
from av.video.stream import VideoStream

from dfdc.deadline import NEVER, Deadline

# Frames are reduced to this longest side while they are converted: an 8K clip costs no more memory than a 1080p one.
MAX_SIDE = 1920
# What a stream may claim: 8K by 8K. Decoders allocate by the claim, not by the data.
MAX_PIXELS = 8192 * 8192
MAX_PACKETS = 1_000_000
# From this many packets on (five minutes at 30 a second), key frames alone will do where there are enough of them.
LONG_CLIP_PACKETS = 9_000
# Containers that hold their own data. Playlists and lists of other files (hls, dash, concat, ...) are not among them.
CONTAINERS = (
    "mov,mp4,m4a,3gp,3g2,mj2,matroska,webm,avi,mpeg,mpegts,mpegvideo,m4v,flv,ogg,asf,wtv,mxf,nut,ivf,obu,h264,hevc,gif"
)
SUFFIXES = frozenset(
    {".mp4", ".m4v", ".mov", ".webm", ".mkv", ".avi", ".mpg", ".mpeg", ".ts", ".m2ts", ".mts"}
    | {".3gp", ".3g2", ".flv", ".wmv", ".ogv", ".mxf", ".vob"}
)


class VideoError(Exception):
    """A clip that gives no frame; the message says why."""


class VideoTimeout(VideoError):
    """The deadline passed before the first frame was there."""


@dataclass(frozen=True)
class Frame:
    """One decoded frame.

    Attributes:
        time_s: presentation time in seconds from the clip's first frame.
        pixels: (H, W, 3) uint8 RGB, upright, its longest side at most `MAX_SIDE`.
    """

    time_s: float
    pixels: np.ndarray


def read_frames(path: Path, n_frames: int, *, deadline: Deadline = NEVER) -> list[Frame]:
    """Read frames that are spread evenly over a clip's whole time.

    Args:
        path: a video file.
        n_frames: how many are wanted, at least 1.
        deadline: when it passes, what has been read so far is returned.

    Returns:
        1 to n_frames different frames in order of time; fewer than asked for where the clip has fewer or is damaged.

    Raises:
        VideoError: the file is unreadable, not a video, too large, or no frame of it decodes.
        VideoTimeout: the deadline passed before the first frame.
    """
    if n_frames < 1:
        raise ValueError(f"n_frames is {n_frames}; allowed: 1 and up")
    index = _index(path, deadline)
    moments = _spread(index.times, n_frames)
    plans = ["DEFAULT"]
    if index.timed and len(index.times) >= 3 * n_frames:
        plans.insert(0, "NONREF")
    if index.timed and len(index.times) > LONG_CLIP_PACKETS and index.n_keys >= 2 * n_frames:
        plans.insert(0, "NONKEY")
    frames: list[Frame] = []
    for plan in plans:
        if frames and deadline.expired():
            break
        found = _decode(path, moments, plan, deadline, timed=index.timed)
        frames = max(frames, found, key=len)
        if len(frames) >= len(moments):
            break
    if not frames:
        if deadline.expired():
            raise VideoTimeout("out of time before the first frame")
        raise VideoError(f"none of its {len(index.times)} video packets decodes")
    return frames


def _open(path: Path) -> tuple[InputContainer, VideoStream]:
    """Open a clip and its first video stream that is not a cover picture, and refuse what is too large."""
    try:
        if path.stat().st_size == 0:
            raise VideoError("the file is empty")
        # The explicit protocol keeps names such as 'http:x.mp4' or 'concat:a|b' what they are: names of files.
        container = av.open(
            f"file:{path.absolute()}",
            options={"protocol_whitelist": "file", "format_whitelist": CONTAINERS},
            metadata_errors="replace",
        )
    except OSError as error:
        raise VideoError(f"cannot be opened ({error.strerror or error})") from error
    except (av.FFmpegError, ValueError) as error:
        raise VideoError(f"not a video ({error})") from error
    streams = [s for s in container.streams.video if not s.disposition & s.disposition.attached_pic]
    if not streams:
        container.close()
        raise VideoError("has no video stream")
    stream = streams[0]
    if stream.codec_context is None:
        container.close()
        raise VideoError("has no decoder for its video stream")
    if stream.width * stream.height > MAX_PIXELS:
        container.close()
        raise VideoError(f"{stream.width}x{stream.height} pixels; allowed are {MAX_PIXELS} in all")
    stream.codec_context.options = {"max_pixels": str(MAX_PIXELS)}
    stream.thread_count = 1
    return container, stream


def _demux(container: InputContainer, stream: VideoStream, deadline: Deadline) -> Iterator[av.Packet]:
    """The stream's packets; damage ends them early instead of raising."""
    packets = container.demux(stream)
    for _ in range(MAX_PACKETS):
        try:
            packet = next(packets)
        except (StopIteration, av.FFmpegError, OSError):
            return
        yield packet
        if deadline.expired():
            return


@dataclass(frozen=True)
class _Index:
    """What the first pass finds.

    Attributes:
        times: of every packet, sorted: in seconds, or counted from 0 where a packet states no time.
        timed: whether times are seconds.
        n_keys: how many packets are key frames.
    """

    times: list[float]
    timed: bool
    n_keys: int


def _index(path: Path, deadline: Deadline) -> _Index:
    container, stream = _open(path)
    with container:
        times, n_keys = [], 0
        for packet in _demux(container, stream, deadline):
            if packet.size:
                stamp = packet.pts if packet.pts is not None else packet.dts
                times.append(None if stamp is None else float(stamp * packet.time_base))
                n_keys += packet.is_keyframe
    if not times:
        if deadline.expired():
            raise VideoTimeout("out of time before the first packet")
        raise VideoError("its video stream holds no packet")
    if None in times:
        return _Index([float(i) for i in range(len(times))], False, n_keys)
    return _Index(sorted(times), True, n_keys)


def _spread(times: list[float], n_frames: int) -> list[float]:
    """The middles of n equal parts of a clip's time, or every frame's time where there are no more than n."""
    if len(times) <= n_frames:
        return times
    # The last frame is shown for about as long as the others; a frame's time is the middle of its showing.
    frame_span = (times[-1] - times[0]) / (len(times) - 1)
    first, span = times[0] - frame_span / 2, frame_span * len(times)
    return [first + span * (i + 0.5) / n_frames for i in range(n_frames)]


def _decode(path: Path, moments: list[float], plan: str, deadline: Deadline, *, timed: bool) -> list[Frame]:
    """Decode by a plan (FFmpeg's skip_frame) and convert the frame nearest to each moment."""
    container, stream = _open(path)
    with container:
        stream.codec_context.skip_frame = plan
        convert = VideoReformatter()
        frames: list[Frame] = []
        pending = list(reversed(moments))
        origin: float | None = None
        before: tuple[float, VideoFrame] | None = None

        def take(time: float, frame: VideoFrame) -> None:
            if not frames or frames[-1].time_s < time - origin:
                frames.append(Frame(time - origin, _upright(frame, convert)))

        for count, frame in enumerate(_decoded(container, stream, deadline)):
            time = frame.time if timed else float(count)
            if time is None:
                continue
            origin = time if origin is None else origin
            while pending and time >= pending[-1]:
                moment = pending.pop()
                nearest = before if before and moment - before[0] < time - moment else (time, frame)
                take(*nearest)
            if not pending:
                break
            before = (time, frame)
        if before and pending:
            take(*before)
    return frames


def _decoded(container: InputContainer, stream: VideoStream, deadline: Deadline) -> Iterator[VideoFrame]:
    """Every frame that decodes; a damaged packet costs its own frames and no others."""
    for packet in _demux(container, stream, deadline):
        try:
            yield from packet.decode()
        except av.FFmpegError:
            continue


def _upright(frame: VideoFrame, convert: VideoReformatter) -> np.ndarray:
    """RGB pixels of a frame, reduced to `MAX_SIDE` and turned as its container asks."""
    scale = min(1.0, MAX_SIDE / max(frame.width, frame.height))
    width, height = max(round(frame.width * scale), 1), max(round(frame.height * scale), 1)
    rgb = convert.reformat(frame, width, height, "rgb24", interpolation=Interpolation.AREA)
    pixels = rgb.to_ndarray()
    quarter_turns = round(frame.rotation / 90) % 4
    return np.ascontiguousarray(np.rot90(pixels, quarter_turns)) if quarter_turns else pixels
