"""dfdc.research.vocoders and audio_augment: synthetic voices and transmission channels."""

from __future__ import annotations

import numpy as np
import pytest
from pairs import make_speech

from dfdc.audio import RATE, log_mel
from dfdc.comparison.sound import compare_sounds
from dfdc.errors import DataError
from dfdc.research.audio_augment import CODECS, AudioAugmentation, code, make_noise
from dfdc.research.vocoders import VOCODERS

SPEECH = make_speech(3.0)


def loudness_over_time(samples: np.ndarray) -> np.ndarray:
    return log_mel(samples).mean(0)


@pytest.mark.parametrize("name", list(VOCODERS))
def test_synthetic_voice_has_the_same_words_in_another_waveform(name: str) -> None:
    if name == "world":
        pytest.importorskip("pyworld")
    made = VOCODERS[name](SPEECH, np.random.default_rng(3))
    assert made.shape == SPEECH.shape
    assert made.dtype == np.float32
    assert np.isfinite(made).all()
    # The syllables keep their times, the waveform changes.
    assert np.corrcoef(loudness_over_time(SPEECH), loudness_over_time(made))[0, 1] > 0.8
    assert np.median(compare_sounds(SPEECH, made).heard) < 0.8


@pytest.mark.parametrize("name", [name for name in VOCODERS if name != "world"])
def test_same_generator_gives_the_same_voice(name: str) -> None:
    first, again = (VOCODERS[name](SPEECH, np.random.default_rng(5)) for _ in range(2))
    np.testing.assert_array_equal(first, again)


@pytest.mark.parametrize("name", [name for name in VOCODERS if name != "world"])
def test_silence_stays_silent(name: str) -> None:
    made = VOCODERS[name](np.zeros(RATE, np.float32), np.random.default_rng(0))
    assert np.abs(made).max() < 1e-3


def test_missing_pyworld_is_reported_with_the_cure(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "pyworld", None)
    with pytest.raises(DataError, match="pip install pyworld"):
        VOCODERS["world"](SPEECH, np.random.default_rng(0))


@pytest.mark.parametrize("codec", list(CODECS))
def test_codec_preserves_the_recording(codec: str) -> None:
    arrived = code(SPEECH, codec, CODECS[codec][2][1])
    assert abs(len(arrived) - len(SPEECH)) < RATE / 5
    assert np.median(compare_sounds(SPEECH, arrived).heard) > 0.9


def test_channel_treats_real_and_synthetic_voices_alike() -> None:
    channel = AudioAugmentation(noise_db=10.0, colour=1.0, top_hz=4000.0, seed=7)
    quiet = np.full(RATE, 0.1, np.float32)
    np.testing.assert_array_equal(channel.apply(quiet), channel.apply(quiet.copy()))


def test_narrow_band_removes_high_frequencies() -> None:
    noise = 0.1 * make_noise(2 * RATE, 0.0, np.random.default_rng(0)).astype(np.float32)
    bands = log_mel(AudioAugmentation(top_hz=3000.0).apply(noise)).mean(1)
    assert bands[30] - bands[-1] > 30


def test_noise_has_the_requested_level() -> None:
    silence_in_speech = AudioAugmentation(noise_db=20.0, seed=1).apply(SPEECH) - SPEECH
    ratio = 10 * np.log10(np.mean(SPEECH**2) / np.mean(silence_in_speech**2))
    assert ratio == pytest.approx(20.0, abs=0.1)


def test_every_kind_of_channel_is_drawn() -> None:
    generator = np.random.default_rng(0)
    channels = [AudioAugmentation.draw(generator) for _ in range(100)]
    assert {channel.codec for channel in channels} == {None, *CODECS}
    assert any(channel.noise_db is None and channel.top_hz is None for channel in channels)
    assert len({channel.seed for channel in channels}) > 90
