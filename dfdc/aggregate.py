"""Frame logits and the voice's logit -> one probability per clip."""

from __future__ import annotations

import math

import numpy as np

from dfdc.prediction import PRIOR
from dfdc.weights import sigmoid

# Assumed share of clips with a synthetic voice. The true share is not published; DFDC's few sound-only fakes guide it.
MADE_VOICES = 0.03
# A fake may last for a part of the clip only. Of real persons' frames the suspicious third lies .35 above the mean
# (median; .83 in 95 of 100), of those with a fake third 1.5: see docs/experiments.md, tools/research/compare_parts.py.
PART, MIN_PART_FRAMES, PART_MARGIN = 1 / 3, 4, 0.75
# The mean of many frames is surer than one frame, for which models are calibrated: its log-odds are multiplied by up to
# 1.3. Fitted to 106 clips of FaceForensics++ the best factor is 1.8 at 16 frames (95 % interval 1.4 to 2.5); 1.3 lowers
# the log loss there from .306 to .280, and on 13 clips of other data from .368 to .346.
SURER = 0.3


def track_logit(logits: np.ndarray, *, margin: float = PART_MARGIN) -> float:
    """Combine the frame logits of one person.

    It is the mean over all frames, because averaging many frames separates a fake from a single bad frame. Where a
    third of the person's time is far more suspicious than the whole, it is that third's mean less a margin, which is
    what real clips allow: a fake that lasts for a part of the clip would otherwise pass as real.

    Args:
        logits: (T,) in order of time, T at least 1.
        margin: in log-odds; infinite for the mean alone.

    Returns:
        The calibrated log-odds of the person, surer by `SURER` than the frames' mean.
    """
    surer = 1 + SURER * (1 - 1 / len(logits))
    whole = float(np.mean(logits))
    n_part = max(math.ceil(len(logits) * PART), MIN_PART_FRAMES)
    if n_part >= len(logits):
        return surer * whole
    sums = np.cumsum(np.concatenate([[0.0], logits]))
    part = float(np.max(sums[n_part:] - sums[:-n_part])) / n_part
    return surer * max(whole, part - margin)


def clip_probability(tracks: list[np.ndarray], *, low: float, high: float) -> float:
    """Combine the frame logits of a clip's persons into one probability.

    A clip is fake if any of its persons is; `track_logit` scores each. Each of K persons is fake with the prior
    1 - (1 - PRIOR)^(1/K), so the clip's prior stays `PRIOR` however many faces are found; then the probabilities that
    each person is real are multiplied. For example, a fake at .98 beside a certain real person gives .95, where a mean
    would give .5; a certain real person beside a face without evidence gives .30, where a maximum would give .5.

    Args:
        tracks: for each person, the calibrated logits (T,) of the frames in order of time, T at least 1.
        low, high: bounds of the probability.

    Returns:
        P(fake), in [low, high]; `PRIOR` if there is no track.
    """
    if not tracks:
        return PRIOR
    fake = sigmoid(np.array([track_logit(logits) for logits in tracks]) + prior_shift(len(tracks)))
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
