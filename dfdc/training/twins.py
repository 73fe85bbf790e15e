"""Real crops -> autoencoder twins: the same faces after a tiny autoencoder of latent diffusion, whole or blended in.

Every picture of a latent-diffusion model has passed its decoder, so all of them share the trace of the decoder.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial

import numpy as np
import torch

from dfdc.data.dataset import CropSet
from dfdc.training.autoencoder import TinyAutoencoder
from dfdc.training.blend import blend, draw_masks
from dfdc.training.fakes import Recipe, draw_seed, draw_treatment, name_crop, to_picture, to_pixels

KIND = "twins"
WHOLE, BLENDED = "autoencoder", "autoencoder_blend"
# Probability of a twin that is blended in, and treatments of the latents.
BLEND_CHANCE = 0.5
LATENTS = ("plain", "plain", "noise", "coarse")
# Noise of the latents as a share of their standard deviation; levels per unit of a coarse latent.
NOISE, LEVELS = 0.12, 6


def plan_twins(
    records: Sequence[Mapping[str, str]], crops: CropSet, autoencoder: TinyAutoencoder, *, seed: int
) -> list[Recipe]:
    """Draw how the twins of real crops are made, one for each.

    Args:
        records: rows of the crops, see `name_crop`.
        crops: real crops.
        autoencoder: see `TinyAutoencoder`.
        seed: seed of the draws, together with the name of a crop.
    """
    recipes = []
    for place, row in enumerate(records):
        source = name_crop(row)
        own = draw_seed(seed, KIND, source)
        chance = np.random.default_rng((own, 1))
        latents, blended = LATENTS[chance.integers(len(LATENTS))], bool(chance.random() < BLEND_CHANCE)
        make = partial(make_twin, autoencoder=autoencoder, latents=latents, blended=blended, seed=own)
        treatment = draw_treatment(crops.side_of(place), crops.images.shape[-1], seed=own)
        recipes.append(Recipe(place, (source,), BLENDED if blended else WHOLE, own, treatment, make))
    return recipes


def make_twin(real: np.ndarray, *, autoencoder: TinyAutoencoder, latents: str, blended: bool, seed: int) -> np.ndarray:
    """Make the twin of a real.

    Args:
        real: (S, S, 3) uint8 RGB; S is a multiple of 8.
        autoencoder: see `TinyAutoencoder`.
        latents: treatment of the latents, one of `LATENTS`.
        blended: whether only a part of the face is replaced.
        seed: seed of the noise and of the blended part.

    Returns:
        A new array of the same shape and dtype.
    """
    generator = torch.Generator().manual_seed(seed)
    pixels = to_pixels(real)
    values = autoencoder.encode(pixels / 255)
    if latents == "noise":
        values = values + torch.randn(values.shape, generator=generator) * values.std() * NOISE
    elif latents == "coarse":
        values = (values * LEVELS).round() / LEVELS
    decoded = autoencoder.decode(values).clamp(0, 1) * 255
    return to_picture(blend(decoded, pixels, draw_masks(pixels, generator)) if blended else decoded)
