"""dfdc.research.voice: finding speech, the voice model's input, and its contribution to a clip's score."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import av
import numpy as np
import pytest
import torch
from clips import write_clip
from pairs import make_speech, write_pair_clip

from dfdc.aggregate import MADE_VOICES, add_voice, voice_probability
from dfdc.analyze import Analyzer
from dfdc.audio import HOP, N_BANDS, QUIETEST_DB, RATE, read_sound
from dfdc.networks import VoiceModel, load_initial, load_model, save_model
from dfdc.research.vocoders import VOCODERS
from dfdc.research.voice import LOUDNESS_DB, MAX_WINDOWS, VoiceModels, cut_windows, is_speech, see_window
from dfdc.weights import Calibration, ModelSpec, WeightsFile, find_weights, open_weights
from tests.models import lively

ROOT = Path(__file__).resolve().parent.parent
COLUMNS = 64
SPEC = ModelSpec("efficientnet-lite0", COLUMNS, sees="sound", mean=(-60.0,), std=(15.0,))


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> list[WeightsFile]:
    folder = tmp_path_factory.mktemp("weights")
    torch.manual_seed(0)
    calibration = Calibration(temperature=0.5, bias=1.0)
    model = lively(VoiceModel(replace(SPEC, calibration=calibration)))
    return [open_weights(save_model(model, folder, name="voice"))]


@pytest.fixture(scope="module")
def analyzers(files: list[WeightsFile]) -> tuple[Analyzer, Analyzer]:
    """An analyzer with a face model, and one with a voice model as well."""
    faces = find_weights(ROOT / "weights")
    return Analyzer(faces), Analyzer([*faces, *files])


def make_noise(seconds: float, *, seed: int = 0) -> np.ndarray:
    return (0.1 * np.random.default_rng(seed).standard_normal(round(seconds * RATE))).astype(np.float32)


@pytest.mark.parametrize("volume", [0.05, 1.0])
def test_speech_is_found_at_any_volume(volume: float) -> None:
    windows, starts = cut_windows(volume * make_speech(4.0), COLUMNS)
    assert len(windows) == len(starts) >= 8
    assert windows.shape[1:] == (N_BANDS, COLUMNS)
    assert windows.dtype == np.float32


def test_volume_does_not_change_the_input() -> None:
    speech = make_speech(1.0)
    loud, soft = see_window(speech, COLUMNS), see_window(speech / 20, COLUMNS)
    np.testing.assert_allclose(loud, soft, atol=0.01)
    assert loud.max() > LOUDNESS_DB - 30


@pytest.mark.parametrize(
    "samples",
    [
        np.zeros(4 * RATE, np.float32),
        1e-4 * make_speech(4.0),
        make_noise(4.0),
        (0.1 * np.sin(np.arange(4 * RATE) * 0.3)).astype(np.float32),
    ],
    ids=["silence", "whisper behind a wall", "noise", "tone"],
)
def test_sound_without_speech_gives_no_window(samples: np.ndarray) -> None:
    windows, starts = cut_windows(samples, COLUMNS)
    assert len(windows) == len(starts) == 0
    assert windows.shape[1:] == (N_BANDS, COLUMNS)


def test_number_of_windows_over_a_long_sound_is_bounded() -> None:
    windows, starts = cut_windows(make_speech(30.0), COLUMNS)
    assert len(windows) == MAX_WINDOWS
    assert starts[0] < 0.3
    assert starts[-1] == pytest.approx(30 - COLUMNS * HOP / RATE, abs=0.3)


def test_short_sound_is_padded_with_silence() -> None:
    window = see_window(make_speech(0.2), COLUMNS)
    assert window.shape == (N_BANDS, COLUMNS)
    assert (window[:, -10:] == QUIETEST_DB).all()


@pytest.mark.parametrize("name", ["speech_original.mp4", "grid_swiz3n.mpg", "aajsqyyjni.mp4"])
def test_speech_is_found_in_real_clips(name: str, shared_videos: Path) -> None:

    samples = read_sound(shared_videos / name)
    starts = np.arange(0, len(samples) - 128 * HOP, 64 * HOP)
    assert np.mean([is_speech(see_window(samples[start:], 128)) for start in starts]) > 0.7


def test_voice_model_is_saved_and_loaded(files: list[WeightsFile]) -> None:
    model = load_model(files[0])
    assert isinstance(model, VoiceModel)
    with torch.inference_mode():
        logits = model(torch.zeros(2, N_BANDS, COLUMNS))
    assert logits.shape == (2,)
    assert float(logits[0]) == pytest.approx(float(logits[1]), abs=1e-5)


def test_image_model_is_converted_to_a_sound_model(tmp_path: Path) -> None:
    from dfdc.networks import FrameModel

    torch.manual_seed(1)
    face = lively(FrameModel(ModelSpec("efficientnet-lite0", COLUMNS)))
    model = VoiceModel(SPEC).eval()
    taken, total, _ = load_initial(model, save_model(face, tmp_path, name="face"))
    assert taken == total
    grey = torch.rand(2, COLUMNS, COLUMNS) - 0.5
    with torch.inference_mode():
        # The file has half precision: three significant digits.
        torch.testing.assert_close(
            model.net(grey[:, None]), face.net(grey[:, None].expand(-1, 3, -1, -1)), rtol=0.02, atol=0.02
        )


def test_voice_score_is_the_mean_of_calibrated_windows(files: list[WeightsFile]) -> None:
    speech = make_speech(3.0)
    windows, _ = cut_windows(speech, COLUMNS)
    with torch.inference_mode():
        raw = load_model(files[0])(torch.from_numpy(windows)).numpy()
    # OpenVINO and torch sum in different orders.
    assert VoiceModels(files).score(speech) == pytest.approx(float(np.mean(raw / 0.5 + 1.0)), abs=2e-3)


@pytest.mark.parametrize(
    "sound", [None, np.zeros(3 * RATE, np.float32), make_noise(3.0)], ids=["none", "silent", "noise"]
)
def test_sound_without_voice_gets_no_score(
    sound: np.ndarray | None, analyzers: tuple[Analyzer, Analyzer], tmp_path: Path
) -> None:
    path = tmp_path / "clip.mp4"
    write_clip(path) if sound is None else write_pair_clip(path, sound=sound)
    plain, heard = (analyzer.analyze(path, 4) for analyzer in analyzers)
    assert heard.probability == plain.probability
    assert heard.voice is heard.picture is None


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_voice_score_that_is_not_finite_is_an_error(files: list[WeightsFile], value: float) -> None:
    voices = VoiceModels(files, models=[lambda windows: (np.full(len(windows), value),)])
    with pytest.raises(FloatingPointError, match="not finite"):
        voices.score(make_speech(3.0))


def test_without_a_voice_model_no_audio_is_read(tmp_path: Path) -> None:
    assert VoiceModels([]).score_clip(tmp_path / "absent.mp4") is None


def test_voice_never_lowers_a_clips_score_and_is_monotone() -> None:
    voices = [voice_probability(score) for score in np.linspace(-40, 40, 81)]
    for picture in (0.01, 0.3, 0.5, 0.97):
        labels = [add_voice(picture, voice, high=0.95) for voice in voices]
        assert min(labels) == picture
        assert labels == sorted(labels)
        assert add_voice(picture, None, high=0.95) == picture
    assert add_voice(0.1, voices[-1], high=0.95) == 0.95


def test_uninformative_voice_counts_as_the_share_of_synthetic_voices() -> None:
    assert voice_probability(0.0) == pytest.approx(MADE_VOICES)
    # A clip becomes uncertain only if its voice is as rare among real voices as synthetic voices are among all.
    assert voice_probability(np.log((1 - MADE_VOICES) / MADE_VOICES)) == pytest.approx(0.5)


def test_picture_of_a_voice_is_drawn(
    files: list[WeightsFile], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    import cv2

    from tools.research.show_voice import main

    clip = write_pair_clip(tmp_path / "a $^$ clip.mp4", n_frames=4, sound=make_speech(3.0))  # not parsed as a formula
    out = tmp_path / "pictures" / "voice.png"
    assert main([str(clip), "--weights", str(files[0].path), "--vocoders", "lpc", "--out", str(out)]) == 0
    assert cv2.imread(str(out)).shape[0] > 2 * 200
    mute = write_clip(tmp_path / "mute.mp4", n_frames=2)
    assert main([str(mute), "--weights", str(files[0].path)]) == 1
    assert "mute.mp4: has no sound" in capsys.readouterr().err


def replace_sound(clip: Path, samples: np.ndarray, out: Path) -> Path:
    """The unchanged video of a clip with another sound."""
    with av.open(str(clip)) as source, av.open(str(out), "w") as target:
        pictures = source.streams.video[0]
        video = target.add_stream_from_template(pictures)
        audio = target.add_stream("aac", rate=RATE, layout="mono", bit_rate=64_000)
        for packet in source.demux(pictures):
            if packet.dts is not None:
                packet.stream = video
                target.mux(packet)
        resampler = av.AudioResampler(audio.codec_context.format, "mono", RATE, frame_size=1024)
        frame = av.AudioFrame.from_ndarray(samples[None], "flt", "mono")
        frame.sample_rate = RATE
        for part in (*resampler.resample(frame), *resampler.resample(None)):
            target.mux(audio.encode(part))
        target.mux(audio.encode(None))
    return out


def test_clip_with_only_a_synthetic_voice_is_recognised(shared_videos: Path, tmp_path: Path) -> None:
    """A real clip of an unknown speaker, once with its own voice and once with a voice synthesised from it."""
    clip = shared_videos / "knqhpwoigk.mp4"
    samples = read_sound(clip)
    made = VOCODERS["lpc"](samples, np.random.default_rng(0))
    analyzer = Analyzer(find_weights(ROOT / "weights", extras=["sound"]))
    real, fake = (
        analyzer.analyze(replace_sound(clip, sound, tmp_path / f"{name}.mp4"), 2)
        for name, sound in (("real", samples), ("fake", made))
    )
    assert real.probability == real.picture
    assert fake.picture == real.picture
    assert fake.probability == fake.voice > max(0.5, real.probability)
