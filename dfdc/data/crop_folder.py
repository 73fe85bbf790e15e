"""A folder of crops on disk: how its clips were cut, and a record of each finished clip.

A clip's images and its record, clip.json, are written to a draft folder that moves to its place when it is complete: a
clip whose folder is there is done, until its file changes.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path

import cv2
import numpy as np

from dfdc.crop import CropGeometry
from dfdc.data.clips import LabelledClip, digest_clip, is_same
from dfdc.errors import DataError, SettingError
from dfdc.files import read_file, write_text

FRAME_COLUMNS = ("name", "label")
# Finished clips, and those in the making, below the output folder.
IMAGES, DRAFTS, RECORD = "images", "drafts", "clip.json"
STATUSES = ("ok", "equal", "misaligned", "no_face", "unreadable", "error")


@dataclass(frozen=True)
class CropRow:
    """One row of crops.csv: a face crop of a clip, a photograph or a crop that others cut.

    Attributes:
        path: of the crop's file, below the table's folder.
        video: name of the clip or picture that it was cut from.
        label: REAL or FAKE.
        original: name of the clip or picture that a fake was made from; empty where that is not known, and for reals.
        manipulation: how a fake was made, in one word; empty where that is not known.
        split: "train", "val" or any other word.
        frame: index among the clip's sampled frames; 0 for pictures.
        time: seconds from the clip's first frame; 0 for pictures.
        track: index of the person; 0 for pictures, of which one face is cut.
        box: x0 y0 x1 y1 of the face in pixels of its source.
        landmarks: x y of eyes, nose and corners of the mouth; empty where the box is interpolated, and for pictures.
        source_size: side in pixels of the crop's square in its source, before it was scaled.
        difference: mean absolute difference in levels (0 to 255) from the original's crop; empty if the fake was not
            aligned with its original, "unknown" if that is not known.
        ssim: structural similarity to the original's crop; empty if the fake was not aligned with it.
        dataset, identity, source: from the metadata or the table of pictures; otherwise empty.
        format: suffix of the source's file, in lower case without the dot.
        angle: degrees clockwise by which the head is rolled; the crop is turned upright. Empty where that is not known.
    """

    path: str
    video: str
    label: str
    original: str = ""
    manipulation: str = ""
    split: str = "train"
    frame: int = 0
    time: float = 0.0
    track: int = 0
    box: str = ""
    landmarks: str = ""
    source_size: int | str = ""
    difference: float | str = ""
    ssim: float | str = ""
    dataset: str = ""
    identity: str = ""
    source: str = ""
    format: str = ""
    angle: float | str = ""  # records of older versions lack it, and end before it


CROP_COLUMNS = tuple(field.name for field in fields(CropRow))


def format_of(path: Path) -> str:
    """The value of `CropRow.format` for a clip or a picture."""
    return path.suffix.lstrip(".").lower().replace("jpeg", "jpg")


@dataclass(frozen=True)
class CutSettings:
    """Settings for cutting clips.

    Attributes:
        n_frames: number of frames per clip, evenly spread over its time; None for all frames, which is allowed only
            with plain_frames.
        geometry: crop geometry.
        jpeg_quality: quality of the crops, 1 to 100; None writes PNG, which is lossless.
        skip_equal: whether to leave out those tracks of a fake that show the same face as its original.
        plain_frames: whether to write whole frames as JPEG instead of crops.
    """

    n_frames: int | None = 16
    geometry: CropGeometry = field(default_factory=CropGeometry)
    jpeg_quality: int | None = None
    skip_equal: bool = False
    plain_frames: bool = False

    def __post_init__(self) -> None:
        if self.n_frames is None and not self.plain_frames:
            raise SettingError("n_frames is None; allowed: 1 and up, and None for plain frames")
        if self.n_frames is not None and self.n_frames < 1:
            raise SettingError(f"n_frames is {self.n_frames}; allowed: 1 and up")
        if self.jpeg_quality is not None and not 1 <= self.jpeg_quality <= 100:
            raise SettingError(f"jpeg_quality is {self.jpeg_quality}; allowed: 1 to 100, or None for PNG")

    @property
    def columns(self) -> tuple[str, ...]:
        return FRAME_COLUMNS if self.plain_frames else CROP_COLUMNS


@dataclass(frozen=True)
class Report:
    """The result of cutting one clip.

    Attributes:
        video: its name.
        status: one of `STATUSES`.
        reason: why it is not "ok".
        rows: rows of the table, one for each image, in the order of the settings' columns.
        label, original: the clip's metadata when it was cut; None in records of older versions.
        path, digest: the file that was cut, see `dfdc.data.clips.is_same`.
        original_digest: digest of the original with which a fake was aligned; empty if it was cut without one. None for
            reals, and in records of older versions.
    """

    video: str
    status: str = "ok"
    reason: str = ""
    rows: tuple[tuple[object, ...], ...] = ()
    label: str | None = None
    original: str | None = None
    path: str = ""
    digest: str = ""
    original_digest: str | None = None

    def is_of(self, clip: LabelledClip) -> bool:
        """Whether this report is of the clip's present file, with the label and original of the present metadata.

        Raises:
            DataError: as `dfdc.data.clips.is_same`.
        """
        told = self.label is None or (self.label, self.original) == (clip.label, clip.original)
        return is_same(clip.path, self.path, self.digest) and told


def prepare_folder(out: Path, settings: CutSettings, *, overwrite: bool = False) -> None:
    """Create an output folder, and check that crops that are already there were cut with the same settings.

    Raises:
        DataError: it holds crops that were cut with other settings, or folders that are not of crops.
        OSError: it cannot be written.
    """
    if overwrite:
        foreign = [name for name in (IMAGES, DRAFTS) if (out / name).exists() and not (out / "settings.json").exists()]
        if foreign:
            raise DataError(f"{out / foreign[0]}: was not made by this tool, and is not deleted; name another folder")
        for name in (IMAGES, DRAFTS):
            shutil.rmtree(out / name, ignore_errors=True)
        (out / "settings.json").unlink(missing_ok=True)
    out.mkdir(parents=True, exist_ok=True)
    path, text = out / "settings.json", json.dumps(asdict(settings), indent=1) + "\n"
    if not path.exists():
        write_text(path, text)
    elif read_file(path).decode("utf-8") != text:
        raise DataError(f"{path}: cut with other settings; use the same, delete the folder, or name another")


def read_records(out: Path) -> Iterator[Report]:
    """Yield the reports of the finished clips, sorted by name."""
    for path in sorted(out.glob(f"{IMAGES}/*/{RECORD}")):
        yield _read_record(path)


def find_done(out: Path, clips: Mapping[str, LabelledClip]) -> dict[str, Report]:
    """The reports of the clips that need not be cut again, by name.

    A clip is cut again if its file or its metadata changed. A fake is also cut again if its original changed, or was
    absent before and exists now.

    Args:
        out: folder of the crops.
        clips: by name.

    Raises:
        DataError: the folder holds crops of another clip with the same name, and that clip still exists.
    """
    reports = {name: report for name in clips if (report := find_record(out, name))}
    valid = {name: report for name, report in reports.items() if report.is_of(clips[name])}

    def lies_right(report: Report) -> bool:
        """Whether a fake was aligned with its present original, as far as the records show, or has none."""
        lead = clips.get(clips[report.video].original)
        if lead is None or report.original_digest is None or (lead.name in valid and valid[lead.name].status != "ok"):
            return True
        return digest_clip(lead.path) in ("", report.original_digest)

    return {name: report for name, report in valid.items() if lies_right(report)}


def find_record(out: Path, video: str) -> Report | None:
    """The report of one clip; None if it is not finished."""
    path = out / IMAGES / video / RECORD
    return _read_record(path) if path.exists() else None


def _read_record(path: Path) -> Report:
    record = json.loads(read_file(path))
    rows = (tuple(row) for row in record["rows"])
    # Rows of older versions lack the last columns.
    whole = (row + ("",) * (len(CROP_COLUMNS) - len(row)) if len(row) > len(FRAME_COLUMNS) else row for row in rows)
    return Report(**{**record, "rows": tuple(whole)})


def write_image(path: Path, pixels: np.ndarray, jpeg_quality: int | None) -> None:
    """Write a picture (H, W, 3) uint8 RGB as JPEG of a quality, or as PNG for None.

    Raises:
        OSError: it cannot be written.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    options = [] if jpeg_quality is None else [cv2.IMWRITE_JPEG_QUALITY, jpeg_quality]
    if not cv2.imwrite(str(path), cv2.cvtColor(pixels, cv2.COLOR_RGB2BGR), options):
        raise OSError(f"{path}: cannot be written; is the disk full?")


def store(draft: Path, report: Report, images: dict[str, np.ndarray], settings: CutSettings) -> None:
    """Complete a clip's draft and move it to its place."""
    draft.mkdir(parents=True, exist_ok=True)
    for name, pixels in images.items():
        write_image(draft / name, pixels, settings.jpeg_quality)
    (draft / RECORD).write_text(json.dumps(asdict(report)), encoding="utf-8")
    folder = draft.parent.parent / IMAGES / report.video
    folder.parent.mkdir(exist_ok=True)
    if folder.exists():
        shutil.rmtree(folder)
    draft.rename(folder)
