"""dfdc.evaluation.metrics: numbers equal scikit-learn's, intervals hold, calibration finds what was done to logits."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn import metrics
from sklearn.calibration import calibration_curve

from dfdc.evaluation.metrics import LEAST_TEMPERATURE, fit_calibration, measure, measure_intervals, tells_nothing
from dfdc.weights import sigmoid


@pytest.fixture
def predictions() -> tuple[np.ndarray, np.ndarray]:
    """Labels and probabilities of 120 reals and 80 fakes that overlap."""
    generator = np.random.default_rng(0)
    labels = np.repeat([0, 1], [120, 80])
    return labels, sigmoid(generator.normal(2.0 * labels - 1, 1.5))


def expected_calibration_error(labels: np.ndarray, probabilities: np.ndarray) -> float:
    """From scikit-learn's reliability curve, whose bins have to be weighted with their sizes."""
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


def test_calibration_error_by_hand() -> None:
    """Two bins: (.1 + .2) / 2 given and 1 / 2 fake; .9 given and 1 fake. (2 x .35 + 2 x .1) / 4 = .225."""
    labels, probabilities = np.array([0, 1, 1, 1]), np.array([0.11, 0.19, 0.9, 0.9])
    assert measure(labels, probabilities)["calibration_error"] == pytest.approx(0.225)


def test_scores_by_hand() -> None:
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
        if name not in ("n", "calibration_error"):  # chance only ever adds to a calibration error
            assert first[name]["low"] < first[name]["value"] < first[name]["high"]
            assert first[name]["value"] == value


def test_interval_of_accuracy_is_the_binomials() -> None:
    """With 100 right and 100 wrong in each class the standard error is sqrt(.25 / 400) = .025."""
    labels = np.repeat([0, 1], 200)
    probabilities = np.tile([0.2, 0.8], 200)
    accuracy = measure_intervals(labels, probabilities, np.random.default_rng(0), samples=100)["accuracy"]
    assert accuracy["value"] == 0.5
    # 100 samples give the distance of these quantiles to a fifth or so.
    assert accuracy["high"] - accuracy["low"] == pytest.approx(2 * 1.96 * 0.025, rel=0.4)


def test_crops_of_one_video_are_drawn_together(predictions) -> None:
    """Ten copies of every prediction say nothing new: drawn by video, the interval stays as wide."""
    labels, probabilities = predictions
    once = measure_intervals(labels, probabilities, np.random.default_rng(0), samples=30)
    copies = np.tile(np.arange(200), 10)
    groups = np.array([f"{i:03d}.mp4" for i in copies])
    grouped = measure_intervals(
        labels[copies], probabilities[copies], np.random.default_rng(0), groups=groups, samples=30
    )
    assert grouped["auc"] == pytest.approx(once["auc"], abs=1e-12)
    alone = measure_intervals(labels[copies], probabilities[copies], np.random.default_rng(0), samples=30)
    assert alone["auc"]["high"] - alone["auc"]["low"] < 0.6 * (once["auc"]["high"] - once["auc"]["low"])


@pytest.mark.parametrize(("temperature", "bias"), [(2.5, 0.0), (0.4, 1.2), (1.0, -0.8)])
def test_calibration_recovers_temperature_and_bias(temperature: float, bias: float) -> None:
    """Labels drawn from sigmoid(z / T + b): the likelihood's maximum lies there, to about 1 / sqrt(n).

    The classes' own odds go out of the bias: both count alike.
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


def test_calibration_is_for_as_many_fakes_as_reals_however_many_there_are(predictions) -> None:
    """Five copies of every fake, as DFDC's training clips have them, change nothing but the bounds' sample."""
    labels, probabilities = predictions
    logits = np.log(probabilities / (1 - probabilities))
    copies = np.repeat(np.arange(200), np.where(labels == 1, 5, 1))
    once, often = fit_calibration(labels, logits), fit_calibration(labels[copies], logits[copies])
    assert often.temperature == pytest.approx(once.temperature, rel=1e-3)
    assert often.bias == pytest.approx(once.bias, abs=1e-3)


def test_bounds_are_laplaces_rule() -> None:
    """200 predictions: of the lowest 20 one is fake, of the highest 20 none is real: (1 + 1) / 22, 1 / 22."""
    logits = np.linspace(-4, 4, 200)
    labels = (logits > 0).astype(int)
    labels[5], labels[100] = 1, 0  # still as many of each
    calibration = fit_calibration(labels, logits)
    assert calibration.low == pytest.approx(2 / 22)
    assert calibration.high == pytest.approx(1 - 1 / 22)


def test_bounds_stay_within_one_in_a_hundred_however_many_are_right() -> None:
    calibration = fit_calibration(np.repeat([0, 1], 2000), np.repeat([-1.0, 1.0], 2000))
    assert (calibration.low, calibration.high) == pytest.approx((0.01, 0.99))


def test_logits_that_say_nothing_are_recognised() -> None:
    labels, logits = np.tile([0, 1], 40), np.repeat([-1.0, 1.0], 40)
    assert tells_nothing(fit_calibration(labels, logits))
    assert not tells_nothing(fit_calibration(labels, logits + labels))


def test_net_without_a_mistake_is_not_believed_without_limit() -> None:
    labels = np.repeat([0.0, 1.0], 20)
    calibration = fit_calibration(labels, np.where(labels == 1, 0.5, -0.5))
    assert calibration.temperature == pytest.approx(LEAST_TEMPERATURE, rel=0.01)


def test_separable_logits_give_a_finite_calibration() -> None:
    calibration = fit_calibration(np.repeat([0, 1], 16), np.repeat([-1.0, 1.0], 16))
    assert np.isfinite([calibration.temperature, calibration.bias]).all()
    assert calibration.probabilities(np.array([-1.0, 1.0])) == pytest.approx([calibration.low, calibration.high])
