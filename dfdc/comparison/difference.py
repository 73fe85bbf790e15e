"""A comparison of two clips -> a page, a picture or a clip that a person can look at."""

from __future__ import annotations

import base64
from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from io import BytesIO
from pathlib import Path

import av
import cv2
import numpy as np
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from dfdc.comparison.compare import SHOWN, Comparison, Person, Shot, difference_levels, frame_rate
from dfdc.comparison.sound import STEP_S
from dfdc.crop import crop_face
from dfdc.data.align import walk_pairs
from dfdc.evaluation.charts import FAKE, GREY, REAL, plain
from dfdc.files import drafted

# Heat maps are black at no difference and reach their brightest at the face's greatest, but never below so many levels.
MIN_SCALE, MAX_SCALE = 12.0, 80.0
# Widths in pixels of pictures in the page, and of each of the clip's three panels.
FRAME_WIDTH, PANEL_WIDTH, PANEL_HEIGHT = 560, 424, 480
STRIP_HEIGHT = 120
JPEG_QUALITY = 84
WRITTEN = (".html", ".png", ".mp4")
JUMP = "#B8860B"
# Frames that differ by less on average are the same: the least that another encoding makes is some ten times that.
EQUAL_LEVELS = 0.05


@dataclass(frozen=True)
class Pair:
    """The clips' files and what is known of them."""

    original: Path
    fake: Path
    comparison: Comparison

    @property
    def scale(self) -> float:
        """Levels at which heat is brightest, the same in all pictures of a pair."""
        tops = [np.percentile(person.heat, 99) for person in self.comparison.people] or [self.comparison.heat.max()]
        return float(np.clip(1.3 * max(tops), MIN_SCALE, MAX_SCALE))


def write_difference(path: Path, pair: Pair) -> Path:
    """Write a comparison as what the path's ending says.

    Args:
        path: ends in .html, .png or .mp4.
        pair: what is shown.

    Raises:
        ValueError: another ending.
        OSError: it cannot be written.
    """
    if path.suffix.lower() not in WRITTEN:
        raise ValueError(f"{path}: ends in {path.suffix!r}; allowed: {', '.join(WRITTEN)}")
    path.parent.mkdir(parents=True, exist_ok=True)
    write = {".html": _write_page, ".png": _write_picture, ".mp4": _write_clip}[path.suffix.lower()]
    with drafted(path) as draft:
        write(draft, pair)
    return path


def heat_picture(levels: np.ndarray, scale: float) -> np.ndarray:
    """Levels (H, W) as colours (H, W, 3) uint8 RGB, black at 0 and pale yellow from the scale on."""
    grey = (np.clip(levels / scale, 0, 1) * 255).round().astype(np.uint8)
    return cv2.applyColorMap(grey, cv2.COLORMAP_INFERNO)[..., ::-1]


# --- the page


def _write_page(path: Path, pair: Pair) -> None:
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    page = environment.get_template("difference.html").render(**_content(pair))
    path.write_text(page, encoding="utf-8")


def _content(pair: Pair) -> dict[str, object]:
    """What the template shows; pictures as data addresses."""
    comparison, scale = pair.comparison, pair.scale
    return {
        "original": _name(pair.original),
        "fake": _name(pair.fake),
        "facts": _facts(pair),
        "tiles": _tiles(comparison),
        "faces": [_face(pair, person, scale) for person in comparison.people],
        "mean_heat": _png(_reduce(heat_picture(comparison.heat, scale), FRAME_WIDTH)),
        "mean_frame": _jpeg(_reduce(_boxed(comparison.shots[len(comparison.shots) // 2], comparison), FRAME_WIDTH)),
        "bar": _png(heat_picture(np.linspace(0, scale, 256)[None].repeat(12, 0), scale)),
        "scale": round(scale),
        "over_time": _chart(_draw_over_time, comparison, (5.6, 4.6 if _has_scores(comparison) else 2.9)),
        "has_scores": _has_scores(comparison),
        "equal": _is_equal(comparison),
        "equal_levels": EQUAL_LEVELS,
        "shots": [_shot(shot, scale, comparison) for shot in comparison.shots],
        "jumps": [[_shot(shot, scale, None) for shot in jump] for jump in comparison.jumps],
        "n_jumps": sum(int(person.jumped.sum()) for person in comparison.people),
        "sound": comparison.sound and _chart(_draw_sound, comparison, (5.6, 5.0)),
        "sound_note": comparison.sound_note,
        "portrait": comparison.alignment.fit.size[0] > comparison.alignment.fit.size[1],
    }


def _has_scores(comparison: Comparison) -> bool:
    """Whether the nets say anything of either clip."""
    return comparison.scores is not None and any(scores.n_faces for scores in comparison.scores)


def _is_equal(comparison: Comparison) -> bool:
    """Whether no frame of a clip differs from the other's to speak of."""
    levels = [comparison.outside, *(person.levels for person in comparison.people)]
    return all(np.nanmax(part, initial=0) < EQUAL_LEVELS for part in levels)


def _name(path: Path) -> str:
    """A file's name, what is no text in it written out."""
    return path.name.encode("utf-8", "backslashreplace").decode()


def _facts(pair: Pair) -> str:
    alignment = pair.comparison.alignment
    (height, width), offset = alignment.fit.size, alignment.offset_s
    fitted = ", reduced to one size" if alignment.fit.scaled else ", trimmed to one size"
    shift = (
        f"the fake runs {abs(offset):.2f} s {'behind' if offset > 0 else 'ahead'}" if offset else "no offset in time"
    )
    return (
        f"{len(alignment)} pairs of frames, {frame_rate(alignment):.3g} a second, {width} × {height} px"
        f"{fitted if alignment.fit.original != alignment.fit.fake else ''}; {shift}; "
        f"their movements correlate by {alignment.movement:.3f}"
    )


def _tiles(comparison: Comparison) -> list[dict[str, str]]:
    """The page's numbers at its top."""
    tiles = []
    if comparison.scores:
        for name, scores in zip(("original", "fake"), comparison.scores, strict=True):
            if not scores.n_faces:
                tiles.append({"value": "–", "about": f"{name}: no face, no opinion", "kind": ""})
                continue
            kind = "bad" if scores.probability > 0.5 else "good"
            about = f"net's P(fake) of the {name}, {scores.n_faces} frames"
            tiles.append({"value": f"{scores.probability:.0%}", "about": about, "kind": kind})
    outside = _mean(comparison.outside)
    if comparison.people:
        face = max(_mean(person.levels) for person in comparison.people)
        ratio = f", {face / outside:.1f} × the rest" if outside > 0.05 else ""
        tiles.append({"value": f"{face:.1f}", "about": f"levels of 255 on the face{ratio}", "kind": ""})
        n_jumps = sum(int(person.jumped.sum()) for person in comparison.people)
        tiles.append({"value": str(n_jumps), "about": "frames that jump", "kind": ""})
    tiles.append({"value": f"{outside:.1f}", "about": "levels of 255 outside", "kind": ""})
    if comparison.sound and len(comparison.sound.comparison.heard):
        same = float(np.median(comparison.sound.comparison.heard))
        tiles.append({"value": f"{same:.0%}", "about": "likeness of the sounds", "kind": ""})
    return tiles


def _face(pair: Pair, person: Person, scale: float) -> dict[str, str]:
    """A person's clearest whole shot as three pictures, and her mean heat."""
    shots = [cut for shot in pair.comparison.shots if (cut := _cut(shot, person)) is not None]
    best = max(shots, key=lambda shot: difference_levels(shot.original, shot.fake).mean(), default=None)
    pictures = {"mean": _png(heat_picture(person.heat, scale)), "levels": f"{_mean(person.levels):.1f}"}
    return {**pictures, **(_shot(best, scale, None) if best else {})}


def _cut(shot: Shot, person: Person) -> Shot | None:
    box = person.boxes[shot.index]
    if np.isnan(box).any():
        return None
    return Shot(shot.index, shot.time_s, *(crop_face(frame, box, SHOWN) for frame in (shot.original, shot.fake)))


def _shot(shot: Shot, scale: float, comparison: Comparison | None) -> dict[str, str]:
    """A moment's pictures; with a comparison, the faces below the frames too."""
    first, second = (_reduce(frame, FRAME_WIDTH) for frame in (shot.original, shot.fake))
    pictures = {
        "time": f"{shot.time_s:.2f} s",
        "original": _jpeg(first),
        "fake": _jpeg(second),
        "heat": _jpeg(heat_picture(difference_levels(first, second), scale)),
    }
    if comparison is None:
        return pictures
    cuts = [cut for person in comparison.people if (cut := _cut(shot, person)) is not None]
    return {**pictures, "faces": [_shot(cut, scale, None) for cut in cuts[:2]]}


def _boxed(shot: Shot, comparison: Comparison) -> np.ndarray:
    """A fake's frame with a thin frame around each face."""
    picture = shot.fake.copy()
    width = max(round(picture.shape[1] / 320), 1)
    for person in comparison.people:
        box = person.boxes[shot.index]
        if not np.isnan(box).any():
            x0, y0, x1, y1 = (round(float(value)) for value in box)
            cv2.rectangle(picture, (x0, y0), (x1, y1), (255, 255, 255), width)
    return picture


def _reduce(picture: np.ndarray, width: int) -> np.ndarray:
    """A picture no wider than wanted, nor higher than four thirds of that."""
    scale = min(width / picture.shape[1], 4 / 3 * width / picture.shape[0], 1)
    if scale == 1:
        return picture
    size = max(round(picture.shape[1] * scale), 1), max(round(picture.shape[0] * scale), 1)
    return cv2.resize(picture, size, interpolation=cv2.INTER_AREA)


def _jpeg(picture: np.ndarray) -> str:
    return _address(picture, ".jpg", "image/jpeg", [cv2.IMWRITE_JPEG_QUALITY, JPEG_QUALITY])


def _png(picture: np.ndarray) -> str:
    return _address(picture, ".png", "image/png", [])


def _address(picture: np.ndarray, ending: str, kind: str, options: list[int]) -> str:
    _, data = cv2.imencode(ending, np.ascontiguousarray(picture[..., ::-1]), options)
    return f"data:{kind};base64,{base64.b64encode(data.tobytes()).decode()}"


# --- charts


def _chart(draw, comparison: Comparison, size: tuple[float, float]) -> str:
    figure = Figure(figsize=size, dpi=170, layout="constrained")
    draw(figure, comparison)
    buffer = BytesIO()
    FigureCanvasAgg(figure).print_png(buffer)
    return f"data:image/png;base64,{base64.b64encode(buffer.getvalue()).decode()}"


def _draw_over_time(figure: Figure, comparison: Comparison) -> None:
    n_rows = 2 if _has_scores(comparison) else 1
    grid = figure.add_gridspec(n_rows, 1, height_ratios=(1.25, 1)[:n_rows])
    axes = figure.add_subplot(grid[0])
    _plot_levels(axes, comparison)
    if _has_scores(comparison):
        below = figure.add_subplot(grid[1], sharex=axes)
        _plot_scores(below, comparison)
        axes.tick_params(labelbottom=False)
        axes = below
    axes.set_xlabel("seconds")


def _plot_levels(axes: Axes, comparison: Comparison) -> None:
    times = comparison.times
    axes.plot(times, comparison.outside, color=GREY, lw=1.2, label="outside")
    for number, person in enumerate(comparison.people):
        label = "on the face" if len(comparison.people) == 1 else f"on face {number + 1}"
        axes.plot(times, person.levels, color=FAKE, lw=1.4, ls=("-", "--", ":", "-.")[number % 4], label=label)
        axes.plot(
            times[person.jumped],
            person.levels[person.jumped],
            color=JUMP,
            marker="v",
            ls="",
            ms=6,
            label="jump" if person.jumped.any() and not _has_label(axes, "jump") else None,
        )
    axes.set_title("Difference", loc="left", fontsize=11)
    axes.set(ylabel="levels of 255", xlim=(times[0], max(times[-1], times[0] + 0.04)))
    top = max(axes.get_ylim()[1], 1.0)
    axes.set_ylim(-0.02 * top, top)  # a line at 0 is seen
    _tidy(axes)


def _plot_scores(axes: Axes, comparison: Comparison) -> None:
    times = comparison.times[comparison.sampled]
    for name, colour, scores in zip(("original", "fake"), (REAL, FAKE), comparison.scores, strict=True):
        label = f"{name} ({scores.probability:.0%} in all)" if scores.n_faces else f"{name} (no face)"
        axes.plot(times, scores.frames, color=colour, marker="o", ms=3.5, lw=1.2, label=label)
    axes.axhline(0.5, color=GREY, lw=1, ls=":")
    axes.set_title("P(fake)", loc="left", fontsize=11)
    axes.set(ylim=(-0.03, 1.03), yticks=(0, 0.5, 1))
    _tidy(axes)


def _has_label(axes: Axes, label: str) -> bool:
    return any(line.get_label() == label for line in axes.lines)


def _tidy(axes: Axes) -> None:
    plain(axes)
    # Beside the title: inside, it would hide what it explains.
    axes.legend(
        loc="lower right",
        bbox_to_anchor=(1, 0.98),
        ncols=4,
        fontsize=8.5,
        frameon=False,
        columnspacing=1,
        handlelength=1.4,
    )


def _draw_sound(figure: Figure, comparison: Comparison) -> None:
    sound = comparison.sound
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
        axes.set(yticks=(), ylabel="pitch", xlim=(0, longest))
        axes.tick_params(labelbottom=False)
    axes = figure.add_subplot(rows[2], sharex=first)
    axes.step(sound.comparison.times, sound.comparison.likeness, where="mid", color=FAKE, lw=1.4)
    axes.fill_between(sound.comparison.times, sound.comparison.likeness, step="mid", color=FAKE, alpha=0.25)
    axes.set(ylim=(0, 1.03), yticks=(0, 0.5, 1), xlabel="seconds")
    axes.set_title(f"Likeness of the waveforms, every {STEP_S} s (gaps: pauses)", fontsize=11)
    plain(axes)


def _mean(values: np.ndarray) -> float:
    known = values[~np.isnan(values)]
    return float(known.mean()) if len(known) else 0.0


# --- one picture


def _write_picture(path: Path, pair: Pair) -> None:
    """Frames side by side with their heat, the clearest face, and the curves."""
    comparison, scale = pair.comparison, pair.scale
    shot = comparison.shots[0]
    faces = [cut for person in comparison.people[:1] if (cut := _cut(shot, person))]
    rows = [shot, *faces]
    height, width = comparison.alignment.fit.size
    ratios = [min(height / width, 1.2), *(1.0 for _ in faces), 0.62, 0.5][: len(rows) + (2 if comparison.scores else 1)]
    figure = Figure(figsize=(9.0, 3.0 * sum(ratios) + 0.6), dpi=120, layout="constrained")
    figure.suptitle(f"{_name(pair.original)}  →  {_name(pair.fake)}", fontsize=12, parse_math=False)
    grid = figure.add_gridspec(len(ratios), 3, height_ratios=ratios)
    for row, shot in enumerate(rows):
        heat = heat_picture(difference_levels(shot.original, shot.fake), scale)
        titles = ("original", "fake", f"difference (brightest: {scale:.0f} levels)")
        for column, (picture, title) in enumerate(zip((shot.original, shot.fake, heat), titles, strict=True)):
            axes = figure.add_subplot(grid[row, column])
            axes.imshow(picture)
            axes.set_axis_off()
            if row == 0:
                axes.set_title(title, fontsize=10)
    axes = figure.add_subplot(grid[len(rows), :])
    _plot_levels(axes, comparison)
    if comparison.scores:
        axes.tick_params(labelbottom=False)
        axes = figure.add_subplot(grid[len(rows) + 1, :], sharex=axes)
        _plot_scores(axes, comparison)
    axes.set_xlabel("seconds")
    FigureCanvasAgg(figure).print_png(str(path))


# --- the clip


def _write_clip(path: Path, pair: Pair) -> None:
    """All pairs side by side with their heat, above the curve and a cursor, as H.264."""
    rate = Fraction(frame_rate(pair.comparison.alignment)).limit_denominator(1001)
    stream = None
    with av.open(str(path), "w", options={"movflags": "faststart"}) as container:
        for picture in _panels(pair):
            if stream is None:
                stream = container.add_stream("libx264", rate=rate, options={"crf": "21", "preset": "veryfast"})
                stream.height, stream.width = picture.shape[:2]
                stream.pix_fmt = "yuv420p"
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode(None))


def _panels(pair: Pair) -> Iterator[np.ndarray]:
    """Frames (H, W, 3) uint8 RGB of the clip; H and W are even."""
    height, width = pair.comparison.alignment.fit.size
    scale = min(PANEL_WIDTH / width, PANEL_HEIGHT / height)
    size = max(round(width * scale / 2) * 2, 2), max(round(height * scale / 2) * 2, 2)
    strip = _strip(pair.comparison, 3 * size[0])
    for index, (_, first, second) in enumerate(walk_pairs(pair.original, pair.fake, pair.comparison.alignment)):
        panels = [cv2.resize(frame, size, interpolation=cv2.INTER_AREA) for frame in (first, second)]
        panels.append(heat_picture(difference_levels(*panels), pair.scale))
        labelled = [_label(panel, text) for panel, text in zip(panels, ("original", "fake", "difference"), strict=True)]
        below = strip.copy()
        x = _column(index, len(pair.comparison.alignment), below.shape[1])
        cv2.line(below, (x, 0), (x, STRIP_HEIGHT), (40, 40, 40), 2)
        yield np.vstack([np.hstack(labelled), below])


def _strip(comparison: Comparison, width: int) -> np.ndarray:
    """The difference over time as a picture (STRIP_HEIGHT, width, 3)."""
    strip = np.full((STRIP_HEIGHT, width, 3), 250, np.uint8)
    curves = [(comparison.outside, (119, 119, 119)), *((person.levels, (213, 94, 0)) for person in comparison.people)]
    top = max(float(np.nanmax(values, initial=1.0)) for values, _ in curves) * 1.1
    n_pairs = len(comparison.alignment)
    for values, colour in curves:
        points = [
            (_column(i, n_pairs, width), round((1 - value / top) * (STRIP_HEIGHT - 8)) + 3)
            for i, value in enumerate(values)
            if not np.isnan(value)
        ]
        cv2.polylines(strip, [np.array(points, np.int32).reshape(-1, 1, 2)], False, colour, 2, cv2.LINE_AA)
    for person in comparison.people:
        for i in np.flatnonzero(person.jumped):
            cv2.drawMarker(strip, (_column(i, n_pairs, width), 8), (184, 134, 11), cv2.MARKER_TRIANGLE_DOWN, 10, 2)
    return _label(strip, "difference over time: face, outside (grey), jumps (marks)", dark=True)


def _column(index: int, n_pairs: int, width: int) -> int:
    return round(4 + (width - 8) * index / max(n_pairs - 1, 1))


def _label(picture: np.ndarray, text: str, *, dark: bool = False) -> np.ndarray:
    picture = np.ascontiguousarray(picture)
    for colour, width in ((250, 250, 250) if dark else (0, 0, 0), 3), ((60, 60, 60) if dark else (255, 255, 255), 1):
        cv2.putText(picture, text, (8, 18), cv2.FONT_HERSHEY_SIMPLEX, 0.5, colour, width, cv2.LINE_AA)
    return picture
