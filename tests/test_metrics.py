"""dfdc.evaluation.metrics: scores equal scikit-learn's, intervals are valid, and calibration is recovered."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import binomtest
from sklearn import metrics
from sklearn.calibration import calibration_curve

from dfdc.evaluation.intervals import auc_limits, auc_variance, binomial_limits
from dfdc.evaluation.metrics import (
    LEAST_TEMPERATURE,
    draw_groups,
    fit_calibration,
    measure,
    measure_intervals,
    tells_nothing,
)
from dfdc.weights import sigmoid


@pytest.fixture
def predictions() -> tuple[np.ndarray, np.ndarray]:
    """Labels and probabilities of 120 reals and 80 fakes that overlap."""
    generator = np.random.default_rng(0)
    labels = np.repeat([0, 1], [120, 80])
    return labels, sigmoid(generator.normal(2.0 * labels - 1, 1.5))


def expected_calibration_error(labels: np.ndarray, probabilities: np.ndarray) -> float:
    """The calibration error from scikit-learn's reliability curve, whose bins are weighted by their sizes."""
    shares, means = calibration_curve(labels, probabilities, n_bins=10)
    sizes, _ = np.histogram(probabilities, np.linspace(0, 1, 11))
    return float(np.abs(shares - means) @ sizes[sizes > 0] / len(labels))


def test_scores_equal_scikit_learns(predictions) -> None:
    labels, probabilities = predictions
    classes = [metrics.log_loss(labels[labels == k], probabilities[labels == k], labels=[0, 1]) for k in (0, 1)]
    assert measure(labels, probabilities) == pytest.approx(
        {
            "auc": metrics.roc_auc_score(labels, probabilities),
            "log_loss": metrics.log_loss(labels, probabilities),
            "balanced_log_loss": np.mean(classes),
            "brier": metrics.brier_score_loss(labels, probabilities),
            "accuracy": metrics.accuracy_score(labels, probabilities >= 0.5),
            "calibration_error": expected_calibration_error(labels, probabilities),
            "n": 200,
        },
        abs=1e-12,
    )


def test_calibration_error_equals_a_calculation_by_hand() -> None:
    """Two bins: (.1 + .2) / 2 given and 1 / 2 fake; .9 given and 1 fake. (2 x .35 + 2 x .1) / 4 = .225."""
    labels, probabilities = np.array([0, 1, 1, 1]), np.array([0.11, 0.19, 0.9, 0.9])
    assert measure(labels, probabilities)["calibration_error"] == pytest.approx(0.225)


def test_scores_equal_a_calculation_by_hand() -> None:
    """Reals .2 and .6, fakes .4 and .8, .9: five of six pairs in order; one real and one fake on the wrong side."""
    scores = measure(np.array([0, 0, 1, 1, 1]), np.array([0.2, 0.6, 0.4, 0.8, 0.9]))
    assert scores["auc"] == pytest.approx(5 / 6) and scores["accuracy"] == pytest.approx(3 / 5)
    reals, fakes = -np.log([0.8, 0.4]), -np.log([0.4, 0.8, 0.9])
    assert scores["log_loss"] == pytest.approx((reals.sum() + fakes.sum()) / 5)
    assert scores["balanced_log_loss"] == pytest.approx((reals.mean() + fakes.mean()) / 2)
    assert scores["brier"] == pytest.approx((0.04 + 0.36 + 0.36 + 0.04 + 0.01) / 5)


def test_perfect_calibration_has_no_error() -> None:
    assert measure(np.array([0, 0, 0, 1]), np.full(4, 0.25))["calibration_error"] == 0


def test_intervals_enclose_their_values_and_follow_their_generator(predictions) -> None:
    first, again, other = (measure_intervals(*predictions, np.random.default_rng(s), samples=40) for s in (1, 1, 2))
    assert first == again != other
    assert first["n"] == 200
    for name, value in measure(*predictions).items():
        if name not in ("n", "calibration_error"):  # randomness can only increase a calibration error
            assert first[name]["low"] < first[name]["value"] < first[name]["high"]
            assert first[name]["value"] == value


def test_interval_of_accuracy_is_binomial() -> None:
    """With 100 right and 100 wrong in each class the standard error is sqrt(.25 / 400) = .025."""
    labels = np.repeat([0, 1], 200)
    probabilities = np.tile([0.2, 0.8], 200)
    accuracy = measure_intervals(labels, probabilities, np.random.default_rng(0), samples=100)["accuracy"]
    assert accuracy["value"] == 0.5
    # With 100 samples the distance of these quantiles is accurate to about a fifth.
    assert accuracy["high"] - accuracy["low"] == pytest.approx(2 * 1.96 * 0.025, rel=0.4)


def test_bootstrap_draws_crops_of_a_video_together(predictions) -> None:
    """Ten copies of every prediction carry no new information: drawn by video, the interval stays as wide."""
    labels, probabilities = predictions
    once = measure_intervals(labels, probabilities, np.random.default_rng(0), samples=200)
    copies = np.tile(np.arange(200), 10)
    groups = np.array([f"{i:03d}.mp4" for i in copies])
    grouped = measure_intervals(
        labels[copies], probabilities[copies], np.random.default_rng(0), groups=groups, samples=200
    )
    # The share of independent predictions is estimated from 200 samples, to about a tenth.
    assert grouped["auc"] == pytest.approx(once["auc"], abs=0.01)
    assert (once["n"], once["n_groups"], grouped["n"], grouped["n_groups"]) == (200, 200, 2000, 200)
    alone = measure_intervals(labels[copies], probabilities[copies], np.random.default_rng(0), samples=50)
    assert alone["auc"]["high"] - alone["auc"]["low"] < 0.6 * (once["auc"]["high"] - once["auc"]["low"])


def test_six_correct_clips_leave_a_wide_interval() -> None:
    """Clopper and Pearson: 0 of 6 wrong leaves 1 - .025 ** (1 / 6) = 45.9 %; each might cost -log(.05)."""
    scores = measure_intervals(np.repeat([0, 1], 3), np.repeat([0.05, 0.95], 3), np.random.default_rng(0), samples=20)
    assert scores["level"] == 0.95
    assert scores["accuracy"] == pytest.approx({"value": 1, "low": 0.025 ** (1 / 6), "high": 1})
    wrong = 1 - 0.025 ** (1 / 6)
    assert scores["log_loss"]["high"] == pytest.approx(-(1 - wrong) * np.log(0.95) - wrong * np.log(0.05))
    assert scores["log_loss"]["low"] == pytest.approx(-np.log(0.95))
    assert scores["brier"]["high"] == pytest.approx((1 - wrong) * 0.05**2 + wrong * 0.95**2)
    # Three reals and three fakes are in perfect order by chance once in 20 times, which hardly excludes .5.
    assert scores["auc"]["low"] == pytest.approx(0.5, abs=0.01) and scores["auc"]["high"] == 1


def test_perfect_scores_of_more_clips_give_narrower_intervals() -> None:
    def low(n: int) -> float:
        labels = np.repeat([0, 1], n)
        return measure_intervals(labels, 0.1 + 0.8 * labels, np.random.default_rng(0), samples=5)["auc"]["low"]

    assert 0.5 < low(3) < low(10) < low(100) < 1 and low(100) > 0.97


def test_bootstrap_draws_reals_and_fakes_of_an_identity_together() -> None:
    """Two identities have the probabilities .1 and .2, and .8 and .9; each fake is above its own real.

    If whole identities are drawn, the AUC of a sample is .75 or 1.
    """
    labels, groups = np.array([0, 1, 0, 1]), np.array(["a", "a", "b", "b"])
    aucs = {
        measure(labels[sample], np.array([0.1, 0.2, 0.8, 0.9])[sample])["auc"]
        for sample in draw_groups(labels, np.array([0, 0, 1, 1]), np.random.default_rng(0), samples=50)
    }
    assert aucs == {0.75, 1.0}
    probabilities = np.array([0.1, 0.2, 0.8, 0.9])
    scores = measure_intervals(labels, probabilities, np.random.default_rng(0), groups=groups, samples=200)
    assert scores["n_groups"] == 2 and scores["auc"]["low"] < 0.75


def test_auc_variance_at_one_half_is_that_of_the_rank_test() -> None:
    """Under the null hypothesis, Mann and Whitney's variance is (m + n + 1) / (12 m n)."""
    assert auc_variance(0.5, 40, 60) == pytest.approx(101 / (12 * 40 * 60), rel=0.02)


@pytest.mark.parametrize("auc", [0.0, 0.3, 0.9, 1.0])
def test_auc_limits_are_where_the_observed_value_becomes_improbable(auc: float) -> None:
    low, high = auc_limits(auc, 12, 20)
    for limit in {low, high} - {auc}:
        assert abs(auc - limit) == pytest.approx(1.959964 * auc_variance(limit, 12, 20) ** 0.5, rel=1e-4)
    assert 0 <= low <= auc <= high <= 1 and low < high


@pytest.mark.parametrize(("hits", "n"), [(0, 6), (3, 28), (28, 28)])
def test_binomial_limits_equal_scipys(hits: int, n: int) -> None:
    expected = binomtest(hits, n).proportion_ci(0.95, method="exact")
    assert binomial_limits(hits / n, n) == pytest.approx((expected.low, expected.high))


@pytest.mark.parametrize(("temperature", "bias"), [(2.5, 0.0), (0.4, 1.2), (1.0, -0.8)])
def test_calibration_recovers_temperature_and_bias(temperature: float, bias: float) -> None:
    """Labels drawn from sigmoid(z / T + b): the likelihood's maximum lies there, to about 1 / sqrt(n).

    The class ratio is removed from the bias, because both classes have equal weight.
    """
    generator = np.random.default_rng(0)
    logits = generator.normal(0, 2 * temperature, 40_000)
    labels = (generator.random(40_000) < sigmoid(logits / temperature + bias)).astype(int)
    odds = labels.mean() / (1 - labels.mean())
    calibration = fit_calibration(labels, logits)
    assert calibration.temperature == pytest.approx(temperature, rel=0.03)
    assert calibration.bias == pytest.approx(bias - np.log(odds), abs=0.04)
    before, after = (measure(labels, sigmoid(z))["balanced_log_loss"] for z in (logits, calibration.logits(logits)))
    assert after <= before


def test_calibration_does_not_depend_on_the_class_ratio(predictions) -> None:
    """Five copies of every fake, as in DFDC's training clips, change only the sample size of the bounds."""
    labels, probabilities = predictions
    logits = np.log(probabilities / (1 - probabilities))
    copies = np.repeat(np.arange(200), np.where(labels == 1, 5, 1))
    once, often = fit_calibration(labels, logits), fit_calibration(labels[copies], logits[copies])
    assert often.temperature == pytest.approx(once.temperature, rel=1e-3)
    assert often.bias == pytest.approx(once.bias, abs=1e-3)


def test_bounds_follow_laplaces_rule_of_succession() -> None:
    """Of 200 predictions, one of the lowest 20 is fake and none of the highest 20 is real: (1 + 1) / 22 and 1 / 22."""
    logits = np.linspace(-4, 4, 200)
    labels = (logits > 0).astype(int)
    labels[5], labels[100] = 1, 0  # both classes are still equally frequent
    calibration = fit_calibration(labels, logits)
    assert calibration.low == pytest.approx(2 / 22)
    assert calibration.high == pytest.approx(1 - 1 / 22)


def test_bounds_stay_between_one_and_ninety_nine_percent() -> None:
    calibration = fit_calibration(np.repeat([0, 1], 2000), np.repeat([-1.0, 1.0], 2000))
    assert (calibration.low, calibration.high) == pytest.approx((0.01, 0.99))


def test_uninformative_logits_are_recognised() -> None:
    labels, logits = np.tile([0, 1], 40), np.repeat([-1.0, 1.0], 40)
    assert tells_nothing(fit_calibration(labels, logits))
    assert not tells_nothing(fit_calibration(labels, logits + labels))


def test_model_without_a_mistake_gets_a_bounded_temperature() -> None:
    labels = np.repeat([0.0, 1.0], 20)
    calibration = fit_calibration(labels, np.where(labels == 1, 0.5, -0.5))
    assert calibration.temperature == pytest.approx(LEAST_TEMPERATURE, rel=0.01)


def test_separable_logits_give_a_finite_calibration() -> None:
    calibration = fit_calibration(np.repeat([0, 1], 16), np.repeat([-1.0, 1.0], 16))
    assert np.isfinite([calibration.temperature, calibration.bias]).all()
    assert calibration.probabilities(np.array([-1.0, 1.0])) == pytest.approx([calibration.low, calibration.high])
