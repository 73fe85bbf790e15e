"""Training with fixed batch norms, folded into the filters before them: steps on the CPU are three times as fast.

Fine-tuning on a few epochs of other data can keep the statistics of the batch norms. A norm is then only a scale and a
shift per channel. The norms are folded into the filters once per step, and the gradients are carried back to the
model's own parameters, so they equal those of training with the norms in evaluation mode. Three more measures
contribute to the speed, each measured on one core (docs/experiments.md): groups of 4 crops fit into the core's cache;
1x1 filters are matrix products in bfloat16 if the CPU supports it; and the gradient of a 5x5 depthwise filter is
assembled from those of 3x3 filters, for which a fast kernel exists.
"""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn
from torch.nn import functional

from dfdc.errors import SettingError

# The layers of efficientnet-pytorch: a convolution, and the norm that follows it.
_BEHIND = {
    "_conv_stem": "_bn0",
    "_expand_conv": "_bn0",
    "_depthwise_conv": "_bn1",
    "_project_conv": "_bn2",
    "_conv_head": "_bn1",
}


class FoldedModel:
    """A model with fixed batch norms, and its copy without norms, in which the gradients are computed."""

    def __init__(self, model: nn.Module, *, half: bool | None = None) -> None:
        """Wrap a model.

        Args:
            model: an EfficientNet; its parameters get the gradients.
            half: compute 1x1 filters in bfloat16; None if the CPU supports it.

        Raises:
            SettingError: the model has batch norms that do not follow a layer of a known name.
        """
        self.model = model
        self.copy = copy.deepcopy(model).train()
        half = torch.ops.mkldnn._is_mkldnn_bf16_supported() if half is None else half
        self._norms: list[tuple[nn.Conv2d, nn.BatchNorm2d]] = []
        self._filters: list[_Filters] = []
        self._folded: list[Tensor] = []
        owners = list(zip(model.named_modules(), list(self.copy.modules()), strict=True))
        for (_, owner), twin in owners:
            for name, behind in _BEHIND.items():
                convolution, norm = getattr(owner, name, None), getattr(owner, behind, None)
                if isinstance(convolution, nn.Conv2d) and isinstance(norm, nn.BatchNorm2d):
                    self._norms.append((convolution, norm))
                    self._filters.append(_Filters(convolution, half=half))
                    setattr(twin, name, self._filters[-1])
                    setattr(twin, behind, nn.Identity())
        for module in self.copy.modules():
            if isinstance(module, nn.ReLU6):  # in place, what follows a matrix product would be copied several times
                module.inplace = False
        if any(isinstance(module, nn.BatchNorm2d) for module in self.copy.modules()):
            raise SettingError("fixed batch norms: only EfficientNets can be trained with them; train without")
        for name, twin in self.copy.named_modules():  # the copy shares every parameter that is not folded
            if not isinstance(twin, _Filters | nn.Identity):
                own = model.get_submodule(name)
                for key in twin._parameters:
                    twin._parameters[key] = own._parameters[key]

    def fold(self) -> None:
        """Fold the model's current parameters into the copy's filters."""
        self._folded = []
        for filters, (convolution, norm) in zip(self._filters, self._norms, strict=True):
            weight, bias = _fuse(convolution, norm)
            self._folded += [weight, bias]
            filters.weight.data, filters.bias.data = weight.detach(), bias.detach()
            filters.weight.grad = filters.bias.grad = None

    def take_back(self) -> None:
        """Add the gradients that the copy's filters received since `fold` to those of the model's parameters."""
        gradients = [tensor.grad for filters in self._filters for tensor in (filters.weight, filters.bias)]
        torch.autograd.backward(self._folded, gradients)

    def __call__(self, crops: Tensor) -> Tensor:
        """The logits (N,) that the model gives in evaluation mode."""
        return self.copy(crops)


def _fuse(convolution: nn.Conv2d, norm: nn.BatchNorm2d) -> tuple[Tensor, Tensor]:
    scale = norm.weight * torch.rsqrt(norm.running_var + norm.eps)
    bias = 0 if convolution.bias is None else convolution.bias
    return convolution.weight * scale.view(-1, 1, 1, 1), norm.bias + (bias - norm.running_mean) * scale


class _Filters(nn.Module):
    """One of efficientnet-pytorch's convolutions, with a bias, computed in the way that is fastest for its kind."""

    def __init__(self, convolution: nn.Conv2d, *, half: bool) -> None:
        super().__init__()
        self.weight = nn.Parameter(convolution.weight.detach().clone())
        self.bias = nn.Parameter(self.weight.new_zeros(len(self.weight)))
        self.stride, self.groups, self.half = convolution.stride[0], convolution.groups, half
        self.padding = tuple(getattr(convolution.static_padding, "padding", (0, 0, 0, 0)))

    def forward(self, images: Tensor) -> Tensor:
        if self.weight.shape[2:] == (1, 1) and self.groups == 1:
            return self._multiply(images)
        if self.groups == len(self.weight):
            return _Depthwise.apply(images, self.weight, self.bias, self.stride, self.padding)
        images = functional.pad(images, self.padding)
        return functional.conv2d(images, self.weight, self.bias, self.stride, groups=self.groups)

    def _multiply(self, images: Tensor) -> Tensor:
        places, weight, bias = images.permute(0, 2, 3, 1), self.weight.flatten(1), self.bias
        if self.half and images.dtype == torch.float32:
            found = functional.linear(places.bfloat16(), weight.bfloat16(), bias.bfloat16()).float()
        else:
            found = functional.linear(places, weight, bias)
        return found.permute(0, 3, 1, 2)


class _Depthwise(torch.autograd.Function):
    """A depthwise convolution of images (N, C, H, W) with filters (C, 1, k, k); padding is left, right, top, bottom."""

    @staticmethod
    def forward(
        context, images: Tensor, weight: Tensor, bias: Tensor, stride: int, padding: tuple[int, int, int, int]
    ) -> Tensor:
        images = functional.pad(images, padding)
        context.save_for_backward(images, weight)
        context.stride, context.padding = stride, padding
        return functional.conv2d(images, weight, bias, stride, groups=len(weight))

    @staticmethod
    def backward(context, gradient: Tensor) -> tuple[Tensor, Tensor, Tensor, None, None]:
        images, weight = context.saved_tensors
        gradient = gradient.contiguous(memory_format=torch.channels_last)
        of_images, _, _ = _differentiate(gradient, images, weight, context.stride, (True, False, False))
        left, right, top, bottom = context.padding
        of_images = of_images[:, :, top : of_images.shape[2] - bottom, left : of_images.shape[3] - right]
        of_weight = _weight_gradient(gradient, images, weight, context.stride)
        return of_images, of_weight, gradient.sum((0, 2, 3)), None, None


def _weight_gradient(gradient: Tensor, images: Tensor, weight: Tensor, stride: int) -> Tensor:
    if weight.shape[-1] != 5:
        return _differentiate(gradient, images, weight, stride, (False, True, False))[1]
    # The first three and the last three offsets in each direction cover all five: four 3x3 filters cover a 5x5 filter.
    found, part = torch.empty_like(weight), weight[..., :3, :3].contiguous()
    height, width = (stride * (side - 1) + 3 for side in gradient.shape[2:])
    for top in (0, 2):
        for left in (0, 2):
            seen = images[:, :, top : top + height, left : left + width]
            seen = seen.contiguous(memory_format=torch.channels_last)
            _, own, _ = _differentiate(gradient, seen, part, stride, (False, True, False))
            found[:, :, top : top + 3, left : left + 3] = own
    return found


def _differentiate(
    gradient: Tensor, images: Tensor, weight: Tensor, stride: int, wanted: tuple[bool, bool, bool]
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    """The gradients of images, weight and bias; None for those that are not wanted."""
    return torch.ops.aten.convolution_backward(
        gradient, images, weight, None, [stride] * 2, [0, 0], [1, 1], False, [0, 0], len(weight), wanted
    )
