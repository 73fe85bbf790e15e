"""Frame logits and the voice's logit -> one probability per clip."""

from __future__ import annotations

import math

import numpy as np

from dfdc.prediction import PRIOR
from dfdc.weights import sigmoid

# Assumed share of clips with a synthetic voice. The true share is not published; DFDC's few sound-only fakes guide it.
MADE_VOICES = 0.03


def clip_probability(tracks: list[np.ndarray], *, low: float, high: float) -> float:
    """Combine the frame logits of a clip's persons into one probability.

    A track's logit is the mean of its frames' logits, because averaging many frames separates a fake from a single bad
    frame. A clip is fake if any of its persons is. Each of K persons is fake with the prior 1 - (1 - PRIOR)^(1/K), so
    the clip's prior stays `PRIOR` however many faces are found; then the probabilities that each person is real are
    multiplied. For example, a fake at .98 beside a certain real person gives .95, where a mean would give .5; a certain
    real person beside a face without evidence gives .30, where a maximum would give .5.

    Args:
        tracks: for each person, the calibrated logits (T,) of the frames, T at least 1.
        low, high: bounds of the probability.

    Returns:
        P(fake), in [low, high]; `PRIOR` if there is no track.
    """
    if not tracks:
        return PRIOR
    fake = sigmoid(np.array([np.mean(logits) for logits in tracks]) + prior_shift(len(tracks)))
    return float(np.clip(1 - np.prod(1 - fake), low, high))


def prior_shift(n_parts: int) -> float:
    """The shift of each part's logit for which the prior that any of n_parts parts is fake stays `PRIOR`."""
    return logit(1 - (1 - PRIOR) ** (1 / n_parts)) - logit(PRIOR)


def voice_probability(score: float) -> float:
    """P(synthetic voice), in (0, 1), from a calibrated logit that assumes half of all voices to be synthetic."""
    return float(np.clip(sigmoid(np.array(score + logit(MADE_VOICES) - logit(0.5))), 1e-6, 1 - 1e-6))


def add_voice(picture: float, voice: float | None, *, high: float) -> float:
    """Combine picture and voice: a clip is fake if either is, so the larger probability is used.

    Few clips have a synthetic voice, so a voice that sounds real, or nearly so, leaves the picture's probability
    unchanged.

    Args:
        picture: P(fake) from the picture, in (0, 1).
        voice: P(synthetic voice); None if no voice was scored.
        high: upper bound of the probability that the voice can cause.

    Returns:
        P(fake): never below the picture's probability, and never lower for a more suspicious voice.
    """
    return picture if voice is None else max(picture, min(voice, high))


def logit(probability: float) -> float:
    """The log-odds of a probability between 0 and 1, exclusive; the inverse of the sigmoid."""
    return math.log(probability / (1 - probability))
