"""dfdc.models: models on the CPU give the outputs of torch without importing it, and match their weights files."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.numpy import load, save
from scipy.optimize import linear_sum_assignment
from torch.nn import functional

from dfdc.assignment import assign
from dfdc.crop import CropGeometry
from dfdc.errors import WeightsError
from dfdc.models import MTCNN, open_detector, open_heat_map, open_models
from dfdc.models.graphs import weigh_pixels
from dfdc.mtcnn import load_mtcnn
from dfdc.networks import CropNet, PairNet, VoiceModel, build_model, load_model, save_model
from dfdc.runtime import may_have_cuda
from dfdc.weights import ARCHITECTURES, ModelSpec, WeightsFile, find_weights, open_weights
from tests.models import lively

ROOT = Path(__file__).resolve().parent.parent
pytest.importorskip("openvino")
# Both compute in single precision; sums are ordered differently.
CLOSE = 1e-3


def write_model(folder: Path, spec: ModelSpec, *, name: str = "model") -> WeightsFile:
    torch.manual_seed(0)
    return open_weights(save_model(lively(build_model(spec)), folder, name=name))


def smooth_pictures(n: int, size: int, channels: int) -> np.ndarray:
    """(N, size, size, channels) uint8: enlarged noise, which is smooth, as faces are."""
    coarse = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (n, channels, 9, 9)).astype(np.float32))
    fine = functional.interpolate(coarse, (size, size), mode="bilinear").round().byte()
    return fine.permute(0, 2, 3, 1).contiguous().numpy()


def by_torch(module: torch.nn.Module, values: np.ndarray) -> list[np.ndarray]:
    with torch.inference_mode():
        answers = module(torch.from_numpy(values))
    return [answer.numpy() for answer in (answers if isinstance(answers, tuple) else (answers,))]


def check(ours: tuple[np.ndarray, ...], theirs: list[np.ndarray]) -> None:
    for mine, other in zip(ours, theirs, strict=True):
        assert mine.dtype == np.float32 and np.ptp(other) > 10 * CLOSE
        assert mine == pytest.approx(other, abs=CLOSE)


# Parity with torch


# The larger EfficientNets have the same blocks as B0 to B2, only more and wider ones.
LARGE = {f"efficientnet-b{number}" for number in range(3, 8)}


@pytest.mark.parametrize(
    "architecture", [pytest.param(name, marks=[pytest.mark.slow] * (name in LARGE)) for name in ARCHITECTURES]
)
def test_every_architecture_gives_the_outputs_of_torch(architecture: str, tmp_path: Path, one_thread: None) -> None:
    # 33 px: TF's "same" padding of an odd side differs from that of an even one, layer by layer.
    file = write_model(tmp_path, ModelSpec(architecture, 33, crop=CropGeometry(size=48)))
    (network,) = open_models([file], threads=1)
    crops = smooth_pictures(3, 48, 6)
    check(network(crops), by_torch(CropNet(load_model(file)).eval(), crops))


def write_branched(folder: Path, architecture: str, blocks: tuple[int, ...]) -> WeightsFile:
    """A model with a second branch, whose last layer is not zero, as it is before training."""
    torch.manual_seed(0)
    model = lively(build_model(ModelSpec(architecture, 33, crop=CropGeometry(size=48), statistics_blocks=blocks)))
    torch.nn.init.normal_(model.net._statistics_fc.weight)
    return open_weights(save_model(model, folder, name="branched"))


@pytest.mark.parametrize("blocks", [(11,), (0, 5, 15)])
@pytest.mark.parametrize("architecture", ["efficientnet-lite0", "efficientnet-b0"])
def test_second_branch_gives_the_outputs_of_torch(
    architecture: str, blocks: tuple[int, ...], tmp_path: Path, one_thread: None
) -> None:
    file = write_branched(tmp_path, architecture, blocks)
    assert file.spec.statistics_blocks == blocks
    (network,) = open_models([file], threads=1)
    crops, model = smooth_pictures(3, 48, 6), load_model(file)
    check(network(crops), by_torch(CropNet(model).eval(), crops))
    with_branch = model(torch.from_numpy(crops[..., :3]).permute(0, 3, 1, 2))
    torch.nn.init.zeros_(model.net._statistics_fc.weight)
    assert (model(torch.from_numpy(crops[..., :3]).permute(0, 3, 1, 2)) - with_branch).abs().min() > 0.1


def test_heat_map_of_a_model_with_a_second_branch_has_the_logit_as_its_mean(tmp_path: Path) -> None:
    file = write_branched(tmp_path, "efficientnet-lite0", (5, 11))
    crops = smooth_pictures(2, 48, 3)
    with torch.inference_mode():
        logits = load_model(file)(torch.from_numpy(crops).permute(0, 3, 1, 2)).numpy()
    assert open_heat_map(file, threads=1)(crops)[0].mean((1, 2)) == pytest.approx(logits, abs=CLOSE)


def test_block_that_the_network_lacks_is_refused(tmp_path: Path) -> None:
    file = write_branched(tmp_path, "efficientnet-lite0", (11,))
    spec = replace(file.spec, statistics_blocks=(11, 16))
    path = save_model(load_model(file), tmp_path, name="misfit", spec=spec)
    with pytest.raises(WeightsError, match=r"misfit-.*it has no block 16"):
        open_models([open_weights(path)])
    with pytest.raises(WeightsError, match=r"misfit-.*statistics_blocks has 16"):
        load_model(open_weights(path))


def test_linear_head_is_not_stated_so_that_older_versions_can_read_the_file() -> None:
    assert "statistics_blocks" not in ModelSpec("efficientnet-lite0", 32).to_json()


@pytest.mark.parametrize("file", find_weights(ROOT / "weights"), ids=lambda file: file.path.name)
def test_shipped_models_give_the_outputs_of_torch(file: WeightsFile) -> None:
    (network,) = open_models([file])
    crops = smooth_pictures(2, file.spec.crop.size, 6)
    check(network(crops), by_torch(CropNet(load_model(file)).eval(), crops))


@pytest.mark.parametrize("crop_size", [32, 40, 64])
def test_motion_models_give_the_outputs_of_torch(crop_size: int, tmp_path: Path) -> None:
    file = write_model(tmp_path, ModelSpec("efficientnet-lite0", 32, sees="motion", crop=CropGeometry(size=crop_size)))
    (network,) = open_models([file], threads=1)
    pairs = smooth_pictures(4, crop_size, 6)
    check(network(pairs), by_torch(PairNet(load_model(file)).eval(), pairs))


def test_voice_models_give_the_outputs_of_torch(tmp_path: Path) -> None:
    spec = ModelSpec("efficientnet-b0", 96, sees="sound", mean=(-60.0,), std=(15.0,))
    file = write_model(tmp_path, spec)
    (network,) = open_models([file], threads=1)
    spectra = np.random.default_rng(0).normal(-60, 15, (3, 64, 96)).astype(np.float32)
    model = load_model(file)
    assert isinstance(model, VoiceModel)
    check(network(spectra), by_torch(model, spectra))


@pytest.mark.parametrize(("number", "shape"), [(0, (37, 52)), (0, (12, 12)), (1, (24, 24)), (2, (48, 48))])
def test_detector_networks_give_the_outputs_of_torch(number: int, shape: tuple[int, int]) -> None:
    images = np.random.default_rng(0).integers(0, 256, (5, *shape, 3), dtype=np.uint8)
    ours = open_detector(threads=1)[number](images)
    for mine, theirs in zip(ours, by_torch(load_mtcnn(MTCNN.read_bytes())[number], images), strict=True):
        assert mine == pytest.approx(theirs, abs=1e-5)


def test_detector_weights_equal_those_of_the_package() -> None:
    package = pytest.importorskip("facenet_pytorch")
    tensors = load(MTCNN.read_bytes())
    for name in ("pnet", "rnet", "onet"):
        theirs = torch.load(Path(package.__file__).with_name("data") / f"{name}.pt", weights_only=True)
        ours = {key.removeprefix(f"{name}."): value for key, value in tensors.items() if key.startswith(name)}
        assert ours.keys() == theirs.keys()
        assert all(np.array_equal(ours[key], theirs[key].numpy()) for key in ours)


@pytest.mark.parametrize(("size", "wanted"), [(224, 202), (224, 112), (256, 224), (300, 64), (90, 224), (7, 5)])
def test_resizing_equals_torchs(size: int, wanted: int) -> None:
    pictures = torch.rand((1, 2, size, size), generator=torch.Generator().manual_seed(0)) * 255
    theirs = functional.interpolate(pictures, (wanted, wanted), mode="bilinear", antialias=True).numpy()
    weights = weigh_pixels(size, wanted)
    assert weights @ pictures.numpy() @ weights.T == pytest.approx(theirs, abs=1e-4)
    # An impulse at each pixel reveals torch's weights.
    alone = functional.interpolate(torch.eye(size)[None, None], (size, wanted), mode="bilinear", antialias=True)
    assert np.array_equal(weights, alone[0, 0].numpy().T)


def test_outputs_do_not_depend_on_the_batch_size(tmp_path: Path) -> None:
    (network,) = open_models([write_model(tmp_path, ModelSpec("efficientnet-lite0", 32, crop=CropGeometry(size=32)))])
    crops = smooth_pictures(5, 32, 6)
    together = np.stack(network(crops))
    alone = np.concatenate([np.stack(network(crops[i : i + 1])) for i in range(5)], 1)
    assert together == pytest.approx(alone, abs=1e-4)


# Files


def rewrite(file: WeightsFile, change: dict[str, np.ndarray | None]) -> WeightsFile:
    """The file with some tensors replaced, added or (None) removed, under a valid name."""
    tensors = {name: value for name, value in {**load(file.path.read_bytes()), **change}.items() if value is not None}
    data = save(tensors, metadata={"spec": file.spec.to_json()})
    path = file.path.with_name(f"changed-{hashlib.sha256(data).hexdigest()[:12]}.safetensors")
    path.write_bytes(data)
    return open_weights(path)


FC = "net._fc.weight"


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({FC: None}, "_fc.weight is missing"),
        ({FC: np.zeros((2, 1280), np.float16)}, r"_fc.weight has the shape \[2, 1280\]"),
        ({"net._fc.surplus": np.zeros(1, np.float16)}, "_fc.surplus is not part of the network"),
        ({FC: np.full((1, 1280), np.nan, np.float16)}, "_fc.weight holds numbers that are not finite"),
        ({"net._bn1.running_var": np.full(1280, -1, np.float16)}, "_bn1.running_var holds negative numbers"),
    ],
    ids=["missing", "shape", "surplus", "nan", "variance"],
)
def test_tensors_that_do_not_fit_are_refused_by_name(change: dict, reason: str, tmp_path: Path) -> None:
    file = rewrite(write_model(tmp_path, ModelSpec("efficientnet-lite0", 32)), change)
    with pytest.raises(WeightsError, match=f"changed-.*{reason}"):
        open_models([file])


def test_model_with_non_finite_outputs_is_refused(tmp_path: Path) -> None:
    file = write_model(tmp_path, ModelSpec("efficientnet-lite0", 32))
    file = rewrite(file, {FC: np.full((1, 1280), 3e38, np.float32), "net._fc.bias": np.full(1, 3e38, np.float32)})
    with pytest.raises(WeightsError, match=r"changed-.*outputs are not finite"):
        open_models([file])


@pytest.mark.parametrize("architecture", ["efficientnet-b0", "mobilenet-v2"])
def test_tensors_of_another_architecture_are_refused(architecture: str, tmp_path: Path) -> None:
    file = write_model(tmp_path, ModelSpec("efficientnet-lite0", 32))
    path = save_model(load_model(file), tmp_path, name="misfit", spec=replace(file.spec, architecture=architecture))
    with pytest.raises(WeightsError, match="do not fit"):
        open_models([open_weights(path)])


def test_file_that_changed_after_its_check_is_not_used(tmp_path: Path) -> None:
    file = write_model(tmp_path, ModelSpec("efficientnet-lite0", 32))
    other = rewrite(file, {FC: np.ones((1, 1280), np.float16)})
    file.path.write_bytes(other.path.read_bytes())
    with pytest.raises(WeightsError, match="damaged or changed"):
        open_models([file])
    with pytest.raises(WeightsError, match="damaged or changed"):
        load_model(file)


def test_file_renamed_over_a_checked_one_is_not_used(tmp_path: Path) -> None:
    """The twelve digits in a name could be forged; the digest that is checked has 64."""
    file = write_model(tmp_path, ModelSpec("efficientnet-lite0", 32))
    with pytest.raises(WeightsError, match="has changed since its digest was checked"):
        open_models([replace(file, digest=file.digest[:12] + "0" * 52)])


def test_pipe_among_the_weights_is_refused_at_once(tmp_path: Path) -> None:
    write_model(tmp_path, ModelSpec("efficientnet-lite0", 32))
    os.mkfifo(tmp_path / "pipe-0123456789ab.safetensors")
    with pytest.raises(WeightsError, match="is not a regular file"):
        find_weights(tmp_path)


# Without torch


def test_samples_are_scored_without_torch_and_its_libraries() -> None:
    script = """
import sys
from pathlib import Path
for name in ("torch", "torchvision", "scipy", "facenet_pytorch", "efficientnet_pytorch", "sklearn", "pandas"):
    sys.modules[name] = None
from dfdc.analyze import Analyzer
from dfdc.weights import find_weights
analyzer = Analyzer(find_weights(Path("weights"), extras=["motion", "sound"]))
for name in ("real", "doctored"):
    analysis = analyzer.analyze(Path(f"samples/{name}.mp4"), 4)
    print(analysis.status, analysis.probability > 0.5)
"""
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True)
    assert done.stdout == "ok False\nok True\n", done.stderr


def test_scoring_on_the_cpu_imports_no_torch() -> None:
    script = """
import sys
from pathlib import Path
from dfdc.analyze import Analyzer
from dfdc.runtime import choose_device
from dfdc.weights import find_weights
Analyzer(find_weights(Path("weights"))).analyze(Path("samples/real.mp4"), 2)
choose_device("cpu")
print(sorted({"torch", "torchvision", "scipy", "facenet_pytorch", "efficientnet_pytorch"} & set(sys.modules)))
"""
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True)
    assert done.stdout == "[]\n", done.stderr


def test_torch_gives_the_same_outputs_if_openvino_is_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = write_model(tmp_path, ModelSpec("efficientnet-lite0", 32, crop=CropGeometry(size=48)))
    crops, images = smooth_pictures(3, 48, 6), smooth_pictures(3, 48, 3)
    models = [*open_models([file]), open_detector()[2]]
    monkeypatch.setattr("dfdc.models.has_openvino", lambda: False)
    for network, other, values in zip(models, [*open_models([file]), open_detector()[2]], (crops, images), strict=True):
        for answer, theirs in zip(network(values), other(values), strict=True):
            assert answer == pytest.approx(theirs, abs=CLOSE)


@pytest.mark.parametrize(("device", "expected"), [("nvidia0", True), ("dxg", True), ("nvidia-caps", False)])
def test_torch_is_asked_for_cuda_only_if_a_driver_shows_a_gpu(device: str, expected: bool, tmp_path: Path) -> None:
    assert not may_have_cuda(tmp_path)
    (tmp_path / device).touch()
    assert may_have_cuda(tmp_path) == expected


@pytest.mark.parametrize("sparse", [False, True])
def test_boxes_are_assigned_as_scipy_assigns_them(sparse: bool) -> None:
    random = np.random.default_rng(0)
    for _ in range(300):
        gains = random.random(random.integers(0, 8, 2))
        gains[gains < 0.6 * sparse] = 0
        pairs, expected = assign(gains), linear_sum_assignment(-gains)
        assert len({row for row, _ in pairs}) == len({column for _, column in pairs}) == min(gains.shape)
        assert sum(gains[pair] for pair in pairs) == pytest.approx(gains[expected].sum())
