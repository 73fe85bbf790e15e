"""Convolutions on CUDA without cuDNN: matrix products, and torch's own kernels for depthwise convolutions.

cuDNN plans each layer for each new input shape, which costs core-seconds per model in every worker before the first
result. Matrix products need no plan, but take the CPU half a millisecond more per crop (docs/experiments.md).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor
from torch.nn import functional
from torch.overrides import TorchFunctionMode


@contextmanager
def without_cudnn() -> Iterator[None]:
    """Inside the block, `convolve` replaces torch.conv2d, and no other operation uses cuDNN either."""
    before = torch.backends.cudnn.enabled
    torch.backends.cudnn.enabled = False
    try:
        with _Convolving():
            yield
    finally:
        torch.backends.cudnn.enabled = before


class _Convolving(TorchFunctionMode):
    def __torch_function__(
        self, called: Callable, types: object, args: tuple = (), kwargs: dict | None = None
    ) -> object:
        return (convolve if called is torch.conv2d else called)(*args, **(kwargs or {}))


def convolve(
    images: Tensor,
    filters: Tensor,
    bias: Tensor | None = None,
    stride: tuple[int, int] = (1, 1),
    padding: tuple[int, int] = (0, 0),
    dilation: tuple[int, int] = (1, 1),
    groups: int = 1,
) -> Tensor:
    """A replacement for torch.conv2d; numbers are given as pairs (vertical, horizontal).

    Args:
        images: (N, C, H, W) float.
        filters: (F, C / groups, h, w) of the same dtype.
        bias: (F,).
        stride, padding, dilation, groups: as for torch.conv2d.

    Returns:
        (N, F, H', W').
    """
    if groups > 1 or dilation != (1, 1):  # torch's own kernels read rows of a single channel
        return torch.conv2d(images.contiguous(), filters.contiguous(), bias, stride, padding, dilation, groups)
    n, (height, width) = len(images), filters.shape[2:]
    if any(padding):
        images = functional.pad(images, (padding[1], padding[1], padding[0], padding[0]))
    if height == width == 1 and stride == (1, 1):
        rows, columns = images.shape[2:]
        seen = images.flatten(2)
    else:  # the receptive field of each place, as a column
        windows = images.unfold(2, height, stride[0]).unfold(3, width, stride[1])
        rows, columns = windows.shape[2:4]
        seen = windows.permute(0, 1, 4, 5, 2, 3).reshape(n, -1, rows * columns)
    filters = filters.flatten(1).expand(n, -1, -1)
    found = filters @ seen if bias is None else torch.baddbmm(bias.view(1, -1, 1), filters, seen)
    return found.view(n, -1, rows, columns)
