"""Measure the value of each family of training data: leave it out, and evaluate on all families.

python tools/research/leave_families_out.py --crops dfdc.csv ffpp.csv generated.csv --weights FILE --json families.json

Training a model for each family takes hours, so a small network is fitted to frozen features instead: the pooled last
feature map of one model for every crop. This shows what the data contribute, not what a fully trained model would
reach. Choose weights that were trained on few of the families; otherwise their features know the left-out family.
"""

from __future__ import annotations

import sys
import warnings
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from sklearn.exceptions import ConvergenceWarning
from sklearn.metrics import roc_auc_score
from sklearn.neural_network import MLPClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from dfdc.data.dataset import CropSet, load_rows, read_split
from dfdc.errors import DataError
from dfdc.files import write_json
from dfdc.flags import check_outputs, make_parser, positive, run_tool, tool
from dfdc.networks import load_model
from dfdc.training.features import find_features
from dfdc.training.sampling import thin_rows
from dfdc.weights import find_one

HIDDEN, EPOCHS = 64, 30
NOTHING = "nothing"

# Left-out family -> family that is measured -> AUC by each seed.
Found = dict[str, dict[str, list[float]]]


def leave_families_out(
    training: tuple[np.ndarray, CropSet],
    validation: tuple[np.ndarray, CropSet],
    *,
    seeds: Sequence[int],
    groups: Sequence[str] | None = None,
) -> Found:
    """Fit with all families, and without each family or group of families in turn.

    Args:
        training, validation: features (N, C) and their crops, with families.
        seeds: seeds of the small network; one fit for each.
        groups: what to leave out in turn: a family, or several joined by commas. None for each family alone.

    Raises:
        DataError: there are fewer than two families, or a group has a family that is not there, or all families.
    """
    features, crops = training
    names = sorted(set(crops.families))
    if len(names) < 2:
        raise DataError(f"the crops are all of the family {names[0]}; give tables of at least two")
    groups = names if groups is None else groups
    for group in groups:
        members = set(group.split(","))
        if not members < set(names):
            raise DataError(f"{group} cannot be left out; allowed are some, not all, of {', '.join(names)}")
    found: Found = {}
    for left_out in [NOTHING, *groups]:
        kept = ~np.isin(crops.families, left_out.split(","))
        for seed in seeds:
            network = MLPClassifier((HIDDEN,), alpha=1.0, max_iter=EPOCHS, random_state=seed)
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", ConvergenceWarning)  # training stops early on purpose
                fitted = make_pipeline(StandardScaler(), network).fit(features[kept], crops.labels.numpy()[kept])
            probabilities = fitted.predict_proba(validation[0])[:, 1]
            for name in sorted(set(validation[1].families)):
                own = validation[1].families == name
                auc = float(roc_auc_score(validation[1].labels.numpy()[own], probabilities[own]))
                found.setdefault(left_out, {}).setdefault(name, []).append(auc)
    return found


def format_table(found: Found) -> str:
    """Format a Markdown table of the mean AUC and half its range over the seeds; brackets mark the left-out family."""
    names = list(found[NOTHING])
    lines = [f"| left out | {' | '.join(names)} |", "|---" * (len(names) + 1) + "|"]
    for left_out, aucs in found.items():
        cells = []
        for name in names:
            text = f"{np.mean(aucs[name]):.3f} ± {np.ptp(aucs[name]) / 2:.3f}"
            cells.append(f"({text})" if name in left_out.split(",") else text)
        lines.append(f"| {left_out} | {' | '.join(cells)} |")
    return "\n".join(lines)


@tool
def main(argv: list[str] | None = None) -> int:
    parser = make_parser(__doc__)
    add = parser.add_argument
    add("--crops", nargs="+", type=Path, required=True, metavar="CSV", help="crop tables with splits train and val")
    add("--weights", type=Path, required=True, help="weights file of an EfficientNet, whose features are used")
    groups_help = "families to leave out in turn; join by commas what to leave out at once (default: each alone)"
    add("--leave-out", nargs="+", metavar="FAMILY", help=groups_help)
    limit_help = "maximum number of reals, and of fakes, of each family in training (default: %(default)s)"
    add("--per-class", type=positive, default=1200, metavar="N", help=limit_help)
    val_help = "the same for validation (default: a quarter)"
    add("--val-per-class", type=positive, metavar="N", help=val_help)
    add("--seeds", type=positive, default=3, metavar="N", help="number of fits (default: %(default)s)")
    add("--json", type=Path, metavar="FILE", help="file for the AUC of each fit (default: print the table only)")
    args = parser.parse_args(argv)
    check_outputs([args.json], inputs=[*args.crops, args.weights])
    model = load_model(find_one(args.weights, "face"))
    parts = []
    for split, per_class in (("train", args.per_class), ("val", args.val_per_class or max(args.per_class // 4, 1))):
        crops = load_rows(thin_rows(read_split(*args.crops, split=split), per_class))
        parts.append((find_features(model, crops.images), crops))
    found = leave_families_out(*parts, seeds=range(args.seeds), groups=args.leave_out)
    print(format_table(found))
    if args.json:
        write_json(args.json, found)
    return 0


if __name__ == "__main__":
    run_tool(main)
