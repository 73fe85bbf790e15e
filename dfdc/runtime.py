"""A net on a device: CUDA by torch, the CPU by OpenVINO where it is installed, else by torch."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable

import torch
from torch import Tensor, nn

try:
    import openvino
    from openvino.frontend import FrontEndManager
    from openvino.frontend.pytorch.ts_decoder import TorchScriptPythonDecoder
except Exception:  # absent, or installed for another machine: torch serves
    openvino = None

log = logging.getLogger(__name__)

Net = Callable[[Tensor], tuple[Tensor, ...]]


class DeviceError(Exception):
    """A device that is asked for and not there; the message names the cure."""


def choose_device(wanted: str) -> torch.device:
    """The device to run on.

    Args:
        wanted: "cpu", "cuda", or "auto" for CUDA where there is one that works.

    Raises:
        DeviceError: CUDA is wanted and does not serve.
    """
    cpu = torch.device("cpu")
    if wanted == "cpu":
        return cpu
    if not torch.cuda.is_available():
        reason = "no CUDA device is visible"
    else:
        try:
            # A visible device may be too old for this torch: a P100 is for those built with CUDA 12.8 and later.
            torch.ones(1, device="cuda").add(1).item()
            return torch.device("cuda")
        except RuntimeError as error:
            reason = f"{torch.cuda.get_device_name(0)} does not run this torch ({str(error).splitlines()[0]})"
            log.warning("%s", reason)
    if wanted == "cuda":
        raise DeviceError(f"--device cuda: {reason}; use --device cpu or auto, or turn on a GPU that serves")
    return cpu


def describe_runtime(device: torch.device) -> str:
    """What runs the nets, in words."""
    if device.type == "cuda":
        return f"{torch.cuda.get_device_name(device)}, torch {torch.__version__}"
    if openvino is None:
        return f"CPU, torch {torch.__version__} (OpenVINO is not installed: nets take about twice the time)"
    return f"CPU, OpenVINO {openvino.get_version().split('-')[0]}"


def compile_net(net: nn.Module, example: Tensor, *, any_size: bool = False) -> Net:
    """Make a net as fast as its device allows.

    Args:
        net: in evaluation mode; takes one (N, C, H, W) tensor, answers with one tensor or several.
        example: an input on the net's device; its type and, unless any_size, its C, H and W are fixed.
        any_size: whether H and W vary.

    Returns:
        A function from an input to a tuple of outputs on the same device; N is free.
    """
    if example.device.type == "cpu" and openvino is not None:
        try:
            return _compile_openvino(net, example, any_size)
        except Exception as error:  # whatever an OpenVINO of another version takes offence at, torch can do
            log.warning("OpenVINO cannot take %s (%s); torch runs it", type(net).__name__, error)

    @torch.inference_mode()
    def run(inputs: Tensor) -> tuple[Tensor, ...]:
        outputs = net(inputs)
        return outputs if isinstance(outputs, tuple) else (outputs,)

    return run


def _compile_openvino(net: nn.Module, example: Tensor, any_size: bool) -> Net:
    # The frontend is called by hand, for openvino.convert_model reports its use over the network and takes a second
    # longer for it.
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # tracing is deprecated, yet what OpenVINO's frontend reads; sizes are fixed
        traced = torch.jit.freeze(torch.jit.trace(net, example, check_trace=False))
    frontend = FrontEndManager().load_by_framework("pytorch")
    decoder = TorchScriptPythonDecoder(traced)
    model = frontend.convert(frontend.load(decoder))
    channels, *size = example.shape[1:]
    (parameter,) = model.get_parameters()
    parameter.set_element_type(openvino.Type(example.numpy().dtype))
    parameter.set_partial_shape(openvino.PartialShape([-1, channels, *((-1, -1) if any_size else size)]))
    model.validate_nodes_and_infer_types()
    # Pinned, the nets of two workers share one core and leave the other idle.
    options = {
        "PERFORMANCE_HINT": "LATENCY",
        "INFERENCE_NUM_THREADS": torch.get_num_threads(),
        "ENABLE_CPU_PINNING": False,
    }
    compiled = openvino.Core().compile_model(model, "CPU", options)

    def run(inputs: Tensor) -> tuple[Tensor, ...]:
        outputs = compiled(inputs.contiguous().numpy())
        return tuple(torch.from_numpy(outputs[i]) for i in range(len(compiled.outputs)))

    return run
