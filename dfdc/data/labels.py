"""Frame labels given by hand: the CSV that tools/label_frames.py writes, and the weights that training makes of it."""

from __future__ import annotations

import csv
import os
from collections import Counter
from collections.abc import Collection, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import torch

from dfdc.data.crops import SAME_TIME_S
from dfdc.errors import DataError
from dfdc.files import write_csv
from dfdc.tracks import iou

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None

VISIBLE, NOT_VISIBLE, SKIP = "visible", "not_visible", "skip"
MARKS = (VISIBLE, NOT_VISIBLE, SKIP)
LABEL_COLUMNS = ("video", "frame", "time", "track", "box", "label", "when")
# The training weight of a fake frame that a person called visibly fake; unlabelled ones have 1.
VISIBLE_WEIGHT = 2.0
# A label's box and a crop's box are of one face from this intersection over union up.
SAME_FACE_OVERLAP = 0.5

# A clip's name, the index of its sampled frame, the index of the person.
Key = tuple[str, int, int]


@dataclass(frozen=True)
class FrameLabel:
    """A person's judgement of one face in one frame.

    Attributes:
        video: the clip's name.
        frame: index among the clip's sampled frames.
        time_s: seconds from the clip's first frame.
        track: index of the person.
        box: x0, y0, x1, y1 in pixels of the frame.
        label: one of `MARKS`.
        when: the time of the judgement, ISO 8601.
    """

    video: str
    frame: int
    time_s: float
    track: int
    box: tuple[float, float, float, float]
    label: str
    when: str

    def __post_init__(self) -> None:
        if self.label not in MARKS:
            raise ValueError(f"the label is {self.label!r}; allowed: {', '.join(MARKS)}")
        if len(self.box) != 4:
            raise ValueError(f"the box has {len(self.box)} numbers; allowed: 4")

    @property
    def key(self) -> Key:
        return self.video, self.frame, self.track

    def is_of(self, time_s: object, box: str | None) -> bool:
        """Whether it was given to the face at this time and in this box, as far as these are known."""
        if time_s not in ("", None) and abs(float(time_s) - self.time_s) > SAME_TIME_S:
            return False
        return not box or bool(iou(np.array([self.box]), np.array([read_box(box)]))[0, 0] >= SAME_FACE_OVERLAP)


def read_box(text: str) -> tuple[float, ...]:
    """Parse a box as crop tables and label files write it: numbers separated by blanks."""
    return tuple(float(number) for number in text.split())


def read_labels(path: Path) -> list[FrameLabel]:
    """The labels of a file in the order in which they were given; of several for one face of a frame, the last one.

    Raises:
        DataError: not a readable CSV file, a column is missing, or a row is not a label.
    """
    labels: dict[Key, FrameLabel] = {}
    try:
        # Spreadsheets put a mark before the first column's name.
        with open(path, newline="", encoding="utf-8-sig", errors="surrogateescape") as file:
            rows = csv.DictReader(file)
            missing = [name for name in LABEL_COLUMNS if name not in (rows.fieldnames or ())]
            if missing:
                raise DataError(f"{path}: columns {', '.join(missing)} are missing; tools/label_frames.py writes them")
            for row in rows:
                label = _parse(path, rows.line_num, row)
                labels.pop(label.key, None)
                labels[label.key] = label
    except (OSError, csv.Error, UnicodeError) as error:
        raise DataError(f"{path}: not a readable CSV file ({error}); tools/label_frames.py writes one") from error
    return list(labels.values())


def _parse(path: Path, line: int, row: dict[str, str]) -> FrameLabel:
    try:
        return FrameLabel(
            row["video"],
            int(row["frame"]),
            float(row["time"]),
            int(row["track"]),
            read_box(row["box"]),
            row["label"],
            row["when"],
        )
    except (ValueError, TypeError, AttributeError) as error:
        raise DataError(f"{path}, line {line}: not a label ({error}); correct or delete the line") from error


class LabelFile:
    """Labels in a CSV file that every change replaces atomically and syncs, so that a killed program loses none."""

    def __init__(self, path: Path) -> None:
        """Open a file of labels, or begin a new one.

        Args:
            path: of the CSV; it may be absent, its folder may not.

        Raises:
            DataError: the folder is absent, or the file is there and is no label file.
        """
        if not path.absolute().parent.is_dir():
            raise DataError(f"{path}: its folder does not exist; make it or name another file")
        self.path = path
        self.labels = {label.key: label for label in read_labels(path)} if path.exists() else {}
        # What each change replaced; of changes in earlier runs only the order is known.
        self._past: list[tuple[Key, FrameLabel | None]] = [(key, None) for key in self.labels]
        self._state = self._identify()

    def set(self, label: FrameLabel) -> None:
        """Save a label; it replaces an earlier one of the same face and frame.

        Raises:
            DataError: another program changed the file, which stays as it is.
            OSError: the file cannot be written and stays as it was.
        """
        before = self.labels.get(label.key)
        self._save(label.key, label)
        self._past.append((label.key, before))

    def undo(self, videos: Collection[str]) -> Key | None:
        """Undo the last change to any of the given videos.

        Returns:
            Whose label it was; None if there is nothing to undo.

        Raises:
            As `set`.
        """
        for index in reversed(range(len(self._past))):
            key, before = self._past[index]
            if key[0] in videos:
                self._save(key, before)
                del self._past[index]
                return key
        return None

    def _save(self, key: Key, label: FrameLabel | None) -> None:
        # Between the look and the replacement no other writer may replace the file.
        with _locked(self.path.absolute().parent):
            if self._identify() != self._state:
                raise DataError(
                    f"{self.path}: another program changed it, and its changes would be lost; close that program and "
                    "start this one again"
                )
            labels = {other: value for other, value in self.labels.items() if other != key}
            if label:
                labels[key] = label
            write_csv(self.path, LABEL_COLUMNS, map(_format, labels.values()))
            self.labels, self._state = labels, self._identify()

    def _identify(self) -> tuple[int, int, int] | None:
        try:
            state = os.stat(self.path)
        except FileNotFoundError:
            return None
        return state.st_ino, state.st_size, state.st_mtime_ns


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Hold a folder's lock, which other writers of labels wait for.

    The folder itself is locked: a lock on the file would end with the file that is replaced, and a file for the lock
    alone would stay behind. Where the system or the file system knows no such locks, nothing is locked.
    """
    if fcntl is None:
        yield
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        with suppress(OSError):
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def _format(label: FrameLabel) -> tuple[object, ...]:
    box = " ".join(map(str, label.box))
    return label.video, label.frame, label.time_s, label.track, box, label.label, label.when


def weigh_crops(
    table: pd.DataFrame, labels: list[FrameLabel], *, labelled_only: bool = False
) -> tuple[torch.Tensor, Counter[str]]:
    """Training weights of crops: `VISIBLE_WEIGHT` for fakes called visible, 0 for not visible ones, 1 for all others.

    A label belongs to the crop of its video, frame and track, but only if time and box agree as well: crops that were
    cut with another number of frames, or whose people are numbered differently, are not what the person saw.

    Args:
        table: one split's rows, from `dfdc.data.dataset.read_split`.
        labels: of these and other videos.
        labelled_only: give all fakes the weight 0 except those called visible, which get 1.

    Returns:
        (N,) float32 for `CropSet.weights`, and the number of labels of each of `MARKS` that belong to a crop; the key
        "unmatched" counts those that belong to none.

    Raises:
        DataError: the table has no frames and tracks, no label belongs to a crop, or no fake is left.
    """
    places = _index(table)
    marks = np.full(len(table), "", dtype=object)
    counts: Counter[str] = Counter()
    for label in labels:
        row = places.get(label.key)
        if row is None or not label.is_of(table.iloc[row].get("time"), table.iloc[row].get("box")):
            counts["unmatched"] += 1
        else:
            marks[row] = label.label
            counts[label.label] += 1
    if not sum(counts[mark] for mark in MARKS):
        raise DataError(
            f"none of the {len(labels)} frame labels belongs to one of these {len(table)} crops: cut crops of the same "
            "clips with the same --frames value that was used for labelling"
        )
    is_fake = (table.label == "FAKE").to_numpy()
    weights = np.full(len(table), 0.0 if labelled_only else 1.0, np.float32)
    weights[marks == VISIBLE] = 1.0 if labelled_only else VISIBLE_WEIGHT
    weights[marks == NOT_VISIBLE] = 0.0
    weights[~is_fake] = 1.0
    if not weights[is_fake].any():
        raise DataError("the frame labels leave no fake to train on; label more frames as visibly fake")
    return torch.from_numpy(weights), counts


def describe_counts(counts: Counter[str]) -> str:
    """The counts of `weigh_crops` in words."""
    found = ", ".join(f"{counts[mark]} {mark.replace('_', ' ')}" for mark in MARKS)
    return f"{found}; {counts['unmatched']} labels match no crop of this split and are ignored"


def _index(table: pd.DataFrame) -> dict[Key, int]:
    missing = [name for name in ("frame", "track") if name not in table]
    if missing:
        raise DataError(
            f"the crop table has no column {' and no column '.join(missing)}, by which frame labels are matched to "
            "crops; tools/make_crops.py writes them"
        )
    try:
        keys = zip(table.video, table.frame.astype(int), table.track.astype(int), strict=True)
        return {key: row for row, key in enumerate(keys)}
    except ValueError as error:
        raise DataError(f"the crop table's frames and tracks are not all whole numbers ({error})") from error
