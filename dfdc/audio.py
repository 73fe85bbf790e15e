"""Media file -> mono waveform -> log-mel spectrogram: the only module that reads sound."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from functools import cache
from itertools import chain
from pathlib import Path

import av
import numpy as np
from av.audio.resampler import AudioResampler
from av.audio.stream import AudioStream
from av.container import InputContainer

from dfdc.container import MediaFile, blame_machine
from dfdc.files import Identity

# Speech has little energy above 8 kHz. All sound is resampled to one rate, so that the rate does not reveal the codec.
RATE = 16_000
# Sound after this time is not read; ten minutes take 38 MB.
MAX_SOUND_S = 600.0
# Fewer samples than this, a fiftieth of a second, are treated as no sound.
MIN_SAMPLES = RATE // 50
# Spectrogram: windows of 25 ms every 10 ms, 64 bands from 40 Hz to 7.6 kHz.
WINDOW, HOP = RATE // 40, RATE // 100
N_BANDS = 64
BAND_EDGES_HZ = (40.0, 7600.0)
# Below anything audible in a clip; it bounds the logarithm.
QUIETEST_DB = -80.0


def read_sound(path: Path, *, max_s: float = MAX_SOUND_S, expected: Identity | None = None) -> np.ndarray | None:
    """Read the first sound track of a clip.

    Args:
        path: a media file.
        max_s: maximum duration to read, in seconds.
        expected: identity of the file whose frames were read; None for any file.

    Returns:
        (N,) float32 mono at `RATE`, full scale is 1: the mean of the channels, without damaged parts. None if the file
        has no sound track, or nothing in it decodes.

    Raises:
        VideoError: the file is empty, unreadable or not of a known kind.
        MachineError: the disk failed, memory was short, or it is not the expected file.
    """
    with MediaFile(path, expected=expected) as file, file.container() as container:
        streams = [stream for stream in container.streams.audio if stream.codec_context is not None]
        if not streams:
            return None
        parts, n_samples = [], 0
        for part in _decoded(file, container, streams[0]):
            parts.append(part)
            n_samples += len(part)
            if n_samples >= max_s * RATE:
                break
    samples = np.concatenate([np.zeros(0, np.float32), *parts])[: round(max_s * RATE)]
    return np.nan_to_num(samples, posinf=0, neginf=0) if len(samples) >= MIN_SAMPLES else None


def _decoded(file: MediaFile, container: InputContainer, stream: AudioStream) -> Iterator[np.ndarray]:
    """Mono samples (N,) float32 in order; a damaged packet loses only its own samples."""
    stream.codec_context.thread_count = 1
    resampler = AudioResampler(format="flt", layout="mono", rate=RATE)
    for packet in chain(file.demux(container, stream), [None]):  # None: flush the samples that the decoder still holds
        try:
            for frame in stream.codec_context.decode(packet):
                frame.pts = None  # gaps and jumps of the clock do not count as sound
                yield from (part.to_ndarray()[0] for part in resampler.resample(frame))
        except (av.FFmpegError, MemoryError, ValueError) as error:  # ValueError: the format changes within a track
            blame_machine(error)
    with suppress(av.FFmpegError, ValueError):
        yield from (part.to_ndarray()[0] for part in resampler.resample(None))


def log_mel(samples: np.ndarray) -> np.ndarray:
    """Compute the log-mel spectrogram of a sound.

    Args:
        samples: (N,) float mono at `RATE`.

    Returns:
        (N_BANDS, T) float32 decibels relative to full scale, at least `QUIETEST_DB`; one column for each hundredth of a
        second, including both ends.

    Raises:
        ValueError: the samples are not one-dimensional.
    """
    if samples.ndim != 1:
        raise ValueError(f"samples {samples.shape}; allowed: (N,)")
    power = mel_filters() @ np.abs(_transform(samples)) ** 2
    loudness = 10 * np.log10(np.maximum(power, np.finfo(np.float32).tiny))
    return np.maximum(loudness, QUIETEST_DB).astype(np.float32)


def _transform(samples: np.ndarray) -> np.ndarray:
    """The short-time Fourier transform (257, T) of samples (N,), scaled so that a sine's peak is half its amplitude.

    It equals scipy.signal.stft with its defaults: half a window of zeros at both ends, and as many more as fill the
    last window.
    """
    padded = np.pad(samples, (WINDOW // 2, WINDOW // 2 + max(WINDOW - len(samples), 0)))
    padded = np.pad(padded, (0, -(len(padded) - WINDOW) % HOP))
    hann = (0.5 - 0.5 * np.cos(2 * np.pi * np.arange(WINDOW) / WINDOW)).astype(np.float32)
    windows = np.lib.stride_tricks.sliding_window_view(padded, WINDOW)[::HOP]
    return np.fft.rfft(windows * (hann / hann.sum()), 512).T


@cache
def mel_filters() -> np.ndarray:
    """Triangular mel filters (N_BANDS, 257) float32 over a 512-point spectrum, evenly spaced in mel.

    The mel scale follows O'Shaughnessy (Speech Communication, 1987): 2595 log10(1 + f / 700).
    """
    low, high = (2595 * np.log10(1 + hz / 700) for hz in BAND_EDGES_HZ)
    corners = 700 * (10 ** (np.linspace(low, high, N_BANDS + 2) / 2595) - 1)
    hz = np.linspace(0, RATE / 2, 257)
    rising = (hz - corners[:-2, None]) / np.diff(corners)[:-1, None]
    falling = (corners[2:, None] - hz) / np.diff(corners)[1:, None]
    return np.clip(np.minimum(rising, falling), 0, None).astype(np.float32)
