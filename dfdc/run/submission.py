"""Write predictions to submission.csv, which is complete from the start and replaced atomically."""

from __future__ import annotations

import csv
import logging
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import fields
from pathlib import Path

from dfdc.deadline import NEVER, Deadline, Pace
from dfdc.errors import InputError
from dfdc.files import check_out, refuse_inputs, write_csv
from dfdc.prediction import PRIOR, Prediction
from dfdc.run.inputs import SUFFIXES
from dfdc.run.journal import LASTING, journal_path

log = logging.getLogger(__name__)

# The files are replaced at most once in this many seconds, and saving takes at most this share of the time.
INTERVAL_S = 2.0
SAVING_SHARE = 0.05
# No save is started if the time left is less than this many times the cost of a save, so that the last one fits.
LAST_SAVES = 3.0
# Number of rows whose formatting is timed, to know what a save of all rows will cost.
TIMED_ROWS = 100
# Decimal places in predictions.csv; other numbers have three.
DIGITS = {"label": 6, "picture": 6, "voice": 6}
COLUMNS = tuple(field.name for field in fields(Prediction))


def details_path(path: Path) -> Path:
    """The path of the details per clip: predictions.csv, or NAME.predictions.csv beside NAME.csv."""
    return path.with_name("predictions.csv" if path.stem == "submission" else f"{path.stem}.predictions.csv")


def read_predictions(details: Path) -> list[Prediction]:
    """Read the predictions in predictions.csv, in its order; blank or absent cells get their defaults.

    Raises:
        OSError, KeyError, ValueError: the file cannot be read or is no such file.
    """
    kinds = {field.name: float if field.default is None else type(field.default) for field in fields(Prediction)[1:]}
    with open(details, newline="", encoding="utf-8", errors="surrogateescape") as file:
        return [
            Prediction(row["filename"], **{name: kind(row[name]) for name, kind in kinds.items() if row.get(name)})
            for row in csv.DictReader(file)
        ]


def check_outputs(path: Path, inputs: Iterable[Path] = ()) -> None:
    """Check, before any work, that a submission can be written and overwrites no input.

    Args:
        path: path of the submission.
        inputs: clips and other files that the run reads.

    Raises:
        InputError: the folder does not exist or cannot be written, or one of the output files is a folder, a device, an
            input, or has a video's suffix.
    """
    if path.is_dir():
        raise InputError(f"{path}: is a folder; --out names a file, such as {path / 'submission.csv'}")
    if path.suffix.lower() in SUFFIXES:
        raise InputError(f"{path}: has a video's name; --out names the file to write, such as submission.csv")
    if not path.absolute().parent.is_dir():
        raise InputError(f"{path}: its folder does not exist; create it or choose another --out")
    inputs = list(inputs)
    try:
        for output in (path, details_path(path)):
            check_out(output, inputs)
        refuse_inputs(journal_path(path), inputs)  # a journal that cannot be written does not stop the run
    except OSError as error:
        raise InputError(str(error)) from error


class Submission:
    """The files submission.csv and predictions.csv during a run.

    If there is no submission yet, one with every row is written when this object is made: each row holds the prior
    until its prediction is recorded. The files of an earlier run stay until there is a first result. The details hold
    only the clips that are finished.

    Attributes:
        predictions: prediction by row name; None for a clip that is not finished.
        has_results: whether any clip was scored or found to show no face.
    """

    def __init__(
        self,
        path: Path,
        names: Sequence[str],
        *,
        models: Sequence[str] = (),
        fresh: bool = False,
        deadline: Deadline = NEVER,
    ) -> None:
        """Write the files that do not exist yet.

        Args:
            path: path of the submission, see `check_outputs`.
            names: row names, in order.
            models: names of the ensemble's models, for the details; the first `Prediction.n_models` scored a clip.
            fresh: whether to replace existing files at once.
            deadline: moment by which the last save has to be finished.

        Raises:
            InputError: a file cannot be written.
        """
        self.path, self.details = path, details_path(path)
        self.predictions: dict[str, Prediction | None] = dict.fromkeys(names)
        self.has_results = False
        self._models, self._deadline = models, deadline
        self._pace = Pace(SAVING_SHARE, INTERVAL_S, deadline.clock)
        self._waits = not fresh and (path.exists() or self.details.exists())
        self._created = [file for file in (path, self.details) if not file.exists()]
        self._row_s = self._time_row()
        try:
            self._write()
        except OSError as error:
            named = error.filename2 or error.filename or path
            raise InputError(f"{named}: cannot be written ({error.strerror}); choose another --out") from error

    @property
    def cost_s(self) -> float:
        """Seconds that a save of all rows is expected to take: the last one, and the details that it lacked."""
        return self._pace.cost_s + self._row_s * sum(prediction is None for prediction in self.predictions.values())

    @property
    def kept_earlier(self) -> bool:
        """Whether the files are still those of an earlier run."""
        return self._waits and not self.has_results

    def adopt(self, known: Mapping[str, Prediction]) -> None:
        """Record the results of an earlier run."""
        for prediction in known.values():
            self._take(prediction)

    def record(self, prediction: Prediction) -> None:
        """Record one clip's prediction and save if it is time; the clip must be among the names."""
        if prediction.filename not in self.predictions:
            raise KeyError(f"{prediction.filename}: not a row of {self.path}")
        self._take(prediction)
        if self._pace.due() and self._deadline.remaining_s() > LAST_SAVES * self._pace.cost_s:
            self.save()

    def save(self) -> bool:
        """Save now; if that fails, the failure is logged, the last good files stay, and False is returned."""
        try:
            self._write()
        except OSError as error:
            log.error("%s: cannot be updated (%s); the last good version stays", self.path, error.strerror)
            return False
        return True

    def withdraw(self) -> None:
        """Remove the files that this run created, if they hold no result."""
        if not self.has_results:
            for path in self._created:
                path.unlink(missing_ok=True)

    def _take(self, prediction: Prediction) -> None:
        self.predictions[prediction.filename] = prediction
        self.has_results |= prediction.scored or prediction.status in LASTING

    def _write(self) -> None:
        with self._pace.measured():
            if not (self.kept_earlier and self.path.exists()):
                labels = {name: p.label if p else PRIOR for name, p in self.predictions.items()}
                write_csv(self.path, ("filename", "label"), ((name, f"{label:.6f}") for name, label in labels.items()))
            if not (self.kept_earlier and self.details.exists()):
                rows = (self._cells(p) for p in self.predictions.values() if p)
                write_csv(self.details, [*COLUMNS, "models"], rows)

    def _time_row(self) -> float:
        """Seconds that a row of the details takes; writing it takes as long as formatting it."""
        blank, clock = Prediction("", status="timeout"), self._deadline.clock
        began_s = clock()
        for _ in range(TIMED_ROWS):
            self._cells(blank)
        return 2 * (clock() - began_s) / TIMED_ROWS

    def _cells(self, prediction: Prediction) -> list[object]:
        # `asdict` copies every value and takes three times as long, which counts with 200,000 rows.
        values = ((name, getattr(prediction, name)) for name in COLUMNS)
        cells = [f"{v:.{DIGITS.get(name, 3)}f}" if isinstance(v, float) else v for name, v in values]
        return [*cells, " ".join(self._models[: prediction.n_models])]
