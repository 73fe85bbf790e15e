"""A comparison of two clips -> charts of the difference, the scores and the sounds over time."""

from __future__ import annotations

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from dfdc.comparison.compare import Comparison
from dfdc.comparison.pair import Pair, percent
from dfdc.comparison.sound import STEP_S
from dfdc.evaluation.charts import FAKE, GREY, REAL, plain

JUMP = "#B8860B"


def draw_over_time(figure: Figure, pair: Pair) -> None:
    """Draw the difference over time and, if there are scores, the scores below it."""
    n_rows = 2 if pair.has_scores else 1
    grid = figure.add_gridspec(n_rows, 1, height_ratios=(1.25, 1)[:n_rows])
    axes = figure.add_subplot(grid[0])
    plot_levels(axes, pair.comparison)
    if pair.has_scores:
        below = figure.add_subplot(grid[1], sharex=axes)
        plot_scores(below, pair.comparison)
        axes.tick_params(labelbottom=False)
        axes = below
    axes.set_xlabel("time in seconds")


def plot_levels(axes: Axes, comparison: Comparison) -> None:
    """Plot the mean difference on each face and outside the faces, with marks at sudden changes."""
    times = comparison.times
    axes.plot(times, percent(comparison.outside), color=GREY, lw=1.2, label="background")
    for number, person in enumerate(comparison.people):
        label = "face" if len(comparison.people) == 1 else f"face {number + 1}"
        levels = percent(person.levels)
        axes.plot(times, levels, color=FAKE, lw=1.4, ls=("-", "--", ":", "-.")[number % 4], label=label)
        marked = "sudden change" if person.jumped.any() and not _has_label(axes, "sudden change") else None
        axes.plot(times[person.jumped], levels[person.jumped], color=JUMP, marker="v", ls="", ms=6, label=marked)
    axes.set_title("Difference", loc="left", fontsize=11)
    axes.set(ylabel="% of full brightness", xlim=(times[0], max(times[-1], times[0] + 0.04)))
    top = max(axes.get_ylim()[1], percent(1.0))
    axes.set_ylim(-0.02 * top, top)  # so that a line at 0 is visible
    _tidy(axes)


def plot_scores(axes: Axes, comparison: Comparison) -> None:
    """Plot the frame scores of both clips."""
    times = comparison.times[comparison.sampled]
    for name, colour, scores in zip(("original", "fake"), (REAL, FAKE), comparison.scores, strict=True):
        label = f"{name} (clip: {scores.probability:.0%})" if scores.n_faces else f"{name} (no face)"
        axes.plot(times, scores.frames, color=colour, marker="o", ms=3.5, lw=1.2, label=label)
    axes.axhline(0.5, color=GREY, lw=1, ls=":")
    axes.set_title("Frame scores, P(fake)", loc="left", fontsize=11)
    axes.set(ylim=(-0.03, 1.03), yticks=(0, 0.5, 1))
    _tidy(axes)


def draw_sound(figure: Figure, pair: Pair) -> None:
    """Draw both spectrograms and the correlation of the waveforms over time."""
    sound = pair.comparison.sound
    rows = figure.add_gridspec(3, 1, height_ratios=(1, 1, 0.9))
    longest = max(part.shape[1] for part in sound.spectrograms) / 100
    top = max(float(part.max()) for part in sound.spectrograms)
    first = None
    for row, name, part in zip(rows, ("original", "fake"), sound.spectrograms, strict=False):
        axes = figure.add_subplot(row, sharex=first)
        first = first or axes
        axes.imshow(
            part,
            origin="lower",
            aspect="auto",
            extent=(0, part.shape[1] / 100, 0, part.shape[0]),
            cmap="magma",
            vmin=top - 70,
            vmax=top,
        )
        axes.set_title(f"Sound of the {name}", fontsize=11)
        axes.set(yticks=(), ylabel="frequency", xlim=(0, longest))
        axes.tick_params(labelbottom=False)
    axes = figure.add_subplot(rows[2], sharex=first)
    axes.step(sound.comparison.times, sound.comparison.likeness, where="mid", color=FAKE, lw=1.4)
    axes.fill_between(sound.comparison.times, sound.comparison.likeness, step="mid", color=FAKE, alpha=0.25)
    axes.set(ylim=(0, 1.03), yticks=(0, 0.5, 1), xlabel="time in seconds")
    axes.set_title(f"Correlation of the waveforms, every {STEP_S} s (gaps are pauses)", fontsize=11)
    plain(axes)


def _has_label(axes: Axes, label: str) -> bool:
    return any(line.get_label() == label for line in axes.lines)


def _tidy(axes: Axes) -> None:
    plain(axes)
    # Beside the title, since inside the axes it would hide the curves.
    axes.legend(
        loc="lower right",
        bbox_to_anchor=(1, 0.98),
        ncols=4,
        fontsize=8.5,
        frameon=False,
        columnspacing=1,
        handlelength=1.4,
    )
