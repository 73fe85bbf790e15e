"""dfdc.weights and dfdc.networks: a weights file rebuilds its model and is checked."""

from __future__ import annotations

import json
import math
import struct
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from dfdc.crop import CropGeometry
from dfdc.errors import WeightsError
from dfdc.networks import FrameModel, build_network, load_initial, load_model, resize_crops, save_model
from dfdc.weights import Calibration, ModelSpec, file_digest, find_one, find_weights, open_weights, sigmoid
from tests.models import lively

SPEC = ModelSpec(
    architecture="efficientnet-lite0",
    input_size=32,
    crop=CropGeometry(size=48),
    calibration=Calibration(1.5, -0.25, 0.02, 0.97),
    trained_on="nothing",
    validation={"auc": 0.5},
)


@pytest.fixture(scope="module")
def model() -> FrameModel:
    torch.manual_seed(0)
    return lively(FrameModel(SPEC))


@pytest.fixture
def path(model: FrameModel, tmp_path: Path) -> Path:
    return save_model(model, tmp_path, name="fake")


def test_saved_model_is_loaded_with_its_specification_and_outputs(model: FrameModel, path: Path) -> None:
    file = open_weights(path)
    assert file.spec == SPEC
    crops = torch.randint(0, 256, (2, 3, 48, 48), dtype=torch.uint8)
    with torch.no_grad():
        # Half-precision weights have 11 bits, so logits change by thousandths.
        assert torch.allclose(load_model(file)(crops), model(crops), atol=0.02)


def test_file_name_contains_the_checked_digest(path: Path) -> None:
    assert file_digest(path)[:12] in path.name
    data = bytearray(path.read_bytes())
    data[-5] ^= 1
    path.write_bytes(data)
    with pytest.raises(WeightsError, match="damaged or changed"):
        open_weights(path)


def test_file_without_digest_in_its_name_is_refused(path: Path) -> None:
    with pytest.raises(WeightsError, match="carries no digest"):
        open_weights(path.rename(path.with_name("model.safetensors")))


def named_by_digest(path: Path) -> Path:
    return path.rename(path.with_name(f"x-{file_digest(path)[:12]}.safetensors"))


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"abc",
        struct.pack("<Q", 2**60) + b"{}",
        struct.pack("<Q", 2) + b"{}",
        struct.pack("<Q", 8) + b'["list"]',
        b"\x80\x04pickle.",
    ],
)
def test_foreign_header_is_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "x"
    path.write_bytes(content)
    with pytest.raises(WeightsError, match="no valid model specification"):
        open_weights(named_by_digest(path))


@pytest.mark.parametrize(
    "change",
    [
        {"architecture": "resnet"},
        {"input_size": 5},
        {"std": [0, 1, 1]},
        {"sees": "smell"},
        {"sees": "sound"},
        {"architecture": "mobilenet-v2", "sees": "sound", "mean": [0], "std": [1]},
        {"validation": [1]},
        {"statistics_blocks": "11"},
        {"statistics_blocks": 11},
        {"statistics_blocks": [[11]]},
        {"statistics_blocks": [True]},
        {"statistics_blocks": [-1]},
        {"statistics_blocks": [11, 11]},
        {"statistics_blocks": [15, 11]},
        {"statistics_blocks": list(range(100))},
        {"architecture": "mobilenet-v2", "statistics_blocks": [1]},
        {"sees": "motion", "statistics_blocks": [1]},
        {"surplus": 1},
    ],
)
def test_specification_with_a_wrong_value_is_refused(tmp_path: Path, change: dict[str, object]) -> None:
    path = tmp_path / "x"
    spec = {**json.loads(SPEC.to_json()), **change}
    save_file({"a": torch.zeros(1)}, path, metadata={"spec": json.dumps(spec)})
    with pytest.raises(WeightsError, match="no valid model specification"):
        open_weights(named_by_digest(path))


def test_tensors_of_another_architecture_are_refused(model: FrameModel, tmp_path: Path) -> None:
    path = save_model(model, tmp_path, name="wrong", spec=replace(SPEC, architecture="efficientnet-b0"))
    with pytest.raises(WeightsError, match="do not fit efficientnet-b0"):
        load_model(open_weights(path))


def test_pickle_files_are_ignored(tmp_path: Path) -> None:
    (tmp_path / "model.pt").write_bytes(b"\x80\x04.")
    (tmp_path / "model.bin").write_bytes(b"\x80\x04.")
    with pytest.raises(WeightsError, match=r"holds no \.safetensors file"):
        find_weights(tmp_path)


def test_folder_gives_its_files_by_name(model: FrameModel, tmp_path: Path) -> None:
    for name in ("b", "a"):
        save_model(model, tmp_path, name=name)
    assert [file.path.name[0] for file in find_weights(tmp_path)] == ["a", "b"]


def test_optional_models_are_loaded_on_request(model: FrameModel, tmp_path: Path) -> None:
    (tmp_path / "optional").mkdir()
    save_model(model, tmp_path, name="faces")
    motion = ModelSpec("efficientnet-lite0", 32, sees="motion")
    save_model(FrameModel(motion), tmp_path / "optional", name="motion")
    assert [file.spec.sees for file in find_weights(tmp_path)] == ["face"]
    assert [file.spec.sees for file in find_weights(tmp_path, extras=["motion", "motion"])] == ["face", "motion"]
    with pytest.raises(WeightsError, match="optional: holds no sound model; copy one there, or do not ask for it"):
        find_weights(tmp_path, extras=["sound"])
    with pytest.raises(WeightsError, match=r"is one file, and optional models lie in a folder's optional/"):
        find_weights(next(tmp_path.glob("faces*")), extras=["motion"])


def test_optional_models_have_a_fixed_order(model: FrameModel, tmp_path: Path) -> None:
    """Otherwise the journal of a run would not match a repetition of the run."""
    (tmp_path / "optional").mkdir()
    save_model(model, tmp_path, name="faces")
    for sees, channels in (("motion", 3), ("sound", 1)):
        spec = ModelSpec("efficientnet-lite0", 32, sees=sees, mean=(0.0,) * channels, std=(1.0,) * channels)
        save_model(FrameModel(spec), tmp_path / "optional", name=sees)
    for extras in (["sound", "motion"], ["motion", "sound"]):
        assert [file.spec.sees for file in find_weights(tmp_path, extras=extras)] == ["face", "motion", "sound"]


def test_further_models_come_last_and_are_marked(model: FrameModel, tmp_path: Path) -> None:
    (tmp_path / "further").mkdir()
    for name, folder, loss in (("c", "", 0.4), ("a", "further", 0.3), ("b", "further", 0.2)):
        save_model(model, tmp_path / folder, name=name, spec=replace(SPEC, validation={"log_loss": loss}))
    found = [(file.path.name[0], file.further) for file in find_weights(tmp_path)]
    assert found == [("c", False), ("b", True), ("a", True)]


def test_model_for_the_requested_input_is_found_in_a_file_or_folder(model: FrameModel, tmp_path: Path) -> None:
    face = save_model(model, tmp_path, name="a")
    motion = save_model(model, tmp_path, name="b", spec=replace(SPEC, sees="motion"))
    assert [find_one(path, "motion").path for path in (tmp_path, motion)] == [motion, motion]
    for path, what in ((face, "motion"), (tmp_path, "sound")):
        with pytest.raises(WeightsError, match=f"holds no {what} model; train one"):
            find_one(path, what)
    with pytest.raises(WeightsError, match="gone: no such weights file or folder; name an existing one"):
        find_one(tmp_path / "gone", "face")


def test_weights_without_a_face_model_are_refused(tmp_path: Path) -> None:
    spec = ModelSpec("efficientnet-lite0", 32, sees="sound", mean=(0.0,), std=(1.0,))
    save_model(FrameModel(spec), tmp_path, name="voice")
    with pytest.raises(WeightsError, match="holds no face model"):
        find_weights(tmp_path)


def test_best_model_on_validation_comes_first(model: FrameModel, tmp_path: Path) -> None:
    for name, loss in (("a", math.nan), ("b", 0.5), ("c", 0.3), ("d", None), ("e", 0.4)):
        save_model(model, tmp_path, name=name, spec=replace(SPEC, validation={"log_loss": loss}))
    assert [file.path.name[0] for file in find_weights(tmp_path)] == ["c", "e", "b", "a", "d"]


def test_missing_weights_are_reported(tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match="nowhere: no such weights"):
        find_weights(tmp_path / "nowhere")


def test_calibration_equals_a_calculation_by_hand() -> None:
    calibration = Calibration(temperature=2.0, bias=1.0, low=0.1, high=0.9)
    assert calibration.logits(np.array([4.0])) == pytest.approx([3.0])
    assert calibration.probabilities(np.array([-2.0, 100.0, -100.0])) == pytest.approx([0.5, 0.9, 0.1])
    assert sigmoid(np.array([np.log(3)])) == pytest.approx([0.75])


@pytest.mark.parametrize("values", [{"temperature": 0.0}, {"bias": float("nan")}, {"low": 0.0}, {"high": 1.0}])
def test_calibration_with_values_out_of_range_is_refused(values: dict[str, float]) -> None:
    with pytest.raises(ValueError, match="allowed"):
        Calibration(**values)


def test_normalization_lives_in_the_model(model: FrameModel) -> None:
    crops = torch.randint(0, 256, (1, 3, 32, 32), dtype=torch.uint8)
    with torch.no_grad():
        assert torch.equal(model(crops), model.net((crops.float() - 127) / 128).squeeze(1))


def test_resizing_keeps_integer_levels_and_skips_crops_of_the_right_size() -> None:
    crops = torch.randint(0, 256, (2, 3, 48, 48)).float()
    small = resize_crops(crops, 32)
    assert small.shape == (2, 3, 32, 32)
    assert torch.equal(small, small.round())
    assert 0 <= small.min() <= small.max() <= 255
    assert resize_crops(crops, 48) is crops


@pytest.mark.parametrize("architecture", ["efficientnet-b0", "efficientnet-lite0", "mobilenet-v2"])
def test_every_architecture_has_one_output(architecture: str) -> None:
    network = build_network(architecture, 64).eval()
    with torch.no_grad():
        assert network(torch.zeros(2, 3, 64, 64)).shape == (2, 1)


def test_lite0_has_the_published_number_of_parameters_and_no_squeeze_excitation() -> None:
    network = build_network("efficientnet-lite0", 224)
    backbone = sum(p.numel() for name, p in network.named_parameters() if not name.startswith("_fc"))
    assert backbone == 3_371_008
    assert not any("_se_" in name for name, _ in network.named_parameters())


def test_pretrained_backbone_is_loaded_completely(shared: Path) -> None:
    model = FrameModel(replace(SPEC, input_size=224))
    path = shared / "pretrained/efficientnet_lite0_imagenet.safetensors"
    taken, total, _ = load_initial(model, path)
    assert taken == len(load_file(path))
    # The rest: the classifier's two tensors and the batch counters of the norms.
    assert total - taken == 2 + sum(isinstance(m, torch.nn.BatchNorm2d) for m in model.modules())


def test_missing_squeeze_excitation_starts_as_pass_through(path: Path) -> None:
    planted = FrameModel(replace(SPEC, architecture="efficientnet-b0"))
    load_initial(planted, path)
    for block in planted.net._blocks:
        squeezed = torch.zeros(1, block._se_expand.in_channels, 1, 1)
        assert (torch.sigmoid(block._se_expand(squeezed)) > 0.95).all()


def test_squeeze_excitation_of_the_initial_weights_is_loaded(tmp_path: Path) -> None:
    torch.manual_seed(0)
    start, planted = (FrameModel(replace(SPEC, architecture="efficientnet-b0")) for _ in range(2))
    load_initial(planted, save_model(start, tmp_path, name="start"))
    for own, theirs in zip(planted.net._blocks, start.net._blocks, strict=True):
        assert torch.allclose(own._se_expand.bias, theirs._se_expand.bias, atol=1e-3)
