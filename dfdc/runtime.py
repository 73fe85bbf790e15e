"""A net on a device: CUDA by torch, the CPU by OpenVINO where it is installed, else by torch.

Nets take and give arrays, so that whoever uses one need not import torch (four seconds and 350 MB). Where OpenVINO
serves, torch is needed once, to build nets and to export them: see `dfdc.programs`.
"""

from __future__ import annotations

import contextlib
import io
import logging
import sys
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from dfdc.errors import DeviceError

try:
    # OpenVINO reports its import over the network, from a thread, unless this package is absent.
    sys.modules.setdefault("openvino_telemetry", None)
    import openvino
except Exception:  # absent, or installed for another machine: torch serves
    openvino = None
if TYPE_CHECKING:
    from torch import nn

log = logging.getLogger(__name__)

# For so many shapes of images OpenVINO keeps what it prepared. By default they are 5,000, and a worker that sees clips
# of 171 sizes grows by 680 MB; clips of one size need fewer than these.
CACHED_SHAPES = 256

# From arrays (N, ...) of a net's `Input` to its answers, float32 each.
Net = Callable[[np.ndarray], tuple[np.ndarray, ...]]


@dataclass(frozen=True)
class Input:
    """What a net takes: arrays (N, *shape), N free.

    Attributes:
        shape: of one of them; None where a side varies.
        dtype: NumPy's name of it.
    """

    shape: tuple[int | None, ...]
    dtype: str = "uint8"

    @classmethod
    def images(cls, side: int | None) -> Input:
        """Square images (side, side, 3) uint8 RGB; images of any size where that is None."""
        return cls((side, side, 3))

    @classmethod
    def pairs(cls, side: int) -> Input:
        """Two square images in one array (side, side, 6) uint8: RGB of the first, then of the second."""
        return cls((side, side, 6))

    def example(self) -> np.ndarray:
        """One of them, all zeros; a side that varies has 48."""
        return np.zeros((1, *(side or 48 for side in self.shape)), self.dtype)


def do_without_openvino() -> None:
    """From now on torch runs this process's nets."""
    global openvino
    openvino = None


def choose_device(wanted: str, *, place: int = 0, cudnn: bool = False) -> str:
    """The device to run on; where that is CUDA, this process's GPU is chosen, too.

    Args:
        wanted: "cpu", "cuda", or "auto" for CUDA where there is one that works.
        place: of this process among those that run side by side, from 0; where there are several GPUs, they take turns.
        cudnn: whether cuDNN is needed, too, as it is for training; nets of `compile_net` do without.

    Returns:
        "cpu" or "cuda".

    Raises:
        DeviceError: CUDA is wanted and does not serve.
    """
    if wanted == "cpu":
        return "cpu"
    import torch

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
    if device == "cpu" and openvino is not None:
        return f"CPU, OpenVINO {openvino.get_version().split('-')[0]}"
    import torch

    if device == "cpu":
        return f"CPU, torch {torch.__version__} (without OpenVINO nets take about twice the time)"
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
        raise FloatingPointError("a net answers with numbers that are not finite")
    return logits


def compile_net(net: nn.Module, device: str, takes: Input) -> Net:
    """Make a net as fast as its device allows.

    Args:
        net: in evaluation mode, on any device; answers with one tensor or several.
        device: "cpu" or "cuda".
        takes: its input.

    Returns:
        The net. It raises MemoryError where CUDA has too little memory for so large a batch.
    """
    import torch

    from dfdc.convolution import without_cudnn

    if device == "cpu" and openvino is not None:
        try:
            return _wrap(_compile(_convert(net, takes), torch.get_num_threads()))
        except Exception as error:  # whatever an OpenVINO of another version takes offence at, torch can do
            log.warning("OpenVINO cannot take %s (%s); torch runs it", type(net).__name__, error)
    net = net.to(device)

    @torch.inference_mode()
    def run(items: np.ndarray) -> tuple[np.ndarray, ...]:
        try:
            with without_cudnn() if device == "cuda" else contextlib.nullcontext():
                outputs = net(torch.from_numpy(items).to(device))
            outputs = tuple(o.float() for o in (outputs if isinstance(outputs, tuple) else (outputs,)))
            if device == "cuda":
                wait_for_device()
            return tuple(output.cpu().numpy() for output in outputs)
        except torch.cuda.OutOfMemoryError as error:
            reason = str(error)
        # Outside the except clause: the error there keeps the batch's tensors alive.
        torch.cuda.empty_cache()
        raise MemoryError(reason)

    if device == "cuda":  # what the first run takes, and whether it fails, belongs to the start and not to a clip
        run(takes.example())
    return run


def wait_for_device() -> None:
    """Sleep until CUDA has done what it was given; waiting by a copy of its answers would keep this core busy."""
    import torch

    done = torch.cuda.Event(blocking=True)
    done.record()
    done.synchronize()


def export_net(net: nn.Module, takes: Input) -> bytes:
    """A net as a program that `open_net` runs without torch, in this version of OpenVINO and on this kind of CPU.

    Args:
        net, takes: as `compile_net`.

    Raises:
        Exception: of any kind, where OpenVINO cannot take the net.
    """
    program = io.BytesIO()
    _compile(_convert(net, takes), 1).export_model(program)
    return program.getvalue()


def open_net(program: bytes, *, threads: int) -> Net:
    """A net from what `export_net` made of it, run by so many threads."""
    return _wrap(openvino.Core().import_model(program, "CPU", _options(threads)))


def _convert(net: nn.Module, takes: Input) -> openvino.Model:
    import torch

    # The frontend is called by hand: openvino.convert_model takes a second longer.
    from openvino.frontend import FrontEndManager
    from openvino.frontend.pytorch.ts_decoder import TorchScriptPythonDecoder

    example = torch.from_numpy(takes.example())
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # tracing is deprecated, yet what OpenVINO's frontend reads; sizes are fixed
        traced = torch.jit.freeze(torch.jit.trace(net, example, check_trace=False))
    frontend = FrontEndManager().load_by_framework("pytorch")
    decoder = TorchScriptPythonDecoder(traced)
    model = frontend.convert(frontend.load(decoder))
    (parameter,) = model.get_parameters()
    parameter.set_element_type(openvino.Type(np.dtype(takes.dtype)))
    parameter.set_partial_shape(openvino.PartialShape([-1, *(side or -1 for side in takes.shape)]))
    model.validate_nodes_and_infer_types()
    return model


def _compile(model: openvino.Model, threads: int) -> openvino.CompiledModel:
    return openvino.Core().compile_model(model, "CPU", _options(threads))


def _options(threads: int) -> dict[str, str | int | bool]:
    # Pinned, the nets of two workers share one core and leave the other idle. Unless told otherwise, OpenVINO computes
    # in bfloat16, with 8 bits, where the CPU can: scores would depend on the machine.
    return {
        "PERFORMANCE_HINT": "LATENCY",
        "INFERENCE_NUM_THREADS": threads,
        "ENABLE_CPU_PINNING": False,
        "INFERENCE_PRECISION_HINT": "f32",
        "CPU_RUNTIME_CACHE_CAPACITY": CACHED_SHAPES,
    }


def _wrap(compiled: openvino.CompiledModel) -> Net:
    def run(items: np.ndarray) -> tuple[np.ndarray, ...]:
        outputs = compiled(items)
        return tuple(outputs[i] for i in range(len(compiled.outputs)))

    return run
