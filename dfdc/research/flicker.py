"""Pairs of neighbouring frames of a real face -> pairs as of a fake that flickers.

Face swaps are made frame by frame: mask, colour and shape jump a little from one to the next. Here both frames are
blended onto themselves alike (`dfdc.training.blend`), and one of them is then drawn towards another blend or back to
what it was, so that it is the change that gives the pair away. Outside the face both stay what they were: whole frames
that jump are the camera's doing.
"""

from __future__ import annotations

import torch
from torch import Generator, Tensor

from dfdc.training.augment import uniform
from dfdc.training.blend import self_blend

# How far one of the frames is drawn away from a steady blend: at 1 it is another blend altogether, or none.
LEAST_JUMP = 0.25


def blend_steadily(first: Tensor, second: Tensor, generator: Generator) -> tuple[Tensor, Tensor]:
    """Blend both frames of pairs onto themselves, with one mask, colour and shape for both.

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
    """As `blend_steadily`, and then one of the frames is drawn towards another blend, or towards what it was."""
    if torch.rand((), generator=generator) < 0.5:
        return flicker_second(first, second, generator)
    second, first = flicker_second(second, first, generator)
    return first, second


def flicker_second(first: Tensor, second: Tensor, generator: Generator) -> tuple[Tensor, Tensor]:
    """As `flicker`, where it is always the second frame that jumps."""
    steady_first, steady = blend_steadily(first, second, generator)
    anew = torch.rand((), generator=generator) < 0.5
    other = self_blend(second, generator, keep_target=True)[1] if anew else second
    share = uniform(len(second), LEAST_JUMP, 1, second, generator).view(-1, 1, 1, 1)
    return steady_first, steady + share * (other - steady)


def _draw_seed(generator: Generator) -> int:
    return int(torch.randint(2**62, (), generator=generator))
