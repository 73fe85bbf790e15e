"""Train with the whole recipe and without each of its parts, and compare the results on validation.

python tools/research/compare_recipes.py --crops crops/crops.csv --init init.safetensors --run runs/recipes

All runs start from the same weights and see the same pairs. Completed runs are not repeated, and an interrupted run
resumes after its last epoch. The table belongs in docs/experiments.md.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from dfdc.crop import CropGeometry
from dfdc.data.dataset import CropSet, find_sources, load_crops, load_rows, read_split
from dfdc.evaluation.metrics import draw_sources, interval, measure
from dfdc.files import write_json
from dfdc.flags import (
    COMPILE_HELP,
    above_zero,
    add_device,
    check_outputs,
    input_side,
    make_parser,
    natural,
    positive,
    run_tool,
    share,
    tool,
)
from dfdc.networks import FrameModel
from dfdc.runtime import choose_device
from dfdc.training.distributed import Rank
from dfdc.training.init import revive_if_folded, start_model
from dfdc.training.loop import TrainSettings, score_crops, train
from dfdc.weights import ARCHITECTURES, ModelSpec

WHOLE = "the whole recipe"
# The settings that each run changes.
CHANGES: dict[str, dict[str, object]] = {
    WHOLE: {},
    "no pair mixup": {"mixup": 0.0},
    "no self-blended fakes": {"self_blend": 0.0},
    "self-blended fakes only": {"self_blend": 1.0},
    "no averaged weights": {"ema_decay": 0.0},
    "no label smoothing": {"label_smoothing": 0.0},
    "no shift, scale and turn": {"chances": {"shift_scale_rotate": 0.0}},
    "no colour": {"chances": {"colour": 0.0, "to_grey": 0.0}},
    "no lost detail": {"chances": {"rescale": 0.0}},
    "no blur": {"chances": {"blur": 0.0}},
    "no sharpening": {"chances": {"sharpen": 0.0}},
    "no noise": {"chances": {"noise": 0.0}},
    "no JPEG": {"chances": {"jpeg": 0.0}},
    "a pair augmented apart": {"alike": False},
    "fewer cut-outs": {"chances": {"cut_out": 0.2}},
    "no cut-outs": {"chances": {"cut_out": 0.0}},
}


@dataclass(frozen=True)
class Outcome:
    """The validation of a run.

    Attributes:
        name: one of `CHANGES`.
        probabilities: (N,) calibrated.
        scores: of `dfdc.evaluation.metrics.measure`.
        low, high: 95 % interval of the balanced log loss minus that of the whole recipe, from a bootstrap over
            originals with their fakes. It does not include the variation between training seeds.
    """

    name: str
    probabilities: np.ndarray
    scores: dict[str, float]
    low: float = 0.0
    high: float = 0.0


def compare_recipes(
    training: CropSet,
    validation: CropSet,
    run: Path,
    *,
    sources: Sequence[str],
    names: tuple[str, ...] = tuple(CHANGES),
    spec: ModelSpec,
    init: Path | None = None,
    imagenet: bool = False,
    settings: TrainSettings | None = None,
    device: str = "cpu",
    samples: int = 2000,
) -> list[Outcome]:
    """Train once for each name.

    Args:
        training, validation: disjoint in originals.
        run: folder that gets a folder for each run.
        sources: of the validation crops, see `find_sources`.
        names: of `CHANGES`; the whole recipe is always among them.
        spec: of the models.
        init: safetensors file to start from; None for random weights.
        imagenet: start from published ImageNet weights instead, see `download_imagenet`.
        settings: of the whole recipe; None for the defaults.
        device: "cpu" or "cuda".
        samples: of the bootstrap.

    Returns:
        The whole recipe's outcome, then the others' in order.

    Raises:
        InputError: the folder holds runs with other crops, another model or another start.
        WeightsError: the start cannot be used.
    """
    settings = settings or TrainSettings()
    spec = replace(spec, crop=CropGeometry(size=training.images.shape[-1]))
    labels = validation.labels.numpy().astype(int)
    outcomes: list[Outcome] = []

    def begin(seed: int) -> tuple[FrameModel, str | None]:
        torch.manual_seed(seed)
        return start_model(spec, init=init, imagenet=imagenet)

    for name in dict.fromkeys((WHOLE, *names)):
        folder = run / name.replace(" ", "-").replace(",", "")
        changed = replace(settings, **CHANGES[name])
        probabilities = _train_once(training, validation, folder, begin, changed, device)
        outcome = Outcome(name, probabilities, measure(labels, probabilities))
        if outcomes:
            change = compare_losses(
                labels, sources, outcomes[0].probabilities, probabilities, samples=samples, seed=settings.seed
            )
            outcome = replace(outcome, low=change["low"], high=change["high"])
        outcomes.append(outcome)
        print(format_table(outcomes).splitlines()[-1], flush=True)
    return outcomes


def _train_once(
    training: CropSet,
    validation: CropSet,
    folder: Path,
    begin: Callable[[int], tuple[FrameModel, str | None]],
    settings: TrainSettings,
    device: str,
) -> np.ndarray:
    """Calibrated probabilities (N,) of the validation crops, from the folder if the run was completed before."""
    folder.mkdir(parents=True, exist_ok=True)
    model, start = begin(settings.seed)
    if start is not None:
        revive_if_folded(model, training.images)
    # For a completed run this trains no epoch.
    rank = Rank(0, 1, torch.device(device))
    final, _, calibration = train(model, training, validation, folder, settings, start=start, rank=rank)
    return calibration.probabilities(score_crops(final.to(rank.device), validation.images))


def compare_losses(
    labels: np.ndarray, sources: Sequence[str], before: np.ndarray, after: np.ndarray, *, samples: int, seed: int
) -> dict[str, float]:
    """The balanced log loss after a change minus that before it: value, low and high of the 95 % interval.

    Args:
        labels: (N,) 0 or 1, both occur.
        sources: (N,) names of the groups that are drawn as a whole.
        before, after: (N,) probabilities.
        samples, seed: of the bootstrap over sources.
    """
    change = np.log(np.where(labels == 1, before, 1 - before)) - np.log(np.where(labels == 1, after, 1 - after))
    names, owners = np.unique(sources, return_inverse=True)
    n = len(names)
    draws = draw_sources(names, np.random.default_rng(seed), samples=samples)
    draws = np.concatenate([np.ones((1, n), int), draws])
    classes = [labels == label for label in (0, 1)]
    counts = np.array([draws @ np.bincount(owners[own], minlength=n) for own in classes])
    sums = np.array([draws @ np.bincount(owners[own], change[own], n) for own in classes])
    drawn = counts.all(0)  # a sample that lacks a class is left out
    return interval((sums[:, drawn] / counts[:, drawn]).mean(0))


def format_table(outcomes: list[Outcome]) -> str:
    """A table in Markdown."""
    lines = ["| recipe | AUC | balanced log loss | minus the whole recipe's |", "|---|---|---|---|"]
    for o in outcomes:
        change = o.scores["balanced_log_loss"] - outcomes[0].scores["balanced_log_loss"]
        less = "" if o is outcomes[0] else f"{change:+.4f} ({o.low:+.4f} to {o.high:+.4f})"
        lines.append(f"| {o.name} | {o.scores['auc']:.4f} | {o.scores['balanced_log_loss']:.4f} | {less} |")
    return "\n".join(lines)


@tool
def main(argv: list[str] | None = None) -> None:
    parser = make_parser(__doc__)
    add = parser.add_argument
    add("--crops", type=Path, required=True, help="crop table; its images are beside it or in its zip files")
    add("--run", type=Path, required=True, help="folder for the runs")
    start = parser.add_mutually_exclusive_group()
    start.add_argument("--init", type=Path, help="safetensors file that all runs start from (default: random weights)")
    imagenet_help = "start from published ImageNet weights, fetched over the network (default: random weights)"
    start.add_argument("--imagenet", action="store_true", help=imagenet_help)
    add("--architecture", choices=ARCHITECTURES, default="efficientnet-lite0", help="backbone (default: %(default)s)")
    add("--input-size", type=input_side, default=224, help="side of the model's input in pixels (default: %(default)s)")
    add("--epochs", type=positive, default=TrainSettings.epochs, help="epochs of each run (default: %(default)s)")
    add("--batch-size", type=positive, default=TrainSettings.batch_size, help="crops in a step (default: %(default)s)")
    rate_help = "peak learning rate (default: %(default)s)"
    add("--learning-rate", type=above_zero, default=TrainSettings.learning_rate, help=rate_help)
    ema_help = "decay of the averaged weights for each step (default: %(default)s)"
    add("--ema-decay", type=share, default=TrainSettings.ema_decay, help=ema_help)
    add("--limit", type=positive, help="use only this many training crops (default: all)")
    only = f"run only these of {', '.join(map(repr, CHANGES))}, and the whole recipe (default: all)"
    add("--only", nargs="+", choices=CHANGES, default=tuple(CHANGES), metavar="NAME", help=only)
    add_device(parser)
    add("--compile", action="store_true", help=f"{COMPILE_HELP} (default: off)")
    add("--seed", type=natural, default=0, help="seed of all random numbers (default: %(default)s)")
    add("--json", type=Path, help="write the scores to this file, too (default: print them only)")
    args = parser.parse_args(argv)
    check_outputs([args.json], inputs=[args.crops])
    settings = TrainSettings(
        epochs=args.epochs,
        batch_size=args.batch_size,
        learning_rate=args.learning_rate,
        ema_decay=args.ema_decay,
        compiled=args.compile,
        seed=args.seed,
    )
    device = choose_device(args.device, cudnn=True)
    training = load_crops(args.crops, split="train", limit=args.limit)
    rows = read_split(args.crops, split="val")
    outcomes = compare_recipes(
        training,
        load_rows(rows),
        args.run,
        sources=find_sources(rows),
        names=tuple(args.only),
        spec=ModelSpec(args.architecture, args.input_size),
        init=args.init,
        imagenet=args.imagenet,
        settings=settings,
        device=device,
    )
    print(format_table(outcomes))
    if args.json:
        found = [{"name": o.name, **o.scores, "difference_low": o.low, "difference_high": o.high} for o in outcomes]
        write_json(args.json, found)


if __name__ == "__main__":
    run_tool(main)
