"""Labelled clips -> pairs of successive frames -> a motion model.

Its backbone is that of a face model, whose input is the change between frames; only the last layer is fitted.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path

import numpy as np
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import StratifiedGroupKFold
from sklearn.preprocessing import StandardScaler
from torch import Tensor, nn
from tqdm import tqdm

from dfdc.crop import CropGeometry
from dfdc.data.clips import LabelledClip, digest_clip
from dfdc.detect import FaceDetector
from dfdc.errors import DataError, VideoError
from dfdc.files import drafted
from dfdc.networks import FrameModel, TwoViewModel, resize_crops, see_change
from dfdc.research.flicker import flicker
from dfdc.research.motion import cut_track
from dfdc.run.journal import digest_code
from dfdc.tracks import find_tracks
from dfdc.training.loop import SCORED_CROPS
from dfdc.video import read_frames

log = logging.getLogger(__name__)

# Inverse regularisation strength of the last layer: 1,280 weights are fitted to about twenty clips.
STRENGTH = 0.03


@dataclass(frozen=True)
class PairSet:
    """Labelled pairs in memory.

    Attributes:
        pairs: (N, 6, S, S) uint8, see `dfdc.research.motion.cut_pair`, channels last in memory.
        labels: (N,) float32, 1 = fake.
        videos: (N,) names of the clips.
        sources: (N,) the name that each clip shares with its original and its other fakes.
    """

    pairs: Tensor
    labels: Tensor
    videos: np.ndarray
    sources: np.ndarray

    def __len__(self) -> int:
        return len(self.labels)

    def part(self, chosen: np.ndarray) -> PairSet:
        """The pairs that a mask (N,) bool selects."""
        return PairSet(
            *(values[torch.from_numpy(chosen)] for values in (self.pairs, self.labels)),
            *(values[chosen] for values in (self.videos, self.sources)),
        )


def load_pairs(
    clips: Sequence[LabelledClip],
    cache: Path,
    *,
    n_frames: int = 32,
    geometry: CropGeometry | None = None,
    progress: bool = True,
) -> PairSet:
    """Cut the pairs of every person in clips; pairs that were cut before are read from the cache.

    Args:
        clips: labelled; clips that cannot be read or show no face are left out with a warning.
        cache: folder for a file of each clip; made if absent.
        n_frames: number of frames of a clip, each with its successor.
        geometry: how crops are cut; None for the default.
        progress: draw a progress bar.

    Raises:
        DataError: no clip gives a pair.
    """
    geometry = geometry or CropGeometry()
    cache.mkdir(parents=True, exist_ok=True)
    detector: FaceDetector | None = None
    code = digest_code()
    parts, used = [], []
    for clip in tqdm(clips, desc="pairs", unit="clip", disable=not progress):
        path = cache / f"{clip.name}.npz"
        made_from = json.dumps([n_frames, asdict(geometry), digest_clip(clip.path), clip.label, code])
        pairs = _read_cache(path, made_from)
        if pairs is None:
            detector = detector or FaceDetector()
            pairs = _cut_clip(clip, detector, n_frames, geometry)
            with drafted(path) as draft:
                np.savez(draft, pairs=pairs, made_from=made_from)
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
    """Pairs (P, S, S, 6) of the people in a clip; none if a fake shows several, of whom its label names none."""
    try:
        frames = read_frames(clip.path, n_frames, n_pairs=n_frames)
    except VideoError as error:
        log.warning("%s: %s", clip.name, error)
        frames = []
    tracks, _ = find_tracks([frame.pixels for frame in frames], detector)
    if clip.label == "FAKE" and len(tracks) > 1:
        tracks = []
    blank = np.zeros((0, geometry.size, geometry.size, 6), np.uint8)
    return np.concatenate([blank, *(cut_track(frames, track, geometry) for track in tracks)])


def split_sources(clips: Sequence[LabelledClip], n_folds: int) -> list[set[str]]:
    """Split sources into folds with similar shares of reals and of fakes.

    Raises:
        DataError: there are fewer sources than folds.
    """
    sources = np.array([clip.source for clip in clips])
    if len(set(sources.tolist())) < n_folds:
        raise DataError(f"{len(set(sources.tolist()))} sources cannot be split into {n_folds} folds; name more clips")
    labels = [clip.label for clip in clips]
    folds = StratifiedGroupKFold(n_folds).split(sources, labels, sources)
    return [set(sources[held].tolist()) for _, held in folds]


def make_twins(pairs: Tensor, size: int, generator: torch.Generator) -> Tensor:
    """Simulate flicker (see `flicker`) in real pairs (N, 6, H, W) uint8; returns (N, 6, size, size) uint8."""
    made = [
        torch.cat(flicker(*resize_crops(batch.float(), size).chunk(2, 1), generator), 1).round().to(torch.uint8)
        for batch in pairs.split(SCORED_CROPS["cpu"])
    ]
    return torch.cat(made)


@torch.inference_mode()
def describe_pairs(model: FrameModel, pairs: Tensor) -> np.ndarray:
    """The features of pairs, which are the inputs of the last layer: the mean over each pair and its mirror image.

    Args:
        model: in evaluation mode, on the CPU.
        pairs: (N, 6, S, S) uint8.

    Returns:
        (N, F) float32. The last layer turns them into the logits of `score_pairs`.
    """
    if not len(pairs):
        return np.zeros((0, last_layer(model).in_features), np.float32)
    seen: list[Tensor] = []
    handle = last_layer(model).register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    try:
        score_pairs(model, pairs)
    finally:
        handle.remove()
    return torch.cat([torch.stack(both.chunk(2)).mean(0) for both in seen]).numpy()


def last_layer(model: FrameModel) -> nn.Linear:
    """The linear layer that computes the logit."""
    return model.net._fc if hasattr(model.net, "_fc") else model.net.classifier[-1]


@dataclass(frozen=True)
class Described:
    """The features of pairs.

    Attributes:
        values: (N, F) float32.
        labels: (N,) 1 = fake.
        sources: (N,) of their clips.
        made: (N,) bool, whether they are real pairs with simulated flicker, and thus fake.
    """

    values: np.ndarray
    labels: np.ndarray
    sources: np.ndarray
    made: np.ndarray

    def part(self, chosen: np.ndarray) -> Described:
        """The pairs that a mask (N,) bool selects."""
        return Described(*(getattr(self, f.name)[chosen] for f in fields(self)))

    def joined(self, other: Described) -> Described:
        """The concatenation of both."""
        return Described(*(np.concatenate([getattr(part, f.name) for part in (self, other)]) for f in fields(self)))

    def weights(self) -> np.ndarray:
        """Weights (N,) that balance reals and fakes, simulated and found fakes, and the sources of each kind."""
        weights = np.zeros(len(self.labels))
        fake_kinds = len(set(self.made[self.labels == 1].tolist()))
        for kind in {(label, made) for label, made in zip(self.labels.tolist(), self.made.tolist(), strict=True)}:
            own = (self.labels == kind[0]) & (self.made == kind[1])
            _, owners, counts = np.unique(self.sources[own], return_inverse=True, return_counts=True)
            weights[own] = 1 / counts[owners] / len(counts) / (fake_kinds if kind[0] else 1)
        return weights / weights.mean()


def fit_last_layer(model: FrameModel, training: Described) -> None:
    """Fit the last layer of a model by logistic regression on standardised features.

    Args:
        model: its last layer is changed in place.
        training: reals and fakes.

    Raises:
        DataError: a class is absent.
    """
    if len(set(training.labels.tolist())) < 2:
        raise DataError(f"{len(training.labels)} pairs of one class; training needs reals and fakes; name more clips")
    scaler = StandardScaler().fit(training.values)
    fitted = LogisticRegression(C=STRENGTH, max_iter=2000)
    fitted.fit(scaler.transform(training.values), training.labels, sample_weight=training.weights())
    slopes = fitted.coef_ / scaler.scale_
    layer = last_layer(model)
    with torch.no_grad():
        layer.weight.copy_(torch.from_numpy(slopes))
        layer.bias.copy_(torch.from_numpy(fitted.intercept_ - slopes @ scaler.mean_))


@dataclass(frozen=True)
class CrossFit:
    """The scores of last layers on sources that they never saw, one layer for each fold.

    Attributes:
        folds: the sources of each fold.
        layers: (F + 1,) for each fold, the weights and then the bias.
        found, made: (N,) logits of the found pairs and of those with simulated flicker.
    """

    folds: Sequence[set[str]]
    layers: list[np.ndarray]
    found: np.ndarray
    made: np.ndarray

    def answer(self, values: np.ndarray, source: str) -> float:
        """The mean logit of one source's pairs (P, F) by the layer that never saw it; 0 without pairs."""
        layer = next(layer for fold, layer in zip(self.folds, self.layers, strict=True) if source in fold)
        return float(_answer(layer, values).mean()) if len(values) else 0.0


def cross_fit(model: FrameModel, found: Described, made: Described, folds: Sequence[set[str]]) -> CrossFit:
    """Fit a last layer for each fold on the other sources, and score the fold with it.

    Args:
        model: afterwards it has the last layer of the last fold.
        found, made: found pairs, and real pairs with simulated flicker.
        folds: sources, see `split_sources`.

    Raises:
        DataError: the sources outside a fold lack a class.
    """
    fitted = CrossFit(folds, [], np.zeros(len(found.labels)), np.zeros(len(made.labels)))
    for fold in folds:
        own, twin = (np.isin(part.sources, sorted(fold)) for part in (found, made))
        fit_last_layer(model, found.part(~own).joined(made.part(~twin)))
        layer = np.concatenate([w.detach().numpy().ravel() for w in last_layer(model).parameters()])
        fitted.layers.append(layer)
        fitted.found[own], fitted.made[twin] = _answer(layer, found.values[own]), _answer(layer, made.values[twin])
    return fitted


def _answer(layer: np.ndarray, values: np.ndarray) -> np.ndarray:
    """Logits (N,) of a layer (F + 1,), weights and then the bias, for features (N, F)."""
    return values @ layer[:-1] + layer[-1]


@torch.inference_mode()
def score_pairs(model: FrameModel, pairs: Tensor) -> np.ndarray:
    """Logits (N,) float32 of pairs (N, 6, S, S) uint8, each the mean over a pair and its mirror image.

    Args:
        model: in evaluation mode.
        pairs: on the CPU.
    """
    answer, size = TwoViewModel(model, margin=0), model.spec.input_size
    logits = [answer(see_change(batch.float(), size)) for batch in pairs.split(SCORED_CROPS["cpu"])]
    return torch.cat(logits).numpy()
