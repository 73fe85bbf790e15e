"""Tensors of a weights file -> layers of an OpenVINO graph, built from OpenVINO's operators without torch."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np
from openvino import Node
from openvino import opset13 as ops


class Tensors:
    """The tensors of a file; each must be used exactly once."""

    def __init__(self, tensors: Mapping[str, np.ndarray], *, prefix: str = "") -> None:
        """Select the tensors of one network.

        Args:
            tensors: by name, of any float type.
            prefix: of the names to select; it is removed from them, and other tensors are ignored.
        """
        self._left = {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}

    def take(self, name: str, *shape: int) -> np.ndarray:
        """Take a tensor, as float32.

        Raises:
            ValueError: it is missing, has another shape, or holds numbers that are not finite.
        """
        value = self._left.pop(name, None)
        if value is None:
            raise ValueError(f"{name} is missing")
        if value.shape != shape:
            raise ValueError(f"{name} has the shape {list(value.shape)}, and {list(shape)} is needed")
        if not np.isfinite(value).all():
            raise ValueError(f"{name} holds numbers that are not finite")
        return value.astype(np.float32)

    def check_used(self) -> None:
        """Check that all tensors were used, except the counters of training steps.

        Raises:
            ValueError: a tensor was not used.
        """
        left = sorted(name for name in self._left if not name.endswith("num_batches_tracked"))
        if left:
            raise ValueError(f"{left[0]} is not part of the network")


def constant(values: np.ndarray | Sequence[float]) -> Node:
    """A constant of float32 values."""
    return ops.constant(np.array(values, np.float32, order="C"))


def whole(values: int | Sequence[int]) -> Node:
    """A constant of whole numbers as int64, for axes or sizes."""
    return ops.constant(np.array(values, np.int64))


def convolve(
    x: Node,
    filters: np.ndarray,
    bias: np.ndarray,
    *,
    stride: int = 1,
    pads: tuple[int, int] = (0, 0),
    depthwise: bool = False,
) -> Node:
    """A convolution of (N, C, H, W) with a bias.

    Args:
        x: the input.
        filters: (F, C, h, w); (C, 1, h, w) if depthwise.
        bias: (F,).
        stride, pads: the same vertically and horizontally; pads are the numbers of zeros before and after.
        depthwise: whether each channel has a filter of its own.
    """
    strides, before, after, dilations = [stride] * 2, [pads[0]] * 2, [pads[1]] * 2, [1, 1]
    if depthwise:
        x = ops.group_convolution(x, constant(filters[:, None]), strides, before, after, dilations)
    else:
        x = ops.convolution(x, constant(filters), strides, before, after, dilations)
    return ops.add(x, constant(bias.reshape(1, -1, 1, 1)))


def convolve_and_normalize(
    x: Node,
    tensors: Tensors,
    convolution: str,
    norm: str,
    shape: tuple[int, int, int, int],
    *,
    epsilon: float,
    depthwise: bool = False,
    **options,
) -> Node:
    """A convolution without bias, with the batch norm that follows it folded in.

    Args:
        x: (N, C, H, W).
        tensors: contain both layers.
        convolution, norm: names of the two layers.
        shape: of the filters.
        epsilon: added to the variance of the batch norm.
        depthwise: see `convolve`.
        options: see `convolve`.

    Raises:
        ValueError: the tensors do not fit, or a variance is negative.
    """
    filters = tensors.take(f"{convolution}.weight", *shape)
    weight, bias, mean, variance = (
        tensors.take(f"{norm}.{part}", shape[0]) for part in ("weight", "bias", "running_mean", "running_var")
    )
    if variance.min() < 0:
        raise ValueError(f"{norm}.running_var holds negative numbers")
    scale = weight / np.sqrt(variance + np.float32(epsilon))
    filters = filters * scale[:, None, None, None]
    return convolve(x, filters, bias - mean * scale, depthwise=depthwise, **options)


def connect(x: Node, weight: np.ndarray, bias: np.ndarray) -> Node:
    """A fully connected layer with a weight (F, C) and a bias (F,), over (N, C)."""
    return ops.add(ops.matmul(x, constant(weight), False, True), constant(bias[None]))


def average_places(x: Node, *, keep: bool = False) -> Node:
    """The mean over all places of (N, C, H, W): (N, C), or (N, C, 1, 1) with keep."""
    return ops.reduce_mean(x, whole([2, 3]), keep)


def measure_places(x: Node, floor: float) -> tuple[Node, Node]:
    """The mean and the standard deviation (N, C) over all places of (N, C, H, W); floor is added to the variance."""
    mean = average_places(x, keep=True)
    variance = average_places(ops.power(ops.subtract(x, mean), constant(2)))
    return ops.squeeze(mean, whole([2, 3])), ops.sqrt(ops.add(variance, constant(floor)))


def split(x: Node, n_parts: int, *, axis: int) -> list[Node]:
    """Split into equal parts along an axis."""
    return list(ops.split(x, whole(axis), n_parts).outputs())


def pad_same(size: int, kernel: int, stride: int) -> tuple[tuple[int, int], int]:
    """TensorFlow's "same" padding of one side of a picture.

    Args:
        size: in pixels.
        kernel, stride: of the convolution.

    Returns:
        The numbers of zeros before and after, and the side of the output in pixels.
    """
    n_out = math.ceil(size / stride)
    n_zeros = max((n_out - 1) * stride + kernel - size, 0)
    return (n_zeros // 2, n_zeros - n_zeros // 2), n_out
