"""Crops or spectrograms -> logits: the frame model and the voice model in torch, and their weights files."""

from __future__ import annotations

import hashlib
import secrets
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import torch
from efficientnet_pytorch import EfficientNet
from efficientnet_pytorch.utils import BlockDecoder, GlobalParams
from safetensors import SafetensorError
from safetensors.torch import load, save_file
from torch import Tensor, nn
from torch.nn import functional

from dfdc.errors import SettingError, WeightsError
from dfdc.weights import (
    CHANGE_GAIN,
    DIGEST_DIGITS,
    GREY,
    STATISTICS_NEURONS,
    VARIANCE_FLOOR,
    VIEW_MARGIN,
    ModelSpec,
    WeightsFile,
    file_digest,
    read_header,
    read_regular,
)

# EfficientNet-Lite0: B0 without squeeze-and-excitation, and with ReLU6 instead of swish.
LITE0_BLOCKS = (
    "r1_k3_s11_e1_i32_o16",
    "r2_k3_s22_e6_i16_o24",
    "r2_k5_s22_e6_i24_o40",
    "r3_k3_s22_e6_i40_o80",
    "r3_k5_s11_e6_i80_o112",
    "r4_k5_s22_e6_i112_o192",
    "r1_k3_s11_e6_i192_o320",
)

# Initial bias of a squeeze-and-excitation gate: a gate of .98 after the sigmoid.
OPEN_GATE = 4.0


def resize_crops(crops: Tensor, size: int) -> Tensor:
    """Resize crops to a model's input: bilinear with antialiasing, rounded to whole levels.

    Training and inference both call it, so a crop becomes the same tensor in both.

    Args:
        crops: (N, C, H, W) float, 0..255.
        size: wanted side in pixels.

    Returns:
        (N, C, size, size) of the same dtype, whole numbers 0..255.
    """
    if crops.shape[-2:] == (size, size):
        return crops
    return functional.interpolate(crops, (size, size), mode="bilinear", antialias=True).round()


class BranchedEfficientNet(EfficientNet):
    """An EfficientNet whose head can have a second branch that sees the statistics of earlier layers.

    Only a few channels of the last feature map tell a fake of an unknown generator from a real. Earlier layers show
    traces of generators and of blending, and means and standard deviations over all places keep them
    (docs/experiments.md).
    """

    statistics_blocks: tuple[int, ...] = ()

    def add_branch(self, blocks: Sequence[int]) -> None:
        """Add the second branch. Its last layer is zero, so the logits do not change until it is trained.

        Args:
            blocks: indices of the blocks whose inputs it sees, ascending; at least one.

        Raises:
            SettingError: the network has no such block.
        """
        if blocks[-1] >= len(self._blocks):
            raise SettingError(
                f"statistics_blocks has {blocks[-1]}; allowed are blocks of the network, 0 to {len(self._blocks) - 1}"
            )
        self.statistics_blocks = tuple(blocks)
        n_channels = sum(self._blocks[index]._block_args.input_filters for index in blocks)
        self._statistics_hidden = nn.Linear(2 * n_channels, STATISTICS_NEURONS)
        self._statistics_dropout = nn.Dropout(0.5)
        self._statistics_fc = nn.Linear(STATISTICS_NEURONS, 1, bias=False)
        nn.init.zeros_(self._statistics_fc.weight)

    def forward(self, images: Tensor) -> Tensor:
        """Logits (N, 1) of normalized images (N, C, H, W)."""
        if not self.statistics_blocks:
            return super().forward(images)
        x, statistics = self._swish(self._bn0(self._conv_stem(images))), []
        for index, block in enumerate(self._blocks):
            if index in self.statistics_blocks:
                places = x if x.dtype == torch.float64 else x.float()  # half precision overflows in the gradient
                variance, mean = torch.var_mean(places, (2, 3), correction=0)
                statistics += [mean, (variance + VARIANCE_FLOOR).sqrt()]
            x = block(x, drop_connect_rate=self._global_params.drop_connect_rate * index / len(self._blocks))
        features = self._avg_pooling(self._swish(self._bn1(self._conv_head(x)))).flatten(1)
        hidden = functional.relu(self._statistics_hidden(torch.cat(statistics, 1).to(x.dtype)))
        return self._fc(self._dropout(features)) + self._statistics_fc(self._statistics_dropout(hidden))


def build_network(
    architecture: str, input_size: int, *, channels: int = 3, statistics_blocks: Sequence[int] = ()
) -> nn.Module:
    """Build a network with one output and random weights; nothing is ever downloaded.

    Args:
        architecture: one of `dfdc.weights.ARCHITECTURES`.
        input_size: side in pixels for which its padding is computed.
        channels: number of input channels; 3 for MobileNetV2.
        statistics_blocks: see `dfdc.weights.ModelSpec`; none for MobileNetV2.

    Raises:
        SettingError: the network has no such block.
    """
    if architecture == "mobilenet-v2":
        from torchvision.models import mobilenet_v2

        network = mobilenet_v2(num_classes=1)
    elif architecture == "efficientnet-lite0":
        network = _build_lite0(input_size)
    else:
        network = BranchedEfficientNet.from_name(architecture, image_size=input_size, num_classes=1)
    if channels != 3:
        network._change_in_channels(channels)
    if statistics_blocks:
        network.add_branch(statistics_blocks)
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            # With efficientnet-pytorch's .01, batch-norm statistics lag in short runs: evaluation trailed by 2 epochs.
            module.momentum = 0.1
    return network


def _build_lite0(input_size: int) -> nn.Module:
    network = BranchedEfficientNet(
        BlockDecoder.decode(list(LITE0_BLOCKS)),
        GlobalParams(
            width_coefficient=1.0,
            depth_coefficient=1.0,
            image_size=input_size,
            dropout_rate=0.2,
            num_classes=1,
            batch_norm_momentum=0.99,
            batch_norm_epsilon=1e-3,
            drop_connect_rate=0.2,
            depth_divisor=8,
            min_depth=None,
            include_top=True,
        ),
    )
    for module in (network, *network._blocks):
        module._swish = nn.ReLU6(inplace=True)
    return network


class Initial(NamedTuple):
    """The result of `load_initial`.

    Attributes:
        n_taken: number of the model's tensors that were loaded.
        n_tensors: number of tensors that the model has.
        digest: SHA-256 of the bytes that were loaded, as 64 hex digits.
    """

    n_taken: int
    n_tensors: int
    digest: str


def load_initial(model: FrameModel | VoiceModel, path: Path) -> Initial:
    """Initialise a model from a weights file: every tensor with a matching name and shape is loaded.

    If the file is one of this package's, for the same kind of input, its mean and std are used too. A sound model
    treats a spectrogram as a grey picture, so colour filters are summed. If the file lacks squeeze-and-excitation
    layers, as Lite0 does, these start as pass-through (gate about .98). A second branch of the head is left out if the
    model has another kind of input or another architecture.

    Args:
        model: changed in place.
        path: a safetensors file with the network's own keys, or with this package's prefix "net.".

    Raises:
        WeightsError: the file is not a safetensors file, no tensor in it fits, or its head has a second branch that the
            model lacks.
    """
    data, tensors, stated = _read_initial(path)
    if stated is not None and stated.sees == model.spec.sees and stated.architecture == model.spec.architecture:
        blocks = stated.statistics_blocks
        if blocks and model.spec.statistics_blocks != blocks:
            wanted = " ".join(f"--statistics-block {block}" for block in blocks)
            raise WeightsError(
                f"{path}: its head has a second branch that sees the blocks {', '.join(map(str, blocks))}; train with "
                f"tools/train.py {wanted}, or name weights without a second branch"
            )
    own = model.net.state_dict()
    tensors = {key: _adapt(value, own[key]) for key, value in tensors.items() if key in own}
    fitting = {key: value for key, value in tensors.items() if own[key].shape == value.shape}
    if not fitting:
        raise WeightsError(f"{path}: no tensor fits {model.spec.architecture}; name weights of the same family")
    model.net.load_state_dict(fitting, strict=False)
    for name, module in model.net.named_modules():
        if name.endswith("_se_expand") and f"{name}.bias" not in fitting:
            nn.init.constant_(module.bias, OPEN_GATE)
    if stated is not None and stated.sees == model.spec.sees:
        model.normalize(stated.mean, stated.std)
    return Initial(len(fitting), len(own), hashlib.sha256(data).hexdigest())


def read_blocks(path: Path, spec: ModelSpec) -> tuple[int, ...]:
    """The `statistics_blocks` of a weights file that `load_initial` can load into a model of a specification.

    Args:
        path: see `load_initial`.
        spec: specification of the model.

    Returns:
        Those that the file states; none if it is for another kind of input or another architecture.

    Raises:
        WeightsError: the file is not a safetensors file, or its specification cannot be read.
    """
    stated = _read_initial(path)[2]
    alike = stated is not None and (stated.sees, stated.architecture) == (spec.sees, spec.architecture)
    return stated.statistics_blocks if alike else ()


def _read_initial(path: Path) -> tuple[bytes, dict[str, Tensor], ModelSpec | None]:
    """The bytes of a safetensors file, its tensors, and the specification if it states one."""
    try:
        data = read_regular(path)
        tensors = {key.removeprefix("net."): value for key, value in load(data).items()}
        text = read_header(data).get("spec")
        stated = None if text is None else ModelSpec.from_json(text)
    except (OSError, SafetensorError) as error:
        raise WeightsError(f"{path}: not a readable safetensors file ({error})") from error
    except (ValueError, TypeError, KeyError) as error:
        raise WeightsError(f"{path}: its model specification cannot be read ({error!r}); name other weights") from error
    return data, tensors, stated


def _adapt(value: Tensor, wanted: Tensor) -> Tensor:
    """Sum colour filters (F, 3, h, w) over the channels if a single channel (F, 1, h, w) is wanted."""
    if value.ndim == 4 and value.shape[1] == 3 and wanted.shape == (value.shape[0], 1, *value.shape[2:]):
        return value.sum(1, keepdim=True)
    return value


class _NormalizedNet(nn.Module):
    """The network of a specification with its input normalization, which is applied nowhere else in torch."""

    def __init__(self, spec: ModelSpec) -> None:
        super().__init__()
        self.spec = spec
        self.net = build_network(
            spec.architecture, spec.input_size, channels=spec.channels, statistics_blocks=spec.statistics_blocks
        )
        self.register_buffer("mean", torch.tensor(spec.mean).view(1, -1, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(spec.std).view(1, -1, 1, 1), persistent=False)

    def normalize(self, mean: tuple[float, ...], std: tuple[float, ...]) -> None:
        """Use another mean and standard deviation, one value per channel."""
        self.spec = replace(self.spec, mean=mean, std=std)
        for buffer, values in ((self.mean, mean), (self.std, std)):
            buffer.copy_(torch.tensor(values).view_as(buffer))

    def _answer(self, values: Tensor) -> Tensor:
        """Logits (N,) of unnormalized float values (N, C, H, W)."""
        normalized = (values - self.mean.float()) / self.std.float()
        return self.net(normalized.to(self.mean.dtype)).squeeze(1)


class FrameModel(_NormalizedNet):
    """A model that scores face crops."""

    def forward(self, crops: Tensor) -> Tensor:
        """Score crops.

        Args:
            crops: (N, 3, H, W) RGB, 0..255, uint8 or float; H = W, any size; for motion, the output of `see_change`.

        Returns:
            (N,) float logits before calibration; above 0 means fake.
        """
        return self._answer(resize_crops(crops.float(), self.spec.input_size))


class TwoViewModel(nn.Module):
    """A frame model with test-time augmentation: the mean of the logits of two views of each crop.

    The second view is the mirror image. With a margin it is also smaller, and the crop's edge is repeated around it.
    Evaluation, calibration and inference use this model; training uses one view at a time.
    """

    def __init__(self, model: FrameModel, *, margin: float = VIEW_MARGIN) -> None:
        """Wrap a model.

        Args:
            model: not changed.
            margin: on each side of the mirror image, as a share of the model's input; at least 0, below 0.5.
        """
        super().__init__()
        self.model = model
        self.margin = margin

    def forward(self, crops: Tensor) -> Tensor:
        """The same as `FrameModel.forward`."""
        return torch.stack(self.answer(crops, crops)).mean(0)

    def answer(self, crops: Tensor, others: Tensor) -> tuple[Tensor, Tensor]:
        """Logits (N,) of crops (N, 3, H, W) in the first view, and of as many others in the second view."""
        size = self.model.spec.input_size
        margin = round(self.margin * size)
        mirrored = resize_crops(others.float().flip(3), size - 2 * margin)
        mirrored = functional.pad(mirrored, (margin,) * 4, mode="replicate")
        first, second = self.model(torch.cat([resize_crops(crops.float(), size), mirrored])).chunk(2)
        return first, second


class CropNet(nn.Module):
    """The two-view model for crops in array layout (N, H, W, C), as used at inference."""

    def __init__(self, model: FrameModel) -> None:
        super().__init__()
        self.model = TwoViewModel(model)

    def forward(self, crops: Tensor) -> tuple[Tensor, Tensor]:
        """Logits (N,) of each view of crops (N, H, W, 6) uint8: RGB of the first view's crop, then the second's."""
        return self.model.answer(*crops.permute(0, 3, 1, 2).chunk(2, 1))


def see_change(pairs: Tensor, size: int) -> Tensor:
    """The input of a motion model: only the difference between the second and the first crop of each pair.

    Training and inference both call it.

    Args:
        pairs: (N, 6, H, W) float, 0..255: RGB of a crop, then RGB of the next frame's crop, aligned to the first.
        size: wanted side in pixels.

    Returns:
        (N, 3, size, size) of the same dtype, 0..255: `GREY` plus `CHANGE_GAIN` times the change.
    """
    first, second = resize_crops(pairs, size).chunk(2, 1)
    return (GREY + CHANGE_GAIN * (second - first)).clamp(0, 255)


class PairNet(nn.Module):
    """The two-view motion model for pairs in array layout (N, H, W, C), as used at inference."""

    def __init__(self, model: FrameModel) -> None:
        super().__init__()
        self.model = TwoViewModel(model, margin=0)
        self.input_size = model.spec.input_size

    def forward(self, pairs: Tensor) -> Tensor:
        """Logits (N,) of pairs (N, H, W, 6) uint8: RGB of a crop, then of the next frame's crop, aligned to it."""
        return self.model(see_change(pairs.permute(0, 3, 1, 2).float(), self.input_size))


class VoiceModel(_NormalizedNet):
    """A model that scores spectrograms."""

    def forward(self, spectra: Tensor) -> Tensor:
        """Score windows of sound.

        Args:
            spectra: (N, bands, columns) float decibels, as `dfdc.audio.log_mel` returns; both sides are multiples of
                32.

        Returns:
            (N,) float logits before calibration; above 0 means a synthetic voice.
        """
        return self._answer(spectra.unsqueeze(1).float())


def build_model(spec: ModelSpec) -> FrameModel | VoiceModel:
    """The model of a specification, with random weights."""
    return VoiceModel(spec) if spec.sees == "sound" else FrameModel(spec)


def save_model(model: FrameModel | VoiceModel, folder: Path, *, name: str, spec: ModelSpec | None = None) -> Path:
    """Write a model in half precision, with its specification in the header and its digest in the file name.

    Args:
        model: on any device, any float type.
        folder: an existing folder.
        name: the part of the file's name before the digest.
        spec: replaces the model's own specification, for example after calibration; None keeps it.

    Returns:
        The path of the new file.
    """
    tensors = {
        key: (value.half() if value.is_floating_point() else value).contiguous().cpu()
        for key, value in model.state_dict().items()
    }
    draft = folder / f".{name}.{secrets.token_hex(4)}.tmp"  # a random name that nobody can have prepared
    try:
        save_file(tensors, draft, metadata={"spec": (spec or model.spec).to_json()})
        draft.chmod(0o644)  # safetensors makes it unreadable for other users
        path = folder / f"{name}-{file_digest(draft)[:DIGEST_DIGITS]}.safetensors"
        draft.replace(path)
    finally:
        draft.unlink(missing_ok=True)
    return path


def load_model(file: WeightsFile, *, device: torch.device | str = "cpu", half: bool = False) -> FrameModel | VoiceModel:
    """Rebuild a model from a checked file, in evaluation mode; all tensors must fit.

    Args:
        file: from `dfdc.weights.open_weights`.
        device: device of the model.
        half: whether it computes in float16 (CUDA) instead of float32.

    Raises:
        WeightsError: the file has changed since it was checked, or its tensors do not fit the architecture.
    """
    try:
        model = build_model(file.spec)
        model.load_state_dict(load(file.read()))
    except (RuntimeError, SafetensorError, SettingError) as error:
        reason = str(error).strip().splitlines()[-1].strip()
        raise WeightsError(
            f"{file.path}: its tensors do not fit {file.spec.architecture} ({reason}); train it again or name another"
        ) from error
    model = model.to(device, torch.float16 if half else torch.float32)
    return model.to(memory_format=torch.channels_last).eval()
