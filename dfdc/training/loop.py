"""Crops -> trained frame model: the loop, its exact resume, and its evaluation."""

from __future__ import annotations

import copy
import csv
import math
import time
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from tqdm import tqdm

from dfdc.model import FrameModel, MirroredModel, resize_crops
from dfdc.submission import write_csv
from dfdc.training.augment import augment, mix_pairs
from dfdc.training.dataset import CropSet, DataError, pair_epoch
from dfdc.training.metrics import fit_calibration, measure
from dfdc.weights import Calibration, sigmoid


@dataclass(frozen=True)
class TrainSettings:
    """How to train; the defaults are what the experiment log found to pay.

    Attributes:
        epochs: passes over the real crops, each beside one fake.
        batch_size: crops per step, half of them real; even.
        learning_rate: peak, reached after `warmup` of all steps, then a cosine down to zero.
        weight_decay: AdamW's, on matrices and filters only.
        warmup: share of all steps.
        ema_decay: per step, of the averaged weights that are evaluated and shipped.
        label_smoothing: targets are drawn towards one half by it.
        mixup: probability that an aligned pair's fake is mixed with its original.
        seed: of everything.
    """

    epochs: int = 12
    batch_size: int = 64
    learning_rate: float = 1e-3
    weight_decay: float = 0.02
    warmup: float = 0.05
    ema_decay: float = 0.998
    label_smoothing: float = 0.01
    mixup: float = 0.3
    seed: int = 0

    def __post_init__(self) -> None:
        if self.epochs < 1 or self.batch_size < 2 or self.batch_size % 2:
            raise ValueError(
                f"epochs {self.epochs}, batch_size {self.batch_size}: allowed are 1 up, and even from 2 up"
            )


def has_folded_norms(model: FrameModel) -> bool:
    """Whether every batch norm still has the statistics of a fresh or folded one, mean 0 and variance 1."""
    norms = [m for m in model.modules() if isinstance(m, nn.BatchNorm2d)]
    return all(
        (n.running_mean == 0).all() and torch.allclose(n.running_var, n.running_mean + 1, atol=0.01) for n in norms
    )


def revive_batch_norms(model: FrameModel, crops: Tensor) -> None:
    """Make folded batch norms real again, without changing the function.

    Published half-precision ImageNet weights have their norms folded into the convolutions. One pass over real crops
    sets each norm's running mean and variance from its input, and its scale and bias to undo them.

    Args:
        model: whose norms are the identity plus a bias.
        crops: (N, 3, H, W) uint8, at least some dozens.
    """

    def revive(norm: nn.BatchNorm2d, inputs: tuple[Tensor]) -> None:
        variance, mean = torch.var_mean(inputs[0], (0, 2, 3), correction=0)
        slope = norm.weight / (norm.running_var + norm.eps).sqrt()
        norm.bias.copy_(norm.bias + (mean - norm.running_mean) * slope)
        norm.weight.copy_(slope * (variance + norm.eps).sqrt())
        norm.running_mean.copy_(mean)
        norm.running_var.copy_(variance)

    norms = [m for m in model.modules() if isinstance(m, nn.BatchNorm2d)]
    handles = [norm.register_forward_pre_hook(revive) for norm in norms]
    training = model.training
    model.eval()
    with torch.no_grad():
        model(crops)
    model.train(training)
    for handle in handles:
        handle.remove()


@torch.inference_mode()
def score_crops(model: FrameModel, images: Tensor, *, batch_size: int = 128) -> np.ndarray:
    """Logits of many crops, each the mean of a crop's and its mirror image's.

    Args:
        model: in evaluation mode.
        images: (N, 3, H, W) uint8, on the CPU or the model's device.
        batch_size: crops per step.

    Returns:
        (N,) float32.
    """
    device = model.mean.device
    answer = MirroredModel(model)
    logits = [answer(batch.to(device)).float().cpu() for batch in images.split(batch_size)]
    return torch.cat(logits).numpy()


def train(
    model: FrameModel,
    training: CropSet,
    validation: CropSet,
    folder: Path,
    settings: TrainSettings,
    *,
    device: torch.device | str = "cpu",
    progress: bool = True,
) -> tuple[FrameModel, dict[str, float], Calibration]:
    """Train a model; a run that was killed goes on from its last whole epoch, with the same losses.

    Args:
        model: where training starts.
        training, validation: disjoint in originals.
        folder: gets state.pt (for resuming) and log.csv, a line an epoch.
        settings: how.
        device: where.
        progress: draw progress bars.

    Returns:
        The averaged model on the CPU, in evaluation mode, its validation scores (see `evaluate`), and the calibration
        fitted there.

    Raises:
        DataError: there are not enough crops for a batch.
        ValueError: the folder holds another run's state.
    """
    torch.manual_seed(settings.seed)
    generator = torch.Generator().manual_seed(settings.seed)
    model = model.to(device, memory_format=torch.channels_last).train()
    average = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(settings.ema_decay), use_buffers=True)
    optimizer = torch.optim.AdamW(_parameter_groups(model, settings.weight_decay), lr=settings.learning_rate)
    pairs = settings.batch_size // 2
    n_reals = int((training.labels == 0).sum())
    if n_reals < pairs:
        raise DataError(f"{n_reals} reals cannot fill a batch of {settings.batch_size}; make more crops or it smaller")
    steps = n_reals // pairs * settings.epochs
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: _learning_rate(step / steps, settings.warmup))
    stateful = {"model": model, "average": average, "optimizer": optimizer, "schedule": schedule}
    first = _resume(folder / "state.pt", stateful, generator, settings)
    on_gpu = torch.device(device).type == "cuda"
    images = training.images.to(device) if on_gpu else training.images

    for epoch in range(first, settings.epochs):
        started, losses = time.monotonic(), []
        batches = [b for b in pair_epoch(training, generator).split(pairs) if len(b) == pairs]
        bar = tqdm(batches, desc=f"epoch {epoch + 1}/{settings.epochs}", disable=not progress)
        for batch in bar:
            pixels, targets = _make_batch(images, training, batch, model, settings, generator)
            with torch.autocast("cuda", torch.bfloat16, enabled=on_gpu):
                logits = model(pixels)
            loss = functional.binary_cross_entropy_with_logits(logits.float(), targets)
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()
            schedule.step()
            average.update_parameters(model)
            losses.append(loss.detach())
            if len(losses) % 20 == 0:
                rate = len(losses) * 2 * pairs / (time.monotonic() - started)
                bar.set_postfix(loss=f"{torch.stack(losses[-100:]).mean():.4f}", images_per_s=f"{rate:.0f}")
        seconds = time.monotonic() - started
        scores, _ = evaluate(average.module, validation)
        row = {"epoch": epoch + 1, "train_loss": float(torch.stack(losses).mean()), "seconds": seconds, **scores}
        _write_row(folder / "log.csv", row)
        _save_state(folder / "state.pt", stateful, generator, settings, epoch + 1)
        if progress:
            print(" ".join(f"{k}={v:.4f}" if isinstance(v, float) else f"{k}={v}" for k, v in row.items()), flush=True)

    final = copy.deepcopy(average.module).cpu().eval()
    return final, *evaluate(final, validation)


def evaluate(model: FrameModel, crops: CropSet) -> tuple[dict[str, float], Calibration]:
    """Scores after calibration (raw_log_loss: before it), and the calibration."""
    training = model.training
    logits = score_crops(model.eval(), crops.images)
    model.train(training)
    labels = crops.labels.numpy()
    calibration = fit_calibration(labels, logits)
    raw = measure(labels, sigmoid(logits))
    return {**measure(labels, calibration.probabilities(logits)), "raw_log_loss": raw["log_loss"]}, calibration


def _make_batch(
    images: Tensor,
    crops: CropSet,
    batch: Tensor,
    model: FrameModel,
    settings: TrainSettings,
    generator: torch.Generator,
) -> tuple[Tensor, Tensor]:
    """Resized, mixed and augmented pixels (2 P, 3, S, S), and smoothed targets (2 P,), reals first."""
    device = model.mean.device
    both = images[batch.T.flatten().to(images.device)].to(device, torch.float32)
    reals, fakes = resize_crops(both, model.spec.input_size).chunk(2)
    mixed, share = mix_pairs(reals, fakes, settings.mixup, generator)
    aligned = (crops.originals[batch[:, 1]] == batch[:, 0]).to(device)
    fakes = torch.where(aligned.view(-1, 1, 1, 1), mixed, fakes)
    share = torch.where(aligned, share, torch.ones_like(share))
    pixels = augment(torch.cat([reals, fakes]), generator).contiguous(memory_format=torch.channels_last)
    targets = torch.cat([torch.zeros_like(share), share])
    return pixels, targets * (1 - settings.label_smoothing) + settings.label_smoothing / 2


def _learning_rate(done: float, warmup: float) -> float:
    if done < warmup:
        return done / warmup
    return 0.5 * (1 + math.cos(math.pi * (done - warmup) / (1 - warmup)))


def _parameter_groups(model: nn.Module, weight_decay: float) -> list[dict[str, object]]:
    matrices = [p for p in model.parameters() if p.ndim > 1]
    vectors = [p for p in model.parameters() if p.ndim <= 1]
    return [{"params": matrices, "weight_decay": weight_decay}, {"params": vectors, "weight_decay": 0.0}]


def _save_state(path: Path, stateful: dict, generator: torch.Generator, settings: TrainSettings, epoch: int) -> None:
    state = {name: part.state_dict() for name, part in stateful.items()}
    state |= {
        "generator": generator.get_state(),
        "torch": torch.get_rng_state(),
        "settings": asdict(settings),
        "epoch": epoch,
    }
    if torch.cuda.is_available():
        state["cuda"] = torch.cuda.get_rng_state_all()
    draft = path.with_suffix(".tmp")
    torch.save(state, draft)
    draft.replace(path)


def _resume(path: Path, stateful: dict, generator: torch.Generator, settings: TrainSettings) -> int:
    """Load the last whole epoch's state, if there is one; the number of epochs done."""
    if not path.exists():
        return 0
    state = torch.load(path, weights_only=True)
    if state["settings"] != asdict(settings):
        raise ValueError(f"{path}: belongs to a run with {state['settings']}; use the same settings or another folder")
    try:
        for name, part in stateful.items():
            part.load_state_dict(state[name])
    except RuntimeError as error:
        raise ValueError(f"{path}: belongs to a run of another net; name it or use another folder") from error
    generator.set_state(state["generator"])
    torch.set_rng_state(state["torch"])
    if torch.cuda.is_available() and "cuda" in state:
        torch.cuda.set_rng_state_all(state["cuda"])
    return state["epoch"]


def _write_row(path: Path, row: dict[str, float]) -> None:
    """Add an epoch to the log; what a killed run wrote of it, and had to do again, goes."""
    rows = []
    if path.exists():
        with open(path, newline="") as file:
            rows = [list(old.values()) for old in csv.DictReader(file) if int(old["epoch"]) < row["epoch"]]
    write_csv(path, list(row), [*rows, list(row.values())])
