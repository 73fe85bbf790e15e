"""dfdc.convolution: the same answers as torch's convolutions, for every layer that our nets have."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional

from dfdc.convolution import convolve, without_cudnn
from dfdc.model import build_network
from dfdc.mtcnn import load_mtcnn
from dfdc.runtime import choose_device

# Channels, filters, their side, stride, padding, groups.
LAYERS = {
    "stem": (3, 8, 3, 2, 1, 1),
    "pointwise": (8, 16, 1, 1, 0, 1),
    "pointwise, every second place": (8, 16, 1, 2, 0, 1),
    "depthwise": (8, 8, 5, 2, 2, 8),
    "two groups": (8, 6, 3, 1, 1, 2),
    "even side": (5, 6, 2, 1, 0, 1),
}


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("memory", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("layer", LAYERS.values(), ids=LAYERS)
def test_convolution_is_torchs(layer: tuple[int, ...], memory: torch.memory_format, bias: bool) -> None:
    channels, n_filters, side, stride, padding, groups = layer
    torch.manual_seed(0)
    images = torch.randn(2, channels, 17, 24).to(memory_format=memory)
    filters = torch.randn(n_filters, channels // groups, side, side).to(memory_format=memory)
    offsets = torch.randn(n_filters) if bias else None
    settings = ((stride, stride), (padding, padding), (1, 1), groups)
    found = convolve(images, filters, offsets, *settings)
    torch.testing.assert_close(found, torch.conv2d(images, filters, offsets, *settings), atol=1e-5, rtol=1e-4)


def test_strides_and_padding_are_down_and_across() -> None:
    images, filters = torch.randn(1, 2, 9, 12), torch.randn(3, 2, 3, 2)
    settings = ((2, 3), (1, 2))
    torch.testing.assert_close(
        convolve(images, filters, None, *settings), torch.conv2d(images, filters, None, *settings)
    )


def test_dilation_is_torchs() -> None:
    images, filters = torch.randn(1, 2, 9, 12), torch.randn(3, 2, 3, 3)
    settings = ((1, 1), (0, 0), (2, 2))
    torch.testing.assert_close(
        convolve(images, filters, None, *settings), torch.conv2d(images, filters, None, *settings)
    )


@pytest.mark.parametrize("architecture", ["efficientnet-lite0", "efficientnet-b0", "mobilenet-v2"])
def test_nets_answer_as_before(architecture: str) -> None:
    torch.manual_seed(0)
    net = build_network(architecture, 64).eval()
    images = torch.randn(2, 3, 64, 64).to(memory_format=torch.channels_last)
    check_net(net, images)


@pytest.mark.parametrize(("index", "side"), [(0, 40), (1, 24), (2, 48)])
def test_face_detectors_nets_answer_as_before(index: int, side: int) -> None:
    images = torch.randint(0, 256, (2, side, side, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    check_net(load_mtcnn()[index], images)


def check_net(net: nn.Module, images: torch.Tensor) -> None:
    with torch.inference_mode():
        expected = net(images)
        with without_cudnn():
            found = net(images)
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-3)


def test_cudnn_is_left_alone_inside_and_used_again_outside(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []
    monkeypatch.setattr("dfdc.convolution.convolve", lambda *args: asked.append(torch.backends.cudnn.enabled))
    before = torch.backends.cudnn.enabled
    layer, images = nn.Conv2d(2, 2, 3), torch.randn(1, 2, 5, 5)
    with without_cudnn():
        layer(images)
        assert functional.relu(torch.tensor(-1.0)) == 0
    assert asked == [False]
    layer(images)
    assert len(asked) == 1 and torch.backends.cudnn.enabled == before


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_half_precision_on_cuda_is_cudnns() -> None:
    assert choose_device("cuda") == "cuda"
    torch.manual_seed(0)
    for channels, n_filters, side, stride, padding, groups in LAYERS.values():
        images = torch.randn(2, channels, 33, 40, device="cuda").half()
        filters = torch.randn(n_filters, channels // groups, side, side, device="cuda").half()
        settings = ((stride, stride), (padding, padding), (1, 1), groups)
        expected = torch.conv2d(images, filters, None, *settings)
        with without_cudnn():
            found = torch.conv2d(images, filters, None, *settings)
        torch.testing.assert_close(found, expected, atol=0.02, rtol=0.01)
