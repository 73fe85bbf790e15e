"""tools/make_twins.py: autoencoder twins of real crops, each listed with its real in the same split."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from torch import nn

from dfdc.data.dataset import load_crops, read_split
from dfdc.errors import WeightsError
from dfdc.training.autoencoder import SCALE, TinyAutoencoder
from dfdc.training.twins import BLENDED, WHOLE, make_twin, plan_twin
from tests.test_train_families import SIDE, write_family
from tools.make_twins import main

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


def test_blended_twin_keeps_the_border_of_its_real(files: tuple[Path, Path]) -> None:
    autoencoder, crop = TinyAutoencoder(*files), np.random.default_rng(0).integers(0, 256, (128, 128, 3), np.uint8)
    seen = set()
    for seed in range(8):
        plan = plan_twin(120.0, 128, seed=seed)
        real, fake = make_twin(crop, autoencoder, plan)
        assert real.shape == fake.shape == crop.shape
        difference = np.abs(real.astype(int) - fake)
        border = max(difference[:3, :3].mean(), difference[-3:, :3].mean())
        inner = difference[56:72, 56:72].mean()
        assert inner > 10  # an untrained autoencoder destroys its input
        if plan.manipulation == BLENDED:
            assert border < inner / 3
        else:
            assert border > inner / 3
        seen.add(plan.manipulation)
    assert seen == {BLENDED, WHOLE}


def test_table_pairs_each_twin_with_its_real(tmp_path: Path, files: tuple[Path, Path]) -> None:
    table, out = write_family(tmp_path / "faces", "faces", paired=False), tmp_path / "twins"
    arguments = ["--crops", str(table), "--encoder", str(files[0]), "--decoder", str(files[1]), "--out", str(out)]
    arguments += ["--per-family", "3", "--val-per-family", "2"]
    assert main(arguments) == 0
    for split, count in (("train", 3), ("val", 2)):
        crops = load_crops(out / "crops.csv", split=split, progress=False)
        assert crops.labels.tolist() == [0, 1] * count
        assert crops.originals.tolist() == [value for pair in range(count) for value in (-1, 2 * pair)]
        assert crops.images.shape[-1] == SIDE
        sources = set(read_split(out / "crops.csv", split=split).identity)
        assert sources <= {f"faces{split}REAL{n}" for n in range(8)}

    # A stopped run resumes: existing files are not made again, and the table is the same.
    written = {path: path.read_bytes() for path in (out / "twins").iterdir()}
    text = (out / "crops.csv").read_bytes()
    lost, *kept = sorted(written)
    for path in kept:
        cv2.imwrite(str(path), np.zeros((SIDE, SIDE, 3), np.uint8))
    lost.unlink()
    assert main(arguments) == 0
    assert (out / "crops.csv").read_bytes() == text
    assert lost.read_bytes() == written[lost]
    assert sum(path.read_bytes() == written[path] for path in kept) == 1  # the other crop of the lost one's pair


def test_inputs_are_not_overwritten(tmp_path: Path, files: tuple[Path, Path]) -> None:
    table = write_family(tmp_path / "faces", "faces", paired=False)
    before = table.read_bytes()
    arguments = ["--crops", str(table), "--encoder", str(files[0]), "--decoder", str(files[1])]
    assert main([*arguments, "--out", str(table.parent)]) == 1
    assert table.read_bytes() == before
