"""Decoded frame -> picture as a viewer sees it: RGB, square pixels, upright, SDR, deinterlaced."""

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

# Frames are reduced to this longest side during conversion, so an 8K clip takes no more memory than a 1080p one.
MAX_SIDE = 1920
# The stated pixel aspect ratio is believed if the resulting picture is at most MAX_SHAPE times as wide as high, or as
# high as wide. If the picture would be longer still, a pixel aspect ratio of up to MAX_ASPECT is believed.
MAX_SHAPE = 4.0
MAX_ASPECT = 2.0
# SMPTE ST 2084 (PQ), the transfer curve of HDR10, in nits; ITU-R BT.2408 puts reference white at 203 nits.
PQ_M1, PQ_M2, PQ_C1, PQ_C2, PQ_C3 = 2610 / 16384, 2523 / 32, 3424 / 4096, 2413 / 128, 2392 / 128
PQ_PEAK_NITS, WHITE_NITS = 10_000, 203
# From the primaries of ITU-R BT.2020 to those of BT.709, for linear light (ITU-R BT.2407).
TO_BT709 = np.array(
    [
        [1.660491, -0.587641, -0.072850],
        [-0.124550, 1.132900, -0.008349],
        [-0.018151, -0.100579, 1.118730],
    ],
    np.float32,
)
# ITU-R BT.1886: the gamma of a standard display.
DISPLAY_GAMMA = 2.4
# Light above this share of white is compressed, so that all highlights stay below white.
KNEE = 0.75
# Rows that are tone-mapped at a time, so that intermediate results fit into the processor's cache.
STRIP = 32


class PictureMaker:
    """Converts the frames of one stream to pictures.

    Attributes:
        tone_mapped: whether some frames were HDR10.
        deinterlaced: whether some frames were interlaced.
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
        """Convert a frame: square pixels, reduced to `MAX_SIDE`, then rotated and mirrored as the container states.

        Args:
            frame: decoded.
            before, after: its neighbours in time, if it is interlaced and they are at hand.

        Returns:
            (H, W, 3) uint8 RGB.

        Raises:
            VideoError: its pixels cannot be converted.
            MachineError: memory is short.
        """
        # Read from one frame only: PyAV keeps frames whose side data were read until garbage collection, up to 50 MB.
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
        # A frame may state a colour space that swscale does not know. It is then treated as the most common one,
        # BT.709, which causes a tint at worst.
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
    """The stated aspect ratio (width / height) of a pixel, or 1 if no camera and no disc would produce such a picture.

    Args:
        aspect: width / height of a pixel, as stated.
        shape: width / height of the picture, in pixels.
    """
    stretched = shape * aspect
    if 1 / MAX_ASPECT <= aspect <= MAX_ASPECT or 1 / MAX_SHAPE <= stretched <= MAX_SHAPE:
        return aspect
    return 1.0


def tone_map(pixels: np.ndarray, *, wide: bool = True) -> np.ndarray:
    """Tone-map an HDR10 picture to SDR.

    Light up to `KNEE` of white is unchanged, so that faces look as they do in an SDR recording.

    Args:
        pixels: (H, W, 3) uint16 RGB, full 16-bit range, on the curve of SMPTE ST 2084.
        wide: whether its primaries are those of BT.2020; otherwise they are those of BT.709.

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
    """Lookup table (4096,) float32: linear light as a share of white, by the upper 12 of the 16 bits of a value."""
    value = np.linspace(0, 1, 4096) ** (1 / PQ_M2)
    light = (np.maximum(value - PQ_C1, 0) / (PQ_C2 - PQ_C3 * value)) ** (1 / PQ_M1)
    return (light * PQ_PEAK_NITS / WHITE_NITS).astype(np.float32)


def _shades() -> np.ndarray:
    """Lookup table (4096,) uint8: display values by the square root of linear light."""
    return np.round(255 * np.linspace(0, 1, 4096) ** (2 / DISPLAY_GAMMA)).astype(np.uint8)


class _Deinterlacer:
    """FFmpeg's deinterlacer, applied to single frames between their neighbours."""

    def __init__(self) -> None:
        self._graph: Graph | None = None
        self._kind: tuple[int, int, str] | None = None

    def whole(self, frame: VideoFrame, *, before: VideoFrame | None, after: VideoFrame | None) -> VideoFrame:
        kind = frame.width, frame.height, frame.format.name
        try:
            if kind != self._kind:
                self._graph, self._kind = _graph(*kind), kind
                self._graph.push(frame)  # the filter returns nothing for the first frame
            # For every further frame, it returns the one before.
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
    """Copy a frame that a GPU decoded to the form that the CPU's decoder gives; return other frames unchanged.

    Raises:
        VideoError: the frame is interlaced, which its copy would not state.
    """
    if frame.format.name != "cuda":
        return frame
    if frame.interlaced_frame:
        raise VideoError("interlaced")
    fetched = frame.reformat(format="yuv420p")
    fetched.colorspace, fetched.color_range = frame.colorspace, frame.color_range  # not copied by reformat
    fetched.color_trc, fetched.color_primaries = frame.color_trc, frame.color_primaries
    return fetched


def _display_matrix(frame: VideoFrame) -> tuple[float, float, float, float]:
    """The elements a, b, c, d of a frame's display matrix, which rotate and mirror."""
    try:
        data = frame.side_data.get("DISPLAYMATRIX")
    except ValueError:  # PyAV up to 18 does not know every kind of side data; `rotation` states no mirroring
        turn = math.radians(frame.rotation)
        return math.cos(turn), -math.sin(turn), math.sin(turn), math.cos(turn)
    if data is None:
        return 1, 0, 0, 1
    a, b, _, c, d, *_ = np.frombuffer(data, np.int32).tolist()
    return a, b, c, d
