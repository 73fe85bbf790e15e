"""Average the weights of models that were trained from the same start into one model of the same cost.

python tools/research/average_weights.py a.safetensors b.safetensors --crops crops/crops.csv --out runs/soup --compare
python tools/research/average_weights.py a.safetensors b.safetensors --shares 1 3 --crops a.csv b.csv --out runs/soup

After Wortsman et al., "Model soups", 2022: models that were trained from the same weights lie in one basin of the
loss. The average is calibrated on validation crops, where each family has the same weight (see tools/train.py).
--compare also prints the scores of its parts. A single file only gets a new calibration.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from dfdc.data.dataset import find_families, load_rows, read_split
from dfdc.errors import WeightsError
from dfdc.files import make_folder
from dfdc.flags import make_parser, positive, run_tool, tool
from dfdc.networks import FrameModel, load_model
from dfdc.training.loop import evaluate
from dfdc.training.runlog import save_trained
from dfdc.training.sampling import thin_rows
from dfdc.weights import WeightsFile, open_weights


def average_models(files: Sequence[WeightsFile], *, shares: Sequence[float] | None = None) -> FrameModel:
    """The mean of the models' tensors, in evaluation mode on the CPU, with the first file's specification.

    Args:
        files: at least one. If the head of the first has a second branch, others may lack it.
        shares: weight of each file in the mean, > 0; None for equal weights.

    Raises:
        WeightsError: models that differ in more than their weights, or shares that do not fit.
    """
    shares = [1.0] * len(files) if shares is None else list(shares)
    if len(shares) != len(files) or min(shares) <= 0:
        raise WeightsError(f"--shares {shares}: give one number above 0 for each of the {len(files)} weights file(s)")
    for file in files[1:]:
        for name in ("architecture", "input_size", "sees", "mean", "std", "statistics_blocks", "crop"):
            first, other = getattr(files[0].spec, name), getattr(file.spec, name)
            if first != other and not (name == "statistics_blocks" and not other):
                raise WeightsError(f"{file.path}: {name} is {other}, {files[0].path.name} has {first}; they must agree")
    models = [load_model(file) for file in files]
    states = [model.state_dict() for model in models]
    mean = {}
    for key, value in states[0].items():
        own = [(share, state[key]) for share, state in zip(shares, states, strict=True) if key in state]
        # A linear head is one whose second branch adds nothing, whatever its hidden layer is.
        total = sum(shares) if key.endswith("_statistics_fc.weight") else sum(share for share, _ in own)
        # Batch counters are whole numbers that nothing reads.
        mean[key] = sum(share * each for share, each in own) / total if value.is_floating_point() else value
    models[0].load_state_dict(mean)
    return models[0]


def average_weights(
    files: Sequence[Path],
    crops: Sequence[Path],
    out: Path,
    *,
    shares: Sequence[float] | None = None,
    leave_out: Sequence[str] = (),
    limit: int | None = None,
    val_limit: int | None = None,
    compare: bool = False,
) -> Path:
    """Average, calibrate and write.

    Args:
        files: weights files, at least one.
        crops: crop tables; their split val is used for calibration.
        out: folder that gets the weights file; made if absent.
        shares: see `average_models`.
        leave_out: families that are left out of the calibration.
        limit: use only this many crops of each table; None for all.
        val_limit: use at most this many reals, and fakes, of each family; None for all.
        compare: also print the scores of the parts.

    Returns:
        The path of the weights file.

    Raises:
        WeightsError: the files cannot be averaged.
        DataError: the crops cannot be used.
        InputError: out cannot be made.
    """
    opened = [open_weights(path) for path in files]
    for file in opened:
        if file.spec.sees != "face":
            raise WeightsError(
                f"{file.path}: sees {file.spec.sees}; only models that see faces can be calibrated on crops"
            )
    model = average_models(opened, shares=shares)
    make_folder(out)
    rows = read_split(*crops, split="val", limit=limit)
    rows = rows[~find_families(rows).isin(leave_out)].reset_index(drop=True)
    validation = load_rows(rows if val_limit is None else thin_rows(rows, val_limit))
    for file in opened if compare else ():  # on the same crops as the average
        print(f"{file.path.name}: {_describe(evaluate(load_model(file), validation)[0])}")
    scores, calibration = evaluate(model, validation)
    path = save_trained(
        model,
        out,
        name=f"{model.spec.architecture}-{model.spec.input_size}",
        calibration=calibration,
        scores=scores,
        trained_on=" | ".join(dict.fromkeys(file.spec.trained_on for file in opened)),
    )
    print(f"{path}: {_describe(scores)}")
    return path


def _describe(scores: dict[str, float]) -> str:
    return ", ".join(f"{name} {scores[name]:.4f}" for name in ("auc", "balanced_log_loss"))


@tool
def main(argv: list[str] | None = None) -> None:
    parser = make_parser(__doc__)
    parser.add_argument("files", nargs="+", type=Path, metavar="FILE", help="weights files to average")
    crops_help = "crop tables; their split val is used for calibration"
    parser.add_argument("--crops", nargs="+", type=Path, required=True, metavar="CSV", help=crops_help)
    parser.add_argument(
        "--shares", nargs="+", type=float, help="weight of each file in the mean (default: equal weights)"
    )
    parser.add_argument("--out", type=Path, required=True, help="folder for the weights file")
    parser.add_argument("--limit", type=positive, help="use only this many crops of each table (default: all)")
    val_help = "use at most this many reals, and fakes, of each family (default: all)"
    parser.add_argument("--val-limit", type=positive, help=val_help)
    leave_help = "leave this family out of the calibration; can be repeated (default: none)"
    parser.add_argument("--leave-out", action="append", default=[], metavar="FAMILY", help=leave_help)
    compare_help = "also print the scores of the parts (default: of the average only)"
    parser.add_argument("--compare", action="store_true", help=compare_help)
    args = parser.parse_args(argv)
    average_weights(
        args.files,
        args.crops,
        args.out,
        shares=args.shares,
        leave_out=args.leave_out,
        limit=args.limit,
        val_limit=args.val_limit,
        compare=args.compare,
    )


if __name__ == "__main__":
    run_tool(main)
