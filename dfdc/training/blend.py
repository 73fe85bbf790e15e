"""Real crops -> self-blended fakes: a face laid over itself, so that only the seam and the mismatch give it away.

After Shiohara and Yamasaki, "Detecting Deepfakes with Self-Blended Images", 2022, with hulls of a mean face in place of
landmarks: crops are cut alike, with eyes and mouth at the same place within some 5 % of the side (standard deviation).
"""

from __future__ import annotations

import math

import torch
from torch import Generator, Tensor
from torch.nn import functional

from dfdc.training.augment import colour, rescale, uniform

# Hulls: centre x, y, then radii towards 12 directions, clockwise from the right, as shares of the side. MTCNN finds
# the eyes of 141 crops at (.30, .29) and (.72, .29), the nose at (.51, .49), the mouth's corners at y = .73 (medians).
_HULLS = (
    (0.50, 0.53, 0.42, 0.42, 0.42, 0.42, 0.42, 0.42, 0.43, 0.44, 0.43, 0.40, 0.43, 0.44),  # brow to chin
    (0.50, 0.48, 0.36, 0.36, 0.32, 0.30, 0.32, 0.36, 0.36, 0.38, 0.34, 0.30, 0.34, 0.38),  # brow to mouth
    (0.50, 0.71, 0.32, 0.30, 0.24, 0.22, 0.24, 0.30, 0.32, 0.26, 0.24, 0.26, 0.24, 0.26),  # nose to chin
    (0.50, 0.33, 0.38, 0.30, 0.24, 0.26, 0.24, 0.30, 0.38, 0.28, 0.20, 0.18, 0.20, 0.28),  # eyes and nose
)
# How much of the laid-over face shows.
_OPACITIES = (0.25, 0.5, 0.75, 1.0, 1.0, 1.0)


def self_blend(images: Tensor, generator: Generator, *, keep_target: bool = False) -> tuple[Tensor, Tensor]:
    """Fakes made from reals alone: each is its own source, moved, and laid over itself, the target.

    Either is changed in colour or sharpness. The real to hold against a fake is its target: against an unchanged one, a
    changed target's colour alone would tell.

    Args:
        images: (N, 3, S, S) float RGB, 0..255.
        generator: on the CPU.
        keep_target: whether it is always the source that is changed; else that is so for half of the calls.

    Returns:
        The targets, which are the images where the source is changed, and the fakes, which have their targets' pixels
        outside the hull: of the same shape, dtype and range.
    """
    source, target = images, images
    if keep_target or torch.rand((), generator=generator) < 0.5:
        source = _change(images, generator)
    else:
        target = _change(images, generator)
    return target, blend(_move(source, generator), target, draw_masks(images, generator))


def blend(source: Tensor, target: Tensor, masks: Tensor) -> Tensor:
    """Lay sources over targets, both (N, 3, S, S) in 0..255; masks (N, 1, S, S) in 0..1, 1 is the source."""
    return (target + masks * (source - target)).clamp(0, 255)


def draw_masks(images: Tensor, generator: Generator) -> Tensor:
    """Random hulls with soft edges.

    Args:
        images: (N, 3, S, S) float; only shape, dtype and device count.
        generator: on the CPU.

    Returns:
        (N, 1, S, S), 0 outside, at most 1 inside.
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
    opacity = torch.tensor(_OPACITIES)[torch.randint(len(_OPACITIES), (n,), generator=generator)].to(
        images, non_blocking=True
    )
    return (inside * inside * (3 - 2 * inside) * opacity.view(n, 1, 1)).unsqueeze(1)


def _change(images: Tensor, generator: Generator) -> Tensor:
    """Another colour, and for half of the calls another sharpness."""
    changed = colour(images, generator)
    if torch.rand((), generator=generator) < 0.5:
        changed = rescale(changed, generator)
    return changed.clamp(0, 255)


def _move(images: Tensor, generator: Generator) -> Tensor:
    """Shift by up to 3 % and scale by up to 5 %, as a badly fitted face is."""
    n = len(images)
    scale_x, scale_y = (uniform(n, 0.95, 1.05, images, generator) for _ in range(2))
    shift_x, shift_y = (uniform(n, -0.06, 0.06, images, generator) for _ in range(2))
    zero = torch.zeros_like(scale_x)
    theta = torch.stack([scale_x, zero, shift_x, zero, scale_y, shift_y], 1).view(n, 2, 3)
    grid = functional.affine_grid(theta, list(images.shape), align_corners=False)
    return functional.grid_sample(images, grid, mode="bilinear", padding_mode="border", align_corners=False)
