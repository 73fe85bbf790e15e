"""Fakes -> sheets of face crops in temporal order, beside their originals and with scores, for a person to judge.

A sheet is made when it is requested, and the next one with it, in a background thread: nobody waits for a whole data
set, and rarely for a clip.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterable
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path

import numpy as np
import torch

from dfdc.data.clips import METADATA, LabelledClip, read_metadata
from dfdc.data.containment import resolve_inside
from dfdc.data.crop_folder import CROP_COLUMNS, CutSettings, Report, find_done, prepare_folder
from dfdc.data.crops import cut_family
from dfdc.data.dataset import read_table
from dfdc.data.images import read_image
from dfdc.detect import FaceDetector
from dfdc.ensemble import Ensemble
from dfdc.errors import DataError, DfdcError
from dfdc.networks import resize_crops
from dfdc.weights import WeightsFile, select, sigmoid

log = logging.getLogger(__name__)

NEEDED_COLUMNS = ("frame", "track", "time", "box")

# A row of a crop table: column -> text.
Row = dict[str, str]


@dataclass(frozen=True)
class Shot:
    """One face of one frame of a fake.

    Attributes:
        frame: index among the clip's sampled frames.
        time_s: seconds from the clip's first frame.
        track: index of the person.
        box: "x0 y0 x1 y1" in pixels of the frame.
        path: of the crop.
        original: of the original's crop of the same time and place; None if there is none.
        score: the ensemble's probability that the crop is fake, 0 to 1; None without models.
    """

    frame: int
    time_s: float
    track: int
    box: str
    path: Path
    original: Path | None = None
    score: float | None = None


@dataclass(frozen=True)
class Sheet:
    """The shots of one fake, person by person; if there are none, `reason` says why."""

    shots: tuple[Shot, ...] = ()
    reason: str = ""


class TableFakes:
    """The fakes of a crop table that tools/make_crops.py made.

    Attributes:
        kinds: the manipulation of each fake, by the fake's name.
    """

    def __init__(self, csv: Path) -> None:
        """Read the table.

        Raises:
            DataError: it cannot be used, lacks a column, has its images in zip files, or holds no fake.
        """
        table = read_table(csv)
        missing = [name for name in NEEDED_COLUMNS if name not in table]
        if missing or "shard" in table:
            wrong = f"columns {', '.join(missing)} are missing" if missing else "its images are in zip files"
            raise DataError(f"{csv}: {wrong}; make the crops with tools/make_crops.py, or name the clips themselves")
        self._folder = csv.parent
        self._rows: dict[str, list[Row]] = {}
        for row in table.to_dict("records"):
            self._rows.setdefault(row["video"], []).append(row)
        firsts = [rows[0] for rows in self._rows.values()]
        fakes = [row for row in firsts if row["label"] == "FAKE" and row["split"] == "train"]
        self.kinds = {row["video"]: row.get("manipulation", "") for row in fakes}
        if not self.kinds:
            raise DataError(f"{csv}: holds no fake in the split train; only frames of these are labelled")

    def collect(self, video: str) -> Sheet:
        """The shots of a fake, without scores."""
        rows = self._rows[video]
        return Sheet(_lay_out(self._folder, rows, self._rows.get(rows[0]["original"], [])))


class ClipFakes:
    """The fakes among clips; their crops are cut when they are first requested, and kept.

    Attributes:
        kinds: see `TableFakes`.
    """

    def __init__(self, paths: list[Path], out: Path, settings: CutSettings) -> None:
        """Find the fakes.

        Args:
            paths: clips or folders of clips, with metadata.json beside or in them.
            out: folder for the crops, laid out as by tools/make_crops.py; made if absent.
            settings: how to cut.

        Raises:
            DataError: see `find_fakes`; or the folder holds crops that were cut with other settings.
            OSError: the folder cannot be written.
        """
        self._families = find_fakes(paths)
        self.kinds = {name: family[-1].manipulation for name, family in self._families.items()}
        self._out = out
        self._settings = settings
        self._detector: FaceDetector | None = None
        prepare_folder(out, settings)
        find_done(out, {clip.name: clip for family in self._families.values() for clip in family})

    def collect(self, video: str) -> Sheet:
        """The shots of a fake, without scores; missing crops of it and of its original are cut first."""
        *originals, fake = self._families[video]
        family = {clip.name: clip for clip in (*originals, fake)}
        records = find_done(self._out, family)
        if len(records) < len(family):
            self._detector = self._detector or FaceDetector("cpu")
            done = frozenset(records)
            reports = cut_family(self._detector, list(family.values()), self._out, self._settings, done)
            records |= {report.video: report for report in reports}
        record = records[video]
        if record.status != "ok":
            return Sheet(reason=f"{record.status.replace('_', ' ')}: {record.reason}")
        original = records[originals[0].name] if originals else None
        return Sheet(_lay_out(self._out, _rows(record), _rows(original)))


def find_fakes(paths: Iterable[Path]) -> dict[str, list[LabelledClip]]:
    """Find the fakes among clips.

    Args:
        paths: clips, or folders, which stand for all of their clips that exist.

    Returns:
        For the name of each fake a list of its original, if that exists, and the fake itself.

    Raises:
        DataError: metadata.json is missing or does not list a clip, two clips share a name, or there is no fake.
    """
    paths = list(paths)
    known: dict[str, LabelledClip] = {}
    for folder in dict.fromkeys(path if path.is_dir() else path.parent for path in paths):
        for clip in read_metadata(folder):
            if clip.path.exists() and known.setdefault(clip.name, clip) is not clip:
                raise DataError(
                    f"{clip.path}: shares its name with {known[clip.name].path}; label each "
                    "folder by itself, with its own --crops and --labels"
                )
    wanted: dict[str, LabelledClip] = {}
    for path in paths:
        if path.is_dir():
            wanted |= {name: clip for name, clip in known.items() if clip.path.parent == path}
        elif path.name in known:
            wanted[path.name] = known[path.name]
        else:
            raise DataError(
                f"{path}: does not exist, or {path.with_name(METADATA)} does not list it; "
                f'add "{path.name}": {{"label": "FAKE"}} to that file'
            )
    fakes = [clip for clip in wanted.values() if clip.label == "FAKE"]
    if not fakes:
        raise DataError(f"{', '.join(map(str, paths))}: no fake found; only frames of fakes are labelled")
    return {clip.name: [known[name] for name in (clip.original, clip.name) if name in known] for clip in fakes}


def _rows(record: Report | None) -> list[Row]:
    rows = record.rows if record else ()
    return [{name: str(value) for name, value in zip_longest(CROP_COLUMNS, row, fillvalue="")} for row in rows]


def _lay_out(folder: Path, rows: list[Row], originals: list[Row]) -> tuple[Shot, ...]:
    """Shots person by person in temporal order; crops that are not aligned to an original stand alone."""
    twins = {(row["frame"], row["track"]): resolve_inside(folder, row["path"]) for row in originals}
    shots = [
        Shot(
            int(row["frame"]),
            float(row["time"]),
            int(row["track"]),
            row["box"],
            resolve_inside(folder, row["path"]),
            twins.get((row["frame"], row["track"])) if row.get("difference", "unknown") else None,
        )
        for row in rows
    ]
    return tuple(sorted(shots, key=lambda shot: (shot.track, shot.frame)))


class Scorer:
    """The kernel's models, applied to single crops; they are loaded at the first request."""

    def __init__(self, files: list[WeightsFile]) -> None:
        self._files = files
        self._models: list[Ensemble] = []

    def score(self, paths: list[Path]) -> np.ndarray:
        """P(fake) of crops, (N,) float64; crops of another size than a model's are resized for it.

        Raises:
            DataError: an image is missing or does not decode.
        """
        self._models = self._models or [Ensemble([file]) for file in select("face", self._files)]
        crops = torch.from_numpy(np.stack([_read_crop(path) for path in paths])).permute(0, 3, 1, 2)
        logits = []
        for model in self._models:
            fitting = resize_crops(crops.float(), model.specs[0].crop.size).clamp(0, 255).round().to(torch.uint8)
            logits.append(model.score_crops(fitting))
        return sigmoid(np.average(logits, axis=0, weights=[model.specs[0].weight for model in self._models]))


def _read_crop(path: Path) -> np.ndarray:
    pixels = read_image(path)
    if pixels is None:
        raise DataError(f"{path}: missing, or not an image; make the crops again")
    return pixels


class Sheets:
    """Sheets by number, each made once, and the next one in advance."""

    def __init__(self, videos: list[str], make: Callable[[str], Sheet]) -> None:
        """Prepare to make sheets.

        Args:
            videos: names of the fakes, in order.
            make: makes the sheet of a fake; it is called from one thread only.
        """
        self.videos = videos
        self._make = make
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="sheets")
        self._lock = threading.Lock()
        self._futures: dict[int, Future[Sheet]] = {}

    def get(self, number: int, *, wait_s: float) -> Sheet | None:
        """The sheet of a fake, or None if it takes longer. Requests for other sheets that have not begun are cancelled.

        Args:
            number: of the fake, from 0.
            wait_s: how long to wait for it.
        """
        near = [near for near in (number, number + 1) if near < len(self.videos)]
        with self._lock:
            for other in self._futures.keys() - near:
                if self._futures[other].cancel():
                    del self._futures[other]
            for one in near:
                if one not in self._futures:
                    self._futures[one] = self._pool.submit(self._try, self.videos[one])
            future = self._futures[number]
        wait([future], wait_s)
        return future.result() if future.done() and not future.cancelled() else None

    def count(self, number: int) -> int | None:
        """The number of shots on the sheet of a fake; None if it has not been made."""
        future = self._futures.get(number)
        return len(future.result().shots) if future and future.done() and not future.cancelled() else None

    def close(self) -> None:
        """Start no more sheets."""
        self._pool.shutdown(wait=False, cancel_futures=True)

    def _try(self, video: str) -> Sheet:
        try:
            return self._make(video)
        except DfdcError as error:
            return Sheet(reason=str(error))
        except Exception as error:  # one unusual clip must not end an afternoon of labelling
            log.exception("%s: failed", video)
            return Sheet(reason=f"{type(error).__name__}: {error}")
