"""Decoded frame -> picture as a viewer sees it: RGB, square pixels, upright, in standard range, without combs."""

from __future__ import annotations

import math
from fractions import Fraction

import av
import cv2
import numpy as np
from av.filter import Graph
from av.video.frame import VideoFrame
from av.video.reformatter import ColorPrimaries, Colorspace, ColorTrc, Interpolation, VideoReformatter
from av.video.stream import VideoStream

from dfdc.container import blame_machine
from dfdc.errors import VideoError

# Frames are reduced to this longest side while they are converted: an 8K clip costs no more memory than a 1080p one.
MAX_SIDE = 1920
# A picture is at most so many times as wide as high, or high as wide, by what is said of its pixels; where the picture
# would be longer still, its pixels are believed up to `MAX_ASPECT` only.
MAX_SHAPE = 4.0
MAX_ASPECT = 2.0
# SMPTE ST 2084, the curve of HDR10, in nits; ITU-R BT.2408 shows white at 203 nits.
PQ_M1, PQ_M2, PQ_C1, PQ_C2, PQ_C3 = 2610 / 16384, 2523 / 32, 3424 / 4096, 2413 / 128, 2392 / 128
PQ_PEAK_NITS, WHITE_NITS = 10_000, 203
# From ITU-R BT.2020's primaries to BT.709's, for light (ITU-R BT.2407).
TO_BT709 = np.array(
    [
        [1.660491, -0.587641, -0.072850],
        [-0.124550, 1.132900, -0.008349],
        [-0.018151, -0.100579, 1.118730],
    ],
    np.float32,
)
# ITU-R BT.1886: how bright a standard display shows a value.
DISPLAY_GAMMA = 2.4
# Light above this share of white is compressed, so that highlights of any brightness stay below white.
KNEE = 0.75
# Rows that are tone-mapped at a time: what is in between fits the processor's cache.
STRIP = 32


class PictureMaker:
    """Makes pictures of one stream's frames.

    Attributes:
        tone_mapped: whether some came in HDR10's range.
        deinterlaced: whether some were interlaced.
    """

    def __init__(self, stream: VideoStream) -> None:
        self.tone_mapped = self.deinterlaced = False
        self._sar = float(stream.sample_aspect_ratio or 1)
        self._reformatter = VideoReformatter()
        self._matrix: tuple[float, float, float, float] | None = None
        self._weaver: _Deinterlacer | None = None

    def picture(
        self, frame: VideoFrame, *, before: VideoFrame | None = None, after: VideoFrame | None = None
    ) -> np.ndarray:
        """Convert a frame: square pixels, reduced to `MAX_SIDE`, then turned and mirrored as the container asks.

        Args:
            frame: decoded.
            before, after: its neighbours in time, where it is interlaced and they are at hand.

        Returns:
            (H, W, 3) uint8 RGB.

        Raises:
            VideoError: its pixels cannot be converted.
            MachineError: memory is short.
        """
        # Asked of one frame for all: PyAV keeps those whose side data are looked at until garbage is collected, 50 MB.
        self._matrix = self._matrix or _display_matrix(frame)
        frame = _fetch(frame)
        if frame.interlaced_frame:
            self.deinterlaced = True
            self._weaver = self._weaver or _Deinterlacer()
            frame = self._weaver.whole(frame, before=before, after=after)
        # ISO 14496-12: a pixel at x, y is shown at ax + cy, bx + dy.
        a, b, c, d = self._matrix
        pixels = self._to_rgb(frame)
        if abs(b) > abs(a):
            pixels, a, d = pixels.transpose(1, 0, 2), c, b
        return np.ascontiguousarray(pixels[:: -1 if d < 0 else 1, :: -1 if a < 0 else 1])

    def _to_rgb(self, frame: VideoFrame) -> np.ndarray:
        aspect = believable_aspect(self._sar, frame.width / frame.height)
        width, height = frame.width * max(aspect, 1), frame.height * max(1 / aspect, 1)
        scale = min(1.0, MAX_SIDE / max(width, height))
        size = [max(round(side * scale), 1) for side in (width, height)]
        is_pq = frame.color_trc == ColorTrc.SMPTE2084
        # A frame may state a colour space that swscale does not know: it is taken for the commonest one, a tint at
        # worst.
        for space in (None, Colorspace.ITU709):
            try:
                rgb = self._reformatter.reformat(
                    frame,
                    *size,
                    "rgb48le" if is_pq else "rgb24",
                    space,
                    space,
                    interpolation=Interpolation.AREA,
                    threads=1,
                )
                pixels = rgb.to_ndarray()
            except (av.FFmpegError, MemoryError) as error:
                blame_machine(error)
                continue
            if is_pq:
                self.tone_mapped = True
                pixels = tone_map(pixels, wide=frame.color_primaries != ColorPrimaries.BT709)
            return pixels
        raise VideoError(f"its pixels ({frame.format.name}) cannot be converted")


def believable_aspect(aspect: float, shape: float) -> float:
    """The width by height of a pixel that a stream states, or 1 where no camera and no disc would make such a picture.

    Args:
        aspect: of a pixel, as stated.
        shape: width by height of the picture in pixels.
    """
    stretched = shape * aspect
    if 1 / MAX_ASPECT <= aspect <= MAX_ASPECT or 1 / MAX_SHAPE <= stretched <= MAX_SHAPE:
        return aspect
    return 1.0


def tone_map(pixels: np.ndarray, *, wide: bool = True) -> np.ndarray:
    """Bring a picture from HDR10's range to a standard display's.

    Up to `KNEE` of white light stays what it is, so that faces look as they do in a standard recording.

    Args:
        pixels: (H, W, 3) uint16 RGB of 16 bits on the curve of SMPTE ST 2084.
        wide: whether its primaries are those of BT.2020; else those of BT.709.

    Returns:
        (H, W, 3) uint8 RGB.
    """
    light_of, shade_of = _pq_light(), _shades()
    result = np.empty(pixels.shape, np.uint8)
    for top in range(0, len(pixels), STRIP):
        light = light_of[pixels[top : top + STRIP] >> 4]
        if wide:
            light = cv2.transform(light, TO_BT709)
        peak = np.maximum(np.maximum(light[..., 0], light[..., 1]), light[..., 2])
        over = np.maximum(peak - KNEE, 0) / (1 - KNEE)
        gain = np.where(over > 0, (KNEE + (1 - KNEE) * over / (1 + over)) / np.maximum(peak, KNEE), 1)
        np.clip(light * gain[..., None], 0, 1, out=light)
        result[top : top + STRIP] = shade_of[(np.sqrt(light) * (len(shade_of) - 1) + 0.5).astype(np.uint16)]
    return result


def _pq_light() -> np.ndarray:
    """Light as a share of white, (4096,) float32, by the upper 12 of 16 bits of a value."""
    value = np.linspace(0, 1, 4096) ** (1 / PQ_M2)
    light = (np.maximum(value - PQ_C1, 0) / (PQ_C2 - PQ_C3 * value)) ** (1 / PQ_M1)
    return (light * PQ_PEAK_NITS / WHITE_NITS).astype(np.float32)


def _shades() -> np.ndarray:
    """Values (4096,) uint8 by the square root of light."""
    return np.round(255 * np.linspace(0, 1, 4096) ** (2 / DISPLAY_GAMMA)).astype(np.uint8)


class _Deinterlacer:
    """FFmpeg's deinterlacer for single frames between their neighbours."""

    def __init__(self) -> None:
        self._graph: Graph | None = None
        self._kind: tuple[int, int, str] | None = None

    def whole(self, frame: VideoFrame, *, before: VideoFrame | None, after: VideoFrame | None) -> VideoFrame:
        kind = frame.width, frame.height, frame.format.name
        try:
            if kind != self._kind:
                self._graph, self._kind = _graph(*kind), kind
                self._graph.push(frame)  # the first frame only fills the filter
            # Every further frame brings out the one before it.
            result = frame
            for other in (before, frame, after):
                fits = other is not None and (other.width, other.height, other.format.name) == kind
                self._graph.push(other if fits else frame)
                result = self._graph.pull()
        except (av.FFmpegError, MemoryError) as error:
            blame_machine(error)
            raise VideoError(f"its interlaced pixels ({frame.format.name}) cannot be converted") from error
        return result


def _graph(width: int, height: int, pixel_format: str) -> Graph:
    graph = Graph()
    graph.threads = 1
    source = graph.add_buffer(width=width, height=height, format=pixel_format, time_base=Fraction(1, 1000))
    graph.link_nodes(source, graph.add("bwdif", "mode=send_frame:deint=all"), graph.add("buffersink")).configure()
    return graph


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
    fetched.colorspace, fetched.color_range = frame.colorspace, frame.color_range  # the copy has none of these
    fetched.color_trc, fetched.color_primaries = frame.color_trc, frame.color_primaries
    return fetched


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
