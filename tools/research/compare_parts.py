"""Measure how well partly faked clips are found, and how many false alarms this costs.

python kernel.py clips --models first --analyses clips.analyses --out clips.csv
python tools/research/compare_parts.py clips.analyses clips/metadata.json

Partly faked clips are simulated: one third of an original's frames, at the beginning, in the middle or at the end, get
the log-odds of the same frames of its fake. The table has a row for each margin of `dfdc.aggregate.track_logit`.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from sklearn.metrics import roc_auc_score

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from dfdc.aggregate import PART, PART_MARGIN, track_logit
from dfdc.analysis_files import read_analyses
from dfdc.data.clips import read_metadata
from dfdc.errors import DataError
from dfdc.flags import make_parser, run_tool, tool
from dfdc.weights import sigmoid

MARGINS = (math.inf, 2.0, 1.5, 1.0, 0.75, 0.5, 0.25, 0.0)


@dataclass(frozen=True)
class Persons:
    """The frame logits (T,) of the person who is visible longest, in originals, fakes and partly faked clips."""

    reals: list[np.ndarray]
    fakes: list[np.ndarray]
    partly: list[np.ndarray]


def gather(analyses: Path, metadata: Path) -> Persons:
    """Read the persons of a folder of analyses.

    Args:
        analyses: folder that `--analyses` wrote.
        metadata: metadata.json of the clips.

    Raises:
        DataError: there is no original with a fake in which both show a person.
    """
    logits = {analysis.filename: analysis.tracks[0].logits for analysis in read_analyses(analyses) if analysis.tracks}
    clips = [clip for clip in read_metadata(metadata.parent) if clip.name in logits]
    reals = {clip.name: logits[clip.name] for clip in clips if clip.label == "REAL"}
    fakes = [clip for clip in clips if clip.label == "FAKE"]
    partly = [
        part
        for clip in fakes
        if clip.original in reals
        for part in fake_thirds(reals[clip.original], logits[clip.name])
    ]
    if not partly:
        raise DataError(f"{analyses}: no original and its fake both show a person; score originals and their fakes")
    return Persons(list(reals.values()), [logits[clip.name] for clip in fakes], partly)


def fake_thirds(real: np.ndarray, fake: np.ndarray) -> list[np.ndarray]:
    """The logits (T,) of an original whose first, middle or last third is replaced by its fake."""
    n_frames = min(len(real), len(fake))
    length = max(round(n_frames * PART), 1)
    found = []
    for start in (0, (n_frames - length) // 2, n_frames - length):
        mixed = real[:n_frames].copy()
        mixed[start : start + length] = fake[start : start + length]
        found.append(mixed)
    return found


def format_table(persons: Persons, margins: Sequence[float]) -> str:
    """Format a Markdown table of false alarms and log loss of reals, and AUC, missed share and log loss of fakes."""
    lines = [
        "| margin | reals: false alarms, log loss | fakes: AUC, missed, log loss | partly: AUC, missed, log loss |",
        "|---|---|---|---|",
    ]
    for margin in margins:
        reals = np.array([track_logit(person, margin=margin) for person in persons.reals])
        cells = [f"{(reals > 0).mean():.3f}, {_log_loss(-reals):.3f}"]
        for group in (persons.fakes, persons.partly):
            fakes = np.array([track_logit(person, margin=margin) for person in group])
            labels = np.repeat([0, 1], [len(reals), len(fakes)])
            auc = roc_auc_score(labels, np.concatenate([reals, fakes]))
            cells.append(f"{auc:.3f}, {(fakes <= 0).mean():.3f}, {_log_loss(fakes):.3f}")
        name = "the mean alone" if math.isinf(margin) else f"{margin:g}{', used' if margin == PART_MARGIN else ''}"
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines)


def _log_loss(logits: np.ndarray) -> float:
    """The log loss of clips whose true class has these log-odds, limited to probabilities from .01 to .99."""
    return float(-np.log(np.clip(sigmoid(logits), 0.01, 0.99)).mean())


@tool
def main(argv: list[str] | None = None) -> int:
    parser = make_parser(__doc__)
    parser.add_argument("analyses", type=Path, metavar="ANALYSES", help="folder of analyses")
    parser.add_argument("metadata", type=Path, metavar="METADATA", help="metadata.json of their clips")
    args = parser.parse_args(argv)
    persons = gather(args.analyses, args.metadata)
    print(f"{len(persons.reals)} originals, {len(persons.fakes)} fakes, {len(persons.partly)} partly faked")
    print(format_table(persons, MARGINS))
    return 0


if __name__ == "__main__":
    run_tool(main)
