"""A clip's probability in words that do not claim more than the models know."""

from __future__ import annotations

from dataclasses import dataclass

from dfdc.analysis import Analysis

# Lower bounds of the probability, with the words for it. Low scores never read "real", because only known manipulations
# can be found.
LEVELS = (
    (0.9, "strong signs of a known manipulation", "strong"),
    (0.7, "signs of a known manipulation", "strong"),
    (0.3, "unclear", ""),
    (0.0, "no sign of a known manipulation found", "weak"),
)


@dataclass(frozen=True)
class Finding:
    """What an analysis says of a clip.

    Attributes:
        text: in words.
        tone: "strong" for signs of a fake, "weak" for none found, otherwise empty.
        rank: 4 for the strongest signs down to 1; -1 without a score.
    """

    text: str
    tone: str
    rank: int


def describe_finding(analysis: Analysis) -> Finding:
    """The words for an analysis' probability, which assumes that half of all clips are fake."""
    if not analysis.scored:
        return Finding("not scored", "", -1)
    for number, (least, text, tone) in enumerate(LEVELS):
        if analysis.probability >= least:
            return Finding(text, tone, len(LEVELS) - number)
    raise AssertionError("a probability is never below 0")


def format_percent(share: float) -> str:
    """A share in percent: one decimal below 9.5 %, none above."""
    return f"{100 * share:.1f} %" if share < 0.095 else f"{100 * share:.0f} %"
