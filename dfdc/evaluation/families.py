"""Answers on several families of data -> one table: scores with intervals, and false alarms among their reals."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field

import numpy as np

from dfdc.errors import DataError
from dfdc.evaluation.metrics import draw_sources, score_samples
from dfdc.weights import sigmoid

# The row that holds the means of all families' scores.
MEAN = "mean"


@dataclass(frozen=True)
class Answers:
    """Labelled answers on one family of data, N crops or clips.

    Attributes:
        family: its name.
        labels: (N,) int, 1 = fake.
        logits: (N,) calibrated; above 0 means fake.
        identities: (N,) the person or the original video that each shows; these are what the bootstrap draws.
        manipulations: (N,) how each fake was made; empty where that is not told.
        traits: name such as "source" or "sex" -> (N,) its value, empty where that is not told; false alarms are
            counted for each value.
        low, high: bounds of the probabilities.
    """

    family: str
    labels: np.ndarray
    logits: np.ndarray
    identities: np.ndarray
    manipulations: np.ndarray
    traits: Mapping[str, np.ndarray] = field(default_factory=dict)
    low: float = 1e-6
    high: float = 1 - 1e-6

    def __post_init__(self) -> None:
        columns = (self.logits, self.identities, self.manipulations, *self.traits.values())
        if any(len(column) != len(self.labels) for column in columns) or not len(self.labels):
            raise DataError(f"{self.family}: its columns have {[len(self.labels), *map(len, columns)]} values")


@dataclass(frozen=True)
class Interval:
    """A value with its 95 % interval over bootstrap samples of the identities."""

    value: float
    low: float
    high: float

    @classmethod
    def of(cls, drawn: np.ndarray) -> Interval | None:
        """Make it from the measured value, then those of the samples; None if the value cannot be measured."""
        if np.isnan(drawn[0]):
            return None
        low, high = np.nanquantile(drawn[1:], (0.025, 0.975))
        return cls(float(drawn[0]), float(low), float(high))

    def __str__(self) -> str:
        return f"{self.value:.3f} ({self.low:.3f}-{self.high:.3f})"


@dataclass(frozen=True)
class Row:
    """One line of the table.

    Attributes:
        family: name of the family, or `MEAN`.
        part: "all"; a manipulation, whose fakes are compared with all reals of the family; or a trait of reals, such
            as "sex: female".
        n_reals, n_fakes: numbers of reals and fakes.
        auc, log_loss: with equal weight for both classes; None if a class is absent.
        false_alarms: share of the reals above one half; None if there are no reals.
        missed: share of the fakes at one half or below; None if there are no fakes.
    """

    family: str
    part: str
    n_reals: int
    n_fakes: int
    auc: Interval | None
    log_loss: Interval | None
    false_alarms: Interval | None
    missed: Interval | None


def measure_protocol(parts: Sequence[Answers], *, samples: int = 1000, seed: int = 0) -> list[Row]:
    """Measure all families.

    Args:
        parts: at least one.
        samples: of the bootstrap, at least 1.
        seed: of the bootstrap.

    Returns:
        Per family a row for all of it, one for each manipulation and one for each value of a trait; at the end the
        means over the families that hold both classes.
    """
    rows, whole = [], []
    for number, part in enumerate(parts):
        counts = draw_sources(part.identities, np.random.default_rng([seed, number]), samples=samples)
        counts = np.concatenate([np.ones((1, len(part.labels)), int), counts])
        drawn = _draw(part, np.ones(len(part.labels), bool), counts)
        whole.append(drawn)
        rows.append(_row(part.family, "all", part.labels, drawn))
        for name, chosen in _choose(part):
            rows.append(_row(part.family, name, part.labels[chosen], _draw(part, chosen, counts)))
    complete = [drawn for drawn in whole if not np.isnan(drawn["auc"][0])]
    if complete:
        means = {name: np.mean([drawn[name] for drawn in complete], 0) for name in complete[0]}
        rows.append(_row(MEAN, f"of {len(complete)} families", np.zeros(0), means))
    return rows


def _choose(part: Answers) -> list[tuple[str, np.ndarray]]:
    """Names and masks (N,) of a family's parts."""
    reals, chosen = part.labels == 0, []
    names = sorted(set(part.manipulations[~reals]) - {""})
    if len(names) > 1 and reals.any():
        chosen += [(str(name), reals | ((part.manipulations == name) & ~reals)) for name in names]
    for trait, values in part.traits.items():
        found = sorted(set(values[reals]) - {""})
        if len(found) > 1:
            chosen += [(f"{trait}: {value}", reals & (values == value)) for value in found]
    return chosen


def _draw(part: Answers, chosen: np.ndarray, counts: np.ndarray) -> dict[str, np.ndarray]:
    """Score name -> (1 + samples,) its value for the part and for each sample; NaN where it cannot be measured."""
    labels, logits, counts = part.labels[chosen], part.logits[chosen], counts[:, chosen]
    n_reals, n_fakes = counts[:, labels == 0].sum(1), counts[:, labels == 1].sum(1)
    with np.errstate(divide="ignore", invalid="ignore"):
        if labels.any() and not labels.all():
            scores = score_samples(labels, logits, counts, low=part.low, high=part.high)
        else:
            scores = dict.fromkeys(("auc", "balanced_log_loss"), np.full(len(counts), np.nan))
        accused = np.clip(sigmoid(logits), part.low, part.high) > 0.5
        return {
            "auc": scores["auc"],
            "log_loss": scores["balanced_log_loss"],
            "false_alarms": (counts @ (accused & (labels == 0))) / n_reals,
            "missed": (counts @ (~accused & (labels == 1))) / n_fakes,
        }


def _row(family: str, part: str, labels: np.ndarray, drawn: Mapping[str, np.ndarray]) -> Row:
    intervals = {name: Interval.of(values) for name, values in drawn.items()}
    return Row(family, part, int((labels == 0).sum()), int((labels == 1).sum()), **intervals)


def describe_rows(rows: Sequence[Row]) -> list[dict]:
    """Convert rows to values for JSON."""
    return [asdict(row) for row in rows]


def format_rows(rows: Sequence[Row], *, markdown: bool = False) -> str:
    """Rows as a table of text, or of Markdown."""
    header = ["family", "part", "real", "fake", "AUC", "log loss", "false alarms", "missed"]
    lines = [[row.family, row.part, str(row.n_reals), str(row.n_fakes), *map(_cell, _scores(row))] for row in rows]
    if markdown:
        return "\n".join(f"| {' | '.join(line)} |" for line in [header, ["---"] * len(header), *lines])
    widths = [max(len(line[i]) for line in [header, *lines]) for i in range(len(header))]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip()
        for line in [header, *lines]
    )


def _scores(row: Row) -> tuple[Interval | None, ...]:
    return row.auc, row.log_loss, row.false_alarms, row.missed


def _cell(score: Interval | None) -> str:
    return "" if score is None else str(score)
