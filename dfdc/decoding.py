"""Listing of a clip's frames -> pictures of some of them: the only place that decodes."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from itertools import chain, takewhile
from typing import NamedTuple

import av
import numpy as np
from av.container import InputContainer
from av.video.frame import VideoFrame
from av.video.stream import VideoStream

from dfdc.container import DECODER_OPTIONS, MediaFile, blame_machine, require_memory
from dfdc.listing import Listing
from dfdc.pixels import PictureMaker


@dataclass(frozen=True)
class Frame:
    """One decoded frame.

    Attributes:
        time_s: presentation time in seconds from the clip's first frame.
        pixels: (H, W, 3) uint8 RGB, upright, its longest side at most `dfdc.pixels.MAX_SIDE`.
        neighbour: the pixels of the frame that was decoded right after it; None where it was not asked for, or there
            is none.
    """

    time_s: float
    pixels: np.ndarray
    neighbour: np.ndarray | None = None


class Window(NamedTuple):
    """A decoded frame and what its picture needs of the frames beside it."""

    frame: VideoFrame
    before: VideoFrame | None = None
    after: VideoFrame | None = None


@dataclass
class Seen:
    """What is seen of a stream while it is decoded.

    Attributes:
        times: of the frames that decoded, in seconds, rising.
        tone_mapped, deinterlaced: see `Reading`.
    """

    times: list[float] = field(default_factory=list)
    tone_mapped: bool = False
    deinterlaced: bool = False


def decode(
    file: MediaFile,
    listing: Listing,
    moments: list[float] | None,
    *,
    plan: str = "DEFAULT",
    n_pairs: int = 0,
    gpu: int | None = None,
    seen: Seen | None = None,
) -> Iterator[Frame]:
    """Decode by a plan (FFmpeg's skip_frame) and convert the frame nearest to each moment; None for every frame."""
    n_moments = len(moments or ())
    paired = {n_moments * (2 * i + 1) // (2 * n_pairs) for i in range(n_pairs)}
    seen = seen or Seen()
    with file.container(gpu=gpu) as container:
        stream = container.streams[listing.stream]
        stream.codec_context.options = DECODER_OPTIONS
        stream.codec_context.thread_count = 1
        stream.codec_context.skip_frame = plan
        maker = PictureMaker(stream)
        decoded = _decoded(file, container, stream, strict=gpu is not None)
        windows = _windows(_rising(_timed(decoded, listing, stream), seen.times), ahead=n_pairs > 0)
        chosen = windows if moments is None else nearest(windows, moments)
        number = -1
        for number, (time_s, window) in enumerate(chosen):
            neighbour = None
            if window.after is not None and number in paired:
                neighbour = maker.picture(window.after, before=window.frame)
            pixels = maker.picture(window.frame, before=window.before, after=window.after)
            seen.tone_mapped, seen.deinterlaced = maker.tone_mapped, maker.deinterlaced
            yield Frame(time_s - listing.times[0], pixels, neighbour)
        if number + 1 < n_moments:
            deque(windows, maxlen=0)  # to know which other frames decode


def _timed(frames: Iterable[VideoFrame], listing: Listing, stream: VideoStream) -> Iterator[tuple[float, VideoFrame]]:
    """Frames with the times in seconds that the listing knows them by."""
    if listing.rate is not None:
        return ((count / listing.rate, frame) for count, frame in enumerate(frames))
    unit = float(stream.time_base)
    return ((frame.pts * unit, frame) for frame in frames if frame.pts is not None)


def _decoded(
    file: MediaFile, container: InputContainer, stream: VideoStream, *, strict: bool = False
) -> Iterator[VideoFrame]:
    """Every frame that decodes before the deadline; a damaged packet costs its own frames only, or is an error."""
    packets = takewhile(lambda _: not file.deadline.expired(), file.demux(container, stream))
    for packet in chain(packets, [None]):  # None: what the decoder still holds back
        try:
            yield from stream.codec_context.decode(packet)
        except (av.FFmpegError, MemoryError) as error:
            if strict:
                raise
            blame_machine(error)
            require_memory(stream.width * stream.height)


def _windows(frames: Iterable[tuple[float, VideoFrame]], *, ahead: bool) -> Iterator[tuple[float, Window]]:
    """Frames, each with the next one where that is asked for, and with both beside it where it is interlaced.

    Elsewhere no frame is held for another: the decoder then has a buffer more to use again.
    """
    held: tuple[float, VideoFrame, VideoFrame | None] | None = None
    before = None
    for time_s, frame in frames:
        if held:
            yield held[0], Window(*held[1:], frame)
            held = None
        if ahead or frame.interlaced_frame:
            held = time_s, frame, before
        else:
            yield time_s, Window(frame)
        before = frame if frame.interlaced_frame else None
    if held:
        yield held[0], Window(*held[1:])


def _rising(frames: Iterable[tuple[float, VideoFrame]], times: list[float]) -> Iterator[tuple[float, VideoFrame]]:
    """Frames without those whose time is not above all before them; the times are entered as they come."""
    for time_s, frame in frames:
        if not times or time_s > times[-1]:
            times.append(time_s)
            yield time_s, frame


def nearest(frames: Iterable[tuple[float, Window]], moments: list[float]) -> Iterator[tuple[float, Window]]:
    """Of frames with their times, which rise, the nearest to each moment, in order and each once."""
    pending = deque(moments)
    before: tuple[float, Window] | None = None
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
