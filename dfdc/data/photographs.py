"""Labelled photographs, or face crops from other tools -> face crops of our geometry, and their rows.

The kernel's detector finds the face, and the kernel's crop function cuts it, so that crops of photographs and of frames
are the same kind of picture. A picture that is already a face crop gets a border first, because the detector misses
faces that fill the picture.
"""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Iterator
from dataclasses import astuple, dataclass
from pathlib import Path

import cv2
import numpy as np
from tqdm import tqdm

from dfdc.crop import CropGeometry, crop_face
from dfdc.data.clips import TOLD, LabelledClip, is_held_out
from dfdc.data.crop_folder import CROP_COLUMNS, CropRow, CutSettings, format_of, prepare_folder, write_image
from dfdc.data.dataset import LABELS, read_columns, read_table
from dfdc.data.images import read_image
from dfdc.detect import DetectorSettings, FaceDetector
from dfdc.errors import DataError
from dfdc.faces import Faces
from dfdc.files import write_csv
from dfdc.runtime import choose_device
from dfdc.tracks import confirm_track, link_tracks

# A photograph shows its face larger than a clip does, and a false face costs more than a missed one.
PHOTOGRAPH_DETECTION = DetectorSettings(min_face_ratio=0.1, thresholds=(0.6, 0.7, 0.8))
MIN_SCORE = 0.9
# Around crops that others cut, as a share of the longer side.
BORDER = 0.2
IMAGES = "photographs"


@dataclass(frozen=True)
class Photograph:
    """One labelled picture.

    Attributes:
        path: of the file.
        label: REAL or FAKE.
        dataset, manipulation, identity, source, split: values from the table, or empty ("train" for split).
        original: name of the picture that a fake was made from; empty if that is not known, and for reals.
    """

    path: Path
    label: str
    dataset: str = ""
    manipulation: str = ""
    identity: str = ""
    source: str = ""
    split: str = "train"
    original: str = ""

    @property
    def name(self) -> str:
        """The name of its crop."""
        return name_picture(self.path)


def name_picture(path: Path) -> str:
    """The name of a picture's crop; pictures with the same file name in different folders get different names."""
    return f"{path.stem}-{hashlib.sha256(str(path).encode()).hexdigest()[:8]}"


def read_photographs(csv: Path, *, val_share: float = 0.0) -> list[Photograph]:
    """Read a table of photographs.

    Args:
        csv: columns path (beside the table), label (REAL|FAKE) and any others of `dfdc.data.clips.TOLD`; original is a
            path, too.
        val_share: share (0 to 1) of the persons whose pictures get the split "val" if the table states no split; a
            picture without an identity counts as one person.

    Raises:
        DataError: no such table, a column is missing, or a label is neither REAL nor FAKE.
    """
    table = read_columns(csv, ("path", "label"), allowed={"label": LABELS}, cure="name a table of path and label")
    pictures = []
    for row in table.to_dict("records"):
        path, told = csv.parent / row["path"], {name: row[name] for name in TOLD if name != "label" and row.get(name)}
        original = told.pop("original", "")
        if original and row["label"] == "FAKE":
            told["original"] = name_picture(csv.parent / original)
        person = told.get("identity") or told.get("original") or name_picture(path)
        if "split" not in told and is_held_out(LabelledClip(Path(person), "REAL"), val_share):
            told["split"] = "val"
        pictures.append(Photograph(path, row["label"], **told))
    return pictures


def find_face(
    detector: FaceDetector, image: np.ndarray, *, border: float = 0.0
) -> tuple[np.ndarray, float] | tuple[None, None]:
    """Find the face that is largest and nearest to the middle.

    Args:
        detector: the kernel's.
        image: (H, W, 3) uint8 RGB.
        border: width of a black margin that is added around the picture, as a share of its longer side.

    Returns:
        Its box (4,) in pixels of the image, and the degrees clockwise by which it is turned upright, as the kernel
        does; None and None if there is no face.
    """
    height, width = image.shape[:2]
    margin = round(border * max(height, width))
    shown = cv2.copyMakeBorder(image, *(margin,) * 4, cv2.BORDER_CONSTANT) if margin else image
    (faces,) = detector.detect([shown], PHOTOGRAPH_DETECTION)
    best, greatest = None, 0.0
    for place, (box, score) in enumerate(zip(faces.boxes - margin, faces.scores, strict=True)):
        off = np.abs((box[:2] + box[2:]) / 2 - (width / 2, height / 2)).max() / max(height, width)
        worth = float(np.sqrt(np.prod(box[2:] - box[:2]))) * (1 - off)
        if score >= MIN_SCORE and worth > greatest:
            best, greatest = place, worth
    if best is None:
        return None, None
    (track,) = link_tracks([Faces(*(part[best : best + 1] for part in (faces.boxes, faces.scores, faces.landmarks)))])
    track = confirm_track(track, [shown], detector) or track
    return faces.boxes[best] - margin, float(track.angles[0])


def cut_photographs(
    pictures: list[Photograph],
    out: Path,
    detector: FaceDetector,
    *,
    geometry: CropGeometry,
    jpeg_quality: int | None = None,
    precut: bool = False,
) -> Iterator[tuple[Photograph, CropRow | None]]:
    """Cut one crop out of each picture; a crop that already exists is kept.

    Args:
        pictures: see `read_photographs`.
        out: folder of the crop table; the crops go to `IMAGES` in it.
        detector: the kernel's.
        geometry: crop geometry.
        jpeg_quality: 1 to 100; None writes PNG.
        precut: whether the pictures are already face crops.

    Yields:
        Each picture, and its row; None where it cannot be read or shows no face.

    Raises:
        OSError: a crop cannot be written.
    """
    for picture in pictures:
        image = read_image(picture.path)
        if image is None:
            yield picture, None
            continue
        box, angle = find_face(detector, image, border=BORDER if precut else 0.0)
        if box is None:
            yield picture, None
            continue
        path = out / IMAGES / f"{picture.name}.{'png' if jpeg_quality is None else 'jpg'}"
        if not path.exists():
            draft = path.with_name(f".{path.name}{path.suffix}")
            write_image(draft, crop_face(image, box, geometry, angle=angle), jpeg_quality)
            draft.replace(path)
        yield picture, _describe(picture, path.relative_to(out), box, geometry)


def _describe(picture: Photograph, path: Path, box: np.ndarray, geometry: CropGeometry) -> CropRow:
    return CropRow(
        str(path),
        picture.name,
        label=picture.label,
        original=picture.original,
        manipulation=picture.manipulation,
        split=picture.split,
        box=" ".join(str(round(float(value), 2)) for value in box),
        source_size=geometry.square(box)[2],
        # A fake may lie over its original, for example if only its texture was changed; the pixels will tell.
        difference="unknown" if picture.original else "",
        dataset=picture.dataset,
        identity=picture.identity,
        source=picture.source,
        format=format_of(picture.path),
    )


def make_photograph_crops(
    tables: list[Path],
    out: Path,
    *,
    val_share: float = 0.0,
    settings: CutSettings | None = None,
    precut: bool = False,
    device: str = "cpu",
    progress: bool = True,
) -> Path:
    """Cut photographs into face crops and write their table.

    Args:
        tables: see `dfdc.data.photographs.read_photographs`.
        out: folder for photographs/ and crops.csv; created if it does not exist.
        val_share: share (0 to 1) of the persons whose pictures get the split "val" if the table states no split.
        settings: crop geometry and JPEG quality; None for the defaults.
        precut: whether the pictures are already face crops.
        device: "auto", "cpu" or "cuda", the device that finds faces.
        progress: whether to draw a progress bar.

    Returns:
        The path of crops.csv.

    Raises:
        DataError: a table that cannot be used, an output folder of another run, or nothing cut.
        OSError: the output cannot be written.
    """
    settings = settings or CutSettings()
    pictures = [picture for table in tables for picture in read_photographs(table, val_share=val_share)]
    prepare_folder(out, settings)
    cut = cut_photographs(
        pictures,
        out,
        FaceDetector(choose_device(device)),
        geometry=settings.geometry,
        jpeg_quality=settings.jpeg_quality,
        precut=precut,
    )
    rows, lost = [], []
    for picture, row in tqdm(cut, total=len(pictures), desc="cutting", unit="picture", disable=not progress):
        if row is None:
            lost.append(picture)
        else:
            rows.append(astuple(row))
    if not rows:
        raise DataError(f"{out}: none of {len(pictures)} pictures shows a face; if they are face crops, add --precut")
    broken = [picture for picture in lost if read_image(picture.path) is None]
    faceless = [picture for picture in lost if picture not in broken]
    for fault, group in (("show no face", faceless), ("cannot be read", broken)):
        if group:
            print(f"{len(group)} of {len(pictures)} pictures {fault}, such as {group[0].path}", file=sys.stderr)
    write_csv(out / "crops.csv", CROP_COLUMNS, rows)
    read_table(out / "crops.csv")
    return out / "crops.csv"
