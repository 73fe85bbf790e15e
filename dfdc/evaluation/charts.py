"""Labels and probabilities -> charts: ROC, reliability, histogram, worst mistakes, training curves, and budgets."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from scipy.stats import beta
from sklearn.metrics import roc_curve

from dfdc.files import drafted

# Okabe and Ito's colours, which colour-blind readers can distinguish.
REAL, FAKE, GREY = "#0072B2", "#D55E00", "#777777"
OTHERS = ("#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#B8A800", "#000000", "#8C564B", "#6A3D9A")
BINS = 10


@dataclass(frozen=True)
class Curve:
    """The data of a ROC curve: its name, labels (N,) 0 or 1, and probabilities (N,)."""

    name: str
    labels: np.ndarray
    probabilities: np.ndarray


@dataclass(frozen=True)
class Tile:
    """One picture of a contact sheet.

    Attributes:
        pixels: (H, W, 3) uint8 RGB; None without a picture.
        name: of the crop or clip.
        fake: the label.
        probability: the predicted P(fake).
    """

    pixels: np.ndarray | None
    name: str
    fake: bool
    probability: float


def draw_roc(path: Path, curves: Sequence[Curve]) -> None:
    """Write ROC curves; the first, of all predictions, is emphasised."""
    figure, axes = _start("ROC", "false-positive rate", "true-positive rate", size=(6.4, 6.4 + 0.1 * len(curves)))
    for curve, colour in zip(curves, (FAKE, *OTHERS * len(curves)), strict=False):
        misses, hits, _ = roc_curve(curve.labels, curve.probabilities)
        first = curve is curves[0]
        axes.plot(misses, hits, color=colour, lw=2.2 if first else 1.2, label=curve.name, zorder=3 if first else 2)
    axes.plot([0, 1], [0, 1], color=GREY, lw=1, ls=":", label="guessing")
    axes.set(xlim=(-0.01, 1.01), ylim=(-0.01, 1.01), aspect="equal")
    figure.legend(loc="outside lower center", ncols=2, fontsize=9, frameon=False)
    save(figure, path)


def draw_reliability(path: Path, labels: np.ndarray, probabilities: np.ndarray) -> None:
    """Write a reliability diagram: the share of fakes in equal bins of the prediction, with 95 % intervals."""
    figure, axes = _start("Reliability", "", "share of fakes", size=(6.4, 6.4), rows=(4, 1))
    counts = figure.add_subplot(figure.axes[0].get_gridspec()[1], sharex=axes)
    bins = np.minimum((probabilities * BINS).astype(int), BINS - 1)
    axes.plot([0, 1], [0, 1], color=GREY, lw=1, ls=":", label="perfect")
    used = np.unique(bins)
    sizes = np.array([(bins == b).sum() for b in used])
    fakes = np.array([labels[bins == b].sum() for b in used])
    means, shares = np.array([probabilities[bins == b].mean() for b in used]), fakes / sizes
    # Clopper and Pearson's interval, which is valid for few predictions, too.
    low = np.where(fakes > 0, beta.ppf(0.025, fakes, sizes - fakes + 1), 0)
    high = np.where(fakes < sizes, beta.ppf(0.975, fakes + 1, sizes - fakes), 1)
    error = [shares - low, high - shares]
    axes.errorbar(
        means, shares, error, color=FAKE, marker="o", lw=1.5, elinewidth=1, capsize=3, label="measured", clip_on=False
    )
    axes.set(xlim=(0, 1), ylim=(0, 1))
    axes.tick_params(labelbottom=False)
    axes.legend(loc="upper left", fontsize=9, frameon=False)
    counts.bar((used + 0.5) / BINS, sizes, 0.9 / BINS, color=GREY)
    counts.set(xlabel="predicted P(fake)", ylabel="count")
    plain(counts)
    save(figure, path)


def draw_histogram(path: Path, labels: np.ndarray, probabilities: np.ndarray) -> None:
    """Write histograms of the probabilities of reals and of fakes."""
    figure, axes = _start("Scores", "predicted P(fake)", "share of the class", size=(7.2, 4.2))
    edges = np.linspace(0, 1, 2 * BINS + 1)
    for label, name, colour in ((0, "real", REAL), (1, "fake", FAKE)):
        own = probabilities[labels == label]
        shares = np.full(len(own), 1 / max(len(own), 1))
        axes.hist(own, edges, weights=shares, color=colour, alpha=0.55, label=f"{name} ({len(own)})")
    axes.axvline(0.5, color=GREY, lw=1, ls=":")
    axes.set(xlim=(0, 1))
    axes.legend(loc="upper center", fontsize=9, frameon=False)
    save(figure, path)


def draw_training(path: Path, rows: Sequence[Mapping[str, float]]) -> None:
    """Write losses and AUC over the epochs of a run.

    Args:
        path: PNG file.
        rows: for each epoch "epoch", "train_loss", "balanced_log_loss" and "auc".
    """
    figure, losses = _start("Training", "", "loss", size=(7.2, 6.0), rows=(1, 1))
    auc = figure.add_subplot(figure.axes[0].get_gridspec()[1], sharex=losses)
    epochs = [row["epoch"] for row in rows]
    losses.plot(epochs, [row["train_loss"] for row in rows], color=GREY, marker=".", label="training, augmented")
    losses.plot(
        epochs, [row["balanced_log_loss"] for row in rows], color=FAKE, marker=".", label="validation, calibrated"
    )
    losses.legend(loc="upper right", fontsize=9, frameon=False)
    losses.tick_params(labelbottom=False)
    auc.plot(epochs, [row["auc"] for row in rows], color=REAL, marker=".")
    auc.set(xlabel="epoch", ylabel="validation AUC")
    auc.xaxis.get_major_locator().set_params(integer=True)
    plain(auc)
    save(figure, path)


def draw_budgets(path: Path, rows: Sequence[Mapping[str, float]]) -> None:
    """Write log loss and AUC over the cost of a clip, with a line for each number of models.

    Args:
        path: PNG file.
        rows: for each setting "n_frames", "n_models", "core_seconds", "log_loss" and "auc"; sorted by cost for each
            "n_models".
    """
    figure, losses = _start(
        "Cost and accuracy by number of frames and models", "", "log loss", size=(7.2, 6.0), rows=(1, 1)
    )
    auc = figure.add_subplot(figure.axes[0].get_gridspec()[1], sharex=losses)
    for n_models, style in zip(sorted({row["n_models"] for row in rows}), ("-", "--"), strict=False):
        drawn = [row for row in rows if row["n_models"] == n_models]
        for axes, name, colour in ((losses, "log_loss", FAKE), (auc, "auc", REAL)):
            axes.plot(
                [row["core_seconds"] for row in drawn],
                [row[name] for row in drawn],
                color=colour,
                linestyle=style,
                marker="o",
                label=f"{n_models} model{'s' * (n_models > 1)}",
            )
            for row in drawn:
                place = (row["core_seconds"], row[name])
                axes.annotate(f"{row['n_frames']}", place, (0, 7), textcoords="offset points", fontsize=8)
    losses.legend(frameon=False)
    losses.tick_params(labelbottom=False)
    auc.set(xlabel="core-seconds per clip (numbers: frames)", ylabel="AUC")
    plain(auc)
    caption(
        figure,
        "Look at where the lines become level: up to there frames help, and beyond it they mostly cost time.\n"
        "With few clips, steps up and down are chance.",
    )
    save(figure, path)


def draw_contact_sheet(path: Path, tiles: Sequence[Tile], *, title: str) -> None:
    """Write pictures in rows, each with its name, its label and its predicted probability."""
    columns = 6
    rows = max(-(-len(tiles) // columns), 1)
    figure = Figure(figsize=(columns * 1.7, rows * 2.05 + 0.5), dpi=110, layout="constrained")
    figure.suptitle(title, fontsize=11)
    for place in range(rows * columns):
        axes = figure.add_subplot(rows, columns, place + 1)
        axes.set_axis_off()
        if place < len(tiles):
            _draw_tile(axes, tiles[place])
    save(figure, path)


def _draw_tile(axes: Axes, tile: Tile) -> None:
    pixels = np.full((8, 8, 3), 230, np.uint8) if tile.pixels is None else tile.pixels
    axes.imshow(pixels, interpolation="nearest")
    label, colour = ("fake", FAKE) if tile.fake else ("real", REAL)
    name = tile.name if len(tile.name) <= 24 else f"{tile.name[:11]}…{tile.name[-12:]}"
    axes.set_title(f"{label}, P(fake) {tile.probability:.1%}\n{name}", fontsize=7, color=colour, parse_math=False)


def _start(title: str, x: str, y: str, *, size: tuple[float, float], rows: tuple[int, ...] = (1,)) -> tuple:
    figure = Figure(figsize=size, dpi=110, layout="constrained")
    figure.get_layout_engine().set(w_pad=0.1, h_pad=0.1)
    axes = figure.add_subplot(figure.add_gridspec(len(rows), 1, height_ratios=rows)[0])
    axes.set(title=title, xlabel=x, ylabel=y)
    plain(axes)
    return figure, axes


def plain(axes: Axes, *, grid: str = "both") -> None:
    """Remove the box of axes and add a light grid along "x", "y" or "both"."""
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis=grid, color="#e4e4e4", lw=0.6)
    axes.set_axisbelow(True)


def caption(figure: Figure, text: str) -> None:
    """Write a sentence below a figure that says what to see in it."""
    figure.supxlabel(text, x=0.01, ha="left", fontsize=9, color="#444444", parse_math=False)


def save(figure: Figure, path: Path) -> None:
    """Write a figure as PNG, whatever the suffix of the file."""
    with drafted(path) as draft:
        FigureCanvasAgg(figure).print_png(str(draft))
