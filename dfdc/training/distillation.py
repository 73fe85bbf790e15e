"""Distillation: a new model also learns the probabilities that trained models give to the families that they know.

The teachers get the same augmented and mixed pixels as the new model. Their probabilities for these carry more
information than those for the plain crops, of which trained teachers are certain (Beyer et al., "Knowledge
distillation: a good teacher is patient and consistent", 2022).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from dfdc.errors import WeightsError
from dfdc.networks import load_model
from dfdc.training.folding import FoldedModel
from dfdc.weights import ModelSpec, open_weights, select


class Teacher:
    """An ensemble whose probabilities are part of the targets.

    Attributes:
        digests: SHA-256 of its weights files, 64 hex digits each.
        families: families of crops for which it is used; empty for all.
    """

    def __init__(
        self, paths: Sequence[Path], *, families: Sequence[str] = (), device: torch.device | str = "cpu"
    ) -> None:
        """Open the models.

        Args:
            paths: weights files of face models.
            families: families of crops for which they are used; empty for all.
            device: device on which they run.

        Raises:
            WeightsError: a file is not valid, or is not a face model's.
        """
        files = [open_weights(path) for path in paths]
        if len(select("face", files)) < len(files) or not files:
            raise WeightsError(f"{', '.join(map(str, paths)) or 'no file'}: a teacher needs weights of face models")
        self.digests = tuple(file.digest for file in files)
        self.families = tuple(families)
        self._device = torch.device(device)
        self._specs = [file.spec for file in files]
        self._models = [self._fold(load_model(file, device=self._device)) for file in files]

    def _fold(self, model: torch.nn.Module) -> Callable[[Tensor], Tensor]:
        """Return a faster copy of the model on the CPU if its architecture allows it; otherwise the model itself."""
        if self._device.type != "cpu" or not hasattr(model.net, "_conv_stem"):
            return model
        folded = FoldedModel(model)
        folded.copy.eval()
        folded.fold()
        return folded

    def knows(self, families: np.ndarray | None, count: int) -> Tensor:
        """Select the crops for which the teacher is used.

        Args:
            families: (N,) families of the crops; None if they have none, which selects all.
            count: N.

        Returns:
            (N,) bool on the CPU.
        """
        if not self.families or families is None:
            return torch.ones(count, dtype=torch.bool)
        return torch.from_numpy(np.isin(families, self.families))

    @torch.no_grad()
    def answer(self, crops: Tensor) -> Tensor:
        """Compute P(fake), (N,) float32, from the weighted mean of the models' calibrated logits, without bounds.

        Args:
            crops: (N, 3, S, S) float32 in 0..255 on the teacher's device.
        """
        logits = [
            _calibrate(spec, model(crops)) * spec.weight for spec, model in zip(self._specs, self._models, strict=True)
        ]
        return torch.sigmoid(torch.stack(logits).sum(0) / sum(spec.weight for spec in self._specs))


def _calibrate(spec: ModelSpec, logits: Tensor) -> Tensor:
    return logits.float() / spec.calibration.temperature + spec.calibration.bias
