"""Faces -> calibrated logits of one or several frame models."""

from __future__ import annotations

import numpy as np
import torch

from dfdc.crop import CropGeometry, crop_face
from dfdc.model import MirroredModel, load_model
from dfdc.runtime import Net, compile_net
from dfdc.weights import WeightsError, WeightsFile

# Crops go through a net in groups of so many: on two cores larger groups are no faster, only larger.
BATCH_CROPS = {"cpu": 8, "cuda": 256}


class Ensemble:
    """Nets that answer together; half precision on CUDA, single on the CPU.

    Attributes:
        low, high: bounds of the ensemble's probabilities, the means of its members'.
    """

    def __init__(self, files: list[WeightsFile], device: torch.device) -> None:
        """Load every file.

        Raises:
            WeightsError: a file's tensors do not fit its architecture.
        """
        self.device = device
        self.specs = [file.spec for file in files]
        self.nets = [self._load(file) for file in files]
        self.low = float(np.mean([spec.calibration.low for spec in self.specs]))
        self.high = float(np.mean([spec.calibration.high for spec in self.specs]))

    def _load(self, file: WeightsFile) -> Net:
        model = load_model(file, device=self.device, half=self.device.type == "cuda")
        size = file.spec.crop.size
        return compile_net(
            MirroredModel(model).eval(), torch.zeros((1, 3, size, size), dtype=torch.uint8, device=self.device)
        )

    def score(self, faces: list[tuple[np.ndarray, np.ndarray]]) -> np.ndarray:
        """Score faces, each cut as each net wants it.

        Args:
            faces: pairs of a frame (H, W, 3) uint8 RGB and a box (4,) x0, y0, x1, y1 in its pixels.

        Returns:
            (N,) float64: the mean over the nets of their calibrated logits; above 0 means fake.
        """
        crops: dict[CropGeometry, torch.Tensor] = {}
        for spec in self.specs:
            if spec.crop not in crops:
                crops[spec.crop] = cut_crops(faces, spec.crop)
        return self._mean_logits([crops[spec.crop] for spec in self.specs])

    def score_crops(self, crops: torch.Tensor) -> np.ndarray:
        """Score crops that have been cut already, the same for every net.

        Args:
            crops: (N, 3, S, S) uint8 RGB, S the crop size of every net's geometry.

        Returns:
            As `score`.

        Raises:
            WeightsError: the crops have another size.
        """
        for spec in self.specs:
            if crops.shape[2:] != (spec.crop.size, spec.crop.size):
                raise WeightsError(
                    f"crops of {crops.shape[3]}x{crops.shape[2]} px; {spec.architecture} was trained on crops of "
                    f"{spec.crop.size} px: cut them anew with tools/make_crops.py, or name other weights"
                )
        return self._mean_logits([crops] * len(self.nets))

    def _mean_logits(self, crops: list[torch.Tensor]) -> np.ndarray:
        runs = zip(self.specs, self.nets, crops, strict=True)
        return np.mean([spec.calibration.logits(self._run(net, seen)) for spec, net, seen in runs], axis=0)

    def _run(self, net: Net, crops: torch.Tensor) -> np.ndarray:
        batches = crops.split(BATCH_CROPS[self.device.type]) if len(crops) else ()
        return np.concatenate([np.zeros(0), *(net(batch.to(self.device))[0].float().cpu() for batch in batches)])


def cut_crops(faces: list[tuple[np.ndarray, np.ndarray]], geometry: CropGeometry) -> torch.Tensor:
    """Crops of faces as one batch.

    Args:
        faces: pairs of a frame (H, W, 3) uint8 RGB and a box (4,).
        geometry: how they are cut.

    Returns:
        (N, 3, size, size) uint8 RGB, channels last in memory.
    """
    crops = np.empty((len(faces), geometry.size, geometry.size, 3), np.uint8)
    for crop, (frame, box) in zip(crops, faces, strict=True):
        crop[:] = crop_face(frame, box, geometry)
    return torch.from_numpy(crops).permute(0, 3, 1, 2)
