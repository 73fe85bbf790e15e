"""Predictions -> submission.csv: complete from the first second, replaced atomically."""

from __future__ import annotations

import csv
import logging
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, fields
from pathlib import Path

from dfdc.errors import InputError
from dfdc.files import write_csv
from dfdc.prediction import PRIOR, Prediction
from dfdc.run.inputs import SUFFIXES

log = logging.getLogger(__name__)

# Files are replaced at most so often while results come in; the last state is always written.
INTERVAL_S = 2.0


def details_path(path: Path) -> Path:
    """Where what is known of each clip is written: predictions.csv, behind the name of a submission of another name."""
    return path.with_name("predictions.csv" if path.stem == "submission" else f"{path.stem}.predictions.csv")


def read_predictions(details: Path) -> list[Prediction]:
    """What predictions.csv says of each clip, in its order; what is blank or absent has its default.

    Raises:
        OSError, KeyError, ValueError: it cannot be read or is none.
    """
    kinds = {field.name: float if field.default is None else type(field.default) for field in fields(Prediction)[1:]}
    with open(details, newline="", encoding="utf-8", errors="surrogateescape") as file:
        return [
            Prediction(row["filename"], **{name: kind(row[name]) for name, kind in kinds.items() if row.get(name)})
            for row in csv.DictReader(file)
        ]


class Submission:
    """submission.csv, and predictions.csv beside it, over a run.

    The submission holds every row from the moment this object is made: first with the prior, then with what is
    recorded. The predictions hold the clips that are done.
    """

    def __init__(self, path: Path, names: Sequence[str], known: Mapping[str, Prediction] | None = None) -> None:
        """Write the first version.

        Args:
            path: of the submission; its folder exists.
            names: of the rows, in order.
            known: what an earlier run found of some of them; None for nothing.

        Raises:
            InputError: the folder does not exist or cannot be written, or the name is a folder's or a video's.
        """
        self.path = path
        self.predictions: dict[str, Prediction | None] = {name: (known or {}).get(name) for name in names}
        self._written_s = float("-inf")
        if path.is_dir():
            raise InputError(f"{path}: is a folder; --out names a file, such as {path / 'submission.csv'}")
        if path.suffix.lower() in SUFFIXES:
            raise InputError(f"{path}: has a video's name; --out names the file to write, such as submission.csv")
        self.details = details_path(path)
        if not path.absolute().parent.is_dir():
            raise InputError(f"{path}: its folder does not exist; make it or name another with --out")
        try:
            self._write()
        except OSError as error:
            raise InputError(
                f"{error.filename2 or error.filename or path}: cannot be written ({error.strerror}); "
                "name another file with --out"
            ) from error

    def record(self, prediction: Prediction) -> None:
        """Take over one clip's prediction; its row must be among the names."""
        if prediction.filename not in self.predictions:
            raise KeyError(f"{prediction.filename}: not a row of {self.path}")
        self.predictions[prediction.filename] = prediction
        if time.monotonic() - self._written_s >= INTERVAL_S:
            self.save()

    def save(self) -> bool:
        """Write now; where that fails the last good files stay, the failure is logged, and the run goes on."""
        try:
            self._write()
        except OSError as error:
            log.error("%s: not updated (%s); the last good version stays", self.path, error.strerror)
            return False
        return True

    def _write(self) -> None:
        self._written_s = time.monotonic()
        labels = {name: p.label if p else PRIOR for name, p in self.predictions.items()}
        write_csv(self.path, ("filename", "label"), ((name, f"{label:.6f}") for name, label in labels.items()))
        columns = [field.name for field in fields(Prediction)]
        write_csv(
            self.details,
            columns,
            (_cells(asdict(p)) for p in self.predictions.values() if p),
        )


def _cells(values: dict[str, object]) -> list[object]:
    digits = {"label": 6, "cut_s": 3, "seconds": 3, "decode_s": 3, "detect_s": 3, "crop_s": 3, "score_s": 3}
    return [f"{value:.{digits[name]}f}" if name in digits else value for name, value in values.items()]
