"""A clip's sound -> the probability that its voice is synthetic, or nothing if no speech is heard."""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar

import numpy as np

from dfdc.audio import HOP, N_BANDS, QUIETEST_DB, RATE, log_mel, read_sound
from dfdc.files import Identity
from dfdc.research.optional import OptionalModels
from dfdc.runtime import run_logits

# Only the beginning of a longer sound is used, and at most this number of evenly spread windows.
MAX_HEARD_S = 60.0
MAX_WINDOWS = 12
# Sounds below the first level are silent. Windows are normalised to the second, so that models ignore the volume.
SILENT_DB, LOUDNESS_DB = -55.0, -25.0
# The loudness of speech varies with its syllables, two to eight times a second. Its standard deviation exceeds this in
# 19 of 20 windows of speech, and in three of four with white noise of half the loudness; white noise alone has .7.
SYLLABLES_HZ = (2.0, 8.0)
LEAST_SWELL_DB = 2.5
# If fewer windows of a sound do, there is no speech: a single fade looks like a syllable.
LEAST_SHARE = 0.25


class VoiceModels(OptionalModels):
    """An ensemble of voice models."""

    batch_sizes: ClassVar = {"cpu": 4, "cuda": 64}

    @property
    def high(self) -> float:
        """The upper bound of the ensemble's probability: the mean of the models' bounds."""
        return float(np.mean([spec.calibration.high for spec in self.specs]))

    def score_clip(self, path: Path, *, expected: Identity | None = None) -> float | None:
        """The calibrated logit that a clip's voice is synthetic, for a prior of one half.

        Args:
            path: path of the clip.
            expected: see `dfdc.audio.read_sound`.

        Returns:
            The logit; None if the clip has no audio or no speech, or if there is no model.

        Raises:
            VideoError: the file is unreadable.
            MachineError: the disk failed, memory was short, or it is not the expected file.
        """
        sound = read_sound(path, max_s=MAX_HEARD_S, expected=expected) if self.models else None
        return None if sound is None else self.score(sound)

    def score(self, samples: np.ndarray) -> float | None:
        """As `score_clip`, for a sound (N,) float mono at `dfdc.audio.RATE`.

        Raises:
            FloatingPointError: a model's output is not finite, because half precision may overflow.
        """
        logits = []
        for spec, network in zip(self.specs, self.models, strict=True):
            windows, _ = cut_windows(samples, spec.input_size)
            if not len(windows):
                return None
            logits.append(spec.calibration.logits(run_logits(network, windows, self.batch_size)).mean())
        return float(np.mean(logits)) if logits else None


def cut_windows(samples: np.ndarray, n_columns: int, *, n_windows: int = MAX_WINDOWS) -> tuple[np.ndarray, np.ndarray]:
    """The windows of a sound that contain speech.

    Args:
        samples: (N,) float mono at `RATE`; a sound shorter than a window is padded with silence.
        n_columns: columns of a window, each a hundredth of a second.
        n_windows: maximum number of evenly spread windows.

    Returns:
        (W, N_BANDS, n_columns) float32 decibels, W at most n_windows, and the seconds (W,) where they begin.
    """
    first, samples = _trim(samples)
    span = n_columns * HOP
    last = max(len(samples) - span, 0)
    starts = np.unique(np.linspace(0, last, min(n_windows, 1 + 2 * last // span)).astype(int))
    heard = [
        (window, (first + start) / RATE)
        for start in starts
        if is_speech(window := see_window(samples[start:], n_columns))
    ]
    if len(heard) < LEAST_SHARE * len(starts):
        heard = []
    windows = np.stack([w for w, _ in heard]) if heard else np.zeros((0, N_BANDS, n_columns), np.float32)
    return windows, np.array([start for _, start in heard])


def _trim(samples: np.ndarray) -> tuple[int, np.ndarray]:
    """The start of a sound and the sound without leading and trailing silence, whose edges resemble syllables."""
    whole = len(samples) // HOP * HOP
    loud = np.flatnonzero((samples[:whole].reshape(-1, HOP) ** 2).mean(1) > 10 ** (SILENT_DB / 10))
    if not len(loud):
        return 0, samples[:0]
    return int(loud[0]) * HOP, samples[loud[0] * HOP : (loud[-1] + 1) * HOP]


def see_window(samples: np.ndarray, n_columns: int) -> np.ndarray:
    """The spectrogram of a sound's first columns at normal loudness; training and the kernel both use it.

    Args:
        samples: (N,) float mono at `RATE`.
        n_columns: number of columns.

    Returns:
        (N_BANDS, n_columns) float32 decibels, at least `QUIETEST_DB`, which silence has everywhere.
    """
    part = samples[: n_columns * HOP].astype(np.float32)
    part = np.pad(part, (0, n_columns * HOP - len(part)))
    loudness = 10 * np.log10(max(float(np.mean(part**2)), 1e-12))
    if loudness < SILENT_DB:
        return np.full((N_BANDS, n_columns), QUIETEST_DB, np.float32)
    return log_mel(part * 10 ** ((LOUDNESS_DB - loudness) / 20))[:, :n_columns]


def is_speech(window: np.ndarray) -> bool:
    """Whether the loudness of a window (N_BANDS, columns) of `see_window` varies as that of speech does in some bands.

    After Scheirer and Slaney (ICASSP 1997), who tell speech from music by the modulation of its energy at 4 Hz. Steady
    noise and tones have none. Music with a beat has it, too, so models must learn that music is not synthetic speech.
    """
    parts = window.reshape(4, N_BANDS // 4, -1).mean(1)
    swings = np.fft.rfft(parts)
    frequencies = np.fft.rfftfreq(window.shape[1], HOP / RATE)
    swings[:, (frequencies < SYLLABLES_HZ[0]) | (frequencies > SYLLABLES_HZ[1])] = 0
    return bool(np.fft.irfft(swings, window.shape[1]).std(1).max() > LEAST_SWELL_DB)
