"""Compared pooling rules and the clips behind them -> one picture."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from dfdc.evaluation.charts import FAKE, GREY, REAL, caption, plain, save
from dfdc.research.pooling import KERNELS, LEARNED, ScoredClip


def draw_comparison(path: Path, rules: dict[str, dict], clips: Sequence[ScoredClip]) -> None:
    """Write a picture of the rules with their intervals, above the frame scores of every clip that they pool."""
    figure = Figure(figsize=(12.5, 5.0 + 0.21 * len(clips)), dpi=110, layout="constrained")
    figure.get_layout_engine().set(w_pad=0.08, h_pad=0.1)
    grid = figure.add_gridspec(2, 3, height_ratios=(0.36 * len(rules), 0.21 * len(clips) + 0.6))
    n_sources = len({clip.source for clip in clips})
    figure.suptitle(f"Pooling rules: {len(clips)} clips of {n_sources} sources, 95 % intervals over sources")
    keys = ("balanced_log_loss", "difference", "auc")
    titles = (
        "balanced log loss (dotted: guessing)",
        "difference from the kernel's mean (below 0 is better)",
        "AUC (dotted: guessing)",
    )
    for column, (key, title) in enumerate(zip(keys, titles, strict=True)):
        axes = figure.add_subplot(grid[0, column])
        _draw_intervals(axes, rules, key)
        axes.set_title(title, fontsize=10)
        axes.tick_params(labelleft=column == 0)
    _draw_frames(figure.add_subplot(grid[1, :]), clips)
    caption(
        figure,
        "Black is the kernel's rule. A rule is better where its interval in the middle chart lies wholly left of 0.",
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    save(figure, path)


def _draw_intervals(axes: Axes, rules: dict[str, dict], key: str) -> None:
    for row, (name, scores) in enumerate(rules.items()):
        score = scores[key]
        colour = FAKE if name == LEARNED else "#000000" if name == KERNELS else GREY if "recal" in name else REAL
        reach = [[max(score["value"] - score["low"], 0)], [max(score["high"] - score["value"], 0)]]
        axes.errorbar(score["value"], row, xerr=reach, color=colour, marker="o", ms=5, lw=1.6, capsize=3)
    axes.axvline({"difference": 0, "auc": 0.5}.get(key, np.log(2)), color=GREY, lw=1, ls=":")
    axes.set(yticks=range(len(rules)), yticklabels=list(rules), ylim=(len(rules) - 0.5, -0.5))
    plain(axes, grid="x")


def _draw_frames(axes: Axes, clips: Sequence[ScoredClip]) -> None:
    """Plot a row for each clip, source by source: its frame scores as dots, the mean of each person as a bar."""
    ordered = sorted(clips, key=lambda clip: (clip.source, clip.label, clip.name))
    for row, clip in enumerate(ordered):
        if row and clip.source != ordered[row - 1].source:
            axes.axhline(row - 0.5, color="#c8c8c8", lw=0.8)
        colour = FAKE if clip.label else REAL
        for track in clip.tracks:
            axes.plot(track, np.full(len(track), row), ls="", marker="o", ms=4, mew=0, alpha=0.35, color=colour)
            axes.plot([track.mean()] * 2, [row - 0.4, row + 0.4], color=colour, lw=2.5, solid_capstyle="butt")
    axes.axvline(0, color=GREY, lw=1, ls=":")
    axes.set(
        yticks=range(len(ordered)), ylim=(len(ordered) - 0.5, -0.5), xlabel="calibrated log-odds (above 0 means fake)"
    )
    axes.set_yticklabels([clip.name for clip in ordered], fontsize=7)
    for tick, clip in zip(axes.get_yticklabels(), ordered, strict=True):
        tick.set_color(FAKE if clip.label else REAL)
    axes.set_title(
        "What is pooled: frame scores (dots) and their mean (bar), blue for reals, orange for fakes", fontsize=10
    )
    plain(axes, grid="x")
