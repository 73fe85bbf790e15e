"""dfdc.audio: audio is read correctly from every container, and clips without audio return none."""

from __future__ import annotations

import numpy as np
import pytest

from dfdc.audio import HOP, N_BANDS, QUIETEST_DB, RATE, log_mel, mel_filters, read_sound
from dfdc.errors import VideoError
from tests.clips import write_audio, write_clip
from tests.pairs import make_speech, write_pair_clip


def test_lossless_audio_is_read_unchanged(tmp_path):
    speech = make_speech(1.0)
    sound = read_sound(write_pair_clip(tmp_path / "a.mkv", sound=speech, sound_codec="pcm_s16le", n_frames=3))
    assert sound.dtype == np.float32
    np.testing.assert_allclose(sound, speech, atol=2 / 2**15)  # 16 bits


def test_clip_without_audio_returns_none(tmp_path):
    assert read_sound(write_clip(tmp_path / "a.mp4", n_frames=3)) is None


def test_audio_file_without_video_is_read(tmp_path):
    sound = read_sound(write_audio(tmp_path / "a.m4a"))
    assert not sound.any()


def test_reading_stops_at_its_limit(tmp_path):
    path = write_pair_clip(tmp_path / "a.mp4", sound=make_speech(1.0), n_frames=3)
    assert len(read_sound(path, max_s=0.5)) == RATE // 2


@pytest.mark.parametrize("content", [b"", b"no video at all", b"#EXTM3U\n#EXTINF:1,\nother.mp4\n"])
def test_file_that_is_no_clip_is_refused(tmp_path, content):
    path = tmp_path / "a.mp4"
    path.write_bytes(content)
    with pytest.raises(VideoError):
        read_sound(path)


def test_truncated_file_gives_its_intact_part(tmp_path):
    path = write_pair_clip(tmp_path / "a.ts", sound=make_speech(2.0), n_frames=50)
    whole = len(read_sound(path))
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    sound = read_sound(path)
    assert sound is None or 0 < len(sound) < whole


def test_tone_is_loudest_in_its_own_band():
    tone = np.sin(2 * np.pi * 1000 * np.arange(RATE) / RATE).astype(np.float32)
    bands = log_mel(tone)
    assert bands.shape[0] == N_BANDS
    assert abs(bands.shape[1] - RATE / HOP) <= 2
    # 1000 Hz are 1000 mel by that scale's definition; the bands' middles are evenly spaced between 40 and 7600 Hz.
    low, high = (2595 * np.log10(1 + hz / 700) for hz in (40, 7600))
    expected = round((1000 - low) / (high - low) * (N_BANDS + 1)) - 1
    assert abs(int(bands[:, 50].argmax()) - expected) <= 1


def test_silence_has_the_lowest_level_and_short_sounds_work():
    assert (log_mel(np.zeros(10, np.float32)) == QUIETEST_DB).all()


def test_mel_filters_cover_their_bands():
    filters = mel_filters()
    assert filters.shape == (N_BANDS, 257)
    assert (filters >= 0).all()
    assert (filters.max(1) > 0).all(), "a mel band covers no frequency"


@pytest.mark.parametrize("name", ["aajsqyyjni.mp4", "grid_bbaf2n.mpg", "speech_lipsync.mp4"])
def test_real_clips_contain_speech(shared_videos, name):
    assert np.abs(read_sound(shared_videos / name, max_s=2.0)).max() > 0.01


def test_real_clip_without_an_audio_track_returns_none(shared_videos):
    assert read_sound(shared_videos / "ghost_elon.webm") is None
