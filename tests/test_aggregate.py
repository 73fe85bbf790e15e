"""dfdc.aggregate: frames to one probability per clip."""

from __future__ import annotations

import numpy as np
import pytest

from dfdc.aggregate import PART_MARGIN, clip_probability, logit, track_logit
from dfdc.weights import sigmoid

BOUNDS = {"low": 0.01, "high": 0.99}


def surer(n_frames: int) -> float:
    """The factor for the mean of this many frames, calculated by hand."""
    return 1.3 - 0.3 / n_frames


def test_one_person_gets_the_scaled_mean_of_the_logits() -> None:
    expected = float(sigmoid(np.array(1.2 * 1.0)))
    assert clip_probability([np.array([1.0, 2.0, 0.0])], **BOUNDS) == pytest.approx(expected)


def test_two_persons_equal_a_calculation_by_hand() -> None:
    # Each person's prior is 1 - sqrt(1/2) = .29289, with odds of sqrt(2) - 1; the clip's prior has odds of 1.
    odds = np.exp([2.0, -1.0]) * (np.sqrt(2) - 1)
    expected = 1 - np.prod(1 / (1 + odds))
    assert clip_probability([np.array([2.0]), np.array([-1.0])], **BOUNDS) == pytest.approx(expected)


@pytest.mark.parametrize("persons", [1, 2, 3, 8])
def test_uninformative_faces_leave_the_prior(persons: int) -> None:
    assert clip_probability([np.zeros(4)] * persons, **BOUNDS) == pytest.approx(0.5)


@pytest.mark.parametrize(("logit", "alone", "beside"), [(2.2, 0.90, 0.80), (3.0, 0.95, 0.89), (4.0, 0.98, 0.96)])
def test_fake_beside_a_real_bystander_stays_a_fake(logit: float, alone: float, beside: float) -> None:
    # The mean of the two would give one half.
    fake, real = np.full(16, logit / surer(16)), np.full(16, -logit / surer(16))
    assert clip_probability([fake], **BOUNDS) == pytest.approx(alone, abs=0.01)
    assert clip_probability([fake, real], **BOUNDS) == pytest.approx(beside, abs=0.01)


def test_uncertain_background_face_leaves_a_clear_real_more_real_than_fake() -> None:
    # The maximum of the two would give one half. The second face is uninformative, so its prior of .293 remains.
    assert clip_probability([np.full(16, -4.0 / surer(16)), np.zeros(16)], **BOUNDS) == pytest.approx(0.298, abs=0.001)


def test_raising_one_frame_never_lowers_the_clip() -> None:
    generator = np.random.default_rng(0)
    tracks = [generator.normal(size=5), generator.normal(size=3)]
    before = clip_probability(tracks, **BOUNDS)
    for track in tracks:
        for index in range(len(track)):
            raised = track.copy()
            raised[index] += 1
            assert clip_probability([raised if t is track else t for t in tracks], **BOUNDS) > before


def test_order_of_frames_and_persons_does_not_matter() -> None:
    a, b = np.array([1.0, -2.0, 0.5]), np.array([3.0, 0.0])
    assert clip_probability([a, b], **BOUNDS) == pytest.approx(clip_probability([b[::-1], a[::-1]], **BOUNDS))


def test_probability_stays_within_the_bounds_for_extreme_logits() -> None:
    assert clip_probability([np.array([1e6])], low=0.03, high=0.95) == 0.95
    assert clip_probability([np.array([-1e6])], low=0.03, high=0.95) == 0.03


def test_clip_without_a_person_gets_the_prior() -> None:
    assert clip_probability([], **BOUNDS) == 0.5


def test_logit_is_the_inverse_of_the_sigmoid() -> None:
    assert sigmoid(np.array(logit(0.3))) == pytest.approx(0.3)


def test_fake_third_of_a_clip_does_not_pass_as_real() -> None:
    for start in (0, 4, 8):
        logits = np.full(12, -2.0)
        logits[start : start + 4] = 3.0
        assert track_logit(logits) == pytest.approx(surer(12) * (3.0 - PART_MARGIN))


def test_one_outlier_or_ordinary_spread_leaves_the_mean() -> None:
    single = np.full(12, -2.0)
    single[5] = 2.0
    assert track_logit(single) == pytest.approx(surer(12) * single.mean())
    waves = np.tile([-2.5, -1.5], 8)
    assert track_logit(waves) == pytest.approx(surer(16) * -2.0)


@pytest.mark.parametrize("n_frames", [1, 3, 4])
def test_few_frames_get_their_scaled_mean(n_frames: int) -> None:
    logits = np.linspace(-3, 3, n_frames)
    assert track_logit(logits) == pytest.approx(surer(n_frames) * logits.mean())
