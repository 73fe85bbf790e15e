"""Faces -> calibrated logits of an ensemble of frame models."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from dfdc.crop import CropGeometry, crop_face
from dfdc.errors import WeightsError
from dfdc.models import open_models
from dfdc.runtime import Network, run_logits
from dfdc.weights import ModelSpec, WeightsFile, select

# A frame, a box and, unless the face is upright, an angle.
Face = tuple[np.ndarray, np.ndarray] | tuple[np.ndarray, np.ndarray, float]

# Batch size in pairs of views. On the CPU a model takes them one by one, whatever the batch size. The 32 faces of one
# person, which share the two views, make 16 pairs.
BATCH_CROPS = {"cpu": 2, "cuda": 16}
# For a person with at least this many faces, each face is scored in only one of the two views, alternating between
# them. This halves the work and changes a clip's logit by about a tenth (docs/experiments.md).
MIN_SHARED = 8


class Ensemble:
    """Face models whose calibrated logits are averaged: all of them, or only the first n."""

    def __init__(
        self,
        files: list[WeightsFile],
        device: str = "cpu",
        *,
        threads: int | None = None,
        models: Sequence[Network] | None = None,
    ) -> None:
        """Open the models.

        Args:
            files: checked weights; models whose input is not faces are ignored.
            device: "cpu" or "cuda".
            threads: see `dfdc.models.open_models`.
            models: the opened models of these files, if they are at hand; None opens them.

        Raises:
            WeightsError: see `dfdc.models.open_models`.
        """
        device, files = str(device), select("face", files)
        self.specs = [file.spec for file in files]
        self.batch_size = BATCH_CROPS[device]
        self.models = open_models(files, device=device, threads=threads) if models is None else models

    def bounds(self, n_models: int | None = None) -> tuple[float, float]:
        """The lowest and the highest probability of the first n_models models: the weighted means of their bounds."""
        specs = self.specs[:n_models]
        bounds = [(spec.calibration.low, spec.calibration.high) for spec in specs]
        low, high = np.average(bounds, 0, [spec.weight for spec in specs])
        return float(low), float(high)

    def score(
        self,
        faces: list[Face],
        *,
        lengths: Sequence[int] | None = None,
        n_models: int | None = None,
    ) -> np.ndarray:
        """Score faces; each is cropped with the geometry of each model.

        Args:
            faces: for each face, its frame (H, W, 3) uint8 RGB, its box (4,) x0, y0, x1, y1 in pixels and, unless it is
                upright, the degrees clockwise by which it is rolled.
            lengths: number of faces of the first person, the second and so on; see `share_views`. None if the faces do
                not belong together; each is then scored in both views.
            n_models: use only the first n models; None for all.

        Returns:
            (N,) float64: the mean of the models' calibrated logits, weighted by `ModelSpec.weight`; above 0 means fake.

        Raises:
            FloatingPointError: a model's output is not finite; half precision may overflow.
        """
        return self.score_cut(self.cut(faces, n_models=n_models), lengths=lengths)

    def cut(self, faces: list[Face], *, n_models: int | None = None) -> list[np.ndarray]:
        """Crop faces (see `score`) for each of the first n models; see `cut_for`."""
        return cut_for(self.specs[:n_models], faces)

    def score_crops(self, crops: np.ndarray) -> np.ndarray:
        """Score crops that are already cut, the same ones for every model.

        Args:
            crops: (N, 3, S, S) uint8 RGB, an array or a tensor on the CPU; S is the crop size of every model.

        Returns:
            The same as `score`.

        Raises:
            WeightsError: the crops have another size.
        """
        images = np.asarray(crops).transpose(0, 2, 3, 1)
        for spec in self.specs:
            if images.shape[1:3] != (spec.crop.size, spec.crop.size):
                raise WeightsError(
                    f"crops of {images.shape[2]}x{images.shape[1]} px; {spec.architecture} was trained on crops of "
                    f"{spec.crop.size} px: cut them again with tools/make_crops.py, or name other weights"
                )
        return self.score_cut([images] * len(self.models))

    def score_cut(self, crops: list[np.ndarray], *, lengths: Sequence[int] | None = None) -> np.ndarray:
        """Score the crops that `cut` returned; the result is that of `score`."""
        views = share_views([1] * len(crops[0]) if lengths is None else lengths)
        specs = self.specs[: len(crops)]
        runs = zip(specs, self.models, crops, strict=False)
        logits = [spec.calibration.logits(self._run(network, seen, views)) for spec, network, seen in runs]
        return np.average(logits, 0, [spec.weight for spec in specs])

    def _run(self, network: Network, crops: np.ndarray, views: np.ndarray) -> np.ndarray:
        """A model's logits (N,) for crops (N, S, S, 3): for each crop, the mean over the views that show it."""
        sums, counts = np.zeros(len(crops)), np.bincount(views.ravel(), minlength=len(crops))
        for start in range(0, len(views), self.batch_size):  # memory never holds two copies of all crops
            part = views[start : start + self.batch_size]
            shown = np.concatenate([crops[part[:, 0]], crops[part[:, 1]]], 3)
            np.add.at(sums, part, run_logits(network, shown, self.batch_size))
        return sums / counts


def share_views(lengths: Sequence[int]) -> np.ndarray:
    """Choose which crop each of a model's two views shows.

    Args:
        lengths: number of crops of the first person, the second and so on.

    Returns:
        (V, 2) int64 indices of crops, counted through all persons: the crops for the first and for the second view. If
        a person has fewer than `MIN_SHARED` crops, each crop is shown in both views. Otherwise neighbouring crops share
        a pair of views, one view each, and a last crop without a neighbour is shown in both.
    """
    views, start = [np.zeros((0, 2), np.int64)], 0
    for length in lengths:
        own = np.arange(start, start + length)
        shared = length // 2 * 2 if length >= MIN_SHARED else 0
        views += [own[:shared].reshape(-1, 2), np.stack([own[shared:]] * 2, 1)]
        start += length
    return np.concatenate(views)


def cut_crops(faces: list[Face], geometry: CropGeometry) -> np.ndarray:
    """Crop faces as one batch.

    Args:
        faces: frames, boxes and angles; see `Ensemble.score`.
        geometry: the crop geometry.

    Returns:
        (N, size, size, 3) uint8 RGB.
    """
    crops = np.empty((len(faces), geometry.size, geometry.size, 3), np.uint8)
    for crop, (frame, box, *angle) in zip(crops, faces, strict=True):
        crop[:] = crop_face(frame, box, geometry, angle=angle[0] if angle else 0.0)
    return crops


def cut_for(specs: Sequence[ModelSpec], faces: list[Face]) -> list[np.ndarray]:
    """Crop faces for each model: (N, S, S, 3) uint8 RGB; models of equal geometry share an array."""
    crops: dict[CropGeometry, np.ndarray] = {}
    for spec in specs:
        if spec.crop not in crops:
            crops[spec.crop] = cut_crops(faces, spec.crop)
    return [crops[spec.crop] for spec in specs]
