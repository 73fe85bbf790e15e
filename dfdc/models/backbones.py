"""Normalized pictures or spectrograms -> logits: the backbones as OpenVINO graphs.

They are the networks of efficientnet-pytorch and torchvision that `dfdc.networks.build_network` builds, with the same
tensor names.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from openvino import Node
from openvino import opset13 as ops

from dfdc.models.layers import (
    Tensors,
    average_places,
    connect,
    convolve,
    convolve_and_normalize,
    measure_places,
    pad_same,
    whole,
)
from dfdc.weights import STATISTICS_NEURONS, VARIANCE_FLOOR, ModelSpec

# EfficientNet-B0's stages, before scaling: blocks, kernel, stride of the first block, expansion, filters.
EFFICIENTNET_STAGES = (
    (1, 3, 1, 1, 16),
    (2, 3, 2, 6, 24),
    (2, 5, 2, 6, 40),
    (3, 3, 2, 6, 80),
    (3, 5, 1, 6, 112),
    (4, 5, 2, 6, 192),
    (1, 3, 1, 6, 320),
)
# Width and depth as multiples of those of B0.
EFFICIENTNET_SCALES = {
    "efficientnet-lite0": (1.0, 1.0),
    "efficientnet-b0": (1.0, 1.0),
    "efficientnet-b1": (1.0, 1.1),
    "efficientnet-b2": (1.1, 1.2),
    "efficientnet-b3": (1.2, 1.4),
    "efficientnet-b4": (1.4, 1.8),
    "efficientnet-b5": (1.6, 2.2),
    "efficientnet-b6": (1.8, 2.6),
    "efficientnet-b7": (2.0, 3.1),
}
EFFICIENTNET_EPSILON = 1e-3
# Filters of squeeze-and-excitation, as a share of a block's input filters.
SQUEEZE_RATIO = 0.25
# MobileNetV2's stages: blocks, stride of the first block, expansion, filters.
MOBILENET_STAGES = (
    (1, 1, 1, 16),
    (2, 2, 6, 24),
    (3, 2, 6, 32),
    (4, 2, 6, 64),
    (3, 1, 6, 96),
    (3, 2, 6, 160),
    (1, 1, 6, 320),
)
MOBILENET_EPSILON = 1e-5


def build_backbone(x: Node, spec: ModelSpec, tensors: Tensors, *, pooled: bool = True) -> Node:
    """Build a backbone with its classifier: the logits, or the map whose mean is the logit.

    Args:
        x: (N, C, H, W) float32, normalized; C is static.
        spec: the specification of the weights file.
        tensors: exactly the tensors of the network.
        pooled: whether to take the mean over all places.

    Returns:
        (N,) float32; (N, h, w) if not pooled.

    Raises:
        ValueError: the tensors are not those of the architecture, or it has fewer blocks.
    """
    n_channels, branch = x.get_output_partial_shape(0)[1].get_length(), None
    if spec.architecture == "mobilenet-v2":
        features = _build_mobilenet(x, n_channels, tensors)
        weight, bias = tensors.take("classifier.1.weight", 1, 1280), tensors.take("classifier.1.bias", 1)
    else:
        network = _EfficientNet(spec.architecture, tensors)
        features, inputs = network.build(x, n_channels, spec.input_size)
        weight, bias = tensors.take("_fc.weight", 1, network.n_features), tensors.take("_fc.bias", 1)
        branch = network.build_branch(inputs, spec.statistics_blocks) if spec.statistics_blocks else None
    tensors.check_used()
    if pooled:
        answers = connect(average_places(features), weight, bias)
    else:
        answers = convolve(features, weight[:, :, None, None], bias)
    if branch is not None:
        answers = ops.add(answers, branch if pooled else ops.unsqueeze(branch, whole([2, 3])))
    return ops.squeeze(answers, whole([1]))


def relu6(x: Node) -> Node:
    return ops.clamp(x, 0.0, 6.0)


def swish(x: Node) -> Node:
    return ops.swish(x)


@dataclass(frozen=True)
class _Block:
    """A mobile inverted bottleneck: prefix of its tensor names, input and output filters, and its depthwise layer."""

    name: str
    n_in: int
    n_out: int
    expansion: int
    kernel: int
    stride: int
    pads: tuple[int, int]

    @property
    def n_inner(self) -> int:
        return self.n_in * self.expansion


class _EfficientNet:
    """The network of efficientnet-pytorch; Lite0 has neither squeeze-and-excitation nor swish."""

    def __init__(self, architecture: str, tensors: Tensors) -> None:
        self.width, self.depth = EFFICIENTNET_SCALES[architecture]
        self.excites = architecture != "efficientnet-lite0"
        self.activate = swish if self.excites else relu6
        self.tensors = tensors

    def build(self, x: Node, n_channels: int, size: int) -> tuple[Node, list[Node]]:
        """The last feature map, and the input of each block."""
        n_in, inputs = self._scale(32), []
        pads, size = pad_same(size, 3, 2)
        x = self.activate(self._convolve(x, "_conv_stem", "_bn0", (n_in, n_channels, 3, 3), stride=2, pads=pads))
        for n_blocks, kernel, first_stride, expansion, n_filters in EFFICIENTNET_STAGES:
            n_out = self._scale(n_filters)
            for repeat in range(math.ceil(self.depth * n_blocks)):
                stride = first_stride if repeat == 0 else 1
                pads, size = pad_same(size, kernel, stride)
                block = _Block(f"_blocks.{len(inputs)}.", n_in, n_out, expansion, kernel, stride, pads)
                inputs.append(x)
                changed = self._build_block(x, block)
                x = changed if repeat == 0 else ops.add(changed, x)
                n_in = n_out
        return self.activate(self._convolve(x, "_conv_head", "_bn1", (self.n_features, n_in, 1, 1))), inputs

    def build_branch(self, inputs: Sequence[Node], blocks: Sequence[int]) -> Node:
        """The logits (N, 1) of the head's second branch, which sees the inputs of some blocks."""
        if blocks[-1] >= len(inputs):
            raise ValueError(f"it has no block {blocks[-1]}")
        statistics = ops.concat([part for block in blocks for part in measure_places(inputs[block], VARIANCE_FLOOR)], 1)
        n_statistics = statistics.get_output_partial_shape(0)[1].get_length()
        take, n_neurons = self.tensors.take, STATISTICS_NEURONS
        weight, bias = (
            take("_statistics_hidden.weight", n_neurons, n_statistics),
            take("_statistics_hidden.bias", n_neurons),
        )
        hidden = ops.relu(connect(statistics, weight, bias))
        return connect(hidden, take("_statistics_fc.weight", 1, n_neurons), np.zeros(1))

    @property
    def n_features(self) -> int:
        """Channels of the last feature map."""
        return self._scale(1280)

    def _scale(self, n_filters: int) -> int:
        """The number of filters times the width, rounded to a multiple of 8, and rounded down by at most a tenth."""
        scaled = n_filters * self.width
        rounded = max(8, int(scaled + 4) // 8 * 8)
        return rounded + 8 if rounded < 0.9 * scaled else rounded

    def _convolve(self, x: Node, convolution: str, norm: str, shape: tuple[int, int, int, int], **options) -> Node:
        return convolve_and_normalize(
            x, self.tensors, convolution, norm, shape, epsilon=EFFICIENTNET_EPSILON, **options
        )

    def _build_block(self, x: Node, block: _Block) -> Node:
        name, n_inner = block.name, block.n_inner
        if block.expansion != 1:
            x = self.activate(self._convolve(x, f"{name}_expand_conv", f"{name}_bn0", (n_inner, block.n_in, 1, 1)))
        shape, options = (n_inner, 1, block.kernel, block.kernel), {"stride": block.stride, "pads": block.pads}
        x = self._convolve(x, f"{name}_depthwise_conv", f"{name}_bn1", shape, depthwise=True, **options)
        x = self.activate(x)
        if self.excites:
            x = self._excite(x, block)
        return self._convolve(x, f"{name}_project_conv", f"{name}_bn2", (block.n_out, n_inner, 1, 1))

    def _excite(self, x: Node, block: _Block) -> Node:
        """Squeeze-and-excitation: scale each channel by a gate computed from the means of all channels."""
        take, name, n_inner = self.tensors.take, block.name, block.n_inner
        n_squeezed = max(1, int(block.n_in * SQUEEZE_RATIO))
        filters, bias = take(f"{name}_se_reduce.weight", n_squeezed, n_inner, 1, 1), f"{name}_se_reduce.bias"
        squeezed = swish(convolve(average_places(x, keep=True), filters, take(bias, n_squeezed)))
        filters, bias = take(f"{name}_se_expand.weight", n_inner, n_squeezed, 1, 1), f"{name}_se_expand.bias"
        return ops.multiply(ops.sigmoid(convolve(squeezed, filters, take(bias, n_inner))), x)


def _build_mobilenet(x: Node, n_channels: int, tensors: Tensors) -> Node:
    """torchvision's MobileNetV2."""

    def convolve_named(x: Node, convolution: str, norm: str, shape: tuple[int, int, int, int], **options) -> Node:
        return convolve_and_normalize(x, tensors, convolution, norm, shape, epsilon=MOBILENET_EPSILON, **options)

    n_in, index = 32, 1
    shape = (n_in, n_channels, 3, 3)
    x = relu6(convolve_named(x, "features.0.0", "features.0.1", shape, stride=2, pads=(1, 1)))
    for n_blocks, first_stride, expansion, n_out in MOBILENET_STAGES:
        for repeat in range(n_blocks):
            name, before, n_inner, layer = f"features.{index}.conv.", x, n_in * expansion, 0
            if expansion != 1:
                x = relu6(convolve_named(x, f"{name}0.0", f"{name}0.1", (n_inner, n_in, 1, 1)))
                layer = 1
            options = {"stride": first_stride if repeat == 0 else 1, "pads": (1, 1), "depthwise": True}
            x = relu6(convolve_named(x, f"{name}{layer}.0", f"{name}{layer}.1", (n_inner, 1, 3, 3), **options))
            x = convolve_named(x, f"{name}{layer + 1}", f"{name}{layer + 2}", (n_out, n_inner, 1, 1))
            x = x if repeat == 0 else ops.add(x, before)
            n_in, index = n_out, index + 1
    return relu6(convolve_named(x, f"features.{index}.0", f"features.{index}.1", (1280, n_in, 1, 1)))
