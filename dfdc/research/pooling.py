"""A track's frame logits -> one logit: fixed rules, a small learned one, and their comparison on labelled clips.

The kernel takes the mean (`dfdc.aggregate`): nothing here has clearly beaten it, see docs/experiments.md. How several
persons make a clip is the kernel's own for every rule.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
from scipy.optimize import minimize

from dfdc.aggregate import clip_probability, logit, prior_shift
from dfdc.errors import DataError
from dfdc.evaluation.metrics import balance, draw_scores, interval
from dfdc.weights import sigmoid

# From a track's frame logits (T,), T at least 1, in any order, to its own.
Rule = Callable[[np.ndarray], float]

# The learned rule weighs the frames by rank: a weight for each of these parts of them, from the least suspicious up.
EDGES = (0.0, 0.25, 0.5, 0.75, 0.9, 1.0)
# How far scale and bias of the clips' logits are expected to lie from the frames', as standard deviations.
SCALE_SPREAD, BIAS_SPREAD = 0.45, 0.5
# Log loss knows no certainty; rules that answer with a probability keep this far from it.
TINY = 1e-12
KERNELS, LEARNED = "mean of logits", "learned"


@dataclass(frozen=True)
class ScoredClip:
    """A labelled clip and what the nets say of its frames.

    Attributes:
        name: of its file.
        source: what an original shares with all its fakes.
        label: 1 = fake, 0 = real.
        tracks: per person the calibrated logits (T,) of the frames; none where no face was found.
    """

    name: str
    source: str
    label: int
    tracks: tuple[np.ndarray, ...]


def take_mean(logits: np.ndarray) -> float:
    """The kernel's rule."""
    return float(np.mean(logits))


def take_maximum(logits: np.ndarray) -> float:
    """The most suspicious frame's."""
    return float(np.max(logits))


def trust_confident(logits: np.ndarray) -> float:
    """The challenge's winner's rule (selimsef, confident_strategy), for any number of frames.

    The mean of the probabilities above .8 where more than 2 in 5 are, the mean of those below .2 where more than 9 in
    10 are, else the mean of all. The winner also wants more than 11 frames above .8, of 32; of 32 the 2 in 5 is the
    more, so nothing is lost by leaving it out. Not monotone.
    """
    probabilities = sigmoid(logits)
    fake, real = probabilities > 0.8, probabilities < 0.2
    if fake.mean() > 1 / 2.5:
        return _safe_logit(probabilities[fake].mean())
    return _safe_logit(probabilities[real].mean() if real.mean() > 0.9 else probabilities.mean())


def weigh_by_confidence(logits: np.ndarray) -> float:
    """The third's rule (NTech): probabilities driven outwards, and averaged by their distance from one half.

    Not monotone: a frame that says nothing has no weight; raised a little, it gets some and pulls a certain fake down.
    """
    distances = sigmoid(logits) - 0.5
    if not distances.any():
        return 0.0
    driven = np.clip(0.5 + np.sign(distances) * np.abs(distances) ** 0.65, 0.01, 0.99)
    return _safe_logit(np.average(driven, weights=np.abs(distances)))


def take_any(logits: np.ndarray) -> float:
    """Noisy-or: the track is fake if any frame is, and frames are independent. Frames that say nothing say fake."""
    return _any_logit(np.asarray(logits, float))


def take_any_keeping_prior(logits: np.ndarray) -> float:
    """Noisy-or where each of T frames is fake with the prior 1 - (1 - PRIOR)^(1/T), so that the track's stays."""
    return _any_logit(np.asarray(logits, float) + prior_shift(len(logits)))


FIXED_RULES: dict[str, Rule] = {
    KERNELS: take_mean,
    "maximum": take_maximum,
    "winner's confident rule": trust_confident,
    "NTech's weighted mean": weigh_by_confidence,
    "noisy-or": take_any,
    "noisy-or, prior kept": take_any_keeping_prior,
}


def _safe_logit(probability: float) -> float:
    return logit(float(np.clip(probability, TINY, 1 - TINY)))


def _any_logit(logits: np.ndarray) -> float:
    """The logit of 1 - prod(1 - sigmoid(logits)), without rounding it to certainty."""
    real = np.logaddexp(0, logits).sum()
    return float(real + np.log(-np.expm1(-real)))


@dataclass(frozen=True)
class Pooling:
    """The learned rule: bias + sum of weight x mean logit of the part of the frames that lies between two `EDGES`.

    The frames are ranked first, so that their order does not matter, and a frame that straddles an edge counts on both
    sides by its share, so that any number of frames will do: one alone is every part. As no weight is negative,
    raising a frame never lowers the answer. At its starting parameters, each weight its part's width, it is the mean.

    Attributes:
        weights: one for each part, the least suspicious frames' first; 0 or more.
        bias: added to their sum.
    """

    weights: tuple[float, ...] = tuple(float(width) for width in np.diff(EDGES))
    bias: float = 0.0

    def __post_init__(self) -> None:
        wanted = len(EDGES) - 1
        if len(self.weights) != wanted or not all(0 <= w < math.inf for w in self.weights):
            raise ValueError(f"weights {self.weights}: allowed are {wanted}, finite, 0 or more")
        if not math.isfinite(self.bias):
            raise ValueError(f"bias {self.bias}: allowed are finite numbers")

    def __call__(self, logits: np.ndarray) -> float:
        return float(rank_means(logits) @ self.weights + self.bias)


def rank_means(logits: np.ndarray) -> np.ndarray:
    """Means over parts of the ranked frames.

    Args:
        logits: (T,) in any order, T at least 1.

    Returns:
        (len(EDGES) - 1,) float64, rising.
    """
    low, high = np.array(EDGES[:-1])[:, None], np.array(EDGES[1:])[:, None]
    ends = np.arange(len(logits) + 1) / len(logits)
    shares = np.clip(np.minimum(high, ends[1:]) - np.maximum(low, ends[:-1]), 0, None)
    return shares @ np.sort(logits) / (high - low)[:, 0]


def fit_pooling(clips: Sequence[ScoredClip], *, spread: float = 1.0) -> Pooling:
    """Fit the learned rule to labelled clips by regularised log loss.

    Reals and fakes count the same however many there are, for the kernel's prior is one half. The parameters'
    prior is normal around the mean's, so that with few clips the rule stays close to it.

    Args:
        clips: of both classes.
        spread: factor to `SCALE_SPREAD` and `BIAS_SPREAD`, > 0; towards 0 the mean remains.

    Raises:
        DataError: one of the classes has no clip with a face.
    """
    weights, bias = _fit(clips, rank_means, np.diff(EDGES), spread)
    return Pooling(tuple(map(float, weights)), bias)


def recalibrate(rule: Rule, clips: Sequence[ScoredClip], *, spread: float = 1.0) -> Rule:
    """A rule with a scale and a bias after it, fitted as `fit_pooling` does; for comparing rules by their order alone.

    Raises:
        DataError: one of the classes has no clip with a face.
    """
    (scale,), bias = _fit(clips, lambda logits: np.array([rule(logits)]), np.ones(1), spread)
    return lambda logits: scale * rule(logits) + bias


def _fit(
    clips: Sequence[ScoredClip], describe: Callable[[np.ndarray], np.ndarray], start: np.ndarray, spread: float
) -> tuple[np.ndarray, float]:
    """Weights, 0 or more, of a track's features, and a bias; `start` holds the weights before fitting."""
    clips = [clip for clip in clips if clip.tracks]
    labels = np.array([clip.label for clip in clips], int)
    n_fakes = int(labels.sum())
    if not 0 < n_fakes < len(labels):
        raise DataError(f"{len(labels) - n_fakes} reals and {n_fakes} fakes with a face; a fit needs both")
    if not spread > 0:
        raise ValueError(f"spread is {spread}; allowed are numbers above 0")
    features = np.array([describe(track) for clip in clips for track in clip.tracks])
    owners = np.repeat(np.arange(len(clips)), [len(clip.tracks) for clip in clips])
    shifts = np.array([prior_shift(len(clip.tracks)) for clip in clips])[owners]
    importance = balance(labels)
    # The sum of the weights is the scale: it is to spread as far however many they are.
    spreads = spread * np.append(np.full(len(start), SCALE_SPREAD / math.sqrt(len(start))), BIAS_SPREAD)
    centre = np.append(start, 0.0)
    columns = np.column_stack([features, np.ones(len(features))])

    def loss(parameters: np.ndarray) -> tuple[float, np.ndarray]:
        logits = columns @ parameters + shifts
        real = np.bincount(owners, np.logaddexp(0, logits), len(clips))  # minus the log of the chance to be real
        losses = np.where(labels == 1, -np.log(-np.expm1(-real)), real)
        slopes = importance * np.where(labels == 1, -1 / np.expm1(np.minimum(real, 700)), 1.0)
        distance = (parameters - centre) / spreads
        gradient = columns.T @ (slopes[owners] * sigmoid(logits)) + distance / spreads
        return float(importance @ losses + distance @ distance / 2), gradient

    bounds = [(0, None)] * len(start) + [(None, None)]
    fitted = minimize(loss, centre, jac=True, bounds=bounds, method="L-BFGS-B").x
    return fitted[:-1], float(fitted[-1])


def clip_logits(clips: Sequence[ScoredClip], rule: Rule) -> np.ndarray:
    """The clips' logits (N,) float64 before the kernel's bounds; 0, the prior's, where no face was found."""
    pooled = [[np.array([rule(track)]) for track in clip.tracks] for clip in clips]
    return np.array([logit(clip_probability(tracks, low=TINY, high=1 - TINY)) for tracks in pooled])


def left_out_logits(clips: Sequence[ScoredClip], fit: Callable[[Sequence[ScoredClip]], Rule]) -> np.ndarray:
    """As `clip_logits`, each source's clips by a rule that was fitted to the other sources'.

    Raises:
        DataError: without some source one of the classes has no clip with a face.
    """
    logits = np.zeros(len(clips))
    for source in {clip.source for clip in clips}:
        rule = fit([clip for clip in clips if clip.source != source])
        own = [index for index, clip in enumerate(clips) if clip.source == source]
        logits[own] = clip_logits([clips[index] for index in own], rule)
    return logits


def splice_fakes(clips: Sequence[ScoredClip], share: float) -> list[ScoredClip]:
    """Clips that are fake in a part of their frames only: a fake's first frames, and its original's after them.

    Args:
        clips: with reals and fakes.
        share: of the frames that stay a fake's, 0 to 1; at least one does.

    Returns:
        The reals as they are, and the fakes of one person whose original is there and has one person too.
    """
    originals = {clip.name: clip.tracks[0] for clip in clips if not clip.label and len(clip.tracks) == 1}
    spliced = []
    for clip in clips:
        if not clip.label:
            spliced.append(clip)
        elif clip.source in originals and len(clip.tracks) == 1:
            fake, original = clip.tracks[0], originals[clip.source]
            n_fake = max(round(share * len(fake)), 1)
            spliced.append(replace(clip, tracks=(np.concatenate([fake[:n_fake], original[n_fake : len(fake)]]),)))
    return spliced


def compare_rules(
    clips: Sequence[ScoredClip],
    *,
    low: float,
    high: float,
    generator: np.random.Generator,
    samples: int = 5000,
    spread: float = 1.0,
) -> dict[str, dict[str, dict[str, float]]]:
    """Measure every rule on the same clips, as it is and after a recalibration; what is fitted never saw the source.

    Args:
        clips: of both classes.
        low, high: the bounds of the kernel's probabilities.
        generator: the only source of chance.
        samples: of the bootstrap over sources.
        spread: as in `fit_pooling`.

    Returns:
        Per rule, by name, its scores (see `score_samples`), and of its balanced log loss the "difference" from the
        kernel's mean and from the recalibrated mean ("beyond_calibration"); of each value, and low and high of its
        95 % interval.

    Raises:
        DataError: one of the classes is absent, with or without some source.
    """
    labels = np.array([clip.label for clip in clips], int)
    if len(set(labels.tolist())) < 2:
        raise DataError(f"{len(clips)} clips of one class; a comparison needs reals and fakes")
    logits = {name: clip_logits(clips, rule) for name, rule in FIXED_RULES.items()}
    for name, rule in FIXED_RULES.items():
        logits[f"{name}, recalibrated"] = left_out_logits(
            clips, lambda others, rule=rule: recalibrate(rule, others, spread=spread)
        )
    logits[LEARNED] = left_out_logits(clips, lambda others: fit_pooling(others, spread=spread))

    sources = [clip.source for clip in clips]
    drawn = draw_scores(labels, sources, logits, generator, samples=samples, low=low, high=high)
    baselines = {"difference": KERNELS, "beyond_calibration": f"{KERNELS}, recalibrated"}
    for scores in drawn.values():
        for key, baseline in baselines.items():
            scores[key] = scores["balanced_log_loss"] - drawn[baseline]["balanced_log_loss"]
    return {name: {key: interval(values) for key, values in scores.items()} for name, scores in drawn.items()}
