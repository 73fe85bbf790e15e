"""Simulated pairs of clips: a moving pattern with sound, and a changed version of it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import av
import numpy as np

RATE = 25
SIDE = 128
# Where `paint` changes the picture: x, y of the corner and the side, in pixels.
SPOT = (32, 48, 24)

Change = Callable[[int, np.ndarray], np.ndarray]


def draw_scene(index: int, *, seed: int = 0) -> np.ndarray:
    """A frame (SIDE, SIDE, 3) uint8 RGB of coarse random patches, half of which move like a person."""
    generator = np.random.default_rng(seed)
    ground, figure = generator.integers(40, 216, (2, 16, 16, 3)).astype(np.uint8).repeat(8, 1).repeat(8, 2)
    path = np.cumsum(generator.normal(0, 2.5, (400, 2)), 0)
    shift = path[index].round().astype(int) + 200 * 128
    moved = np.roll(figure, tuple(shift), (0, 1))
    picture = ground.copy()
    picture[16:112, 24:104] = moved[16:112, 24:104]
    return picture


def paint(index: int, picture: np.ndarray) -> np.ndarray:
    """The picture with a spot that is brighter by 50 levels."""
    x, y, side = SPOT
    picture = picture.copy()
    picture[y : y + side, x : x + side] = np.minimum(picture[y : y + side, x : x + side].astype(int) + 50, 255)
    return picture


def make_speech(seconds: float, *, seed: int = 0, rate: int = 16_000) -> np.ndarray:
    """Something like a voice (N,) float32: harmonics of a wandering pitch, in syllables."""
    generator = np.random.default_rng(seed)
    times = np.arange(round(seconds * rate)) / rate
    knots = np.arange(0, seconds + 1, 0.2)
    wander = np.interp(times, knots, generator.uniform(90, 220, len(knots)))
    phase = 2 * np.pi * np.cumsum(wander) / rate
    strengths = generator.uniform(0.2, 1, 12) / np.arange(1, 13)
    voice = sum(strength * np.sin((k + 1) * phase) for k, strength in enumerate(strengths))
    syllables = np.clip(np.sin(2 * np.pi * 2.5 * times + generator.uniform(0, 6)) + 0.4, 0.02, None)
    return (0.12 * voice * syllables).astype(np.float32)


def write_pair_clip(
    path: Path,
    *,
    n_frames: int = 40,
    first: int = 0,
    seed: int = 0,
    change: Change | None = None,
    crf: int = 18,
    size: tuple[int, int] = (SIDE, SIDE),
    sound: np.ndarray | None = None,
    sound_codec: str = "aac",
    bit_rate: int = 64_000,
) -> Path:
    """Write a clip of a scene.

    Args:
        path: path of the file.
        n_frames: number of frames.
        first: first frame of the scene.
        seed: seed of the scene.
        change: function that changes each picture.
        crf: constant rate factor of H.264; lower is better.
        size: width and height; the middle of the scene is cut out.
        sound: (N,) float32 at 16 kHz; None for no audio track.
        sound_codec, bit_rate: codec and bit rate of the sound.
    """
    left, top = (SIDE - size[0]) // 2, (SIDE - size[1]) // 2
    with av.open(str(path), "w") as container:
        video = container.add_stream("libx264", rate=RATE, options={"crf": str(crf), "preset": "ultrafast"})
        video.width, video.height, video.pix_fmt = *size, "yuv420p"
        audio = None
        if sound is not None:
            audio = container.add_stream(sound_codec, rate=16_000)
            audio.bit_rate = bit_rate
            audio.codec_context.layout = "mono"
        for index in range(first, first + n_frames):
            picture = draw_scene(index, seed=seed)
            picture = change(index, picture) if change else picture
            picture = np.ascontiguousarray(picture[top : top + size[1], left : left + size[0]])
            container.mux(video.encode(av.VideoFrame.from_ndarray(picture, "rgb24")))
        container.mux(video.encode(None))
        if audio is not None:
            _write_sound(container, audio, sound)
    return path


def _write_sound(container: av.container.OutputContainer, stream: av.AudioStream, sound: np.ndarray) -> None:
    context = stream.codec_context
    resampler = av.AudioResampler(context.format, "mono", 16_000, frame_size=context.frame_size or 1024)
    frame = av.AudioFrame.from_ndarray(sound[None], "flt", "mono")
    frame.sample_rate = 16_000
    for part in [*resampler.resample(frame), *resampler.resample(None)]:
        container.mux(stream.encode(part))
    container.mux(stream.encode(None))
