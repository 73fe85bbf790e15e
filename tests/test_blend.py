"""dfdc.training.blend: self-blended fakes differ from their reals inside a hull and nowhere else."""

from __future__ import annotations

import pytest
import torch
from skimage.data import astronaut
from torch import Generator, Tensor

from dfdc.training.blend import blend, draw_masks, self_blend

SIDE = 96


def seeded(seed: int = 0) -> Generator:
    return Generator().manual_seed(seed)


@pytest.fixture
def crops() -> Tensor:
    """(24, 3, 96, 96) float: neighbouring cuts of a portrait."""
    face = torch.from_numpy(astronaut()[20:200, 140:320].copy()).permute(2, 0, 1).float()
    return torch.stack([face[:, i : i + SIDE, 2 * i : 2 * i + SIDE] for i in range(24)])


def test_blending_leaves_the_picture_outside_the_mask_untouched(crops: Tensor) -> None:
    masks = draw_masks(crops, seeded())
    blended = blend(255 - crops, crops, masks)
    outside = (masks == 0).expand_as(crops)
    assert 0.2 < outside.float().mean() < 0.95
    assert torch.equal(blended[outside], crops[outside])
    whole = (masks == 1).expand_as(crops)
    assert whole.any() and torch.equal(blended[whole], (255 - crops)[whole])


def test_masks_are_soft_hulls_of_several_shapes_on_the_face(crops: Tensor) -> None:
    masks = draw_masks(crops.repeat(10, 1, 1, 1), seeded())
    assert masks.shape == (240, 1, SIDE, SIDE) and masks.min() == 0 and masks.max() == 1
    areas = (masks > 0).float().mean((1, 2, 3))
    assert areas.min() > 0.03 and areas.max() < 0.95 and areas.max() > 3 * areas.min()
    opacities = {round(value, 2) for value in masks.amax((1, 2, 3)).tolist()}
    assert {0.25, 0.5, 0.75, 1.0} <= opacities
    assert ((masks > 0.02) & (masks < 0.2)).flatten(1).any(1).all()  # no mask ends in a step


def test_the_soft_edge_is_symmetric(crops: Tensor) -> None:
    """On the outline a mask has half its opacity, so equal parts of the edge lie above and below one half."""
    masks = draw_masks(crops.repeat(10, 1, 1, 1), seeded())
    shares = masks / masks.amax((1, 2, 3), keepdim=True)
    edge = shares[(shares > 0.02) & (shares < 0.98)]
    assert edge.mean().item() == pytest.approx(0.5, abs=0.05)


@pytest.mark.parametrize("seed", range(6))
def test_self_blends_keep_shape_and_range_and_follow_their_generator(seed: int, crops: Tensor) -> None:
    before = crops.clone()
    target, made = self_blend(crops, seeded(seed))
    assert target.shape == made.shape == crops.shape and made.dtype == crops.dtype
    assert made.min() >= 0 and made.max() <= 255 and torch.equal(crops, before)
    assert torch.equal(made, self_blend(crops, seeded(seed))[1])
    assert not torch.equal(made, self_blend(crops, seeded(seed + 1))[1])
    # In the corners, where no hull reaches, a fake is its target, whichever of both was changed.
    assert torch.equal(made[..., 0, 0], target[..., 0, 0]) and not torch.equal(made, target)
    changed = (made - crops).abs().flatten(1).mean(1)
    assert (changed > 0).all() and changed.mean() < 60
