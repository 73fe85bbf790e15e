"""dfdc.training.upsampling: the kernels are those of known interpolations, and the trace is periodic."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch.nn import functional

from dfdc.data.dataset import CropSet
from dfdc.training.blend import OPAQUE, draw_masks
from dfdc.training.upsampling import KERNELS, STRENGTH, UNEVEN, double, plan_upsampled, upsample

SIDE = 64
pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture
def real() -> np.ndarray:
    return np.random.default_rng(0).integers(40, 216, (SIDE, SIDE, 3), np.uint8)


def test_kernels_repeat_pixels_and_interpolate() -> None:
    pixels = torch.rand(2, 3, 9, 7, generator=torch.Generator().manual_seed(0))
    repeated = pixels.numpy().repeat(2, 2).repeat(2, 3)
    assert np.allclose(double(pixels, KERNELS["nearest"]).numpy(), repeated, atol=1e-6)
    smooth = functional.interpolate(pixels, scale_factor=2, mode="bilinear", align_corners=False)
    assert torch.allclose(double(pixels, KERNELS["bilinear"]), smooth, atol=1e-6)


def test_uneven_kernel_leaves_a_checkerboard() -> None:
    """The gains of a kernel's halves are 1.1 and .9: .25 + .85 and .75 + .15."""
    made = double(torch.full((1, 1, 4, 4), 100.0), (0.25, 0.75, 0.85, 0.15))[0, 0]
    # Pixel 0 of a row sees the kernel's values 3 and 1, pixel 1 the values 2 and 0.
    line = torch.tensor([0.9, 1.1] * 4)
    assert torch.allclose(made, 100 * torch.outer(line, line), atol=1e-4)


def test_trace_of_a_flat_face_is_the_checkerboard_times_its_strength() -> None:
    flat = np.full((SIDE, SIDE, 3), 100, np.uint8)
    made = upsample(flat, kernel=(0.25, 0.75, 0.85, 0.15), halvings=1, strength=0.5, blended=False, seed=0)
    # Gains .9 * .9, .9 * 1.1 and 1.1 * 1.1, so half of -19, -1 and 21 levels, rounded to even numbers.
    assert np.array_equal(made[:2, :2, 0], [[90, 100], [100, 110]])
    assert np.array_equal(made, np.tile(made[:2, :2], (SIDE // 2, SIDE // 2, 1)))
    even = upsample(flat, kernel=KERNELS["nearest"], halvings=2, strength=0.5, blended=False, seed=0)
    assert np.array_equal(even, flat)


def test_trace_repeats_with_the_period_of_the_enlargement() -> None:
    """On a slope, repeated pixels make stairs: steps of 16 levels every 4 px, and flat treads up to 2 levels.

    torch's bicubic interpolation, which is subtracted, bends a slope a little.
    """
    slope = np.repeat(np.tile(np.arange(0, 4 * SIDE, 4, dtype=np.uint8), (SIDE, 1))[..., None], 3, 2)
    made = upsample(slope, kernel=KERNELS["nearest"], halvings=2, strength=1.0, blended=False, seed=0)
    steps = np.diff(made[SIDE // 2, 16:48, 0].astype(int))
    at_edge = np.arange(17, 48) % 4 == 0
    assert (steps[at_edge] > 12).all() and (np.abs(steps[~at_edge]) <= 2).all()


@pytest.mark.parametrize("seed", range(4))
def test_picture_outside_the_mask_is_untouched(seed: int, real: np.ndarray) -> None:
    made = upsample(real, kernel=KERNELS["nearest"], halvings=1, strength=1.0, blended=True, seed=seed)
    generator = torch.Generator().manual_seed(seed)
    outside = draw_masks(torch.zeros(1, 3, SIDE, SIDE), generator, opacities=OPAQUE)[0, 0].numpy() == 0
    assert outside.any() and np.array_equal(made[outside], real[outside])
    assert not np.array_equal(made, real)
    nothing = upsample(real, kernel=KERNELS["nearest"], halvings=1, strength=0.0, blended=True, seed=seed)
    assert np.array_equal(nothing, real)


def test_fakes_are_of_all_methods_whole_and_blended() -> None:
    images = torch.full((60, 3, 32, 32), 100, dtype=torch.uint8)
    names = [str(place) for place in range(60)]
    crops = CropSet(images, torch.zeros(60), torch.full((60,), -1), names)
    recipes = plan_upsampled([{"folder": "f", "video": name, "path": name} for name in names], crops, seed=0)
    methods = {f"upsampled_{method}{ending}" for method in KERNELS for ending in ("", "_blend")}
    assert {recipe.manipulation for recipe in recipes} == methods
    for recipe in recipes:
        options = recipe.make.keywords
        assert STRENGTH[0] <= options["strength"] <= STRENGTH[1] and options["halvings"] in (1, 2)
        first, second = (sum(options["kernel"][start::2]) for start in (0, 1))
        if recipe.manipulation.startswith("upsampled_transposed"):
            assert 2 * UNEVEN[0] <= abs(first - second) <= 2 * UNEVEN[1]
        else:
            assert first == second
