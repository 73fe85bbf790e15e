"""dfdc.convolution: it equals torch's convolution for every layer of our models, and models on CUDA use it."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional

from dfdc.convolution import convolve, without_cudnn
from dfdc.errors import DeviceError
from dfdc.models import MTCNN
from dfdc.mtcnn import load_mtcnn
from dfdc.networks import FrameModel
from dfdc.runtime import choose_device, run_batches
from dfdc.torch_runtime import run_in_torch
from dfdc.weights import ModelSpec
from tests.gpu import FakeGpu, pretend_gpus
from tests.models import lively

# Number of channels, number of filters, side of the filters, stride, padding, groups.
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
def test_convolution_equals_torchs(layer: tuple[int, ...], memory: torch.memory_format, bias: bool) -> None:
    channels, n_filters, side, stride, padding, groups = layer
    torch.manual_seed(0)
    images = torch.randn(2, channels, 17, 24).to(memory_format=memory)
    filters = torch.randn(n_filters, channels // groups, side, side).to(memory_format=memory)
    offsets = torch.randn(n_filters) if bias else None
    settings = ((stride, stride), (padding, padding), (1, 1), groups)
    found = convolve(images, filters, offsets, *settings)
    torch.testing.assert_close(found, torch.conv2d(images, filters, offsets, *settings), atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize(
    ("side", "settings"),
    [((3, 2), ((2, 3), (1, 2))), ((3, 2), ((1, 1), (0, 2))), ((1, 3), ((1, 1), (0, 0))), ((3, 1), ((1, 1), (0, 0)))],
)
def test_filter_sides_strides_and_padding_are_vertical_then_horizontal(side: tuple[int, int], settings: tuple) -> None:
    images, filters = torch.randn(1, 2, 9, 12), torch.randn(3, 2, *side)
    torch.testing.assert_close(
        convolve(images, filters, None, *settings), torch.conv2d(images, filters, None, *settings)
    )


def test_dilated_convolution_equals_torchs() -> None:
    images, filters = torch.randn(1, 2, 9, 12), torch.randn(3, 2, 3, 3)
    settings = ((1, 1), (0, 0), (2, 2))
    torch.testing.assert_close(
        convolve(images, filters, None, *settings), torch.conv2d(images, filters, None, *settings)
    )


@pytest.mark.parametrize("architecture", ["efficientnet-lite0", "efficientnet-b0", "mobilenet-v2"])
def test_models_give_the_same_output_without_cudnn(architecture: str) -> None:
    torch.manual_seed(0)
    model = lively(FrameModel(ModelSpec(architecture, 64)))
    check_model(model, torch.rand(4, 3, 64, 64).to(memory_format=torch.channels_last) * 255)


@pytest.mark.parametrize(("index", "side"), [(0, 40), (1, 24), (2, 48)])
def test_mtcnn_gives_the_same_output_without_cudnn(index: int, side: int) -> None:
    images = torch.randint(0, 256, (2, side, side, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    check_model(load_mtcnn(MTCNN.read_bytes())[index], images)


def check_model(model: nn.Module, images: torch.Tensor) -> None:
    with torch.inference_mode():
        expected = model(images)
        with without_cudnn():
            found = model(images)
    for ours, theirs in zip(*((f if isinstance(f, tuple) else (f,)) for f in (found, expected)), strict=True):
        assert theirs.std(0).max() > 2e-4
        torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-3)


class Crowded(nn.Module):
    """A model with memory for `room` images at once; it records whether cuDNN may be used."""

    def __init__(self, room: int) -> None:
        super().__init__()
        self.room, self.cudnn, self.sizes = room, set(), []

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        self.cudnn.add(torch.backends.cudnn.enabled)
        self.sizes.append(len(images))
        if len(images) > self.room:
            raise torch.cuda.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
        return images.float().mean((1, 2, 3))


def test_models_on_cuda_run_without_cudnn(monkeypatch: pytest.MonkeyPatch) -> None:
    FakeGpu(monkeypatch)
    model = Crowded(room=8)
    run = run_in_torch(model, "cuda")
    assert run(np.full((3, 4, 4, 3), 7, np.uint8))[0].tolist() == [7.0] * 3
    assert model.sizes == [3] and model.cudnn == {False}


def test_gpu_without_memory_is_reported_and_its_cache_emptied(monkeypatch: pytest.MonkeyPatch) -> None:
    gpu, model = FakeGpu(monkeypatch), Crowded(room=2)
    run = run_in_torch(model, "cuda")
    images = np.zeros((3, 4, 4, 3), np.uint8)
    with pytest.raises(MemoryError, match=r"2\.00 GiB"):
        run(images)
    assert gpu.noted == ["emptied"]
    assert [len(part) for (part,) in run_batches(run, images, 3)] == [1, 1, 1]


def test_device_with_a_broken_cudnn_scores_but_does_not_train(monkeypatch: pytest.MonkeyPatch) -> None:
    pretend_gpus(monkeypatch, 1)
    whole = functional.conv2d

    def broken(*args: torch.Tensor) -> torch.Tensor:
        if torch.backends.cudnn.enabled:
            raise RuntimeError("cuDNN error: CUDNN_STATUS_NOT_INITIALIZED")
        return whole(*args)

    monkeypatch.setattr(functional, "conv2d", broken)
    assert choose_device("cuda") == "cuda"
    with pytest.raises(DeviceError, match="CUDNN_STATUS_NOT_INITIALIZED"):
        choose_device("cuda", cudnn=True)
    assert choose_device("auto", cudnn=True) == "cpu"


def test_block_without_cudnn_changes_no_output_and_restores_cudnn() -> None:
    torch.manual_seed(0)
    layer, images = nn.Conv2d(2, 3, 3, stride=2, padding=1), torch.randn(2, 2, 9, 8)
    before = torch.backends.cudnn.enabled
    expected = layer(images)
    with without_cudnn():
        assert not torch.backends.cudnn.enabled
        torch.testing.assert_close(layer(images), expected, atol=1e-5, rtol=1e-4)
        assert functional.relu(torch.tensor(-1.0)) == 0
    assert torch.backends.cudnn.enabled == before
    with pytest.raises(RuntimeError, match=r"channels|size"), without_cudnn():
        layer(torch.randn(2, 5, 9, 8))
    assert torch.backends.cudnn.enabled == before
    assert torch.equal(layer(images), expected)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_half_precision_on_cuda_equals_cudnns() -> None:
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
