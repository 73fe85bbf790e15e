"""Weights folder -> verified specifications: what a checkpoint says of itself, read without loading a net.

A weights file is a safetensors file named ``<name>-<first 12 hex digits of its SHA-256>.safetensors``. Its header
holds a `ModelSpec` as JSON, so that nothing about the net, its input or its calibration is a flag at inference.
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
# EfficientNet-B7 in single precision has a quarter of this.
MAX_FILE_BYTES = 2**30
ARCHITECTURES = (
    "efficientnet-lite0",
    *(f"efficientnet-b{i}" for i in range(8)),
    "mobilenet-v2",
)
# What nets look at, and the channels of it: a face crop; how a face crop changes to the next frame; a spectrogram.
CHANNELS = {"face": 3, "motion": 3, "sound": 1}
# Two views of different sizes differ more than mirror images do, and their mean is better (docs/experiments.md): so
# much of what a net sees is repeated edge on each side of the mirror image.
VIEW_MARGIN = 0.05
# How a change of so many levels looks to a net for motion: grey where there is none; 43 levels fill the scale.
GREY, CHANGE_GAIN = 127.0, 3.0
# Below a folder of weights, those that the kernel uses only when told, and what they may see.
OPTIONAL = "optional"
EXTRAS = ("motion", "sound")
# And those that answer beside the others unless only the first are asked for; see `WorkerSettings.models`.
FURTHER = "further"
# Where an installed package holds the shipped weights; pyproject.toml puts them there.
PACKAGED = "_weights"


@dataclass(frozen=True)
class Calibration:
    """From a net's logit to a probability that can be bet on.

    Attributes:
        temperature: the logit is divided by it, > 0.
        bias: added after that.
        low: the least probability ever answered, in (0, 0.5].
        high: the greatest, in [0.5, 1).
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
        """Calibrated logits (any shape, float64) of a net's."""
        return np.asarray(raw, np.float64) / self.temperature + self.bias

    def probabilities(self, raw: np.ndarray) -> np.ndarray:
        """P(fake), float64 in [low, high], of a net's logits of any shape."""
        return np.clip(sigmoid(self.logits(raw)), self.low, self.high)


def sigmoid(logits: np.ndarray) -> np.ndarray:
    """Probabilities, float64 in 0..1, of logits of any shape."""
    return 1 / (1 + np.exp(-np.clip(np.asarray(logits, np.float64), -700, 700)))


@dataclass(frozen=True)
class ModelSpec:
    """Everything that rebuilds a net and feeds it; it travels in the header of the weights file.

    Attributes:
        architecture: one of `ARCHITECTURES`.
        input_size: side in pixels of the square that the net sees; crops of another size are resized inside it. Of a
            net for sound, the columns of the spectrogram that it sees, each a hundredth of a second.
        sees: one of `CHANNELS`.
        mean, std: per channel (RGB for faces), of the values that reach the net: it sees (value - mean) / std.
        crop: how a crop is cut for this net.
        calibration: from its logit to P(fake).
        weight: how much its calibrated logit counts: of a net that sees faces, in the mean of the ensemble, > 0; of one
            for motion, as what is added to that mean, >= 0.
        trained_on: data, in words.
        command: the command that made the file.
        validation: what it scores there, by name ("auc", "log_loss", ...).
        commit: of the code that trained it.
    """

    architecture: str
    input_size: int
    sees: str = "face"
    mean: tuple[float, ...] = (127.0, 127.0, 127.0)
    std: tuple[float, ...] = (128.0, 128.0, 128.0)
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
        if self.sees == "face" and not self.weight > 0:
            raise ValueError(f"weight is {self.weight}; allowed above 0 for a net that sees faces")
        if not 0 <= self.weight < math.inf:
            raise ValueError(f"weight is {self.weight}; allowed are finite numbers from 0 up")

    @property
    def channels(self) -> int:
        """Of the net's input."""
        return CHANNELS[self.sees]

    def to_json(self) -> str:
        return json.dumps(asdict(self), sort_keys=True)

    @classmethod
    def from_json(cls, text: str) -> ModelSpec:
        """The inverse of `to_json`.

        Raises:
            ValueError, TypeError, KeyError: the text is not a specification.
        """
        values = json.loads(text)
        return cls(
            **{
                **values,
                "mean": tuple(values["mean"]),
                "std": tuple(values["std"]),
                "crop": CropGeometry(**values["crop"]),
                "calibration": Calibration(**values["calibration"]),
                "validation": dict(values.get("validation", {})),
            }
        )


@dataclass(frozen=True)
class WeightsFile:
    """A weights file whose digest fits its name.

    Attributes:
        path, digest, spec: where it lies, its SHA-256 as 64 hex digits, and what its header says.
        further: whether it is one of a folder's `FURTHER`.
    """

    path: Path
    digest: str
    spec: ModelSpec
    further: bool = False

    def read(self) -> bytes:
        """The bytes whose digest was checked.

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
    """Read a weights file once, and check its digest on what was read.

    Returns:
        Its bytes, and their SHA-256 as 64 hex digits.

    Raises:
        WeightsError: the name carries no digest, the digest does not fit, or it is no regular file that can be read.
    """
    named = re.fullmatch(rf".+-([0-9a-f]{{{DIGEST_DIGITS}}})\.safetensors", path.name)
    if named is None:
        raise WeightsError(
            f"{path}: the name carries no digest; allowed is NAME-<{DIGEST_DIGITS} hex digits>.safetensors, "
            "as tools/train.py writes it"
        )
    try:
        data = _read_regular(path)
    except OSError as error:
        raise WeightsError(f"{path}: cannot be read ({error.strerror}); check the file and its permissions") from error
    digest = hashlib.sha256(data).hexdigest()
    if not digest.startswith(named[1]):
        raise WeightsError(
            f"{path}: its SHA-256 begins with {digest[:DIGEST_DIGITS]}, its name says {named[1]}; "
            "the file is damaged or changed: copy it again"
        )
    return data, digest


def _read_regular(path: Path) -> bytes:
    """The bytes of a regular file; a pipe or a device is not waited for."""
    opened = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0))
    with open(opened, "rb") as file:
        status = os.fstat(opened)
        if not stat.S_ISREG(status.st_mode):
            raise WeightsError(f"{path}: is no regular file; name a .safetensors file")
        if status.st_size > MAX_FILE_BYTES:
            raise WeightsError(f"{path}: has {status.st_size:,} bytes; allowed are {MAX_FILE_BYTES:,}")
        return file.read(MAX_FILE_BYTES)


def open_weights(path: Path) -> WeightsFile:
    """Check one weights file and read its specification.

    Raises:
        WeightsError: the name carries no digest, the digest does not fit, or the header is not ours.
    """
    data, digest = read_weights(path)
    return WeightsFile(path, digest, _read_spec(path, data))


def _read_spec(path: Path, data: bytes) -> ModelSpec:
    """The specification in a safetensors header: 8 bytes of length (little endian), then JSON."""
    try:
        length = int.from_bytes(data[:8], "little")
        if length > MAX_HEADER_BYTES:
            raise ValueError(f"a header of {length} bytes")
        return ModelSpec.from_json(json.loads(data[8 : 8 + length])["__metadata__"]["spec"])
    except (ValueError, KeyError, TypeError, AttributeError, ArithmeticError, RecursionError) as error:
        raise WeightsError(
            f"{path}: no valid model specification in its header ({error!r}); "
            "allowed are safetensors files written by tools/train.py"
        ) from error


def shipped_weights() -> Path:
    """The folder of the weights that come with the package: its own data once installed, weights/ in a checkout."""
    package = Path(__file__).resolve().parent
    packaged = package / PACKAGED
    return packaged if packaged.is_dir() else package.parent / "weights"


def find_weights(path: Path, *, extras: Sequence[str] = ()) -> list[WeightsFile]:
    """Open a weights file, or every weights file of a folder and those of its `FURTHER`; several form an ensemble.

    Args:
        path: a .safetensors file or a folder that holds some.
        extras: what nets of the folder's `OPTIONAL` are opened too, by what they see.

    Returns:
        At least one, the best first by log loss on validation, which answers alone where time is short; by name where
        none is stated. Then the further ones, in the same order, and the optional ones.

    Raises:
        WeightsError: nothing there, or a file that does not check.
    """
    if path.is_dir():
        files = sorted(path.glob("*.safetensors"))
        if not files:
            raise WeightsError(f"{path}: holds no .safetensors file; train one with tools/train.py or name another")
    elif path.is_file():
        files = [path]
    else:
        raise WeightsError(f"{path}: no such weights file or folder; name one with --weights")
    opened = sorted(map(open_weights, files), key=_stated_log_loss)
    if not that_see("face", opened):
        raise WeightsError(f"{path}: none of its weights sees faces, and without these no clip is scored; name others")
    further = [replace(open_weights(file), further=True) for file in sorted((path / FURTHER).glob("*.safetensors"))]
    opened += sorted(further, key=_stated_log_loss)
    if extras and not path.is_dir():
        raise WeightsError(f"{path}: is one file, and --with looks into a folder's {OPTIONAL}/; name the folder")
    optional = [open_weights(file) for file in sorted((path / OPTIONAL).glob("*.safetensors"))] if extras else []
    for wanted in sorted(set(extras)):  # in whichever order they are asked for, a run is the same run
        fitting = that_see(wanted, optional)
        if not fitting:
            raise WeightsError(f"{path / OPTIONAL}: no weights see {wanted}; copy some there, or leave out --with")
        opened += fitting
    return opened


def find_one(path: Path, what: str) -> WeightsFile:
    """The weights that see one of `CHANNELS`: a file, or the first such of a folder.

    Raises:
        WeightsError: none there, or a file that does not check.
    """
    if not path.exists():
        raise WeightsError(f"{path}: no such weights file or folder; name one with --weights")
    files = [path] if path.is_file() else sorted(path.glob("*.safetensors"))
    fitting = that_see(what, map(open_weights, files))
    if not fitting:
        raise WeightsError(f"{path}: holds no weights that see {what}; train some, as README.md says, or name others")
    return fitting[0]


def _stated_log_loss(file: WeightsFile) -> float:
    """On validation, both classes counted alike where that is stated; infinite where nothing or no number is."""
    validation = file.spec.validation
    loss = validation.get("balanced_log_loss", validation.get("log_loss"))
    return loss if isinstance(loss, int | float) and not math.isnan(loss) else math.inf


def that_see(what: str, files: Iterable[WeightsFile]) -> list[WeightsFile]:
    """Of weights files those whose nets see one of `CHANNELS`, in their order."""
    return [file for file in files if file.spec.sees == what]
