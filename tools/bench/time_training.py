"""Time complete training steps, with augmentation, and measure how long the device waits.

python tools/bench/time_training.py --architecture efficientnet-b0 --input-size 224 --batch-size 256
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch.autograd import DeviceType
from torch.autograd.profiler_util import FunctionEvent

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from dfdc.data.dataset import CropSet
from dfdc.flags import COMPILE_HELP, add_device, even, input_side, make_parser, positive, run_tool, tool
from dfdc.networks import FrameModel
from dfdc.runtime import choose_device
from dfdc.training.loop import TrainSettings, compile_training, make_batch
from dfdc.training.trainer import make_trainer
from dfdc.weights import ARCHITECTURES, ModelSpec

# The number of different crops, unless a batch has more.
N_CROPS = 4096


@dataclass(frozen=True)
class TrainingSpeed:
    """The speed of training.

    Attributes:
        device: name of the device.
        images_per_s: crops per second through the whole step: sampling, resizing, mixing, augmentation, forward and
            backward pass, optimizer and averaged weights.
        model_images_per_s: crops per second through the last four of these, with a prepared batch.
        augmentation_share: share of the step's time that is spent on the rest, 0..1.
        waiting_share: share of the time in which a CUDA device ran no kernel; None on the CPU.
        peak_memory_mb: peak memory of the CUDA device in MiB; None on the CPU.
    """

    device: str
    images_per_s: float
    model_images_per_s: float
    augmentation_share: float
    waiting_share: float | None
    peak_memory_mb: float | None


def time_training(
    *,
    architecture: str = "efficientnet-b0",
    input_size: int = 224,
    batch_size: int = 256,
    n_steps: int = 50,
    device: str = "auto",
    compiled: bool = False,
) -> TrainingSpeed:
    """Time training steps on random crops.

    Args:
        architecture: one of `dfdc.weights.ARCHITECTURES`.
        input_size: side of the model's input in pixels; crops have 224.
        batch_size: crops in a step, even.
        n_steps: number of timed steps, after a tenth as many (at least two) untimed ones.
        device: "auto", "cpu" or "cuda".
        compiled: see `TrainSettings`; compilation is not timed.

    Raises:
        DeviceError: the device cannot be used.
        MachineError: the GPU has too little memory.
    """
    device = choose_device(device, cudnn=True)
    settings = TrainSettings(batch_size=batch_size)
    model = FrameModel(ModelSpec(architecture, input_size)).to(device, memory_format=torch.channels_last).train()
    crops = _make_crops(max(N_CROPS, batch_size) // 2, torch.device(device))
    trainer = make_trainer(model, steps=100 * n_steps, learning_rate=1e-4, ema_decay=settings.ema_decay)
    chances = torch.Generator().manual_seed(0)
    answer = compile_training(model) if compiled else model
    pairs = torch.arange(len(crops)).view(2, -1).T

    def draw() -> tuple[torch.Tensor, torch.Tensor]:
        chosen = pairs[torch.randint(len(pairs), (batch_size // 2,), generator=chances)]
        return make_batch(crops.images, crops, chosen, model, settings, chances)

    def whole_step() -> None:
        trainer.step(answer, *draw())

    batch = draw()
    whole_s = _time(whole_step, n_steps, device)
    model_s = _time(lambda: trainer.step(answer, *batch), n_steps, device)
    cuda = device == "cuda"
    return TrainingSpeed(
        device=torch.cuda.get_device_name() if cuda else "CPU",
        images_per_s=batch_size / whole_s,
        model_images_per_s=batch_size / model_s,
        augmentation_share=max(1 - model_s / whole_s, 0.0),
        waiting_share=_waiting_share(whole_step) if cuda else None,
        peak_memory_mb=torch.cuda.max_memory_allocated() / 2**20 if cuda else None,
    )


def _make_crops(n_pairs: int, device: torch.device) -> CropSet:
    """Random pairs of reals and fakes, on the device, as in training."""
    images = torch.randint(0, 256, (2 * n_pairs, 3, 224, 224), dtype=torch.uint8, device=device)
    labels = torch.arange(2 * n_pairs).ge(n_pairs).float()
    originals = torch.cat([torch.full((n_pairs,), -1), torch.arange(n_pairs)])
    return CropSet(images.contiguous(memory_format=torch.channels_last), labels, originals, [""] * 2 * n_pairs)


def _time(step: Callable[[], None], n_steps: int, device: str) -> float:
    """Mean wall seconds of a step."""
    for _ in range(max(n_steps // 10, 2)):
        step()
    _finish(device)
    started = time.perf_counter()
    for _ in range(n_steps):
        step()
    _finish(device)
    return (time.perf_counter() - started) / n_steps


def _finish(device: str) -> None:
    if device == "cuda":
        torch.cuda.synchronize()


def _waiting_share(step: Callable[[], None]) -> float:
    """The share of the time in which nothing ran on the device, according to torch's profiler."""
    activities = [torch.profiler.ProfilerActivity.CPU, torch.profiler.ProfilerActivity.CUDA]
    torch.cuda.synchronize()
    with torch.profiler.profile(activities=activities) as profile:
        started = time.perf_counter()
        for _ in range(10):
            step()
        torch.cuda.synchronize()
        wall_s = time.perf_counter() - started
    return max(1 - busy_us(profile.events()) / 1e6 / wall_s, 0.0)


def busy_us(events: Iterable[FunctionEvent]) -> float:
    """Microseconds of kernels and copies on the device; operators and named spans contain the same ones again."""
    on_device = [event for event in events if event.device_type == DeviceType.CUDA and not event.is_user_annotation]
    return sum(event.time_range.elapsed_us() for event in on_device)


@tool
def main(argv: list[str] | None = None) -> None:
    parser = make_parser(__doc__)
    add = parser.add_argument
    add("--architecture", choices=ARCHITECTURES, default="efficientnet-b0", help="backbone (default: %(default)s)")
    add("--input-size", type=input_side, default=224, help="side of the model's input in pixels (default: %(default)s)")
    add("--batch-size", type=even, default=256, help="crops in a step, an even number (default: %(default)s)")
    add("--steps", type=positive, default=50, help="number of timed steps (default: %(default)s)")
    add_device(parser)
    add("--compile", action="store_true", help=f"{COMPILE_HELP} (default: off)")
    args = parser.parse_args(argv)
    speed = time_training(
        architecture=args.architecture,
        input_size=args.input_size,
        batch_size=args.batch_size,
        n_steps=args.steps,
        device=args.device,
        compiled=args.compile,
    )
    print(f"{args.architecture} at {args.input_size} px, batches of {args.batch_size}, on {speed.device}:")
    print(f"  {speed.images_per_s:.0f} images/s with augmentation, {speed.model_images_per_s:.0f} without")
    print(f"  augmentation takes {speed.augmentation_share:.0%} of the time")
    if speed.waiting_share is not None:
        print(
            f"  the GPU is idle for {speed.waiting_share:.0%} of the time; "
            f"it uses at most {speed.peak_memory_mb:.0f} MiB of memory"
        )
    print(json.dumps(asdict(speed)))


if __name__ == "__main__":
    run_tool(main)
