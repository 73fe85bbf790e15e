"""dfdc.training.folding: folded batch norms give the same gradients as unfolded ones."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from dfdc.networks import FrameModel
from dfdc.training.folding import FoldedModel
from dfdc.weights import ModelSpec
from tests.models import lively


def without_chance(model: nn.Module) -> nn.Module:
    """Switch off dropped layers and units, so that two models compute the same."""
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    model.net._global_params = model.net._global_params._replace(drop_connect_rate=0.0)
    return model


@pytest.mark.parametrize("blocks", [(), (3, 11)], ids=["linear", "branched"])
@pytest.mark.parametrize("architecture", ["efficientnet-lite0", "efficientnet-b0"])
def test_folded_gradients_equal_those_of_fixed_norms(architecture: str, blocks: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    spec = ModelSpec(architecture, 32, statistics_blocks=blocks)
    model = without_chance(lively(FrameModel(spec))).double()  # no rounding
    if blocks:
        nn.init.normal_(model.net._statistics_fc.weight)
    crops = torch.rand(4, 3, 32, 32) * 255
    loss = model(crops).square().sum()
    loss.backward()
    wanted = {name: parameter.grad.clone() for name, parameter in model.named_parameters()}
    model.zero_grad()
    folded = FoldedModel(model)
    folded.fold()
    for part in crops.split(2):
        folded(part).square().sum().backward()
    folded.take_back()
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(parameter.grad, wanted[name], msg=name)


def test_folding_uses_the_models_current_parameters() -> None:
    torch.manual_seed(0)
    model = without_chance(lively(FrameModel(ModelSpec("efficientnet-lite0", 64))))
    folded, crops = FoldedModel(model, half=False), torch.rand(2, 3, 64, 64) * 255
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(1.05)
    folded.fold()
    torch.testing.assert_close(folded(crops), model(crops), rtol=1e-3, atol=1e-3)


def test_other_architectures_are_refused() -> None:
    with pytest.raises(ValueError, match="only EfficientNets"):
        FoldedModel(FrameModel(ModelSpec("mobilenet-v2", 64)))
