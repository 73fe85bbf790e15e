"""Two sounds -> when they are the same recording, encoded twice, and when they are not."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.signal import correlate, correlation_lags

from dfdc.audio import RATE

# Sound is compared in windows of half a second, one every quarter of a second.
WINDOW_S, STEP_S = 0.5, 0.25
# Codecs and resampling shift a sound by up to this much between windows, so each window is aligned separately.
SLACK_S = 0.008
# Windows this far below the loud ones are pauses, which contain the codecs' own noise only.
PAUSE_DB = 25.0
# A sound whose loudest window is below this is silence.
SILENT_DB = -60.0
# Longer lags are not searched.
MAX_LAG_S = 5.0


@dataclass(frozen=True)
class SoundComparison:
    """How two sounds differ over time.

    Attributes:
        lag_s: the second sound has at t + lag_s what the first has at t.
        times: (W,) float64, the middles of the windows in seconds of the first sound.
        likeness: (W,) float64, 0 to 1: the correlation of the waveforms there, 1 for the same recording whatever its
            volume; NaN where both pause.
    """

    lag_s: float
    times: np.ndarray
    likeness: np.ndarray

    @property
    def heard(self) -> np.ndarray:
        """The likeness of the windows that are not pauses, (V,)."""
        return self.likeness[~np.isnan(self.likeness)]


def compare_sounds(first: np.ndarray, second: np.ndarray) -> SoundComparison:
    """Align two sounds and correlate them window by window.

    A codec, a telephone filter or a change of volume preserves the waveform; another voice, a vocoder or an edit does
    not.

    Args:
        first, second: (N,) and (M,) float mono at `RATE`.
    """
    lag = find_lag(first, second)
    window, step, slack = round(WINDOW_S * RATE), round(STEP_S * RATE), round(SLACK_S * RATE)
    start, stop = max(0, -lag), min(len(first), len(second) - lag)
    starts = np.arange(start, max(stop - window, start) + 1, step)
    padded = np.pad(second, slack + window)
    levels, likeness = [], []
    for begin in starts:
        a = first[begin : begin + window].astype(float)
        b = padded[begin + lag + window : begin + lag + window + len(a) + 2 * slack].astype(float)
        levels.append([_decibels(a), _decibels(b)])
        likeness.append(_best_correlation(a, b))
    levels, likeness = np.array(levels).reshape(-1, 2), np.array(likeness)
    loud = np.percentile(levels, 95, axis=0) if len(levels) else np.full(2, -np.inf)
    pauses = (levels < np.maximum(loud - PAUSE_DB, SILENT_DB)).all(1)
    return SoundComparison(lag / RATE, (starts + window / 2) / RATE, np.where(pauses, np.nan, likeness))


def find_lag(first: np.ndarray, second: np.ndarray) -> int:
    """The shift in samples, second[i + lag] ~ first[i], at which two sounds (N,) and (M,) correlate best.

    It is 0 unless another shift is clearly better: two voices with the same text fit moderately at many shifts.
    """
    # Differences between samples: without them the bass, which hardly changes over a shift, would dominate.
    a, b = np.diff(first.astype(float)), np.diff(second.astype(float))
    products = correlate(b, a, method="fft")
    lags = correlation_lags(len(b), len(a))
    near = np.abs(lags) <= MAX_LAG_S * RATE
    products, lags = products[near], lags[near]
    norm = np.sqrt((a @ a) * (b @ b))
    best = int(np.argmax(products))
    if norm <= 0 or products[best] < 0.1 * norm:
        return 0
    return int(lags[best])


def _best_correlation(a: np.ndarray, b: np.ndarray) -> float:
    """The greatest correlation, 0 to 1, of a (N,) with N successive samples of b (N + 2 slack,)."""
    a = a - a.mean()
    products = correlate(b, a, mode="valid", method="fft")
    sums = np.concatenate([[0], np.cumsum(b)])
    squares = np.concatenate([[0], np.cumsum(b * b)])
    n = len(a)
    energies = squares[n:] - squares[:-n] - (sums[n:] - sums[:-n]) ** 2 / n
    norm = np.sqrt(np.maximum(energies, 0) * (a @ a))
    values = np.divide(products, norm, out=np.zeros_like(products), where=norm > 1e-9)
    return float(np.clip(values.max(initial=0), 0, 1))


def is_silent(sound: np.ndarray) -> bool:
    """Whether no half second of a sound (N,) is louder than `SILENT_DB`."""
    window = round(WINDOW_S * RATE)
    parts = np.array_split(sound, max(len(sound) // window, 1))
    return max(_decibels(part.astype(float)) for part in parts) < SILENT_DB


def _decibels(samples: np.ndarray) -> float:
    """Root mean square in decibels of full scale."""
    return 10 * float(np.log10(max(np.mean(samples**2), 1e-12)))
