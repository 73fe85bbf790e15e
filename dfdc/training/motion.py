"""Labelled clips -> pairs of neighbouring frames -> a net that sees motion: cutting, batches, and the loop."""

from __future__ import annotations

import copy
import json
import logging
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from sklearn.model_selection import StratifiedGroupKFold
from torch import Tensor
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from tqdm import tqdm

from dfdc.crop import CropGeometry
from dfdc.detect import FaceDetector
from dfdc.model import FrameModel, MirroredModel, resize_crops, see_change
from dfdc.motion import cut_track
from dfdc.predict import MAX_TRACKS
from dfdc.tracks import link_tracks
from dfdc.training.augment import pick
from dfdc.training.clips import LabelledClip
from dfdc.training.dataset import DataError
from dfdc.training.flicker import augment_pairs, flicker
from dfdc.training.loop import SCORED_CROPS, learning_rate, parameter_groups, take_step
from dfdc.training.runlog import write_row
from dfdc.training.state import load_state, save_state
from dfdc.video import VideoError, read_frames

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class PairSet:
    """Labelled pairs in memory.

    Attributes:
        pairs: (N, 6, S, S) uint8, see `dfdc.motion.cut_pair`, channels last in memory.
        labels: (N,) float32, 1 = fake.
        videos: the clip that each is from.
        sources: what that clip shares with its original and its other fakes.
    """

    pairs: Tensor
    labels: Tensor
    videos: np.ndarray
    sources: np.ndarray

    def __len__(self) -> int:
        return len(self.labels)

    def part(self, chosen: np.ndarray) -> PairSet:
        """Those that are chosen, by (N,) bool."""
        return PairSet(
            *(values[torch.from_numpy(chosen)] for values in (self.pairs, self.labels)),
            *(values[chosen] for values in (self.videos, self.sources)),
        )


@dataclass(frozen=True)
class MotionSettings:
    """How to train.

    Attributes:
        epochs: of `steps` each.
        flicker_epochs: the first so many of them see no fakes but real pairs that were made to flicker.
        flicker: probability of such a fake in the others.
        steps: per epoch.
        batch_size: pairs per step, half of them real; even.
        learning_rate, weight_decay, warmup, ema_decay, label_smoothing: as in `dfdc.training.loop.TrainSettings`.
        seed: of everything.
    """

    epochs: int = 5
    flicker_epochs: int = 1
    flicker: float = 0.4
    steps: int = 20
    batch_size: int = 16
    learning_rate: float = 7e-4
    weight_decay: float = 0.02
    warmup: float = 0.05
    ema_decay: float = 0.95
    label_smoothing: float = 0.02
    seed: int = 0

    def __post_init__(self) -> None:
        if not 0 <= self.flicker_epochs <= self.epochs or self.epochs < 1 or self.steps < 1:
            raise ValueError(
                f"epochs {self.epochs}, flicker_epochs {self.flicker_epochs}, steps {self.steps}: "
                "allowed are 1 up, 0 up to epochs, 1 up"
            )
        if self.batch_size < 2 or self.batch_size % 2:
            raise ValueError(f"batch_size {self.batch_size}: allowed are even numbers from 2 up")


def load_pairs(
    clips: Sequence[LabelledClip],
    cache: Path,
    *,
    n_frames: int = 32,
    geometry: CropGeometry | None = None,
    progress: bool = True,
) -> PairSet:
    """Cut every person's pairs out of clips; what was cut before is read from the cache.

    Args:
        clips: labelled; those that cannot be read or show no face are left out with a word.
        cache: folder that gets a file for each clip; made if absent.
        n_frames: of a clip, each with its neighbour.
        geometry: how crops are cut; None for the default.
        progress: draw a progress bar.

    Raises:
        DataError: no clip gives a pair.
    """
    geometry = geometry or CropGeometry()
    cache.mkdir(parents=True, exist_ok=True)
    detector: FaceDetector | None = None
    parts, used = [], []
    for clip in tqdm(clips, desc="pairs", unit="clip", disable=not progress):
        path = cache / f"{clip.name}.npz"
        made_from = json.dumps([n_frames, asdict(geometry), clip.path.stat().st_size if clip.path.exists() else None])
        pairs = _read_cache(path, made_from)
        if pairs is None:
            detector = detector or FaceDetector()
            pairs = _cut_clip(clip, detector, n_frames, geometry)
            draft = path.with_suffix(".tmp")
            with open(draft, "wb") as file:
                np.savez(file, pairs=pairs, made_from=made_from)
            draft.replace(path)
        if len(pairs):
            parts.append(pairs)
            used.append((clip, len(pairs)))
        else:
            log.warning("%s: gives no pair", clip.name)
    if not parts:
        raise DataError(f"none of {len(clips)} clips gives a pair; name clips with faces")
    counts = [count for _, count in used]
    return PairSet(
        torch.from_numpy(np.concatenate(parts)).permute(0, 3, 1, 2),
        torch.tensor(np.repeat([float(clip.label == "FAKE") for clip, _ in used], counts), dtype=torch.float32),
        np.repeat([clip.name for clip, _ in used], counts),
        np.repeat([clip.source for clip, _ in used], counts),
    )


def _read_cache(path: Path, made_from: str) -> np.ndarray | None:
    if not path.exists():
        return None
    with np.load(path) as kept:
        return kept["pairs"] if str(kept["made_from"]) == made_from else None


def _cut_clip(clip: LabelledClip, detector: FaceDetector, n_frames: int, geometry: CropGeometry) -> np.ndarray:
    """Pairs (P, S, S, 6) of a clip's persons. Of a fake with several, none: its label does not say who is fake."""
    try:
        frames = read_frames(clip.path, n_frames, n_pairs=n_frames)
    except VideoError as error:
        log.warning("%s: %s", clip.name, error)
        frames = []
    searched, faces = detector.search([frame.pixels for frame in frames]) if frames else ([], [])
    tracks = link_tracks(faces)[:MAX_TRACKS]
    if clip.label == "FAKE" and len(tracks) > 1:
        tracks = []
    frames = [frames[index] for index in searched]
    blank = np.zeros((0, geometry.size, geometry.size, 6), np.uint8)
    return np.concatenate([blank, *(cut_track(frames, track, geometry) for track in tracks)])


def split_sources(clips: Sequence[LabelledClip], n_folds: int) -> list[set[str]]:
    """Sources in so many folds, each with about its share of the reals and of the fakes.

    Raises:
        DataError: there are fewer sources than folds.
    """
    sources = np.array([clip.source for clip in clips])
    if len(set(sources.tolist())) < n_folds:
        raise DataError(f"{len(set(sources.tolist()))} sources cannot be split into {n_folds} folds; name more clips")
    labels = [clip.label for clip in clips]
    folds = StratifiedGroupKFold(n_folds).split(sources, labels, sources)
    return [set(sources[held].tolist()) for _, held in folds]


def train_pairs(
    model: FrameModel, training: PairSet, folder: Path, settings: MotionSettings, *, progress: bool = True
) -> FrameModel:
    """Train a model that sees motion; a run that was killed goes on from its last whole epoch, with the same losses.

    Args:
        model: where training starts, on the CPU; it is changed.
        training: of both classes.
        folder: gets state.pt, for resuming, and log.csv, with a line an epoch; made if absent.
        settings: how.
        progress: draw progress bars.

    Returns:
        The averaged model, in evaluation mode.

    Raises:
        DataError: a class is absent.
        ValueError: the folder holds another run's state.
    """
    folder.mkdir(parents=True, exist_ok=True)
    model = model.to(memory_format=torch.channels_last).train()
    average = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(settings.ema_decay), use_buffers=True)
    optimizer = torch.optim.AdamW(parameter_groups(model, settings.weight_decay), lr=settings.learning_rate)
    n_steps = settings.steps * settings.epochs
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: learning_rate(step / n_steps, settings.warmup))
    stateful = {"model": model, "average": average, "optimizer": optimizer, "schedule": schedule}
    for epoch in range(load_state(folder / "state.pt", stateful, settings), settings.epochs):
        # Every epoch has seeds of its own, so that a run that goes on draws what the whole run would have drawn.
        chances = torch.Generator().manual_seed(settings.seed * 10_000 + epoch)
        torch.manual_seed(settings.seed * 10_000 + epoch)
        share = 1.0 if epoch < settings.flicker_epochs else settings.flicker
        started, losses = time.monotonic(), []
        for _ in tqdm(range(settings.steps), desc=f"epoch {epoch + 1}/{settings.epochs}", disable=not progress):
            pixels, targets = make_batch(training, model.spec.input_size, share, settings, chances)
            losses.append(take_step(model, optimizer, pixels, targets, None))
            schedule.step()
            average.update_parameters(model)
        row = {"epoch": epoch + 1, "train_loss": float(torch.stack(losses).mean())}
        save_state(folder / "state.pt", stateful, settings, epoch + 1)
        write_row(folder / "log.csv", {**row, "seconds": time.monotonic() - started})
        if progress:
            print(f"{folder.name} epoch {epoch + 1}: loss {row['train_loss']:.4f}", flush=True)
    return copy.deepcopy(average.module).eval()


def make_batch(
    training: PairSet, size: int, share: float, settings: MotionSettings, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """What a net sees of a batch (B, 3, size, size), reals first, and smoothed targets (B,).

    Args:
        training: of both classes; sources are drawn first, then their pairs, so that long families count no more.
        size: side in pixels.
        share: probability that a fake is one of the batch's real pairs, made to flicker.
        settings: how large the batch is, and how smooth its targets.
        generator: on the CPU; the only source of chance.
    """
    half = settings.batch_size // 2
    chosen = torch.cat([_draw(training, label, half, generator) for label in (0, 1)])
    pixels = resize_crops(training.pairs[chosen].float(), size)
    made = pick(half, share, generator)
    if len(made):
        pixels[half + made] = torch.cat(flicker(*pixels[made].chunk(2, 1), generator), 1)
    pixels = see_change(torch.cat(augment_pairs(*pixels.chunk(2, 1), generator), 1), size)
    targets = (torch.arange(settings.batch_size) >= half).float()
    targets = targets * (1 - settings.label_smoothing) + settings.label_smoothing / 2
    return pixels.contiguous(memory_format=torch.channels_last), targets


def _draw(training: PairSet, label: int, n: int, generator: torch.Generator) -> Tensor:
    """Indices (n,) of pairs of a class: a source, then one of its pairs."""
    own = np.flatnonzero(training.labels.numpy() == label)
    if not len(own):
        raise DataError(f"no pair is {'fake' if label else 'real'}; training needs both")
    _, owners, counts = np.unique(training.sources[own], return_inverse=True, return_counts=True)
    weights = torch.from_numpy(1 / counts[owners])
    return torch.from_numpy(own)[torch.multinomial(weights, n, replacement=True, generator=generator)]


@torch.inference_mode()
def score_pairs(model: FrameModel, pairs: Tensor) -> np.ndarray:
    """Logits (N,) float32 of pairs (N, 6, S, S) uint8, each the mean of a pair's and its mirror image's.

    Args:
        model: in evaluation mode.
        pairs: on the CPU.
    """
    answer, size = MirroredModel(model), model.spec.input_size
    logits = [answer(see_change(batch.float(), size)) for batch in pairs.split(SCORED_CROPS["cpu"])]
    return torch.cat(logits).numpy()
