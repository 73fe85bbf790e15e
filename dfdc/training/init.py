"""Where training starts: ImageNet weights, from the network if the user asks, with real batch norms."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor, nn

from dfdc.errors import WeightsError
from dfdc.networks import FrameModel, VoiceModel, build_model, load_initial
from dfdc.weights import ModelSpec, file_digest

# Of pixels in 0..255: what the published nets that can be downloaded were trained with.
IMAGENET_MEAN = (123.675, 116.28, 103.53)
IMAGENET_STD = (58.395, 57.12, 57.375)
# EfficientNet-Lite0 as Google trained it on ImageNet, in the form that timm publishes (Apache-2.0), and its pixels.
LITE0_URL = (
    "https://github.com/rwightman/pytorch-image-models/releases/download/v0.1-weights/"
    "tf_efficientnet_lite0-0aa007d2.pth"
)
LITE0_MEAN = LITE0_STD = (127.5, 127.5, 127.5)
# timm's names of a block's layers, of those that expand first and of the first block, in efficientnet-pytorch's.
_EXPANDING = {
    "conv_pw": "_expand_conv",
    "bn1": "_bn0",
    "conv_dw": "_depthwise_conv",
    "bn2": "_bn1",
    "conv_pwl": "_project_conv",
    "bn3": "_bn2",
}
_PLAIN = {"conv_dw": "_depthwise_conv", "bn1": "_bn1", "conv_pw": "_project_conv", "bn2": "_bn2"}
_OUTSIDE = {"conv_stem": "_conv_stem", "bn1": "_bn0", "conv_head": "_conv_head", "bn2": "_bn1"}
# Folded batch norms are revived on so many crops.
REVIVAL_CROPS = 256


def download_imagenet(spec: ModelSpec) -> FrameModel:
    """A model that starts from published ImageNet weights, fetched over the network into torch's cache.

    Args:
        spec: of the model; its mean and std are replaced by those that the weights were trained with.

    Raises:
        WeightsError: the network cannot be reached, or gives something else.
    """
    lite0 = spec.architecture == "efficientnet-lite0"
    mean, std = (LITE0_MEAN, LITE0_STD) if lite0 else (IMAGENET_MEAN, IMAGENET_STD)
    model = FrameModel(replace(spec, mean=mean, std=std))
    try:
        if lite0:
            model.net.load_state_dict(rename_lite0(_fetch_lite0()), strict=False)
        elif spec.architecture == "mobilenet-v2":
            from torchvision.models import MobileNet_V2_Weights

            tensors = MobileNet_V2_Weights.IMAGENET1K_V2.get_state_dict(progress=False)
            fitting = {key: value for key, value in tensors.items() if not key.startswith("classifier.")}
            model.net.load_state_dict(fitting, strict=False)
        else:
            from efficientnet_pytorch.utils import load_pretrained_weights

            load_pretrained_weights(model.net, spec.architecture, load_fc=False, verbose=False)
    except OSError as error:
        raise WeightsError(
            f"{spec.architecture}: ImageNet weights cannot be fetched ({error}); go online, or name a file with --init"
        ) from error
    return model


def _fetch_lite0() -> dict[str, Tensor]:
    try:
        return torch.hub.load_state_dict_from_url(
            LITE0_URL, map_location="cpu", check_hash=True, progress=False, weights_only=True
        )
    except RuntimeError as error:  # another digest
        raise OSError(str(error)) from error


def rename_lite0(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """timm's EfficientNet-Lite0 under efficientnet-pytorch's names, without its classifier."""
    places = sorted({tuple(map(int, key.split(".")[1:3])) for key in tensors if key.startswith("blocks.")})
    renamed = {}
    for key, value in tensors.items():
        layer, _, parameter = key.rpartition(".")
        if layer.startswith("blocks."):
            _, stage, number, layer = layer.split(".")
            names = _EXPANDING if f"blocks.{stage}.{number}.conv_pwl.weight" in tensors else _PLAIN
            renamed[f"_blocks.{places.index((int(stage), int(number)))}.{names[layer]}.{parameter}"] = value
        elif layer in _OUTSIDE:
            renamed[f"{_OUTSIDE[layer]}.{parameter}"] = value
    return renamed


def start_model(
    spec: ModelSpec, *, init: Path | None = None, imagenet: bool = False, progress: bool = True
) -> tuple[FrameModel | VoiceModel, str | None]:
    """The model that training starts from, and what names its start.

    Args:
        spec: of the model.
        init: safetensors file to start from; None for weights of chance.
        imagenet: start from `download_imagenet` instead.
        progress: print how much of a file was taken over.

    Raises:
        WeightsError: the file cannot be used, or there is nothing to download.
    """
    if imagenet:
        return download_imagenet(spec), "imagenet"
    model = build_model(spec)
    if init is None:
        return model, None
    taken, total = load_initial(model, init)
    if progress:
        print(f"{init.name}: {taken} of {total} tensors taken over")
    return model, file_digest(init)


def has_folded_norms(model: FrameModel | VoiceModel) -> bool:
    """Whether every batch norm still has the statistics of a fresh or folded one, mean 0 and variance 1."""
    norms = [m for m in model.modules() if isinstance(m, nn.BatchNorm2d)]
    return all(
        (n.running_mean == 0).all() and torch.allclose(n.running_var, n.running_mean + 1, atol=0.01) for n in norms
    )


def revive_if_folded(model: FrameModel | VoiceModel, crops: Tensor) -> int:
    """Revive batch norms (`revive_batch_norms`) where they are folded.

    Args:
        model: changed in place.
        crops: what the model sees, (N, 3, H, W) uint8 crops for instance; the first `REVIVAL_CROPS` are used.

    Returns:
        How many crops were used; 0 where the norms are real already.
    """
    if not has_folded_norms(model):
        return 0
    revive_batch_norms(model, crops[:REVIVAL_CROPS])
    return min(REVIVAL_CROPS, len(crops))


def revive_batch_norms(model: FrameModel | VoiceModel, crops: Tensor) -> None:
    """Make folded batch norms real again, without changing the function.

    Published half-precision ImageNet weights have their norms folded into the convolutions. One pass over real crops
    sets each norm's running mean and variance from its input, and its scale and bias to undo them.

    Args:
        model: whose norms are the identity plus a bias.
        crops: what the model sees, (N, 3, H, W) uint8 crops for instance; at least some dozens.
    """

    def revive(norm: nn.BatchNorm2d, inputs: tuple[Tensor]) -> None:
        variance, mean = torch.var_mean(inputs[0], (0, 2, 3), correction=0)
        slope = norm.weight / (norm.running_var + norm.eps).sqrt()
        norm.bias.copy_(norm.bias + (mean - norm.running_mean) * slope)
        norm.weight.copy_(slope * (variance + norm.eps).sqrt())
        norm.running_mean.copy_(mean)
        norm.running_var.copy_(variance)

    norms = [m for m in model.modules() if isinstance(m, nn.BatchNorm2d)]
    handles = [norm.register_forward_pre_hook(revive) for norm in norms]
    training = model.training
    model.eval()
    with torch.no_grad():
        model(crops)
    model.train(training)
    for handle in handles:
        handle.remove()
