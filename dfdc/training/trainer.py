"""The state of a training run and its epochs: optimizer steps, exact resumption, the log, and the best epoch."""

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

from dfdc.errors import InputError, MachineError
from dfdc.files import drafted
from dfdc.training.checkpoint import load_state, save_state
from dfdc.training.distributed import Rank
from dfdc.training.folding import FoldedModel
from dfdc.training.runlog import report_epoch
from dfdc.weights import Calibration

# AdamW's weight decay, for matrices and filters only; the share of all steps that the learning rate warms up.
WEIGHT_DECAY, WARMUP = 0.02, 0.05
# Files of a run. The averaged weights of the best epoch are kept: the last need not be the best (docs/experiments.md).
STATE, BEST = "state.pt", "best.pt"

# The result of validation: scores by name, "balanced_log_loss" among them, and the calibration fitted there.
Evaluation = tuple[dict[str, float], Calibration]


@dataclass(frozen=True)
class Trainer:
    """What changes during training: the model, the average of its weights, the optimizer, its schedule and its scaler.

    On CUDA the model runs in bfloat16, or in float16 on a device that only emulates bfloat16 (a T4); then the scaler
    keeps gradients from underflowing. Otherwise the scaler does nothing.
    """

    model: nn.Module
    average: AveragedModel
    optimizer: torch.optim.Optimizer
    schedule: torch.optim.lr_scheduler.LRScheduler
    scaler: torch.amp.GradScaler

    @property
    def stateful(self) -> dict[str, object]:
        """Everything that has a state, by name."""
        return {field.name: getattr(self, field.name) for field in fields(self)}

    def step(self, forward: nn.Module, pixels: Tensor, targets: Tensor, weights: Tensor | None = None) -> Tensor:
        """Take one optimizer step.

        Args:
            forward: the model, or a wrapped or compiled form of it.
            pixels: its input.
            targets: (N,) in 0..1.
            weights: (N,) of each example in the loss; None for equal weights.

        Returns:
            The loss before the step, a scalar tensor.

        Raises:
            MachineError: the GPU has too little memory for the batch.
        """
        try:
            return self._step(forward, pixels, targets, weights)
        except torch.cuda.OutOfMemoryError as error:
            raise MachineError(
                f"a batch of {len(pixels)} crops does not fit into the GPU's memory; use a smaller --batch-size"
            ) from error

    def _step(self, forward: nn.Module, pixels: Tensor, targets: Tensor, weights: Tensor | None) -> Tensor:
        half = torch.float16 if self.scaler.is_enabled() else torch.bfloat16
        with torch.autocast(pixels.device.type, half, enabled=pixels.device.type == "cuda"):
            logits = forward(pixels)
        loss = functional.binary_cross_entropy_with_logits(logits.float(), targets, weights)
        self.optimizer.zero_grad(set_to_none=True)
        self.scaler.scale(loss).backward()
        return self._advance(loss)

    def step_folded(
        self, answer: FoldedModel, pixels: Tensor, targets: Tensor, weights: Tensor | None = None, *, group: int
    ) -> Tensor:
        """Take one optimizer step with fixed batch norms, on the CPU.

        Args:
            answer: the folded form of the model.
            pixels, targets, weights: see `step`.
            group: number of crops per forward pass.

        Returns:
            The loss before the step, a scalar tensor.
        """
        self.optimizer.zero_grad(set_to_none=True)
        answer.fold()
        total = torch.zeros(())
        for part in torch.arange(len(pixels)).split(group):
            own = None if weights is None else weights[part]
            loss = functional.binary_cross_entropy_with_logits(
                answer(pixels[part]), targets[part], own, reduction="sum"
            )
            (loss / len(pixels)).backward()
            total += loss.detach() / len(pixels)
        answer.take_back()
        return self._advance(total)

    def _advance(self, loss: Tensor) -> Tensor:
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.schedule.step()
        self.average.update_parameters(self.model)
        return loss.detach()


def make_trainer(model: nn.Module, *, steps: int, learning_rate: float, ema_decay: float) -> Trainer:
    """Prepare to train a model.

    On CUDA this process searches for the fastest convolutions from then on: all batches of a run have one shape.

    Args:
        model: trained in place.
        steps: of the whole run.
        learning_rate: peak; see `schedule_factor`.
        ema_decay: see `running_average`.
    """
    cuda = next(model.parameters()).is_cuda
    torch.backends.cudnn.benchmark |= cuda
    matrices = [p for p in model.parameters() if p.ndim > 1]
    vectors = [p for p in model.parameters() if p.ndim <= 1]
    groups = [{"params": matrices, "weight_decay": WEIGHT_DECAY}, {"params": vectors, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=learning_rate, fused=cuda)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: schedule_factor(step / steps))
    scaler = torch.amp.GradScaler(enabled=cuda and not torch.cuda.is_bf16_supported(including_emulation=False))
    return Trainer(model, running_average(model, ema_decay), optimizer, schedule, scaler)


def running_average(model: nn.Module, decay: float) -> AveragedModel:
    """An exponential moving average of a model's weights and buffers; its `update_parameters` follows a step.

    Each step keeps the share `decay` of the average, but after n steps at most (1 + n) / (10 + n), so that the average
    of a short run does not stay near the initial weights. With a decay of 0 the average equals the model.
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


def schedule_factor(done: float) -> float:
    """The learning rate relative to its peak after a share (0 to 1) of all steps: linear warm-up, then cosine decay."""
    if done < WARMUP:
        return done / WARMUP
    return 0.5 * (1 + math.cos(math.pi * (done - WARMUP) / (1 - WARMUP)))


def run_epochs(
    trainer: Trainer,
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
    """Train for a number of epochs, or for those that an interrupted run has left.

    Args:
        trainer: changed in place.
        folder: gets state.pt (for resumption), best.pt, log.csv with a line for each epoch, curves.png and TensorBoard
            events.
        made_from: settings and inputs of the run; a state that was made from others is refused.
        epochs: of the whole run.
        train_epoch: takes the steps of an epoch (0 up) and returns the loss before each. Its random numbers depend on
            the epoch's number only.
        evaluate: validates the averaged model.
        rank: this process among those that train together; None for a single process.
        finish: train no further epochs than the folder's run has done.
        progress: print the epochs.

    Returns:
        The averaged model of the epoch with the lowest balanced log loss on validation, on the CPU and in evaluation
        mode, and its validation; None in every rank but the first.

    Raises:
        InputError: the folder holds the state of another run, or no state although the run is to be finished.
    """
    rank = rank or Rank(0, 1, torch.device("cpu"))
    best = None
    n_done = load_state(folder / STATE, trainer.stateful, made_from)
    if n_done and rank.first and not (folder / BEST).exists():
        raise InputError(f"{folder}: its run has no {BEST}; name another folder with --run")
    if finish and not n_done:
        raise InputError(f"{folder}: holds no run that has completed an epoch, so there is nothing to finish")
    for epoch in range(n_done, n_done if finish else epochs):
        started = time.monotonic()
        losses = train_epoch(epoch)
        if rank.first:
            seconds = time.monotonic() - started
            measured = evaluate(trainer.average.module)
            row = {
                "epoch": epoch + 1,
                "train_loss": float(torch.stack(losses).mean()),
                "seconds": seconds,
                **measured[0],
            }
            # In this order, so that an epoch whose end is interrupted is done and reported again, and no row is lost.
            rows = report_epoch(folder, row, progress=progress)
            if row["balanced_log_loss"] <= min(other["balanced_log_loss"] for other in rows):
                best = measured
                with drafted(folder / BEST) as draft:
                    torch.save(trainer.average.module.state_dict(), draft)
            save_state(folder / STATE, trainer.stateful, made_from, epoch + 1)
        rank.wait()

    if not rank.first:
        return None
    final = copy.deepcopy(trainer.average.module).eval()
    final.load_state_dict(torch.load(folder / BEST, weights_only=True, map_location="cpu"))
    scores, calibration = best or evaluate(final)  # best is None if the best epoch was before this process began
    return final.cpu(), scores, calibration
