"""Real crops -> autoencoder twins: the same faces after a tiny autoencoder of latent diffusion, whole or blended in.

Every picture of a latent-diffusion model has passed its decoder, so all of them share the trace of the decoder. A real
and its twin are reduced, compressed and enlarged alike, so that nothing else distinguishes them.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import pandas as pd
import torch
from tqdm import tqdm

from dfdc.data.crop_folder import CropRow, write_image
from dfdc.data.dataset import CropSet
from dfdc.files import make_folder
from dfdc.training.autoencoder import SCALE, TinyAutoencoder
from dfdc.training.blend import blend, draw_masks

IMAGES = "twins"
WHOLE, BLENDED = "autoencoder", "autoencoder_blend"
# Limits of the side in pixels at which a face passes the autoencoder; within them it is that of the source.
MIN_SIDE, MAX_SIDE = 112, 256
# Probabilities of a twin that is blended in, and of a first JPEG before the enlargement; treatments of the latents.
BLEND_CHANCE, FIRST_JPEG_CHANCE = 0.5, 0.5
TREATMENTS = ("plain", "plain", "noise", "coarse")
# Noise of the latents as a share of their standard deviation; levels per unit of a coarse latent.
NOISE, LEVELS = 0.12, 6


@dataclass(frozen=True)
class TwinPlan:
    """How one twin is made.

    Attributes:
        side: side in pixels at which the face passes the autoencoder.
        treatment: treatment of the latents, one of `TREATMENTS`.
        blended: whether only a part of the face is replaced.
        first_quality: quality of a JPEG before the crop is enlarged, 1 to 100; None for no such JPEG.
        last_quality: quality of the final JPEG, 1 to 100.
        enlarged: OpenCV's interpolation if the crop is enlarged.
        seed: seed of the noise and of the blended part.
    """

    side: int
    treatment: str
    blended: bool
    first_quality: int | None
    last_quality: int
    enlarged: int
    seed: int

    @property
    def manipulation(self) -> str:
        return BLENDED if self.blended else WHOLE


def plan_twin(source_side: float, size: int, *, seed: int) -> TwinPlan:
    """Draw how a twin is made; the same seed gives the same plan.

    Args:
        source_side: side of the face's square in its source in pixels; NaN if unknown, for the side of the crop.
        size: side of the crop in pixels.
        seed: seed of all random numbers.
    """
    chance = np.random.default_rng(seed)
    side = (size if np.isnan(source_side) else min(source_side, size)) * chance.uniform(0.85, 1.15)
    return TwinPlan(
        side=int(np.clip(side, MIN_SIDE, MAX_SIDE)) // SCALE * SCALE,
        treatment=TREATMENTS[chance.integers(len(TREATMENTS))],
        blended=bool(chance.random() < BLEND_CHANCE),
        first_quality=int(chance.integers(55, 96)) if chance.random() < FIRST_JPEG_CHANCE else None,
        last_quality=int(chance.integers(80, 98)),
        enlarged=(cv2.INTER_LINEAR, cv2.INTER_CUBIC)[chance.integers(2)],
        seed=seed,
    )


def make_twin(crop: np.ndarray, autoencoder: TinyAutoencoder, plan: TwinPlan) -> tuple[np.ndarray, np.ndarray]:
    """Make the twin of a real crop, and give both the same treatment.

    Args:
        crop: (S, S, 3) uint8 RGB.
        autoencoder: see `TinyAutoencoder`.
        plan: from `plan_twin`.

    Returns:
        Both (S, S, 3) uint8 RGB, the real first.
    """
    generator = torch.Generator().manual_seed(plan.seed)
    real = _resize(crop, plan.side)
    pixels = torch.from_numpy(real).permute(2, 0, 1)[None].float()
    latents = autoencoder.encode(pixels / 255)
    if plan.treatment == "noise":
        latents = latents + torch.randn(latents.shape, generator=generator) * latents.std() * NOISE
    elif plan.treatment == "coarse":
        latents = (latents * LEVELS).round() / LEVELS
    decoded = autoencoder.decode(latents).clamp(0, 1) * 255
    if plan.blended:
        decoded = blend(decoded, pixels, draw_masks(pixels, generator))
    fake = decoded[0].permute(1, 2, 0).round().byte().numpy()
    both = []
    for picture in (real, fake):
        picture = picture if plan.first_quality is None else _compress(picture, plan.first_quality)
        both.append(_compress(_resize(picture, len(crop), enlarged=plan.enlarged), plan.last_quality))
    return both[0], both[1]


def write_twins(
    rows: pd.DataFrame, crops: CropSet, out: Path, autoencoder: TinyAutoencoder, *, seed: int, progress: bool = True
) -> list[CropRow]:
    """Make the twins of real crops and write both crops of each pair.

    Twins whose files already exist from the same seed are not made again.

    Args:
        rows: rows of real crops, from `dfdc.data.dataset.read_split`, with the column split.
        crops: crops of these rows.
        out: folder; the crops are written to its sub-folder `IMAGES`.
        autoencoder: see `TinyAutoencoder`.
        seed: seed of the draws, together with the name of a crop.
        progress: draw a progress bar.

    Returns:
        Two rows for each real crop, the real first.
    """
    make_folder(out / IMAGES)
    sides = np.full(len(crops), np.nan) if crops.sides is None else crops.sides.numpy()
    found = []
    for place, row in enumerate(tqdm(rows.to_dict("records"), desc="twins", disable=not progress)):
        told = f"{row['folder']}/{row['video']}/{row['path']}"
        name = f"{Path(row['path']).stem}-{hashlib.sha256(f'{seed} {told}'.encode()).hexdigest()[:8]}"
        plan = plan_twin(float(sides[place]), crops.images.shape[-1], seed=int(name[-8:], 16))
        # The pictures already have JPEG losses; PNG adds none.
        paths = [out / IMAGES / f"{name}-{label}.png" for label in ("real", "fake")]
        if not all(path.exists() for path in paths):
            crop = crops.images[place].permute(1, 2, 0).numpy()
            for path, picture in zip(paths, make_twin(crop, autoencoder, plan), strict=True):
                draft = path.with_name(f".{path.name}")
                write_image(draft, picture, None)
                draft.replace(path)
        found += [_describe(row, path, plan, told) for path in paths]
    return found


def _describe(row: Mapping[str, str], path: Path, plan: TwinPlan, told: str) -> CropRow:
    fake = path.stem.endswith("-fake")
    return CropRow(
        f"{IMAGES}/{path.name}",
        path.stem,
        label="FAKE" if fake else "REAL",
        original=path.stem.removesuffix("-fake") + "-real" if fake else "",
        manipulation=plan.manipulation if fake else "",
        split=row["split"],
        source_size=plan.side,
        difference="unknown" if fake else "",
        dataset=IMAGES,
        identity=row.get("identity") or row["video"],
        source=told,
        format="png",
    )


def _resize(picture: np.ndarray, side: int, *, enlarged: int = cv2.INTER_LINEAR) -> np.ndarray:
    if len(picture) == side:
        return picture
    return cv2.resize(picture, (side, side), interpolation=cv2.INTER_AREA if side < len(picture) else enlarged)


def _compress(picture: np.ndarray, quality: int) -> np.ndarray:
    """Encode a picture as JPEG with a quality from 1 to 100, and decode it again."""
    _, data = cv2.imencode(".jpg", cv2.cvtColor(picture, cv2.COLOR_RGB2BGR), (cv2.IMWRITE_JPEG_QUALITY, quality))
    return cv2.cvtColor(cv2.imdecode(data, cv2.IMREAD_COLOR), cv2.COLOR_BGR2RGB)
