"""Nets as functions from arrays to arrays, and the device that they run on.

Whoever uses a net need not know what runs it: OpenVINO on the CPU, torch on CUDA (see `dfdc.nets`). Beside OpenVINO
torch is never imported on the CPU: it takes four seconds and 350 MB.
"""

from __future__ import annotations

import contextlib
import logging
import sys
from collections.abc import Callable
from functools import cache
from importlib.util import find_spec
from pathlib import Path

import numpy as np

from dfdc.errors import DeviceError, NonFiniteError

# OpenVINO reports its import over the network, from a thread, unless this package is absent.
sys.modules.setdefault("openvino_telemetry", None)

log = logging.getLogger(__name__)

# From arrays (N, ...) to the net's answers, float32 each.
Net = Callable[[np.ndarray], tuple[np.ndarray, ...]]
# What NVIDIA's driver makes: a device for each GPU, or one for all where Linux runs inside Windows.
GPU_DEVICES = ("nvidia[0-9]*", "dxg")


def may_have_cuda(devices: Path = Path("/dev")) -> bool:
    """Whether it is worth importing torch to look for a GPU: torch is installed, and a driver shows one.

    Args:
        devices: the system's folder of devices.
    """
    visible = any(next(devices.glob(pattern), None) for pattern in GPU_DEVICES)
    return visible and find_spec("torch") is not None


@cache
def has_openvino() -> bool:
    """Whether OpenVINO runs nets on the CPU here; where it does not, torch does, in about twice the time."""
    try:
        import openvino  # noqa: F401
    except Exception as error:  # absent, or installed for another machine
        log.warning("OpenVINO cannot be imported (%s); torch runs the nets", error)
        return False
    return True


def choose_device(wanted: str, *, place: int = 0, cudnn: bool = False) -> str:
    """The device to run on; where that is CUDA, this process's GPU is chosen, too.

    Args:
        wanted: "cpu", "cuda", or "auto" for CUDA where there is one that works.
        place: of this process among those that run side by side, from 0; where there are several GPUs, they take turns.
        cudnn: whether cuDNN is needed, too, as it is for training; nets of `dfdc.nets` do without.

    Returns:
        "cpu" or "cuda".

    Raises:
        DeviceError: CUDA is wanted and does not serve.
    """
    if wanted == "cpu" or (wanted == "auto" and not may_have_cuda()):
        return "cpu"
    try:
        import torch
    except ImportError as error:
        raise DeviceError(
            f"--device cuda: torch cannot be imported ({error}); install it, or use --device cpu"
        ) from error

    from dfdc.convolution import without_cudnn

    if not torch.cuda.is_available():
        reason = "no CUDA device is visible"
    else:
        name = "CUDA"
        try:
            torch.cuda.set_device(place % torch.cuda.device_count())
            name = torch.cuda.get_device_name()
            # A visible device may be too old for this torch, as a P100 is for those built with CUDA 12.8 and later, or
            # for its cuDNN.
            ones = torch.ones((1, 1, 3, 3), device="cuda", dtype=torch.float16)
            with contextlib.nullcontext() if cudnn else without_cudnn():
                torch.nn.functional.conv2d(ones, ones).item()
            return "cuda"
        except Exception as error:  # CUDA's own, of several kinds: each means that it does not serve
            cause = next(iter(str(error).strip().splitlines()), type(error).__name__)
            reason = f"{name} does not run this torch ({cause})"
            log.warning("%s", reason)
    if wanted == "cuda":
        raise DeviceError(f"--device cuda: {reason}; use --device cpu or auto, or turn on a GPU that serves")
    return "cpu"


def current_gpu() -> int:
    """The number of this process's GPU among those that it sees."""
    import torch

    return torch.cuda.current_device()


def describe_runtime(device: str) -> str:
    """What runs the nets, in words."""
    if device == "cpu" and has_openvino():
        import openvino

        return f"CPU, OpenVINO {openvino.get_version().split('-')[0]}"
    import torch

    if device == "cpu":
        return f"CPU, torch {torch.__version__}"
    return f"{torch.cuda.get_device_name(device)}, torch {torch.__version__}"


def run_batches(net: Net, items: np.ndarray, size: int) -> list[tuple[np.ndarray, ...]]:
    """Run what a net takes through it in batches; where the device runs out of memory, in ever smaller ones.

    Args:
        net: from items to answers.
        items: (N, ...) images or whatever else the net takes, N may be 0.
        size: of a batch at first.

    Returns:
        The answers of each batch, in order.

    Raises:
        MemoryError: even a batch of one does not fit.
    """
    answers, start, size = [], 0, max(min(size, len(items)), 1)
    while start < len(items):
        try:
            answers.append(net(np.ascontiguousarray(items[start : start + size])))
            start += size
        except MemoryError:
            if size == 1:
                raise
            size //= 2
            log.warning("the nets' device is out of memory; batches of %d go on", size)
    return answers


def run_logits(net: Net, items: np.ndarray, size: int) -> np.ndarray:
    """The answers of a net that gives one number an item (N,), or several (N, K), in batches as `run_batches` makes.

    Raises:
        FloatingPointError: one of them is not finite, as half precision may overflow.
    """
    parts = [part[0] if len(part) == 1 else np.stack(part, 1) for part in run_batches(net, items, size)]
    logits = np.concatenate(parts) if parts else np.zeros(0, np.float32)
    if not np.isfinite(logits).all():
        raise NonFiniteError("a model answers with numbers that are not finite; use other weights, or --device cpu")
    return logits
