"""A net on its way through the epochs: what moves while it is trained, the exact resume, the log and the best epoch."""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.optim.swa_utils import AveragedModel

from dfdc.files import drafted
from dfdc.training.checkpoint import load_state, save_state
from dfdc.training.distributed import Rank
from dfdc.training.runlog import report_epoch
from dfdc.weights import Calibration

# AdamW's, on matrices and filters only; and the share of all steps in which the learning rate rises.
WEIGHT_DECAY, WARMUP = 0.02, 0.05
# The best epoch's averaged weights: the last ones need not be the best (docs/experiments.md).
STATE, BEST = "state.pt", "best.pt"

# What validation says of a model: its scores, "balanced_log_loss" among them, and the calibration fitted there.
Evaluation = tuple[dict[str, float], Calibration]


@dataclass(frozen=True)
class Course:
    """What moves while a model is trained: the model, the average of its weights, and the optimizer on its schedule.

    On CUDA the nets run in bfloat16; a device that only emulates it (a T4) takes float16, whose gradients the scaler
    keeps from vanishing. Elsewhere it does nothing.
    """

    model: nn.Module
    average: AveragedModel
    optimizer: torch.optim.Optimizer
    schedule: torch.optim.lr_scheduler.LRScheduler
    scaler: torch.amp.GradScaler

    @property
    def stateful(self) -> dict[str, object]:
        """What has a state, by name."""
        return {field.name: getattr(self, field.name) for field in fields(self)}

    def step(self, answer: nn.Module, pixels: Tensor, targets: Tensor, weights: Tensor | None = None) -> Tensor:
        """One step down the gradient; the loss before it.

        Args:
            answer: the model, or what wraps or compiles it.
            pixels: what it sees.
            targets: (N,) in 0..1.
            weights: (N,) how much each counts; None for all alike.

        Raises:
            MemoryError: the GPU has too little for so many.
        """
        try:
            return self._step(answer, pixels, targets, weights)
        except torch.cuda.OutOfMemoryError as error:
            raise MemoryError(
                f"{len(pixels)} crops a step are too many for the GPU's memory; use fewer with --batch-size"
            ) from error

    def _step(self, answer: nn.Module, pixels: Tensor, targets: Tensor, weights: Tensor | None) -> Tensor:
        half = torch.float16 if self.scaler.is_enabled() else torch.bfloat16
        with torch.autocast(pixels.device.type, half, enabled=pixels.device.type == "cuda"):
            logits = answer(pixels)
        loss = functional.binary_cross_entropy_with_logits(logits.float(), targets, weights)
        self.optimizer.zero_grad(set_to_none=True)
        self.scaler.scale(loss).backward()
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.schedule.step()
        self.average.update_parameters(self.model)
        return loss.detach()


def set_out(model: nn.Module, *, steps: int, rate: float, ema_decay: float) -> Course:
    """Make ready to train a model for so many steps; the other arguments are those of `TrainSettings`.

    On CUDA this process looks for the fastest convolutions from then on: all batches of a run have one shape.
    """
    cuda = next(model.parameters()).is_cuda
    torch.backends.cudnn.benchmark |= cuda
    matrices = [p for p in model.parameters() if p.ndim > 1]
    vectors = [p for p in model.parameters() if p.ndim <= 1]
    groups = [{"params": matrices, "weight_decay": WEIGHT_DECAY}, {"params": vectors, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=rate, fused=cuda)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: learning_rate(step / steps))
    scaler = torch.amp.GradScaler(enabled=cuda and not torch.cuda.is_bf16_supported(including_emulation=False))
    return Course(model, running_average(model, ema_decay), optimizer, schedule, scaler)


def running_average(model: nn.Module, decay: float) -> AveragedModel:
    """The average of a model's weights over its last steps, which `update_parameters` of it brings up to date.

    Each step keeps `decay` of it, but the step after n others at most (1 + n) / (10 + n), so that a short run's average
    is not where it began. 0 keeps nothing: the average is the model.
    """

    @torch.no_grad()
    def update(averaged: list[Tensor], current: list[Tensor], n_before: Tensor) -> None:
        if not averaged[0].is_floating_point():  # counters of batches, which nothing reads
            torch._foreach_copy_(averaged, current)
            return
        kept = ((1 + n_before) / (10 + n_before)).clamp(max=decay)
        torch._foreach_mul_(averaged, kept)
        torch._foreach_add_(averaged, torch._foreach_mul(current, 1 - kept))

    return AveragedModel(model, multi_avg_fn=update, use_buffers=True)


def learning_rate(done: float) -> float:
    """The share of its peak after so great a part (0 to 1) of all steps: a rise, then a cosine down to zero."""
    if done < WARMUP:
        return done / WARMUP
    return 0.5 * (1 + math.cos(math.pi * (done - WARMUP) / (1 - WARMUP)))


def pass_epochs(
    course: Course,
    folder: Path,
    made_from: Mapping[str, object],
    epochs: int,
    *,
    train_epoch: Callable[[int], list[Tensor]],
    evaluate: Callable[[nn.Module], Evaluation],
    rank: Rank | None = None,
    finish: bool = False,
    progress: bool = True,
) -> tuple[nn.Module, dict[str, float], Calibration] | None:
    """Train for so many epochs, or for those that a killed run left.

    Args:
        course: changed in place.
        folder: gets state.pt (for resuming), best.pt, log.csv with a line an epoch, curves.png, TensorBoard's events.
        made_from: settings and what else a run is made from; a state that was made from something else is refused.
        epochs: of the whole run.
        train_epoch: takes the steps of an epoch (0 up) and returns the loss before each. What it draws depends on the
            epoch's number alone.
        evaluate: what validation says of the averaged model.
        rank: which of the processes that train together this is; None for one alone.
        finish: take no more epochs than the folder's run has done.
        progress: print the epochs.

    Returns:
        The averaged model of the epoch with the least balanced log loss on validation, on the CPU and in evaluation
        mode, and what validation says of it; None in every rank but the first.

    Raises:
        ValueError: the folder holds another run's state, or none where it is to be finished.
    """
    rank = rank or Rank(0, 1, torch.device("cpu"))
    best = None
    n_done = load_state(folder / STATE, course.stateful, made_from)
    if n_done and rank.first and not (folder / BEST).exists():
        raise ValueError(
            f"{folder}: its run is of an older version, or lost its {BEST}; name another folder with --run"
        )
    if finish and not n_done:
        raise ValueError(f"{folder}: holds no run that has done an epoch, so there is nothing to finish")
    for epoch in range(n_done, n_done if finish else epochs):
        started = time.monotonic()
        losses = train_epoch(epoch)
        if rank.first:
            seconds = time.monotonic() - started
            measured = evaluate(course.average.module)
            row = {
                "epoch": epoch + 1,
                "train_loss": float(torch.stack(losses).mean()),
                "seconds": seconds,
                **measured[0],
            }
            # In this order: what is killed in between is done and reported again, and no epoch's row is lost.
            rows = report_epoch(folder, row, progress=progress)
            if row["balanced_log_loss"] <= min(other["balanced_log_loss"] for other in rows):
                best = measured
                with drafted(folder / BEST) as draft:
                    torch.save(course.average.module.state_dict(), draft)
            save_state(folder / STATE, course.stateful, made_from, epoch + 1)
        rank.wait()

    if not rank.first:
        return None
    final = copy.deepcopy(course.average.module).eval()
    final.load_state_dict(torch.load(folder / BEST, weights_only=True, map_location="cpu"))
    scores, calibration = best or evaluate(final)  # it may be of before this run went on
    return final.cpu(), scores, calibration
