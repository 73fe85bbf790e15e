"""Train a frame model on face crops and write it as weights that the kernel loads.

python tools/train.py --crops crops/crops.csv --init init.safetensors --run runs/lite0
torchrun --nproc-per-node 2 -- tools/train.py --crops crops/crops.csv ...             # on several GPUs
python tools/train.py --crops crops/crops.csv ... --frame-labels frame_labels.csv     # from tools/label_frames.py
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
from dfdc.errors import DataError, DfdcError
from dfdc.evaluation.metrics import tells_nothing
from dfdc.flags import COMPILE_HELP, natural, positive, run_tool
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
        crops: crop tables; see `dfdc.data.dataset.read_table`. Their splits train and val are taken together.
        run: folder for the log and the state that a killed run resumes from; made if absent.
        out: folder that gets the weights file; made if absent.
        architecture: one of `dfdc.weights.ARCHITECTURES`.
        input_size: side in pixels that the net sees.
        init: safetensors file to start from; None starts from scratch.
        imagenet: start from ImageNet weights, fetched over the network.
        settings: of the loop; None for the defaults.
        teacher: whose probabilities are part of the targets; None for labels alone.
        rank: which of several processes this is, and its device; None for one alone on the CPU.
        limit: use only so many crops of each table and split.
        val_limit: validate on at most so many reals, and fakes, of each family; None for all.
        leave_out: families that are not trained on; validation still tells how the net does on them.
        frame_labels: CSV of tools/label_frames.py; its frames count in training as `weigh_crops` says.
        labelled_only: of the training fakes, use those alone that are labelled visible.
        finish: write the weights of the best epoch that the run has done so far, and train no further.
        progress: draw progress bars.

    Returns:
        The path of the weights file; None in every rank but the first, which writes it.
    """
    settings = settings or TrainSettings()
    progress = progress and (rank is None or rank.first)
    run.mkdir(parents=True, exist_ok=True)
    out.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(settings.seed)
    model, start = start_model(ModelSpec(architecture, input_size), init=init, imagenet=imagenet, progress=progress)
    rows = read_split(*crops, split="train", limit=limit)
    families = set(find_families(rows))
    for flag, named in (("--leave-out", leave_out), ("--taught", teacher.families if teacher else ())):
        if unknown := sorted(set(named) - families):
            raise DataError(f"{flag} {unknown[0]}: no such family; there are {', '.join(sorted(families))}")
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
        print(f"{len(alone)} of {int(training.labels.sum())} fake crops lack their original's, {alone[0]}'s for one")
    if init is not None and (n_crops := revive_if_folded(model, training.images)) and progress:
        print(f"batch norms revived on {n_crops} crops")
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
            f"this net does not tell the {n} validation crops apart (log loss {raw:.3f} before calibration; one half "
            "for all is .693): its weights will answer every clip with one half; train on more crops or for longer",
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
    """Name and probability of an augmentation such as cut_out=0.2."""
    name, _, chance = text.partition("=")
    try:
        return name, float(chance)
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"is {text!r}; allowed are a step and its probability: colour=0") from error


def parse_share(text: str) -> tuple[str, float]:
    """A family's name and its share such as dfdc=0.4."""
    name, _, share = text.rpartition("=")
    try:
        return name, float(share)
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"is {text!r}; allowed are a family and its share: dfdc=0.4") from error


def main(argv: list[str] | None = None) -> int:
    defaults = TrainSettings()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--crops", nargs="+", type=Path, required=True, metavar="CSV", help="crop tables, images beside or in zips")
    add("--run", type=Path, required=True, help="folder for the log and for resuming")
    add("--out", type=Path, help="folder that gets the weights file (default: the run's)")
    add("--architecture", choices=ARCHITECTURES, default="efficientnet-lite0", help="the net (default: %(default)s)")
    add("--input-size", type=int, default=224, help="side in pixels that the net sees (default: %(default)s)")
    start = parser.add_mutually_exclusive_group()
    start.add_argument("--init", type=Path, help="safetensors file to start from (default: from scratch)")
    start.add_argument("--imagenet", action="store_true", help="fetch ImageNet weights over the network to start from")
    add("--device", choices=("auto", "cpu", "cuda"), default="auto", help="where to train (default: CUDA if there)")
    add("--limit", type=positive, help="use only so many crops of each table and split (default: all)")
    add("--epochs", type=positive, default=defaults.epochs, help="passes over the real crops (default: %(default)s)")
    size_help = "crops a step, half of them real (default: %(default)s)"
    add("--batch-size", type=positive, default=defaults.batch_size, help=size_help)
    add("--learning-rate", type=float, default=defaults.learning_rate, help="at its peak (default: %(default)s)")
    ema_help = "of the averaged weights, per step; 0 averages nothing (default: %(default)s)"
    add("--ema-decay", type=float, default=defaults.ema_decay, help=ema_help)
    mixup_help = "probability of mixing an aligned pair (default: %(default)s)"
    add("--mixup", type=float, default=defaults.mixup, help=mixup_help)
    blend_help = "probability of a made fake (default: %(default)s)"
    add("--self-blend", type=float, default=defaults.self_blend, help=blend_help)
    chance_help = "probability of an augmentation, as in colour=0; can be given again (default: the recipe's)"
    add("--chance", action="append", default=[], type=parse_chance, metavar="STEP=P", help=chance_help)
    share_help = "give a family of crops this share of each epoch; can be given again (default: reals come once each)"
    add("--family-share", action="append", default=[], type=parse_share, metavar="NAME=SHARE", help=share_help)
    add("--epoch-pairs", type=positive, help="pairs in an epoch, with --family-share (default: as many as reals)")
    add("--leave-out", action="append", default=[], metavar="FAMILY", help="do not train on this family")
    add("--val-limit", type=positive, metavar="N", help="validate on N reals and N fakes of a family (default: all)")
    norms_help = "keep the batch norms' statistics: twice as fast on the CPU, for a start that is trained already"
    add("--fixed-norms", action="store_true", help=norms_help)
    match_help = "give a fake without an original, and the real beside it, one colour and one sharpness"
    add("--match-strangers", action="store_true", help=match_help)
    teacher_help = "learn these models' probabilities, too, as calibrated and weighted in their files"
    add("--teacher", nargs="+", type=Path, default=[], metavar="WEIGHTS", help=teacher_help)
    taught_help = "family that the teachers answer for; can be given again (default: all)"
    add("--taught", action="append", default=[], metavar="FAMILY", help=taught_help)
    distillation_help = "share of the teachers' probability in a target, 0 to 1 (default: %(default)s)"
    add("--distillation", type=float, default=defaults.distillation, metavar="SHARE", help=distillation_help)
    add("--compile", action="store_true", help=COMPILE_HELP)
    add("--seed", type=natural, default=defaults.seed, help="of everything random (default: %(default)s)")
    add("--frame-labels", type=Path, metavar="FILE", help="labels of frames: not visible is left out")
    add("--labelled-only", action="store_true", help="of the fakes, train on visible frames alone")
    finish_help = "train no further: write the weights of a stopped run's best epoch (with the run's own flags)"
    add("--finish", action="store_true", help=finish_help)
    args = parser.parse_args(argv)
    if args.labelled_only and args.frame_labels is None:
        parser.error("--labelled-only: says what to do with --frame-labels; name its file")
    if args.taught and not args.teacher:
        parser.error("--taught: says what --teacher answers for; name its weights")
    try:
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
    except (DfdcError, FloatingPointError, MemoryError, ValueError, OSError) as error:
        print(f"train: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    run_tool(main)
