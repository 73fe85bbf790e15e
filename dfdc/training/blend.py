"""Real crops -> self-blended images: a face blended onto itself, so that only the seam and the mismatch reveal it.

After Shiohara and Yamasaki, "Detecting Deepfakes with Self-Blended Images", 2022, but with hulls of a mean face instead
of landmarks. This is possible because eyes and mouth have the same place in all crops, within about 5 % of the side
(standard deviation).
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Generator, Tensor
from torch.nn import functional

from dfdc.training.augment import colour, rescale, uniform

# Hulls: centre x, y, then the radii in 12 directions, clockwise from the right, as shares of the side. In 141 crops,
# MTCNN's medians are (.30, .29) and (.72, .29) for the eyes, (.51, .49) for the nose, y = .73 for the mouth's corners.
_HULLS = (
    (0.50, 0.53, 0.42, 0.42, 0.42, 0.42, 0.42, 0.42, 0.43, 0.44, 0.43, 0.40, 0.43, 0.44),  # brow to chin
    (0.50, 0.48, 0.36, 0.36, 0.32, 0.30, 0.32, 0.36, 0.36, 0.38, 0.34, 0.30, 0.34, 0.38),  # brow to mouth
    (0.50, 0.71, 0.32, 0.30, 0.24, 0.22, 0.24, 0.30, 0.32, 0.26, 0.24, 0.26, 0.24, 0.26),  # nose to chin
    (0.50, 0.33, 0.38, 0.30, 0.24, 0.26, 0.24, 0.30, 0.38, 0.28, 0.20, 0.18, 0.20, 0.28),  # eyes and nose
)
# Opacities of the source face, drawn with equal probability.
OPACITIES = (0.25, 0.5, 0.75, 1.0, 1.0, 1.0)
# The opacity where a translucent part would show two faces, or too little of a trace.
OPAQUE = (1.0,)


def self_blend(images: Tensor, generator: Generator, *, keep_target: bool = False) -> tuple[Tensor, Tensor]:
    """Make fakes from reals: each real is the source, slightly moved, and also the target that it is blended onto.

    The colour or sharpness of either the source or the target is changed. A fake must be paired with its target:
    beside the unchanged real, the colour of a changed target would reveal the fake.

    Args:
        images: (N, 3, S, S) float RGB, 0..255.
        generator: on the CPU.
        keep_target: always change the source; otherwise this happens in half of the calls.

    Returns:
        The targets, which are the images if the source was changed, and the fakes, which equal their targets outside
        the hull. Both have the shape, dtype and range of the images.
    """
    source, target = images, images
    if keep_target or torch.rand((), generator=generator) < 0.5:
        source = _change(images, generator)
    else:
        target = _change(images, generator)
    return target, blend(_move(source, generator), target, draw_masks(images, generator))


def blend(source: Tensor, target: Tensor, masks: Tensor) -> Tensor:
    """Blend sources onto targets, both (N, 3, S, S) in 0..255; where masks (N, 1, S, S) are 1, the source shows."""
    return (target + masks * (source - target)).clamp(0, 255)


def draw_masks(images: Tensor, generator: Generator, *, opacities: Sequence[float] = OPACITIES) -> Tensor:
    """Draw random hulls with soft edges.

    Args:
        images: (N, 3, S, S) float, of which only shape, dtype and device are used.
        generator: on the CPU.
        opacities: opacities of the inside of a hull, each drawn with equal probability.

    Returns:
        (N, 1, S, S): 0 outside of the hull, up to 1 inside.
    """
    n, side = len(images), images.shape[-1]
    hulls = torch.tensor(_HULLS)[torch.randint(len(_HULLS), (n,), generator=generator)].to(images, non_blocking=True)
    centre = hulls[:, :2] + uniform(2 * n, -0.03, 0.03, images, generator).view(n, 2)
    wobble = uniform(12 * n, 0.85, 1.15, images, generator).view(n, 12)
    radii = hulls[:, 2:] * wobble * uniform(n, 0.85, 1.1, images, generator).view(n, 1)
    place = (torch.arange(side, device=images.device, dtype=images.dtype) + 0.5) / side
    x = (place[None, None, :] - centre[:, 0, None, None]).expand(n, side, side)
    y = (place[None, :, None] - centre[:, 1, None, None]).expand(n, side, side)
    turn = torch.atan2(y, x) * (12 / (2 * math.pi)) % 12
    before = turn.long().clamp(max=11)
    share = (1 - torch.cos((turn - before) * math.pi)) / 2  # rounds the corners
    flat = radii.gather(1, before.flatten(1)).view_as(turn)
    flat = flat + share * (radii.gather(1, ((before + 1) % 12).flatten(1)).view_as(turn) - flat)
    softness = uniform(n, 0.02, 0.2, images, generator).view(n, 1, 1)
    inside = ((flat - torch.hypot(x, y)) / softness + 0.5).clamp(0, 1)
    opacity = torch.tensor(opacities)[torch.randint(len(opacities), (n,), generator=generator)].to(
        images, non_blocking=True
    )
    return (inside * inside * (3 - 2 * inside) * opacity.view(n, 1, 1)).unsqueeze(1)


def _change(images: Tensor, generator: Generator) -> Tensor:
    """Change the colour, and in half of the calls the sharpness."""
    changed = colour(images, generator)
    if torch.rand((), generator=generator) < 0.5:
        changed = rescale(changed, generator)
    return changed.clamp(0, 255)


def _move(images: Tensor, generator: Generator) -> Tensor:
    """Shift by up to 3 % and scale by up to 5 %, like a badly fitted face."""
    n = len(images)
    scale_x, scale_y = (uniform(n, 0.95, 1.05, images, generator) for _ in range(2))
    shift_x, shift_y = (uniform(n, -0.06, 0.06, images, generator) for _ in range(2))
    zero = torch.zeros_like(scale_x)
    theta = torch.stack([scale_x, zero, shift_x, zero, scale_y, shift_y], 1).view(n, 2, 3)
    grid = functional.affine_grid(theta, list(images.shape), align_corners=False)
    return functional.grid_sample(images, grid, mode="bilinear", padding_mode="border", align_corners=False)
