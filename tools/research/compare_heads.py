"""Compare heads on frozen features: linear layers, small networks, heads per family, ordering and contrastive losses.

python tools/research/compare_heads.py --crops dfdc.csv ffpp.csv --protocol protocol.json --weights FILE --features DIR

Training a model with each head takes hours, so only the heads are trained: on the pooled last feature map of one model,
for each crop in one view. Each fit keeps the epoch with the lowest loss on a tenth of the training persons. This shows
what a head can make of these features, not what a model that is trained with it would reach.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score
from sklearn.model_selection import GroupKFold, cross_val_predict
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from torch import Generator, Tensor

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from dfdc.data.dataset import find_families, find_groups, read_split
from dfdc.data.protocol import find_identities, read_protocol
from dfdc.errors import DataError
from dfdc.evaluation.metrics import balance_families, fit_calibration, measure
from dfdc.files import make_folder, write_json
from dfdc.flags import check_outputs, family_share, make_parser, natural, positive, run_tool, tool
from dfdc.networks import load_model
from dfdc.training.features import blend_reals, read_features
from dfdc.training.heads import Features, fit_heads
from dfdc.training.sampling import thin_rows
from dfdc.weights import find_one

# Weight of all self-blended crops, as a share of the fakes' weight, where they are used.
BLEND_SHARE = 0.2
OWN = "the model's own last layer"
# Not a candidate: what a linear layer reaches with data of the very family.
FITTED_THERE = "linear, fitted to other persons of the same validation family"
FOLDS, INVERSE_PENALTY = 5, 1e-3
# Manipulation or family -> kind; whatever is not named is "other".
KINDS = {
    "deepfakes": "swap",
    "faceswap": "swap",
    "face2face": "reenactment",
    "neuraltextures": "reenactment",
    "dfdc": "swap",
    "swaps": "swap",
    "generated": "generated",
    "talking": "talking",
}


@dataclass(frozen=True)
class Found:
    """The result of one fit on one family of validation crops."""

    auc: float
    log_loss: float
    false_alarms: float


@dataclass(frozen=True)
class Validation:
    """N validation crops of a family: features (N, C), labels (N,) int, 1 for fakes, and persons (N,)."""

    values: Tensor
    labels: np.ndarray
    persons: np.ndarray


def describe(rows: pd.DataFrame, values: np.ndarray, shares: Mapping[str, float]) -> Features:
    """Describe the crops of a table of `read_split` by features (N, C); without shares, all families weigh the same."""
    family, fake = find_families(rows), (rows.label == "FAKE").to_numpy()
    kind = find_groups(rows).map(KINDS).fillna(family.map(KINDS)).fillna("other").where(fake, "real")
    names, kinds = sorted(set(family)), ["real", *sorted(set(kind) - {"real"})]
    weights = balance_families(fake.astype(float), family.to_numpy(str))
    weights *= family.map(dict(shares) if shares else dict.fromkeys(names, 1.0)).to_numpy()
    persons = np.unique(find_identities(rows), return_inverse=True)[1]
    return Features(
        torch.from_numpy(values),
        torch.from_numpy(fake.astype(np.float32)),
        torch.tensor(family.map(names.index).to_numpy()),
        torch.tensor(kind.map(kinds.index).to_numpy()),
        torch.tensor(family.isin(set(family[kind == "generated"])).to_numpy(np.int64)),
        torch.from_numpy(np.where(fake, 2, 0)),
        torch.from_numpy((weights / weights.mean()).astype(np.float32)),
        torch.from_numpy(persons),
    )


def add_blends(crops: Features, reals: Tensor, values: Tensor) -> Features:
    """Add self-blended crops, made of the reals with these indices, as fakes of rank 1."""
    blends = crops.take(reals)
    weight = BLEND_SHARE * (crops.weights @ crops.labels) / len(reals)
    added = replace(
        blends,
        values=values,
        labels=torch.ones_like(blends.labels),
        ranks=torch.ones_like(blends.ranks),
        weights=torch.full_like(blends.weights, float(weight)),
    )
    return Features(**{name: torch.cat([own, vars(added)[name]]) for name, own in vars(crops).items()})


def compare_heads(
    training: Features,
    blends: tuple[Tensor, Tensor],
    validation: Mapping[str, Validation],
    model_layer: tuple[Tensor, Tensor],
    *,
    seeds: Sequence[int],
    calibrate_on: Sequence[str],
) -> dict[str, dict[str, list[Found]]]:
    """Fit all heads with each seed and measure them.

    Args:
        training: training crops.
        blends: indices of the reals that were blended onto themselves, and the features of the result.
        validation: family -> its validation crops, of both classes.
        model_layer: weight (D,) and bias () of the model's last layer, which sees the first D features.
        seeds: seeds of the fits.
        calibrate_on: families of validation on which each fit is calibrated, with equal weight.

    Returns:
        Head -> family -> the result of each seed; one result for `OWN` and `FITTED_THERE`, which have no seed.
    """
    mean, spread = training.values.mean(0), training.values.std(0).clamp(min=1e-6)
    weight, bias = model_layer
    crops = replace(training, values=(training.values - mean) / spread)
    blended = add_blends(crops, blends[0], (blends[1] - mean) / spread)
    n_own = len(weight)
    layer = (weight * spread[:n_own], bias + weight @ mean[:n_own])
    labels = {family: part.labels for family, part in validation.items()}
    seen = {family: (part.values - mean) / spread for family, part in validation.items()}
    found: dict[str, dict[str, list[Found]]] = {}

    def add(name: str, logits: Mapping[str, np.ndarray]) -> None:
        measured = measure_head(logits, labels, calibrate_on)
        for family, values in measured.items():
            found.setdefault(name, {}).setdefault(family, []).append(values)
        print(f"{name}: mean AUC {np.mean([values.auc for values in measured.values()]):.4f}", flush=True)

    add(OWN, {family: (values[:, :n_own] @ layer[0] + layer[1]).double().numpy() for family, values in seen.items()})
    for seed in seeds:
        for name, answer in fit_heads(crops, blended, layer, seed=seed).items():
            with torch.inference_mode():
                add(name, {family: answer(values).double().numpy() for family, values in seen.items()})
    add(FITTED_THERE, {family: cross_fit(part) for family, part in validation.items()})
    return found


def cross_fit(part: Validation) -> np.ndarray:
    """Log-odds (N,) of each crop by a logistic regression on the other persons of the same family."""
    regression = LogisticRegression(C=INVERSE_PENALTY, class_weight="balanced", max_iter=1000)
    fitted = make_pipeline(StandardScaler(), regression)
    folds = GroupKFold(min(FOLDS, len(set(part.persons))))
    return cross_val_predict(
        fitted, part.values.numpy(), part.labels, groups=part.persons, cv=folds, method="decision_function"
    )


def measure_head(
    logits: Mapping[str, np.ndarray], labels: Mapping[str, np.ndarray], calibrate_on: Sequence[str]
) -> dict[str, Found]:
    """Calibrate logits (N,) of each family on some families, and measure each."""
    used = [np.full(len(labels[name]), name) for name in calibrate_on]
    known = np.concatenate([labels[name] for name in calibrate_on])
    weights = balance_families(known, np.concatenate(used))
    calibration = fit_calibration(known, np.concatenate([logits[name] for name in calibrate_on]), weights)
    measured = {}
    for name, values in logits.items():
        probabilities = calibration.probabilities(values)
        scores = measure(labels[name], probabilities)
        alarms = float((probabilities[labels[name] == 0] > 0.5).mean())
        # Of the logits, because the bounds make many probabilities equal.
        auc = float(roc_auc_score(labels[name], values))
        measured[name] = Found(auc, scores["balanced_log_loss"], alarms)
    return measured


def format_table(found: Mapping[str, Mapping[str, Sequence[Found]]], value: str) -> str:
    """Format a Markdown table of one value of `Found`: means over seeds, and half the range of the families' mean."""
    families = list(found[OWN])
    lines = [f"| {value} | mean | {' | '.join(families)} |", "|---" * (len(families) + 2) + "|"]
    for head, results in found.items():
        values = np.array([[getattr(each, value) for each in results[family]] for family in families])
        means = values.mean(0)
        cells = [f"{means.mean():.4f} ± {np.ptp(means) / 2:.4f}", *(f"{row.mean():.3f}" for row in values)]
        lines.append(f"| {head} | {' | '.join(cells)} |")
    return "\n".join(lines)


@tool
def main(argv: list[str] | None = None) -> int:
    parser = make_parser(__doc__)
    add = parser.add_argument
    add("--crops", nargs="+", type=Path, required=True, metavar="CSV", help="crop tables whose split train is used")
    add("--protocol", type=Path, required=True, metavar="FILE", help="protocol file; its crops are validation")
    add("--weights", type=Path, required=True, help="weights file of an EfficientNet, whose features are used")
    add("--features", type=Path, required=True, metavar="DIR", help="folder that keeps the features")
    block_help = (
        "also use the mean and deviation of each channel at the input of this block; can be repeated (default: none)"
    )
    add("--block", action="append", default=[], type=natural, metavar="N", help=block_help)
    share_help = "share of a family in the loss; families without one are left out (default: all, equally)"
    add("--family-share", action="append", default=[], type=family_share, metavar="NAME=SHARE", help=share_help)
    limit_help = "number of reals, and of fakes, of each family in training (default: %(default)s)"
    add("--per-class", type=positive, default=1500, metavar="N", help=limit_help)
    add("--val-limit", type=positive, default=500, metavar="N", help="the same in validation (default: %(default)s)")
    blend_help = "number of reals of each family that are also blended onto themselves (default: %(default)s)"
    add("--blends", type=positive, default=300, metavar="N", help=blend_help)
    calibrate_help = "families of the protocol on which each fit is calibrated (default: all)"
    add("--calibrate-on", nargs="+", default=[], metavar="NAME", help=calibrate_help)
    add("--seeds", type=positive, default=3, metavar="N", help="number of fits of each head (default: %(default)s)")
    add("--json", type=Path, metavar="FILE", help="file for the result of each fit (default: print the tables only)")
    args = parser.parse_args(argv)
    check_outputs([args.json], inputs=[*args.crops, args.protocol, args.weights])
    rows = choose_rows(args.crops, dict(args.family_share), args.per_class)
    families = {family.name: family for family in read_protocol(args.protocol) if family.tables}
    if unknown := [name for name in args.calibrate_on if name not in families]:
        raise DataError(f"{args.protocol}: has no crops of {unknown[0]}; it has those of {', '.join(families)}")
    file = find_one(args.weights, "face")
    if file.spec.statistics_blocks:
        raise DataError(f"{file.path}: its head has a second branch already; name weights with a linear head")
    model, name = load_model(file), file.path.stem
    read = partial(read_features, model, folder=make_folder(args.features), blocks=sorted(set(args.block)))
    validation = {}
    for family in families.values():
        own = thin_rows(read_split(*family.tables, split=family.split), args.val_limit)
        if own.label.nunique() < 2:
            raise DataError(f"{args.protocol}: {family.name} has only {own.label[0]} crops; leave it out")
        values, labels = torch.from_numpy(read(own, name=name)), (own.label == "FAKE").to_numpy(int)
        validation[family.name] = Validation(values, labels, find_identities(own))
    training = describe(rows, read(rows, name=name), dict(args.family_share))
    reals = np.flatnonzero(rows.label == "REAL")
    chosen = thin_rows(rows.iloc[reals].assign(place=reals).reset_index(drop=True), args.blends)
    change = partial(blend_reals, generator=Generator().manual_seed(0))
    blends = read(chosen, name=f"{name}-blended", change=change)
    found = compare_heads(
        training,
        (torch.tensor(chosen.place.to_numpy()), torch.from_numpy(blends)),
        validation,
        (model.net._fc.weight[0].detach(), model.net._fc.bias[0].detach()),
        seeds=range(args.seeds),
        calibrate_on=args.calibrate_on or list(validation),
    )
    print("\n\n".join(format_table(found, value) for value in ("auc", "log_loss", "false_alarms")))
    if args.json:
        results = {
            head: {family: [asdict(each) for each in own] for family, own in of_head.items()}
            for head, of_head in found.items()
        }
        write_json(args.json, results)
    return 0


def choose_rows(tables: Sequence[Path], shares: Mapping[str, float], per_class: int) -> pd.DataFrame:
    """Choose training rows: a limited number of each class of each family, or of those with a share."""
    rows = read_split(*tables, split="train")
    family = find_families(rows)
    if unknown := sorted(set(shares) - set(family)):
        raise DataError(f"no crop is of the family {unknown[0]}; there are {', '.join(sorted(set(family)))}")
    return thin_rows(rows[family.isin(set(shares or family))].reset_index(drop=True), per_class)


if __name__ == "__main__":
    run_tool(main)
