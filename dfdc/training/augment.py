"""Augmentation: crops -> other plausible crops, in batches, on any device, reproducible from a generator.

Every function takes and returns (N, 3, S, S) float RGB in 0..255 and draws its random numbers from a CPU generator, so
that the same seed gives the same crops on every device; only the individual values of noise differ.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from functools import cache
from types import MappingProxyType

import torch
from torch import Generator, Tensor
from torch.nn import functional

# ITU-T T.81, annex K: the luminance and chrominance tables that JPEG encoders scale by quality.
_LUMA = """16 11 10 16 24 40 51 61 12 12 14 19 26 58 60 55 14 13 16 24 40 57 69 56 14 17 22 29 51 87 80 62
18 22 37 56 68 109 103 77 24 35 55 64 81 104 113 92 49 64 78 87 103 121 120 101 72 92 95 98 112 100 103 99"""
_CHROMA = """17 18 24 47 99 99 99 99 18 21 26 66 99 99 99 99 24 26 56 99 99 99 99 99 47 66 99 99 99 99 99 99
99 99 99 99 99 99 99 99 99 99 99 99 99 99 99 99 99 99 99 99 99 99 99 99 99 99 99 99 99 99 99 99"""
_RGB_TO_YCC = ((0.299, 0.587, 0.114), (-0.168736, -0.331264, 0.5), (0.5, -0.418688, -0.081312))

# Maximum angle in degrees by which a tilted phone turns a clip.
MAX_ROLL = 20

# Parts of a face in brow-to-chin crops: left, top, right, bottom as shares of the side.
FACE_PARTS = (
    (0.08, 0.18, 0.92, 0.42),  # both eyes
    (0.30, 0.30, 0.70, 0.68),  # nose
    (0.22, 0.64, 0.78, 0.92),  # mouth
    (0.00, 0.00, 0.50, 1.00),  # one half
    (0.50, 0.00, 1.00, 1.00),  # the other
    (0.00, 0.00, 1.00, 0.45),  # upper part
    (0.00, 0.55, 1.00, 1.00),  # lower part
)


def uniform(n: int, low: float, high: float, like: Tensor, generator: Generator) -> Tensor:
    """Draw (n,) numbers between low and high with the dtype and device of another tensor."""
    return (torch.rand(n, generator=generator) * (high - low) + low).to(like, non_blocking=True)


def pick(n: int, probability: float, generator: Generator) -> Tensor:
    """Choose each of n items with the same probability; return int64 indices on the CPU."""
    return torch.nonzero(torch.rand(n, generator=generator) < probability).squeeze(1)


def flip(images: Tensor, generator: Generator) -> Tensor:
    """Mirror left and right."""
    return images.flip(3)


def shift_scale_rotate(images: Tensor, generator: Generator) -> Tensor:
    """Shift by up to 6 %, scale by up to 12 %, rotate by up to `MAX_ROLL` degrees: more than the errors of boxes."""
    n = len(images)
    scale = uniform(n, 0.88, 1.12, images, generator)
    angle = uniform(n, -math.radians(MAX_ROLL), math.radians(MAX_ROLL), images, generator)
    shift_x = uniform(n, -0.12, 0.12, images, generator)
    shift_y = uniform(n, -0.12, 0.12, images, generator)
    cos, sin = scale * angle.cos(), scale * angle.sin()
    theta = torch.stack([cos, -sin, shift_x, sin, cos, shift_y], 1).view(n, 2, 3)
    grid = functional.affine_grid(theta, list(images.shape), align_corners=False)
    return functional.grid_sample(images, grid, mode="bilinear", padding_mode="border", align_corners=False)


def rescale(images: Tensor, generator: Generator) -> Tensor:
    """Remove detail as in a small face: reduce the whole group to between a third and 9/10, and enlarge it again."""
    side = images.shape[-1]
    small = max(8, round(side * float(torch.rand((), generator=generator) * 0.55 + 0.35)))
    mode = ("bilinear", "bicubic")[int(torch.randint(2, (), generator=generator))]
    reduced = functional.interpolate(images, (small, small), mode=mode, antialias=True)
    return functional.interpolate(reduced, (side, side), mode=mode, antialias=False)


def blur(images: Tensor, generator: Generator) -> Tensor:
    """Blur the whole group with one Gaussian whose standard deviation is .4 to 1.6 pixels at a side of 224."""
    return _smooth(images, float(torch.rand((), generator=generator)) * 1.2 + 0.4)


def sharpen(images: Tensor, generator: Generator) -> Tensor:
    """Sharpen as phones do, with an unsharp mask; each image has its own strength of .2 to 1.5."""
    strength = uniform(len(images), 0.2, 1.5, images, generator).view(-1, 1, 1, 1)
    return images + strength * (images - _smooth(images, float(torch.rand((), generator=generator)) + 0.6))


def _smooth(images: Tensor, sigma: float) -> Tensor:
    """Blur with a Gaussian; sigma is in pixels at a side of 224."""
    sigma *= images.shape[-1] / 224
    reach = max(1, math.ceil(2.5 * sigma))
    line = torch.exp(-(torch.arange(-reach, reach + 1.0) ** 2) / (2 * sigma**2))
    line = (line / line.sum()).to(images, non_blocking=True).expand(3, 1, 1, -1)
    padded = functional.pad(images, (reach,) * 4, mode="replicate")
    return functional.conv2d(functional.conv2d(padded, line, groups=3), line.transpose(2, 3), groups=3)


def reduce_to(images: Tensor, sides: Tensor) -> Tensor:
    """Limit the detail of images to that of faces of a smaller size.

    Args:
        images: (N, 3, S, S) float RGB, 0..255.
        sides: (N,) sides of the faces in pixels; an image is unchanged if this is S or more, or NaN.

    Returns:
        A new tensor of the same shape and dtype.
    """
    images, full = images.clone(), images.shape[-1]
    for index in torch.nonzero(sides < full).flatten().tolist():
        small = max(16, round(float(sides[index])))
        reduced = functional.interpolate(images[index, None], (small, small), mode="bilinear", antialias=True)
        images[index] = functional.interpolate(reduced, (full, full), mode="bilinear")[0]
    return images


def colour(images: Tensor, generator: Generator) -> Tensor:
    """Change brightness, contrast, saturation and white balance."""
    n = len(images)
    contrast = uniform(n, 0.75, 1.25, images, generator).view(n, 1, 1, 1)
    brightness = uniform(n, -30, 30, images, generator).view(n, 1, 1, 1)
    saturation = uniform(n, 0.6, 1.4, images, generator).view(n, 1, 1, 1)
    balance = uniform(3 * n, 0.92, 1.08, images, generator).view(n, 3, 1, 1)
    grey = images.mean(1, keepdim=True)
    mean = grey.mean((2, 3), keepdim=True)
    return ((grey + (images - grey) * saturation - mean) * contrast + mean + brightness) * balance


def to_grey(images: Tensor, generator: Generator) -> Tensor:
    """Convert to grey: luminance in all three channels."""
    weights = torch.tensor(_RGB_TO_YCC[0]).to(images, non_blocking=True).view(1, 3, 1, 1)
    return (images * weights).sum(1, keepdim=True).expand_as(images)


def noise(images: Tensor, generator: Generator) -> Tensor:
    """Add Gaussian noise of 1 to 9 levels; each image has its own strength."""
    strength = uniform(len(images), 1, 9, images, generator).view(-1, 1, 1, 1)
    # Drawn on the device, because drawing a batch's noise on the CPU takes longer than the rest of a GPU's step.
    own = torch.Generator(images.device).manual_seed(int(torch.randint(2**62, (), generator=generator)))
    return images + torch.randn(images.shape, generator=own, device=images.device, dtype=images.dtype) * strength


def jpeg(images: Tensor, generator: Generator) -> Tensor:
    """Apply the losses of JPEG; each image has its own quality of 30 to 95."""
    return compress(images, torch.randint(30, 96, (len(images),), generator=generator))


def compress(images: Tensor, quality: Tensor) -> Tensor:
    """Apply the losses of JPEG: 4:2:0 chroma and the rounding of the DCT.

    Args:
        images: (N, 3, H, W) float RGB, 0..255.
        quality: (N,) int64, 1 to 100, as in encoders.

    Returns:
        A new tensor of the same shape and dtype; values may leave 0..255 a little.
    """
    height, width = images.shape[2:]
    images = functional.pad(images, (0, -width % 16, 0, -height % 16), mode="replicate")
    scale = torch.where(quality < 50, 5000 // quality, 200 - 2 * quality).to(images, non_blocking=True)
    to_ycc = torch.tensor(_RGB_TO_YCC).to(images, non_blocking=True)
    ycc = torch.einsum("kc,nchw->nkhw", to_ycc, images)
    luma = _quantise(ycc[:, :1] - 128, _LUMA, scale) + 128
    small = _quantise(functional.avg_pool2d(ycc[:, 1:], 2), _CHROMA, scale)
    chroma = functional.interpolate(small, scale_factor=2, mode="bilinear", align_corners=False)
    to_rgb = torch.linalg.inv(torch.tensor(_RGB_TO_YCC)).to(images, non_blocking=True)
    return torch.einsum("kc,nchw->nkhw", to_rgb, torch.cat([luma, chroma], 1))[..., :height, :width]


@cache
def _dct() -> Tensor:
    k = torch.arange(8.0)
    matrix = torch.cos((2 * k + 1) * k[:, None] * math.pi / 16) / 2
    matrix[0] /= math.sqrt(2)
    return matrix


def _quantise(planes: Tensor, table: str, scale: Tensor) -> Tensor:
    """Round the 8x8 DCT of planes (N, C, H, W) to the table's steps, scaled per image."""
    n, c, h, w = planes.shape
    dct = _dct().to(planes, non_blocking=True)
    base = torch.tensor([float(v) for v in table.split()]).to(planes, non_blocking=True)
    steps = ((base * scale[:, None] + 50) / 100).floor().clamp(1, 255).view(n, 1, 1, 1, 8, 8)
    blocks = planes.reshape(n, c, h // 8, 8, w // 8, 8).transpose(3, 4)
    rounded = (dct @ blocks @ dct.T / steps).round() * steps
    return (dct.T @ rounded @ dct).transpose(3, 4).reshape(n, c, h, w)


def cut_out(images: Tensor, generator: Generator) -> Tensor:
    """Cover one part of the face with the mean colour of the image, so that no single part decides."""
    side = images.shape[-1]
    jitter = torch.rand((len(images), 4), generator=generator) * 0.1 - 0.05
    parts = torch.tensor(FACE_PARTS)[torch.randint(len(FACE_PARTS), (len(images),), generator=generator)]
    boxes = ((parts + jitter).clamp(0, 1) * side).round().to(images.device, non_blocking=True)
    x0, y0, x1, y1 = boxes.view(-1, 4, 1, 1).unbind(1)
    place = torch.arange(side, device=images.device)
    across, down = (place >= x0) & (place < x1), (place.view(-1, 1) >= y0) & (place.view(-1, 1) < y1)
    return torch.where((across & down).unsqueeze(1), images.mean((2, 3), keepdim=True), images)


# In the order in which they happen to a real clip: face, camera, coding. Cut-outs come last.
RECIPE: tuple[tuple[Callable[[Tensor, Generator], Tensor], float], ...] = (
    (flip, 0.5),
    (shift_scale_rotate, 0.7),
    (colour, 0.5),
    (to_grey, 0.05),
    (blur, 0.1),
    (rescale, 0.2),
    (rescale, 0.2),
    (sharpen, 0.15),
    (noise, 0.15),
    (jpeg, 0.5),
    (cut_out, 0.4),
)
# The probabilities of the recipe, unchanged.
STANDARD: Mapping[str, float] = MappingProxyType({})


def augment(images: Tensor, generator: Generator, *, chances: Mapping[str, float] = STANDARD) -> Tensor:
    """Apply the recipe: each step to its own random share of the batch.

    Args:
        images: (N, 3, S, S) float RGB, 0..255.
        generator: on the CPU.
        chances: name of a step -> its probability, if it differs from the recipe's. This also changes the random
            numbers of the steps that follow.

    Returns:
        A new tensor of the same shape and dtype, whole numbers 0..255.
    """
    images = images.clone()
    for step, probability in RECIPE:
        chosen = pick(len(images), chances.get(step.__name__, probability), generator)
        if len(chosen):
            chosen = chosen.to(images.device, non_blocking=True)
            images[chosen] = step(images[chosen], generator).clamp(0, 255)
    return images.round()


def augment_pairs(
    reals: Tensor, fakes: Tensor, generator: Generator, *, chances: Mapping[str, float] = STANDARD
) -> tuple[Tensor, Tensor]:
    """Augment the real and the fake of each pair alike, so that they differ by the fake and not by light or blur.

    Args:
        reals, fakes: (N, 3, S, S) float RGB, 0..255; row i of both is a pair.
        generator, chances: see `augment`.

    Returns:
        The augmented reals and fakes.
    """
    state = generator.get_state()
    reals = augment(reals, generator, chances=chances)
    generator.set_state(state)
    return reals, augment(fakes, generator, chances=chances)


# Standard deviations, in pixels at a side of 224, of the blur that makes a sharper picture as soft as the other.
_SOFTER = (0.4, 0.55, 0.7, 0.9, 1.2, 1.6, 2.2)


def match_pairs(reals: Tensor, fakes: Tensor, generator: Generator) -> tuple[Tensor, Tensor]:
    """Match colour and sharpness within pairs of unrelated pictures, so that neither reveals the fake.

    A randomly chosen picture of each pair gets the mean and the spread of the other in each channel. The sharper one is
    blurred until its second differences are as small as those of the other.

    Args:
        reals, fakes: (N, 3, S, S) float RGB, 0..255; row i of both is a pair.
        generator: on the CPU.

    Returns:
        New tensors of the same shape and dtype.
    """
    follow = (torch.rand(len(reals), generator=generator) < 0.5).to(reals.device).view(-1, 1, 1, 1)
    (real_std, real_mean), (fake_std, fake_mean) = (
        torch.std_mean(images, (2, 3), keepdim=True) for images in (reals, fakes)
    )
    wanted_mean, wanted_std = torch.where(follow, real_mean, fake_mean), torch.where(follow, real_std, fake_std)
    reals = (reals - real_mean) * (wanted_std / real_std.clamp(min=1)) + wanted_mean
    fakes = (fakes - fake_mean) * (wanted_std / fake_std.clamp(min=1)) + wanted_mean
    reals, fakes = reals.clamp(0, 255), fakes.clamp(0, 255)
    for index in range(len(reals)):
        sharp = [_sharpness(images[index, None]) for images in (reals, fakes)]
        images = reals if sharp[0] > sharp[1] else fakes
        images[index] = _soften(images[index, None], min(sharp))[0]
    return reals, fakes


def _sharpness(images: Tensor) -> float:
    """The root mean square of second differences in the middle of the pictures."""
    quarter = images.shape[-1] // 4
    middle = images[:, :, quarter:-quarter, quarter:-quarter].mean(1)
    across, down = middle.diff(n=2, dim=2), middle.diff(n=2, dim=1)
    return float((across.square().mean() + down.square().mean()).sqrt())


def _soften(images: Tensor, sharpness: float) -> Tensor:
    """Blur an image to a given sharpness, by interpolation between two strengths of `_SOFTER`."""
    before, before_sharpness = images, _sharpness(images)
    for sigma in _SOFTER:
        blurred = _smooth(images, sigma)
        found = _sharpness(blurred)
        if found <= sharpness:
            share = (before_sharpness - sharpness) / max(before_sharpness - found, 1e-6)
            return before + min(max(share, 0.0), 1.0) * (blurred - before)
        before, before_sharpness = blurred, found
    return before


def mix_pairs(reals: Tensor, fakes: Tensor, probability: float, generator: Generator) -> tuple[Tensor, Tensor]:
    """Apply mixup to aligned pairs: some fakes become a weighted mean with their original, and so do their targets.

    Args:
        reals, fakes: (N, 3, S, S) float; row i of both shows the same moment.
        probability: probability that a pair is mixed.
        generator: on the CPU.

    Returns:
        The fakes, some of them mixed, and their targets (N,): the weight of the fake, drawn from Beta(.5, .5).
    """
    n = len(fakes)
    # Beta(.5, .5) is the arcsine law: sin^2 of a uniform angle.
    share = torch.sin(torch.rand(n, generator=generator) * math.pi / 2) ** 2
    share[torch.rand(n, generator=generator) >= probability] = 1.0
    share = share.to(fakes, non_blocking=True)
    weight = share.view(n, 1, 1, 1)
    return weight * fakes + (1 - weight) * reals, share
