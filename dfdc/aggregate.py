"""Frame logits, and the voice's -> one probability per clip."""

from __future__ import annotations

import math

import numpy as np

from dfdc.prediction import PRIOR
from dfdc.weights import sigmoid

# Share of the clips whose voice is made by a machine. Nobody has told it; DFDC's few fakes of sound alone are a guide.
MADE_VOICES = 0.03


def clip_probability(tracks: list[np.ndarray], *, low: float, high: float) -> float:
    """One probability for a clip from its persons' frames.

    A track's logit is the mean of its frames' logits: averaging many frames is what tells a fake from one bad frame.
    A clip is fake if any of its persons is. Among K persons each is fake with the prior 1 - (1 - PRIOR)^(1/K), so
    that the clip's prior stays `PRIOR` however many faces are found; then the chances that a person is real are
    multiplied. A fake at .98 beside a certain real bystander is .95, where a mean would say .5; a certain real beside
    a face that says nothing is .30, where a maximum would say .5.

    Args:
        tracks: per person the calibrated logits (T,) of the frames, T at least 1 each.
        low, high: the bounds of the answer.

    Returns:
        P(fake), in [low, high]; `PRIOR` where there is no track.
    """
    if not tracks:
        return PRIOR
    fake = sigmoid(np.array([np.mean(logits) for logits in tracks]) + prior_shift(len(tracks)))
    return float(np.clip(1 - np.prod(1 - fake), low, high))


def prior_shift(n_parts: int) -> float:
    """By how much the logit of one of so many parts is moved, so that the prior of any being fake stays `PRIOR`."""
    return logit(1 - (1 - PRIOR) ** (1 / n_parts)) - logit(PRIOR)


def voice_probability(score: float) -> float:
    """P(made by a machine), in (0, 1), of a voice's calibrated logit, which takes half of all voices for made."""
    return float(np.clip(sigmoid(np.array(score + logit(MADE_VOICES) - logit(0.5))), 1e-6, 1 - 1e-6))


def add_voice(picture: float, voice: float | None, *, high: float) -> float:
    """A clip is a fake if its picture or its voice is: the one that is more confident of that is taken.

    As few clips have a made voice, one that sounds real, or not quite, leaves the picture's probability as it is.

    Args:
        picture: P(fake) by what is seen, in (0, 1).
        voice: P(made by a machine); None where nothing was heard.
        high: the greatest probability that a voice may lead to.

    Returns:
        P(fake): never below the picture's, and never lower for a more suspicious voice.
    """
    return picture if voice is None else max(picture, min(voice, high))


def logit(probability: float) -> float:
    """The inverse of the sigmoid; the probability lies between 0 and 1."""
    return math.log(probability / (1 - probability))
