"""torch models as functions from arrays to arrays: on CUDA, and on a CPU without OpenVINO."""

from __future__ import annotations

from contextlib import nullcontext

import numpy as np
import torch
from torch import nn

from dfdc.convolution import without_cudnn
from dfdc.runtime import Network


def run_in_torch(network: nn.Module, device: str) -> Network:
    """Wrap a torch module as a model; on CUDA it runs on this process's GPU without cuDNN.

    Args:
        network: in evaluation mode, on any device; returns one tensor or several.
        device: "cpu" or "cuda".

    Returns:
        The model. It raises MemoryError if a batch is too large for CUDA's memory.
    """
    network = network.to(device)

    @torch.inference_mode()
    def run(items: np.ndarray) -> tuple[np.ndarray, ...]:
        try:
            with without_cudnn() if device == "cuda" else nullcontext():
                outputs = network(torch.from_numpy(items).to(device))
            outputs = tuple(o.float() for o in (outputs if isinstance(outputs, tuple) else (outputs,)))
            if device == "cuda":
                wait_for_device()
            return tuple(output.cpu().numpy() for output in outputs)
        except torch.cuda.OutOfMemoryError as error:
            reason = str(error)
        # Outside the except clause, because the error keeps the batch's tensors alive there.
        torch.cuda.empty_cache()
        raise MemoryError(reason)

    return run


def wait_for_device() -> None:
    """Sleep until CUDA has finished its queue; waiting by copying the outputs would keep this core busy."""
    done = torch.cuda.Event(blocking=True)
    done.record()
    done.synchronize()
