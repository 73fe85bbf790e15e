"""Probabilities and labels -> scores with confidence intervals, and the calibration that weights files store."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace

import numpy as np
from scipy.optimize import minimize
from sklearn.metrics import brier_score_loss, log_loss, roc_auc_score

from dfdc.evaluation.intervals import LEVEL, small_sample_limits
from dfdc.weights import Calibration, sigmoid

# The boldest bound of a probability. The challenge's five best entries lost .14 to .22 of log loss from the public to
# the private test set because of too certain predictions.
BOLDEST = 0.01
# Trained models need temperatures of .8 to 1.5. Logits that need more than the greatest are uninformative. The least is
# for validation sets so small that a model makes no mistake: its logits would grow without limit and dominate an
# ensemble.
LEAST_TEMPERATURE, MOST_TEMPERATURE = 0.1, 100.0


def measure(labels: np.ndarray, probabilities: np.ndarray) -> dict[str, float]:
    """Score predictions.

    Args:
        labels: (N,) 0 = real, 1 = fake; both occur.
        probabilities: (N,) in (0, 1).

    Returns:
        auc, log_loss, balanced_log_loss (mean over the two classes of the class means), brier, accuracy (threshold
        0.5), calibration_error (expected, 10 equal bins) and n.
    """
    labels = np.asarray(labels, int)
    bins = np.minimum((probabilities * 10).astype(int), 9)
    gaps = [abs(labels[bins == b].mean() - probabilities[bins == b].mean()) * (bins == b).mean() for b in set(bins)]
    return {
        "auc": float(roc_auc_score(labels, probabilities)),
        "log_loss": float(log_loss(labels, probabilities)),
        "balanced_log_loss": float(log_loss(labels, probabilities, sample_weight=balance(labels))),
        "brier": float(brier_score_loss(labels, probabilities)),
        "accuracy": float(((probabilities >= 0.5) == labels).mean()),
        "calibration_error": float(np.sum(gaps)),
        "n": len(labels),
    }


def balance(labels: np.ndarray) -> np.ndarray:
    """Weights (N,) with a mean of 1 that balance the classes; labels are 0 or 1, and both occur."""
    n_fakes = np.sum(labels == 1)
    return len(labels) / 2 / np.where(labels == 1, n_fakes, len(labels) - n_fakes)


def measure_intervals(
    labels: np.ndarray,
    probabilities: np.ndarray,
    generator: np.random.Generator,
    *,
    groups: np.ndarray | None = None,
    samples: int = 1000,
) -> dict[str, dict[str, float] | float | int]:
    """The scores of `measure`, each with a 95 % confidence interval that also holds for few groups.

    The interval is that of a bootstrap over groups, each drawn as a whole, so that the reals and fakes of one identity
    stay together. Groups with reals only, with fakes only and with both are drawn separately, which keeps every score
    defined. A bootstrap of few groups claims too much, and its interval has no width where no prediction is wrong, so
    it is widened to enclose `dfdc.evaluation.intervals.small_sample_limits`.

    Args:
        labels: (N,) 0 = real, 1 = fake; both occur.
        probabilities: (N,) in (0, 1).
        generator: the only source of randomness.
        groups: (N,) names of what is drawn as a whole, such as the identity or the source video that several clips or
            crops are from; None makes each prediction a group.
        samples: the number of bootstrap samples, at least 1.

    Returns:
        Per score its "value", "low" and "high"; and three plain numbers: "n", "n_groups" and "level" (0.95).
    """
    labels, probabilities = np.asarray(labels, int), np.asarray(probabilities, float)
    groups = np.arange(len(labels)) if groups is None else np.unique(np.asarray(groups), return_inverse=True)[1]
    drawn = [measure(labels, probabilities)]
    for sample in draw_groups(labels, groups, generator, samples=samples):
        drawn.append(measure(labels[sample], probabilities[sample]))
    values = {name: np.array([scores[name] for scores in drawn]) for name in drawn[0] if name != "n"}
    limits = small_sample_limits(labels, probabilities, groups, values, balanced=balance(labels))
    scores: dict[str, dict[str, float] | float | int] = {
        "n": len(labels),
        "n_groups": int(groups.max()) + 1,
        "level": LEVEL,
    }
    for name, of_name in values.items():
        bootstrap, (low, high) = interval(of_name), limits[name]
        scores[name] = bootstrap | {"low": min(bootstrap["low"], low), "high": max(bootstrap["high"], high)}
    return scores


def draw_groups(
    labels: np.ndarray, groups: np.ndarray, generator: np.random.Generator, *, samples: int
) -> Iterator[np.ndarray]:
    """Draw bootstrap samples of whole groups, as many of each kind as there are.

    Args:
        labels: (N,) 0 or 1.
        groups: (N,) int, the group of each prediction.
        generator: the only source of randomness.
        samples: the number of samples.

    Yields:
        Indices of the predictions of a sample. Groups with reals only, with fakes only and with both are the kinds.
    """
    order = np.argsort(groups, kind="stable")
    members = np.split(order, np.flatnonzero(np.diff(groups[order])) + 1)
    kinds: dict[tuple[int, ...], list[np.ndarray]] = {}
    for member in members:
        kinds.setdefault(tuple(np.unique(labels[member])), []).append(member)
    for _ in range(samples):
        picks = [kind[i] for kind in kinds.values() for i in generator.integers(len(kind), size=len(kind))]
        yield np.concatenate(picks)


def draw_sources(sources: Sequence[str], generator: np.random.Generator, *, samples: int) -> np.ndarray:
    """Draw bootstrap samples of sources, as many sources in each as there are.

    Returns:
        (samples, N) how often each of the N clips is drawn, which is equal for the clips of a source.
    """
    _, owners = np.unique(sources, return_inverse=True)
    n = owners.max() + 1
    return generator.multinomial(n, np.full(n, 1 / n), size=samples)[:, owners]


def score_samples(
    labels: np.ndarray, logits: np.ndarray, counts: np.ndarray, *, low: float, high: float
) -> dict[str, np.ndarray]:
    """Score bootstrap samples of clips.

    Args:
        labels: (N,) 0 or 1.
        logits: (N,) of the clips.
        counts: (B, N) how often each sample contains each clip; every sample has both classes.
        low, high: bounds of the probabilities, which do not affect the AUC.

    Returns:
        auc, log_loss and balanced_log_loss, (B,) float64 each.
    """
    probabilities = np.clip(sigmoid(logits), low, high)
    losses = -np.log(np.where(labels == 1, probabilities, 1 - probabilities))
    fakes, reals = counts[:, labels == 1], counts[:, labels == 0]
    above = logits[labels == 1][:, None] - logits[labels == 0]
    wins = ((fakes @ ((np.sign(above) + 1) / 2)) * reals).sum(1)
    by_class = [(part @ losses[labels == label]) / part.sum(1) for label, part in ((1, fakes), (0, reals))]
    return {
        "auc": wins / fakes.sum(1) / reals.sum(1),
        "log_loss": counts @ losses / counts.sum(1),
        "balanced_log_loss": np.mean(by_class, axis=0),
    }


def draw_scores(
    labels: np.ndarray,
    sources: Sequence[str],
    answers: Mapping[str, np.ndarray],
    generator: np.random.Generator,
    *,
    samples: int,
    low: float,
    high: float,
) -> dict[str, dict[str, np.ndarray]]:
    """Score several sets of logits on the clips, and then on bootstrap samples of their sources, the same for all sets.

    Args:
        labels, low, high: as in `score_samples`.
        sources: (N,) of the clips.
        answers: logits (N,) by name.
        generator: the only source of randomness.
        samples: number of samples; those that lack a class are left out.

    Returns:
        For each name the scores of `score_samples`, each (1 + B,), the first on the clips themselves.
    """
    counts = draw_sources(sources, generator, samples=samples)
    counts = counts[(counts[:, labels == 1].sum(1) > 0) & (counts[:, labels == 0].sum(1) > 0)]
    counts = np.concatenate([np.ones((1, len(labels)), int), counts])
    return {name: score_samples(labels, logits, counts, low=low, high=high) for name, logits in answers.items()}


def interval(values: np.ndarray) -> dict[str, float]:
    """The percentile interval, at `LEVEL`, of a score: the first value is the score, the others are of samples."""
    low, high = np.quantile(values[1:], ((1 - LEVEL) / 2, (1 + LEVEL) / 2))
    return {"value": float(values[0]), "low": float(low), "high": float(high)}


def fit_calibration(labels: np.ndarray, logits: np.ndarray, weights: np.ndarray | None = None) -> Calibration:
    """Fit temperature and bias by minimising the log loss, then the bounds of probabilities.

    Both classes have the same weight: four in five of the challenge's training clips are fakes, but half of its test
    clips (`dfdc.prediction.PRIOR`).

    The bounds are the error rate of the most confident predictions: if k of the n in the tenth with the lowest
    probabilities are fakes, the lower bound is (k + 1) / (n + 2) by Laplace's rule, but at least `BOLDEST`; likewise
    for the upper bound. Clips, whose scores average many frames, would permit bolder bounds; clips unlike those of
    validation require more cautious ones.

    Args:
        labels: (N,) 0 or 1, both occur.
        logits: (N,) of one model or the mean of an ensemble, before calibration.
        weights: (N,) how much each counts, 1 on average; None gives both classes the same weight.
    """
    labels = np.asarray(labels, float)
    weights = balance(labels) if weights is None else weights

    def loss(parameters: np.ndarray) -> float:
        scaled = logits * np.exp(parameters[0]) + parameters[1]
        return float(np.mean(weights * (np.logaddexp(0, scaled) - labels * scaled)))

    bounds = [(-np.inf, -np.log(LEAST_TEMPERATURE)), (-np.inf, np.inf)]
    fitted = minimize(loss, np.zeros(2), method="Nelder-Mead", bounds=bounds).x
    calibration = Calibration(float(np.exp(-fitted[0])), float(fitted[1]), 1e-6, 1 - 1e-6)
    order = np.argsort(calibration.probabilities(logits))
    least, most = order, order[::-1]
    low, high = _error_of_tenth(labels[least], weights[least]), _error_of_tenth(1 - labels[most], weights[most])
    return replace(calibration, low=low, high=1 - high)


def _error_of_tenth(wrong: np.ndarray, weights: np.ndarray) -> float:
    """Laplace's rule for the most confident tenth, from mistakes (N,) and weights, the most confident first."""
    tenth = max(int(np.searchsorted(np.cumsum(weights), len(weights) / 10, side="right")), 1)
    error = (weights[:tenth] @ wrong[:tenth] + 1) / (weights[:tenth].sum() + 2)
    return float(np.clip(error, BOLDEST, 0.5))


def tells_nothing(calibration: Calibration) -> bool:
    """Whether the logits are uninformative, so that the calibrated probabilities are all nearly equal."""
    return calibration.temperature > MOST_TEMPERATURE


def measure_calibrated(labels: np.ndarray, logits: np.ndarray) -> tuple[dict[str, float], Calibration]:
    """Scores (see `measure`) after calibration, the balanced log loss before it (raw_log_loss), and the calibration.

    Args:
        labels, logits: as in `fit_calibration`.
    """
    calibration = fit_calibration(labels, logits)
    raw = measure(labels, sigmoid(logits))
    return {**measure(labels, calibration.probabilities(logits)), "raw_log_loss": raw["balanced_log_loss"]}, calibration


def balance_families(labels: np.ndarray, families: np.ndarray) -> np.ndarray:
    """Compute weights (N,) that give equal weight to families, and to both classes in each; their mean is 1.

    A family that lacks a class has weight 0, because its crops may differ from others by the camera alone.
    """
    weights, names = np.zeros(len(labels)), sorted(set(families))
    for name in names:
        own = families == name
        if len(set(labels[own])) == 2:
            weights[own] = balance(labels[own]) / own.sum()
    return weights * len(labels) / max(weights.sum(), 1e-12)


def measure_families(
    labels: np.ndarray, logits: np.ndarray, families: np.ndarray | None
) -> tuple[dict[str, float], Calibration]:
    """Measure as `measure_calibrated` with equal weight for each family: one calibration, and the mean scores.

    Args:
        labels, logits: as in `fit_calibration`.
        families: (N,) family of each logit; None if there is only one family.

    Returns:
        The mean scores, with "auc NAME" and "log_loss NAME" (the balanced one) of each family with both classes, and
        the calibration.
    """
    names = [] if families is None else sorted(set(families))
    parts = {name: families == name for name in names if len(set(labels[families == name])) == 2}
    if len(parts) < 2:
        return measure_calibrated(labels, logits)
    calibration = fit_calibration(labels, logits, balance_families(labels, families))
    found = {name: measure(labels[own], calibration.probabilities(logits[own])) for name, own in parts.items()}
    raw = [measure(labels[own], sigmoid(logits[own]))["balanced_log_loss"] for own in parts.values()]
    scores = {key: float(np.mean([each[key] for each in found.values()])) for key in next(iter(found.values()))}
    scores |= {"n": len(labels), "raw_log_loss": float(np.mean(raw))}
    for name, each in found.items():
        scores |= {f"auc {name}": each["auc"], f"log_loss {name}": each["balanced_log_loss"]}
    return scores, calibration
