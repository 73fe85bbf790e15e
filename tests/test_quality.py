"""dfdc.quality: how far the scores of small and blurred faces are trusted."""

from __future__ import annotations

import cv2
import numpy as np
import pytest
from skimage.data import astronaut

from dfdc.quality import TRUST, measure_detail

FACE = astronaut()[70:230, 140:300]


def enlarged_from(side: int) -> np.ndarray:
    return cv2.resize(cv2.resize(FACE, (side, side), interpolation=cv2.INTER_AREA), (224, 224))


def test_detail_falls_with_size_and_with_blur() -> None:
    sharp, small, tiny = measure_detail(np.stack([enlarged_from(side) for side in (160, 60, 25)]))
    assert sharp > small + 0.3 > tiny + 0.6
    blurred = measure_detail(cv2.GaussianBlur(enlarged_from(160), (0, 0), 5)[None])
    assert blurred[0] < sharp - 1


def test_detail_does_not_depend_on_contrast() -> None:
    face = enlarged_from(160)
    dull = (face * 0.5 + 60).astype(np.uint8)
    assert measure_detail(dull[None])[0] == pytest.approx(measure_detail(face[None])[0], abs=0.1)


def test_ordinary_faces_are_fully_trusted() -> None:
    assert TRUST.factors([120, 400], [-3.6, -3.0]).tolist() == [1.0, 1.0]


def test_trust_falls_with_size_and_detail_and_stays_within_bounds() -> None:
    by_side = TRUST.factors([15, 30, 60, 120, 2000], [-5.0] * 5)
    by_detail = TRUST.factors([40] * 4, [-9.0, -6, -5, -3])
    for factors in (by_side, by_detail):
        assert (np.diff(factors) >= 0).all() and 0 <= factors[0] < 0.7 and factors[-1] <= 1


def test_logits_move_towards_zero_by_the_factor() -> None:
    # 2 (1 - lean) at half trust: .5 x (2 - .5 lean).
    factors = np.array([1.0, 0.5, 0.0])
    tempered = TRUST.temper(np.array([2.0, 2.0, 2.0]), factors)
    assert tempered == pytest.approx([2, 0.5 * (2 - 0.5 * TRUST.lean), 0])
