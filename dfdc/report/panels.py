"""Analyses with pictures -> one image: per clip the frame, the faces over time, a heat map and the frame scores."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure, SubFigure
from matplotlib.patches import Rectangle

from dfdc.analysis import Analysis, FaceTrack
from dfdc.crop import CropGeometry
from dfdc.files import drafted
from dfdc.illustrate import spread
from dfdc.log import shown
from dfdc.report.page import crop_in_thumbnail
from dfdc.report.words import describe_finding, format_percent

# Number of faces of a person in a row.
FACES = 5
# The page's colours of the heat map: what raised the score, and what lowered it.
RAISED, LOWERED = (213, 94, 0), (0, 114, 178)
OPACITY = 0.78
# Styles of up to three persons' scores; more would not be told apart.
STYLES = ("-", "--", ":")
TEXT = (
    "White boxes: the faces that were scored. Orange regions raised the first model's score, blue ones lowered it. "
    "The models see alternate frames in two views, so a line can zigzag.\nA probability assumes that half of all clips "
    "are fake. A low one does not show that a clip is real."
)


def draw_panels(analyses: Sequence[Analysis], out: Path) -> Path:
    """Draw what the report shows of some clips, one below the other.

    Args:
        analyses: with thumbnails; those without a face show a frame only.
        out: PNG file to write.

    Returns:
        out.
    """
    figure = Figure(figsize=(12, 3.9 * max(len(analyses), 1) + 0.7), dpi=80, layout="constrained")
    figure.supxlabel(TEXT, x=0.01, ha="left", fontsize=9)
    parts = np.atleast_1d(figure.subfigures(max(len(analyses), 1), 1))
    for part, analysis in zip(parts, analyses, strict=False):
        _draw_clip(part, analysis)
    with drafted(out) as draft:
        figure.savefig(draft)
    return out


def paint_heat(track: FaceTrack, frame: int, strongest: float) -> np.ndarray:
    """A thumbnail with its heat map over it.

    Args:
        track: with a thumbnail and a map of this frame.
        frame: index of the frame.
        strongest: log-odds at which the colour is fullest.

    Returns:
        (S, S, 3) uint8 RGB.
    """
    face = decode(track.thumbnails[frame]).astype(np.float32)
    left, top, side = (round(share * len(face)) for share in crop_in_thumbnail(CropGeometry()))
    values = cv2.resize(track.heat[frame].astype(np.float32), (side, side), interpolation=cv2.INTER_LINEAR)
    colour = np.where(values[..., None] > 0, RAISED, LOWERED)
    alpha = OPACITY * np.clip(np.abs(values) / max(strongest, 1e-9), 0, 1)[..., None]
    area = face[top : top + side, left : left + side]
    area[:] = area * (1 - alpha) + colour * alpha
    return face.round().astype(np.uint8)


def strongest_heat(analysis: Analysis) -> float:
    """The absolute value that 95 % of a clip's heat maps stay below, where their colour is fullest; 0 without maps."""
    values = [np.abs(heat).ravel() for track in analysis.tracks for heat in track.heat.values()]
    return float(np.quantile(np.concatenate(values), 0.95)) if values else 0.0


def decode(jpeg: bytes) -> np.ndarray:
    """A JPEG's pixels, (H, W, 3) uint8 RGB."""
    return cv2.cvtColor(cv2.imdecode(np.frombuffer(jpeg, np.uint8), cv2.IMREAD_COLOR), cv2.COLOR_BGR2RGB)


def _draw_clip(part: SubFigure, analysis: Analysis) -> None:
    name = shown(analysis.filename)
    said = describe_finding(analysis).text
    score = format_percent(analysis.probability) if analysis.scored else analysis.status
    part.suptitle(f"{name}: {score}, {said}", fontsize=11, x=0.01, ha="left", parse_math=False)
    grid = part.add_gridspec(2, 2 + FACES + 1, height_ratios=(1, 0.85))
    _draw_scene(part.add_subplot(grid[:, :2]), analysis)
    if not analysis.tracks:
        return
    track, strongest = analysis.tracks[0], strongest_heat(analysis)
    pictured = sorted(track.thumbnails)
    for column, index in enumerate(spread(len(pictured), FACES) if pictured else ()):
        axes = part.add_subplot(grid[0, 2 + column])
        _show(axes, decode(track.thumbnails[pictured[index]]))
        row = int(np.flatnonzero(track.frames == pictured[index])[0])
        axes.set_title(f"{track.times_s[row]:.1f} s · {format_percent(track.scores[row])}", fontsize=8)
    if track.heat:
        frame = max(track.heat, key=lambda each: abs(float(track.heat[each].mean())))
        axes = part.add_subplot(grid[0, 2 + FACES])
        _show(axes, paint_heat(track, frame, strongest))
        axes.set_title(f"{analysis.times_s[frame]:.1f} s · heat map\nfull colour: {strongest:.1f} log-odds", fontsize=8)
    _draw_scores(part.add_subplot(grid[1, 2:]), analysis)


def _draw_scene(axes: Axes, analysis: Analysis) -> None:
    axes.axis("off")
    if not analysis.scenes or not analysis.frame_size:
        axes.text(0.5, 0.5, analysis.reason or "no picture", ha="center", va="center", wrap=True, color="#555555")
        return
    frame = sorted(analysis.scenes)[len(analysis.scenes) // 2]
    width, height = analysis.frame_size
    axes.imshow(decode(analysis.scenes[frame]), extent=(0, width, height, 0))
    for track in analysis.tracks:
        for row in np.flatnonzero(track.frames == frame):
            x0, y0, x1, y1 = track.boxes[row]
            for colour, line_width in (("black", 3.5), ("white", 1.5)):
                axes.add_patch(_box(x0, y0, x1 - x0, y1 - y0, colour, line_width))
    axes.set_title(f"the whole frame at {analysis.times_s[frame]:.1f} s", fontsize=8)


def _box(x: float, y: float, width: float, height: float, colour: str, line_width: float) -> Rectangle:
    return Rectangle((x, y), width, height, fill=False, edgecolor=colour, linewidth=line_width)


def _draw_scores(axes: Axes, analysis: Analysis) -> None:
    for number, (track, style) in enumerate(zip(analysis.tracks, STYLES, strict=False), start=1):
        label = f"person {number}: {format_percent(track.probability)}"
        axes.plot(track.times_s, 100 * track.scores, color="black", ls=style, marker="o", ms=2.5, lw=1.3, label=label)
    axes.axhline(50, color="#777777", lw=0.8, ls=":")
    axes.set(ylim=(-3, 103), yticks=(0, 50, 100), xlabel="time in seconds")
    axes.set_ylabel("frame score in %", fontsize=8)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(fontsize=8, frameon=False, ncols=3, loc="lower left", bbox_to_anchor=(0, 0.98))


def _show(axes: Axes, picture: np.ndarray) -> None:
    axes.imshow(picture)
    axes.axis("off")
