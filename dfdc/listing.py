"""Clip -> times of its frames, without decoding: what there is to choose from."""

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

# By so many places the order of showing may differ from that of decoding: codecs hold back 16 frames at most.
MAX_DELAY = 16
# The share of the time left that listing packets may take. It takes 3 % of decoding's; a file that goes on without a
# frame leaves the rest to those that it has.
LISTING_SHARE = 0.4
# Containers that state no duration; FFmpeg guesses one from the size or from the last bytes.
WITHOUT_DURATION = {"mpeg", "mpegts", "mpegvideo", "m4v", "h264", "hevc", "obu", "ivf", "gif", "apng"}
WITHOUT_DURATION |= {"jpeg_pipe", "png_pipe", "webp_pipe"}
# What NVIDIA's video decoder (NVDEC) is asked for: what phones and cameras write, and DFDC is.
GPU_CODEC, GPU_FORMATS = "h264", ("yuv420p", "yuvj420p")


@dataclass(frozen=True)
class Listing:
    """What the first pass finds of a video stream.

    Attributes:
        stream: its number in the file.
        times: when frames are shown, in seconds, sorted, each once.
        rate: frames a second, where packets state no usable times and frames have to be counted, so that all of them
            are decoded; None elsewhere.
        duration_s: see `Reading`.
        n_keys: how many packets are key frames.
        n_pixels: of a frame, as the stream claims.
        suits_gpu: whether the stream is what a GPU's decoder is asked for.
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
    """What is found of each video stream that holds packets, of the main one first.

    Raises:
        VideoError: none does.
        VideoTimeout: the deadline passed before the first packet.
    """
    rank, n_streams, n_found = 0, 1, 0
    while rank < n_streams:
        with file.hurried(LISTING_SHARE), file.container() as container:
            streams = video_streams(container)
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
        raise VideoError("its video stream holds no frame")


def _list(file: MediaFile, container: InputContainer, stream: VideoStream) -> Listing | None:
    """Go through a stream's packets; None where it has none."""
    stamps, order, n_keys = [], [], 0
    for packet in file.demux(container, stream):
        if not packet.is_discard:  # cut off by an edit list: decoded for others' sake, never shown
            stamps.append(packet.pts)
            order.append(packet.dts)
            n_keys += packet.is_keyframe
    if not stamps:
        return None
    kind = stream.codec_context.format  # None where nothing is known of it
    suits_gpu = stream.codec_context.name == GPU_CODEC and kind is not None and kind.name in GPU_FORMATS
    # What leaves a GPU has lost the place of its chroma, which scaling asks for.
    suits_gpu &= max(stream.width, stream.height) <= MAX_SIDE and stream.sample_aspect_ratio in (None, 0, 1)
    distinct = set(stamps)
    if None in distinct or len(distinct) <= len(stamps) / 2 or not _agree(stamps, order):
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
    """How long a clip says that its video is, at least what its frames take."""
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
    """How long frames take that are shown at some times, in seconds: the last as long as the others on average."""
    return (times[-1] - times[0]) * len(times) / max(len(times) - 1, 1)


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


def spread(times: list[float], n_frames: int) -> list[float]:
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
