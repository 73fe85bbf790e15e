"""Crops -> trained frame model: batches, training steps and evaluation."""

from __future__ import annotations

import math
import os
import shutil
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from functools import cache
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from tqdm import tqdm

from dfdc.data.dataset import CropSet, pair_epoch
from dfdc.errors import DataError, NonFiniteError, SettingError
from dfdc.evaluation.metrics import measure_families
from dfdc.networks import FrameModel, TwoViewModel, resize_crops
from dfdc.training.augment import RECIPE, augment, augment_pairs, match_pairs, mix_pairs, pick, reduce_to
from dfdc.training.blend import self_blend
from dfdc.training.checkpoint import describe_origin
from dfdc.training.distillation import Teacher
from dfdc.training.distributed import Rank
from dfdc.training.folding import FoldedModel
from dfdc.training.sampling import draw_pairs
from dfdc.training.trainer import Evaluation, make_trainer, run_epochs
from dfdc.weights import Calibration

# Batch size in evaluation. On the CPU, 128 crops of 192 px would take 6 GB more memory and be no faster.
SCORED_CROPS = {"cpu": 16, "cuda": 256}


@dataclass(frozen=True)
class TrainSettings:
    """How to train; docs/experiments.md has the measurements behind the defaults.

    Attributes:
        epochs: passes over the real crops, each paired with one fake; 1 up.
        batch_size: crops per step, half of them real; even, 2 up.
        learning_rate: peak; see `dfdc.training.trainer.schedule_factor`.
        ema_decay: decay per step of the averaged weights, which are evaluated and saved; 0..1, 1 excluded. See
            `dfdc.training.trainer.running_average`.
        label_smoothing: how far targets are moved towards 0.5, 0..1.
        mixup: probability that the fake of an aligned pair is mixed with its original.
        self_blend: probability that the fake of a pair is replaced by the real, blended onto itself.
        chances: augmentation step -> its probability, if it differs from the recipe's; 0 switches a step off.
        alike: augment the real and the fake of a pair in the same way.
        compiled: use `torch.compile` for faster steps on CUDA; needs a C compiler, and the first step takes a minute.
        shares: family -> its share of an epoch's pairs; if empty, every real comes once, whatever its family.
        epoch_pairs: pairs per epoch if families have shares; None for the number of reals.
        fixed_norms: keep the batch-norm statistics of a trained start, which makes steps on the CPU faster; see
            `dfdc.training.folding`.
        match_strangers: give a fake without an original the colour and sharpness of the real beside it, or vice versa.
        group: crops per forward pass if norms are fixed.
        distillation: weight of a teacher's probability in a target, 0..1, for crops of the teacher's families.
        seed: of all random numbers.

    Raises:
        SettingError: a value is not allowed.
    """

    epochs: int = 12
    batch_size: int = 64
    learning_rate: float = 1e-3
    ema_decay: float = 0.998
    label_smoothing: float = 0.01
    mixup: float = 0.5
    self_blend: float = 0.25
    chances: Mapping[str, float] = field(default_factory=dict)
    alike: bool = True
    compiled: bool = False
    shares: Mapping[str, float] = field(default_factory=dict)
    epoch_pairs: int | None = None
    fixed_norms: bool = False
    match_strangers: bool = False
    group: int = 4
    distillation: float = 0.5
    seed: int = 0

    def __post_init__(self) -> None:
        if self.epochs < 1 or self.batch_size < 2 or self.batch_size % 2:
            raise SettingError(
                f"epochs {self.epochs}, batch_size {self.batch_size}: allowed are 1 up, and even numbers from 2 up"
            )
        if not 0 <= self.ema_decay < 1:
            raise SettingError(f"ema_decay is {self.ema_decay}; allowed are 0 (no averaging) to below 1")
        for name in ("label_smoothing", "mixup", "self_blend", "distillation"):
            if not 0 <= getattr(self, name) <= 1:
                raise SettingError(f"{name} is {getattr(self, name)}; allowed are probabilities, 0 to 1")
        for name, share in self.shares.items():
            if not 0 < share < math.inf:
                raise SettingError(f"share {name}={share}: allowed are finite numbers above 0")
        if self.group < 1 or (self.epoch_pairs is not None and self.epoch_pairs < 1):
            raise SettingError(
                f"group {self.group}, epoch_pairs {self.epoch_pairs}: allowed are whole numbers from 1 up"
            )
        if self.fixed_norms and self.compiled:
            raise SettingError("fixed_norms and compiled: the first is for the CPU, the second for CUDA; choose one")
        steps = {step.__name__ for step, _ in RECIPE}
        for name, chance in self.chances.items():
            if name not in steps or not 0 <= chance <= 1:
                raise SettingError(
                    f"chance {name}={chance}: allowed are probabilities, 0 to 1, of {', '.join(sorted(steps))}"
                )


@torch.inference_mode()
def score_crops(model: FrameModel, images: Tensor) -> np.ndarray:
    """Compute the logits of many crops, each the mean over the two views of a crop.

    Args:
        model: in evaluation mode.
        images: (N, 3, H, W) uint8 RGB, on the CPU or the model's device.

    Returns:
        (N,) float32; computed in half precision on CUDA.

    Raises:
        NonFiniteError: a logit is infinite or not a number.
    """
    device = model.mean.device
    answer = TwoViewModel(model)
    with torch.autocast(device.type, torch.float16, enabled=device.type == "cuda"):  # as in the kernel
        logits = [answer(batch.to(device)).float().cpu() for batch in images.split(SCORED_CROPS[device.type])]
    found = torch.cat(logits).numpy()
    if not np.isfinite(found).all():
        raise NonFiniteError(
            f"{model.spec.architecture}: its logits are not finite; train with a lower --learning-rate"
        )
    return found


def train(
    model: FrameModel,
    training: CropSet,
    validation: CropSet,
    folder: Path,
    settings: TrainSettings,
    *,
    start: str | None = None,
    teacher: Teacher | None = None,
    rank: Rank | None = None,
    finish: bool = False,
    progress: bool = True,
) -> tuple[FrameModel, dict[str, float], Calibration] | None:
    """Train a model, or resume an interrupted run after its last complete epoch.

    A resumed run has the same losses as an uninterrupted one. (On CUDA they may differ by rounding, because cuDNN may
    choose other convolutions.) Several ranks split each batch; the first rank evaluates, writes and reports.

    Args:
        model: with its initial weights, which are the same in every rank; changed in place.
        training, validation: crops of the same size and of different originals.
        folder: see `run_epochs`.
        settings: how to train.
        start: identifies the initial weights; see `describe_origin`.
        teacher: models on the rank's device whose probabilities are part of the targets; None for labels only.
        rank: this process among those that train together, and its device; None for a single process on the CPU.
        finish: see `run_epochs`.
        progress: draw progress bars.

    Returns:
        See `run_epochs`.

    Raises:
        DataError: there are too few crops for a batch, or the validation crops have another size or lack a class.
        InputError: the folder holds the state of another run.
        SettingError: the ranks cannot split a batch, or a setting does not suit the device.
        NonFiniteError: the model's output is infinite or not a number.
    """
    rank = rank or Rank(0, 1, torch.device("cpu"))
    pairs = settings.batch_size // 2
    if pairs % rank.count:
        raise SettingError(
            f"batch_size {settings.batch_size}: its {pairs} pairs cannot be split among {rank.count} ranks"
        )
    n_reals = int((training.labels == 0).sum())
    if n_reals < pairs:
        raise DataError(
            f"{n_reals} reals cannot fill a batch of {settings.batch_size}; make more crops, or lower --batch-size"
        )
    n_pairs = settings.epoch_pairs if settings.shares and settings.epoch_pairs else n_reals
    _check_validation(training, validation)
    model = model.to(rank.device, memory_format=torch.channels_last).train()
    trainer = make_trainer(
        model,
        steps=n_pairs // pairs * settings.epochs,
        learning_rate=settings.learning_rate,
        ema_decay=settings.ema_decay,
    )
    if settings.fixed_norms and (rank.device.type != "cpu" or rank.count > 1):
        raise SettingError("fixed_norms: works in one process on the CPU only; train without")
    folded = FoldedModel(model) if settings.fixed_norms else None
    wrapped = rank.wrap(model)

    @cache
    def compiled() -> nn.Module:  # only when an epoch begins, because a finished run needs no compiler
        return compile_training(wrapped)

    images = training.images.to(rank.device) if fits_beside(training.images, rank.device) else training.images

    def train_epoch(epoch: int) -> list[Tensor]:
        # Every epoch has its own seeds, so that a resumed run draws the same numbers as an uninterrupted one.
        order = torch.Generator().manual_seed(settings.seed * 10_000 + epoch)
        chances = torch.Generator().manual_seed((settings.seed * 10_000 + epoch) * 100 + rank.index + 1)
        torch.manual_seed((settings.seed * 10_000 + epoch) * 100 + rank.index + 1)
        answer = compiled() if settings.compiled else wrapped
        started, losses = time.monotonic(), []
        if settings.shares:
            drawn = draw_pairs(training, settings.shares, n_pairs, order)
        else:
            drawn = pair_epoch(training, order)
        batches = [b for b in drawn.split(pairs) if len(b) == pairs]
        bar = tqdm(batches, desc=f"epoch {epoch + 1}/{settings.epochs}", disable=not (progress and rank.first))
        for batch in bar:
            own = rank.share(batch)
            pixels, targets = make_batch(images, training, own, model, settings, chances, teacher)
            # Both crops of a pair get the weight of the fake, so that reals and fakes weigh the same in total.
            weights = None
            if training.weights is not None:
                weights = training.weights[own[:, 1]].repeat(2).to(rank.device, non_blocking=True)
            if folded is None:
                losses.append(trainer.step(answer, pixels, targets, weights))
            else:
                losses.append(trainer.step_folded(folded, pixels, targets, weights, group=settings.group))
            if len(losses) % 20 == 0:
                rate = len(losses) * 2 * pairs / (time.monotonic() - started)
                bar.set_postfix(loss=f"{torch.stack(losses[-100:]).mean():.4f}", images_per_s=f"{rate:.0f}")
        return losses

    return run_epochs(
        trainer,
        folder,
        {
            **asdict(settings),
            "chances": {step.__name__: chance for step, chance in RECIPE} | dict(settings.chances),
            **describe_origin(training, validation, model.spec, start),
            "teacher": None if teacher is None else [list(teacher.digests), list(teacher.families)],
        },
        settings.epochs,
        train_epoch=train_epoch,
        evaluate=lambda averaged: evaluate(averaged, validation),
        rank=rank,
        finish=finish,
        progress=progress,
    )


def compile_training(model: nn.Module) -> nn.Module:
    """Compile a model with `torch.compile`.

    Raises:
        SettingError: there is no C compiler, which `torch.compile` needs.
    """
    compilers = [os.environ["CC"]] if "CC" in os.environ else ["gcc", "clang"]
    if not any(map(shutil.which, compilers)):
        wanted = " or ".join(compilers)
        raise SettingError(f"--compile: needs a C compiler, and {wanted} is not installed; leave --compile out")
    return torch.compile(model)


def fits_beside(images: Tensor, device: torch.device) -> bool:
    """Whether the images take at most half of a GPU's free memory; always true on the CPU."""
    return device.type != "cuda" or images.nbytes <= torch.cuda.mem_get_info(device)[0] / 2


def _check_validation(training: CropSet, validation: CropSet) -> None:
    sizes = [crops.images.shape[-1] for crops in (training, validation)]
    if sizes[0] != sizes[1]:
        raise DataError(
            f"training crops have {sizes[0]} px, validation crops {sizes[1]}; cut both with one --size of make_crops.py"
        )
    n_fakes = int(validation.labels.sum())
    if not 0 < n_fakes < len(validation):
        raise DataError(
            f"validation has {len(validation) - n_fakes} reals and {n_fakes} fakes, and needs both; make crops with "
            "--val or a larger --val-share, or raise --limit"
        )


def evaluate(model: FrameModel, crops: CropSet) -> Evaluation:
    """Score validation crops, fit the calibration, and measure.

    If there are several families, each has the same weight, and the scores also contain the AUC and the log loss of
    each.

    Returns:
        The scores after calibration by name (raw_log_loss is the balanced log loss before it), and the calibration.
    """
    training = model.training
    logits = score_crops(model.eval(), crops.images)
    model.train(training)
    return measure_families(crops.labels.numpy(), logits, crops.families)


def make_batch(
    images: Tensor,
    crops: CropSet,
    batch: Tensor,
    model: FrameModel,
    settings: TrainSettings,
    generator: torch.Generator,
    teacher: Teacher | None = None,
) -> tuple[Tensor, Tensor]:
    """Make the resized, mixed and augmented pixels (2 P, 3, S, S) of a batch and its targets (2 P,), reals first.

    A teacher's probability is mixed into the targets of the families that it was chosen for. Self-blended fakes, which
    it may not recognise, and the reals that they were made from keep their labels.
    """
    device = model.mean.device
    both = images[batch.T.flatten().to(images.device, non_blocking=True)].to(device, torch.float32)
    reals, fakes = resize_crops(both, model.spec.input_size).chunk(2)
    mixed, share = mix_pairs(reals, fakes, settings.mixup, generator)
    own = crops.originals[batch[:, 1]] == batch[:, 0]
    aligned = (own if crops.aligned is None else own & crops.aligned[batch[:, 1]]).to(device, non_blocking=True)
    fakes = torch.where(aligned.view(-1, 1, 1, 1), mixed, fakes)
    if crops.sides is not None:
        # If the two crops are not an original and its fake, a difference in sharpness must not reveal the fake.
        sides = torch.minimum(*crops.sides[batch.T]).to(device)
        sides = torch.where(aligned, math.nan, sides * model.spec.input_size / crops.images.shape[-1])
        reals, fakes = reduce_to(reals, sides), reduce_to(fakes, sides)
    if settings.match_strangers:
        strange = torch.nonzero(crops.originals[batch[:, 1]] < 0).flatten().to(device)
        if len(strange):
            reals[strange], fakes[strange] = match_pairs(reals[strange], fakes[strange], generator)
    share = torch.where(aligned, share, torch.ones_like(share))
    blended = pick(len(reals), settings.self_blend, generator).to(device, non_blocking=True)
    if len(blended):
        reals[blended], fakes[blended] = self_blend(reals[blended], generator)
        share.index_fill_(0, blended, 1.0)
    if settings.alike:
        pixels = torch.cat(augment_pairs(reals, fakes, generator, chances=settings.chances))
    else:
        pixels = augment(torch.cat([reals, fakes]), generator, chances=settings.chances)
    pixels = pixels.contiguous(memory_format=torch.channels_last)
    targets = torch.cat([torch.zeros_like(share), share])
    targets = targets * (1 - settings.label_smoothing) + settings.label_smoothing / 2
    if teacher is not None:
        known = teacher.knows(None if crops.families is None else crops.families[batch.T.flatten()], len(targets))
        known[torch.cat([blended, blended + len(batch)]).cpu()] = False
        taught = torch.nonzero(known).flatten().to(device)
        if len(taught):
            told = teacher.answer(pixels[taught])
            targets[taught] = torch.lerp(targets[taught], told, settings.distillation)
    return pixels, targets
