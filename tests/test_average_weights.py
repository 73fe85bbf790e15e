"""tools/research/average_weights.py: one model that is the mean of several, with a new calibration."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from dfdc.data.dataset import load_crops
from dfdc.errors import WeightsError
from dfdc.networks import build_model, load_model, save_model
from dfdc.training.loop import evaluate
from dfdc.weights import ModelSpec, WeightsFile, open_weights
from tests.models import lively
from tests.test_training import pairs, write_table
from tools.research import average_weights as tool

pytestmark = pytest.mark.usefixtures("one_thread")

SPEC = ModelSpec("efficientnet-lite0", 32, trained_on="a", validation={"auc": 0.75, "log_loss": 0.5})


def make(folder: Path, seed: int, spec: ModelSpec = SPEC) -> WeightsFile:
    torch.manual_seed(seed)
    return open_weights(save_model(build_model(spec), folder, name=f"model{seed}"))


def test_every_tensor_is_the_mean_of_the_parts(tmp_path: Path) -> None:
    files = [make(tmp_path, seed) for seed in range(3)]
    average, parts = tool.average_models(files).state_dict(), [load_model(file).state_dict() for file in files]
    for key in ("net._conv_stem.weight", "net._bn0.running_var", "net._fc.bias"):
        by_hand = (parts[0][key] + parts[1][key] + parts[2][key]) / 3
        assert torch.allclose(average[key], by_hand, atol=1e-6)
    assert not torch.allclose(average["net._conv_stem.weight"], parts[0]["net._conv_stem.weight"], atol=1e-3)


def test_shares_weight_the_files(tmp_path: Path) -> None:
    files = [make(tmp_path, seed) for seed in range(2)]
    average, parts = tool.average_models(files, shares=[1, 3]), [load_model(file).state_dict() for file in files]
    key = "net._conv_stem.weight"
    assert torch.allclose(average.state_dict()[key], (parts[0][key] + 3 * parts[1][key]) / 4, atol=1e-6)
    for shares in ([1.0], [1.0, 0.0]):
        with pytest.raises(WeightsError, match="one number above 0 for each of the 2"):
            tool.average_models(files, shares=shares)


def test_average_of_a_model_with_itself_gives_the_same_logits(tmp_path: Path) -> None:
    torch.manual_seed(0)
    file = open_weights(save_model(lively(build_model(SPEC)), tmp_path, name="model"))
    crops = torch.randint(0, 256, (3, 3, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        assert torch.allclose(tool.average_models([file, file])(crops), load_model(file)(crops), atol=1e-5)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"input_size": 48}, "input_size is 48, model0-.* has 32; they must agree"),
        ({"std": (64.0, 64.0, 64.0)}, "std is .64"),
        ({"architecture": "mobilenet-v2"}, "architecture is mobilenet-v2"),
        ({"statistics_blocks": (3,)}, "statistics_blocks is .3"),
    ],
)
def test_models_that_differ_in_more_than_weights_are_refused(tmp_path: Path, change: dict, said: str) -> None:
    files = [make(tmp_path, 0), make(tmp_path, 1, replace(SPEC, **change))]
    with pytest.raises(WeightsError, match=said):
        tool.average_models(files)


def test_linear_head_counts_as_one_whose_branch_adds_nothing(tmp_path: Path) -> None:
    model = build_model(replace(SPEC, statistics_blocks=(3,)))
    torch.nn.init.normal_(model.net._statistics_fc.weight)
    files = [open_weights(save_model(model, tmp_path, name="branched")), make(tmp_path, 1)]
    branched, linear = (load_model(file).state_dict() for file in files)
    mean = tool.average_models(files, shares=[3, 1])
    assert mean.spec.statistics_blocks == (3,)
    found = mean.state_dict()
    for part in ("weight", "bias"):
        torch.testing.assert_close(
            found[f"net._fc.{part}"], 0.75 * branched[f"net._fc.{part}"] + 0.25 * linear[f"net._fc.{part}"]
        )
        hidden = f"net._statistics_hidden.{part}"
        torch.testing.assert_close(found[hidden], branched[hidden])
    last = "net._statistics_fc.weight"
    torch.testing.assert_close(found[last], 0.75 * branched[last])


def test_tool_writes_a_calibrated_file_that_states_its_origin(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    table = write_table(tmp_path, pairs(3, split="val"))
    files = [make(tmp_path, 0), make(tmp_path, 1, replace(SPEC, trained_on="b"))]
    paths = [str(file.path) for file in files]
    assert tool.main([*paths, "--crops", str(table), "--out", str(tmp_path / "out"), "--compare"]) == 0
    (written,) = (tmp_path / "out").glob("*.safetensors")
    spec = open_weights(written).spec
    assert spec.validation["n"] == 6 and spec.trained_on == "a | b" and spec.calibration != SPEC.calibration
    # Scores in the files may be of other crops, so the parts are measured on the same crops as the average.
    measured = [evaluate(load_model(file), load_crops(table, split="val", progress=False))[0] for file in files]
    said = capsys.readouterr().out
    for file, scores in zip(files, measured, strict=True):
        assert f"{file.path.name}: auc {scores['auc']:.4f}, balanced_log_loss {scores['balanced_log_loss']:.4f}" in said
    alone = tmp_path / "alone"
    assert tool.main([paths[0], "--crops", str(table), "--out", str(alone)]) == 0
    (again,) = alone.glob("*.safetensors")
    assert open_weights(again).spec.validation["auc"] == pytest.approx(measured[0]["auc"], abs=1e-6)
    voice = [make(tmp_path, seed, ModelSpec("efficientnet-lite0", 32, "sound", (0.0,), (1.0,))).path for seed in (2, 3)]
    assert tool.main([*map(str, voice), "--crops", str(table), "--out", str(tmp_path)]) == 1
    assert "model2" in (said := capsys.readouterr().err) and "sees sound; only models that see faces" in said
