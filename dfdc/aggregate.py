"""Frame logits -> one probability per clip."""

from __future__ import annotations

import numpy as np

from dfdc.weights import Calibration


def calibrate(logits: np.ndarray, calibration: Calibration) -> np.ndarray:
    """Calibrated probabilities of logits, within the calibration's bounds.

    Args:
        logits: any shape, float.
        calibration: from the weights file.

    Returns:
        float64 of the same shape, in [low, high].
    """
    scaled = np.asarray(logits, np.float64) / calibration.temperature + calibration.bias
    return np.clip(1 / (1 + np.exp(-np.clip(scaled, -700, 700))), calibration.low, calibration.high)
