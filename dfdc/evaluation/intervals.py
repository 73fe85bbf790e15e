"""Small-sample confidence limits: what a few independent clips can tell at most, also where none of them is wrong."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from scipy.optimize import brentq
from scipy.stats import beta, norm, t

# Every interval of this package has this confidence level.
LEVEL = 0.95


def binomial_limits(share: float, n: float) -> tuple[float, float]:
    """Clopper and Pearson's exact interval of a share, 0..1.

    Args:
        share: observed, 0..1.
        n: independent observations, more than 0; an effective number need not be whole.
    """
    tail, hits = (1 - LEVEL) / 2, share * n
    low = float(beta.ppf(tail, hits, n - hits + 1)) if hits > 0 else 0.0
    high = float(beta.ppf(1 - tail, hits + 1, n - hits)) if hits < n else 1.0
    return low, high


def auc_variance(auc: float, n_reals: float, n_fakes: float) -> float:
    """The variance of an AUC from these numbers of independent reals and fakes.

    Hanley and McNeil's formula (Radiology 143, 1982) as modified by Newcombe ("Confidence intervals for an effect size
    measure based on the Mann-Whitney statistic. Part 2", Statistics in Medicine 25, 2006, method 5).
    """
    extra = ((n_reals + n_fakes) / 2 - 1) * ((1 - auc) / (2 - auc) + auc / (1 + auc))
    return auc * (1 - auc) * (1 + extra) / (n_reals * n_fakes)


def auc_limits(auc: float, n_reals: float, n_fakes: float) -> tuple[float, float]:
    """Newcombe's method 5: the AUCs from which the observed one is just not improbably far away.

    It stays within 0..1 and has a width even where every fake is above every real.

    Args:
        auc: observed, 0..1.
        n_reals, n_fakes: independent observations, at least 1 of each; effective numbers need not be whole.
    """
    z = norm.ppf((1 + LEVEL) / 2)

    def excess(candidate: float) -> float:
        return (auc - candidate) ** 2 - z**2 * auc_variance(candidate, n_reals, n_fakes)

    # At both ends of 0..1 the variance is 0, so that the excess is positive there and negative at the AUC itself.
    low = brentq(excess, 0, auc) if 0 < auc < 1 else 0.0
    high = brentq(excess, auc, 1) if 0 < auc < 1 else 1.0
    if auc == 1:
        low = brentq(excess, 0, 1 - 1e-9)
    if auc == 0:
        high = brentq(excess, 1e-9, 1)
    return low, high


def small_sample_limits(
    labels: np.ndarray,
    probabilities: np.ndarray,
    groups: np.ndarray,
    values: Mapping[str, np.ndarray],
    *,
    balanced: np.ndarray,
) -> dict[str, tuple[float, float]]:
    """Confidence limits of each score for a small number of independent groups, even if no prediction is wrong.

    - accuracy: Clopper and Pearson's exact interval. Without a mistake among n groups it is about 1 - 3.7 / n to 1, the
      two-sided form of the rule of three.
    - AUC: Newcombe's interval.
    - losses: the loss at both ends of the exact interval of the share of mistakes, if each mistake costs as much as the
      observed mistakes do. If there is no mistake, it costs as much as the most confident prediction would if it were
      wrong.
    - calibration error: the change that this number of mistakes more or less can cause.

    Args:
        labels: (N,) 0 = real, 1 = fake; both occur.
        probabilities: (N,) in (0, 1).
        groups: (N,) int from 0 up, the group of each prediction.
        values: score name -> its value for all predictions, followed by its values for bootstrap samples of groups.
        balanced: (N,) weights of the predictions in the balanced log loss.

    Returns:
        Score name -> lower and upper limit.
    """
    wrong = (probabilities >= 0.5) != labels
    confidence = np.maximum(probabilities, 1 - probabilities)
    plain = np.ones(len(labels))
    errors = binomial_limits(wrong.mean(), _effective_number(groups, values["accuracy"]))
    # Mistakes of the rarer class weigh more, so their share corresponds to fewer groups.
    uneven = _count_groups(groups, balanced) / _count_groups(groups, plain)
    balanced_errors = binomial_limits(
        float(np.average(wrong, weights=balanced)), uneven * _effective_number(groups, values["accuracy"])
    )
    # Certainty, which no calibrated model has, costs as much as scikit-learn lets it cost.
    logs = -np.log(confidence), -np.log(np.maximum(1 - confidence, np.finfo(float).eps))
    squares = (1 - confidence) ** 2, confidence**2
    reach = float(max(errors[1] - wrong.mean(), wrong.mean() - errors[0]))
    calibration_error = float(values["calibration_error"][0])
    return {
        "auc": auc_limits(float(values["auc"][0]), *_effective_classes(labels, groups, values["auc"])),
        "accuracy": (1 - errors[1], 1 - errors[0]),
        "log_loss": _loss_limits(*logs, wrong, plain, errors),
        "balanced_log_loss": _loss_limits(*logs, wrong, balanced, balanced_errors),
        "brier": _loss_limits(*squares, wrong, plain, errors),
        "calibration_error": (max(calibration_error - reach, 0.0), min(calibration_error + reach, 1.0)),
    }


def _loss_limits(
    if_right: np.ndarray, if_wrong: np.ndarray, wrong: np.ndarray, weights: np.ndarray, errors: tuple[float, float]
) -> tuple[float, float]:
    """The mean losses at both ends of the interval of the share of mistakes.

    Args:
        if_right, if_wrong: (N,) loss of each prediction if it is right, and if it is wrong.
        wrong: (N,) bool, the predictions that are wrong.
        weights: (N,) weights of the predictions.
        errors: lower and upper end of the share of mistakes.
    """
    right = np.average(if_right[~wrong], weights=weights[~wrong]) if (~wrong).any() else if_right.min()
    mistake = np.average(if_wrong[wrong], weights=weights[wrong]) if wrong.any() else if_wrong.max()
    low, high = ((1 - share) * right + share * mistake for share in errors)
    return float(low), float(high)


def _effective_number(groups: np.ndarray, accuracies: np.ndarray) -> float:
    """The number of independent predictions to which the accuracies (of all, then of each sample) correspond."""
    n_groups, variance = int(groups.max()) + 1, float(np.var(accuracies[1:]))
    expected = accuracies[0] * (1 - accuracies[0]) / len(groups)
    if n_groups == 1 or variance == 0 or expected == 0:  # samples that do not differ tell nothing
        return _count_groups(groups, np.ones(len(groups)))
    return len(groups) * _effective_share(expected, variance, n_groups)


def _effective_classes(labels: np.ndarray, groups: np.ndarray, aucs: np.ndarray) -> tuple[float, float]:
    """The numbers of independent reals and fakes to which the AUCs (of all, then of each sample) correspond."""
    counts = [int(np.sum(labels == label)) for label in (0, 1)]
    n_groups = [len(np.unique(groups[labels == label])) for label in (0, 1)]
    variance, expected = float(np.var(aucs[1:])), auc_variance(float(aucs[0]), *counts)
    if min(n_groups) == 1 or variance == 0 or expected <= 0:
        return n_groups[0], n_groups[1]
    share = _effective_share(expected, variance, min(n_groups))
    return max(share * counts[0], 1.0), max(share * counts[1], 1.0)


def _effective_share(expected: float, measured: float, n_groups: int) -> float:
    """The share of predictions that count as independent, at most 1 (Korn and Graubard, Survey Methodology 24, 1998).

    Args:
        expected: variance of a score of independent predictions.
        measured: its variance over samples of groups, more than 0.
        n_groups: number of groups, at least 2. A variance from few groups is uncertain; Student's t allows for that.
    """
    tail = (1 + LEVEL) / 2
    return float(min(expected / measured, 1) * (norm.ppf(tail) / t.ppf(tail, n_groups - 1)) ** 2)


def _count_groups(groups: np.ndarray, weights: np.ndarray) -> float:
    """Kish's effective number of groups; it is smaller than their number if their weights (N,) are uneven."""
    by_group = np.bincount(groups, weights)
    return float(by_group.sum() ** 2 / (by_group**2).sum())
