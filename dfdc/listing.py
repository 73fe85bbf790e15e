"""Clip -> times of its frames, without decoding."""

from __future__ import annotations

import re
from bisect import bisect
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise

import av
from av.container import InputContainer
from av.video.stream import VideoStream

from dfdc.container import MediaFile, video_streams
from dfdc.errors import VideoError, VideoTimeout
from dfdc.pixels import MAX_SIDE

# The presentation order may differ from the decoding order by this many places: codecs delay at most 16 frames.
MAX_DELAY = 16
# Share of the remaining time that listing packets may take. Listing takes 3 % of the time of decoding; if a file goes
# on without frames, the rest of the time is left for decoding those that it has.
LISTING_SHARE = 0.4
# Longest plausible clip in seconds, a year: a longer span of times means that one of them is damaged.
MAX_SPAN_S = 366 * 86_400
# Containers that state no duration; FFmpeg estimates one from the size or from the last bytes.
WITHOUT_DURATION = {"mpeg", "mpegts", "mpegvideo", "m4v", "h264", "hevc", "obu", "ivf", "gif", "apng"}
WITHOUT_DURATION |= {"jpeg_pipe", "png_pipe", "webp_pipe"}
# NVIDIA's video decoder (NVDEC) is used for this codec and these pixel formats only: phones and cameras write them, and
# DFDC uses them.
GPU_CODEC, GPU_FORMATS = "h264", ("yuv420p", "yuvj420p")


@dataclass(frozen=True)
class Listing:
    """The result of the first pass over a video stream.

    Attributes:
        stream: its index in the file.
        times: presentation times of the frames in seconds, sorted, without duplicates.
        rate: frames per second, if the packets state no usable times; frames are then counted, and all of them are
            decoded. None otherwise.
        duration_s: see `Reading`.
        n_keys: number of key frames.
        n_pixels: pixels per frame, as the stream declares.
        suits_gpu: whether a GPU may decode the stream.
        is_cut: see `Reading`.
    """

    stream: int
    times: list[float]
    rate: float | None
    duration_s: float
    n_keys: int
    n_pixels: int
    suits_gpu: bool
    is_cut: bool


def list_frames(file: MediaFile) -> Iterator[Listing]:
    """Yield the listing of each video stream that holds packets, the main one first.

    Raises:
        VideoError: no stream holds packets.
        VideoTimeout: the deadline passed before the first packet.
    """
    rank, n_streams, n_found = 0, 1, 0
    while rank < n_streams:
        with file.hurried(LISTING_SHARE), file.container() as container:
            try:
                streams = video_streams(container)
            except VideoError:
                file.check_index()
                raise
            n_streams = len(streams)
            listing = _list(file, container, streams[rank])
        if listing is not None:
            n_found += 1
            yield listing
        elif file.deadline.expired():
            break
        rank += 1
    if not n_found:
        if file.is_cut:
            raise VideoTimeout("out of time before the first frame")
        file.check_index()
        raise VideoError("its video stream holds no frame")


def _list(file: MediaFile, container: InputContainer, stream: VideoStream) -> Listing | None:
    """List a stream's packets; None if it has none."""
    stamps, order, n_keys = [], [], 0
    for packet in file.demux(container, stream):
        if not packet.is_discard:  # cut by an edit list: decoded because other frames refer to it, never shown
            stamps.append(packet.pts)
            order.append(packet.dts)
            n_keys += packet.is_keyframe
    if not stamps:
        return None
    kind = stream.codec_context.format  # None if it is unknown
    suits_gpu = stream.codec_context.name == GPU_CODEC and kind is not None and kind.name in GPU_FORMATS
    # Frames decoded by a GPU do not state their chroma location, which scaling needs.
    suits_gpu &= max(stream.width, stream.height) <= MAX_SIDE and stream.sample_aspect_ratio in (None, 0, 1)
    distinct = set(stamps)
    usable = None not in distinct and len(distinct) > len(stamps) / 2 and _agree(stamps, order)
    if not usable or (max(distinct) - min(distinct)) * stream.time_base > MAX_SPAN_S:
        rate = float(stream.average_rate or 25)
        times, duration_s = [number / rate for number in range(len(stamps))], len(stamps) / rate
    else:
        rate, unit = None, float(stream.time_base)
        times = sorted(stamp * unit for stamp in distinct)
        duration_s = _duration_s(container, stream, times)
    return Listing(
        stream=stream.index,
        times=times,
        rate=rate,
        duration_s=duration_s,
        n_keys=n_keys,
        n_pixels=stream.width * stream.height,
        suits_gpu=suits_gpu,
        is_cut=file.is_cut,
    )


def _duration_s(container: InputContainer, stream: VideoStream, times: list[float]) -> float:
    """The duration that a clip states for its video, and not less than the duration of its frames."""
    stated = []
    if set(container.format.name.split(",")).isdisjoint(WITHOUT_DURATION):
        if stream.duration:
            stated.append(float(stream.duration * stream.time_base))
        elif tag := re.fullmatch(r"(\d+):(\d+):(\d+\.?\d*)", stream.metadata.get("DURATION", "")):  # Matroska's
            stated.append(int(tag[1]) * 3600 + int(tag[2]) * 60 + float(tag[3]))
        if container.duration and not (stated and len(container.streams.video) > 1):
            stated.append(container.duration / av.time_base)
    return max(span_s(times), min(stated, default=0.0))


def span_s(times: list[float]) -> float:
    """The duration in seconds of frames shown at these times; the last is assumed to last as long as the average."""
    return (times[-1] - times[0]) * len(times) / max(len(times) - 1, 1)


def _agree(shown: list[int], decoded: list[int | None]) -> bool:
    """Whether the presentation times of packets are plausible: decoding times ascend, and both orders nearly agree.

    Joined parts restart the clock, and a damaged time can be anywhere; frames after either would never be chosen.

    Args:
        shown, decoded: presentation and decoding times, in decoding order; some decoding times may be missing.
    """
    if any(after < before for before, after in pairwise(dts for dts in decoded if dts is not None)):
        return False
    ranks = {number: rank for rank, number in enumerate(sorted(range(len(shown)), key=shown.__getitem__))}
    return all(abs(rank - number) <= MAX_DELAY for number, rank in ranks.items())


def spread(times: list[float], n_frames: int) -> list[float]:
    """The middles of n equal parts of a clip's time, or the times of all frames if there are no more than n.

    If the frames are so unevenly spaced that two parts would share one, the frames are divided by count instead.
    """
    n_times = len(times)
    if n_times <= n_frames:
        return times
    # The last frame is assumed to be shown as long as the others; a frame's time is taken as the middle of its display.
    frame_span = (times[-1] - times[0]) / (n_times - 1)
    middles = [times[0] + frame_span * (n_times * (i + 0.5) / n_frames - 0.5) for i in range(n_frames)]
    if len({_nearest_time(times, middle) for middle in middles}) == n_frames:
        return middles
    return [times[n_times * (2 * i + 1) // (2 * n_frames)] for i in range(n_frames)]


def _nearest_time(times: list[float], moment: float) -> float:
    after = bisect(times, moment)
    return min(times[max(after - 1, 0) : after + 1], key=lambda time: abs(time - moment))
