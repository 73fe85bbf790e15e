"""Two pictures of one moment -> how they differ, and whether somebody changed one of them or only a codec did."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import astuple, dataclass

import cv2
import numpy as np
from skimage.metrics import structural_similarity

# A face of so many pixels is divided into 14 x 14 blocks, whose means forget most of what a codec does; of them the 3 %
# count that differ most, for a mouth is no larger. What differs within blocks of half that side is the codec's detail.
SIDE, BLOCK, TOP_PERCENT = 224, 16, 97
# Changed is a face whose blocks differ by so many times the detail. Of 12 fakes at hand that were measured the least
# has 4.4; of 17 encodings of five of their originals (H.264 at CRF 23 and 36 and at half the size, MPEG-4 at 200 kb/s)
# the most has 3.3.
PICTURE_CONTRAST = 3.8
# Surely the same is a face whose blocks differ by no more than so many times the detail. Of 1,242 single crops of
# DFDC's fakes .6 % do: they look alike, and the shipped net is undecided. Small faces' visible fakes begin at 2.3; six
# originals encoded again have 1.1 to 2.0 at CRF 18 and 1.6 to 2.4 at 23.
EQUAL_CONTRAST = 2.0
# Less than so many levels of detail is rounding; less than so many levels between blocks nobody made.
LEAST_DETAIL, LEAST_LEVELS = 0.5, 1.5


@dataclass(frozen=True)
class PictureDifference:
    """How two crops of one face differ, or the mean of several pairs'.

    Attributes:
        block_difference: levels 0..255 by which blocks differ where they differ most.
        detail: levels by which pixels differ from their block's difference.
        difference: mean absolute difference in levels.
        ssim: structural similarity, -1 to 1.
    """

    block_difference: float
    detail: float
    difference: float
    ssim: float

    @classmethod
    def mean(cls, differences: Iterable[PictureDifference]) -> PictureDifference:
        """Of at least one."""
        return cls(*(float(value) for value in np.mean([astuple(one) for one in differences], 0)))

    @property
    def contrast(self) -> float:
        """By how many times blocks differ more than the detail."""
        return self.block_difference / max(self.detail, LEAST_DETAIL)

    @property
    def changed(self) -> bool:
        """Whether more was done than to encode one of them anew."""
        return self.contrast > PICTURE_CONTRAST and self.block_difference > LEAST_LEVELS

    @property
    def equal(self) -> bool:
        """Whether surely nothing was done but, maybe, to encode one of them anew."""
        return self.contrast <= EQUAL_CONTRAST or self.block_difference <= LEAST_LEVELS


def compare_pictures(first: np.ndarray, second: np.ndarray) -> PictureDifference:
    """Compare two crops (S, S, 3) uint8 RGB."""
    return PictureDifference(
        *block_differences(first, second),
        difference=float(np.abs(first.astype(np.int16) - second).mean()),
        ssim=float(structural_similarity(first, second, channel_axis=2, data_range=255)),
    )


def block_differences(first: np.ndarray, second: np.ndarray) -> tuple[float, float]:
    """Levels by which blocks differ where they differ most, and by which detail differs on average.

    Another skin, shade or shape moves a block's mean; noise, and what a codec does to detail, hardly does. A shift of
    all pixels alike is no change: codecs disagree about colour.

    Args:
        first, second: (S, S, 3) uint8 RGB.
    """
    signed = cv2.resize(second.astype(np.float32) - first, (SIDE, SIDE), interpolation=cv2.INTER_AREA)
    signed -= np.median(signed, axis=(0, 1))
    blocks = np.abs(_block_means(signed, BLOCK)).max(-1)
    half = _block_means(signed, BLOCK // 2).repeat(BLOCK // 2, 0).repeat(BLOCK // 2, 1)
    return float(np.percentile(blocks, TOP_PERCENT)), float(np.abs(signed - half).mean())


def _block_means(picture: np.ndarray, side: int) -> np.ndarray:
    n = len(picture) // side
    return picture.reshape(n, side, n, side, 3).mean((1, 3))
