"""The ensemble's scores of a pair beside what the comparison shows -> a verdict in words."""

from __future__ import annotations

from dataclasses import dataclass

from dfdc.comparison.pair import Pair

# From this probability up a clip is called fake.
THRESHOLD = 0.5


@dataclass(frozen=True)
class Verdict:
    """What the scores are worth.

    Attributes:
        text: one or two sentences.
        agrees: whether the scores call the fake fake and the original not; None where that cannot be said.
    """

    text: str
    agrees: bool | None


def judge_scores(pair: Pair) -> Verdict | None:
    """Hold the scores against the comparison, which shows what was altered; None without scores."""
    if not pair.has_scores:
        return None
    original, fake = pair.comparison.scores
    faceless = [name for name, scores in (("original", original), ("fake", fake)) if not scores.n_faces]
    if faceless:
        return Verdict(f"No face was found in the {faceless[0]}, so the scores cannot be compared.", None)
    given = (
        f"The models give the original a probability of {original.probability:.0%} of being fake, and the fake "
        f"{fake.probability:.0%}"
    )
    if pair.equal:
        return Verdict(f"{given}; the pictures are the same.", None)
    limit = f"from {THRESHOLD:.0%} up a clip is called fake"
    accused, missed = original.probability >= THRESHOLD, fake.probability < THRESHOLD
    if fake.probability <= original.probability:
        blind = "they rate the fake no higher than its original and do not see the alteration shown here"
        return Verdict(f"The scores contradict the comparison. {given}: {blind}.", False)
    if missed:
        return Verdict(f"The models miss this fake. {given}; {limit}.", False)
    if accused:
        return Verdict(f"The models also call the original fake. {given}; {limit}.", False)
    return Verdict(f"The scores agree with the comparison. {given}.", True)
