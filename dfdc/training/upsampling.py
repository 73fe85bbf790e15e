"""Real crops -> the same faces with the traces of upsampling, as the decoders of generators leave them.

A decoder doubles the size of its feature maps several times, by repeated values, by interpolation or by a transposed
convolution. Each of them inserts zeros and applies a small kernel. The zeros bring copies of the spectrum, which no
small kernel removes entirely, so periodic patterns remain. See Odena et al., "Deconvolution and Checkerboard
Artifacts", 2016, and Zhang et al., "Detecting and Simulating Artifacts in GAN Fake Images", 2019.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from dfdc.data.dataset import CropSet
from dfdc.training.blend import OPAQUE, blend, draw_masks
from dfdc.training.fakes import Recipe, draw_seed, draw_treatment, name_crop, to_picture, to_pixels

KIND = "upsampled"
# The kernels, each along one axis. An output pixel sees every second value of a kernel; where the sums of the two
# halves differ, as they do in a trained transposed convolution, neighbouring pixels get unequal gains.
KERNELS: Mapping[str, tuple[float, ...]] = {
    "nearest": (0.0, 1.0, 1.0, 0.0),
    "bilinear": (0.25, 0.75, 0.75, 0.25),
    "transposed": (0.25, 0.75, 0.75, 0.25),
}
# Probability that only a part of the face is replaced; how often a face is halved.
BLEND_CHANCE = 0.5
HALVINGS = (1, 2)
# Range of the difference from 1 of the gains of a transposed convolution.
UNEVEN = (0.008, 0.024)
# Range of the strength of the trace. With .2 to .6, a linear classifier on power spectra had an AUC of .61 for bilinear
# kernels (docs/experiments.md).
STRENGTH = (0.5, 1.0)


def plan_upsampled(records: Sequence[Mapping[str, str]], crops: CropSet, *, seed: int) -> list[Recipe]:
    """Draw how traces of upsampling are put into real crops, one fake for each.

    Args:
        records: rows of the crops, see `name_crop`.
        crops: real crops.
        seed: seed of the draws, together with the name of a crop.
    """
    recipes = []
    for place, row in enumerate(records):
        source = name_crop(row)
        own = draw_seed(seed, KIND, source)
        chance = np.random.default_rng((own, 1))
        method, blended = list(KERNELS)[chance.integers(len(KERNELS))], bool(chance.random() < BLEND_CHANCE)
        make = partial(
            upsample,
            kernel=_draw_kernel(method, chance),
            halvings=int(chance.choice(HALVINGS)),
            strength=chance.uniform(*STRENGTH),
            blended=blended,
            seed=own,
        )
        treatment = draw_treatment(crops.side_of(place), crops.images.shape[-1], seed=own)
        manipulation = f"upsampled_{method}{'_blend' if blended else ''}"
        recipes.append(Recipe(place, (source,), manipulation, own, treatment, make))
    return recipes


def _draw_kernel(method: str, chance: np.random.Generator) -> tuple[float, ...]:
    uneven = chance.uniform(*UNEVEN) * chance.choice((-1, 1)) if method == "transposed" else 0.0
    return tuple(value * (1 + uneven * (-1) ** place) for place, value in enumerate(KERNELS[method]))


def upsample(
    real: np.ndarray, *, kernel: Sequence[float], halvings: int, strength: float, blended: bool, seed: int
) -> np.ndarray:
    """Put the trace of upsampling into a real.

    The real is reduced and enlarged twice: by the kernel, and by bicubic interpolation. The difference is the trace. It
    is added to the real, which keeps its detail, because a generator also paints detail: without it, softness would
    reveal the fakes.

    Args:
        real: (S, S, 3) uint8 RGB; S is a multiple of 2 to the power of halvings.
        kernel: four values, whose sum is 2.
        halvings: how often the face is halved, 1 or 2.
        strength: factor of the trace.
        blended: whether only a part of the face gets the trace.
        seed: seed of this part.

    Returns:
        A new array of the same shape and dtype.
    """
    pixels = to_pixels(real)
    reduced = functional.avg_pool2d(pixels, 2**halvings)
    enlarged = reduced
    for _ in range(halvings):
        enlarged = double(enlarged, kernel)
    plain = functional.interpolate(reduced, scale_factor=2**halvings, mode="bicubic", align_corners=False)
    made = pixels + strength * (enlarged - plain)
    if blended:
        made = blend(made, pixels, draw_masks(pixels, torch.Generator().manual_seed(seed), opacities=OPAQUE))
    return to_picture(made)


def double(pixels: Tensor, kernel: Sequence[float]) -> Tensor:
    """Double the sides of (N, C, H, W) by a transposed convolution of stride 2, with a kernel of four values per axis.

    The edges of the picture are repeated. (0, 1, 1, 0) repeats pixels; (1, 3, 3, 1) / 4 is bilinear interpolation.
    """
    channels = pixels.shape[1]
    line = torch.tensor(kernel).to(pixels)
    weights = torch.outer(line, line).expand(channels, 1, 4, 4)
    padded = functional.pad(pixels, (1, 1, 1, 1), mode="replicate")
    return functional.conv_transpose2d(padded, weights, stride=2, padding=3, groups=channels)
