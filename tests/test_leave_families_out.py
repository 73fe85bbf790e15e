"""tools/research/leave_families_out.py: a model fails on a family that is left out and unlike all others."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from dfdc.data.dataset import CropSet
from dfdc.errors import DataError
from dfdc.networks import FrameModel, save_model
from dfdc.weights import ModelSpec
from tests.test_train_families import SIDE, write_family
from tools.research.leave_families_out import NOTHING, leave_families_out, main

pytestmark = pytest.mark.usefixtures("one_thread")


def make_part(generator: np.random.Generator) -> tuple[np.ndarray, CropSet]:
    """Two families of 2,000 crops, each of which reveals its label in its own feature."""
    labels = np.tile(np.float32([0.0, 1.0]), 2000)
    families = np.repeat(["first", "second"], 2000)
    features = generator.normal(0, 1, (4000, 4)).astype(np.float32)
    features[np.arange(4000), (families == "second").astype(int)] += 3 * labels
    images = torch.zeros((4000, 3, 1, 1), dtype=torch.uint8)
    crops = CropSet(images, torch.tensor(labels), torch.full((4000,), -1), [""] * 4000, families=families)
    return features, crops


def test_left_out_family_is_not_learned() -> None:
    generator = np.random.default_rng(0)
    found = leave_families_out(make_part(generator), make_part(generator), seeds=range(2))
    assert min(found[NOTHING]["first"] + found[NOTHING]["second"]) > 0.85
    for name, other in (("first", "second"), ("second", "first")):
        assert max(found[name][name]) < 0.75
        assert min(found[name][other]) > 0.85


def test_groups_are_left_out_together() -> None:
    parts = [make_part(np.random.default_rng(seed)) for seed in (0, 1)]
    for _, crops in parts:
        crops.families[:1000] = "third"  # unlike the others only by its name
    found = leave_families_out(*parts, seeds=[0], groups=["first,third"])
    assert list(found) == [NOTHING, "first,third"]
    assert found["first,third"]["first"][0] < 0.75 and found["first,third"]["third"][0] < 0.75
    assert found[NOTHING]["third"][0] > 0.85
    with pytest.raises(DataError, match="fourth"):
        leave_families_out(*parts, seeds=[0], groups=["first,fourth"])


def test_tool_measures_every_family(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tables = [write_family(tmp_path / name, name, paired=False) for name in ("swaps", "faces")]
    torch.manual_seed(0)
    weights = save_model(FrameModel(ModelSpec("efficientnet-lite0", SIDE)), tmp_path, name="model")
    out = tmp_path / "families.json"
    arguments = ["--crops", *map(str, tables), "--weights", str(weights), "--per-class", "32", "--seeds", "2"]
    assert main([*arguments, "--json", str(out)]) == 0
    found = json.loads(out.read_text())
    assert {name: {key: len(value) for key, value in aucs.items()} for name, aucs in found.items()} == {
        name: {"faces": 2, "swaps": 2} for name in (NOTHING, "faces", "swaps")
    }
    assert capsys.readouterr().out.count("±") == 6
