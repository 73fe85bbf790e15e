"""Faces -> calibrated logits of one or several frame models."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from dfdc.crop import CropGeometry, crop_face
from dfdc.runtime import Input, Net, compile_net, run_logits
from dfdc.weights import WeightsError, WeightsFile, that_see

if TYPE_CHECKING:
    from torch import nn

# Crops go through a net in groups of so many: on one core groups of 8 are no faster, and take 25 MB more a worker.
BATCH_CROPS = {"cpu": 4, "cuda": 256}


def build_crop_nets(files: list[WeightsFile], device: str) -> list[tuple[nn.Module, Input]]:
    """Each file's net, and the crops that it takes; half precision on CUDA, single on the CPU.

    Raises:
        WeightsError: a file's tensors do not fit its architecture.
    """
    from dfdc.model import CropNet, load_model

    loaded = [load_model(file, device=device, half=device == "cuda") for file in files]
    return [(CropNet(model).eval(), Input.images(model.spec.crop.size)) for model in loaded]


class Ensemble:
    """Nets that answer together, all or the first so many of them."""

    def __init__(self, files: list[WeightsFile], device: str = "cpu", *, nets: Sequence[Net] | None = None) -> None:
        """Load every file.

        Args:
            files: checked weights; those that see something else than faces are passed over.
            device: "cpu" or "cuda".
            nets: the files' nets where they are at hand; None builds them, by torch.

        Raises:
            WeightsError: a file's tensors do not fit its architecture.
        """
        device, files = str(device), that_see("face", files)
        self.specs = [file.spec for file in files]
        self.batch_size = BATCH_CROPS[device]
        self.nets = nets or [compile_net(net, device, takes) for net, takes in build_crop_nets(files, device)]

    def bounds(self, n_nets: int | None = None) -> tuple[float, float]:
        """The least and the greatest probability that so many nets answer with: the means of theirs."""
        calibrations = [spec.calibration for spec in self.specs[:n_nets]]
        return float(np.mean([c.low for c in calibrations])), float(np.mean([c.high for c in calibrations]))

    def score(self, faces: list[tuple[np.ndarray, np.ndarray]], *, n_nets: int | None = None) -> np.ndarray:
        """Score faces, each cut as each net wants it.

        Args:
            faces: pairs of a frame (H, W, 3) uint8 RGB and a box (4,) x0, y0, x1, y1 in its pixels.
            n_nets: how many nets answer, the first ones; None for all.

        Returns:
            (N,) float64: the mean over the nets of their calibrated logits; above 0 means fake.

        Raises:
            FloatingPointError: a net's answer is not finite, as half precision may overflow.
        """
        return self.score_cut(self.cut(faces, n_nets=n_nets))

    def cut(self, faces: list[tuple[np.ndarray, np.ndarray]], *, n_nets: int | None = None) -> list[np.ndarray]:
        """The faces, see `score`, as each net wants them: (N, S, S, 3) uint8 RGB, one array for nets that agree."""
        crops: dict[CropGeometry, np.ndarray] = {}
        specs = self.specs[:n_nets]
        for spec in specs:
            if spec.crop not in crops:
                crops[spec.crop] = cut_crops(faces, spec.crop)
        return [crops[spec.crop] for spec in specs]

    def score_crops(self, crops: np.ndarray) -> np.ndarray:
        """Score crops that have been cut already, the same for every net.

        Args:
            crops: (N, 3, S, S) uint8 RGB, an array or a tensor on the CPU; S the crop size of every net's geometry.

        Returns:
            As `score`.

        Raises:
            WeightsError: the crops have another size.
        """
        images = np.asarray(crops).transpose(0, 2, 3, 1)
        for spec in self.specs:
            if images.shape[1:3] != (spec.crop.size, spec.crop.size):
                raise WeightsError(
                    f"crops of {images.shape[2]}x{images.shape[1]} px; {spec.architecture} was trained on crops of "
                    f"{spec.crop.size} px: cut them anew with tools/make_crops.py, or name other weights"
                )
        return self.score_cut([images] * len(self.nets))

    def score_cut(self, crops: list[np.ndarray]) -> np.ndarray:
        """Score the crops that `cut` returned; as `score`."""
        runs = zip(self.specs, self.nets, crops, strict=False)
        return np.mean([spec.calibration.logits(run_logits(net, seen, self.batch_size)) for spec, net, seen in runs], 0)


def cut_crops(faces: list[tuple[np.ndarray, np.ndarray]], geometry: CropGeometry) -> np.ndarray:
    """Crops of faces as one batch.

    Args:
        faces: pairs of a frame (H, W, 3) uint8 RGB and a box (4,).
        geometry: how they are cut.

    Returns:
        (N, size, size, 3) uint8 RGB.
    """
    crops = np.empty((len(faces), geometry.size, geometry.size, 3), np.uint8)
    for crop, (frame, box) in zip(crops, faces, strict=True):
        crop[:] = crop_face(frame, box, geometry)
    return crops
