"""Fusion of motion scores with frame scores: calibration, weight, and clips with and without motion."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from dfdc.aggregate import clip_probability, logit
from dfdc.data.clips import LabelledClip
from dfdc.errors import DataError
from dfdc.evaluation.metrics import draw_scores, fit_calibration, interval, score_samples
from dfdc.research.motion_training import PairSet
from dfdc.weights import Calibration

# Candidate weights of motion; 0 omits it.
CHOICES = (0.0, 0.25, 0.5, 0.75, 1.0, 1.5, 2.0, 3.0)


@dataclass(frozen=True)
class SeenClip:
    """A clip and its scores.

    Attributes:
        clip: labelled.
        frames: for each person the calibrated logits (T,) of the frames from the face models.
        changes: for each person the mean logit of its pairs from a motion model that never saw the clip; 0 without
            pairs.
    """

    clip: LabelledClip
    frames: tuple[np.ndarray, ...]
    changes: np.ndarray

    def logit(self, calibration: Calibration, weight: float, bounds: tuple[float, float]) -> float:
        """The logit of the clip's probability, as the kernel computes it."""
        added = np.where(self.changes == 0, 0, weight * calibration.logits(self.changes))
        tracks = [track + change for track, change in zip(self.frames, added, strict=True)]
        return logit(clip_probability(tracks, low=bounds[0], high=bounds[1]))


def measure_motion(
    seen: Sequence[SeenClip],
    folds: Sequence[set[str]],
    pairs: PairSet,
    pair_logits: np.ndarray,
    bounds: tuple[float, float],
    *,
    samples: int = 5000,
) -> dict[str, object]:
    """Measure clips with and without motion; the calibration and weight of each fold are chosen on the others.

    Args:
        seen: the clips.
        folds: their sources.
        pairs: labelled.
        pair_logits: (N,) of the pairs from models that never saw them.
        bounds: of the probabilities.
        samples: number of bootstrap samples over sources.

    Returns:
        "frames alone" and "with motion": auc, log_loss and balanced_log_loss, each with value, low and high of its 95 %
        interval; "difference" between the two; "weights" chosen for each fold; "clips" with all logits.
    """
    labels = np.array([clip.clip.label == "FAKE" for clip in seen], int)
    sources = [clip.clip.source for clip in seen]
    alone = np.array([clip.logit(Calibration(), 0.0, bounds) for clip in seen])
    fused, weights = alone.copy(), []
    for fold in folds:
        others = ~np.isin(pairs.sources, sorted(fold))
        calibration = calibrate(pairs.labels.numpy()[others], pair_logits[others])
        weights.append(choose_weight([clip for clip in seen if clip.clip.source not in fold], calibration, bounds))
        for index, clip in enumerate(seen):
            if clip.clip.source in fold:
                fused[index] = clip.logit(calibration, weights[-1], bounds)
    drawn = draw_scores(
        labels,
        sources,
        {"frames alone": alone, "with motion": fused},
        np.random.default_rng(0),
        samples=samples,
        low=bounds[0],
        high=bounds[1],
    )
    drawn["difference"] = {key: values - drawn["frames alone"][key] for key, values in drawn["with motion"].items()}
    rows = zip(seen, alone.tolist(), fused.tolist(), strict=True)
    return {
        **{name: {key: interval(values) for key, values in scores.items()} for name, scores in drawn.items()},
        "weights": weights,
        "clips": {
            clip.clip.name: {
                "label": clip.clip.label,
                "frames": frames,
                "with motion": both,
                "motion": [round(float(change), 3) for change in clip.changes],
            }
            for clip, frames, both in rows
        },
    }


def choose_weight(seen: Sequence[SeenClip], calibration: Calibration, bounds: tuple[float, float]) -> float:
    """The weight among `CHOICES` with the lowest balanced log loss."""
    labels = np.array([clip.clip.label == "FAKE" for clip in seen], int)
    losses = []
    for weight in CHOICES:
        logits = np.array([clip.logit(calibration, weight, bounds) for clip in seen])
        scores = score_samples(labels, logits, np.ones((1, len(seen)), int), low=bounds[0], high=bounds[1])
        losses.append(float(scores["balanced_log_loss"][0]))
    return CHOICES[int(np.argmin(losses))]


def calibrate(labels: np.ndarray, logits: np.ndarray) -> Calibration:
    """Fit a calibration to pairs, see `fit_calibration`.

    Args:
        labels: (N,) 0 or 1.
        logits: (N,) of one model.

    Raises:
        DataError: a class is absent.
    """
    n_fakes = int(np.sum(labels == 1))
    if not 0 < n_fakes < len(labels):
        raise DataError(
            f"{len(labels) - n_fakes} real and {n_fakes} fake pairs; calibration needs both; name more clips"
        )
    return fit_calibration(labels, logits)
