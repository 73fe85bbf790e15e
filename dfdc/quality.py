"""How far a face's score can be trusted: small faces, or faces blurred by compression, carry little evidence.

Models give equally confident scores to a face of 25 pixels and to one of 250, but are wrong more often on the small
one. Therefore calibrated logits are shrunk towards 0 (no evidence) by a factor that was fitted on DFDC's validation
crops, degraded on purpose: see tools/research/fit_quality.py.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np

from dfdc.crop import CropGeometry, crop_face

# Side of the crops on which detail is measured; the scale still holds the detail of a face of 224 px or less.
MEASURED_SIDE = 112
# Number of faces of a track that are measured, evenly spread over time, on crops as the models see them.
SAMPLED, VIEW = 6, CropGeometry()
# Below this factor a face carries almost no evidence, and a clip with only such faces gets the status "low_quality".
MIN_TRUST = 0.5


@dataclass(frozen=True)
class Trust:
    """From a face's side and detail to a factor for its logit.

    The factor is e^(bias + side x log2(face side / 64) + detail x (face detail + 4)), at most 1.

    Attributes:
        bias: the exponent of a face 64 px wide whose detail is -4.
        side: increase of the exponent for every doubling of the side.
        detail: increase of the exponent for every doubling of the detail.
        lean: offset that is subtracted from the logit of a face that is not trusted at all, because poor faces look
            more
            fake (or, if negative, more real) than they are.
    """

    bias: float
    side: float
    detail: float
    lean: float

    def factors(self, sides: np.ndarray, details: np.ndarray) -> np.ndarray:
        """Factors (N,) float64 above 0, at most 1.

        Args:
            sides: (N,) widths of the squares around the faces, in pixels of the frame.
            details: (N,) as `measure_detail` returns them.
        """
        sides, details = np.asarray(sides, float), np.asarray(details, float)
        exponents = self.bias + self.side * np.log2(sides / 64) + self.detail * (details + 4)
        return np.exp(np.clip(exponents, -20, 0))

    def temper(self, logits: np.ndarray, factors: np.ndarray) -> np.ndarray:
        """Calibrated logits (N,) float64, moved towards 0 for faces that are not trusted."""
        return factors * (logits - self.lean * (1 - factors))


# python tools/research/fit_quality.py --crops ../shared/crops/crops.csv --weights weights --models 1
TRUST = Trust(bias=-0.24, side=0.332, detail=0.536, lean=0.735)


def measure_trust(
    images: Sequence[np.ndarray], frames: np.ndarray, boxes: np.ndarray, angles: np.ndarray, trust: Trust = TRUST
) -> float:
    """Measure how far the score of a track can be trusted: a factor for its logits, above 0, at most 1.

    Args:
        images: (H, W, 3) uint8 RGB, the clip's frames.
        frames: (T,) indices of those that show the track.
        boxes: (T, 4) in pixels.
        angles: (T,) degrees by which the face is rolled.
        trust: the fit.
    """
    some = np.unique(np.linspace(0, len(frames) - 1, SAMPLED).round().astype(int))
    crops = np.stack([crop_face(images[frames[i]], boxes[i], VIEW, angle=float(angles[i])) for i in some])
    sides = [VIEW.square(boxes[i])[2] for i in some]
    return float(np.median(trust.factors(np.array(sides), measure_detail(crops))))


def measure_detail(crops: np.ndarray) -> np.ndarray:
    """Measure how much fine detail crops contain.

    Args:
        crops: (N, H, W, 3) uint8 RGB, upright faces that fill the crop, or the same part of each face.

    Returns:
        (N,) float64: log2 of the mean absolute difference between the crop at this width and its Gaussian blur of
        1.5 px, divided by the contrast; about -3 for a sharp face, -6 for one enlarged from 30 px.
    """
    size = (MEASURED_SIDE, round(MEASURED_SIDE * crops.shape[1] / crops.shape[2]))
    details = np.empty(len(crops))
    for index, crop in enumerate(crops):
        gray = cv2.cvtColor(crop, cv2.COLOR_RGB2GRAY)
        small = cv2.resize(gray, size, interpolation=cv2.INTER_AREA).astype(np.float32)
        fine = np.abs(small - cv2.GaussianBlur(small, (0, 0), 1.5)).mean()
        details[index] = np.log2(max(float(fine), 1e-3) / max(float(small.std()), 1.0))
    return details
