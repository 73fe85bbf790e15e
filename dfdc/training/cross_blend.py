"""Real crops -> cross-blends: the inner face of one person on the head of another, as in a face swap.

The donor is chosen among some candidates: its landmarks must lie near those of the target after a similarity transform,
and light must fall on both faces from the same side. See Li et al., "Face X-ray for More General Face Forgery
Detection", 2020, who use 68 landmarks; the detector gives five.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial

import cv2
import numpy as np
import torch
from tqdm import tqdm

from dfdc.data.dataset import CropSet
from dfdc.detect import DetectorSettings, FaceDetector
from dfdc.training.blend import OPAQUE, blend, draw_masks
from dfdc.training.fakes import Recipe, draw_seed, draw_treatment, name_crop, resize, to_picture, to_pixels

KIND, MANIPULATION = "cross-blends", "cross_blend"
# Number of candidates, and the largest ratio between the sizes of two faces in their sources.
CANDIDATES, MAX_RATIO = 64, 1.5
# Landmarks that lie further apart than this (root of the mean square, as a share of the crop's side) show another pose.
MAX_MISFIT = 0.03
# Among this many donors that are nearest in pose, the one in the most similar light is chosen. Light is compared on a
# grid of LIGHT x LIGHT mean values; a fine grid would find the same person in another clip.
POSES, LIGHT = 8, 3
# A crop ends close around its face. With a border of this share of the side the detector finds the face.
BORDER = 0.25
SEARCH = DetectorSettings(min_face_ratio=0.3, thresholds=(0.6, 0.7, 0.8))
# Width of the soft edge of the donor's crop, as a share of its side.
EDGE = 0.1
# Limits of the factor by which colours are spread to match those of the target.
SPREAD = (0.6, 1.6)


def plan_cross_blends(
    records: Sequence[Mapping[str, str]],
    crops: CropSet,
    identities: np.ndarray,
    detector: FaceDetector,
    *,
    seed: int,
    progress: bool = True,
) -> list[Recipe]:
    """Draw a donor for each real crop: another person of the same family, in a similar pose and of a similar size.

    Args:
        records: rows of the crops, see `name_crop`.
        crops: real crops of one split, with families; both the targets and the donors.
        identities: (N,) the person that each shows, from `dfdc.data.protocol.find_identities`.
        detector: finds the landmarks.
        seed: seed of the draws, together with the name of a crop.
        progress: draw a progress bar.

    Returns:
        Recipes for the crops in which a face is found and for which there is a donor.
    """
    landmarks = find_landmarks(crops, detector, progress=progress)
    found = np.isfinite(landmarks).all((1, 2))
    lights = np.stack([measure_light(_picture_of(crops, place)) for place in range(len(crops))])
    sides = np.array([crops.side_of(place) for place in range(len(crops))])
    recipes = []
    for place in np.flatnonzero(found).tolist():
        # A comparison with NaN, for an unknown size, is false: such a donor is allowed.
        far = np.abs(np.log(sides / sides[place])) > np.log(MAX_RATIO)
        allowed = found & (crops.families == crops.families[place]) & (identities != identities[place]) & ~far
        drawn = draw_seed(seed, KIND, name_crop(records[place]))
        donor = _choose_donor(place, np.flatnonzero(allowed), landmarks, lights, seed=drawn)
        if donor is None:
            continue
        sources = name_crop(records[place]), name_crop(records[donor])
        own = draw_seed(seed, KIND, *sources)
        make = partial(
            cross_blend,
            donor=_picture_of(crops, donor),
            matrix=fit_similarity(landmarks[donor], landmarks[place]),
            seed=own,
        )
        treatment = draw_treatment(float(np.fmin(sides[place], sides[donor])), crops.images.shape[-1], seed=own)
        recipes.append(Recipe(place, sources, MANIPULATION, own, treatment, make))
    return recipes


def _choose_donor(
    place: int, allowed: np.ndarray, landmarks: np.ndarray, lights: np.ndarray, *, seed: int
) -> int | None:
    """Choose a donor among the allowed crops by pose and light; None if none is near in pose."""
    chance = np.random.default_rng(seed)
    candidates = chance.choice(allowed, min(CANDIDATES, len(allowed)), replace=False)
    misfits = np.array([measure_misfit(landmarks[candidate], landmarks[place]) for candidate in candidates])
    near = [candidates[index] for index in np.argsort(misfits, kind="stable")[:POSES] if misfits[index] <= MAX_MISFIT]
    if not near:
        return None
    return int(min(near, key=lambda candidate: float(np.abs(lights[candidate] - lights[place]).mean())))


def _picture_of(crops: CropSet, place: int) -> np.ndarray:
    return crops.images[place].permute(1, 2, 0).numpy()


def measure_light(picture: np.ndarray) -> np.ndarray:
    """How light is distributed over a picture (S, S, 3) uint8: (`LIGHT`, `LIGHT`) grey values whose mean is 1."""
    light = cv2.resize(picture, (LIGHT, LIGHT), interpolation=cv2.INTER_AREA).mean(2)
    return light / max(light.mean(), 1.0)


def find_landmarks(crops: CropSet, detector: FaceDetector, *, progress: bool = True) -> np.ndarray:
    """Find the landmarks of the largest face of each crop.

    Returns:
        (N, 5, 2) x, y of eyes, nose and corners of the mouth as shares of the side; NaN where no face is found.
    """
    size = crops.images.shape[-1]
    border = round(size * BORDER)
    found = np.full((len(crops), 5, 2), np.nan)
    for place in tqdm(range(len(crops)), desc="landmarks", disable=not progress):
        crop = _picture_of(crops, place)
        framed = cv2.copyMakeBorder(crop, border, border, border, border, cv2.BORDER_REPLICATE)
        faces = detector.detect([framed], SEARCH)[0]
        if len(faces):
            largest = np.argmax(faces.boxes[:, 2] - faces.boxes[:, 0])
            found[place] = (faces.landmarks[largest] - border + 0.5) / size
    return found


def fit_similarity(points: np.ndarray, wanted: np.ndarray) -> np.ndarray:
    """Fit a rotation, scale and shift that map points (K, 2) to others by least squares; return (2, 3) float64."""
    # As complex numbers, a similarity transform is a multiplication and an addition.
    start, end = points @ [1, 1j], wanted @ [1, 1j]
    centred = start - start.mean()
    turn = np.vdot(centred, end - end.mean()) / np.vdot(centred, centred).real
    shift = end.mean() - turn * start.mean()
    return np.array([[turn.real, -turn.imag, shift.real], [turn.imag, turn.real, shift.imag]])


def measure_misfit(points: np.ndarray, wanted: np.ndarray) -> float:
    """The root of the mean square distance of points (K, 2) from others, after the best similarity transform."""
    matrix = fit_similarity(points, wanted)
    return float(np.sqrt(np.square(points @ matrix[:, :2].T + matrix[:, 2] - wanted).sum(1).mean()))


def cross_blend(real: np.ndarray, *, donor: np.ndarray, matrix: np.ndarray, seed: int) -> np.ndarray:
    """Blend a part of a donor's face onto a real.

    Args:
        real: (S, S, 3) uint8 RGB.
        donor: (T, T, 3) uint8 RGB.
        matrix: (2, 3) transform from the donor to the real, both in shares of the side.
        seed: seed of the mask.

    Returns:
        A new array of the shape and dtype of the real, which it equals outside of the mask.
    """
    side = len(real)
    donor = resize(donor, side)
    # OpenCV's coordinates are those of pixel centres.
    shift = matrix[:, 2] * side + (matrix[:, :2].sum(1) - 1) / 2
    moved = np.column_stack([matrix[:, :2], shift])
    placed = cv2.warpAffine(donor, moved, (side, side), flags=cv2.INTER_CUBIC, borderMode=cv2.BORDER_REPLICATE)
    # The mask ends before the donor's crop does.
    window = torch.from_numpy(cv2.warpAffine(_make_window(side), moved, (side, side)))
    pixels = to_pixels(real)
    masks = draw_masks(pixels, torch.Generator().manual_seed(seed), opacities=OPAQUE) * window
    placed = match_colours(placed, real, masks[0, 0].numpy())
    return to_picture(blend(to_pixels(placed), pixels, masks))


def _make_window(side: int) -> np.ndarray:
    """(side, side) float32: 1 inside, falling to 0 at the edges."""
    distance = (np.arange(side) + 0.5) / side
    ramp = np.clip(np.minimum(distance, 1 - distance) / EDGE, 0, 1).astype(np.float32)
    return np.outer(ramp, ramp)


def match_colours(picture: np.ndarray, wanted: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Give a picture the colours of another: the mean and the standard deviation of each channel of CIELAB.

    Args:
        picture, wanted: (S, S, 3) uint8 RGB.
        weights: (S, S) 0 or more: how much each pixel counts. Where all are 0, the picture is returned unchanged.

    Returns:
        A new array of the same shape and dtype. Its deviations change by factors within `SPREAD`.
    """
    total = weights.sum()
    if total == 0:
        return picture.copy()
    values = [cv2.cvtColor(np.float32(part) / 255, cv2.COLOR_RGB2LAB) for part in (picture, wanted)]
    means = [(part * weights[..., None]).sum((0, 1)) / total for part in values]
    deviations = [
        np.sqrt((np.square(part - mean) * weights[..., None]).sum((0, 1)) / total)
        for part, mean in zip(values, means, strict=True)
    ]
    factor = np.clip(deviations[1] / np.maximum(deviations[0], 1e-3), *SPREAD)
    matched = cv2.cvtColor(np.float32((values[0] - means[0]) * factor + means[1]), cv2.COLOR_LAB2RGB)
    return np.uint8(np.round(np.clip(matched, 0, 1) * 255))
