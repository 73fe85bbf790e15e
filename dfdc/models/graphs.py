"""Arrays -> logits or faces: complete models for the CPU, from uint8 to outputs, as OpenVINO graphs.

Each graph gives the same outputs as its torch module: `CropNet`, `PairNet` and `VoiceModel` of `dfdc.networks`, and
`CascadeNet` of `dfdc.mtcnn`.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from openvino import Model, Node, PartialShape, Type
from openvino import opset13 as ops

from dfdc.audio import N_BANDS
from dfdc.models.backbones import build_backbone
from dfdc.models.layers import Tensors, connect, constant, convolve, split, whole
from dfdc.weights import CHANGE_GAIN, GREY, VIEW_MARGIN, ModelSpec


def build_graph(spec: ModelSpec, tensors: Mapping[str, np.ndarray]) -> Model:
    """Build the graph of a weights file.

    Args:
        spec: the specification in its header.
        tensors: its tensors, by name.

    Returns:
        For a face model, from (1, S, S, 6) uint8, S the crop size, to the logits (1,) of each of two views. For a
        motion model, from the same shape to (1,). For a sound model, from (1, bands, columns) float32 to (1,).

    Raises:
        ValueError: the tensors do not fit the specification.
    """
    weights, size = Tensors(tensors, prefix="net."), spec.input_size
    if spec.sees == "sound":
        spectra = ops.parameter(PartialShape([1, N_BANDS, size]), Type.f32)
        return Model([_answer(ops.unsqueeze(spectra, whole(1)), spec, weights)], [spectra])
    crop_size = spec.crop.size
    pairs = ops.parameter(PartialShape([1, crop_size, crop_size, 6]), Type.u8)
    first, second = split(_to_planes(pairs), 2, axis=1)
    if spec.sees == "motion":
        first, second = (view(half, crop_size, size) for half in (first, second))
        change = ops.multiply(ops.subtract(second, first), constant(CHANGE_GAIN))
        seen = ops.clamp(ops.add(change, constant(GREY)), 0.0, 255.0)
        views = seen, view(seen, size, size, mirrored=True)
        logits = split(_answer(ops.concat(list(views), 0), spec, weights), 2, axis=0)
        return Model([ops.multiply(ops.add(*logits), constant(0.5))], [pairs])
    margin = round(VIEW_MARGIN * size)
    views = view(first, crop_size, size), view(second, crop_size, size, margin=margin, mirrored=True)
    # Both views in one batch, because two calls would double the model's weights.
    return Model(split(_answer(ops.concat(list(views), 0), spec, weights), 2, axis=0), [pairs])


def build_heat_graph(spec: ModelSpec, tensors: Mapping[str, np.ndarray]) -> Model:
    """Build the graph of a face model's class activation maps: the contribution of each part of a crop.

    The logit is the mean of the map (Zhou et al., CVPR 2016): with global average pooling, the classifier's weights can
    be applied at each place of the last feature map before averaging. What a head's second branch adds has no place and
    is spread evenly.

    Args:
        spec: the specification in the header of the weights file.
        tensors: its tensors, by name.

    Returns:
        From (N, S, S, 3) uint8, S the crop size, to (N, h, w) float32, the log-odds contributed by each place.

    Raises:
        ValueError: the tensors do not fit the specification.
    """
    crop_size = spec.crop.size
    crops = ops.parameter(PartialShape([-1, crop_size, crop_size, 3]), Type.u8)
    seen = view(_to_planes(crops), crop_size, spec.input_size)
    return Model([_answer(seen, spec, Tensors(tensors, prefix="net."), pooled=False)], [crops])


def view(x: Node, size: int, wanted: int, *, margin: int = 0, mirrored: bool = False) -> Node:
    """Resize square pictures (N, C, size, size) float32, 0..255, as `dfdc.networks.resize_crops` does.

    Resizing and repeating the edge are one matrix product across and one down. If these products also mirrored the
    pictures, sums would be rounded in another order, and one pixel in 4,000 would be rounded to another level than in
    torch.

    Args:
        x: the pictures.
        size: their side in pixels.
        wanted: side of the result in pixels.
        margin: pixels on each side of the result that repeat the edge; the picture itself is smaller by twice as much.
        mirrored: whether to mirror left and right.
    """
    inner = wanted - 2 * margin
    if mirrored:
        x = ops.gather(x, whole(range(size)[::-1]), whole(3))
    if wanted == size and not margin:
        return x
    weights = weigh_pixels(size, inner)[np.clip(np.arange(-margin, inner + margin), 0, inner - 1)]
    x = ops.matmul(constant(weights), ops.matmul(x, constant(weights), False, True), False, False)
    return ops.round(x, "half_to_even") if inner != size else x


def weigh_pixels(size: int, wanted: int) -> np.ndarray:
    """The weight of each pixel of a row in each pixel of the resized row.

    This is torch's bilinear interpolation with antialiasing (ATen, UpSampleKernel.cpp): a triangle filter as wide as
    the pixels that are reduced to one. As in torch, every step is rounded to single precision, so the weights equal
    torch's to the last bit, and values halfway between two levels are rounded to the same level.

    Args:
        size, wanted: length of the row in pixels before and after.

    Returns:
        (wanted, size) float32; each row sums to 1.
    """
    one, half = np.float32(1), np.float32(0.5)
    scale = np.float32(size) / np.float32(wanted)
    reach = max(scale, one)
    middles = (scale * (np.arange(wanted, dtype=np.float32) + half))[:, None]
    first = np.maximum((middles - reach + half).astype(np.int64), 0)
    end = np.minimum((middles + reach + half).astype(np.int64), size)
    places = np.arange(size, dtype=np.float32)
    weights = np.clip(one - np.abs((places - middles + half) * (one / reach)), 0, None)
    weights = np.where((places >= first) & (places < end), weights, np.float32(0))
    return weights / weights.cumsum(1)[:, -1:]  # sequential sums, as in torch; sum() adds pairwise


def _to_planes(images: Node) -> Node:
    """Images (N, H, W, C) uint8 as (N, C, H, W) float32."""
    return ops.convert(ops.transpose(images, whole([0, 3, 1, 2])), "f32")


def _answer(values: Node, spec: ModelSpec, weights: Tensors, *, pooled: bool = True) -> Node:
    """Logits (N,) of unnormalized values (N, C, H, W); if not pooled, the map whose mean is the logit."""
    mean, std = (constant(np.reshape(part, (1, -1, 1, 1))) for part in (spec.mean, spec.std))
    normalized = ops.divide(ops.subtract(values, mean), std)
    return build_backbone(normalized, spec, weights, pooled=pooled)


def build_cascade(name: str, side: int | None, tensors: Mapping[str, np.ndarray]) -> Model:
    """Build the graph of one of MTCNN's networks.

    Args:
        name: "pnet", "rnet" or "onet".
        side: input side in pixels; None for images of any size.
        tensors: of all three networks, named "<network>.<tensor>".

    Returns:
        From (N, H, W, 3) uint8 RGB to the outputs of `dfdc.mtcnn.CascadeNet`.

    Raises:
        ValueError: the tensors are not those of the network.
    """
    images = ops.parameter(PartialShape([-1, side or -1, side or -1, 3]), Type.u8)
    x = ops.multiply(ops.subtract(_to_planes(images), constant(127.5)), constant(1 / 128))
    weights = Tensors(tensors, prefix=f"{name}.")
    *others, scores = _CASCADES[name](x, weights)
    weights.check_used()
    return Model([*others, ops.softmax(scores, 1)], [images])


def _build_pnet(x: Node, weights: Tensors) -> list[Node]:
    x = _pool(_convolve(x, weights, 1, (10, 3, 3, 3)), 2)
    x = _convolve(x, weights, 2, (16, 10, 3, 3))
    x = _convolve(x, weights, 3, (32, 16, 3, 3))
    heads = [(weights.take(f"{name}.weight", n, 32, 1, 1), weights.take(f"{name}.bias", n)) for name, n in _PNET_HEADS]
    return [convolve(x, *head) for head in heads]


def _build_rnet(x: Node, weights: Tensors) -> list[Node]:
    x = _pool(_convolve(x, weights, 1, (28, 3, 3, 3)), 3)
    x = _pool(_convolve(x, weights, 2, (48, 28, 3, 3)), 3)
    x = _convolve(x, weights, 3, (64, 48, 2, 2))
    return _build_heads(x, weights, 4, (128, 576), _RNET_HEADS)


def _build_onet(x: Node, weights: Tensors) -> list[Node]:
    x = _pool(_convolve(x, weights, 1, (32, 3, 3, 3)), 3)
    x = _pool(_convolve(x, weights, 2, (64, 32, 3, 3)), 3)
    x = _pool(_convolve(x, weights, 3, (64, 64, 3, 3)), 2)
    x = _convolve(x, weights, 4, (128, 64, 2, 2))
    return _build_heads(x, weights, 5, (256, 1152), _ONET_HEADS)


def _convolve(x: Node, weights: Tensors, number: int, shape: tuple[int, int, int, int]) -> Node:
    filters, bias = weights.take(f"conv{number}.weight", *shape), weights.take(f"conv{number}.bias", shape[0])
    return _rectify(convolve(x, filters, bias), weights, number, shape[0])


def _rectify(x: Node, weights: Tensors, number: int, n_filters: int) -> Node:
    return ops.prelu(x, constant(weights.take(f"prelu{number}.weight", n_filters)))


def _pool(x: Node, size: int) -> Node:
    return ops.max_pool(x, [2, 2], [1, 1], [0, 0], [0, 0], [size, size], "ceil").output(0)


def _build_heads(
    x: Node, weights: Tensors, number: int, shape: tuple[int, int], heads: tuple[tuple[str, int], ...]
) -> list[Node]:
    """A fully connected layer, and the heads on top of it."""
    # Columns before rows, because the weights were converted from Caffe.
    x = ops.reshape(ops.transpose(x, whole([0, 3, 2, 1])), whole([0, -1]), True)
    x = connect(x, weights.take(f"dense{number}.weight", *shape), weights.take(f"dense{number}.bias", shape[0]))
    x = _rectify(x, weights, number, shape[0])
    taken = [(weights.take(f"{name}.weight", n, shape[0]), weights.take(f"{name}.bias", n)) for name, n in heads]
    return [connect(x, *head) for head in taken]


# Names and numbers of outputs of the heads: box offsets, landmarks, scores of no face and of a face.
_PNET_HEADS = (("conv4_2", 4), ("conv4_1", 2))
_RNET_HEADS = (("dense5_2", 4), ("dense5_1", 2))
_ONET_HEADS = (("dense6_2", 4), ("dense6_3", 10), ("dense6_1", 2))
_CASCADES = {"pnet": _build_pnet, "rnet": _build_rnet, "onet": _build_onet}
