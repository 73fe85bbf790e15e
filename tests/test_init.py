"""dfdc.training.init: published weights are read only if their digest is the pinned one, and never unpickled."""

from __future__ import annotations

import hashlib
import os
from dataclasses import replace
from pathlib import Path
from urllib.error import URLError

import pytest
import torch
from efficientnet_pytorch import EfficientNet
from efficientnet_pytorch.utils import url_map
from torch import Tensor
from torchvision.models import MobileNet_V2_Weights, mobilenet_v2

from dfdc.errors import WeightsError
from dfdc.networks import FrameModel
from dfdc.training import init
from dfdc.training.init import PUBLISHED, download_imagenet
from dfdc.weights import ARCHITECTURES, ModelSpec

SIDE = 32
B0, LITE0, MOBILE = "efficientnet-b0", "efficientnet-lite0", "mobilenet-v2"


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Torch's empty download folder on a machine without a network."""

    def offline(*_: object, **__: object) -> None:
        raise URLError("no network")

    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    monkeypatch.setattr(torch.hub, "download_url_to_file", offline)
    (tmp_path / "checkpoints").mkdir()
    return tmp_path / "checkpoints"


def publish(cache: Path, monkeypatch: pytest.MonkeyPatch, architecture: str, content: object) -> Path:
    """Put a file into the cache as if it were the published one."""
    path = cache / PUBLISHED[architecture].name
    torch.save(content, path)
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    monkeypatch.setitem(init.PUBLISHED, architecture, replace(PUBLISHED[architecture], sha256=digest))
    return path


def tensors_of(architecture: str) -> dict[str, Tensor]:
    """Tensors as the publishers name them, with their classifier of a thousand classes, all 0.25."""
    network = mobilenet_v2() if architecture == MOBILE else EfficientNet.from_name(architecture)
    return {key: torch.full_like(value, 0.25) for key, value in network.state_dict().items()}


def test_every_architecture_has_published_weights_at_its_librarys_address() -> None:
    assert set(PUBLISHED) == set(ARCHITECTURES)
    theirs = {**url_map, MOBILE: MobileNet_V2_Weights.IMAGENET1K_V2.url}
    assert {name: PUBLISHED[name].url for name in theirs} == theirs
    for name, published in PUBLISHED.items():  # the publishers put the first eight digits into the names
        assert published.name.endswith(f"-{published.sha256[:8]}.pth")
        assert len(published.sha256) == (8 if name == LITE0 else 64)


def test_published_weights_fit_and_bring_their_normalization(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    publish(cache, monkeypatch, B0, tensors_of(B0))
    model = download_imagenet(ModelSpec(B0, SIDE))
    assert (model.net._conv_stem.weight == 0.25).all() and not (model.net._fc.weight == 0.25).all()
    assert model.spec.mean == pytest.approx((0.485 * 255, 0.456 * 255, 0.406 * 255))
    assert model.spec.std == pytest.approx((0.229 * 255, 0.224 * 255, 0.225 * 255))
    assert model.std.flatten().tolist() == pytest.approx(model.spec.std)
    publish(cache, monkeypatch, MOBILE, tensors_of(MOBILE))
    model = download_imagenet(ModelSpec(MOBILE, SIDE))
    assert (model.net.features[0][0].weight == 0.25).all() and not (model.net.classifier[1].weight == 0.25).all()


def test_missing_network_is_reported_with_the_cure(cache: Path) -> None:
    for architecture in (B0, LITE0, MOBILE):
        with pytest.raises(WeightsError, match=r"cannot be fetched .*no network.*--init"):
            download_imagenet(ModelSpec(architecture, SIDE))


def test_download_is_kept_in_the_cache(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = publish(cache, monkeypatch, B0, tensors_of(B0))
    content = path.read_bytes()
    path.unlink()
    asked = []

    def fetch(url: str, target: str, **_: object) -> None:
        asked.append(url)
        Path(target).write_bytes(content)

    monkeypatch.setattr(torch.hub, "download_url_to_file", fetch)
    for _ in range(2):
        download_imagenet(ModelSpec(B0, SIDE))
    assert asked == [url_map[B0]] and path.read_bytes() == content


class Evil:
    """Makes a folder if it is unpickled."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __reduce__(self) -> tuple:
        return os.mkdir, (str(self.folder),)


@pytest.mark.parametrize("architecture", [B0, "efficientnet-b7", LITE0, MOBILE])
@pytest.mark.parametrize("digest_fits", [False, True])
def test_a_planted_pickle_is_never_run(
    cache: Path, monkeypatch: pytest.MonkeyPatch, architecture: str, digest_fits: bool
) -> None:
    """Even a file with the right first digits of the digest, which takes billions of tries to forge, runs nothing."""
    if digest_fits:
        publish(cache, monkeypatch, architecture, {"x": Evil(cache / "ran")})
    else:
        torch.save({"x": Evil(cache / "ran")}, cache / PUBLISHED[architecture].name)
    with pytest.raises(WeightsError, match="delete it"):
        download_imagenet(ModelSpec(architecture, SIDE))
    assert not (cache / "ran").exists()


@pytest.mark.parametrize("architecture", [B0, LITE0, MOBILE])
def test_tensors_with_another_digest_are_refused(cache: Path, architecture: str) -> None:
    torch.save(FrameModel(ModelSpec(architecture, SIDE)).net.state_dict(), cache / PUBLISHED[architecture].name)
    with pytest.raises(WeightsError, match="SHA-256 begins with"):
        download_imagenet(ModelSpec(architecture, SIDE))


def test_tensors_of_another_model_are_refused(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    publish(cache, monkeypatch, B0, tensors_of(MOBILE))
    with pytest.raises(WeightsError, match=r"do not fit efficientnet-b0; missing: _conv_stem\.weight"):
        download_imagenet(ModelSpec(B0, SIDE))


def test_lite0_tensors_are_renamed_from_timm_one_to_one(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """timm numbers blocks by stage and layers by kind. The features equal those of timm 1.0.31 to the last bit."""
    torch.manual_seed(1)
    wanted = FrameModel(ModelSpec(LITE0, SIDE)).net.state_dict()
    stages = [(stage, i) for stage, n in enumerate((1, 2, 2, 3, 3, 4, 1)) for i in range(n)]
    first = {"_depthwise_conv": "conv_dw", "_bn1": "bn1", "_project_conv": "conv_pw", "_bn2": "bn2"}
    others = {"_expand_conv": "conv_pw", "_bn0": "bn1", "_depthwise_conv": "conv_dw", "_bn1": "bn2"}
    others |= {"_project_conv": "conv_pwl", "_bn2": "bn3"}
    outside = {"_conv_stem": "conv_stem", "_bn0": "bn1", "_conv_head": "conv_head", "_bn1": "bn2", "_fc": "classifier"}
    published = {}
    for key, value in wanted.items():
        match key.split("."):
            case ["_blocks", number, layer, parameter]:
                stage, i = stages[int(number)]
                name = f"blocks.{stage}.{i}.{(others if stage else first)[layer]}.{parameter}"
            case [layer, parameter]:
                name = f"{outside[layer]}.{parameter}"
        published[name] = torch.zeros(1000) if "classifier" in name else value
    publish(cache, monkeypatch, LITE0, published)
    torch.manual_seed(2)
    model = download_imagenet(ModelSpec(LITE0, SIDE))
    assert model.spec.mean == model.spec.std == (127.5, 127.5, 127.5)
    got = model.net.state_dict()
    assert all(torch.equal(got[key], value) for key, value in wanted.items() if not key.startswith("_fc."))
