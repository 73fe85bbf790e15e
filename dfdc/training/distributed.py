"""Training in one process or several (torchrun): the rank of this process and what it shares with the others."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta

import torch
from torch import Tensor, distributed, nn
from torch.nn.parallel import DistributedDataParallel

from dfdc.errors import DeviceError
from dfdc.runtime import choose_device

# How long the others wait for the first rank, which evaluates alone.
PATIENCE = timedelta(hours=2)


@dataclass(frozen=True)
class Rank:
    """This process among those that train together.

    Attributes:
        index: 0 up; rank 0 evaluates, writes files and prints.
        count: the number of processes.
        device: of this process's model and crops.
    """

    index: int
    count: int
    device: torch.device

    @property
    def first(self) -> bool:
        return self.index == 0

    def share(self, batch: Tensor) -> Tensor:
        """This rank's part (n, ...) of a batch (N, ...) whose length `count` divides."""
        return batch[self.index :: self.count]

    def wrap(self, model: nn.Module) -> nn.Module:
        """The model with gradients averaged over all ranks and, on CUDA, shared batch-norm statistics."""
        if self.count == 1:
            return model
        if self.device.type == "cuda":
            model = nn.SyncBatchNorm.convert_sync_batchnorm(model)
            return DistributedDataParallel(model, device_ids=[self.device.index])
        return DistributedDataParallel(model)

    def wait(self) -> None:
        """Wait until all ranks have called this."""
        if self.count > 1:
            distributed.barrier()


@contextmanager
def join_ranks(device: str) -> Iterator[Rank]:
    """Join the other ranks if torchrun started this process; otherwise it is the only one.

    Args:
        device: "cpu"; "cuda", which under torchrun is this rank's own GPU; or "auto" for CUDA if it works.

    Raises:
        DeviceError: CUDA is requested and does not work, or there are more ranks than GPUs.
    """
    count, local = int(os.environ.get("WORLD_SIZE", "1")), int(os.environ.get("LOCAL_RANK", "0"))
    if count > 1 and device == "auto":  # all ranks must choose alike, or they would wait for each other forever
        device = "cuda" if torch.cuda.is_available() else "cpu"
    chosen = choose_device(device, place=local, cudnn=True)
    if count == 1:
        yield Rank(0, 1, torch.device(chosen))
        return
    cuda = chosen == "cuda"
    if cuda and local >= torch.cuda.device_count():
        raise DeviceError(
            f"rank {local} has no GPU, as there are {torch.cuda.device_count()}; start one process for each GPU with "
            "--nproc-per-node"
        )
    place = torch.device("cuda", local) if cuda else torch.device("cpu")
    distributed.init_process_group("nccl" if cuda else "gloo", timeout=PATIENCE)
    try:
        yield Rank(distributed.get_rank(), count, place)
    finally:
        distributed.destroy_process_group()
