"""dfdc.training.cross_blend: the face of another person of the same family, placed by landmarks, in matched colours."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from skimage.color import rgb2lab
from skimage.data import astronaut
from skimage.transform import SimilarityTransform

from dfdc.data.dataset import CropSet
from dfdc.detect import DetectorSettings, FaceDetector
from dfdc.faces import Faces
from dfdc.training.blend import OPAQUE, draw_masks
from dfdc.training.cross_blend import (
    cross_blend,
    find_landmarks,
    fit_similarity,
    match_colours,
    measure_light,
    measure_misfit,
    plan_cross_blends,
)
from dfdc.training.fakes import draw_treatment

POINTS = np.array([[0.3, 0.29], [0.72, 0.29], [0.51, 0.49], [0.34, 0.73], [0.68, 0.73]])
SIDE = 64
pytestmark = pytest.mark.usefixtures("one_thread")


def shift(x: float, y: float) -> np.ndarray:
    """A transform that moves by shares of the side."""
    return np.array([[1.0, 0.0, x], [0.0, 1.0, y]])


class FixedDetector:
    """Finds in every picture a face at the same place, but none where the first pixel is black."""

    def detect(self, frames: list[np.ndarray], settings: DetectorSettings) -> list[Faces]:
        found = []
        for frame in frames:
            landmarks = np.float32(POINTS * len(frame))[None]
            boxes = np.float32([[0, 0, len(frame), len(frame)]])
            count = int(frame[0, 0].any())
            found.append(Faces(boxes[:count], np.ones(count, np.float32), landmarks[:count]))
        return found


def make_crops(families: list[str], sides: list[float]) -> CropSet:
    images = torch.full((len(families), 3, 32, 32), 100, dtype=torch.uint8)
    nobody = torch.full((len(families),), -1)
    names = [str(place) for place in range(len(families))]
    known = torch.tensor(sides)
    return CropSet(images, torch.zeros(len(families)), nobody, names, families=np.array(families), sides=known)


def plan(crops: CropSet, identities: list[str], *, seed: int = 0) -> dict[int, int]:
    """The donor of each target."""
    records = [{"folder": "f", "video": name, "path": name} for name in crops.videos]
    recipes = plan_cross_blends(records, crops, np.array(identities), FixedDetector(), seed=seed, progress=False)
    return {recipe.place: int(recipe.sources[1].split("/")[-1]) for recipe in recipes}


def test_donor_is_another_person_of_the_family_and_size() -> None:
    crops = make_crops(["a", "a", "a", "a", "b", "b"], [100.0, 100, 140, 160, 100, 100])
    seen: dict[int, set[int]] = {}
    for seed in range(30):
        for target, donor in plan(crops, ["Ann", "Ann", "Bob", "Cay", "Dan", "Dan"], seed=seed).items():
            seen.setdefault(target, set()).add(donor)
    # 160 is more than 1.5 times 100; the two of family b are the same person.
    assert seen == {0: {2}, 1: {2}, 2: {0, 1, 3}, 3: {2}}


def test_donor_of_unknown_size_is_allowed_and_one_without_a_face_is_not() -> None:
    crops = make_crops(["a", "a", "a"], [100.0, float("nan"), 100.0])
    crops.images[2] = 0
    assert plan(crops, ["Ann", "Bob", "Cay"]) == {0: 1, 1: 0}


def test_donor_is_the_nearest_in_pose() -> None:
    """Among persons whose noses point elsewhere, the one whose nose points nearly as the target's is chosen."""
    noses = {0: 0.0, 1: 0.15, 2: 0.02, 3: -0.15, 4: -0.13}

    class Noses:
        def __init__(self) -> None:
            self.place = 0

        def detect(self, frames: list[np.ndarray], settings: DetectorSettings) -> list[Faces]:
            points = POINTS + np.outer([0, 0, 1, 0, 0], [noses[self.place], 0])
            self.place += 1
            return [Faces(np.float32([[0, 0, 9, 9]]), np.float32([1]), np.float32(points * len(frames[0]))[None])]

    crops = make_crops(["a"] * 5, [100.0] * 5)
    records = [{"folder": "f", "video": name, "path": name} for name in crops.videos]
    names = np.array(crops.videos)
    recipes = plan_cross_blends(records, crops, names, Noses(), seed=0, progress=False)
    donors = {recipe.place: recipe.sources[1][-1] for recipe in recipes}
    assert donors == {0: "2", 2: "0", 3: "4", 4: "3"}  # nobody looks as 1 does


def test_donor_in_the_same_light_is_preferred() -> None:
    """All have the same pose; the right half of some is dark, and of others the left half."""
    crops = make_crops(["a"] * 6, [100.0] * 6)
    for place in range(6):
        half = slice(16, 32) if place % 2 else slice(0, 16)
        crops.images[place, :, :, half] = 60 + 5 * place
    donors = plan(crops, list("abcdef"))
    assert len(donors) == 6 and all(donor % 2 == target % 2 for target, donor in donors.items())


def test_light_is_relative_to_its_mean() -> None:
    picture = np.zeros((30, 30, 3), np.uint8)
    picture[:, 20:] = 90
    picture[10:20, :10] = 30
    # The mean of nine values is (3 * 90 + 30) / 9 = 33.3.
    assert measure_light(picture) == pytest.approx(np.array([[0, 0, 2.7], [0.9, 0, 2.7], [0, 0, 2.7]]))
    assert measure_light(picture // 2) == pytest.approx(measure_light(picture))
    assert not measure_light(np.zeros((30, 30, 3), np.uint8)).any()


def test_landmarks_are_shares_of_the_crop() -> None:
    """In a picture of a face, on which the detector was tried alone, and in a crop of it that ends at the face."""
    portrait, detector = astronaut(), FaceDetector()
    alone = detector.detect([portrait])[0].landmarks[0]
    left, top, side = 170, 60, 112
    crop = torch.from_numpy(portrait[top : top + side, left : left + side].copy()).permute(2, 0, 1)[None]
    crops = CropSet(crop, torch.zeros(1), torch.full((1,), -1), ["a"])
    found = find_landmarks(crops, detector, progress=False)[0] * side + [left, top]
    assert np.abs(found - alone).max() < 5
    blank = CropSet(torch.full_like(crop, 127), torch.zeros(1), torch.full((1,), -1), ["a"])
    assert np.isnan(find_landmarks(blank, detector, progress=False)).all()


def test_similarity_transform_equals_that_of_scikit_image() -> None:
    generator = np.random.default_rng(0)
    for _ in range(5):
        start, end = generator.uniform(0, 1, (2, 5, 2))
        expected = SimilarityTransform()
        expected.estimate(start, end)
        # scikit-image also reflects if this fits better, and we do not; then the determinant is negative.
        if np.linalg.det(expected.params[:2, :2]) > 0:
            assert np.allclose(fit_similarity(start, end), expected.params[:2], atol=1e-9)
            errors = expected.residuals(start, end)
            assert measure_misfit(start, end) == pytest.approx(np.sqrt(np.square(errors).mean()))


def test_moved_turned_and_scaled_landmarks_fit() -> None:
    turned = 0.8 * POINTS @ np.array([[0.0, 1.0], [-1.0, 0.0]]) + np.array([0.9, 0.1])
    assert measure_misfit(turned, POINTS) == pytest.approx(0, abs=1e-9)
    assert fit_similarity(POINTS, POINTS + np.array([0.25, 0.5])) == pytest.approx(shift(0.25, 0.5))


@pytest.mark.parametrize("seed", range(6))
def test_picture_outside_the_mask_is_untouched(seed: int) -> None:
    generator = np.random.default_rng(seed)
    real, donor = generator.integers(0, 256, (2, SIDE, SIDE, 3), np.uint8)
    made = cross_blend(real, donor=donor, matrix=shift(0, 0), seed=seed)
    mask = draw_masks(torch.zeros(1, 3, SIDE, SIDE), torch.Generator().manual_seed(seed), opacities=OPAQUE)[0, 0] > 0
    outside = ~mask.numpy()
    assert outside.mean() > 0.1 and np.array_equal(made[outside], real[outside])
    assert (made != real).any(2)[SIDE // 2 - 8 : SIDE // 2 + 16, SIDE // 2].mean() > 0.5


@pytest.mark.parametrize(
    ("matrix", "place"),
    [
        (shift(0, 0), (30, 33)),
        (shift(4 / SIDE, 6 / SIDE), (34, 39)),
        # Turned by 90 degrees about the middle, clockwise: x becomes 63 - y, and y becomes x.
        (np.array([[0.0, -1.0, 1.0], [1.0, 0.0, 0.0]]), (30, 30)),
    ],
)
def test_donor_is_placed_by_the_matrix(matrix: np.ndarray, place: tuple[int, int]) -> None:
    donor = np.full((SIDE, SIDE, 3), 60, np.uint8)
    donor[33, 30] = 255  # x 30, y 33
    real = np.random.default_rng(0).integers(90, 110, (SIDE, SIDE, 3), np.uint8)
    seeds = (seed for seed in range(99) if _covers(seed, (30, 30), (30, 33), (34, 39)))
    made = cross_blend(real, donor=donor, matrix=matrix, seed=next(seeds))
    brightest = np.unravel_index(made.sum(2).argmax(), (SIDE, SIDE))
    assert brightest[::-1] == place


def _covers(seed: int, *places: tuple[int, int]) -> bool:
    mask = draw_masks(torch.zeros(1, 3, SIDE, SIDE), torch.Generator().manual_seed(seed), opacities=OPAQUE)[0, 0]
    return all(float(mask[y, x]) > 0.99 for x, y in places)


def test_mask_ends_before_the_donors_crop_does() -> None:
    """A donor that is moved to the right leaves the left of the real as it is, and no streaks of its own edge."""
    real, donor = np.full((SIDE, SIDE, 3), 200, np.uint8), np.full((SIDE, SIDE, 3), 50, np.uint8)
    donor[:, :2] = (255, 0, 0)
    real[::2] = 180
    for seed in range(8):
        made = cross_blend(real, donor=donor, matrix=shift(0.5, 0.0), seed=seed)
        assert np.array_equal(made[:, :31], real[:, :31])


def test_matched_colours_have_the_mean_and_deviation_of_the_wanted_ones() -> None:
    generator = np.random.default_rng(0)
    picture = generator.normal((110, 120, 130), (20, 15, 18), (SIDE, SIDE, 3)).clip(0, 255).astype(np.uint8)
    wanted = generator.normal((150, 110, 100), (16, 18, 15), (SIDE, SIDE, 3)).clip(0, 255).astype(np.uint8)
    weights = np.zeros((SIDE, SIDE))
    weights[10:50, 20:60] = 1
    matched = match_colours(picture, wanted, weights)
    found, expected = (rgb2lab(part)[10:50, 20:60].reshape(-1, 3) for part in (matched, wanted))
    assert np.abs(found.mean(0) - expected.mean(0)).max() < 0.5
    assert np.abs(found.std(0) / expected.std(0) - 1).max() < 0.05
    assert np.array_equal(match_colours(picture, wanted, np.zeros((SIDE, SIDE))), picture)


def test_treatment_follows_the_smaller_face() -> None:
    crops = make_crops(["a", "a"], [180.0, 130.0])
    records = [{"folder": "f", "video": name, "path": name} for name in crops.videos]
    for recipe in plan_cross_blends(records, crops, np.array(["Ann", "Bob"]), FixedDetector(), seed=1, progress=False):
        assert recipe.treatment == draw_treatment(130.0, 32, seed=recipe.seed)
