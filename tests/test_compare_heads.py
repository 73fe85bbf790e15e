"""tools/research/compare_heads.py and its heads: joins by hand, heads on data whose answer is known, and the tool."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from sklearn.metrics import roc_auc_score
from torch import Generator

from dfdc.data.dataset import load_rows, read_split
from dfdc.errors import DataError
from dfdc.networks import FrameModel, load_model, save_model
from dfdc.training import heads
from dfdc.training.features import blend_reals, find_features, read_features
from dfdc.training.heads import UNIONS, Features, fit_heads, join_kinds
from dfdc.weights import ModelSpec, find_one, sigmoid
from tests.test_train_families import SIDE, write_family
from tools.research.compare_heads import FITTED_THERE, OWN, Validation, cross_fit, main, measure_head

pytestmark = pytest.mark.usefixtures("one_thread")


def make_crops(generator: Generator, *, n: int = 1200) -> Features:
    """Two families, the second one of generated faces; each reveals its label in its own one of four features."""
    labels = torch.arange(n) % 2
    families = (torch.arange(n) // 2) % 2
    values = torch.randn((n, 4), generator=generator)
    values[torch.arange(n), families] += 3.0 * labels
    return Features(
        values, labels.float(), families, labels * (1 + families), families, 2 * labels, torch.ones(n), torch.arange(n)
    )


def test_unions_equal_probabilities_joined_by_hand() -> None:
    outputs = torch.tensor([[2.0, -1.0, 0.5], [-3.0, -0.5, -4.0]], dtype=torch.float64)
    p = sigmoid(outputs.numpy())
    assert UNIONS["maximum"](outputs).tolist() == [2.0, -0.5]
    assert UNIONS["the surest"](outputs).tolist() == [2.0, -4.0]
    np.testing.assert_allclose(sigmoid(UNIONS["noisy or"](outputs).numpy()), 1 - (1 - p).prod(1))
    np.testing.assert_allclose(sigmoid(join_kinds(outputs).numpy()), 1 - torch.softmax(outputs, 1)[:, 0].numpy())


def test_noisy_or_is_finite_for_sure_heads() -> None:
    assert UNIONS["noisy or"](torch.tensor([[-90.0, -90.0], [90.0, 90.0]])).isfinite().all()


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Larger steps, because so few crops make few of them."""
    monkeypatch.setattr(heads, "RATE", 0.03)


@pytest.mark.usefixtures("quick")
def test_every_head_learns_both_families() -> None:
    crops, unseen = (make_crops(Generator().manual_seed(seed)) for seed in (0, 1))
    reals = torch.nonzero(crops.labels == 0)[:50, 0]
    blends = replace(crops.take(reals), labels=torch.ones(50), ranks=torch.ones(50, dtype=torch.int64))
    blended = Features(*(torch.cat(pair) for pair in zip(vars(crops).values(), vars(blends).values(), strict=True)))
    layer = torch.tensor([1.0]), torch.tensor(-1.5)  # of the first feature; the second branch sees the others
    answers = fit_heads(crops, blended, layer, seed=0)
    assert len(answers) > 20 and "second branch, beside the model's own" in answers
    for name, answer in answers.items():
        with torch.inference_mode():
            logits = answer(unseen.values)
        assert logits.shape == (len(unseen),)
        # The sum of both features has .93. The surest head may be the other family's, which is sure of a real.
        assert roc_auc_score(unseen.labels, logits) > (0.7 if name.endswith("surest") else 0.8), name


def test_same_seed_gives_the_same_heads() -> None:
    crops = make_crops(Generator().manual_seed(0), n=300)
    layer = torch.zeros(2), torch.tensor(0.0)
    first, second = (fit_heads(crops, crops, layer, seed=3) for _ in range(2))
    with torch.inference_mode():
        assert all(torch.equal(first[name](crops.values), second[name](crops.values)) for name in first)


def test_measures_equal_those_by_hand() -> None:
    logits = {"a": np.array([-2.0, 1.0, 0.5, 3.0]), "b": np.array([-1.0, 2.0, -0.5, -4.0])}
    labels = {"a": np.array([0, 0, 1, 1]), "b": np.array([0, 0, 1, 1])}
    found = measure_head(logits, labels, ["a"])
    # Of the four pairs of a real and a fake, those in order: -2 < .5, -2 < 3, 1 < 3; and of b, -1 < -.5.
    assert [found["a"].auc, found["b"].auc] == [0.75, 0.25]
    assert found["b"].false_alarms == 0.5


def test_cross_fit_learns_what_persons_share_and_not_the_persons() -> None:
    generator = np.random.default_rng(0)
    persons, labels = np.repeat(np.arange(200), 3), np.repeat(np.arange(200) % 2, 3)
    values = generator.normal(0, 1, (200, 30))[persons].astype(np.float32)  # known by heart, they tell the class
    alone = cross_fit(Validation(torch.from_numpy(values), labels, persons.astype(str)))
    assert 0.3 < roc_auc_score(labels, alone) < 0.7
    values[:, 0] += 4 * labels
    shared = cross_fit(Validation(torch.from_numpy(values), labels, persons.astype(str)))
    assert roc_auc_score(labels, shared) > 0.85


def test_features_are_kept_and_equal_those_of_all_crops_at_once(tmp_path: Path) -> None:
    rows = read_split(write_family(tmp_path / "faces", "faces", paired=False), split="train")
    torch.manual_seed(0)
    weights = save_model(FrameModel(ModelSpec("efficientnet-lite0", SIDE)), tmp_path, name="model")
    model = load_model(find_one(weights, "face"))
    crops = load_rows(rows, progress=False)
    wanted = find_features(model, crops.images, progress=False)
    np.testing.assert_array_equal(read_features(model, rows, tmp_path, name="m"), wanted)
    # The last layer on the features gives the model's own logits.
    layer = load_file(weights)
    logits = wanted @ layer["net._fc.weight"].float().numpy()[0] + layer["net._fc.bias"].float().numpy()
    with torch.inference_mode():
        np.testing.assert_allclose(logits, model(crops.images).numpy(), atol=1e-4)
    for path in (tmp_path / "faces").glob("*.png"):
        path.unlink()
    np.testing.assert_array_equal(read_features(model, rows, tmp_path, name="m"), wanted)


def test_features_of_a_block_equal_those_of_its_input_by_hand() -> None:
    torch.manual_seed(0)
    model = FrameModel(ModelSpec("efficientnet-lite0", SIDE)).eval()
    images = torch.randint(0, 256, (3, 3, SIDE, SIDE), dtype=torch.uint8)
    found = find_features(model, images, blocks=[1], progress=False)
    np.testing.assert_array_equal(found[:, :1280], find_features(model, images, progress=False))
    with torch.inference_mode():
        net = model.net
        stem = net._swish(net._bn0(net._conv_stem((images.float() - model.mean) / model.std)))
        places = net._blocks[0](stem).flatten(2).numpy()
    np.testing.assert_allclose(found[:, 1280:1296], places.mean(2), atol=1e-5)
    np.testing.assert_allclose(found[:, 1296:], places.std(2, ddof=1), atol=1e-5)
    with pytest.raises(DataError, match="0 to 15"):
        find_features(model, images, blocks=[16])


def test_blended_reals_keep_their_corners_and_change_inside() -> None:
    images = torch.randint(60, 200, (4, 3, 8, 8), generator=Generator().manual_seed(0), dtype=torch.uint8)
    images = images.repeat_interleave(8, 2).repeat_interleave(8, 3)
    blended = blend_reals(images, Generator().manual_seed(1))
    assert blended.dtype == torch.uint8 and blended.shape == images.shape
    change = (blended.float() - images.float()).abs().mean((0, 1))
    assert change[:4, :4].mean() < change[24:40, 24:40].mean() / 2


def test_tool_compares_heads_on_a_protocol(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tables = [write_family(tmp_path / name, name, paired=False) for name in ("swaps", "faces")]
    protocol = tmp_path / "protocol.json"
    families = [{"name": table.parent.name.title(), "tables": [str(table)]} for table in tables]
    protocol.write_text(json.dumps({"families": families}))
    torch.manual_seed(0)
    weights = save_model(FrameModel(ModelSpec("efficientnet-lite0", SIDE)), tmp_path, name="model")
    out, crops = tmp_path / "heads.json", ["--crops", *map(str, tables)]
    files = ["--protocol", str(protocol), "--weights", str(weights), "--features", str(tmp_path / "features")]
    few = ["--seeds", "2", "--blends", "4", "--block", "5", "--block", "11"]
    assert main([*crops, *files, *few, "--json", str(out)]) == 0
    found = json.loads(out.read_text())
    counts = {name: len(result["Swaps"]) for name, result in found.items()}
    assert counts.pop(OWN) == counts.pop(FITTED_THERE) == 1
    assert set(counts.values()) == {2}
    assert capsys.readouterr().out.count(f"| {OWN} |") == 3
    assert main([*crops, *files, "--calibrate-on", "Nobody"]) == 1
    assert "Swaps, Faces" in capsys.readouterr().err
    assert main([*crops, *files, "--family-share", "nobody=1"]) == 1
    assert "faces, swaps" in capsys.readouterr().err
