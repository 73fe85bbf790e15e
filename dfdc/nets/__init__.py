"""Weights files -> nets that run: on the CPU by OpenVINO, without torch; on CUDA, or without OpenVINO, by torch.

The one place where nets are opened. A file's digest is checked on the very bytes that its tensors are read from.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from dfdc.audio import N_BANDS
from dfdc.errors import WeightsError
from dfdc.runtime import Net, has_openvino
from dfdc.weights import WeightsFile, read_weights

if TYPE_CHECKING:
    from openvino import Model

# Weights of MTCNN, which travel with the code: facenet-pytorch's (MIT, see LICENSE.mtcnn).
MTCNN = Path(__file__).with_name("mtcnn-e14bc793e700.safetensors")
# Side in pixels of what each of its nets sees; P-Net takes any larger image too and answers for each place in it.
PNET_SIDE, RNET_SIDE, ONET_SIDE = 12, 24, 48
# OpenVINO keeps what it prepared for so many shapes of images. By default they are 5,000, and a worker that sees clips
# of 171 sizes grows by 680 MB; clips of one size need fewer than these.
CACHED_SHAPES = 256


def open_nets(files: Sequence[WeightsFile], *, device: str = "cpu", threads: int | None = None) -> list[Net]:
    """Open the nets of weights files.

    Args:
        files: checked weights.
        device: "cpu" or "cuda"; half precision on CUDA, single on the CPU.
        threads: that a net uses on the CPU; None for as many as there are cores.

    Returns:
        A net for each file. One that sees faces takes (N, S, S, 6) uint8 RGB, S the size of its crops: what the first
        of its views shows, then the second; it answers with both views' logits, (N,) each. One that sees motion takes
        such pairs of a crop and the next frame's, and answers with logits (N,); one that sees sound takes
        (N, N_BANDS, columns) float32 decibels and answers likewise. On CUDA they raise MemoryError where a batch is
        too large for it.

    Raises:
        WeightsError: a file has changed since it was checked, its tensors do not fit its architecture, or the net
            answers with numbers that are not finite.
        ImportError: neither OpenVINO nor torch is installed, or torch is not and CUDA is wanted.
    """
    return [_open_file(file, device, threads) for file in files]


def open_heat_map(file: WeightsFile, *, threads: int | None = None) -> Net | None:
    """Open the class activation maps of a face model, for the CPU.

    Args:
        file: checked weights.
        threads: see `open_nets`.

    Returns:
        A net that takes crops (N, S, S, 3) uint8 RGB and answers with maps (N, h, w) float32, whose means are the
        model's logits in its first view. None where OpenVINO is not installed.

    Raises:
        WeightsError: as `open_nets`.
    """
    if not has_openvino():
        return None
    from dfdc.nets.graphs import build_heat_graph

    tensors = _read_tensors(file.path, file.read())
    return _compile(file.path, lambda: build_heat_graph(file.spec, tensors), threads)


def open_detector(*, device: str = "cpu", threads: int | None = None) -> list[Net]:
    """Open MTCNN's P-Net, R-Net and O-Net.

    Args:
        device, threads: see `open_nets`.

    Returns:
        Nets that take (N, H, W, 3) uint8 RGB, of `RNET_SIDE` and `ONET_SIDE` for the second and third, and answer with
        offsets of boxes (in shares of their sides), with landmarks (O-Net only) and with the probabilities of no face
        and of a face, in this order: (N, K, H', W') for P-Net, (N, K) for the others.

    Raises:
        WeightsError, ImportError: as `open_nets`.
    """
    example = np.random.default_rng(0).integers(0, 256, (1, ONET_SIDE, ONET_SIDE, 3), dtype=np.uint8)
    examples = [example, example[:, :RNET_SIDE, :RNET_SIDE], example]
    if device == "cuda" or not has_openvino():
        from dfdc.mtcnn import load_mtcnn
        from dfdc.torch_runtime import run_in_torch

        nets = [run_in_torch(net, device) for net in load_mtcnn(read_weights(MTCNN)[0])]
    else:
        from dfdc.nets.graphs import build_cascade

        tensors = _read_tensors(MTCNN, read_weights(MTCNN)[0])
        sides = {"pnet": None, "rnet": RNET_SIDE, "onet": ONET_SIDE}
        nets = [
            _compile(MTCNN, lambda name=name, side=side: build_cascade(name, side, tensors), threads)
            for name, side in sides.items()
        ]
    for net, images in zip(nets, examples, strict=True):
        _try(net, images, MTCNN)
    return nets


def _open_file(file: WeightsFile, device: str, threads: int | None) -> Net:
    spec, random = file.spec, np.random.default_rng(0)
    if device == "cuda" or not has_openvino():
        from dfdc.networks import CropNet, PairNet, load_model
        from dfdc.torch_runtime import run_in_torch

        model = load_model(file, device=device, half=device == "cuda")
        wrap = {"face": CropNet, "motion": PairNet, "sound": lambda model: model}[spec.sees]
        net = run_in_torch(wrap(model).eval(), device)
    else:
        from dfdc.nets.graphs import build_graph

        tensors = _read_tensors(file.path, file.read())
        net = _one_by_one(_compile(file.path, lambda: build_graph(spec, tensors), threads))
    if spec.sees == "sound":
        example = random.normal(-40, 15, (1, N_BANDS, spec.input_size)).astype(np.float32)
    else:
        example = random.integers(0, 256, (1, spec.crop.size, spec.crop.size, 6), dtype=np.uint8)
    _try(net, example, file.path)
    return net


def _read_tensors(path: Path, data: bytes) -> dict[str, np.ndarray]:
    from safetensors import SafetensorError
    from safetensors.numpy import load

    try:
        return load(data)
    except (SafetensorError, ValueError, KeyError) as error:
        raise WeightsError(f"{path}: its tensors cannot be read ({error}); copy the file again") from error


def _compile(path: Path, build: Callable[[], Model], threads: int | None) -> Net:
    """A net on the CPU from the graph of a file."""
    import openvino

    try:
        graph = build()
    except ValueError as error:
        raise WeightsError(
            f"{path}: its tensors do not fit its architecture ({error}); train it again or name another"
        ) from error
    # Pinned, the nets of two workers share one core and leave the other idle. Unless told otherwise, OpenVINO computes
    # in bfloat16, with 8 bits, where the CPU can: scores would depend on the machine.
    options = {
        "PERFORMANCE_HINT": "LATENCY",
        "ENABLE_CPU_PINNING": False,
        "INFERENCE_PRECISION_HINT": "f32",
        "CPU_RUNTIME_CACHE_CAPACITY": CACHED_SHAPES,
    }
    if threads is not None:
        options["INFERENCE_NUM_THREADS"] = threads
    compiled = openvino.Core().compile_model(graph, "CPU", options)

    def run(items: np.ndarray) -> tuple[np.ndarray, ...]:
        answers = compiled(items)
        return tuple(answers[number] for number in range(len(compiled.outputs)))

    return run


def _one_by_one(net: Net) -> Net:
    """A net of any number of items from one that takes a single one.

    On the CPU a graph of one item is a seventh faster than one of any number, given two at a time, and batches of four
    and eight are slower still: what lies between two layers outgrows the core's cache (docs/performance.md).
    """

    def run(items: np.ndarray) -> tuple[np.ndarray, ...]:
        answers = [net(items[index : index + 1]) for index in range(len(items))]
        return tuple(np.concatenate(parts) for parts in zip(*answers, strict=True))

    return run


def _try(net: Net, example: np.ndarray, path: Path) -> None:
    """Run a net once: whether it fails, and what its first run takes, belongs to the start and not to a clip."""
    if not all(np.isfinite(answer).all() for answer in net(np.ascontiguousarray(example))):
        raise WeightsError(f"{path}: the net answers with numbers that are not finite; train it again or name another")
