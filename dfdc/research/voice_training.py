"""Recordings -> a trained voice model: real and synthesised windows of the same words, augmented alike."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from dfdc.audio import HOP
from dfdc.errors import DataError
from dfdc.evaluation.metrics import measure, measure_calibrated
from dfdc.networks import VoiceModel
from dfdc.research.audio_augment import AudioAugmentation
from dfdc.research.recordings import Recording
from dfdc.research.voice import cut_windows, is_speech, see_window
from dfdc.training.checkpoint import digest
from dfdc.training.trainer import Evaluation, make_trainer, run_epochs
from dfdc.weights import DIGEST_DIGITS, Calibration, sigmoid

# Number of windows of a validation recording.
HEARD_WINDOWS = 3
# So many successive windows without speech cannot be a coincidence.
MAX_SILENT = 1000
# Samples beyond a window, for a codec's delay and the onset of filters.
MARGIN = 20 * HOP


@dataclass(frozen=True)
class VoiceSettings:
    """Settings of a training run.

    Attributes:
        epochs: of `steps` batches each.
        steps: of an epoch.
        batch_size: windows in a step, half of them real.
        learning_rate: peak; see `dfdc.training.trainer.schedule_factor`.
        ema_decay: of the averaged weights, which are evaluated and kept, for each step.
        music: share of the real windows that are replaced by music, which contains no synthetic voice.
        seed: of all random numbers.
    """

    epochs: int = 5
    steps: int = 100
    batch_size: int = 32
    learning_rate: float = 1e-3
    ema_decay: float = 0.99
    music: float = 0.15
    seed: int = 0


@dataclass(frozen=True)
class Trial:
    """A validation recording as it arrives: windows (W, bands, columns), its label (1 = made), and by which vocoder.

    Attributes:
        recording: its name.
    """

    windows: np.ndarray
    label: int
    vocoder: str
    recording: str


def train_voice(
    model: VoiceModel,
    training: list[Recording],
    music: list[Recording],
    trials: list[Trial],
    folder: Path,
    settings: VoiceSettings,
    *,
    start: str | None = None,
    progress: bool = True,
) -> tuple[VoiceModel, dict[str, float], Calibration]:
    """Train on the CPU; an interrupted run continues from its last complete epoch with the same losses.

    Args:
        model: where training starts.
        training: recordings of speech.
        music: recordings of music; may be empty.
        trials: see `make_trials`.
        folder: see `run_epochs`.
        settings: how.
        start: digest of the weights file that the model starts from; None from scratch.
        progress: draw progress bars.

    Returns:
        See `run_epochs`.

    Raises:
        InputError: the folder holds the state of a run with other settings, recordings or initial weights.
        DataError: the recordings contain no speech.
    """
    made_from = {
        **asdict(settings),
        "takes": digest([[recording.name, recording.speaker, sorted(recording.made)] for recording in training]),
        "music": digest([recording.name for recording in music]),
        "trials": digest([[trial.recording, trial.label, trial.vocoder] for trial in trials]),
        "init": start and start[:DIGEST_DIGITS],
    }
    model = model.train()
    trainer = make_trainer(
        model,
        steps=settings.epochs * settings.steps,
        learning_rate=settings.learning_rate,
        ema_decay=settings.ema_decay,
    )

    def train_epoch(epoch: int) -> list[Tensor]:
        generator = np.random.default_rng((settings.seed, epoch))
        torch.manual_seed(settings.seed * 1000 + epoch)
        losses = []
        for _ in tqdm(range(settings.steps), desc=f"epoch {epoch + 1}/{settings.epochs}", disable=not progress):
            windows, labels = make_batch(training, music, model.spec.input_size, settings, generator)
            losses.append(trainer.step(model, torch.from_numpy(windows), torch.from_numpy(labels)))
        return losses

    return run_epochs(
        trainer,
        folder,
        made_from,
        settings.epochs,
        train_epoch=train_epoch,
        evaluate=lambda averaged: evaluate(averaged, trials),
        progress=progress,
    )


def make_batch(
    training: list[Recording],
    music: list[Recording],
    n_columns: int,
    settings: VoiceSettings,
    generator: np.random.Generator,
) -> tuple[np.ndarray, np.ndarray]:
    """Windows (N, bands, n_columns) float32, reals first, and their labels (N,) float32.

    A real window and its synthesised partner contain the same words with the same augmentation, so that neither tells
    them apart.

    Raises:
        DataError: no speech is found in the training recordings.
    """
    reals, fakes, n_silent = [], [], 0
    while len(reals) < settings.batch_size // 2:
        if n_silent == MAX_SILENT:
            raise DataError(
                f"{MAX_SILENT} windows of the {len(training)} training recordings in a row held no speech; check that "
                "the table's kinds are right and the recordings loud enough"
            )
        recording = training[generator.integers(len(training))]
        channel = AudioAugmentation.draw(generator)
        start = int(generator.integers(max(len(recording.real) - n_columns * HOP - MARGIN, 1)))
        made = recording.made[str(generator.choice(sorted(recording.made)))]
        fake, real = (_hear(samples, start, n_columns, channel) for samples in (made, recording.real))
        n_silent = 0 if is_speech(real) and is_speech(fake) else n_silent + 1
        if n_silent:
            continue
        if music and generator.random() < settings.music:
            other = music[generator.integers(len(music))].real
            real = _hear(
                other, int(generator.integers(max(len(other) - n_columns * HOP - MARGIN, 1))), n_columns, channel
            )
        reals.append(real)
        fakes.append(fake)
    labels = np.concatenate([np.zeros(len(reals), np.float32), np.ones(len(fakes), np.float32)])
    return np.stack([*reals, *fakes]), labels


def _hear(samples: np.ndarray, start: int, n_columns: int, channel: AudioAugmentation) -> np.ndarray:
    arrived = channel.apply(samples[start : start + n_columns * HOP + MARGIN])
    return see_window(arrived[min(MARGIN, max(len(arrived) - n_columns * HOP, 0)) :], n_columns)


def make_trials(recordings: list[Recording], n_columns: int) -> list[Trial]:
    """Each recording once real and once synthesised for each of its vocoders, with the same augmentation for both.

    Raises:
        DataError: no speech is found in them, or in what is real or made of a vocoder's alone.
    """
    generator, trials = np.random.default_rng(0), []
    for recording in recordings:
        for vocoder, made in recording.made.items():
            channel = AudioAugmentation.draw(generator)
            for label, samples in ((0, recording.real), (1, made)):
                windows, _ = cut_windows(channel.apply(samples), n_columns, n_windows=HEARD_WINDOWS)
                if len(windows):
                    trials.append(Trial(windows, label, vocoder, recording.name))
    heard = {(trial.vocoder, trial.label) for trial in trials}
    one_sided = [vocoder for vocoder, label in heard if (vocoder, 1 - label) not in heard]
    if not trials or one_sided:
        made = f" and by {one_sided[0]}" if one_sided else ""
        raise DataError(
            f"the {len(recordings)} validation recordings contain no speech that is heard both real"
            f"{made or ' and synthesised'}; check that the table's kinds are right and the recordings loud enough"
        )
    return trials


@torch.inference_mode()
def score_trials(model: VoiceModel, trials: list[Trial]) -> np.ndarray:
    """Logits (N,) of trials, each the mean over its windows."""
    training = model.training
    model.eval()
    windows = torch.from_numpy(np.concatenate([trial.windows for trial in trials]))
    logits = torch.cat([model(part) for part in windows.split(16)]).numpy()
    model.train(training)
    ends = np.cumsum([len(trial.windows) for trial in trials])
    return np.array([part.mean() for part in np.split(logits, ends[:-1])])


def evaluate(model: VoiceModel, trials: list[Trial]) -> Evaluation:
    """Scores after calibration, with the AUC of each vocoder's trials, and the calibration."""
    logits = score_trials(model, trials)
    labels = np.array([trial.label for trial in trials])
    scores, calibration = measure_calibrated(labels, logits)
    for vocoder in sorted({trial.vocoder for trial in trials}):
        own = np.array([trial.vocoder == vocoder for trial in trials])
        scores[f"auc_{vocoder}"] = measure(labels[own], sigmoid(logits[own]))["auc"]
    return scores, calibration
