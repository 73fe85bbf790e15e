"""Real speech -> the same words from a vocoder, the last stage of speech synthesis and voice conversion.

The vocoders are implemented here because existing libraries are not suitable: librosa's Griffin-Lim and phase
vocoder start from its own spectrograms (no mel inversion with random iterations, no resampling). It computes linear
prediction coefficients but does not synthesise from them, and it would add numba and soxr for about sixty lines. Only
WORLD, which is much larger, comes from a library.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from scipy.linalg import solve_toeplitz
from scipy.signal import istft, lfilter, resample, stft

from dfdc.audio import RATE, WINDOW, mel_filters
from dfdc.errors import DataError

# Of the short-time Fourier transforms: samples of a transform, and of a step.
N_FFT, STEP = 512, RATE // 100
# Range of a voice's pitch.
PITCH_HZ = (60.0, 400.0)


def by_world(samples: np.ndarray, generator: np.random.Generator) -> np.ndarray:
    """WORLD (Morise et al., IEICE 2016): resynthesis from pitch, envelope and aperiodicity with small changes.

    Args:
        samples: (N,) float32 mono at `RATE`.
        generator: the only source of randomness.

    Returns:
        (N,) float32, the same length, as all vocoders here do.

    Raises:
        DataError: pyworld is not installed; it is needed for training only.
    """
    try:
        import pyworld
    except ModuleNotFoundError as error:
        raise DataError(
            f"the vocoder WORLD needs pyworld ({error}); install it: pip install pyworld 'setuptools<81'"
        ) from error
    x = samples.astype(np.float64)
    pitch, times = pyworld.dio(x, RATE)
    pitch = pyworld.stonemask(x, pitch, times, RATE)
    envelope = pyworld.cheaptrick(x, pitch, times, RATE)
    breath = pyworld.d4c(x, pitch, times, RATE)
    if generator.random() < 0.5:  # another voice
        envelope = _warp(envelope, generator.uniform(0.88, 1.12))
        pitch = pitch * 2 ** (generator.uniform(-4, 4) / 12)
    if generator.random() < 0.3:  # a network's prediction is smoother than a measurement
        n_coefficients = int(generator.integers(24, 60))
        coded = pyworld.code_spectral_envelope(envelope, RATE, n_coefficients)
        envelope = pyworld.decode_spectral_envelope(coded, RATE, 2 * (envelope.shape[1] - 1))
    return _fit(pyworld.synthesize(pitch, envelope, breath, RATE), len(samples))


def by_griffin_lim(samples: np.ndarray, generator: np.random.Generator) -> np.ndarray:
    """Griffin and Lim (IEEE TASSP 1984): phases estimated for a magnitude spectrogram, often of mel bands."""
    _, _, spectrum = stft(samples, RATE, nperseg=WINDOW, noverlap=WINDOW - STEP, nfft=N_FFT)
    size = np.abs(spectrum)
    if generator.random() < 0.6:
        filters = mel_filters()
        spread = filters.T / np.maximum(filters.sum(1), 1e-6)
        size = spread @ (filters @ size) / np.maximum((spread @ filters.sum(1))[:, None], 1e-6)
    phases = np.exp(2j * np.pi * generator.random(size.shape))
    for _ in range(int(generator.integers(8, 40))):
        _, guess = istft(size * phases, RATE, nperseg=WINDOW, noverlap=WINDOW - STEP, nfft=N_FFT)
        _, _, again = stft(guess, RATE, nperseg=WINDOW, noverlap=WINDOW - STEP, nfft=N_FFT)
        again = again[:, : size.shape[1]]
        phases = np.exp(1j * np.angle(np.pad(again, ((0, 0), (0, size.shape[1] - again.shape[1])))))
    _, made = istft(size * phases, RATE, nperseg=WINDOW, noverlap=WINDOW - STEP, nfft=N_FFT)
    return _fit(made, len(samples))


def by_lpc(samples: np.ndarray, generator: np.random.Generator) -> np.ndarray:
    """Linear prediction (Atal and Hanauer, JASA 1971): pulses or noise through a filter like the vocal tract."""
    span, order = RATE // 50, int(generator.integers(14, 24))
    n_spans = -(-len(samples) // span)
    padded = np.pad(samples.astype(np.float64), (span // 2, n_spans * span + span - len(samples)))
    shift = 2 ** (generator.uniform(-3, 3) / 12)
    taper, made, state, due = np.hanning(2 * span), [], np.zeros(order), 0.0
    for start in range(0, n_spans * span, span):
        frame = padded[start : start + 2 * span]
        part = np.pad(frame, (0, 2 * span - len(frame))) * taper
        correlation = np.correlate(part, part, "full")[2 * span - 1 :]
        if correlation[0] < 1e-8:
            made.append(np.zeros(span))
            continue
        correlation[0] *= 1.0001
        predictor = solve_toeplitz(correlation[:order], correlation[1 : order + 1])
        power = max(correlation[0] - predictor @ correlation[1 : order + 1], 0.0) / np.sum(taper**2)
        lags = slice(int(RATE / PITCH_HZ[1]), int(RATE / PITCH_HZ[0]))
        lag = lags.start + int(np.argmax(correlation[lags]))
        voiced = correlation[lag] / correlation[0]
        source = generator.standard_normal(span) * np.sqrt(power) * (0.15 if voiced > 0.35 else 1.0)
        if voiced > 0.35:
            period = lag / shift
            while due < span:
                source[int(due)] += np.sqrt(power * period)
                due += period
        due = max(due - span, 0.0)
        voice, state = lfilter([1.0], np.concatenate([[1.0], -predictor]), source, zi=state)
        made.append(voice)
    return _fit(np.concatenate(made), len(samples))


def by_phase_vocoder(samples: np.ndarray, generator: np.random.Generator) -> np.ndarray:
    """Phase vocoder (Flanagan and Golden, BSTJ 1966): time stretching and resampling, which shifts the pitch."""
    semitones = generator.uniform(2, 6) * generator.choice([-1, 1])
    ratio = 2 ** (semitones / 12)
    _, _, spectrum = stft(samples, RATE, nperseg=N_FFT, noverlap=N_FFT - N_FFT // 4)
    places = np.arange(0, spectrum.shape[1] - 1, 1 / ratio)
    before, share = spectrum[:, places.astype(int)], places % 1
    after = spectrum[:, places.astype(int) + 1]
    size = (1 - share) * np.abs(before) + share * np.abs(after)
    expected = 2 * np.pi * np.arange(spectrum.shape[0])[:, None] / 4
    turn = np.angle(after) - np.angle(before) - expected
    turn = expected + turn - 2 * np.pi * np.round(turn / (2 * np.pi))
    phase = np.angle(before[:, :1]) + np.concatenate([np.zeros_like(turn[:, :1]), np.cumsum(turn[:, :-1], 1)], 1)
    _, stretched = istft(size * np.exp(1j * phase), RATE, nperseg=N_FFT, noverlap=N_FFT - N_FFT // 4)
    return _fit(resample(stretched, round(len(stretched) / ratio)), len(samples))


Vocoder = Callable[[np.ndarray, np.random.Generator], np.ndarray]
VOCODERS: dict[str, Vocoder] = {
    "world": by_world,
    "griffin_lim": by_griffin_lim,
    "lpc": by_lpc,
    "phase_vocoder": by_phase_vocoder,
}


def _warp(envelope: np.ndarray, ratio: float) -> np.ndarray:
    """Stretch a spectral envelope (T, F) along its frequencies, like a shorter or longer vocal tract."""
    places = np.arange(envelope.shape[1])
    return np.ascontiguousarray([np.interp(places / ratio, places, row) for row in envelope])


def _fit(samples: np.ndarray, length: int) -> np.ndarray:
    samples = np.nan_to_num(samples)[:length]
    return np.pad(samples, (0, length - len(samples))).astype(np.float32)
