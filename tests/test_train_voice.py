"""tools/research/train_voice.py: recordings, synthetic voices, resumed training, and weights for the kernel."""

from __future__ import annotations

import csv
import wave
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from pairs import make_speech

from dfdc.audio import N_BANDS, RATE
from dfdc.errors import DataError, InputError
from dfdc.networks import VoiceModel
from dfdc.research.recordings import Recording, load_recordings, read_speech
from dfdc.research.vocoders import VOCODERS, by_griffin_lim
from dfdc.research.voice import VoiceModels
from dfdc.research.voice_training import (
    Trial,
    VoiceSettings,
    evaluate,
    make_batch,
    make_trials,
    score_trials,
    train_voice,
)
from dfdc.training.checkpoint import save_state
from dfdc.weights import ModelSpec, find_weights
from tools.research.train_voice import main, train_weights

SPEC = ModelSpec("efficientnet-lite0", 64, sees="sound", mean=(-60.0,), std=(15.0,))
SETTINGS = VoiceSettings(epochs=2, steps=2, batch_size=4)
SPEAKERS = {"anna": "train", "bert": "train", "carl": "val"}


def write_wave(path: Path, samples: np.ndarray) -> None:
    with wave.open(str(path), "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(RATE)
        file.writeframes((samples * 32767).astype("<i2").tobytes())


@pytest.fixture
def speech(tmp_path: Path) -> Path:
    """A table of three speakers and a piece of music."""
    rows = [(f"{name}.wav", name, split, "speech") for name, split in SPEAKERS.items()]
    for seed, (name, *_) in enumerate(rows):
        write_wave(tmp_path / name, make_speech(2.0, seed=seed))
    write_wave(tmp_path / "band.wav", 0.1 * np.sin(np.arange(2 * RATE) / 5))
    return write_table(tmp_path / "speech.csv", [*rows, ("band.wav", "band", "train", "music")])


def write_table(path: Path, rows: list[tuple[str, ...]], header: str = "path speaker split kind") -> Path:
    with open(path, "w", newline="") as file:
        csv.writer(file).writerows([header.split(), *rows])
    return path


@pytest.fixture
def without_world(monkeypatch: pytest.MonkeyPatch) -> None:
    """pyworld is needed for training only, so the test machine may lack it."""
    monkeypatch.setitem(VOCODERS, "world", by_griffin_lim)


def recordings_of(seeds: range) -> list[Recording]:
    reals = {seed: make_speech(2.0, seed=seed) for seed in seeds}
    return [
        Recording(f"{seed}", f"{seed}", real, {"griffin_lim": by_griffin_lim(real, np.random.default_rng(seed))})
        for seed, real in reals.items()
    ]


@pytest.mark.parametrize(
    ("rows", "header", "message"),
    [
        ([("a.wav", "anna", "test", "speech")], "path speaker split kind", "a.wav has the split 'test'; allowed"),
        ([("a.wav", "anna", "val", "song")], "path speaker split kind", "a.wav has the kind 'song'; allowed"),
        ([("a.wav", "anna", "val")], "path speaker split", "columns kind are missing"),
        (
            [("a.wav", "anna", "val", "speech"), ("b.wav", "anna", "train", "speech")],
            "path speaker split kind",
            "anna is in both splits",
        ),
    ],
)
def test_wrong_tables_are_refused(rows: list, header: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=message):
        read_speech(write_table(tmp_path / "speech.csv", rows, header))


def test_recording_without_sound_is_named(speech: Path, tmp_path: Path, without_world: None) -> None:
    (tmp_path / "carl.wav").write_bytes(b"no sound")
    with pytest.raises(DataError, match=r"carl\.wav: .*remove its row"):
        load_recordings(speech, tmp_path / "takes", split="val", progress=False)


def test_recordings_are_synthesised_only_once(
    speech: Path, tmp_path: Path, without_world: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = load_recordings(speech, tmp_path / "takes", split="val", progress=False)
    assert set(first[0].made) == set(VOCODERS)
    for name in VOCODERS:
        monkeypatch.setitem(VOCODERS, name, lambda *_: pytest.fail("made again"))
    again = load_recordings(speech, tmp_path / "takes", split="val", progress=False)
    np.testing.assert_array_equal(first[0].made["lpc"], again[0].made["lpc"])


def test_recordings_with_the_same_name_keep_their_own_voices(tmp_path: Path, without_world: None) -> None:
    """Of other speakers, or of another table that keeps its recordings in the same folder."""
    for seed, name in enumerate(("anna", "anna/carl", "dora")):
        (tmp_path / name).mkdir()
        write_wave(tmp_path / name / "1.wav", make_speech(2.0, seed=seed))
    first, second = (
        write_table(tmp_path / name / "speech.csv", rows)
        for name, rows in {
            "anna": [("1.wav", "anna", "val", "speech"), ("carl/1.wav", "carl", "val", "speech")],
            "dora": [("1.wav", "dora", "val", "speech")],
        }.items()
    )
    kept = tmp_path / "takes"
    voices = [
        *load_recordings(first, kept, split="val", progress=False),
        *load_recordings(second, kept, split="val", progress=False),
    ]
    assert [voice.speaker for voice in voices] == ["anna", "carl", "dora"]
    for one, other in ((0, 1), (0, 2), (1, 2)):
        assert np.abs(voices[one].made["lpc"] - voices[other].made["lpc"]).max() > 0.01


def test_real_and_synthetic_windows_differ_only_in_the_voice() -> None:
    """If a vocoder changes nothing, both windows are equal: words, channel and loudness do not differ."""
    plain = [replace(recording, made={"nothing": recording.real}) for recording in recordings_of(range(2))]
    windows, labels = make_batch(plain, [], 64, VoiceSettings(batch_size=8), np.random.default_rng(0))
    assert labels.tolist() == [0.0] * 4 + [1.0] * 4
    np.testing.assert_array_equal(windows[:4], windows[4:])


def test_recordings_without_speech_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dfdc.research.voice_training.MAX_SILENT", 20)
    silent = [Recording("hum", "ann", np.zeros(10 * RATE, np.float32), {"world": np.zeros(10 * RATE, np.float32)})]
    with pytest.raises(DataError, match="20 windows of the 1 training recordings in a row held no speech; check that"):
        make_batch(silent, [], 32, VoiceSettings(batch_size=2), np.random.default_rng(0))


def test_music_replaces_real_windows_only() -> None:
    rhythm = 0.1 * np.sin(np.arange(3 * RATE) * 2.5) * (np.sin(np.arange(3 * RATE) * 20 / RATE) > 0)
    music = [Recording("m", "m", rhythm.astype(np.float32), {})]
    settings = VoiceSettings(batch_size=8, music=1.0)
    with_music, _ = make_batch(recordings_of(range(2)), music, 64, settings, np.random.default_rng(0))
    # An intermittent tone is loud in one band; speech is loud in many.
    loud = (with_music > with_music.max((1, 2), keepdims=True) - 20).any(2).sum(1)
    assert loud[:4].max() < loud[4:].min()


@pytest.mark.slow
def test_training_learns_to_recognise_voices_with_a_whistle(one_thread: None, tmp_path: Path) -> None:
    torch.manual_seed(0)
    whistle = (0.1 * np.sin(np.arange(2 * RATE) * 2 * np.pi * 2000 / RATE)).astype(np.float32)
    known = [replace(recording, made={"whistle": recording.real + whistle}) for recording in recordings_of(range(3))]
    trials = make_trials(known, 64)
    settings = VoiceSettings(epochs=2, steps=25, batch_size=8, learning_rate=5e-4, ema_decay=0.8)
    _, scores, calibration = train_voice(VoiceModel(SPEC), known, [], trials, tmp_path, settings, progress=False)
    assert scores["auc"] > 0.85
    assert scores["auc_whistle"] == pytest.approx(scores["auc"])
    assert calibration.low < 0.5 < calibration.high
    assert (tmp_path / "curves.png").exists()


def test_killed_run_resumes_exactly(one_thread: None, tmp_path: Path) -> None:
    known = recordings_of(range(2))
    trials = make_trials(known, 64)

    def run(folder: Path, epochs: int) -> np.ndarray:
        folder.mkdir(exist_ok=True)
        torch.manual_seed(0)
        final, _, _ = train_voice(
            VoiceModel(SPEC), known, [], trials, folder, replace(SETTINGS, epochs=epochs), progress=False
        )
        return score_trials(final, trials)

    whole = run(tmp_path / "whole", 2)
    state = tmp_path / "killed" / "state.pt"

    def save_and_die(*args: object) -> None:
        save_state(*args)
        raise KeyboardInterrupt

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("dfdc.training.trainer.save_state", save_and_die)
        with pytest.raises(KeyboardInterrupt):
            run(tmp_path / "killed", 2)
    assert state.exists()
    np.testing.assert_array_equal(run(tmp_path / "killed", 2), whole)
    with open(tmp_path / "killed/log.csv", newline="") as log:
        assert [line["epoch"] for line in csv.DictReader(log)] == ["1", "2"]


def test_run_with_other_voices_is_not_resumed(one_thread: None, tmp_path: Path) -> None:
    known = recordings_of(range(2))
    trials = make_trials(known, 64)
    settings = replace(SETTINGS, epochs=1)
    train_voice(VoiceModel(SPEC), known, [], trials, tmp_path, settings, progress=False)
    others = [replace(recording, made={"lpc": recording.real}) for recording in known]
    with pytest.raises(InputError, match="belongs to another run: takes was"):
        train_voice(VoiceModel(SPEC), others, [], trials, tmp_path, settings, progress=False)
    with pytest.raises(InputError, match="belongs to another run: init was None, is 0123"):
        train_voice(VoiceModel(SPEC), known, [], trials, tmp_path, settings, start="0123" * 16, progress=False)


def test_scores_are_reported_per_vocoder(monkeypatch: pytest.MonkeyPatch) -> None:
    """One of two vocoders is always distinguished from real voices, the other never."""
    windows = np.zeros((1, N_BANDS, 64), np.float32)
    kinds = [(label, name) for name in ("lpc", "griffin_lim") for label in (0, 1)] * 3
    trials = [Trial(windows, label, name, str(index)) for index, (label, name) in enumerate(kinds)]
    logits = np.array([(1.0 if name == "lpc" else -1.0) * (2 * label - 1) for label, name in kinds])
    monkeypatch.setattr("dfdc.research.voice_training.score_trials", lambda model, found: logits)
    scores, _ = evaluate(VoiceModel(SPEC).eval(), trials)
    assert (scores["auc_lpc"], scores["auc_griffin_lim"], scores["auc"]) == (1, 0, 0.5)


def test_trials_hold_the_real_voice_and_its_synthetic_versions() -> None:
    assert [trial.label for trial in make_trials(recordings_of(range(2)), 64)] == [0, 1, 0, 1]


def test_validation_without_speech_is_refused_before_training() -> None:
    silent = np.zeros(10 * RATE, np.float32)
    with pytest.raises(
        DataError,
        match="the 1 validation recordings contain no speech that is heard both real and synthesised; check that",
    ):
        make_trials([Recording("hum", "ann", silent, {"lpc": silent})], 64)
    spoken = make_speech(10.0, seed=0)
    with pytest.raises(
        DataError, match="the 1 validation recordings contain no speech that is heard both real and by lpc; check that"
    ):
        make_trials([Recording("ann", "ann", spoken, {"lpc": silent})], 64)


def test_synthetic_voice_does_not_depend_on_what_was_made_before(
    speech: Path, tmp_path: Path, without_world: None
) -> None:
    whole = load_recordings(speech, tmp_path / "whole", split="val", progress=False)[0]
    others = [
        kept for kept in (tmp_path / "whole").iterdir() if not kept.stem.endswith("-world")
    ]  # the vocoder that was run first
    for kept in others:
        kept.unlink()
    again = load_recordings(speech, tmp_path / "whole", split="val", progress=False)[0]
    assert len(others) == len(VOCODERS) - 1
    for name, samples in whole.made.items():
        np.testing.assert_array_equal(again.made[name], samples)


def test_training_uses_only_the_named_vocoders(speech: Path, tmp_path: Path) -> None:
    named = ["griffin_lim", "lpc"]
    for recording in load_recordings(speech, tmp_path / "takes", split="train", vocoders=named, progress=False):
        assert sorted(recording.made) == named


def test_tool_writes_weights_that_the_kernel_loads(
    speech: Path, tmp_path: Path, without_world: None, one_thread: None
) -> None:
    root = Path(__file__).resolve().parent.parent / "weights"
    folder = tmp_path / "weights"
    folder.mkdir()
    for file in root.glob("*.safetensors"):
        (folder / file.name).symlink_to(file)
    run = tmp_path / "run" / "voice"
    path = train_weights(
        speech, run, folder / "optional", leave_out="lpc", per_speaker=1, settings=SETTINGS, progress=False
    )
    files = find_weights(folder, extras=["sound"])
    assert files[-1].path == path
    assert "lpc" not in files[-1].spec.trained_on.split(";")[0]
    assert {"auc_lpc", "auc_griffin_lim"} <= set(files[-1].spec.validation)
    assert np.isfinite(VoiceModels(files[-1:]).score(make_speech(3.0)))


def test_mistakes_are_reported_by_the_tool(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--speech", str(tmp_path / "none.csv"), "--run", str(tmp_path / "run"), "--out", str(tmp_path)]) == 1
    assert "none.csv: not a readable CSV file" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main(["--speech", str(tmp_path / "none.csv"), "--run", str(tmp_path / "run"), "--steps", "0"])
    assert "argument --steps: '0' is not allowed; give a whole number from 1 up" in capsys.readouterr().err
