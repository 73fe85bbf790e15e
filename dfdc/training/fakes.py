"""Real crops and recipes -> fakes that are made from them, each beside its real, and the rows of their table.

A real and its fake are reduced, compressed and enlarged alike, so that nothing distinguishes them but the manipulation.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import pandas as pd
import torch
from torch import Tensor
from tqdm import tqdm

from dfdc.data.crop_folder import CropRow, write_image
from dfdc.data.dataset import CropSet
from dfdc.files import make_folder

# Limits of the side in pixels at which a face is manipulated; within them it is about that of its source.
MIN_SIDE, MAX_SIDE = 112, 256
# The side is a multiple of this, because autoencoders and generators halve it three times.
STEP = 8
# Probability of a first JPEG, before a crop is enlarged.
FIRST_JPEG_CHANCE = 0.5


@dataclass(frozen=True)
class Treatment:
    """What is done to a real and to its fake alike.

    Attributes:
        side: side in pixels to which the crop is resized before the manipulation.
        first_quality: quality of a JPEG before the crop is resized to its full size, 1 to 100; None for no such JPEG.
        last_quality: quality of the final JPEG, 1 to 100.
        enlarged: OpenCV's interpolation if the crop is enlarged.
    """

    side: int
    first_quality: int | None
    last_quality: int
    enlarged: int


@dataclass(frozen=True)
class Recipe:
    """How one fake is made.

    Attributes:
        place: index of its real among the rows.
        sources: names of the crops that it is made of, see `name_crop`; the real comes first.
        manipulation: how it is made, in one word.
        seed: seed of all random numbers, see `draw_seed`.
        treatment: what is done to the real and the fake.
        make: the manipulation, which takes and returns (side, side, 3) uint8 RGB.
    """

    place: int
    sources: tuple[str, ...]
    manipulation: str
    seed: int
    treatment: Treatment
    make: Callable[[np.ndarray], np.ndarray]


def name_crop(row: Mapping[str, str]) -> str:
    """A name for the crop of a row of `dfdc.data.dataset.read_split` that no other crop has."""
    return f"{row['folder']}/{row['video']}/{row['path']}"


def draw_seed(seed: int, *names: str) -> int:
    """Draw a seed of 32 bits that depends on another seed and on names."""
    return int(hashlib.sha256(" ".join([str(seed), *names]).encode()).hexdigest()[:8], 16)


def draw_treatment(source_side: float, size: int, *, seed: int) -> Treatment:
    """Draw a treatment; the same seed gives the same treatment.

    Args:
        source_side: side of the face's square in its source in pixels; NaN if unknown, for the side of the crop.
        size: side of the crop in pixels.
        seed: seed of all random numbers.
    """
    chance = np.random.default_rng(seed)
    side = (size if np.isnan(source_side) else min(source_side, size)) * chance.uniform(0.85, 1.15)
    return Treatment(
        side=int(np.clip(side, MIN_SIDE, MAX_SIDE)) // STEP * STEP,
        first_quality=int(chance.integers(55, 96)) if chance.random() < FIRST_JPEG_CHANCE else None,
        last_quality=int(chance.integers(80, 98)),
        enlarged=(cv2.INTER_LINEAR, cv2.INTER_CUBIC)[chance.integers(2)],
    )


def make_pair(crop: np.ndarray, recipe: Recipe) -> tuple[np.ndarray, np.ndarray]:
    """Make the fake of a real crop, and give both the same treatment.

    Args:
        crop: (S, S, 3) uint8 RGB.
        recipe: how the fake is made.

    Returns:
        Both (S, S, 3) uint8 RGB, the real first.
    """
    treatment = recipe.treatment
    real = resize(crop, treatment.side)
    both = []
    for picture in (real, recipe.make(real)):
        picture = picture if treatment.first_quality is None else _compress(picture, treatment.first_quality)
        picture = resize(picture, len(crop), enlarged=treatment.enlarged)
        both.append(_compress(picture, treatment.last_quality))
    return both[0], both[1]


def write_fakes(
    kind: str, recipes: Sequence[Recipe], rows: pd.DataFrame, crops: CropSet, out: Path, *, progress: bool = True
) -> list[CropRow]:
    """Make fakes and write both crops of each pair; pairs whose files exist from the same seed are not made again.

    Args:
        kind: name of the kind of fakes: the sub-folder of the crops, and the data set in their rows.
        recipes: how the fakes are made.
        rows: rows of real crops, from `dfdc.data.dataset.read_split`, with the column split.
        crops: crops of these rows.
        out: folder to write to.
        progress: draw a progress bar.

    Returns:
        Two rows for each recipe, the real first.
    """
    make_folder(out / kind)
    records = rows.to_dict("records")
    found = []
    for recipe in tqdm(recipes, desc=kind, disable=not progress):
        row = records[recipe.place]
        name = f"{Path(row['path']).stem}-{recipe.seed:08x}"
        # The pictures already have JPEG losses; PNG adds none.
        paths = [out / kind / f"{name}-{label}.png" for label in ("real", "fake")]
        if not all(path.exists() for path in paths):
            crop = crops.images[recipe.place].permute(1, 2, 0).numpy()
            for path, picture in zip(paths, make_pair(crop, recipe), strict=True):
                draft = path.with_name(f".{path.name}")
                write_image(draft, picture, None)
                draft.replace(path)
        found += [_describe(kind, row, path, recipe) for path in paths]
    return found


def _describe(kind: str, row: Mapping[str, str], path: Path, recipe: Recipe) -> CropRow:
    fake = path.stem.endswith("-fake")
    return CropRow(
        f"{kind}/{path.name}",
        path.stem,
        label="FAKE" if fake else "REAL",
        original=path.stem.removesuffix("-fake") + "-real" if fake else "",
        manipulation=recipe.manipulation if fake else "",
        split=row["split"],
        source_size=recipe.treatment.side,
        difference="unknown" if fake else "",
        dataset=kind,
        identity=row.get("identity") or row["video"],
        source=" ".join(recipe.sources if fake else recipe.sources[:1]),
        format="png",
    )


def to_pixels(picture: np.ndarray) -> Tensor:
    """Convert a picture (H, W, 3) uint8 RGB to a batch of one, (1, 3, H, W) float32 in 0..255."""
    return torch.from_numpy(picture).permute(2, 0, 1)[None].float()


def to_picture(pixels: Tensor) -> np.ndarray:
    """Convert a batch of one, (1, 3, H, W) float RGB, to (H, W, 3) uint8; values outside of 0..255 are limited."""
    return pixels[0].permute(1, 2, 0).round().clamp(0, 255).byte().numpy()


def resize(picture: np.ndarray, side: int, *, enlarged: int = cv2.INTER_LINEAR) -> np.ndarray:
    """Resize a square picture: reduce it by averaging areas, or enlarge it by one of OpenCV's interpolations."""
    if len(picture) == side:
        return picture
    return cv2.resize(picture, (side, side), interpolation=cv2.INTER_AREA if side < len(picture) else enlarged)


def _compress(picture: np.ndarray, quality: int) -> np.ndarray:
    """Encode a picture as JPEG with a quality from 1 to 100, and decode it again."""
    _, data = cv2.imencode(".jpg", cv2.cvtColor(picture, cv2.COLOR_RGB2BGR), (cv2.IMWRITE_JPEG_QUALITY, quality))
    return cv2.cvtColor(cv2.imdecode(data, cv2.IMREAD_COLOR), cv2.COLOR_BGR2RGB)
