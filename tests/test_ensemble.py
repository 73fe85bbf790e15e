"""dfdc.ensemble: the mean over models, batches, alternating views, and half precision."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from dfdc.crop import CropGeometry
from dfdc.ensemble import MIN_SHARED, Ensemble, cut_crops, share_views
from dfdc.errors import DeviceError, WeightsError
from dfdc.networks import VIEW_MARGIN, CropNet, FrameModel, TwoViewModel, load_model, resize_crops, save_model
from dfdc.runtime import choose_device
from dfdc.torch_runtime import run_in_torch
from dfdc.weights import Calibration, ModelSpec, WeightsFile, find_weights, open_weights
from tests.gpu import FakeGpu
from tests.models import lively

ROOT = Path(__file__).resolve().parent.parent
# How much a logit of these models may change if one pixel is rounded to the next level.
LEVEL = 5e-3
SPEC = ModelSpec(architecture="efficientnet-lite0", input_size=32, crop=CropGeometry(size=48))


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> list[WeightsFile]:
    """Two models that differ in weights, calibration and crop."""
    folder = tmp_path_factory.mktemp("weights")
    for seed, calibration in enumerate((Calibration(2.0, 0.5, 0.02, 0.96), Calibration(1.0, -1.0, 0.04, 0.98))):
        torch.manual_seed(seed)
        spec = replace(SPEC, calibration=calibration, crop=CropGeometry(side_ratio=1.0 + seed, size=48))
        save_model(lively(FrameModel(spec)), folder, name=f"network{seed}")
    return find_weights(folder)


@pytest.fixture(scope="module")
def ensemble(files: list[WeightsFile]) -> Ensemble:
    return Ensemble(files)


@pytest.fixture(scope="module")
def faces() -> list[tuple[np.ndarray, np.ndarray]]:
    frame = np.random.default_rng(0).integers(0, 256, (90, 120, 3), dtype=np.uint8)
    return [(frame, np.array([x, 20, x + 40, 70], np.float32)) for x in range(0, 60, 3)]


@pytest.fixture(scope="module")
def network(files: list[WeightsFile]) -> CropNet:
    return CropNet(load_model(files[0])).eval()


@pytest.fixture(scope="module")
def crops() -> np.ndarray:
    """Five crops, and five others for the second view."""
    return np.random.default_rng(0).integers(0, 256, (5, 48, 48, 6), dtype=np.uint8)


def answers(network: CropNet, crops: np.ndarray) -> np.ndarray:
    """(N, 2) by torch."""
    with torch.inference_mode():
        return torch.stack(network(torch.from_numpy(crops)), 1).numpy()


def views_by_hand(model: FrameModel, crops: np.ndarray, others: np.ndarray, *, margin: int) -> np.ndarray:
    """Logits (N, 2) of crops (N, S, S, 3) and of the reduced mirror images of other crops, with repeated edges."""
    images, mirrored = (torch.from_numpy(part).permute(0, 3, 1, 2).float() for part in (crops, others))
    small = resize_crops(mirrored, model.spec.input_size - 2 * margin).numpy()[..., ::-1]
    edges = np.pad(small, ((0, 0), (0, 0), (margin, margin), (margin, margin)), mode="edge")
    with torch.inference_mode():
        return np.stack([model(images).numpy(), model(torch.from_numpy(edges)).numpy()], 1)


def test_second_view_is_a_reduced_mirror_image(network: CropNet, crops: np.ndarray) -> None:
    margin = round(VIEW_MARGIN * SPEC.input_size)
    assert margin > 0
    halves = np.split(crops, 2, 3)
    assert answers(network, crops) == pytest.approx(
        views_by_hand(network.model.model, *halves, margin=margin), abs=LEVEL
    )
    assert answers(network, crops) != pytest.approx(views_by_hand(network.model.model, *halves, margin=0), abs=LEVEL)


def test_without_a_margin_the_mirror_image_has_full_size(network: CropNet, crops: np.ndarray) -> None:
    crops = crops[..., :3]
    with torch.inference_mode():
        answer = TwoViewModel(network.model.model, margin=0)(torch.from_numpy(crops).permute(0, 3, 1, 2)).numpy()
    by_hand = views_by_hand(network.model.model, crops, crops, margin=0).mean(1)
    assert answer == pytest.approx(by_hand, abs=LEVEL)


def test_many_faces_of_a_track_alternate_views_and_few_are_scored_in_both() -> None:
    assert share_views([]).shape == (0, 2)
    assert share_views([2, 1]).tolist() == [[0, 0], [1, 1], [2, 2]]
    assert share_views([MIN_SHARED - 1]).tolist() == [[i, i] for i in range(MIN_SHARED - 1)]
    assert share_views([1, MIN_SHARED, 1]).tolist() == [[0, 0], [1, 2], [3, 4], [5, 6], [7, 8], [9, 9]]
    assert share_views([MIN_SHARED + 1]).tolist()[-2:] == [[MIN_SHARED - 2, MIN_SHARED - 1], [MIN_SHARED] * 2]


def test_alternating_views_keep_each_faces_own_logit(files: list[WeightsFile], faces: list) -> None:
    alone = Ensemble(files[:1])
    calibration, margin = files[0].spec.calibration, round(VIEW_MARGIN * SPEC.input_size)
    crops = cut_crops(faces, files[0].spec.crop)
    both = calibration.logits(views_by_hand(load_model(files[0]), crops, crops, margin=margin))
    # Of 20 faces the first nine belong to one person, and the ninth has no neighbour left.
    expected = np.where(np.arange(20) % 2, both[:, 1], both[:, 0])
    expected[8:] = both[8:].mean(1)
    assert np.abs(both[:, 0] - both[:, 1]).max() > 10 * LEVEL
    assert alone.score(faces, lengths=[9, 7, 4]) == pytest.approx(expected, abs=LEVEL)
    assert alone.score(faces) == pytest.approx(both.mean(1), abs=LEVEL)


def test_ensemble_is_the_mean_of_calibrated_logits(files: list[WeightsFile], ensemble: Ensemble, faces: list) -> None:
    by_hand = []
    for file in files:
        crops, margin = cut_crops(faces, file.spec.crop), round(VIEW_MARGIN * file.spec.input_size)
        raw = views_by_hand(load_model(file), crops, crops, margin=margin).mean(1)
        by_hand.append(raw / file.spec.calibration.temperature + file.spec.calibration.bias)
    assert ensemble.score(faces) == pytest.approx(np.mean(by_hand, axis=0), abs=LEVEL)
    assert ensemble.bounds() == pytest.approx((0.03, 0.97))
    # The first model alone, as if time is short:
    assert ensemble.score(faces, n_models=1) == pytest.approx(by_hand[0], abs=LEVEL)
    assert ensemble.bounds(1) == pytest.approx((0.02, 0.96))


def test_weight_of_a_model_is_its_share_in_the_mean(files: list[WeightsFile], faces: list) -> None:
    first, second = (Ensemble([file]).score(faces) for file in files)
    heavy = [replace(files[0], spec=replace(files[0].spec, weight=3.0)), files[1]]
    together = Ensemble(heavy)
    assert together.score(faces) == pytest.approx((3 * first + second) / 4, abs=LEVEL)
    assert together.bounds() == pytest.approx(((3 * 0.02 + 0.04) / 4, (3 * 0.96 + 0.98) / 4))
    assert together.score(faces, n_models=1) == pytest.approx(first, abs=LEVEL)
    with pytest.raises(ValueError, match="weight is 0"):
        replace(files[0].spec, weight=0.0)


def test_batched_equals_one_by_one(ensemble: Ensemble, faces: list) -> None:
    one_by_one = np.concatenate([ensemble.score([face]) for face in faces])
    assert ensemble.score(faces) == pytest.approx(one_by_one, abs=1e-3)


def test_crops_of_another_size_are_refused_with_the_cure(ensemble: Ensemble) -> None:
    with pytest.raises(WeightsError, match=r"crops of 32x32 px.*crops of 48 px: cut them again"):
        ensemble.score_crops(torch.zeros((2, 3, 32, 32), dtype=torch.uint8))


def test_models_without_face_input_are_skipped(
    files: list[WeightsFile], ensemble: Ensemble, faces: list, tmp_path: Path
) -> None:
    voice = replace(SPEC, sees="sound", mean=(0.0,), std=(1.0,))
    other = open_weights(save_model(FrameModel(voice), tmp_path, name="voice"))
    assert Ensemble([other, *files]).score(faces) == pytest.approx(ensemble.score(faces))


def test_no_faces_give_no_logits(ensemble: Ensemble) -> None:
    assert ensemble.score([]).shape == (0,)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_logits_that_are_not_finite_are_an_error(files: list[WeightsFile], value: float) -> None:
    ensemble = Ensemble(files[:1], "cuda", models=[lambda images: (np.full(len(images), value),)])
    with pytest.raises(FloatingPointError, match="not finite"):
        ensemble.score_crops(np.zeros((2, 3, 48, 48), np.uint8))


def test_missing_cuda_device_is_refused_with_the_cure(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert choose_device("auto") == "cpu"
    with pytest.raises(DeviceError, match="use --device cpu"):
        choose_device("cuda")


def test_half_precision_agrees_with_single_precision(
    files: list[WeightsFile], faces: list, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Both run in torch, so that only the precision differs.
    models = [run_in_torch(CropNet(load_model(file)).eval(), "cpu") for file in files]
    single = Ensemble(files, models=models).score(faces)
    gpu = FakeGpu(monkeypatch)
    half = Ensemble(files, "cuda").score(faces)
    assert gpu.noted and np.ptp(single) > 40 * LEVEL
    assert half == pytest.approx(single, abs=2 * LEVEL)
    assert np.abs(half - single).max() > 1e-4  # .007; in single precision .000002


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_half_precision_on_cuda_agrees_with_single_precision_on_the_cpu(files: list[WeightsFile], faces: list) -> None:
    # Half precision keeps 11 bits through some fifty layers.
    assert Ensemble(files, "cuda").score(faces) == pytest.approx(Ensemble(files).score(faces), abs=0.05)
