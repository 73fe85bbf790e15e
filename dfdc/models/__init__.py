"""Weights files -> models that run: by OpenVINO on the CPU, without torch; by torch on CUDA or without OpenVINO.

This is the only place where models are opened. A file's digest is checked on the same bytes from which its tensors are
read.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from dfdc.audio import N_BANDS
from dfdc.errors import WeightsError
from dfdc.runtime import Network, has_openvino
from dfdc.weights import WeightsFile, read_weights

if TYPE_CHECKING:
    from openvino import Model

# MTCNN's weights are part of the package; they come from facenet-pytorch (MIT, see LICENSE.mtcnn).
MTCNN = Path(__file__).with_name("mtcnn-e14bc793e700.safetensors")
# Input side in pixels of each of its networks. P-Net also takes larger images and gives an output for each place.
PNET_SIDE, RNET_SIDE, ONET_SIDE = 12, 24, 48
# Number of input shapes for which OpenVINO keeps prepared kernels. With its default of 5,000, a worker that processes
# clips of 171 sizes grows by 680 MB; clips of one size need fewer than 256.
CACHED_SHAPES = 256


def open_models(files: Sequence[WeightsFile], *, device: str = "cpu", threads: int | None = None) -> list[Network]:
    """Open the models of weights files.

    Args:
        files: checked weights.
        device: "cpu" (single precision) or "cuda" (half precision).
        threads: number of threads per model on the CPU; None for one per core.

    Returns:
        One model per file. A face model takes (N, S, S, 6) uint8 RGB, where S is its crop size: the crop for its first
        view, then the crop for its second view; it returns the logits of both views, (N,) each. A motion model takes
        pairs of a crop and the next frame's crop in the same form, and returns logits (N,). A sound model takes
        (N, N_BANDS, columns) float32 decibels and returns logits (N,). On CUDA a model raises MemoryError if a batch is
        too large.

    Raises:
        WeightsError: a file has changed since it was checked, its tensors do not fit its architecture, or the model's
            outputs are not finite.
        ImportError: neither OpenVINO nor torch is installed, or CUDA is wanted and torch is not installed.
    """
    return [_open_file(file, device, threads) for file in files]


def open_heat_map(file: WeightsFile, *, threads: int | None = None) -> Network | None:
    """Open the class activation maps of a face model, for the CPU.

    Args:
        file: checked weights.
        threads: see `open_models`.

    Returns:
        A model that takes crops (N, S, S, 3) uint8 RGB and returns maps (N, h, w) float32; the mean of a map is the
        face model's logit in its first view. None if OpenVINO is not installed.

    Raises:
        WeightsError: as for `open_models`.
    """
    if not has_openvino():
        return None
    from dfdc.models.graphs import build_heat_graph

    tensors = _read_tensors(file.path, file.read())
    return _compile(file.path, lambda: build_heat_graph(file.spec, tensors), threads)


def open_detector(*, device: str = "cpu", threads: int | None = None) -> list[Network]:
    """Open MTCNN's P-Net, R-Net and O-Net.

    Args:
        device, threads: see `open_models`.

    Returns:
        Networks that take (N, H, W, 3) uint8 RGB, with the sides `RNET_SIDE` and `ONET_SIDE` for the second and third.
        They return box offsets (as shares of the box's sides), landmarks (O-Net only), and the probabilities of no face
        and of a face, in this order: (N, K, H', W') for P-Net, (N, K) for the others.

    Raises:
        WeightsError, ImportError: as for `open_models`.
    """
    example = np.random.default_rng(0).integers(0, 256, (1, ONET_SIDE, ONET_SIDE, 3), dtype=np.uint8)
    examples = [example, example[:, :RNET_SIDE, :RNET_SIDE], example]
    if device == "cuda" or not has_openvino():
        from dfdc.mtcnn import load_mtcnn
        from dfdc.torch_runtime import run_in_torch

        models = [run_in_torch(network, device) for network in load_mtcnn(read_weights(MTCNN)[0])]
    else:
        from dfdc.models.graphs import build_cascade

        tensors = _read_tensors(MTCNN, read_weights(MTCNN)[0])
        sides = {"pnet": None, "rnet": RNET_SIDE, "onet": ONET_SIDE}
        models = [
            _compile(MTCNN, lambda name=name, side=side: build_cascade(name, side, tensors), threads)
            for name, side in sides.items()
        ]
    for network, images in zip(models, examples, strict=True):
        _try(network, images, MTCNN)
    return models


def _open_file(file: WeightsFile, device: str, threads: int | None) -> Network:
    spec, random = file.spec, np.random.default_rng(0)
    if device == "cuda" or not has_openvino():
        from dfdc.networks import CropNet, PairNet, load_model
        from dfdc.torch_runtime import run_in_torch

        model = load_model(file, device=device, half=device == "cuda")
        wrap = {"face": CropNet, "motion": PairNet, "sound": lambda model: model}[spec.sees]
        network = run_in_torch(wrap(model).eval(), device)
    else:
        from dfdc.models.graphs import build_graph

        tensors = _read_tensors(file.path, file.read())
        network = _one_by_one(_compile(file.path, lambda: build_graph(spec, tensors), threads))
    if spec.sees == "sound":
        example = random.normal(-40, 15, (1, N_BANDS, spec.input_size)).astype(np.float32)
    else:
        example = random.integers(0, 256, (1, spec.crop.size, spec.crop.size, 6), dtype=np.uint8)
    _try(network, example, file.path)
    return network


def _read_tensors(path: Path, data: bytes) -> dict[str, np.ndarray]:
    from safetensors import SafetensorError
    from safetensors.numpy import load

    try:
        return load(data)
    except (SafetensorError, ValueError, KeyError) as error:
        raise WeightsError(f"{path}: its tensors cannot be read ({error}); copy the file again") from error


def _compile(path: Path, build: Callable[[], Model], threads: int | None) -> Network:
    """Compile the graph of a file for the CPU."""
    import openvino

    try:
        graph = build()
    except ValueError as error:
        raise WeightsError(
            f"{path}: its tensors do not fit its architecture ({error}); train it again or name another"
        ) from error
    # With CPU pinning, the models of two workers share one core and leave the other idle. By default, OpenVINO computes
    # in bfloat16 (8 bits of precision) if the CPU supports it, so scores would depend on the machine.
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


def _one_by_one(network: Network) -> Network:
    """Wrap a model that takes a single item as a model that takes any number.

    On the CPU, a graph for one item is a seventh faster than a graph for any number that is given two at a time, and
    batches of four and eight are slower still, because intermediate results outgrow the core's cache
    (docs/performance.md).
    """

    def run(items: np.ndarray) -> tuple[np.ndarray, ...]:
        answers = [network(items[index : index + 1]) for index in range(len(items))]
        return tuple(np.concatenate(parts) for parts in zip(*answers, strict=True))

    return run


def _try(network: Network, example: np.ndarray, path: Path) -> None:
    """Run a model once, so that its first run's cost, and any failure, belong to the start and not to a clip."""
    if not all(np.isfinite(answer).all() for answer in network(np.ascontiguousarray(example))):
        raise WeightsError(f"{path}: the model's outputs are not finite; train it again or name another")
