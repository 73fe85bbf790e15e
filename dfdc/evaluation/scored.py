"""Labelled predictions -> scores with intervals, a table of them, and pictures."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from dfdc.errors import DataError
from dfdc.evaluation.charts import Curve, Tile, draw_contact_sheet, draw_histogram, draw_reliability, draw_roc
from dfdc.evaluation.metrics import measure_intervals

# Number of the worst mistakes of each class that are shown.
MAX_MISTAKES = 12
HEADINGS = {
    "auc": "AUC",
    "log_loss": "log loss",
    "balanced_log_loss": "balanced",
    "brier": "Brier",
    "accuracy": "accuracy",
    "calibration_error": "cal. error",
}


@dataclass(frozen=True)
class Scored:
    """Labelled predictions, N of them.

    Attributes:
        names: of the crops or clips.
        labels: (N,) int, 1 = fake.
        probabilities: (N,) float64 in (0, 1).
        manipulations: how each fake was made; empty where that is not told.
        sources: (N,) the video that each is from, or the original that it is a fake of.
        picture: a square RGB picture of one of them by its index; None where there is none.
    """

    names: list[str]
    labels: np.ndarray
    probabilities: np.ndarray
    manipulations: np.ndarray
    sources: np.ndarray
    picture: Callable[[int], np.ndarray | None]


def report_scores(scored: Scored, *, samples: int = 1000, seed: int = 0) -> dict[str, dict]:
    """Measure predictions.

    Args:
        scored: with reals and fakes.
        samples: of the bootstrap.
        seed: of the bootstrap.

    Returns:
        "overall" and "by_manipulation": the scores of `measure_intervals`, of everything and of each manipulation's
        fakes against all reals.

    Raises:
        DataError: one of the classes is absent.
    """
    n_fakes = int(scored.labels.sum())
    if not 0 < n_fakes < len(scored.labels):
        raise DataError(f"{len(scored.labels) - n_fakes} reals and {n_fakes} fakes; scores need both")

    def measure_part(part: np.ndarray) -> dict:
        generator = np.random.default_rng(seed)
        values = scored.labels[part], scored.probabilities[part]
        return measure_intervals(*values, generator, groups=scored.sources[part], samples=samples)

    parts = _parts(scored)
    return {
        "overall": measure_part(np.ones(len(scored.labels), bool)),
        "by_manipulation": {name: measure_part(part) for name, part in parts.items()},
    }


def _parts(scored: Scored) -> dict[str, np.ndarray]:
    """Per manipulation a mask (N,): its fakes and all reals."""
    names = sorted({str(name) for name in scored.manipulations[scored.labels == 1]} - {""})
    return {name: (scored.labels == 0) | (scored.manipulations == name) for name in names}


def draw_pictures(scored: Scored, scores: dict[str, dict], folder: Path) -> None:
    """Write roc.png, reliability.png, histogram.png and mistakes.png into a folder, which is made if absent."""
    folder.mkdir(parents=True, exist_ok=True)
    parts = {"overall": np.ones(len(scored.labels), bool), **_parts(scored)}
    aucs = {"overall": scores["overall"], **scores["by_manipulation"]}
    curves = [
        Curve(f"{name}: AUC {_interval(aucs[name]['auc'])}", scored.labels[part], scored.probabilities[part])
        for name, part in parts.items()
    ]
    draw_roc(folder / "roc.png", curves)
    draw_reliability(folder / "reliability.png", scored.labels, scored.probabilities)
    draw_histogram(folder / "histogram.png", scored.labels, scored.probabilities)
    _draw_mistakes(scored, folder / "mistakes.png")


def _draw_mistakes(scored: Scored, path: Path) -> None:
    given = np.where(scored.labels == 1, scored.probabilities, 1 - scored.probabilities)
    mistakes = np.array([i for i in np.argsort(given, kind="stable") if given[i] < 0.5], int)
    missed, accused = (mistakes[scored.labels[mistakes] == label] for label in (1, 0))
    tiles = [
        Tile(scored.picture(i), scored.names[i], bool(scored.labels[i]), float(scored.probabilities[i]))
        for i in (*missed[:MAX_MISTAKES], *accused[:MAX_MISTAKES])
    ]
    counts = (
        f"{len(missed)} of {scored.labels.sum()} fakes missed, {len(accused)} of {(scored.labels == 0).sum()} reals"
    )
    draw_contact_sheet(path, tiles, title=f"The worst mistakes: {counts} taken for fakes")


def _interval(score: dict[str, float]) -> str:
    return "{value:.3f} ({low:.3f}-{high:.3f})".format(**score)


def format_table(scores: dict[str, dict]) -> str:
    """Scores as lines of text: a row each for everything and for every manipulation."""
    groups = {"overall": scores["overall"], **scores["by_manipulation"]}
    width = max(map(len, groups))
    lines = [f"{'':<{width}} {'n':>6}  " + "  ".join(f"{heading:<19}" for heading in HEADINGS.values())]
    for name, group in groups.items():
        cells = "  ".join(f"{_interval(group[key]):<19}" for key in HEADINGS)
        lines.append(f"{name:<{width}} {group['n']:>6}  {cells}")
    return "\n".join(lines)
