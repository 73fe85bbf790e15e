"""One process or several (torchrun): who this one is, and what only the first one does."""

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

# The others wait so long for the first rank, which evaluates alone.
PATIENCE = timedelta(hours=2)


@dataclass(frozen=True)
class Rank:
    """This process among those that train together.

    Attributes:
        index: 0 up; the first one evaluates, writes and talks.
        count: how many there are.
        device: where this one's nets and crops are.
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
        """The model, its gradients averaged over all ranks; batch norms share their statistics on CUDA."""
        if self.count == 1:
            return model
        if self.device.type == "cuda":
            model = nn.SyncBatchNorm.convert_sync_batchnorm(model)
            return DistributedDataParallel(model, device_ids=[self.device.index])
        return DistributedDataParallel(model)

    def wait(self) -> None:
        """Until all ranks are here."""
        if self.count > 1:
            distributed.barrier()


@contextmanager
def join_ranks(device: str) -> Iterator[Rank]:
    """Meet the other ranks, where torchrun started this process; alone otherwise.

    Args:
        device: "cpu", "cuda", which under torchrun is this rank's own, or "auto" for CUDA where it serves.

    Raises:
        DeviceError: CUDA is wanted and does not serve, or this machine has more ranks than GPUs.
    """
    count, local = int(os.environ.get("WORLD_SIZE", "1")), int(os.environ.get("LOCAL_RANK", "0"))
    if count > 1 and device == "auto":  # all ranks alike, or they would wait for each other in vain
        device = "cuda" if torch.cuda.is_available() else "cpu"
    chosen = choose_device(device, place=local, cudnn=True)
    if count == 1:
        yield Rank(0, 1, torch.device(chosen))
        return
    cuda = chosen == "cuda"
    if cuda and local >= torch.cuda.device_count():
        raise DeviceError(
            f"rank {local} has none of {torch.cuda.device_count()} GPU(s); start one a GPU: --nproc-per-node"
        )
    place = torch.device("cuda", local) if cuda else torch.device("cpu")
    distributed.init_process_group("nccl" if cuda else "gloo", timeout=PATIENCE)
    try:
        yield Rank(distributed.get_rank(), count, place)
    finally:
        distributed.destroy_process_group()
