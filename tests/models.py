"""Untrained models whose answers depend on what they see."""

from __future__ import annotations

from typing import TypeVar

import torch
from torch import nn

from dfdc.audio import N_BANDS
from dfdc.networks import FrameModel, VoiceModel

Model = TypeVar("Model", FrameModel, VoiceModel)


def lively(model: Model) -> Model:
    """Set a new model's batch-norm statistics from noise, in place; otherwise its output hardly depends on the input.

    Returns:
        The model, in evaluation mode.
    """
    generator, size = torch.Generator().manual_seed(0), model.spec.input_size
    shape = (32, N_BANDS, size) if isinstance(model, VoiceModel) else (32, 3, size, size)
    noise = torch.randn(shape, generator=generator) * model.std.mean() + model.mean.mean()
    norms = [module for module in model.modules() if isinstance(module, nn.BatchNorm2d)]
    momenta = [norm.momentum for norm in norms]
    with torch.no_grad():
        for norm in norms:
            norm.momentum = 1.0
        model.train()(noise)
        for norm, momentum in zip(norms, momenta, strict=True):
            norm.momentum = momentum
        spread = model.eval()(noise).std()
        if spread <= 0.05:  # the outputs of the deepest models vary little; a larger last layer compensates for that
            last = [module for module in model.modules() if isinstance(module, nn.Linear)][-1]
            last.weight *= 0.2 / spread
        assert model(noise).std() > 0.05
    return model
