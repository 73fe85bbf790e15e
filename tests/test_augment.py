"""dfdc.training.augment: augmented crops keep shape and range, are reproducible, and JPEG losses are real ones."""

from __future__ import annotations

import io

import numpy as np
import pytest
import torch
from PIL import Image
from skimage.data import astronaut
from torch import Generator, Tensor

from dfdc.training.augment import (
    RECIPE,
    augment,
    augment_pairs,
    compress,
    cut_out,
    flip,
    mix_pairs,
    shift_scale_rotate,
    to_grey,
)

STEPS = list(dict.fromkeys(step for step, _ in RECIPE))


def seeded(seed: int = 0) -> Generator:
    return Generator().manual_seed(seed)


@pytest.fixture
def crops() -> Tensor:
    """(6, 3, 64, 64) float, whole numbers: neighbouring cuts of a portrait."""
    face = torch.from_numpy(astronaut()[40:200:2, 140:300:2].copy()).permute(2, 0, 1).float()
    return torch.stack([face[:, 2 * i : 2 * i + 64, i : i + 64] for i in range(6)])


@pytest.mark.parametrize("step", STEPS, ids=lambda step: step.__name__)
def test_steps_keep_shape_and_dtype_and_follow_their_generator(step, crops: Tensor) -> None:
    before = crops.clone()
    first, again, other = step(crops, seeded()), step(crops, seeded()), step(crops, seeded(1))
    assert first.shape == crops.shape and first.dtype == crops.dtype
    assert torch.equal(first, again)
    assert step in (flip, to_grey) or not torch.equal(first, other)
    assert torch.isfinite(first).all()
    assert not torch.equal(first, crops) and torch.equal(crops, before)


@pytest.mark.parametrize("side", [64, 50])
def test_augmented_crops_are_whole_numbers_in_range(side: int, crops: Tensor) -> None:
    crops = crops[..., :side, :side].repeat(20, 1, 1, 1)
    crops[::2] = crops[::2].gt(128) * 255.0  # the ends of the range, which steps could leave
    before = crops.clone()
    first = augment(crops, seeded())
    assert first.shape == crops.shape and first.dtype == crops.dtype
    assert first.min() == 0 and first.max() == 255 and torch.equal(first, first.round())
    assert torch.equal(first, augment(crops, seeded())) and not torch.equal(first, augment(crops, seeded(1)))
    assert torch.equal(crops, before)


def test_both_crops_of_a_pair_are_augmented_alike(crops: Tensor) -> None:
    crops = crops.repeat(20, 1, 1, 1)
    generator = seeded()
    reals, fakes = augment_pairs(crops, crops, generator)
    assert torch.equal(reals, fakes) and torch.equal(reals, augment(crops, seeded()))
    assert not torch.equal(reals, crops)
    again, others = augment_pairs(crops, crops.flip(0), generator)
    assert not torch.equal(again, reals) and not torch.equal(again, others)


@pytest.mark.parametrize("quality", [35, 50, 75, 95])
def test_jpeg_losses_equal_pillows(quality: int) -> None:
    pixels = astronaut()[:224, 110:334]
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "JPEG", quality=quality, subsampling="4:2:0")
    expected = np.asarray(Image.open(file)).astype(float)
    ours = compress(torch.from_numpy(pixels.copy()).permute(2, 0, 1)[None].float(), torch.tensor([quality]))
    ours = ours.clamp(0, 255).round()[0].permute(1, 2, 0).numpy()
    # Pillow rounds to whole levels between its steps. JPEG itself loses at least 1.9 levels.
    assert np.abs(ours - expected).mean() < 1
    assert np.abs(ours - pixels).mean() == pytest.approx(np.abs(expected - pixels).mean(), rel=0.1)


def test_jpeg_compresses_each_image_at_its_own_quality(crops: Tensor) -> None:
    together = compress(crops[:2], torch.tensor([40, 90]))
    alone = torch.cat([compress(crops[:1], torch.tensor([40])), compress(crops[1:2], torch.tensor([90]))])
    assert torch.allclose(together, alone, atol=1e-3)


def test_uniform_crops_stay_uniform_when_moved() -> None:
    """The border is repeated, so that no black corner reveals that a crop was augmented."""
    flat = torch.full((4, 3, 32, 32), 77.0)
    assert torch.allclose(shift_scale_rotate(flat, seeded()), flat, atol=1e-3)


def test_cut_out_hides_one_part_and_keeps_the_rest(crops: Tensor) -> None:
    hidden = cut_out(crops, seeded())
    for before, after in zip(crops, hidden, strict=True):
        changed = (before != after).any(0)
        rows, columns = torch.nonzero(changed.any(1)).flatten(), torch.nonzero(changed.any(0)).flatten()
        part = after[:, rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
        assert torch.allclose(part, before.mean((1, 2))[:, None, None].expand_as(part))
        assert 0.05 < changed.float().mean() < 0.6


def test_flip_mirrors_left_and_right(crops: Tensor) -> None:
    assert torch.equal(flip(crops, seeded())[..., 0], crops[..., -1])


def test_grey_images_show_luminance() -> None:
    red = torch.zeros((1, 3, 16, 16))
    red[:, 0] = 200
    assert torch.allclose(to_grey(red, seeded()), torch.full_like(red, 0.299 * 200))


def test_mixed_pairs_lie_between_fake_and_original() -> None:
    reals, fakes = torch.full((400, 3, 2, 2), 50.0), torch.full((400, 3, 2, 2), 200.0)
    mixed, share = mix_pairs(reals, fakes, 0.5, seeded())
    assert torch.allclose(mixed, 50 + 150 * share.view(-1, 1, 1, 1).expand_as(mixed))
    assert 150 < (share < 1).sum() < 250 and share.min() >= 0  # binomial(400, .5): five standard deviations
    untouched, share = mix_pairs(reals, fakes, 0.0, seeded())
    assert torch.equal(untouched, fakes) and (share == 1).all()
