"""A comparison of two clips -> a page, a picture or a video for a person to look at."""

from __future__ import annotations

from pathlib import Path

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from dfdc.comparison.animation import write_clip
from dfdc.comparison.charts import plot_levels, plot_scores
from dfdc.comparison.compare import difference_levels
from dfdc.comparison.page import render_page
from dfdc.comparison.pair import Pair, cut_face, heat_picture, percent, show_name
from dfdc.comparison.verdict import judge_scores
from dfdc.errors import InputError
from dfdc.evaluation.charts import caption
from dfdc.files import drafted

WRITTEN = (".html", ".png", ".mp4")


def write_difference(path: Path, pair: Pair) -> Path:
    """Write a comparison in the format that the file's suffix names.

    Args:
        path: ends in .html, .png or .mp4.
        pair: what is shown.

    Raises:
        InputError: another suffix.
        OSError: it cannot be written.
    """
    if path.suffix.lower() not in WRITTEN:
        raise InputError(f"{path}: ends in {path.suffix!r}; allowed: {', '.join(WRITTEN)}")
    path.parent.mkdir(parents=True, exist_ok=True)
    write = {".html": _write_page, ".png": _write_picture, ".mp4": write_clip}[path.suffix.lower()]
    with drafted(path) as draft:
        write(draft, pair)
    return path


def _write_page(path: Path, pair: Pair) -> None:
    path.write_text(render_page(pair), encoding="utf-8")


def _write_picture(path: Path, pair: Pair) -> None:
    """Write frames side by side with their heat maps, the clearest face, and the curves."""
    comparison, scale = pair.comparison, pair.scale
    shot = comparison.shots[0]
    faces = [cut for person in comparison.people[:1] if (cut := cut_face(shot, person))]
    rows = [shot, *faces]
    height, width = comparison.alignment.fit.size
    ratios = [min(height / width, 1.2), *(1.0 for _ in faces), 0.62, 0.5][: len(rows) + (2 if pair.has_scores else 1)]
    figure = Figure(figsize=(9.0, 3.0 * sum(ratios) + 0.8), dpi=120, layout="constrained")
    title = f"{show_name(pair.original)}  →  {show_name(pair.fake)}"
    verdict = judge_scores(pair)
    figure.suptitle(f"{title}\n{verdict.text if verdict else ''}", fontsize=10, parse_math=False, wrap=True)
    grid = figure.add_gridspec(len(ratios), 3, height_ratios=ratios)
    for row, shot in enumerate(rows):
        heat = heat_picture(difference_levels(shot.original, shot.fake), scale)
        titles = ("original", "fake", f"difference (full: {percent(scale):.0f} % brightness)")
        for column, (picture, name) in enumerate(zip((shot.original, shot.fake, heat), titles, strict=True)):
            axes = figure.add_subplot(grid[row, column])
            axes.imshow(picture)
            axes.set_axis_off()
            if row == 0:
                axes.set_title(name, fontsize=9)
    axes = figure.add_subplot(grid[len(rows), :])
    plot_levels(axes, comparison)
    if pair.has_scores:
        axes.tick_params(labelbottom=False)
        axes = figure.add_subplot(grid[len(rows) + 1, :], sharex=axes)
        plot_scores(axes, comparison)
    axes.set_xlabel("time in seconds")
    caption(figure, "Bright places were altered; if only the face was, its curve lies far above the background's.")
    FigureCanvasAgg(figure).print_png(str(path))
