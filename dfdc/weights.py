"""Weights folder -> verified model specifications, read from the checkpoints without loading a network.

A weights file is a safetensors file named ``<name>-<first 12 hex digits of its SHA-256>.safetensors``. Its header
holds a `ModelSpec` as JSON, so no property of the model, its input or its calibration is a flag at inference.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import re
import stat
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

import numpy as np

from dfdc.crop import CropGeometry
from dfdc.errors import WeightsError
from dfdc.files import describe_file

DIGEST_DIGITS = 12
MAX_HEADER_BYTES = 16 * 2**20
# EfficientNet-B7 in single precision takes a quarter of this.
MAX_FILE_BYTES = 2**30
# EfficientNet-B7, the largest, has 55 blocks.
MAX_BLOCKS = 64
ARCHITECTURES = (
    "efficientnet-lite0",
    *(f"efficientnet-b{i}" for i in range(8)),
    "mobilenet-v2",
)
# Kinds of model input and their channels: a face crop; the change of a face crop to the next frame; a spectrogram.
CHANNELS = {"face": 3, "motion": 3, "sound": 1}
# Margin of the second view: this share of the model's input is repeated edge on each side of the mirror image. Two
# views of different sizes differ more than mirror images alone, and their mean is better (docs/experiments.md).
VIEW_MARGIN = 0.05
# Input of a motion model: GREY plus CHANGE_GAIN times the change in levels, so a change of 43 levels fills the scale.
GREY, CHANGE_GAIN = 127.0, 3.0
# Sub-folder with models that are used only on request, and the kinds of input that they may have.
OPTIONAL = "optional"
EXTRAS = ("motion", "sound")
# Sub-folder with models that join the ensemble unless only the first ones are requested; see `WorkerSettings.models`.
FURTHER = "further"
# The head's second branch: neurons of its hidden layer, and what is added to a variance before its root is taken.
STATISTICS_NEURONS, VARIANCE_FLOOR = 256, 1e-6
# Folder of the shipped weights inside an installed package; pyproject.toml puts them there.
PACKAGED = "_weights"


@dataclass(frozen=True)
class Calibration:
    """Converts a model's logit to a calibrated probability.

    Attributes:
        temperature: divisor of the logit, > 0.
        bias: added to the quotient.
        low: lower bound of the probability, in (0, 0.5].
        high: upper bound, in [0.5, 1).
    """

    temperature: float = 1.0
    bias: float = 0.0
    low: float = 0.01
    high: float = 0.99

    def __post_init__(self) -> None:
        if not (math.isfinite(self.temperature) and self.temperature > 0 and math.isfinite(self.bias)):
            raise ValueError(f"temperature {self.temperature} and bias {self.bias}: allowed are finite, the first > 0")
        if not 0 < self.low <= 0.5 <= self.high < 1:
            raise ValueError(f"bounds {self.low}, {self.high}: allowed are 0 < low <= 0.5 <= high < 1")

    def logits(self, raw: np.ndarray) -> np.ndarray:
        """Calibrated logits, float64, from a model's logits of any shape."""
        return np.asarray(raw, np.float64) / self.temperature + self.bias

    def probabilities(self, raw: np.ndarray) -> np.ndarray:
        """P(fake), float64 in [low, high], from a model's logits of any shape."""
        return np.clip(sigmoid(self.logits(raw)), self.low, self.high)


def sigmoid(logits: np.ndarray) -> np.ndarray:
    """Probabilities, float64 in 0..1, from logits of any shape."""
    return 1 / (1 + np.exp(-np.clip(np.asarray(logits, np.float64), -700, 700)))


@dataclass(frozen=True)
class ModelSpec:
    """Everything that is needed to rebuild a model and prepare its input; stored in the header of the weights file.

    Attributes:
        architecture: one of `ARCHITECTURES`.
        input_size: side in pixels of the model's square input, 32 to 1024; crops of another size are resized inside the
            model. For a sound model, the number of spectrogram columns, each a hundredth of a second.
        sees: kind of input, one of `CHANNELS`.
        mean, std: normalization per channel (RGB for faces), in the units of the input: (value - mean) / std.
        statistics_blocks: indices of the blocks of an EfficientNet, ascending, whose inputs a second branch of the head
            sees, as the mean and the standard deviation of each channel over all places; empty for a linear head.
        crop: how crops are cut for this model.
        calibration: converts its logit to P(fake).
        weight: weight of its calibrated logit: for a face model, in the weighted mean of the ensemble, > 0; for a
            motion model, in the sum that is added to that mean, >= 0.
        trained_on: description of the training data.
        command: the command that made the file.
        validation: scores on the validation data, by name ("auc", "log_loss", ...).
        commit: commit of the code that trained it.
    """

    architecture: str
    input_size: int
    sees: str = "face"
    mean: tuple[float, ...] = (127.0, 127.0, 127.0)
    std: tuple[float, ...] = (128.0, 128.0, 128.0)
    statistics_blocks: tuple[int, ...] = ()
    crop: CropGeometry = field(default_factory=CropGeometry)
    calibration: Calibration = field(default_factory=Calibration)
    weight: float = 1.0
    trained_on: str = ""
    command: str = ""
    validation: dict[str, float] = field(default_factory=dict)
    commit: str = ""

    def __post_init__(self) -> None:
        if self.architecture not in ARCHITECTURES:
            raise ValueError(f"architecture is {self.architecture!r}; allowed: {', '.join(ARCHITECTURES)}")
        if type(self.input_size) is not int or not 32 <= self.input_size <= 1024:
            raise ValueError(f"input_size is {self.input_size} px; allowed: 32 to 1024")
        if self.sees not in CHANNELS:
            raise ValueError(f"sees is {self.sees!r}; allowed: {', '.join(CHANNELS)}")
        if self.architecture == "mobilenet-v2" and self.channels != 3:
            raise ValueError(f"mobilenet-v2 sees {self.sees!r}; allowed is 'face', or an EfficientNet")
        finite = all(math.isfinite(value) for value in (*self.mean, *self.std))
        if not len(self.mean) == len(self.std) == self.channels or not finite or min(self.std) <= 0:
            raise ValueError(f"mean {self.mean} and std {self.std}: allowed are {self.channels} numbers each, std > 0")
        blocks = self.statistics_blocks
        if blocks and self.architecture == "mobilenet-v2":
            raise ValueError(f"statistics_blocks {blocks[:4]} with mobilenet-v2: only EfficientNets can have them")
        whole = len(blocks) <= MAX_BLOCKS and all(type(block) is int and block >= 0 for block in blocks)
        if not whole or list(blocks) != sorted(set(blocks)):
            raise ValueError(f"statistics_blocks is {blocks[:4]}; allowed are ascending indices of blocks, 0 up")
        if blocks and self.sees != "face":
            raise ValueError(f"statistics_blocks {blocks} for a model that sees {self.sees!r}; allowed is 'face'")
        if self.sees == "face" and not self.weight > 0:
            raise ValueError(f"weight is {self.weight}; allowed is a number above 0 for a face model")
        if not 0 <= self.weight < math.inf:
            raise ValueError(f"weight is {self.weight}; allowed are finite numbers from 0 up")

    @property
    def channels(self) -> int:
        """Number of channels of the model's input."""
        return CHANNELS[self.sees]

    def to_json(self) -> str:
        values = asdict(self)
        if not self.statistics_blocks:  # so that versions without this field can read the file
            del values["statistics_blocks"]
        return json.dumps(values, sort_keys=True)

    @classmethod
    def from_json(cls, text: str) -> ModelSpec:
        """A specification from JSON; the inverse of `to_json`.

        Raises:
            ValueError, TypeError, KeyError: the text is not a specification.
        """
        values = json.loads(text)
        return cls(
            **{
                **values,
                "mean": tuple(values["mean"]),
                "std": tuple(values["std"]),
                "statistics_blocks": tuple(values.get("statistics_blocks", [])),
                "crop": CropGeometry(**values["crop"]),
                "calibration": Calibration(**values["calibration"]),
                "validation": dict(values.get("validation", {})),
            }
        )


@dataclass(frozen=True)
class WeightsFile:
    """A weights file whose digest matches its name.

    Attributes:
        path: of the file.
        digest: its SHA-256 as 64 hex digits.
        spec: the specification in its header.
        further: whether it comes from a folder's sub-folder `FURTHER`.
    """

    path: Path
    digest: str
    spec: ModelSpec
    further: bool = False

    def read(self) -> bytes:
        """Read the bytes whose digest was checked.

        Raises:
            WeightsError: the file cannot be read, or has changed since.
        """
        data, digest = read_weights(self.path)
        if digest != self.digest:
            raise WeightsError(f"{self.path}: has changed since its digest was checked; run again")
        return data


def file_digest(path: Path) -> str:
    """SHA-256 of a file, as 64 hex digits."""
    return describe_file(path).sha256


def read_weights(path: Path) -> tuple[bytes, str]:
    """Read a weights file once and check the digest of the bytes that were read.

    Returns:
        The bytes, and their SHA-256 as 64 hex digits.

    Raises:
        WeightsError: the name carries no digest, the digest does not match, or it is not a readable regular file.
    """
    named = re.fullmatch(rf".+-([0-9a-f]{{{DIGEST_DIGITS}}})\.safetensors", path.name)
    if named is None:
        raise WeightsError(
            f"{path}: the name carries no digest; allowed is NAME-<{DIGEST_DIGITS} hex digits>.safetensors, "
            "as tools/train.py writes it"
        )
    try:
        data = read_regular(path)
    except OSError as error:
        raise WeightsError(f"{path}: cannot be read ({error.strerror}); check the file and its permissions") from error
    digest = hashlib.sha256(data).hexdigest()
    if not digest.startswith(named[1]):
        raise WeightsError(
            f"{path}: its SHA-256 begins with {digest[:DIGEST_DIGITS]}, its name says {named[1]}; "
            "the file is damaged or changed: copy it again"
        )
    return data, digest


def read_regular(path: Path) -> bytes:
    """Read a regular file, without waiting for a pipe or a device.

    Raises:
        WeightsError: it is not a regular file, or larger than `MAX_FILE_BYTES`.
        OSError: it cannot be read.
    """
    opened = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0))
    with open(opened, "rb") as file:
        status = os.fstat(opened)
        if not stat.S_ISREG(status.st_mode):
            raise WeightsError(f"{path}: is not a regular file; name a .safetensors file")
        if status.st_size > MAX_FILE_BYTES:
            raise WeightsError(f"{path}: has {status.st_size:,} bytes; allowed are {MAX_FILE_BYTES:,}")
        return file.read(status.st_size)  # a larger number would allocate as much


def open_weights(path: Path) -> WeightsFile:
    """Check one weights file and read its specification.

    Raises:
        WeightsError: the name carries no digest, the digest does not match, or the header holds no specification.
    """
    data, digest = read_weights(path)
    return WeightsFile(path, digest, _read_spec(path, data))


def read_header(data: bytes) -> dict[str, str]:
    """Read the metadata in a safetensors header: 8 bytes of length (little endian), then JSON.

    Raises:
        ValueError, TypeError, AttributeError, RecursionError: the header is not valid.
    """
    length = int.from_bytes(data[:8], "little")
    if length > MAX_HEADER_BYTES:
        raise ValueError(f"a header of {length} bytes")
    return dict(json.loads(data[8 : 8 + length]).get("__metadata__") or {})


def _read_spec(path: Path, data: bytes) -> ModelSpec:
    try:
        return ModelSpec.from_json(read_header(data)["spec"])
    except (ValueError, KeyError, TypeError, AttributeError, ArithmeticError, RecursionError) as error:
        raise WeightsError(
            f"{path}: no valid model specification in its header ({error!r}); "
            "allowed are safetensors files written by tools/train.py"
        ) from error


def shipped_weights() -> Path:
    """The folder of the shipped weights: package data in an installed package, weights/ in a checkout."""
    package = Path(__file__).resolve().parent
    packaged = package / PACKAGED
    return packaged if packaged.is_dir() else package.parent / "weights"


def find_weights(path: Path, *, extras: Sequence[str] = ()) -> list[WeightsFile]:
    """Open a weights file, or all weights files of a folder and its sub-folder `FURTHER`, which form an ensemble.

    Args:
        path: a .safetensors file, or a folder that contains some.
        extras: kinds of input ("motion", "sound") whose models in the sub-folder `OPTIONAL` are opened too.

    Returns:
        At least one file. The models of the folder itself come first, sorted by validation log loss with the lowest
        first, because the first model is used alone when time is short; models without a stated log loss follow, sorted
        by name. Then come the further ones, sorted likewise, and the optional ones.

    Raises:
        WeightsError: there are no weights, no face model is among them, or a file is not valid.
    """
    if path.is_dir():
        if not (files := sorted(path.glob("*.safetensors"))):
            raise WeightsError(f"{path}: holds no .safetensors file; train one with tools/train.py or name another")
    elif path.is_file():
        files = [path]
    else:
        raise WeightsError(f"{path}: no such weights file or folder; name an existing one")
    opened = sorted(map(open_weights, files), key=_stated_log_loss)
    if not select("face", opened):
        raise WeightsError(f"{path}: holds no face model, which scoring needs; name other weights")
    further = [replace(open_weights(file), further=True) for file in sorted((path / FURTHER).glob("*.safetensors"))]
    opened += sorted(further, key=_stated_log_loss)
    if extras and not path.is_dir():
        raise WeightsError(f"{path}: is one file, and optional models lie in a folder's {OPTIONAL}/; name the folder")
    optional = [open_weights(file) for file in sorted((path / OPTIONAL).glob("*.safetensors"))] if extras else []
    for wanted in sorted(set(extras)):  # sorted, so that the order of the flags does not change the run
        if not (fitting := select(wanted, optional)):
            raise WeightsError(f"{path / OPTIONAL}: holds no {wanted} model; copy one there, or do not ask for it")
        opened += fitting
    return opened


def find_one(path: Path, what: str) -> WeightsFile:
    """Open the weights of a model with a given kind of input: the file, or the first such file of a folder.

    Args:
        path: a .safetensors file, or a folder that contains some.
        what: one of `CHANNELS`.

    Raises:
        WeightsError: there is no such model, or a file is not valid.
    """
    if not path.exists():
        raise WeightsError(f"{path}: no such weights file or folder; name an existing one")
    files = [path] if path.is_file() else sorted(path.glob("*.safetensors"))
    if not (fitting := select(what, map(open_weights, files))):
        raise WeightsError(f"{path}: holds no {what} model; train one, as README.md describes, or name other weights")
    return fitting[0]


def _stated_log_loss(file: WeightsFile) -> float:
    """The validation log loss, balanced by class if stated; infinite if no number is stated."""
    validation = file.spec.validation
    loss = validation.get("balanced_log_loss", validation.get("log_loss"))
    return loss if isinstance(loss, int | float) and not math.isnan(loss) else math.inf


def choose_answering(files: Iterable[WeightsFile], models: str) -> tuple[WeightsFile, ...]:
    """The files whose models answer: "all", or "first" for those that lie directly in the folder of weights."""
    return tuple(file for file in files if models == "all" or not file.further)


def select(what: str, files: Iterable[WeightsFile]) -> list[WeightsFile]:
    """The weights files of models with a given kind of input (one of `CHANNELS`), in the given order."""
    return [file for file in files if file.spec.sees == what]
