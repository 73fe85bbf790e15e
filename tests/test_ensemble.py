"""dfdc.runtime and dfdc.ensemble: fast paths that answer like the plain net."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from dfdc import runtime
from dfdc.crop import CropGeometry
from dfdc.ensemble import Ensemble, cut_crops
from dfdc.model import FrameModel, load_model, save_model
from dfdc.runtime import DeviceError, choose_device, compile_net
from dfdc.weights import Calibration, ModelSpec, WeightsError, WeightsFile, find_weights

CPU = torch.device("cpu")
SPEC = ModelSpec(architecture="efficientnet-lite0", input_size=32, crop=CropGeometry(size=48))


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> list[WeightsFile]:
    """Two nets that differ in weights, calibration and crop."""
    folder = tmp_path_factory.mktemp("weights")
    for seed, calibration in enumerate((Calibration(2.0, 0.5, 0.02, 0.96), Calibration(1.0, -1.0, 0.04, 0.98))):
        torch.manual_seed(seed)
        spec = replace(SPEC, calibration=calibration, crop=CropGeometry(side_ratio=1.0 + seed, size=48))
        save_model(FrameModel(spec), folder, name=f"net{seed}")
    return find_weights(folder)


@pytest.fixture(scope="module")
def faces() -> list[tuple[np.ndarray, np.ndarray]]:
    frame = np.random.default_rng(0).integers(0, 256, (90, 120, 3), dtype=np.uint8)
    return [(frame, np.array([x, 20, x + 40, 70], np.float32)) for x in range(0, 60, 3)]


def test_openvino_answers_like_torch(files: list[WeightsFile]) -> None:
    pytest.importorskip("openvino")
    model = load_model(files[0])
    crops = torch.randint(0, 256, (5, 3, 48, 48), dtype=torch.uint8)
    fast = compile_net(model, crops[:1])
    with torch.inference_mode():
        # Both compute in float32; sums are ordered differently.
        assert torch.allclose(fast(crops)[0], model(crops), atol=1e-3)


def test_any_size_takes_any_size() -> None:
    net = torch.nn.Conv2d(3, 2, 3).eval()
    fast = compile_net(net, torch.zeros(1, 3, 20, 20), any_size=True)
    for shape in ((1, 3, 8, 9), (4, 3, 30, 17)):
        images = torch.rand(shape)
        with torch.inference_mode():
            assert torch.allclose(fast(images)[0], net(images), atol=1e-5)


def test_without_openvino_torch_serves(files: list[WeightsFile], monkeypatch: pytest.MonkeyPatch, faces: list) -> None:
    fast = Ensemble(files, CPU).score(faces)
    monkeypatch.setattr(runtime, "openvino", None)
    assert "OpenVINO is not installed" in runtime.describe_runtime(CPU)
    assert Ensemble(files, CPU).score(faces) == pytest.approx(fast, abs=1e-3)


def test_net_that_openvino_cannot_take_is_run_by_torch(caplog: pytest.LogCaptureFixture) -> None:
    pytest.importorskip("openvino")

    class Odd(torch.nn.Module):
        def forward(self, images: torch.Tensor) -> torch.Tensor:
            return torch.special.zeta(images + 2, images + 2)

    fast = compile_net(Odd().eval(), torch.zeros(1, 1, 2, 2))
    assert "torch runs it" in caplog.text
    assert fast(torch.zeros(1, 1, 2, 2))[0][0, 0, 0, 0].item() == pytest.approx(np.pi**2 / 6 - 1, abs=1e-5)


def test_ensemble_is_the_mean_of_calibrated_logits(files: list[WeightsFile], faces: list) -> None:
    by_hand = []
    for file in files:
        crops = cut_crops(faces, file.spec.crop)
        with torch.inference_mode():
            model = load_model(file)
            raw = ((model(crops) + model(crops.flip(3))) / 2).numpy()
        by_hand.append(raw / file.spec.calibration.temperature + file.spec.calibration.bias)
    ensemble = Ensemble(files, CPU)
    assert ensemble.score(faces) == pytest.approx(np.mean(by_hand, axis=0), abs=1e-3)
    assert (ensemble.low, ensemble.high) == pytest.approx((0.03, 0.97))


def test_batched_equals_one_by_one(files: list[WeightsFile], faces: list) -> None:
    ensemble = Ensemble(files, CPU)
    one_by_one = np.concatenate([ensemble.score([face]) for face in faces])
    assert ensemble.score(faces) == pytest.approx(one_by_one, abs=1e-3)


def test_crops_of_another_size_are_refused_with_the_cure(files: list[WeightsFile]) -> None:
    with pytest.raises(WeightsError, match=r"crops of 32x32 px.*crops of 48 px: cut them anew"):
        Ensemble(files, CPU).score_crops(torch.zeros((2, 3, 32, 32), dtype=torch.uint8))


def test_no_faces_give_no_logits(files: list[WeightsFile]) -> None:
    assert Ensemble(files, CPU).score([]).shape == (0,)


def test_cuda_that_is_not_there_is_refused_with_the_cure(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert choose_device("auto") == CPU
    with pytest.raises(DeviceError, match="use --device cpu"):
        choose_device("cuda")


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_half_precision_on_cuda_answers_like_single_on_the_cpu(files: list[WeightsFile], faces: list) -> None:
    # Half precision keeps 11 bits through some fifty layers.
    assert Ensemble(files, torch.device("cuda")).score(faces) == pytest.approx(
        Ensemble(files, CPU).score(faces), abs=0.05
    )


def test_shipped_weights_answer_alike_in_both_runtimes(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("openvino")
    shipped = find_weights(Path(__file__).resolve().parent.parent / "weights")
    frame = np.random.default_rng(1).integers(0, 256, (300, 300, 3), dtype=np.uint8)
    faces = [(frame, np.array([20, 20, 200, 240], np.float32))]
    fast = Ensemble(shipped, CPU).score(faces)
    monkeypatch.setattr(runtime, "openvino", None)
    assert Ensemble(shipped, CPU).score(faces) == pytest.approx(fast, abs=2e-3)
