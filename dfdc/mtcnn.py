"""The three networks of MTCNN in torch, for CUDA; on the CPU, `dfdc.models.graphs` builds them without torch."""

from __future__ import annotations

from safetensors.torch import load
from torch import Tensor, nn


def load_mtcnn(data: bytes) -> list[nn.Module]:
    """Load P-Net, R-Net and O-Net in evaluation mode.

    Each network takes (N, H, W, 3) uint8 RGB. It returns box offsets (as shares of the box's sides), landmarks (O-Net
    only), and the probabilities of no face and of a face, in this order.

    Args:
        data: the content of `dfdc.models.MTCNN`.
    """
    tensors = load(data)
    models = {"pnet": _build_pnet(), "rnet": _build_rnet(), "onet": _build_onet()}
    for name, network in models.items():
        own = {key.removeprefix(f"{name}."): value for key, value in tensors.items() if key.startswith(f"{name}.")}
        network.load_state_dict(own)
    return [network.eval().requires_grad_(False) for network in models.values()]


class CascadeNet(nn.Module):
    """A sequence of layers, and several heads on top of it."""

    def __init__(self, layers: dict[str, nn.Module], heads: dict[str, nn.Module]) -> None:
        super().__init__()
        for name, module in {**layers, **heads}.items():
            self.add_module(name, module)
        self.layers, self.heads = tuple(layers), tuple(heads)

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        """The outputs of the heads for images (N, H, W, 3) uint8 RGB."""
        x = (images.permute(0, 3, 1, 2).to(self.conv1.weight.dtype) - 127.5) / 128
        for name in self.layers:
            x = getattr(self, name)(x)
        *others, chances = (getattr(self, name)(x) for name in self.heads)
        return *others, chances.softmax(1)


class _Flatten(nn.Module):
    """Flatten the features with columns before rows, because the weights were converted from Caffe."""

    def forward(self, x: Tensor) -> Tensor:
        return x.permute(0, 3, 2, 1).flatten(1)


def _pool(size: int) -> nn.Module:
    return nn.MaxPool2d(size, 2, ceil_mode=True)


def _build_pnet() -> CascadeNet:
    layers = {
        **{"conv1": nn.Conv2d(3, 10, 3), "prelu1": nn.PReLU(10), "pool1": _pool(2)},
        **{"conv2": nn.Conv2d(10, 16, 3), "prelu2": nn.PReLU(16)},
        **{"conv3": nn.Conv2d(16, 32, 3), "prelu3": nn.PReLU(32)},
    }
    return CascadeNet(layers, {"conv4_2": nn.Conv2d(32, 4, 1), "conv4_1": nn.Conv2d(32, 2, 1)})


def _build_rnet() -> CascadeNet:
    layers = {
        **{"conv1": nn.Conv2d(3, 28, 3), "prelu1": nn.PReLU(28), "pool1": _pool(3)},
        **{"conv2": nn.Conv2d(28, 48, 3), "prelu2": nn.PReLU(48), "pool2": _pool(3)},
        **{"conv3": nn.Conv2d(48, 64, 2), "prelu3": nn.PReLU(64), "flat": _Flatten()},
        **{"dense4": nn.Linear(576, 128), "prelu4": nn.PReLU(128)},
    }
    return CascadeNet(layers, {"dense5_2": nn.Linear(128, 4), "dense5_1": nn.Linear(128, 2)})


def _build_onet() -> CascadeNet:
    layers = {
        **{"conv1": nn.Conv2d(3, 32, 3), "prelu1": nn.PReLU(32), "pool1": _pool(3)},
        **{"conv2": nn.Conv2d(32, 64, 3), "prelu2": nn.PReLU(64), "pool2": _pool(3)},
        **{"conv3": nn.Conv2d(64, 64, 3), "prelu3": nn.PReLU(64), "pool3": _pool(2)},
        **{"conv4": nn.Conv2d(64, 128, 2), "prelu4": nn.PReLU(128), "flat": _Flatten()},
        **{"dense5": nn.Linear(1152, 256), "prelu5": nn.PReLU(256)},
    }
    heads = {"dense6_2": nn.Linear(256, 4), "dense6_3": nn.Linear(256, 10), "dense6_1": nn.Linear(256, 2)}
    return CascadeNet(layers, heads)
