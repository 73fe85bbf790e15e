"""Training with fixed batch norms: folded into the filters before them, a step costs a CPU half as much.

Fine-tuning a trained net on a few epochs of other data keeps the statistics of its batch norms; then a norm is a scale
and a shift per channel. They are folded once a step, and the gradients are taken back to the net's own parameters, which
are those that training with the norms in evaluation mode would find. On one core small groups of crops are fastest: 4
crops of 224 px stay in its cache (docs/experiments.md).
"""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn

# In efficientnet-pytorch's nets: a filter bank and the norm behind it.
_BEHIND = {
    "_conv_stem": "_bn0",
    "_expand_conv": "_bn0",
    "_depthwise_conv": "_bn1",
    "_project_conv": "_bn2",
    "_conv_head": "_bn1",
}


class FoldedModel:
    """A model whose batch norms are fixed, and its copy without them in which gradients are found."""

    def __init__(self, model: nn.Module) -> None:
        """Wrap a model.

        Args:
            model: of an EfficientNet; its parameters get the gradients.

        Raises:
            ValueError: it has batch norms that do not stand behind filters of a known name.
        """
        self.model = model
        self.copy = copy.deepcopy(model).train()
        self.pairs: list[tuple[nn.Conv2d, nn.BatchNorm2d]] = []
        self.convolutions: list[nn.Conv2d] = []
        self._folded: list[Tensor] = []
        for owner, twin in zip(model.modules(), list(self.copy.modules()), strict=True):
            for name, behind in _BEHIND.items():
                convolution, norm = getattr(owner, name, None), getattr(owner, behind, None)
                if isinstance(convolution, nn.Conv2d) and isinstance(norm, nn.BatchNorm2d):
                    self.pairs.append((convolution, norm))
                    self.convolutions.append(getattr(twin, name))
                    setattr(twin, behind, nn.Identity())
        if any(isinstance(module, nn.BatchNorm2d) for module in self.copy.modules()):
            raise ValueError("fixed batch norms: only EfficientNets can be trained with them; train without")
        for convolution, (_, norm) in zip(self.convolutions, self.pairs, strict=True):
            convolution.bias = nn.Parameter(torch.zeros_like(norm.bias))
        self._share({id(module) for module in self.convolutions})

    def _share(self, folded: set[int]) -> None:
        """Let what is not folded be the model's own parameters."""
        owners = dict(self.model.named_modules())
        for name, module in self.copy.named_modules():
            if id(module) not in folded and name in owners:
                for key in list(module._parameters):
                    module._parameters[key] = owners[name]._parameters[key]

    def fold(self) -> None:
        """Take over the model's filters as they are now."""
        self._folded = []
        for convolution, (own, norm) in zip(self.convolutions, self.pairs, strict=True):
            weight, bias = _fuse(own, norm)
            self._folded += [weight, bias]
            convolution.weight.data.copy_(weight.detach())
            convolution.bias.data.copy_(bias.detach())
            convolution.weight.grad = convolution.bias.grad = None

    def take_back(self) -> None:
        """Add the gradients that the copy's filters got since `fold` to those of the model's parameters."""
        gradients = [tensor.grad for part in self.convolutions for tensor in (part.weight, part.bias)]
        torch.autograd.backward(self._folded, gradients)

    def __call__(self, crops: Tensor) -> Tensor:
        """Logits, as the model's."""
        return self.copy(crops)


def _fuse(convolution: nn.Conv2d, norm: nn.BatchNorm2d) -> tuple[Tensor, Tensor]:
    scale = norm.weight * torch.rsqrt(norm.running_var + norm.eps)
    bias = 0 if convolution.bias is None else convolution.bias
    return convolution.weight * scale.view(-1, 1, 1, 1), norm.bias + (bias - norm.running_mean) * scale
