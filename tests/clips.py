"""Write small clips with PyAV; every frame shows its own number."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from fractions import Fraction
from pathlib import Path

import av
import numpy as np

from dfdc.video import Frame

# A frame shows its number in binary as upright bars: red is high in a 1 and low in a 0, blue the other way round, so
# that swapped channels read as another number. The top is white, so that upside down shows.
BITS = 8
ONE, ZERO = (230, 140, 40), (30, 60, 150)


def draw(number: int, size: tuple[int, int]) -> np.ndarray:
    """Draw a number from 0 to 255 as an (H, W, 3) uint8 RGB picture, highest bit first; size is (width, height)."""
    width, height = size
    bits = [number >> (BITS - 1 - column * BITS // width) & 1 for column in range(width)]
    picture = np.tile(np.array([ONE if bit else ZERO for bit in bits], np.uint8), (height, 1, 1))
    picture[: height // 8] = 255
    return picture


def number_of(pixels: np.ndarray) -> int:
    """Read the number that a picture shows; lossy coding and scaling do not matter."""
    bars = np.array_split(pixels.astype(int), BITS, axis=1)
    return sum(int(bar[..., 0].mean() > bar[..., 2].mean()) << (BITS - 1 - i) for i, bar in enumerate(bars))


def write_clip(
    path: Path,
    *,
    codec: str = "libx264",
    size: tuple[int, int] = (64, 48),
    n_frames: int = 30,
    rate: int = 30,
    pixel_format: str = "yuv420p",
    container: str | None = None,
    options: dict[str, str] | None = None,
    container_options: dict[str, str] | None = None,
    times: Sequence[float] | None = None,
    metadata: dict[str, str] | None = None,
) -> Path:
    """Write a clip whose frame i shows the number i.

    Args:
        path: path of the file; its suffix chooses the container unless `container` is given.
        codec: FFmpeg's name of the encoder.
        size: width and height in pixels.
        n_frames: number of frames, 0 to 256.
        rate: frames per second.
        pixel_format: FFmpeg's name of the pixel format.
        container: FFmpeg's name of the muxer.
        options: options of the encoder.
        container_options: options of the muxer.
        times: times of the frames in seconds, in whole milliseconds; None to space them by the rate.
        metadata: metadata of the container.
    """
    with av.open(str(path), "w", format=container, options=container_options or {}) as output:
        output.metadata.update(metadata or {})
        stream = output.add_stream(codec, rate=rate, options=options or {})
        stream.width, stream.height, stream.pix_fmt = *size, pixel_format
        if times is not None:
            stream.codec_context.time_base = Fraction(1, 1000)
        output.start_encoding()
        for number in range(n_frames):
            frame = av.VideoFrame.from_ndarray(draw(number, size), "rgb24").reformat(format=pixel_format)
            if times is not None:
                frame.pts, frame.time_base = round(times[number] * 1000), Fraction(1, 1000)
            output.mux(stream.encode(frame))
        output.mux(stream.encode(None))
    if codec == "libsvtav1" and hasattr(os, "sched_setscheduler"):
        # SVT-AV1 gives this process a real-time priority, with which it would stop all others on its core.
        os.sched_setscheduler(0, os.SCHED_OTHER, os.sched_param(0))
    return path


def write_audio(path: Path, *, cover: bool = False) -> Path:
    """Write half a second of silence, optionally with a cover picture."""
    with av.open(str(path), "w") as output:
        sound = output.add_stream("aac", rate=16_000)
        if cover:
            picture = output.add_stream("png", rate=1)
            picture.width, picture.height, picture.pix_fmt = 64, 48, "rgb24"
            picture.disposition = av.stream.Disposition.attached_pic
            frame = av.VideoFrame.from_ndarray(draw(7, (64, 48)), "rgb24")
            output.mux(picture.encode(frame))
        for _ in range(8):
            frame = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), "fltp", "mono")
            frame.sample_rate = 16_000
            output.mux(sound.encode(frame))
        output.mux(sound.encode(None))
    return path


def write_streams(
    path: Path,
    streams: Sequence[tuple[int, int, int]],
    *,
    default: int | None = None,
    damaged: int | None = None,
    n_frames: int = 30,
) -> Path:
    """Write several video streams into one file.

    Args:
        path: path of the file; its suffix chooses the container.
        streams: width, height and number in the first frame of each stream.
        default: index of the only stream that is marked as default; None for no mark.
        damaged: index of the stream whose packets do not decode; None for no such stream.
        n_frames: number of frames per stream, at 30 per second.
    """
    with av.open(str(path), "w") as output:
        outputs = []
        for number, (width, height, _) in enumerate(streams):
            stream = output.add_stream("mpeg4", rate=30)
            stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
            stream.disposition = av.stream.Disposition.default if number == default else av.stream.Disposition(0)
            outputs.append(stream)
        output.start_encoding()
        for step in range(n_frames):
            for number, (stream, (*size, first)) in enumerate(zip(outputs, streams, strict=True)):
                picture = draw(first + step, tuple(size))
                for packet in stream.encode(av.VideoFrame.from_ndarray(picture, "rgb24").reformat(format="yuv420p")):
                    if number == damaged:
                        spoilt = av.Packet(b"\xff" * 40)
                        spoilt.pts, spoilt.dts, spoilt.time_base = packet.pts, packet.dts, packet.time_base
                        spoilt.stream, packet = stream, spoilt
                    output.mux(packet)
        for stream in outputs:
            output.mux(stream.encode(None))
    return path


def write_with_sound(path: Path, container_options: dict[str, str]) -> Path:
    """Write one second of numbered frames and of noise; the noise takes more bytes than the video."""
    with av.open(str(path), "w", container_options=container_options) as output:
        video, sound = (
            output.add_stream("mpeg4", rate=30, options={"g": "99"}),
            output.add_stream("pcm_s16le", rate=48_000),
        )
        video.width, video.height, video.pix_fmt = 64, 48, "yuv420p"
        chance = np.random.default_rng(0)
        for number in range(30):
            frame = av.VideoFrame.from_ndarray(draw(number, (64, 48)), "rgb24").reformat(format="yuv420p")
            output.mux(video.encode(frame))
            noise = chance.integers(-9000, 9000, (1, 1600), np.int16)
            samples = av.AudioFrame.from_ndarray(noise, "s16", "mono")
            samples.sample_rate = 48_000
            output.mux(sound.encode(samples))
        for stream in (video, sound):
            output.mux(stream.encode(None))
    return path


def turn_clip(path: Path, matrix: tuple[int, int, int, int]) -> Path:
    """Patch the display matrix (a, b, c, d) of an MP4's only track; (0, 1, -1, 0) is a quarter turn clockwise."""
    data = bytearray(path.read_bytes())
    start = data.index(b"tkhd") + 4
    # ISO 14496-12: version and flags, then 32 bytes more until the matrix, 12 of them wider ones in version 1.
    start += 4 + (48 if data[start] == 1 else 36)
    a, b, c, d = matrix
    fields = (a << 16, b << 16, 0, c << 16, d << 16, 0, 0, 0, 1 << 30)
    data[start : start + 36] = b"".join(field.to_bytes(4, "big", signed=True) for field in fields)
    path.write_bytes(data)
    return path


def rewrite_packets(source: Path, target: Path, rewrite: Callable[[bytes], bytes]) -> Path:
    """Copy a clip without encoding it again, and rewrite the bytes of each packet."""
    with av.open(str(source)) as clip, av.open(str(target), "w") as output:
        stream = output.add_stream_from_template(clip.streams.video[0])
        for old in clip.demux(video=0):
            if old.size:
                packet = av.Packet(rewrite(bytes(old)))
                packet.pts, packet.dts, packet.duration, packet.time_base = (
                    old.pts,
                    old.dts,
                    old.duration,
                    old.time_base,
                )
                packet.is_keyframe, packet.stream = old.is_keyframe, stream
                output.mux(packet)
    return target


def repeat_clip(source: Path, target: Path, times: int) -> Path:
    """Play a clip several times in a row, without encoding it again."""
    with av.open(str(source)) as clip, av.open(str(target), "w") as output:
        stream = output.add_stream_from_template(clip.streams.video[0])
        packets = [packet for packet in clip.demux(video=0) if packet.size]
        length = max(packet.pts + packet.duration for packet in packets)
        for turn in range(times):
            for old in packets:
                packet = av.Packet(bytes(old))
                packet.pts, packet.dts = old.pts + turn * length, old.dts + turn * length
                packet.duration, packet.time_base = old.duration, old.time_base
                packet.is_keyframe, packet.stream = old.is_keyframe, stream
                output.mux(packet)
    return target


def claim_size(path: Path, size: tuple[int, int]) -> Path:
    """Let the header of a raw H.264 clip claim a false size in pixels, in multiples of 16."""

    def fixed(value: int, n_bits: int) -> str:
        return format(value, f"0{n_bits}b")

    def golomb(value: int) -> str:
        return "0" * ((value + 1).bit_length() - 1) + format(value + 1, "b")

    # ITU-T H.264, 7.3.2.1.1: Baseline profile, level 5.1, then the fields up to the size, frames only, nothing cropped.
    bits = fixed(66, 8) + fixed(0, 8) + fixed(51, 8) + "".join(map(golomb, (0, 0, 0, 0, 1))) + "0"
    bits += golomb(size[0] // 16 - 1) + golomb(size[1] // 16 - 1) + "11" + "00" + "1"
    header = int(bits.ljust(-(-len(bits) // 8) * 8, "0"), 2).to_bytes(-(-len(bits) // 8), "big")
    assert b"\0\0" not in header, "would need escaping"
    units = path.read_bytes().split(b"\0\0\1")
    changed = [b"\x67" + header if unit[:1] and unit[0] & 31 == 7 else unit for unit in units]
    path.write_bytes(b"\0\0\1".join(changed))
    return path


def everything(path: Path) -> list[tuple[float, av.VideoFrame]]:
    """Decode every frame with PyAV alone; return each with its time from the first frame in seconds."""
    with av.open(str(path)) as clip:
        frames = list(clip.decode(video=0))
    return [(frame.time - frames[0].time, frame) for frame in frames]


def copy_packets(
    source: Path,
    target: Path,
    change: Callable[[av.Packet, int], None] = lambda packet, number: None,
    *,
    aspect: tuple[int, int] | None = None,
) -> Path:
    """Copy a clip without encoding it again, change each packet, and optionally set the pixel aspect ratio."""
    with av.open(str(source)) as clip, av.open(str(target), "w") as output:
        stream = output.add_stream_from_template(clip.streams.video[0])
        if aspect:
            stream.codec_context.sample_aspect_ratio = Fraction(*aspect)
        for number, packet in enumerate(clip.demux(video=0)):
            if packet.size:
                change(packet, number)
                packet.stream = stream
                output.mux(packet)
    return target


def numbers(frames: list[Frame]) -> list[int]:
    """The number that each frame shows."""
    return [number_of(frame.pixels) for frame in frames]
