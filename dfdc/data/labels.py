"""Hand labels for frames: one CSV that tools/label_frames.py writes, and what it means for training."""

from __future__ import annotations

import csv
import os
from collections import Counter
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import torch

from dfdc.data.crops import SAME_TIME_S
from dfdc.errors import DataError
from dfdc.files import write_csv
from dfdc.tracks import iou

VISIBLE, NOT_VISIBLE, SKIP = "visible", "not_visible", "skip"
MARKS = (VISIBLE, NOT_VISIBLE, SKIP)
LABEL_COLUMNS = ("video", "frame", "time", "track", "box", "label", "when")
# How much a fake counts that a person called visible, where those that nobody judged count 1.
VISIBLE_WEIGHT = 2.0
# A label's box and a crop's are of one face if they share so much, intersection over union.
SAME_FACE_OVERLAP = 0.5

# A clip's name, the index of its sampled frame, the index of the person.
Key = tuple[str, int, int]


@dataclass(frozen=True)
class FrameLabel:
    """What a person said of one face of one frame.

    Attributes:
        video: the clip's name.
        frame: index among the clip's sampled frames.
        time_s: seconds from the clip's first frame.
        track: index of the person.
        box: x0, y0, x1, y1 in pixels of the frame.
        label: one of `MARKS`.
        when: it was said, ISO 8601.
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
        """Whether it was given to the face at this moment and in this box, as far as they are told."""
        if time_s not in ("", None) and abs(float(time_s) - self.time_s) > SAME_TIME_S:
            return False
        return not box or bool(iou(np.array([self.box]), np.array([read_box(box)]))[0, 0] >= SAME_FACE_OVERLAP)


def read_box(text: str) -> tuple[float, ...]:
    """A box as crop tables and label files write it: numbers with blanks between them."""
    return tuple(float(number) for number in text.split())


def read_labels(path: Path) -> list[FrameLabel]:
    """The labels of a file, in the order in which they were given; of several for one face of a frame the last.

    Raises:
        DataError: not a readable CSV file, a column is missing, or a row does not hold what its columns say.
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
    """Labels in a CSV file that is replaced, whole and synced, at every change: a killed program loses none."""

    def __init__(self, path: Path) -> None:
        """Take a file up where it was left.

        Args:
            path: of the CSV; it may be absent, its folder may not.

        Raises:
            DataError: the folder is absent, or the file is there and is no label file.
        """
        if not path.absolute().parent.is_dir():
            raise DataError(f"{path}: its folder does not exist; make it or name another file")
        self.path = path
        self.labels = {label.key: label for label in read_labels(path)} if path.exists() else {}
        # What each change replaced; of an earlier run's changes only the order is known.
        self._past: list[tuple[Key, FrameLabel | None]] = [(key, None) for key in self.labels]
        self._state = self._look()

    def set(self, label: FrameLabel) -> None:
        """Save a label, in the place of an earlier one of the same face and frame.

        Raises:
            DataError: another program changed the file.
            OSError: it cannot be written, and is as it was.
        """
        before = self.labels.get(label.key)
        self._save(label.key, label)
        self._past.append((label.key, before))

    def undo(self, videos: Collection[str]) -> Key | None:
        """Take back the last change to any of some videos.

        Returns:
            What it was of; None where there is nothing to take back.

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
        if self._look() != self._state:
            raise DataError(
                f"{self.path}: another program changed it, and its changes would be lost; close that program and "
                "start this one again"
            )
        labels = {other: value for other, value in self.labels.items() if other != key}
        if label:
            labels[key] = label
        write_csv(self.path, LABEL_COLUMNS, map(_format, labels.values()))
        self.labels, self._state = labels, self._look()

    def _look(self) -> tuple[int, int, int] | None:
        try:
            state = os.stat(self.path)
        except FileNotFoundError:
            return None
        return state.st_ino, state.st_size, state.st_mtime_ns


def _format(label: FrameLabel) -> tuple[object, ...]:
    box = " ".join(map(str, label.box))
    return label.video, label.frame, label.time_s, label.track, box, label.label, label.when


def weigh_crops(
    table: pd.DataFrame, labels: list[FrameLabel], *, labelled_only: bool = False
) -> tuple[torch.Tensor, Counter[str]]:
    """How much each crop counts in training: fakes called visible `VISIBLE_WEIGHT`, not visible nothing, others 1.

    A label belongs to the crop of its video, frame and track, and only if moment and box agree as well: crops cut
    with another number of frames, or whose persons are numbered otherwise, are not what the person saw.

    Args:
        table: one split's rows, from `dfdc.data.dataset.read_split`.
        labels: of these and other videos.
        labelled_only: of the fakes, use those alone that were called visible, each as 1.

    Returns:
        (N,) float32 for `CropSet.weights`, and how many labels of each of `MARKS` belong to a crop; the key
        "unmatched" counts those that belong to none.

    Raises:
        DataError: the table does not tell frames and tracks, no label belongs to a crop, or no fake is left.
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
            f"none of the {len(labels)} frame labels belongs to one of these {len(table)} crops: make crops of the "
            "same clips with as many --frames as they were labelled with"
        )
    is_fake = (table.label == "FAKE").to_numpy()
    weights = np.full(len(table), 0.0 if labelled_only else 1.0, np.float32)
    weights[marks == VISIBLE] = 1.0 if labelled_only else VISIBLE_WEIGHT
    weights[marks == NOT_VISIBLE] = 0.0
    weights[~is_fake] = 1.0
    if not weights[is_fake].any():
        raise DataError("the frame labels leave no fake to train on; call more of them visible")
    return torch.from_numpy(weights), counts


def describe_counts(counts: Counter[str]) -> str:
    """What `weigh_crops` counted, in words."""
    found = ", ".join(f"{counts[mark]} {mark.replace('_', ' ')}" for mark in MARKS)
    return f"{found}; {counts['unmatched']} labels belong to no crop of this split"


def _index(table: pd.DataFrame) -> dict[Key, int]:
    missing = [name for name in ("frame", "track") if name not in table]
    if missing:
        raise DataError(
            f"the crop table has no column {' and no column '.join(missing)}, by which frame labels find their crops; "
            "tools/make_crops.py writes them"
        )
    try:
        keys = zip(table.video, table.frame.astype(int), table.track.astype(int), strict=True)
        return {key: row for row, key in enumerate(keys)}
    except ValueError as error:
        raise DataError(f"the crop table's frames and tracks are not all whole numbers ({error})") from error
