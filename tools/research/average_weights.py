"""Average the weights of models that were trained from the same start into one model of the same cost.

python tools/research/average_weights.py a.safetensors b.safetensors --crops crops/crops.csv --out runs/soup

After Wortsman et al., "Model soups", 2022: models that were trained from the same weights lie in one basin of the
loss. The average is calibrated on validation crops, and its scores are printed beside those of its parts.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from dfdc.data.dataset import load_crops
from dfdc.errors import WeightsError
from dfdc.flags import make_folder, make_parser, positive, run_tool, tool
from dfdc.networks import FrameModel, load_model
from dfdc.training.loop import evaluate
from dfdc.training.runlog import save_trained
from dfdc.weights import WeightsFile, open_weights


def average_models(files: Sequence[WeightsFile]) -> FrameModel:
    """The mean of the models' tensors, in evaluation mode on the CPU, with the first file's specification.

    Raises:
        WeightsError: fewer than two files, or models that differ in more than their weights.
    """
    if len(files) < 2:
        raise WeightsError(f"{len(files)} weights file(s) given; an average needs at least two")
    for file in files[1:]:
        for name in ("architecture", "input_size", "sees", "mean", "std", "crop"):
            first, other = getattr(files[0].spec, name), getattr(file.spec, name)
            if first != other:
                raise WeightsError(f"{file.path}: {name} is {other}, {files[0].path.name} has {first}; they must agree")
    models = [load_model(file) for file in files]
    states = [model.state_dict() for model in models]
    mean = {
        # Batch counters are whole numbers that nothing reads.
        key: torch.stack([state[key] for state in states]).mean(0) if value.is_floating_point() else value
        for key, value in states[0].items()
    }
    models[0].load_state_dict(mean)
    return models[0]


def average_weights(files: Sequence[Path], crops: Path, out: Path, *, limit: int | None = None) -> Path:
    """Average, calibrate and write.

    Args:
        files: weights files, at least two.
        crops: crop table; its split val is used for calibration.
        out: folder that gets the weights file; made if absent.
        limit: use only so many crops.

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
    model = average_models(opened)
    make_folder(out)
    validation = load_crops(crops, split="val", limit=limit)
    for file in opened:  # on the same crops as the average
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
    parser.add_argument("files", nargs="+", type=Path, metavar="FILE", help="weights files to average, at least two")
    parser.add_argument("--crops", type=Path, required=True, help="crop table; its split val is used for calibration")
    parser.add_argument("--out", type=Path, required=True, help="folder for the weights file")
    parser.add_argument("--limit", type=positive, help="use only this many crops (default: all)")
    args = parser.parse_args(argv)
    average_weights(args.files, args.crops, args.out, limit=args.limit)


if __name__ == "__main__":
    run_tool(main)
