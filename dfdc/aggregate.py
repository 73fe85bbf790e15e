"""Frame logits -> one probability per clip."""

from __future__ import annotations

import numpy as np

from dfdc.prediction import PRIOR
from dfdc.weights import sigmoid


def clip_probability(tracks: list[np.ndarray], *, low: float, high: float) -> float:
    """One probability for a clip from its persons' frames.

    A track's logit is the mean of its frames' logits: averaging many frames is what tells a fake from one bad frame.
    A clip's logit is its most suspicious track's: one fake person makes the clip fake, and a real bystander does not
    dilute it.

    Args:
        tracks: per person the calibrated logits (T,) of the frames, T at least 1 each.
        low, high: the bounds of the answer.

    Returns:
        P(fake), in [low, high]; `PRIOR` where there is no track.
    """
    if not tracks:
        return PRIOR
    logit = max(float(np.mean(logits)) for logits in tracks)
    return float(np.clip(sigmoid(np.array(logit)), low, high))
