"""Crops -> statistics of their files, and how well these alone separate reals from fakes (shortcut learning)."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import pairwise

import numpy as np
import torch
from sklearn.ensemble import HistGradientBoostingClassifier
from sklearn.metrics import roc_auc_score
from sklearn.model_selection import StratifiedGroupKFold
from torch import Tensor

FOLDS = 4


def describe_files(images: Tensor) -> dict[str, np.ndarray]:
    """Compute statistics of pictures that do not depend on what the pictures show.

    Args:
        images: (N, 3, S, S) float or uint8 RGB, 0..255.

    Returns:
        "sharpness" (N, 7): logarithms of the energy of first and second differences and of five frequency bands;
        "blocks" (N, 2): the ratio of steps at multiples of 8 pixels to steps elsewhere, horizontal and vertical, which
        JPEG leaves; "colour" (N, 7): means and standard deviations of the channels, and saturation.
    """
    images = images.float()
    grey = images.mean(1)
    across, down = grey.diff(dim=2).abs(), grey.diff(dim=1).abs()
    second = grey.diff(n=2, dim=2).square().mean((1, 2)) + grey.diff(n=2, dim=1).square().mean((1, 2))
    energy = [across.square().mean((1, 2)), second, *_bands(grey)]
    blocks = [_steps(across), _steps(down.transpose(1, 2))]
    std, mean = torch.std_mean(images, (2, 3))
    saturation = (images.amax(1) - images.amin(1)).mean((1, 2))
    return {
        "sharpness": torch.stack([(value + 1e-3).log() for value in energy], 1).numpy(),
        "blocks": torch.stack(blocks, 1).numpy(),
        "colour": torch.cat([mean, std, saturation[:, None]], 1).numpy(),
    }


def _bands(grey: Tensor) -> list[Tensor]:
    """The mean power (N,) in five frequency bands, up to the frequency of single pixels."""
    side = grey.shape[-1]
    power = torch.fft.rfft2(grey - grey.mean((1, 2), keepdim=True)).abs().square() / side**2
    radius = torch.hypot(torch.fft.fftfreq(side)[:, None], torch.fft.rfftfreq(side)[None])
    edges = (0.02, 0.06, 0.12, 0.2, 0.32, 0.75)
    return [power[:, (radius >= low) & (radius < high)].mean(1) for low, high in pairwise(edges)]


def _steps(differences: Tensor) -> Tensor:
    """The ratio (N,) of the mean step (N, H, W) after every eighth column to that of the other steps."""
    at_edge = torch.arange(1, differences.shape[2] + 1) % 8 == 0
    return differences[:, :, at_edge].mean((1, 2)) / (differences[:, :, ~at_edge].mean((1, 2)) + 1e-3)


def probe(labels: np.ndarray, features: np.ndarray, groups: np.ndarray, *, seed: int = 0) -> float:
    """Measure how well features separate the classes: the cross-validated AUC of boosted trees.

    Args:
        labels: (N,) 0 or 1.
        features: (N, K).
        groups: (N,) groups that are never split between folds, such as persons.
        seed: seed of the folds and the trees.

    Returns:
        The AUC, from about .5 for uninformative features to 1.
    """
    scores = np.zeros(len(labels))
    for fitted, left_out in StratifiedGroupKFold(FOLDS, shuffle=True, random_state=seed).split(
        features, labels, groups
    ):
        trees = HistGradientBoostingClassifier(max_iter=60, max_leaf_nodes=8, random_state=seed)
        scores[left_out] = trees.fit(features[fitted], labels[fitted]).predict_proba(features[left_out])[:, 1]
    return float(roc_auc_score(labels, scores))


def probe_files(labels: np.ndarray, images: Tensor, groups: np.ndarray, *, seed: int = 0) -> Mapping[str, float]:
    """Apply `probe` to each kind of statistics of `describe_files`, and to all together under "all"."""
    found = describe_files(images)
    found["all"] = np.concatenate(list(found.values()), 1)
    return {name: probe(labels, features, groups, seed=seed) for name, features in found.items()}
