"""Augmentation of sounds, applied alike to real and synthesised ones: noise, a narrow band, and a codec."""

from __future__ import annotations

import io
from dataclasses import dataclass

import av
import numpy as np
from scipy.signal import butter, sosfilt

from dfdc.audio import RATE

# Codec -> container, sampling rate, and the range of bit rates in bits a second.
CODECS = {
    "aac": ("mp4", 44_100, (24_000, 128_000)),
    "libopus": ("ogg", 48_000, (10_000, 64_000)),
    "libmp3lame": ("mp3", 44_100, (32_000, 128_000)),
}


@dataclass(frozen=True)
class AudioAugmentation:
    """One augmentation.

    Attributes:
        noise_db: signal-to-noise ratio in decibels; None for no noise.
        colour: of the noise, whose power falls with frequency to this power: 0 is white, 2 is brown.
        top_hz: cut-off frequency of a low-pass filter; None for no filter.
        codec: one of `CODECS`; None for none.
        bit_rate: of the codec in bits a second.
        seed: of the noise.
    """

    noise_db: float | None = None
    colour: float = 0.0
    top_hz: float | None = None
    codec: str | None = None
    bit_rate: int = 0
    seed: int = 0

    @classmethod
    def draw(cls, generator: np.random.Generator) -> AudioAugmentation:
        """Draw a random augmentation."""
        codec = str(generator.choice(list(CODECS))) if generator.random() < 0.4 else None
        return cls(
            noise_db=float(generator.uniform(5, 45)) if generator.random() < 0.7 else None,
            colour=float(generator.uniform(0, 2)),
            top_hz=float(generator.uniform(3000, 7500)) if generator.random() < 0.4 else None,
            codec=codec,
            bit_rate=int(generator.uniform(*CODECS[codec][2])) if codec else 0,
            seed=int(generator.integers(2**31)),
        )

    def apply(self, samples: np.ndarray) -> np.ndarray:
        """Augment a sound (N,) float32 mono at `RATE`; its length is kept except for a codec's delay."""
        if self.noise_db is not None:
            level = np.sqrt(np.mean(samples**2)) * 10 ** (-self.noise_db / 20)
            samples = samples + level * make_noise(len(samples), self.colour, np.random.default_rng(self.seed))
        if self.top_hz is not None:
            samples = sosfilt(butter(6, self.top_hz, fs=RATE, output="sos"), samples)
        samples = np.clip(samples, -1, 1).astype(np.float32)
        return samples if self.codec is None else code(samples, self.codec, self.bit_rate)


def make_noise(length: int, colour: float, generator: np.random.Generator) -> np.ndarray:
    """Noise (length,) with a root mean square of 1, whose power falls with frequency to the power of `colour`."""
    spectrum = np.fft.rfft(generator.standard_normal(length))
    spectrum /= np.maximum(np.arange(len(spectrum)), 1) ** (colour / 2)
    noise = np.fft.irfft(spectrum, length)
    return noise / max(np.sqrt(np.mean(noise**2)), 1e-9)


def code(samples: np.ndarray, codec: str, bit_rate: int) -> np.ndarray:
    """A sound (N,) float32 mono at `RATE` after encoding and decoding."""
    container, rate, _ = CODECS[codec]
    file = io.BytesIO()
    with av.open(file, "w", format=container) as output:
        stream = output.add_stream(codec, rate=rate, layout="mono", bit_rate=bit_rate)
        frame = av.AudioFrame.from_ndarray(samples[None].astype(np.float32), format="flt", layout="mono")
        frame.sample_rate = RATE
        resampler = av.AudioResampler(format=stream.codec_context.format, layout="mono", rate=rate)
        fifo = av.AudioFifo()
        for part in (*resampler.resample(frame), *resampler.resample(None)):
            part.pts = None
            fifo.write(part)
        size = stream.codec_context.frame_size or 1024
        while part := fifo.read(size, partial=True):
            output.mux(stream.encode(part))
        output.mux(stream.encode(None))
    file.seek(0)
    with av.open(file) as source:
        resampler = av.AudioResampler(format="flt", layout="mono", rate=RATE)
        frames = [part for frame in source.decode(audio=0) for part in resampler.resample(frame)]
        parts = [part.to_ndarray()[0] for part in (*frames, *resampler.resample(None))]
    return np.concatenate([np.zeros(0, np.float32), *parts])
