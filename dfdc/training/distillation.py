"""Distillation: trained models answer for the crops that they know well, and the new model learns their answers, too.

The teachers see the very pixels that the new model sees, augmented and mixed. That tells it more than answers for the
plain crops would, which trained teachers give with certainty (Beyer et al., "Knowledge distillation: a good teacher is
patient and consistent", 2022).
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
        digests: of its weights files, 64 hex digits each.
        families: of crops that it answers for; empty for all.
    """

    def __init__(
        self, paths: Sequence[Path], *, families: Sequence[str] = (), device: torch.device | str = "cpu"
    ) -> None:
        """Open the models.

        Args:
            paths: weights files of face models.
            families: of crops that they answer for; empty for all.
            device: that they run on.

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
        """The model in evaluation mode; on the CPU the faster copy, where the architecture has one."""
        if self._device.type != "cpu" or not hasattr(model.net, "_conv_stem"):
            return model
        folded = FoldedModel(model)
        folded.copy.eval()
        folded.fold()
        return folded

    def knows(self, families: np.ndarray | None, count: int) -> Tensor:
        """Which of some crops it answers for: (N,) bool on the CPU.

        Args:
            families: (N,) of the crops; None where they name none.
            count: N.
        """
        if not self.families or families is None:
            return torch.ones(count, dtype=torch.bool)
        return torch.from_numpy(np.isin(families, self.families))

    @torch.no_grad()
    def answer(self, crops: Tensor) -> Tensor:
        """P(fake), (N,) float32, the weighted mean of the models' calibrated logits, unbounded.

        Args:
            crops: (N, 3, S, S) float32 in 0..255 on the teacher's device.
        """
        logits = [
            _calibrate(spec, model(crops)) * spec.weight for spec, model in zip(self._specs, self._models, strict=True)
        ]
        return torch.sigmoid(torch.stack(logits).sum(0) / sum(spec.weight for spec in self._specs))


def _calibrate(spec: ModelSpec, logits: Tensor) -> Tensor:
    return logits.float() / spec.calibration.temperature + spec.calibration.bias
