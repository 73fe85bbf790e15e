"""Train a frame model on face crops and write a weights file that the kernel loads.

python tools/train.py --crops crops/crops.csv --init init.safetensors --run runs/lite0
torchrun --nproc-per-node 2 -- tools/train.py --crops crops/crops.csv ...             # on several GPUs
python tools/train.py --crops crops/crops.csv ... --frame-labels frame_labels.csv     # from tools/label_frames.py

The same command resumes a run that was interrupted.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from dfdc.crop import CropGeometry
from dfdc.data.dataset import find_families, find_lonely, load_rows, read_split
from dfdc.data.labels import describe_counts, read_labels, weigh_crops
from dfdc.errors import DataError, SettingError
from dfdc.evaluation.metrics import tells_nothing
from dfdc.files import make_folder
from dfdc.flags import (
    COMPILE_HELP,
    above_zero,
    family_share,
    input_side,
    make_parser,
    named_number,
    natural,
    positive,
    run_tool,
    tool,
)
from dfdc.training.distillation import Teacher
from dfdc.training.distributed import Rank, join_ranks
from dfdc.training.init import revive_if_folded, start_model
from dfdc.training.loop import TrainSettings, train
from dfdc.training.runlog import save_trained
from dfdc.training.sampling import thin_rows
from dfdc.weights import ARCHITECTURES, ModelSpec


def train_weights(
    crops: Sequence[Path],
    run: Path,
    out: Path,
    *,
    architecture: str = "efficientnet-lite0",
    input_size: int = 224,
    statistics_blocks: Sequence[int] = (),
    init: Path | None = None,
    imagenet: bool = False,
    settings: TrainSettings | None = None,
    teacher: Teacher | None = None,
    rank: Rank | None = None,
    limit: int | None = None,
    val_limit: int | None = None,
    leave_out: Sequence[str] = (),
    frame_labels: Path | None = None,
    labelled_only: bool = False,
    finish: bool = False,
    progress: bool = True,
) -> Path | None:
    """Train, calibrate and write one model.

    Args:
        crops: crop tables; see `dfdc.data.dataset.read_table`. The tables are used together.
        run: folder for the log and for the state from which an interrupted run resumes; made if absent.
        out: folder for the weights file; made if absent.
        architecture: one of `dfdc.weights.ARCHITECTURES`.
        input_size: side of the model's input in pixels.
        statistics_blocks: see `dfdc.weights.ModelSpec`; if empty, those of the initial weights.
        init: safetensors file to start from; None for random weights.
        imagenet: start from published ImageNet weights instead, fetched over the network.
        settings: of the training loop; None for the defaults.
        teacher: models whose probabilities are part of the targets; None for labels only.
        rank: this process among those that train together, and its device; None for a single process on the CPU.
        limit: use only this many crops of each table and split; None for all.
        val_limit: validate on at most this many reals, and this many fakes, of each family; None for all.
        leave_out: families that are left out of training; validation still measures the model on them.
        frame_labels: CSV of tools/label_frames.py; see `weigh_crops`.
        labelled_only: train only on those fakes whose label is "visible".
        finish: train no further; write the weights of the best epoch so far.
        progress: draw progress bars and print messages.

    Returns:
        The path of the weights file; None in every rank but the first, which writes it.

    Raises:
        DataError: the tables, the labels or the families cannot be used.
        WeightsError, InputError, SettingError: the initial weights, a folder or the settings cannot be used.
        NonFiniteError: the model's output is infinite or not a number.
    """
    settings = settings or TrainSettings()
    progress = progress and (rank is None or rank.first)
    make_folder(run)
    make_folder(out)
    torch.manual_seed(settings.seed)
    try:
        spec = ModelSpec(architecture, input_size, statistics_blocks=tuple(statistics_blocks))
    except ValueError as error:
        raise SettingError(str(error)) from error
    model, start = start_model(spec, init=init, imagenet=imagenet, progress=progress)
    rows = read_split(*crops, split="train", limit=limit)
    families = set(find_families(rows))
    for flag, named in (("--leave-out", leave_out), ("--taught", teacher.families if teacher else ())):
        if unknown := sorted(set(named) - families):
            raise DataError(f"{flag} {unknown[0]}: no such family; the tables have {', '.join(sorted(families))}")
    rows = rows[~find_families(rows).isin(leave_out)].reset_index(drop=True)
    weights = None
    if frame_labels is not None:
        weights, counts = weigh_crops(rows, read_labels(frame_labels), labelled_only=labelled_only)
        if progress:
            print(f"{frame_labels}: {describe_counts(counts)}")
    training = replace(load_rows(rows, progress=progress), weights=weights)
    val_rows = read_split(*crops, split="val", limit=limit)
    val_rows = val_rows if val_limit is None else thin_rows(val_rows, val_limit)
    validation = load_rows(val_rows, progress=progress)
    model.spec = replace(model.spec, crop=CropGeometry(size=training.images.shape[-1]))
    if progress and (alone := find_lonely(training)):
        n_fakes = int(training.labels.sum())
        print(
            f"{len(alone)} of {n_fakes} fake crops have no matching original in the training set (e.g. {alone[0]}), "
            "so they are paired with other reals."
        )
    if init is not None and (n_crops := revive_if_folded(model, training.images)) and progress:
        print(f"Batch-norm statistics recomputed from {n_crops} crops.")
    trained = train(
        model,
        training,
        validation,
        run,
        settings,
        start=start,
        teacher=teacher,
        rank=rank,
        finish=finish,
        progress=progress,
    )
    if trained is None:
        return None
    final, scores, calibration = trained
    if tells_nothing(calibration):
        n, raw = len(validation), scores["raw_log_loss"]
        print(
            f"train: the model cannot tell reals from fakes among the {n} validation crops (log loss {raw:.3f} before "
            "calibration; a constant 0.5 has .693). It will give every clip 0.5; train on more crops or for longer",
            file=sys.stderr,
        )
    names = ", ".join(f"{csv.parent.name}/{csv.name}" for csv in crops)
    path = save_trained(
        final,
        out,
        name=f"{architecture}-{input_size}",
        calibration=calibration,
        scores=scores,
        trained_on=f"{len(training)} crops of {names}, split train",
    )
    print(f"{path}: " + ", ".join(f"{name} {value:.4f}" for name, value in scores.items()))
    return path


def parse_chance(text: str) -> tuple[str, float]:
    """Parse the name and the probability of an augmentation, such as cut_out=0.2."""
    return named_number(text, wanted="an augmentation and its probability, such as colour=0")


def build_parser() -> argparse.ArgumentParser:
    defaults = TrainSettings()
    parser = make_parser(__doc__)
    add = parser.add_argument
    crops_help = "crop tables; their images lie beside them or in zip files"
    add("--crops", nargs="+", type=Path, required=True, metavar="CSV", help=crops_help)
    add("--run", type=Path, required=True, help="folder for the log and for resumption")
    add("--out", type=Path, help="folder for the weights file (default: that of --run)")
    architecture_help = "architecture of the model (default: %(default)s)"
    add("--architecture", choices=ARCHITECTURES, default="efficientnet-lite0", help=architecture_help)
    add("--input-size", type=input_side, default=224, help="side of the model's input in pixels (default: %(default)s)")
    statistics_help = (
        "give the head a second branch, which sees the mean and deviation of each channel at the input of this block; "
        "can be repeated (default: that of --init, if it has one)"
    )
    add("--statistics-block", action="append", default=[], type=natural, metavar="N", help=statistics_help)
    start = parser.add_mutually_exclusive_group()
    start.add_argument("--init", type=Path, help="safetensors file to start from (default: random weights)")
    imagenet_help = "start from published ImageNet weights, fetched over the network (default: random weights)"
    start.add_argument("--imagenet", action="store_true", help=imagenet_help)
    device_help = "train on this device (default: auto, which uses CUDA if it works and otherwise the CPU)"
    add("--device", choices=("auto", "cpu", "cuda"), default="auto", help=device_help)
    limit_help = "use only this many crops of each table and split, half of them real if possible (default: all)"
    add("--limit", type=positive, help=limit_help)
    add("--epochs", type=positive, default=defaults.epochs, help="passes over the real crops (default: %(default)s)")
    size_help = "crops per step, half of them real (default: %(default)s)"
    add("--batch-size", type=positive, default=defaults.batch_size, help=size_help)
    add("--learning-rate", type=above_zero, default=defaults.learning_rate, help="peak rate (default: %(default)s)")
    ema_help = "decay per step of the averaged weights; 0 switches averaging off (default: %(default)s)"
    add("--ema-decay", type=float, default=defaults.ema_decay, help=ema_help)
    mixup_help = "probability of mixing a fake with its original (default: %(default)s)"
    add("--mixup", type=float, default=defaults.mixup, help=mixup_help)
    blend_help = "probability of replacing a fake by a self-blended one (default: %(default)s)"
    add("--self-blend", type=float, default=defaults.self_blend, help=blend_help)
    chance_help = "change the probability of an augmentation, as in colour=0; can be repeated (default: no change)"
    add("--chance", action="append", default=[], type=parse_chance, metavar="STEP=P", help=chance_help)
    share_help = "give a family of crops this share of each epoch; can be repeated (default: each real crop once)"
    add("--family-share", action="append", default=[], type=family_share, metavar="NAME=SHARE", help=share_help)
    pairs_help = "number of pairs per epoch with --family-share (default: number of real crops)"
    add("--epoch-pairs", type=positive, metavar="N", help=pairs_help)
    leave_help = "leave this family out of training; can be repeated (default: none)"
    add("--leave-out", action="append", default=[], metavar="FAMILY", help=leave_help)
    val_help = "validate on at most N reals and N fakes of each family (default: all)"
    add("--val-limit", type=positive, metavar="N", help=val_help)
    norms_help = "keep the batch-norm statistics of a trained start; faster on the CPU (default: update them)"
    add("--fixed-norms", action="store_true", help=norms_help)
    match_help = "match colour and sharpness within a pair that is not an original and its fake (default: off)"
    add("--match-strangers", action="store_true", help=match_help)
    teacher_help = "weights files of models whose probabilities become part of the targets (default: labels only)"
    add("--teacher", nargs="+", type=Path, default=[], metavar="WEIGHTS", help=teacher_help)
    taught_help = "use the teachers for this family; can be repeated (default: all families)"
    add("--taught", action="append", default=[], metavar="FAMILY", help=taught_help)
    distillation_help = "weight of the teachers' probability in a target, 0 to 1 (default: %(default)s)"
    add("--distillation", type=float, default=defaults.distillation, metavar="WEIGHT", help=distillation_help)
    add("--compile", action="store_true", help=f"{COMPILE_HELP} (default: off)")
    add("--seed", type=natural, default=defaults.seed, help="seed of all random numbers (default: %(default)s)")
    labels_help = "CSV of tools/label_frames.py; fakes labelled as not visible are left out (default: none)"
    add("--frame-labels", type=Path, metavar="FILE", help=labels_help)
    visible_help = "train only on fakes labelled as visible (default: also on unlabelled ones)"
    add("--labelled-only", action="store_true", help=visible_help)
    finish_help = "write the weights of a stopped run's best epoch, with the flags of that run (default: train on)"
    add("--finish", action="store_true", help=finish_help)
    return parser


@tool
def main(argv: list[str] | None = None) -> None:
    parser = build_parser()
    args = parser.parse_args(argv)
    if args.labelled_only and args.frame_labels is None:
        parser.error("--labelled-only: goes with --frame-labels; name its file")
    if args.taught and not args.teacher:
        parser.error("--taught: goes with --teacher; name its weights")
    settings = TrainSettings(
        epochs=args.epochs,
        batch_size=args.batch_size,
        learning_rate=args.learning_rate,
        ema_decay=args.ema_decay,
        mixup=args.mixup,
        self_blend=args.self_blend,
        chances=dict(args.chance),
        compiled=args.compile,
        shares=dict(args.family_share),
        epoch_pairs=args.epoch_pairs,
        fixed_norms=args.fixed_norms,
        match_strangers=args.match_strangers,
        distillation=args.distillation,
        seed=args.seed,
    )
    with join_ranks(args.device) as rank:
        teacher = Teacher(args.teacher, families=args.taught, device=rank.device) if args.teacher else None
        train_weights(
            args.crops,
            args.run,
            args.out or args.run,
            architecture=args.architecture,
            input_size=args.input_size,
            statistics_blocks=sorted(set(args.statistics_block)),
            init=args.init,
            imagenet=args.imagenet,
            settings=settings,
            teacher=teacher,
            rank=rank,
            limit=args.limit,
            val_limit=args.val_limit,
            leave_out=args.leave_out,
            frame_labels=args.frame_labels,
            labelled_only=args.labelled_only,
            finish=args.finish,
        )


if __name__ == "__main__":
    run_tool(main)
