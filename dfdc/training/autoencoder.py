"""A tiny autoencoder of latent diffusion: pictures to latents and back.

The networks are those of TAESD (github.com/madebyollin/taesd, MIT), which imitate the autoencoders of Stable Diffusion
and FLUX. Their files contain only tensors, which are named by the index of their layer.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional

from dfdc.errors import WeightsError

# The sides of a picture are multiples of this, because the encoder halves them three times.
SCALE = 8
# Number of groups of the group norm in blocks with a pooling branch.
_GROUPS = 4


class TinyAutoencoder:
    """An encoder and the matching decoder, on the CPU."""

    def __init__(self, encoder: Path, decoder: Path) -> None:
        """Read the tensors of both networks; no code in the files is executed.

        Args:
            encoder, decoder: PyTorch files such as taef2_encoder.pth and taef2_decoder.pth.

        Raises:
            WeightsError: a file cannot be read or holds another network, or the two do not belong together.
        """
        self._encoder, self._decoder = _read(encoder), _read(decoder)
        try:
            with torch.inference_mode():
                shape = self.decode(self.encode(torch.zeros(1, 3, 2 * SCALE, 2 * SCALE))).shape
        except (RuntimeError, KeyError, ValueError, IndexError) as error:
            raise WeightsError(
                f"{encoder}, {decoder}: not an encoder and a decoder of TAESD ({error}); name taef2_encoder.pth and "
                "taef2_decoder.pth"
            ) from error
        if shape != (1, 3, 2 * SCALE, 2 * SCALE):
            raise WeightsError(f"{encoder}, {decoder}: they change the size of pictures; name two files that match")

    @torch.inference_mode()
    def encode(self, pictures: Tensor) -> Tensor:
        """Encode pictures (N, 3, H, W) float32 in 0..1, with sides that are multiples of 8, to (N, C, H / 8, W / 8)."""
        values = pictures
        for layer in _layers(self._encoder):
            if "conv.0.weight" in layer:
                values = _run_block(layer, values)
            else:  # layers without a bias halve the sides
                stride = 1 if "bias" in layer else 2
                values = functional.conv2d(values, layer["weight"], layer.get("bias"), stride, padding=1)
        return values

    @torch.inference_mode()
    def decode(self, latents: Tensor) -> Tensor:
        """Decode latents (N, C, H / 8, W / 8) to pictures (N, 3, H, W) float32, about 0..1."""
        values = torch.tanh(latents / 3) * 3
        for place, layer in enumerate(_layers(self._decoder)):
            if "conv.0.weight" in layer:
                values = _run_block(layer, values)
                continue
            if "bias" not in layer:
                values = functional.interpolate(values, scale_factor=2)
            values = functional.conv2d(values, layer["weight"], layer.get("bias"), padding=1)
            values = values.relu() if place == 0 else values
        return values


def _read(path: Path) -> dict[str, Tensor]:
    try:
        tensors = torch.load(path, weights_only=True, map_location="cpu")
    except Exception as error:  # of the file system, zipfile, the unpickler or torch
        reason = next(iter(str(error).splitlines()), type(error).__name__)
        raise WeightsError(f"{path}: not a PyTorch file of tensors ({reason}); fetch it again") from error
    if not isinstance(tensors, dict) or not all(isinstance(value, Tensor) for value in tensors.values()):
        raise WeightsError(f"{path}: holds something other than tensors by name; name an encoder or decoder of TAESD")
    return {key: value.float() for key, value in tensors.items()}


def _layers(tensors: Mapping[str, Tensor]) -> list[dict[str, Tensor]]:
    """Group the tensors by layer, in the order of the layers."""
    layers: dict[int, dict[str, Tensor]] = {}
    for key, value in tensors.items():
        place, _, name = key.partition(".")
        layers.setdefault(int(place), {})[name] = value
    return [layers[place] for place in sorted(layers)]


def _run_block(layer: Mapping[str, Tensor], values: Tensor) -> Tensor:
    """Run a residual block of three convolutions; some networks have a pooling branch with a norm before it."""
    if "pool.0.weight" in layer:
        pooled = functional.conv2d(values, layer["pool.0.weight"])
        pooled = functional.group_norm(pooled, _GROUPS, layer["pool.1.weight"], layer["pool.1.bias"]).relu()
        values = values + functional.conv2d(pooled, layer["pool.3.weight"])
    found = values
    for place in (0, 2, 4):
        found = functional.conv2d(found, layer[f"conv.{place}.weight"], layer[f"conv.{place}.bias"], padding=1)
        found = found.relu() if place < 4 else found
    return (found + values).relu()
