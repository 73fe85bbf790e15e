"""The frame logits of a face track -> one logit: fixed rules, a learned one, and their comparison on labelled clips.

The kernel takes the mean (`dfdc.aggregate`), which nothing here has clearly beaten (docs/experiments.md). All rules
combine several people as the kernel does.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
from scipy.optimize import minimize

from dfdc.aggregate import clip_probability, logit, prior_shift, track_logit
from dfdc.errors import DataError, SettingError
from dfdc.evaluation.metrics import balance, draw_scores, interval
from dfdc.weights import sigmoid

# Takes the frame logits (T,) of a track, T at least 1, in any order, and returns the track's logit.
Rule = Callable[[np.ndarray], float]

# The learned rule weights ranked frames: one weight for each of these parts, the least suspicious frames first.
EDGES = (0.0, 0.25, 0.5, 0.75, 0.9, 1.0)
# Standard deviations of the prior of scale and bias, around those that turn frame logits into clip logits unchanged.
SCALE_SPREAD, BIAS_SPREAD = 0.45, 0.5
# Log loss excludes certainty, so probabilities are kept this far from 0 and 1.
TINY = 1e-12
KERNELS, LEARNED = "the kernel's rule", "learned"


@dataclass(frozen=True)
class ScoredClip:
    """A labelled clip and the logits of its frames.

    Attributes:
        name: of its file.
        source: the name that an original shares with all its fakes.
        label: 1 = fake, 0 = real.
        tracks: for each person the calibrated logits (T,) of the frames; empty if no face was found.
    """

    name: str
    source: str
    label: int
    tracks: tuple[np.ndarray, ...]


def take_mean(logits: np.ndarray) -> float:
    """The mean of all frames' logits."""
    return float(np.mean(logits))


def take_maximum(logits: np.ndarray) -> float:
    """The logit of the most suspicious frame."""
    return float(np.max(logits))


def trust_confident(logits: np.ndarray) -> float:
    """The rule of the challenge's winner (selimsef, confident_strategy), for any number of frames.

    If more than 2 in 5 probabilities are above .8, it is the mean of these; if more than 9 in 10 are below .2, the mean
    of these; otherwise the mean of all. The winner also demands more than 11 of 32 frames above .8, which 2 in 5 of 32
    frames imply. The rule is not monotone.
    """
    probabilities = sigmoid(logits)
    fake, real = probabilities > 0.8, probabilities < 0.2
    if fake.mean() > 1 / 2.5:
        return _safe_logit(probabilities[fake].mean())
    return _safe_logit(probabilities[real].mean() if real.mean() > 0.9 else probabilities.mean())


def weigh_by_confidence(logits: np.ndarray) -> float:
    """The rule of the third place (NTech): probabilities moved outwards, then averaged by their distance from one half.

    It is not monotone: a frame at one half has no weight, but raised a little it gets some and lowers a certain fake.
    """
    distances = sigmoid(logits) - 0.5
    if not distances.any():
        return 0.0
    driven = np.clip(0.5 + np.sign(distances) * np.abs(distances) ** 0.65, 0.01, 0.99)
    return _safe_logit(np.average(driven, weights=np.abs(distances)))


def take_any(logits: np.ndarray) -> float:
    """Noisy-or: the track is fake if any frame is, with independent frames. Many undecided frames then mean fake."""
    return _any_logit(np.asarray(logits, float))


def take_any_keeping_prior(logits: np.ndarray) -> float:
    """Noisy-or with the prior 1 - (1 - PRIOR)^(1/T) for each of T frames, which keeps the prior of the track."""
    return _any_logit(np.asarray(logits, float) + prior_shift(len(logits)))


FIXED_RULES: dict[str, Rule] = {
    KERNELS: track_logit,
    "mean of logits": take_mean,
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
    """The learned rule: bias + sum of weight x mean logit, over the parts of the ranked frames between two `EDGES`.

    A frame that straddles an edge counts on both sides by its share, so the rule works for any number of frames. As no
    weight is negative, raising a frame never lowers the result. The initial weights, the widths of the parts, give the
    mean.

    Attributes:
        weights: one for each part, the least suspicious frames' first; 0 or more.
        bias: added to their sum.
    """

    weights: tuple[float, ...] = tuple(float(width) for width in np.diff(EDGES))
    bias: float = 0.0

    def __post_init__(self) -> None:
        wanted = len(EDGES) - 1
        if len(self.weights) != wanted or not all(0 <= w < math.inf for w in self.weights):
            raise SettingError(f"weights {self.weights}: allowed are {wanted} finite numbers from 0 up")
        if not math.isfinite(self.bias):
            raise SettingError(f"bias {self.bias}: allowed are finite numbers")

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

    Both classes have the same weight, since the kernel's prior is one half. The parameters have a normal prior around
    those of the mean, so that the rule stays close to the mean when there are few clips.

    Args:
        clips: of both classes.
        spread: factor of `SCALE_SPREAD` and `BIAS_SPREAD`, > 0; near 0 the rule is the mean.

    Raises:
        DataError: one of the classes has no clip with a face.
    """
    weights, bias = _fit(clips, rank_means, np.diff(EDGES), spread)
    return Pooling(tuple(map(float, weights)), bias)


def recalibrate(rule: Rule, clips: Sequence[ScoredClip], *, spread: float = 1.0) -> Rule:
    """A rule followed by a scale and a bias, fitted as in `fit_pooling`, so that rules are compared by ranking alone.

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
        raise SettingError(f"spread is {spread}; allowed are numbers above 0")
    features = np.array([describe(track) for clip in clips for track in clip.tracks])
    owners = np.repeat(np.arange(len(clips)), [len(clip.tracks) for clip in clips])
    shifts = np.array([prior_shift(len(clip.tracks)) for clip in clips])[owners]
    importance = balance(labels)
    # The sum of the weights is the scale, whose spread must not depend on their number.
    spreads = spread * np.append(np.full(len(start), SCALE_SPREAD / math.sqrt(len(start))), BIAS_SPREAD)
    centre = np.append(start, 0.0)
    columns = np.column_stack([features, np.ones(len(features))])

    def loss(parameters: np.ndarray) -> tuple[float, np.ndarray]:
        logits = columns @ parameters + shifts
        real = np.bincount(owners, np.logaddexp(0, logits), len(clips))  # minus the log of P(real)
        losses = np.where(labels == 1, -np.log(-np.expm1(-real)), real)
        slopes = importance * np.where(labels == 1, -1 / np.expm1(np.minimum(real, 700)), 1.0)
        distance = (parameters - centre) / spreads
        gradient = columns.T @ (slopes[owners] * sigmoid(logits)) + distance / spreads
        return float(importance @ losses + distance @ distance / 2), gradient

    bounds = [(0, None)] * len(start) + [(None, None)]
    fitted = minimize(loss, centre, jac=True, bounds=bounds, method="L-BFGS-B").x
    return fitted[:-1], float(fitted[-1])


def clip_logits(clips: Sequence[ScoredClip], rule: Rule) -> np.ndarray:
    """The clips' logits (N,) float64 before the kernel's bounds; 0, that of the prior, without a face."""
    pooled = [[np.array([rule(track)]) for track in clip.tracks] for clip in clips]
    return np.array([logit(clip_probability(tracks, low=TINY, high=1 - TINY)) for tracks in pooled])


def left_out_logits(clips: Sequence[ScoredClip], fit: Callable[[Sequence[ScoredClip]], Rule]) -> np.ndarray:
    """As `clip_logits`, but each source's clips are scored by a rule that was fitted to the other sources.

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
    """Simulate partly faked clips: the first frames of a fake, followed by frames of its original.

    Args:
        clips: reals and fakes.
        share: of fake frames, 0 to 1; at least one frame is fake.

    Returns:
        The reals unchanged, and the fakes with one person whose original is present and also shows one person.
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
    """Measure every rule on the same clips, with and without recalibration, fitted to other sources only.

    Args:
        clips: of both classes.
        low, high: the bounds of the kernel's probabilities.
        generator: the only source of randomness.
        samples: of the bootstrap over sources.
        spread: as in `fit_pooling`.

    Returns:
        For each rule its scores (see `score_samples`), and the difference of its balanced log loss from the kernel's
        mean ("difference") and from the recalibrated mean ("beyond_calibration"), each as the value, low and high of
        its 95 % interval.

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
