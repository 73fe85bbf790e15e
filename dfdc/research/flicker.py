"""Pairs of successive frames of a real face -> pairs with the flicker of a fake.

Face swaps are made frame by frame, so mask, colour and shape vary slightly between frames. Here both frames are blended
onto themselves alike (`dfdc.training.blend`), and one of them is then moved towards another blend or back towards its
original, so that only the change reveals the fake. Outside the face both frames stay as they are, since changes of the
whole frame come from the camera.
"""

from __future__ import annotations

import torch
from torch import Generator, Tensor

from dfdc.training.augment import uniform
from dfdc.training.blend import self_blend

# Least share by which one of the frames is moved away from the steady blend; 1 is another blend, or none.
LEAST_JUMP = 0.25


def blend_steadily(first: Tensor, second: Tensor, generator: Generator) -> tuple[Tensor, Tensor]:
    """Blend both frames of pairs onto themselves with the same mask, colour and shape.

    Args:
        first, second: (N, 3, S, S) float RGB, 0..255, the second aligned to the first.
        generator: on the CPU.

    Returns:
        New tensors of the same shape, dtype and range.
    """
    seed = _draw_seed(generator)
    first, second = (self_blend(frame, Generator().manual_seed(seed), keep_target=True)[1] for frame in (first, second))
    return first, second


def flicker(first: Tensor, second: Tensor, generator: Generator) -> tuple[Tensor, Tensor]:
    """As `blend_steadily`, then move one of the frames towards another blend or back towards its original."""
    if torch.rand((), generator=generator) < 0.5:
        return flicker_second(first, second, generator)
    second, first = flicker_second(second, first, generator)
    return first, second


def flicker_second(first: Tensor, second: Tensor, generator: Generator) -> tuple[Tensor, Tensor]:
    """As `flicker`, but it is always the second frame that changes."""
    steady_first, steady = blend_steadily(first, second, generator)
    anew = torch.rand((), generator=generator) < 0.5
    other = self_blend(second, generator, keep_target=True)[1] if anew else second
    share = uniform(len(second), LEAST_JUMP, 1, second, generator).view(-1, 1, 1, 1)
    return steady_first, steady + share * (other - steady)


def _draw_seed(generator: Generator) -> int:
    return int(torch.randint(2**62, (), generator=generator))
