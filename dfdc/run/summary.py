"""Summarise the result of a run in words."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from dfdc.log import shown
from dfdc.prediction import PRIOR, STATUSES, Prediction
from dfdc.run.journal import LASTING
from dfdc.run.submission import details_path

# The summary lists the clips one by one if there are at most this many; predictions.csv always lists them.
LISTED_CLIPS = 40


@dataclass(frozen=True)
class Result:
    """The result of a run.

    Attributes:
        path: path of the submission.
        predictions: one prediction per row, in its order.
        seconds: wall time of the run.
        kept_earlier: whether the files are still those of an earlier run, because nothing was scored.
    """

    path: Path
    predictions: list[Prediction]
    seconds: float
    kept_earlier: bool = False

    @property
    def n_judged(self) -> int:
        """Number of clips that were scored or found to show no face; the run has failed if it is 0."""
        return sum(p.scored or p.status in LASTING for p in self.predictions)


def summarize(result: Result) -> str:
    """Describe a run: one line per clip if there are few, then counts, time and output files."""
    lines = []
    if len(result.predictions) <= LISTED_CLIPS:
        names = [shown(p.filename) for p in result.predictions]
        width = max(map(len, names), default=0)
        lines = [f"{name:<{width}}  {_verdict(p)}" for name, p in zip(names, result.predictions, strict=True)] + [""]
    counts = Counter(p.status for p in result.predictions)
    described = ", ".join(f"{counts[status]} {status}" for status in STATUSES if counts[status])
    n_clips, n_cut = len(result.predictions), sum(p.cut_s > 0 for p in result.predictions)
    lines.append(f"{n_clips} clip{'s' * (n_clips != 1)} ({described}) in {result.seconds:.1f} s")
    if n_cut:
        lines.append(f"{n_cut} clip{'s were' if n_cut > 1 else ' was'} not read to the end for lack of time; see cut_s")
    path, details = shown(result.path), shown(details_path(result.path))
    if result.kept_earlier:
        lines.append(f"{path}, {details}: still hold the results of an earlier run")
    else:
        lines.append(f"{path}: label is the probability that the clip is fake")
        lines.append(f"{details}: status, reason and counts per clip")
    if result.n_judged == 0:
        lines.append("WARNING: no clip could be scored" + f"; every label is {PRIOR}" * (not result.kept_earlier))
    elif all(p.label == PRIOR for p in result.predictions):
        cause = "the models cannot tell" if any(p.scored for p in result.predictions) else "no clip shows a face"
        lines.append(f"WARNING: {cause}; every label is {PRIOR}")
    return "\n".join(lines)


def _verdict(prediction: Prediction) -> str:
    """Describe one clip's prediction in one line."""
    verdict = [f"{prediction.label:6.1%} fake"] * prediction.scored
    if prediction.status != "ok":
        verdict.append(shown(f"{prediction.status}: {prediction.reason}"))
    if prediction.notes:
        verdict.append(shown(prediction.notes))
    if prediction.cut_s:
        read = f"{prediction.frames} of {prediction.wanted} frames"
        verdict.append(f"from its first {read}: reading took more than {prediction.cut_s:.0f} s")
    return ", ".join(verdict)
