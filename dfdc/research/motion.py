"""Change between successive frames -> a score for each person, which reveals flicker on a face.

A pair is a face in a frame and in the next decoded frame, cut with the same box. The second crop is aligned to the
first, so that their difference shows skin, mouth, eyes and noise rather than motion of the camera and the head.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import cv2
import numpy as np

from dfdc.crop import CropGeometry, crop_face
from dfdc.research.optional import OptionalModels
from dfdc.runtime import run_logits
from dfdc.tracks import Track
from dfdc.video import Frame

# Number of a clip's frames that are read together with their successors.
N_PAIRS = 8
# Alignment: side in pixels to which crops are reduced, and number of ECC steps (Evangelidis and Psarakis, 2008).
ALIGNED_SIDE = 56
ECC_STEPS = (cv2.TERM_CRITERIA_EPS | cv2.TERM_CRITERIA_COUNT, 30, 1e-3)
# A pair whose aligned halves correlate less than this shows two scenes or two people and is ignored.
MIN_CORRELATION = 0.7


class Motion(OptionalModels):
    """Motion models. Their scores are added to the frame scores, each with its own weight."""

    batch_sizes: ClassVar = {"cpu": 4, "cuda": 256}

    @property
    def n_pairs(self) -> int:
        """Of how many of a clip's frames the neighbours are wanted."""
        return N_PAIRS if self.models else 0

    def score(self, frames: Sequence[Frame], tracks: Sequence[Track]) -> np.ndarray:
        """The scores that are added to the logits of each track.

        Args:
            frames: of a clip, some with a neighbour.
            tracks: their frame indices refer to these frames.

        Returns:
            (K,) float64: the sum over the models of weight times the mean calibrated logit of the track's pairs; 0 for
            a track without pairs.

        Raises:
            FloatingPointError: a model's answer is not finite, as half precision may overflow.
        """
        scores = np.zeros(len(tracks))
        for spec, network in zip(self.specs, self.models, strict=True):
            for index, track in enumerate(tracks):
                pairs = cut_track(frames, track, spec.crop)
                if len(pairs):
                    logits = run_logits(network, pairs, self.batch_size)
                    scores[index] += spec.weight * spec.calibration.logits(logits).mean()
        return scores


def cut_track(frames: Sequence[Frame], track: Track, geometry: CropGeometry) -> np.ndarray:
    """The usable pairs of a track.

    Args:
        frames: of a clip, some with a neighbour.
        track: its frame indices refer to these frames.
        geometry: how a crop is cut.

    Returns:
        (P, size, size, 6) uint8, see `cut_pair`; P may be 0.
    """
    pairs = [np.zeros((0, geometry.size, geometry.size, 6), np.uint8)]
    for index, box, angle in zip(track.frames, track.boxes, track.angles, strict=True):
        pair = cut_pair(frames[index], box, geometry, angle=float(angle))
        if pair is not None:
            pairs.append(pair[None])
    return np.concatenate(pairs)


def cut_pair(frame: Frame, box: np.ndarray, geometry: CropGeometry, *, angle: float = 0.0) -> np.ndarray | None:
    """Cut a face from a frame and from its neighbour with the same box, and align the second crop to the first.

    Args:
        frame: with or without a neighbour.
        box: (4,) x0, y0, x1, y1 in pixels of the frame.
        geometry: how a crop is cut.
        angle: degrees clockwise by which the head is rolled; both crops show it upright.

    Returns:
        (size, size, 6) uint8: the first crop's RGB, then the second's. None without a neighbour, or if the two are
        not of one scene (see `MIN_CORRELATION`).
    """
    if frame.neighbour is None:
        return None
    first, second = (crop_face(pixels, box, geometry, angle=angle) for pixels in (frame.pixels, frame.neighbour))
    aligned = align(first, second)
    if correlate(first, aligned) < MIN_CORRELATION:
        return None
    return np.concatenate([first, aligned], 2)


def align(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Align a picture to another by an affine transformation.

    Args:
        first, second: (S, S, 3) uint8 RGB.

    Returns:
        The second picture, transformed, (S, S, 3) uint8, with its edge repeated; unchanged if no alignment is found.
    """
    place = np.eye(2, 3, dtype=np.float32)
    small = [_reduce(picture) for picture in (first, second)]
    try:
        _, place = cv2.findTransformECC(*small, place, cv2.MOTION_AFFINE, ECC_STEPS, None, 3)
    except cv2.error:  # a uniform picture, or another scene
        return second
    side, ratio = first.shape[0], first.shape[0] / small[0].shape[0]
    # From pixels of the small picture to those of the crop; a pixel's centre is at one half.
    half = (1 - place[:, :2].sum(1)) / 2
    place[:, 2] = ratio * (place[:, 2] + half) - half
    flags = cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
    return cv2.warpAffine(second, place, (side, side), flags=flags, borderMode=cv2.BORDER_REPLICATE)


def correlate(first: np.ndarray, second: np.ndarray) -> float:
    """The correlation of two pictures (S, S, 3) uint8, -1 to 1; 1 if both are uniform, 0 if only one is."""
    a, b = (_reduce(picture).astype(np.float64) for picture in (first, second))
    a, b = a - a.mean(), b - b.mean()
    norms = (a * a).sum(), (b * b).sum()
    if min(norms) == 0:
        return float(max(norms) == 0)
    return float((a * b).sum() / np.sqrt(norms[0] * norms[1]))


def _reduce(picture: np.ndarray) -> np.ndarray:
    side = min(ALIGNED_SIDE, picture.shape[0])
    return cv2.resize(cv2.cvtColor(picture, cv2.COLOR_RGB2GRAY), (side, side), interpolation=cv2.INTER_AREA)
