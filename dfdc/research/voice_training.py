"""Takes -> a trained voice model: real and made windows of the same words, sent through the same channel."""

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

# Windows of a validation take that are heard.
HEARD_WINDOWS = 3
# So many windows in a row without speech are no chance.
MAX_SILENT = 1000
# Beside what a window needs, so that a codec's delay and filters' beginnings fall outside.
MARGIN = 20 * HOP


@dataclass(frozen=True)
class VoiceSettings:
    """How to train.

    Attributes:
        epochs: of `steps` batches each.
        steps: of an epoch.
        batch_size: windows a step, half of them real.
        learning_rate: peak; see `dfdc.training.trainer.schedule_factor`.
        ema_decay: per step, of the averaged weights that are evaluated and shipped.
        music: share of the reals that are music instead, which is nobody's voice, made or not.
        seed: of everything.
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
    """A validation take as it arrives: windows (W, bands, columns), its label (1 = made), and by which vocoder.

    Attributes:
        take: its name.
    """

    windows: np.ndarray
    label: int
    vocoder: str
    take: str


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
    """Train on the CPU; a run that was killed goes on from its last whole epoch, with the same losses.

    Args:
        model: where training starts.
        training: takes of speech.
        music: takes of music, maybe none.
        trials: see `make_trials`.
        folder: see `run_epochs`.
        settings: how.
        start: digest of the weights file that the model starts from; None from scratch.
        progress: draw progress bars.

    Returns:
        See `run_epochs`.

    Raises:
        ValueError: the folder holds the state of a run with other settings, takes or weights to start from.
    """
    made_from = {
        **asdict(settings),
        "takes": digest([[take.name, take.speaker, sorted(take.made)] for take in training]),
        "music": digest([take.name for take in music]),
        "trials": digest([[trial.take, trial.label, trial.vocoder] for trial in trials]),
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

    A real and the made window beside it are the same words through the same channel, so that neither the words nor the
    channel tell them apart.

    Raises:
        DataError: no speech is found in the training takes.
    """
    reals, fakes, n_silent = [], [], 0
    while len(reals) < settings.batch_size // 2:
        if n_silent == MAX_SILENT:
            raise DataError(
                f"{MAX_SILENT} windows of the {len(training)} training takes in a row held no speech; look whether the "
                "table's kinds are right and the recordings loud enough"
            )
        take = training[generator.integers(len(training))]
        channel = AudioAugmentation.draw(generator)
        start = int(generator.integers(max(len(take.real) - n_columns * HOP - MARGIN, 1)))
        made = take.made[str(generator.choice(sorted(take.made)))]
        fake, real = (_hear(samples, start, n_columns, channel) for samples in (made, take.real))
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


def make_trials(takes: list[Recording], n_columns: int) -> list[Trial]:
    """Each take once real and once made for each of its vocoders, both through the same channel drawn for them.

    Raises:
        DataError: no speech is found in them, or in what is real or made of a vocoder's alone.
    """
    generator, trials = np.random.default_rng(0), []
    for take in takes:
        for vocoder, made in take.made.items():
            channel = AudioAugmentation.draw(generator)
            for label, samples in ((0, take.real), (1, made)):
                windows, _ = cut_windows(channel.apply(samples), n_columns, n_windows=HEARD_WINDOWS)
                if len(windows):
                    trials.append(Trial(windows, label, vocoder, take.name))
    heard = {(trial.vocoder, trial.label) for trial in trials}
    one_sided = [vocoder for vocoder, label in heard if (vocoder, 1 - label) not in heard]
    if not trials or one_sided:
        made = f" and by {one_sided[0]}" if one_sided else ""
        raise DataError(
            f"the {len(takes)} validation takes hold no speech that is heard both real{made or ' and made'}; look "
            "whether the table's kinds are right and the recordings loud enough"
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
