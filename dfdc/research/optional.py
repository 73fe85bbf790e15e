"""Models that answer beside the ensemble if a run asks for them: how they are opened."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from dfdc.models import open_models
from dfdc.runtime import Network
from dfdc.weights import WeightsFile


class OptionalModels:
    """Models of one kind, with the settings of their files."""

    # Items that a model scores at once, by device.
    batch_sizes: Mapping[str, int]

    def __init__(
        self,
        files: Sequence[WeightsFile],
        device: str = "cpu",
        *,
        threads: int | None = None,
        models: Sequence[Network] | None = None,
    ) -> None:
        """Open every file.

        Args:
            files: checked weights; without any, nothing is scored.
            device: "cpu" or "cuda".
            threads: see `dfdc.models.open_models`.
            models: the files' models if they are open; None opens them.

        Raises:
            WeightsError: see `dfdc.models.open_models`.
        """
        self.specs, self.batch_size = [file.spec for file in files], self.batch_sizes[device]
        self.models = open_models(files, device=device, threads=threads) if models is None else models
