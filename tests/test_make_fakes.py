"""tools/make_fakes.py: fakes made from real crops, each listed with its real, which is treated alike."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from torch import nn

from dfdc.data.dataset import load_crops, load_rows, read_split
from dfdc.errors import WeightsError
from dfdc.training.autoencoder import SCALE, TinyAutoencoder
from dfdc.training.fakes import draw_treatment, make_pair
from dfdc.training.twins import BLENDED, LATENTS, WHOLE, make_twin, plan_twins
from dfdc.training.upsampling import plan_upsampled
from tests.test_cross_blend import FixedDetector
from tests.test_train_families import SIDE, write_family
from tools import make_fakes
from tools.make_fakes import main

CHANNELS = 4
pytestmark = pytest.mark.usefixtures("one_thread")


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        convs = [nn.Conv2d(8, 8, 3, padding=1) for _ in range(3)]
        self.conv = nn.Sequential(convs[0], nn.ReLU(), convs[1], nn.ReLU(), convs[2])
        self.pool = nn.Sequential(
            nn.Conv2d(8, 32, 1, bias=False), nn.GroupNorm(4, 32), nn.ReLU(), nn.Conv2d(32, 8, 1, bias=False)
        )

    def forward(self, values: torch.Tensor) -> torch.Tensor:
        values = values + self.pool(values)
        return (self.conv(values) + values).relu()


class Saturate(nn.Module):
    def forward(self, values: torch.Tensor) -> torch.Tensor:
        return torch.tanh(values / 3) * 3


def make_networks() -> tuple[nn.Sequential, nn.Sequential]:
    """A small encoder and decoder with the structure of TAESD, made of torch's own modules."""
    torch.manual_seed(0)
    half = [layer for _ in range(3) for layer in (nn.Conv2d(8, 8, 3, stride=2, padding=1, bias=False), Block())]
    encoder = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), Block(), *half, nn.Conv2d(8, CHANNELS, 3, padding=1))
    double = [
        layer
        for _ in range(3)
        for layer in (Block(), nn.Upsample(scale_factor=2), nn.Conv2d(8, 8, 3, padding=1, bias=False))
    ]
    first = nn.Conv2d(CHANNELS, 8, 3, padding=1)
    decoder = nn.Sequential(Saturate(), first, nn.ReLU(), *double, Block(), nn.Conv2d(8, 3, 3, padding=1))
    return encoder.eval(), decoder.eval()


@pytest.fixture
def files(tmp_path: Path) -> tuple[Path, Path]:
    paths = tmp_path / "encoder.pth", tmp_path / "decoder.pth"
    for network, path in zip(make_networks(), paths, strict=True):
        torch.save(network.state_dict(), path)
    return paths


def test_layers_give_the_results_of_torchs_modules(files: tuple[Path, Path]) -> None:
    encoder, decoder = make_networks()
    autoencoder, pictures = TinyAutoencoder(*files), torch.rand(2, 3, 4 * SCALE, 3 * SCALE)
    with torch.no_grad():
        wanted = encoder(pictures)
        assert torch.allclose(autoencoder.encode(pictures), wanted, atol=1e-5)
        assert torch.allclose(autoencoder.decode(wanted), decoder(wanted), atol=1e-5)


def test_files_of_other_networks_are_refused(tmp_path: Path, files: tuple[Path, Path]) -> None:
    with pytest.raises(WeightsError, match="not an encoder and a decoder"):
        TinyAutoencoder(files[1], files[0])
    (tmp_path / "text.pth").write_text("no tensors")
    with pytest.raises(WeightsError, match=r"text\.pth"):
        TinyAutoencoder(tmp_path / "text.pth", files[1])


@pytest.fixture
def table(tmp_path: Path) -> Path:
    return write_family(tmp_path / "faces", "faces", paired=False)


@pytest.mark.parametrize("seed", range(4))
def test_blended_twin_keeps_the_corners_of_its_real(seed: int, files: tuple[Path, Path]) -> None:
    autoencoder, real = TinyAutoencoder(*files), np.random.default_rng(0).integers(0, 256, (128, 128, 3), np.uint8)
    for blended in (False, True):
        made = make_twin(real, autoencoder=autoencoder, latents=LATENTS[seed], blended=blended, seed=seed)
        assert made.shape == real.shape and made.dtype == np.uint8
        difference = np.abs(real.astype(int) - made)
        assert difference[56:72, 56:72].mean() > 10  # an untrained autoencoder destroys its input
        assert [not difference[place].any() for place in ((0, 0), (-1, 0))] == [blended, blended]


def test_twins_are_whole_or_blended(table: Path, files: tuple[Path, Path]) -> None:
    rows = read_split(table, split="train")
    recipes = plan_twins(rows.to_dict("records"), load_rows(rows, progress=False), TinyAutoencoder(*files), seed=0)
    assert [recipe.place for recipe in recipes] == list(range(len(rows)))
    assert {recipe.manipulation for recipe in recipes} == {BLENDED, WHOLE}


@pytest.mark.parametrize("seed", range(8))
def test_real_and_fake_are_treated_alike(seed: int, table: Path) -> None:
    """Where nothing is manipulated, a real and its "fake" are the same picture, which was compressed."""
    rows = read_split(table, split="train")
    recipe = plan_upsampled(rows.to_dict("records"), load_rows(rows, progress=False), seed=0)[0]
    crop = np.random.default_rng(0).integers(0, 256, (160, 160, 3), np.uint8)
    recipe = replace(recipe, treatment=draw_treatment(140.0, 160, seed=seed), make=np.copy)
    real, fake = make_pair(crop, recipe)
    assert np.array_equal(real, fake) and not np.array_equal(real, crop)
    # Every difference between both comes from the manipulation, and what it changes survives.
    _, grey = make_pair(crop, replace(recipe, make=lambda picture: np.full_like(picture, 128)))
    assert np.abs(grey.astype(int) - 128).max() <= 1


def test_treatment_keeps_the_size_of_the_source_within_limits() -> None:
    for source_side, least, most in ((20.0, 112, 112), (160.0, 128, 184), (float("nan"), 184, 256), (900.0, 184, 256)):
        for seed in range(20):
            treatment = draw_treatment(source_side, 224, seed=seed)
            assert least <= treatment.side <= most and treatment.side % 8 == 0
            assert 80 <= treatment.last_quality <= 97
            assert treatment.first_quality is None or 55 <= treatment.first_quality <= 95


@pytest.fixture
def arguments(table: Path, files: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Flags for all kinds but --out; the pictures are noise, and the detector finds the same face in all of them."""
    monkeypatch.setattr(make_fakes, "FaceDetector", FixedDetector)
    flags = ["--crops", str(table), "--encoder", str(files[0]), "--decoder", str(files[1])]
    return [*flags, "--per-family", "3", "--val-per-family", "2"]


def read_files(out: Path) -> Mapping[str, bytes]:
    return {str(path.relative_to(out)): path.read_bytes() for path in sorted(out.rglob("*")) if path.is_file()}


def test_table_pairs_each_fake_with_its_real(tmp_path: Path, arguments: list[str]) -> None:
    out = tmp_path / "made"
    assert main([*arguments, "--out", str(out)]) == 0
    for split, count in (("train", 3), ("val", 2)):
        crops = load_crops(out / "crops.csv", split=split, progress=False)
        assert crops.families.tolist() == [kind for kind in make_fakes.KINDS for _ in range(2 * count)]
        assert crops.labels.tolist() == [0, 1] * 3 * count
        assert crops.originals.tolist() == [value for pair in range(3 * count) for value in (-1, 2 * pair)]
        assert crops.images.shape[-1] == SIDE
        rows = read_split(out / "crops.csv", split=split)
        assert set(rows.identity) <= {f"faces{split}REAL{n}" for n in range(8)}


def test_both_persons_of_a_cross_blend_are_others_of_one_split(tmp_path: Path, arguments: list[str]) -> None:
    out = tmp_path / "made"
    assert main([*arguments, "--out", str(out), "--kinds", "cross-blends"]) == 0
    rows = pd.read_csv(out / "crops.csv", dtype=str, keep_default_na=False)
    fakes = rows[rows.label == "FAKE"]
    assert len(fakes) == 5
    for row in fakes.itertuples():
        target, donor = (Path(name).stem for name in row.source.split(" "))
        assert target == row.identity != donor
        assert target.startswith(f"faces{row.split}REAL") and donor.startswith(f"faces{row.split}REAL")


def test_same_seed_gives_the_same_bytes(tmp_path: Path, arguments: list[str]) -> None:
    first, second, other = (tmp_path / name for name in ("first", "second", "other"))
    for out, seed in ((first, "5"), (second, "5"), (other, "6")):
        assert main([*arguments, "--out", str(out), "--seed", seed]) == 0
    wanted = read_files(first)
    assert len(wanted) == 1 + 2 * 3 * (3 + 2)
    assert read_files(second) == wanted
    # Names end with the seed of a fake. Two reals of different seeds may be treated alike by chance.
    assert set(read_files(other)) & set(wanted) == {"crops.csv"}


def test_stopped_run_resumes(tmp_path: Path, arguments: list[str]) -> None:
    """Existing files are not made again, lost ones are, and the table is the same."""
    out = tmp_path / "made"
    arguments += ["--out", str(out)]
    assert main([*arguments, "--kinds", "upsampled"]) == 0
    assert main(arguments) == 0  # another kind is added to those that are there
    wanted = read_files(out)
    pictures = [name for name in wanted if name.endswith(".png")]
    lost = [min(name for name in pictures if name.startswith(kind)) for kind in make_fakes.KINDS]
    for name in pictures:
        (out / name).unlink() if name in lost else (out / name).write_bytes(b"kept")
    (out / "crops.csv").unlink()
    assert main(arguments) == 0
    found = read_files(out)
    assert found["crops.csv"] == wanted["crops.csv"]
    assert all(found[name] == wanted[name] for name in lost)
    # The other crop of a lost one's pair is written again, too.
    assert sum(data == b"kept" for data in found.values()) == len(pictures) - 2 * len(lost)


def test_inputs_are_not_overwritten(table: Path, arguments: list[str]) -> None:
    before = table.read_bytes()
    assert main([*arguments, "--out", str(table.parent)]) == 1
    assert table.read_bytes() == before


def test_twins_without_networks_are_refused(tmp_path: Path, table: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--crops", str(table), "--out", str(tmp_path / "made")]) == 1
    assert "--kinds cross-blends upsampled" in capsys.readouterr().err
    assert not (tmp_path / "made").exists()
