"""Video file -> frames with times: the only decoder.

A clip is read twice from start to end and never sought in. The first pass only lists the packets' times (20 ms for
ten seconds of 1080p), so that frame counts and durations that containers omit or misstate do not matter. The
second decodes and converts the frames that are nearest to evenly spread moments. DFDC's clips have two key frames
each: seeking would decode half a clip for every frame, and skipping the frames that no other frame refers to halves
the work.
"""

from __future__ import annotations

import ctypes
import logging
import math
from bisect import bisect
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import cache
from itertools import chain, islice, pairwise
from pathlib import Path

import av
import numpy as np
from av.codec.hwaccel import HWAccel, hwdevices_available
from av.container import InputContainer
from av.stream import Disposition
from av.video.frame import VideoFrame
from av.video.reformatter import Colorspace, Interpolation, VideoReformatter
from av.video.stream import VideoStream

from dfdc.deadline import NEVER, Deadline
from dfdc.errors import VideoError, VideoTimeout

log = logging.getLogger(__name__)

# Frames are reduced to this longest side while they are converted: an 8K clip costs no more memory than a 1080p one.
MAX_SIDE = 1920
# Pixels are at most so many times as wide as high: those of widescreen film, squeezed into half the width, are.
MAX_ASPECT = 2.0
# What a stream may claim: 8K film. Decoders allocate by the claim, not by the data: without a limit, a file of 5 kB
# that claims 16000 x 16000 takes 1.7 GB and 12 s before it is even open.
MAX_PIXELS = 8192 * 4352
DECODER_OPTIONS = {"max_pixels": str(MAX_PIXELS)}
MAX_PACKETS = 1_000_000
# Clips of more pixels than five minutes of 1080p at 30 frames a second, which are 75 seconds of 4K: decoding them takes
# most of a clip's limit, and key frames alone will do where there are enough of them.
LONG_CLIP_PIXELS = 9_000 * 1920 * 1080
# By so many places the order of showing may differ from that of decoding: codecs hold back 16 frames at most.
MAX_DELAY = 16
# What NVIDIA's video decoder (NVDEC) is asked for: what phones and cameras write, and DFDC is.
GPU_CODEC, GPU_FORMATS = "h264", ("yuv420p", "yuvj420p")
NVDEC_LIBRARY = "libnvcuvid.so.1"
# It decodes in the context that torch has made: FFmpeg refuses one whose way of waiting is not its own.
GPU_CONTEXT = {"primary_ctx": "0", "current_ctx": "1"}
# Containers that hold their own data. Playlists and lists of other files (hls, dash, concat, ...) are not among them.
CONTAINERS = (
    "mov,mp4,m4a,3gp,3g2,mj2,matroska,webm,avi,mpeg,mpegts,mpegvideo,m4v,flv,ogg,asf,wtv,mxf,nut,ivf,obu,h264,hevc,gif,"
    "wav,flac"
)


# A decoded frame and the one after it.
Pair = tuple[VideoFrame, VideoFrame | None]


@dataclass(frozen=True)
class Frame:
    """One decoded frame.

    Attributes:
        time_s: presentation time in seconds from the clip's first frame.
        pixels: (H, W, 3) uint8 RGB, upright, its longest side at most `MAX_SIDE`.
        neighbour: the pixels of the frame that was decoded right after it; None where it was not asked for, or there
            is none.
    """

    time_s: float
    pixels: np.ndarray
    neighbour: np.ndarray | None = None


@cache
def has_gpu_decoder() -> bool:
    """Whether CUDA devices may decode: PyAV can use their decoder, and NVIDIA's library is there."""
    try:
        ctypes.CDLL(NVDEC_LIBRARY)
    except OSError:
        return False
    return "cuda" in hwdevices_available()


def read_frames(
    path: Path, n_frames: int, *, n_pairs: int = 0, deadline: Deadline = NEVER, gpu: int | None = None
) -> list[Frame]:
    """Read frames that are spread evenly over a clip's whole time.

    Args:
        path: a video file.
        n_frames: how many are wanted, at least 1.
        n_pairs: how many of them, spread evenly too, come with their neighbour. Where frames that no other refers to
            are skipped, it is the next one of the others: mostly two frames later, at no more than a conversion's cost.
        deadline: when it passes, what has been read so far is returned.
        gpu: number of the CUDA device that decodes, to the same pixels, what it can (see `has_gpu_decoder`): H.264 that
            is not to be scaled. None for the CPU, which also decodes what the GPU could not.

    Returns:
        1 to n_frames different frames in order of time; fewer than asked for where the clip has fewer or is damaged.

    Raises:
        VideoError: the file is unreadable, not a video, too large, or no frame of it decodes.
        VideoTimeout: the deadline passed before the first frame.
    """
    if n_frames < 1:
        raise ValueError(f"n_frames is {n_frames}; allowed: 1 and up")
    if n_pairs < 0:
        raise ValueError(f"n_pairs is {n_pairs}; allowed: 0 and up")
    index = _index(path, deadline)
    moments = _spread(index.times, n_frames)
    frames: list[Frame] = []
    attempts = [(plan, None) for plan in _plans(index, n_frames)]
    if gpu is not None and index.suits_gpu:
        attempts.insert(0, (attempts[0][0], gpu))
    for plan, number in attempts:
        found: list[Frame] = []
        try:
            for frame in _decode(path, index, moments, plan, deadline, n_pairs=n_pairs, gpu=number):
                found.append(frame)
        except (VideoError, av.FFmpegError) as error:
            if number is None:
                raise
            _tell_once(f"{getattr(error, 'strerror', None) or error}")
        frames = max(frames, found, key=len)
        if len(frames) == len(moments) or deadline.expired():
            break
    if not frames:
        if deadline.expired():
            raise VideoTimeout("out of time before the first frame")
        raise VideoError(f"none of its {len(index.times)} video packets decodes")
    return frames


@cache
def _tell_once(reason: str) -> None:
    log.warning("a GPU did not decode a clip to its end (%s); the CPU does", reason)


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
    """
    index = _index(path, NEVER)
    return list(_decode(path, index, [index.times[0] + time for time in times_s], "DEFAULT", NEVER))


def _plans(index: _Index, n_frames: int) -> list[str]:
    """Which frames to decode, in FFmpeg's words for skip_frame, the cheapest plan first; each may give too few."""
    plans = ["DEFAULT"]
    if index.rate is None and len(index.times) >= 3 * n_frames:
        plans.insert(0, "NONREF")
    if index.rate is None and len(index.times) * index.n_pixels > LONG_CLIP_PIXELS and index.n_keys >= 2 * n_frames:
        plans.insert(0, "NONKEY")
    return plans


def stream_frames(path: Path) -> Iterator[Frame]:
    """Every frame of a clip, one after another, so that memory holds only one.

    Args:
        path: a video file.

    Raises:
        VideoError: the file is unreadable, not a video, or too large.
    """
    index = _index(path, NEVER)
    with _opened(path) as (container, stream):
        convert = _converter(stream)
        for time, frame in _rising(_timed(_decoded(container, stream, NEVER), index, stream)):
            yield Frame(time - index.times[0], convert(frame))


def open_container(path: Path, *, gpu: int | None = None) -> InputContainer:
    """Open a media file that holds its own data; it may be anything but a playlist.

    Args:
        path: of the file.
        gpu: number of the CUDA device that decodes its video where it can; None for none.

    Raises:
        VideoError: the file is empty, unreadable, of no known kind, or claims too many pixels.
    """
    # FFmpeg decodes some frames to know a file better. Where a container (MPEG-PS, or MPEG-TS without tables) shows its
    # streams only as they come, no limit reaches that decoder: 30 kB that claim 16000 x 16000 take 1,180 MB and 8 s.
    # Opened without decoders first (0.6 ms), they take 4 MB.
    with _open(path, codec_whitelist="none") as glance:
        claims = [stream.width * stream.height for stream in glance.streams.video if stream.codec_context]
    if claims and (max(claims) > MAX_PIXELS or sum(claims) > 2 * MAX_PIXELS):
        raise VideoError(f"{sum(claims)} pixels in {len(claims)} video stream(s); allowed are {MAX_PIXELS} in one")
    return _open(path, gpu=gpu)


def _open(path: Path, *, gpu: int | None = None, **options: str) -> InputContainer:
    try:
        if path.stat().st_size == 0:
            raise VideoError("the file is empty")
        # The explicit protocol keeps names such as 'http:x.mp4' or 'concat:a|b' what they are: names of files.
        return av.open(
            f"file:{path.absolute()}",
            options={"protocol_whitelist": "file", "format_whitelist": CONTAINERS, **DECODER_OPTIONS, **options},
            metadata_errors="replace",
            hwaccel=None if gpu is None else HWAccel("cuda", str(gpu), options=GPU_CONTEXT, is_hw_owned=True),
        )
    except OSError as error:
        raise VideoError(f"cannot be opened ({error.strerror or error})") from error
    except (av.FFmpegError, ValueError) as error:
        raise VideoError(f"not a video of a known kind ({getattr(error, 'strerror', None) or error})") from error


@contextmanager
def _opened(path: Path, *, gpu: int | None = None) -> Iterator[tuple[InputContainer, VideoStream]]:
    """A clip and its first video stream that is not a cover picture; what is no video or too large is refused."""
    with open_container(path, gpu=gpu) as container:
        streams = [stream for stream in container.streams.video if not stream.disposition & Disposition.attached_pic]
        if not streams:
            raise VideoError("has no video stream")
        stream = streams[0]
        if stream.codec_context is None:
            raise VideoError("has no decoder for its video stream")
        stream.codec_context.options = DECODER_OPTIONS
        stream.codec_context.thread_count = 1
        yield container, stream


def _demux(container: InputContainer, stream: VideoStream, deadline: Deadline) -> Iterator[av.Packet]:
    """The stream's packets; damage or the deadline ends them early."""
    with suppress(av.FFmpegError):
        for packet in islice(container.demux(stream), MAX_PACKETS):
            if deadline.expired():
                return
            if packet.size:
                yield packet


@dataclass(frozen=True)
class _Index:
    """What the first pass finds.

    Attributes:
        times: when frames are shown, in seconds, sorted, each once.
        rate: frames a second, where packets state no usable times and frames have to be counted, so that all of them
            are decoded; None elsewhere.
        n_keys: how many packets are key frames.
        n_pixels: of a frame, as the stream claims.
        suits_gpu: whether the stream is what a GPU's decoder is asked for.
    """

    times: list[float]
    rate: float | None
    n_keys: int
    n_pixels: int
    suits_gpu: bool


def _index(path: Path, deadline: Deadline) -> _Index:
    with _opened(path) as (container, stream):
        stamps, order, n_keys = [], [], 0
        for packet in _demux(container, stream, deadline):
            if not packet.is_discard:  # cut off by an edit list: decoded for others' sake, never shown
                stamps.append(packet.pts)
                order.append(packet.dts)
                n_keys += packet.is_keyframe
        unit, rate = float(stream.time_base), float(stream.average_rate or 25)
        n_pixels = stream.width * stream.height
        kind = stream.codec_context.format  # None where nothing is known of it
        suits_gpu = stream.codec_context.name == GPU_CODEC and kind is not None and kind.name in GPU_FORMATS
        # What leaves a GPU has lost the place of its chroma, which scaling asks for.
        suits_gpu &= max(stream.width, stream.height) <= MAX_SIDE and _pixel_aspect(stream) == 1
    if not stamps:
        if deadline.expired():
            raise VideoTimeout("out of time before the first frame")
        raise VideoError("its video stream holds no frame")
    distinct = set(stamps)
    if None in distinct or len(distinct) <= len(stamps) / 2 or not _agree(stamps, order):
        return _Index([count / rate for count in range(len(stamps))], rate, n_keys, n_pixels, suits_gpu)
    return _Index(sorted(stamp * unit for stamp in distinct), None, n_keys, n_pixels, suits_gpu)


def _agree(shown: list[int], decoded: list[int | None]) -> bool:
    """Whether packets' times of showing may be believed: they follow those of decoding, which rise.

    Parts that were joined begin anew, and a damaged time lies anywhere; frames behind either would not be looked at.

    Args:
        shown, decoded: in order of decoding; of the latter some may be absent.
    """
    if any(after < before for before, after in pairwise(dts for dts in decoded if dts is not None)):
        return False
    ranks = {number: rank for rank, number in enumerate(sorted(range(len(shown)), key=shown.__getitem__))}
    return all(abs(rank - number) <= MAX_DELAY for number, rank in ranks.items())


def _spread(times: list[float], n_frames: int) -> list[float]:
    """The middles of n equal parts of a clip's time, or the times of all frames where there are no more than n.

    Where frames are so unevenly spaced that parts share one, the clip is divided by their count instead.
    """
    n_times = len(times)
    if n_times <= n_frames:
        return times
    # The last frame is shown for about as long as the others; a frame's time is the middle of its showing.
    frame_span = (times[-1] - times[0]) / (n_times - 1)
    middles = [times[0] + frame_span * (n_times * (i + 0.5) / n_frames - 0.5) for i in range(n_frames)]
    if len({_nearest_time(times, middle) for middle in middles}) == n_frames:
        return middles
    return [times[n_times * (2 * i + 1) // (2 * n_frames)] for i in range(n_frames)]


def _nearest_time(times: list[float], moment: float) -> float:
    after = bisect(times, moment)
    return min(times[max(after - 1, 0) : after + 1], key=lambda time: abs(time - moment))


def _decode(
    path: Path,
    index: _Index,
    moments: list[float],
    plan: str,
    deadline: Deadline,
    *,
    n_pairs: int = 0,
    gpu: int | None = None,
) -> Iterator[Frame]:
    """Decode by a plan (FFmpeg's skip_frame) and convert the frame nearest to each moment, some with the next one."""
    paired = {len(moments) * (2 * i + 1) // (2 * n_pairs) for i in range(n_pairs)}
    with _opened(path, gpu=gpu) as (container, stream):
        stream.codec_context.skip_frame = plan
        decoded = _decoded(container, stream, deadline, strict=gpu is not None)
        rising = _rising(_timed(decoded, index, stream))
        # Without pairs no frame is held for the one before it: the decoder then has one buffer more to use again.
        pairs = _with_following(rising) if n_pairs else ((time, (frame, None)) for time, frame in rising)
        convert = _converter(stream)
        for count, (time, (frame, following)) in enumerate(_nearest(pairs, moments)):
            neighbour = convert(following) if following is not None and count in paired else None
            yield Frame(time - index.times[0], convert(frame), neighbour)


def _timed(frames: Iterable[VideoFrame], index: _Index, stream: VideoStream) -> Iterator[tuple[float, VideoFrame]]:
    """Frames with the times in seconds that the index knows them by."""
    if index.rate is not None:
        return ((count / index.rate, frame) for count, frame in enumerate(frames))
    unit = float(stream.time_base)
    return ((frame.pts * unit, frame) for frame in frames if frame.pts is not None)


def _decoded(
    container: InputContainer, stream: VideoStream, deadline: Deadline, *, strict: bool = False
) -> Iterator[VideoFrame]:
    """Every frame that decodes; a damaged packet costs its own frames and no others, or is an error."""
    for packet in chain(_demux(container, stream, deadline), [None]):  # None: what the decoder still holds back
        with suppress(*() if strict else (av.FFmpegError,)):
            yield from stream.codec_context.decode(packet)


def _with_following(frames: Iterable[tuple[float, VideoFrame]]) -> Iterator[tuple[float, Pair]]:
    """Frames, each with the one after it; the last with None."""
    for (time, frame), following in pairwise(chain(frames, [None])):
        yield time, (frame, following and following[1])


def _rising(frames: Iterable[tuple[float, VideoFrame]]) -> Iterator[tuple[float, VideoFrame]]:
    """Frames without those whose time is not above all before them."""
    last = -math.inf
    for time, frame in frames:
        if time > last:
            yield time, frame
            last = time


def _nearest(frames: Iterable[tuple[float, Pair]], moments: list[float]) -> Iterator[tuple[float, Pair]]:
    """Of frames with their times, which rise, the nearest to each moment, in order and each once."""
    pending = deque(moments)
    before: tuple[float, Pair] | None = None
    chosen = None
    for now in frames:
        while pending and pending[0] <= now[0]:
            moment = pending.popleft()
            nearest = before if before and moment - before[0] < now[0] - moment else now
            if nearest is not chosen:
                chosen = nearest
                yield chosen
        if not pending:
            return
        before = now
    if before is not chosen:
        yield before


def _converter(stream: VideoStream) -> Callable[[VideoFrame], np.ndarray]:
    """From frames to RGB: square pixels, reduced to `MAX_SIDE`, then turned and mirrored as the container asks."""
    reformatter = VideoReformatter()
    aspect = _pixel_aspect(stream)
    matrix = None

    def convert(frame: VideoFrame) -> np.ndarray:
        nonlocal matrix
        # Asked of one frame for all: PyAV keeps those whose side data are looked at until garbage is collected, 50 MB.
        matrix = matrix or _display_matrix(frame)
        # ISO 14496-12: a pixel at x, y is shown at ax + cy, bx + dy.
        a, b, c, d = matrix
        pixels = _to_rgb(_fetch(frame), reformatter, aspect)
        if abs(b) > abs(a):
            pixels, a, d = pixels.transpose(1, 0, 2), c, b
        return np.ascontiguousarray(pixels[:: -1 if d < 0 else 1, :: -1 if a < 0 else 1])

    return convert


def _fetch(frame: VideoFrame) -> VideoFrame:
    """A frame that a GPU decoded, as the CPU's decoder would have given it; another frame as it is.

    Raises:
        VideoError: it is interlaced, which its copy would not say.
    """
    if frame.format.name != "cuda":
        return frame
    if frame.interlaced_frame:
        raise VideoError("interlaced")
    fetched = frame.reformat(format="yuv420p")
    fetched.colorspace, fetched.color_range = frame.colorspace, frame.color_range  # the copy has neither
    return fetched


def _to_rgb(frame: VideoFrame, reformatter: VideoReformatter, aspect: float) -> np.ndarray:
    width, height = frame.width * max(aspect, 1), frame.height * max(1 / aspect, 1)
    scale = min(1.0, MAX_SIDE / max(width, height))
    size = [max(round(side * scale), 1) for side in (width, height)]
    # A frame may state a colour space that swscale does not know: it is taken for the commonest one, a tint at worst.
    for space in (None, Colorspace.ITU709):
        with suppress(av.FFmpegError):
            rgb = reformatter.reformat(frame, *size, "rgb24", space, space, interpolation=Interpolation.AREA)
            return rgb.to_ndarray()
    raise VideoError(f"its pixels ({frame.format.name}) cannot be converted")


def _pixel_aspect(stream: VideoStream) -> float:
    """Width by height of a pixel; 1 where nothing is said of it, or nothing that a camera or a disc has."""
    aspect = float(stream.sample_aspect_ratio or 1)
    return aspect if 1 / MAX_ASPECT <= aspect <= MAX_ASPECT else 1.0


def _display_matrix(frame: VideoFrame) -> tuple[float, float, float, float]:
    """The part a, b, c, d of a frame's display matrix that turns and mirrors."""
    try:
        data = frame.side_data.get("DISPLAYMATRIX")
    except ValueError:  # PyAV up to 18 does not know every kind of side data; this way it tells turns only, no mirrors
        turn = math.radians(frame.rotation)
        return math.cos(turn), -math.sin(turn), math.sin(turn), math.cos(turn)
    if data is None:
        return 1, 0, 0, 1
    a, b, _, c, d, *_ = np.frombuffer(data, np.int32).tolist()
    return a, b, c, d
