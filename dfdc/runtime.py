"""Models as functions from arrays to arrays, and the device on which they run.

The caller of a model need not know what runs it: OpenVINO on the CPU, torch on CUDA (see `dfdc.models`). If OpenVINO is
installed, torch is never imported on the CPU, because the import takes four seconds and 350 MB.
"""

from __future__ import annotations

import contextlib
import logging
import sys
from collections.abc import Callable
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from dfdc.errors import DeviceError, NonFiniteError

if TYPE_CHECKING:
    from torch import Tensor

# OpenVINO reports its import over the network, from a thread, unless this package is missing.
sys.modules.setdefault("openvino_telemetry", None)

log = logging.getLogger(__name__)

# A model: from an array (N, ...) to its outputs, each float32.
Network = Callable[[np.ndarray], tuple[np.ndarray, ...]]
# Device files of NVIDIA's driver: one for each GPU, or one for all if Linux runs inside Windows (WSL).
GPU_DEVICES = ("nvidia[0-9]*", "dxg")


def may_have_cuda(devices: Path = Path("/dev")) -> bool:
    """Whether a GPU is likely, so that importing torch is worthwhile: torch is installed, and a driver shows a device.

    Args:
        devices: the system's folder of devices.
    """
    visible = any(next(devices.glob(pattern), None) for pattern in GPU_DEVICES)
    return visible and find_spec("torch") is not None


@cache
def has_openvino() -> bool:
    """Whether OpenVINO can run models on this CPU; otherwise torch runs them, in about twice the time."""
    try:
        import openvino  # noqa: F401
    except Exception as error:  # missing, or installed for another machine
        log.warning("OpenVINO cannot be imported (%s); torch runs the models instead, at about half the speed", error)
        return False
    return True


def choose_device(wanted: str, *, place: int = 0, cudnn: bool = False) -> str:
    """Choose the device to run on and, if it is CUDA, this process's GPU.

    Args:
        wanted: "cpu", "cuda", or "auto" for CUDA if there is a GPU that works.
        place: index of this process among those that run in parallel, from 0; processes are distributed over the GPUs.
        cudnn: whether cuDNN is needed too, as in training; the models of `dfdc.models` do not use it.

    Returns:
        "cpu" or "cuda".

    Raises:
        DeviceError: CUDA is wanted and cannot be used.
    """
    if wanted == "cpu" or (wanted == "auto" and not may_have_cuda()):
        return "cpu"
    try:
        import torch
    except ImportError as error:
        raise DeviceError(
            f"--device cuda: torch cannot be imported ({error}); pip install 'dfdc[cuda]', or use --device cpu"
        ) from error

    from dfdc.convolution import without_cudnn

    if not torch.cuda.is_available():
        reason = "no CUDA device is visible"
    else:
        name = "CUDA"
        try:
            torch.cuda.set_device(place % torch.cuda.device_count())
            name = torch.cuda.get_device_name()
            # A visible device may be too old for this torch, as a P100 is for builds with CUDA 12.8 and later, or too
            # old for its cuDNN.
            probe = make_probe()
            with contextlib.nullcontext() if cudnn else without_cudnn():
                torch.nn.functional.conv2d(probe, probe).item()
            return "cuda"
        except Exception as error:  # CUDA raises several kinds, and each means that the device cannot be used
            cause = next(iter(str(error).strip().splitlines()), type(error).__name__)
            reason = f"{name} does not run this torch ({cause})"
            log.warning("%s", reason)
    if wanted == "cuda":
        raise DeviceError(f"--device cuda: {reason}; use --device cpu or auto, or turn on a GPU that works")
    return "cpu"


def make_probe() -> Tensor:
    """Make a tensor (1, 1, 3, 3) on the GPU with which `choose_device` tries a convolution."""
    import torch

    return torch.ones((1, 1, 3, 3), device="cuda", dtype=torch.float16)


def current_gpu() -> int:
    """The index of this process's GPU among those that are visible to it."""
    import torch

    return torch.cuda.current_device()


def describe_runtime(device: str) -> str:
    """The device and library that run the models, in words."""
    if device == "cpu" and has_openvino():
        import openvino

        return f"CPU, OpenVINO {openvino.get_version().split('-')[0]}"
    import torch

    if device == "cpu":
        return f"CPU, torch {torch.__version__}"
    return f"{torch.cuda.get_device_name(device)}, torch {torch.__version__}"


def run_batches(network: Network, items: np.ndarray, size: int) -> list[tuple[np.ndarray, ...]]:
    """Run a model in batches, and halve the batch size whenever the device runs out of memory.

    Args:
        network: the model.
        items: (N, ...) the model's inputs; N may be 0.
        size: initial batch size.

    Returns:
        The outputs of each batch, in order.

    Raises:
        MemoryError: even a batch of one does not fit.
    """
    answers, start, size = [], 0, max(min(size, len(items)), 1)
    while start < len(items):
        try:
            answers.append(network(np.ascontiguousarray(items[start : start + size])))
            start += size
        except MemoryError:
            if size == 1:
                raise
            size //= 2
            log.warning("the models' device is out of memory; continuing with batches of %d", size)
    return answers


def run_logits(network: Network, items: np.ndarray, size: int) -> np.ndarray:
    """Run a model with one output per item and return (N,), or one with K outputs and return (N, K); in batches.

    Raises:
        FloatingPointError: an output is not finite; half precision may overflow.
    """
    parts = [part[0] if len(part) == 1 else np.stack(part, 1) for part in run_batches(network, items, size)]
    logits = np.concatenate(parts) if parts else np.zeros(0, np.float32)
    if not np.isfinite(logits).all():
        raise NonFiniteError("a model's outputs are not finite; use other weights, or --device cpu")
    return logits
