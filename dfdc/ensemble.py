"""Faces -> calibrated logits of one or several frame models."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from dfdc.crop import CropGeometry, crop_face
from dfdc.errors import WeightsError
from dfdc.nets import open_nets
from dfdc.runtime import Net, run_logits
from dfdc.weights import WeightsFile, that_see

# A frame, a box and, unless the face is upright, an angle.
Face = tuple[np.ndarray, np.ndarray] | tuple[np.ndarray, np.ndarray, float]

# Crops go through a net in groups of so many; the CPU takes them one by one, whatever the group. One person's 32 faces,
# which share the two views, make 16.
BATCH_CROPS = {"cpu": 2, "cuda": 16}
# Of a person with so many faces each face is seen once, by turns in one of the two views, instead of in both: half the
# work, and a clip's logit moves by a tenth (docs/experiments.md).
MIN_SHARED = 8


class Ensemble:
    """Nets that answer together, all or the first so many of them."""

    def __init__(
        self,
        files: list[WeightsFile],
        device: str = "cpu",
        *,
        threads: int | None = None,
        nets: Sequence[Net] | None = None,
    ) -> None:
        """Open every file.

        Args:
            files: checked weights; those that see something else than faces are passed over.
            device: "cpu" or "cuda".
            threads: see `dfdc.nets.open_nets`.
            nets: the files' nets where they are at hand; None opens them.

        Raises:
            WeightsError: see `dfdc.nets.open_nets`.
        """
        device, files = str(device), that_see("face", files)
        self.specs = [file.spec for file in files]
        self.batch_size = BATCH_CROPS[device]
        self.nets = open_nets(files, device=device, threads=threads) if nets is None else nets

    def bounds(self, n_nets: int | None = None) -> tuple[float, float]:
        """The least and the greatest probability that so many nets answer with: the weighted means of theirs."""
        specs = self.specs[:n_nets]
        bounds = [(spec.calibration.low, spec.calibration.high) for spec in specs]
        low, high = np.average(bounds, 0, [spec.weight for spec in specs])
        return float(low), float(high)

    def score(
        self,
        faces: list[Face],
        *,
        lengths: Sequence[int] | None = None,
        n_nets: int | None = None,
    ) -> np.ndarray:
        """Score faces, each cut as each net wants it.

        Args:
            faces: of each its frame (H, W, 3) uint8 RGB, its box (4,) x0, y0, x1, y1 in pixels, and, unless it is
                upright, by how many degrees clockwise it is rolled.
            lengths: how many of them belong to the first person, the second and so on; see `share_views`. None where
                they do not belong together, and each is seen in both views.
            n_nets: how many nets answer, the first ones; None for all.

        Returns:
            (N,) float64: the mean over the nets of their calibrated logits, each with its specification's weight;
            above 0 means fake.

        Raises:
            FloatingPointError: a net's answer is not finite, as half precision may overflow.
        """
        return self.score_cut(self.cut(faces, n_nets=n_nets), lengths=lengths)

    def cut(self, faces: list[Face], *, n_nets: int | None = None) -> list[np.ndarray]:
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

    def score_cut(self, crops: list[np.ndarray], *, lengths: Sequence[int] | None = None) -> np.ndarray:
        """Score the crops that `cut` returned; as `score`."""
        views = share_views([1] * len(crops[0]) if lengths is None else lengths)
        specs = self.specs[: len(crops)]
        runs = zip(specs, self.nets, crops, strict=False)
        logits = [spec.calibration.logits(self._run(net, seen, views)) for spec, net, seen in runs]
        return np.average(logits, 0, [spec.weight for spec in specs])

    def _run(self, net: Net, crops: np.ndarray, views: np.ndarray) -> np.ndarray:
        """A net's logits (N,) of crops (N, S, S, 3), each the mean over the views that show it."""
        sums, counts = np.zeros(len(crops)), np.bincount(views.ravel(), minlength=len(crops))
        for start in range(0, len(views), self.batch_size):  # never two copies of all crops
            part = views[start : start + self.batch_size]
            shown = np.concatenate([crops[part[:, 0]], crops[part[:, 1]]], 3)
            np.add.at(sums, part, run_logits(net, shown, self.batch_size))
        return sums / counts


def share_views(lengths: Sequence[int]) -> np.ndarray:
    """Which crops a net's two views show.

    Args:
        lengths: how many crops belong to the first person, to the second and so on.

    Returns:
        (V, 2) int64 indices of crops, all persons' in a row: of what the first view shows, and the second. Each crop of
        a person who has fewer than `MIN_SHARED` is shown in both; else neighbours share, one view each, and a last one
        that has no neighbour is shown in both.
    """
    views, start = [np.zeros((0, 2), np.int64)], 0
    for length in lengths:
        own = np.arange(start, start + length)
        shared = length // 2 * 2 if length >= MIN_SHARED else 0
        views += [own[:shared].reshape(-1, 2), np.stack([own[shared:]] * 2, 1)]
        start += length
    return np.concatenate(views)


def cut_crops(faces: list[Face], geometry: CropGeometry) -> np.ndarray:
    """Crops of faces as one batch.

    Args:
        faces: frames, boxes and angles, see `Ensemble.score`.
        geometry: how they are cut.

    Returns:
        (N, size, size, 3) uint8 RGB.
    """
    crops = np.empty((len(faces), geometry.size, geometry.size, 3), np.uint8)
    for crop, (frame, box, *angle) in zip(crops, faces, strict=True):
        crop[:] = crop_face(frame, box, geometry, angle=angle[0] if angle else 0.0)
    return crops
