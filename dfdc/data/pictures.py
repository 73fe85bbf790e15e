"""Two pictures of one moment -> how they differ, and whether one was altered or only encoded again."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import astuple, dataclass

import cv2
import numpy as np
from skimage.metrics import structural_similarity

# A face of this side in pixels is divided into 14 x 14 blocks, whose means hide most coding noise. The 3 % of blocks
# that differ most are used, since a mouth is no larger. Differences within blocks of half that side are coding detail.
SIDE, BLOCK, TOP_PERCENT = 224, 16, 97
# A face was altered if its blocks differ by more than this multiple of the detail. The lowest of 12 measured fakes is
# 4.4; the highest of 17 encodings of five originals (H.264 at CRF 23 and 36 and at half the size, MPEG-4 at 200 kb/s)
# is 3.3.
PICTURE_CONTRAST = 3.8
# A face is certainly the same if its blocks differ by at most this multiple of the detail. Of 1,242 crops of DFDC's
# fakes, .6 % do; they look the same, and the shipped model is undecided. Visible fakes of small faces begin at 2.3; six
# re-encoded originals have 1.1 to 2.0 at CRF 18 and 1.6 to 2.4 at CRF 23.
EQUAL_CONTRAST = 2.0
# Less detail than the first level is rounding; smaller block differences than the second are not alterations.
LEAST_DETAIL, LEAST_LEVELS = 0.5, 1.5


@dataclass(frozen=True)
class PictureDifference:
    """How two crops of one face differ, or the mean over several pairs.

    Attributes:
        block_difference: levels 0..255 by which the most different blocks differ.
        detail: mean levels by which pixels differ from their block's difference.
        difference: mean absolute difference in levels.
        ssim: structural similarity, -1 to 1.
    """

    block_difference: float
    detail: float
    difference: float
    ssim: float

    @classmethod
    def mean(cls, differences: Iterable[PictureDifference]) -> PictureDifference:
        """The mean of at least one difference."""
        return cls(*(float(value) for value in np.mean([astuple(one) for one in differences], 0)))

    @property
    def contrast(self) -> float:
        """The ratio of block difference to detail."""
        return self.block_difference / max(self.detail, LEAST_DETAIL)

    @property
    def changed(self) -> bool:
        """Whether one picture was altered beyond being encoded again."""
        return self.contrast > PICTURE_CONTRAST and self.block_difference > LEAST_LEVELS

    @property
    def equal(self) -> bool:
        """Whether the pictures are certainly the same except for encoding."""
        return self.contrast <= EQUAL_CONTRAST or self.block_difference <= LEAST_LEVELS


def compare_pictures(first: np.ndarray, second: np.ndarray) -> PictureDifference:
    """Compare two crops (S, S, 3) uint8 RGB."""
    return PictureDifference(
        *block_differences(first, second),
        difference=float(np.abs(first.astype(np.int16) - second).mean()),
        ssim=float(structural_similarity(first, second, channel_axis=2, data_range=255)),
    )


def block_differences(first: np.ndarray, second: np.ndarray) -> tuple[float, float]:
    """The levels by which the most different blocks differ, and the mean difference of detail.

    Another skin, shade or shape changes the mean of a block; noise and coding of detail hardly do. An equal shift of
    all pixels is ignored, since codecs disagree about colour.

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
