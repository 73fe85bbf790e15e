"""Time a full training step, augmentation included, and tell how long the device waited.

python tools/time_training.py --architecture efficientnet-b0 --input-size 224 --batch-size 256
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from dfdc.model import FrameModel
from dfdc.training.dataset import CropSet
from dfdc.training.loop import TrainSettings, make_batch, take_step
from dfdc.weights import ARCHITECTURES, ModelSpec


@dataclass(frozen=True)
class TrainingSpeed:
    """What training costs.

    Attributes:
        device: its name.
        images_per_s: crops through the whole step: drawn, resized, mixed, augmented, forward, backward, optimizer.
        net_images_per_s: crops through the last three of these alone, on a batch that is there already.
        augmentation_share: of the whole step's time, what the net alone would not have taken; in 0..1.
        waiting_share: of the time, in which a CUDA device ran no kernel; None on the CPU.
        peak_memory_mb: of the CUDA device; None on the CPU.
    """

    device: str
    images_per_s: float
    net_images_per_s: float
    augmentation_share: float
    waiting_share: float | None
    peak_memory_mb: float | None


def time_training(
    *,
    architecture: str = "efficientnet-b0",
    input_size: int = 224,
    batch_size: int = 256,
    n_steps: int = 50,
    n_crops: int = 4096,
    device: str = "cuda",
) -> TrainingSpeed:
    """Train on made crops for some steps, and time them.

    Args:
        architecture: one of `dfdc.weights.ARCHITECTURES`.
        input_size: side in pixels that the net sees; crops have 224.
        batch_size: crops per step, even.
        n_steps: that are timed, after a tenth as many (at least two) that are not.
        n_crops: how many different crops there are, at least the batch.
        device: "cpu" or "cuda".
    """
    crops = _make_crops(max(n_crops, batch_size) // 2, torch.device(device))
    model = FrameModel(ModelSpec(architecture, input_size)).to(device, memory_format=torch.channels_last).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4)
    chances, settings = torch.Generator().manual_seed(0), TrainSettings(batch_size=batch_size)
    pairs = torch.arange(len(crops)).view(2, -1).T

    def draw() -> tuple[torch.Tensor, torch.Tensor]:
        chosen = pairs[torch.randint(len(pairs), (batch_size // 2,), generator=chances)]
        return make_batch(crops.images, crops, chosen, model, settings, chances)

    def whole_step() -> None:
        take_step(model, optimizer, *draw(), None)

    batch = draw()
    whole_s = _time(whole_step, n_steps, device)
    net_s = _time(lambda: take_step(model, optimizer, *batch, None), n_steps, device)
    cuda = device == "cuda"
    return TrainingSpeed(
        device=torch.cuda.get_device_name() if cuda else "CPU",
        images_per_s=batch_size / whole_s,
        net_images_per_s=batch_size / net_s,
        augmentation_share=max(1 - net_s / whole_s, 0.0),
        waiting_share=_waiting_share(whole_step) if cuda else None,
        peak_memory_mb=torch.cuda.max_memory_allocated() / 2**20 if cuda else None,
    )


def _make_crops(n_pairs: int, device: torch.device) -> CropSet:
    """Made pairs of reals and fakes, resident on the device as training's are."""
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


def _waiting_share(step: Callable[[], None], n_steps: int = 10) -> float:
    """The share of the time in which no kernel ran, as torch's profiler saw it."""
    activities = [torch.profiler.ProfilerActivity.CPU, torch.profiler.ProfilerActivity.CUDA]
    torch.cuda.synchronize()
    with torch.profiler.profile(activities=activities) as profile:
        started = time.perf_counter()
        for _ in range(n_steps):
            step()
        torch.cuda.synchronize()
        wall_s = time.perf_counter() - started
    busy_us = sum(event.self_device_time_total for event in profile.key_averages())
    return max(1 - busy_us / 1e6 / wall_s, 0.0)


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--architecture", choices=ARCHITECTURES, default="efficientnet-b0", help="the net")
    parser.add_argument("--input-size", type=int, default=224, help="side in pixels that it sees (default: 224)")
    parser.add_argument("--batch-size", type=int, default=256, help="crops a step (default: 256)")
    parser.add_argument("--steps", type=int, default=50, help="that are timed (default: 50)")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cuda" if torch.cuda.is_available() else "cpu")
    args = parser.parse_args(argv)
    speed = time_training(
        architecture=args.architecture,
        input_size=args.input_size,
        batch_size=args.batch_size,
        n_steps=args.steps,
        device=args.device,
    )
    print(f"{args.architecture} at {args.input_size} px, batches of {args.batch_size}, on {speed.device}:")
    print(f"  {speed.images_per_s:.0f} images/s with augmentation, {speed.net_images_per_s:.0f} without")
    print(f"  augmentation takes {speed.augmentation_share:.0%} of the time")
    if speed.waiting_share is not None:
        print(f"  the GPU waits for {speed.waiting_share:.0%} of it; {speed.peak_memory_mb:.0f} MB at most")
    print(json.dumps(asdict(speed)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
