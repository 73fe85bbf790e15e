"""dfdc.training.sampling, augment.match_pairs and shortcuts: shares of families, and file statistics."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import cv2
import numpy as np
import pandas as pd
import pytest
import torch

from dfdc.data.dataset import CropSet
from dfdc.errors import DataError
from dfdc.training.augment import compress, match_pairs, reduce_to
from dfdc.training.sampling import draw_pairs, thin_rows
from dfdc.training.shortcuts import describe_files, probe, probe_files
from tools.research.probe_shortcuts import main


def make_crops(rows: list[tuple[str, str, int, int]]) -> CropSet:
    """Crops without pixels: family, group, label, index of the original or -1."""
    families, groups, labels, originals = zip(*rows, strict=True)
    return CropSet(
        torch.zeros(len(rows), 3, 1, 1, dtype=torch.uint8),
        torch.tensor(labels, dtype=torch.float32),
        torch.tensor(originals),
        [str(index) for index in range(len(rows))],
        families=np.array(families),
        groups=np.array(groups),
    )


SWAPS = [("swaps", "film", 0, -1)] * 4 + [("swaps", "a", 1, 0), ("swaps", "b", 1, 0), ("swaps", "a", 1, 1)]
FACES = [("faces", "press", 0, -1)] * 20 + [("faces", "phone", 0, -1)] * 2 + [("faces", "gan", 1, -1)] * 6
CROPS = make_crops(SWAPS + FACES)


def draw(shares: dict[str, float], n_pairs: int, seed: int = 0) -> np.ndarray:
    return draw_pairs(CROPS, shares, n_pairs, torch.Generator().manual_seed(seed)).numpy()


def test_families_get_their_shares_and_classes_are_paired() -> None:
    pairs = draw({"swaps": 3, "faces": 1}, 40)
    assert Counter(CROPS.families[pairs[:, 0]]) == {"swaps": 30, "faces": 10}
    assert (CROPS.families[pairs[:, 0]] == CROPS.families[pairs[:, 1]]).all()
    assert (CROPS.labels.numpy()[pairs] == [0, 1]).all()


def test_counts_are_the_nearest_whole_numbers_to_the_shares() -> None:
    pairs = draw({"swaps": 2, "faces": 1}, 10)  # 6.67 and 3.33
    assert Counter(CROPS.families[pairs[:, 0]]) == {"swaps": 7, "faces": 3}


def test_groups_are_drawn_equally_often() -> None:
    reals, fakes = draw({"faces": 1}, 24).T
    assert Counter(CROPS.groups[reals]) == {"press": 12, "phone": 12}
    assert set(Counter(fakes).values()) == {4}  # all six before any comes again


def test_real_is_paired_with_its_own_fake() -> None:
    pairs = draw({"swaps": 1}, 40)
    assert {tuple(pair) for pair in pairs if pair[0] in (0, 1)} == {(0, 4), (0, 5), (1, 6)}
    assert set(pairs[:, 0]) == {0, 1, 2, 3}


def test_the_same_seed_draws_the_same_pairs() -> None:
    assert (draw({"swaps": 1, "faces": 1}, 30) == draw({"swaps": 1, "faces": 1}, 30)).all()
    assert (draw({"swaps": 1, "faces": 1}, 30) != draw({"swaps": 1, "faces": 1}, 30, seed=1)).any()


def test_a_family_that_lacks_a_class_is_refused() -> None:
    with pytest.raises(DataError, match=r"family absent has 0 reals and 0 fakes.*faces, swaps"):
        draw({"absent": 1.0}, 4)


def test_validation_is_thinned_evenly_in_each_family_and_class() -> None:
    rows = pd.DataFrame(
        [
            {
                "family": family,
                "label": "FAKE" if label else "REAL",
                "manipulation": group,
                "dataset": group,
                "folder": "f",
            }
            for family, group, label, _ in SWAPS + FACES
        ]
    )
    thin = thin_rows(rows, 4)
    counts = Counter(zip(thin.family, thin.label, thin.manipulation, strict=True))
    assert counts["faces", "REAL", "press"] == counts["faces", "REAL", "phone"] == 2
    assert counts["faces", "FAKE", "gan"] == 4 and counts["swaps", "REAL", "film"] == 4
    assert thin.equals(thin_rows(rows, 4))


def make_faces(n: int, *, softness: int, tint: float, seed: int) -> torch.Tensor:
    """Blurred noise (n, 3, 64, 64) in 0..255."""
    noise = torch.rand(n, 3, 64, 64, generator=torch.Generator().manual_seed(seed)) * 255
    soft = torch.nn.functional.avg_pool2d(noise, softness, 1, softness // 2)[:, :, :64, :64]
    return (soft + torch.tensor([tint, 0.0, -tint]).view(1, 3, 1, 1)).clamp(0, 255)


def test_unrelated_pairs_are_matched_in_colour_and_sharpness() -> None:
    reals, fakes = make_faces(8, softness=5, tint=0, seed=0), make_faces(8, softness=3, tint=30, seed=1)
    before = describe_files(reals)["sharpness"][:, 1] - describe_files(fakes)["sharpness"][:, 1]
    real, fake = match_pairs(reals, fakes, torch.Generator().manual_seed(0))
    after = describe_files(real)["sharpness"][:, 1] - describe_files(fake)["sharpness"][:, 1]
    assert np.abs(after).mean() < 0.4 * np.abs(before).mean()
    torch.testing.assert_close(real.mean((2, 3)), fake.mean((2, 3)), atol=3, rtol=0)


def test_reduction_keeps_crops_that_are_already_small() -> None:
    images = make_faces(3, softness=1, tint=0, seed=0)
    reduced = reduce_to(images, torch.tensor([64.0, 24.0, float("nan")]))
    assert torch.equal(reduced[0], images[0]) and torch.equal(reduced[2], images[2])
    assert describe_files(reduced)["sharpness"][1, 1] < describe_files(images)["sharpness"][1, 1] - 1


def test_probe_tool_separates_unmatched_pairs_better_than_matched_ones(
    tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    """A family whose fakes are redder and softer than its reals."""
    rows = []
    for index, (label, softness, tint) in enumerate([("REAL", 3, 0.0), ("FAKE", 5, 40.0)] * 30):
        (face,) = make_faces(1, softness=softness, tint=tint, seed=index)
        pixels = face.permute(1, 2, 0).flip(2).to(torch.uint8).numpy()
        cv2.imwrite(str(tmp_path / f"{index}.png"), pixels)
        rows.append(f"{index}.png,{index},{label},,train,64")
    table = tmp_path / "crops.csv"
    table.write_text("\n".join(["path,video,label,original,split,source_size", *rows]))
    found = {}
    for flag in ("--plain", "--unmatched", "--seed=0"):
        out = tmp_path / "found.json"
        assert main(["--crops", str(table), "--pairs", "30", "--json", str(out), flag]) == 0
        (found[flag],) = json.loads(out.read_text()).values()
    assert "| family | sharpness | blocks | colour | all |" in capsys.readouterr().out
    assert found["--plain"]["colour"] > 0.95 and found["--plain"]["sharpness"] > 0.95
    assert found["--seed=0"]["all"] < found["--unmatched"]["all"]


def test_probe_finds_compression_and_nothing_in_equal_crops() -> None:
    images = make_faces(120, softness=3, tint=0, seed=0)
    labels, groups = np.arange(120) % 2, np.arange(120) // 2
    images[labels == 1] = compress(images[labels == 1], torch.full((60,), 30)).clamp(0, 255)
    assert probe_files(labels, images, groups)["blocks"] > 0.9
    noise = np.random.default_rng(0).normal(size=(400, 3))
    assert 0.35 < probe(np.arange(400) % 2, noise, np.arange(400) // 2) < 0.65
