"""Average weights of nets that were trained from one start into one net, which costs no more than one of them.

python tools/research/average_weights.py a.safetensors b.safetensors --crops crops/crops.csv --out runs/soup

After Wortsman et al., "Model soups", 2022. It works where training began at the same weights: the nets then lie in one
basin. The average is calibrated anew, and its scores tell whether it is better than its parts.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from dfdc.data.dataset import load_crops
from dfdc.errors import DataError, WeightsError
from dfdc.flags import positive, run_tool
from dfdc.networks import FrameModel, load_model
from dfdc.training.loop import evaluate
from dfdc.training.runlog import save_trained
from dfdc.weights import WeightsFile, open_weights


def average_models(files: Sequence[WeightsFile]) -> FrameModel:
    """The mean of the nets' tensors, in evaluation mode on the CPU, with the first file's specification.

    Raises:
        WeightsError: fewer than two files, or nets that differ in more than their weights.
    """
    if len(files) < 2:
        raise WeightsError(f"{len(files)} weights file(s); an average needs two, trained from one start")
    for file in files[1:]:
        for name in ("architecture", "input_size", "sees", "mean", "std", "crop"):
            first, other = getattr(files[0].spec, name), getattr(file.spec, name)
            if first != other:
                raise WeightsError(f"{file.path}: {name} is {other}, {files[0].path.name} has {first}; they must agree")
    models = [load_model(file) for file in files]
    states = [model.state_dict() for model in models]
    mean = {
        # Counters of batches are whole numbers, and nothing reads them.
        key: torch.stack([state[key] for state in states]).mean(0) if value.is_floating_point() else value
        for key, value in states[0].items()
    }
    models[0].load_state_dict(mean)
    return models[0]


def average_weights(files: Sequence[Path], crops: Path, out: Path, *, limit: int | None = None) -> Path:
    """Average, calibrate and write.

    Args:
        files: weights files, at least two.
        crops: the crop table whose split val calibrates.
        out: folder that gets the weights file; made if absent.
        limit: use only so many crops.

    Returns:
        The path of the weights file.

    Raises:
        WeightsError: the files cannot be averaged.
        DataError: the crops cannot be used.
        OSError: out cannot be made or written.
    """
    opened = [open_weights(path) for path in files]
    for file in opened:
        if file.spec.sees != "face":
            raise WeightsError(f"{file.path}: sees {file.spec.sees}; crops calibrate nets that see faces only")
    model = average_models(opened)
    out.mkdir(parents=True, exist_ok=True)
    validation = load_crops(crops, split="val", limit=limit)
    for file in opened:  # on the same crops as the average, which need not be those that its file tells of
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


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("files", nargs="+", type=Path, metavar="FILE", help="weights files to average")
    parser.add_argument("--crops", type=Path, required=True, help="crop table; its split val calibrates")
    parser.add_argument("--out", type=Path, required=True, help="folder that gets the file")
    parser.add_argument("--limit", type=positive, help="use only so many crops (default: all)")
    args = parser.parse_args(argv)
    try:
        average_weights(args.files, args.crops, args.out, limit=args.limit)
    except (DataError, WeightsError, FloatingPointError, OSError) as error:
        print(f"average_weights: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    run_tool(main)
