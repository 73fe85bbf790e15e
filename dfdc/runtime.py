"""Weights on a device: crops -> calibrated logits of the whole ensemble."""

from __future__ import annotations

import numpy as np
import torch

from dfdc.crop import CropGeometry, crop_face
from dfdc.model import load_model
from dfdc.weights import WeightsError, WeightsFile

# Crops go through a net in groups of so many: on two cores larger groups are no faster, only larger.
BATCH_CROPS = {"cpu": 16, "cuda": 256}


def choose_device(wanted: str) -> torch.device:
    """The device to run on.

    Args:
        wanted: "cpu", "cuda", or "auto" for CUDA where there is one.

    Raises:
        WeightsError: CUDA is wanted and there is none.
    """
    if wanted == "cuda" and not torch.cuda.is_available():
        raise WeightsError("--device cuda: no CUDA device is visible; use --device cpu or auto, or turn the GPU on")
    return torch.device("cuda" if wanted != "cpu" and torch.cuda.is_available() else "cpu")


class Ensemble:
    """One or several nets that answer together; half precision on CUDA, single on the CPU.

    Attributes:
        low, high: bounds of the ensemble's probabilities, the means of its members'.
    """

    def __init__(self, files: list[WeightsFile], device: torch.device) -> None:
        self.device = device
        self.models = [load_model(file, device=device, half=device.type == "cuda") for file in files]
        calibrations = [model.spec.calibration for model in self.models]
        self.low = float(np.mean([c.low for c in calibrations]))
        self.high = float(np.mean([c.high for c in calibrations]))

    def score(self, faces: list[tuple[np.ndarray, np.ndarray]]) -> np.ndarray:
        """Score faces, each cut as each net wants it.

        Args:
            faces: pairs of a frame (H, W, 3) uint8 RGB and a box (4,) x0, y0, x1, y1 in its pixels.

        Returns:
            (N,) float64: the mean over the nets of their calibrated logits; above 0 means fake.
        """
        crops: dict[CropGeometry, torch.Tensor] = {}
        logits = np.zeros(len(faces))
        for model in self.models:
            geometry = model.spec.crop
            if geometry not in crops:
                crops[geometry] = cut_crops(faces, geometry)
            logits += model.spec.calibration.logits(self._run(model, crops[geometry]))
        return logits / len(self.models)

    @torch.inference_mode()
    def _run(self, model: torch.nn.Module, crops: torch.Tensor) -> np.ndarray:
        batches = crops.split(BATCH_CROPS[self.device.type])
        return np.concatenate([model(batch.to(self.device)).float().cpu().numpy() for batch in batches] or [[]])


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
