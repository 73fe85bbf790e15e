"""Listing of a clip's frames -> pictures of some of them: the only module that decodes video."""

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
        neighbour: pixels of the frame that was decoded right after this one; None if it was not requested or does not
            exist.
    """

    time_s: float
    pixels: np.ndarray
    neighbour: np.ndarray | None = None


class Window(NamedTuple):
    """A decoded frame, and the neighbouring frames that its picture needs."""

    frame: VideoFrame
    before: VideoFrame | None = None
    after: VideoFrame | None = None


@dataclass
class Seen:
    """Observations about a stream while it is decoded.

    Attributes:
        times: times of the frames that could be decoded, in seconds, ascending.
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
    """Decode a stream and convert the frame nearest to each moment.

    Args:
        file: the open clip.
        listing: of the stream to decode.
        moments: times in seconds on the stream's clock, ascending; None for every frame.
        plan: which frames the decoder skips, a value of FFmpeg's skip_frame.
        n_pairs: how many frames, evenly spread, come with their neighbour.
        gpu: number of the CUDA device that decodes; None for the CPU. On a GPU, a damaged packet is an error.
        seen: filled in while decoding; None if it is not needed.

    Yields:
        Different frames in order of time.

    Raises:
        VideoError: pixels cannot be converted, or a GPU decoded an interlaced frame.
        av.FFmpegError: a GPU failed to decode a packet.
        MachineError: a read failed, or memory is short.
    """
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
            deque(windows, maxlen=0)  # to find out which other frames can be decoded


def _timed(frames: Iterable[VideoFrame], listing: Listing, stream: VideoStream) -> Iterator[tuple[float, VideoFrame]]:
    """Frames with their times in seconds, on the clock of the listing."""
    if listing.rate is not None:
        return ((count / listing.rate, frame) for count, frame in enumerate(frames))
    unit = float(stream.time_base)
    return ((frame.pts * unit, frame) for frame in frames if frame.pts is not None)


def _decoded(
    file: MediaFile, container: InputContainer, stream: VideoStream, *, strict: bool = False
) -> Iterator[VideoFrame]:
    """Every frame that decodes before the deadline; a damaged packet loses only its own frames, or raises if strict."""
    packets = takewhile(lambda _: not file.deadline.expired(), file.demux(container, stream))
    for packet in chain(packets, [None]):  # None: flush the frames that the decoder still holds
        try:
            yield from stream.codec_context.decode(packet)
        except (av.FFmpegError, MemoryError) as error:
            if strict:
                raise
            blame_machine(error)
            require_memory(stream.width * stream.height)


def _windows(frames: Iterable[tuple[float, VideoFrame]], *, ahead: bool) -> Iterator[tuple[float, Window]]:
    """Frames, each with its next one if requested, and with both neighbours if it is interlaced.

    In all other cases no frame is kept for the sake of another, so the decoder can reuse one more buffer.
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
    """Drop frames whose time is not later than all times before, and record the times of the others in `times`."""
    for time_s, frame in frames:
        if not times or time_s > times[-1]:
            times.append(time_s)
            yield time_s, frame


def nearest(frames: Iterable[tuple[float, Window]], moments: list[float]) -> Iterator[tuple[float, Window]]:
    """The frames nearest to each moment, in order and each once; the times of the frames are ascending."""
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
