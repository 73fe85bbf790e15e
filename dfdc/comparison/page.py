"""A comparison of two clips -> a web page of one file that loads nothing else."""

from __future__ import annotations

import base64
from collections.abc import Callable
from io import BytesIO
from pathlib import Path

import cv2
import numpy as np
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from dfdc.comparison.charts import draw_over_time, draw_sound
from dfdc.comparison.compare import Comparison, Person, Shot, difference_levels, frame_rate
from dfdc.comparison.pair import Pair, cut_face, heat_picture, mean_level, percent, show_name
from dfdc.comparison.verdict import judge_scores

FRAME_WIDTH = 560
JPEG_QUALITY = 84


def render_page(pair: Pair) -> str:
    """The page as HTML, with all pictures in it."""
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template("difference.html").render(**_content(pair))


def _content(pair: Pair) -> dict[str, object]:
    """The values that the template shows; pictures as data addresses."""
    comparison, scale = pair.comparison, pair.scale
    return {
        "original": show_name(pair.original),
        "fake": show_name(pair.fake),
        "facts": describe_match(pair),
        "verdict": judge_scores(pair),
        "tiles": _tiles(pair),
        "faces": [_face(pair, person, scale) for person in comparison.people],
        "mean_heat": _png(_reduce(heat_picture(comparison.heat, scale), FRAME_WIDTH)),
        "mean_frame": _jpeg(_reduce(_boxed(comparison.shots[len(comparison.shots) // 2], comparison), FRAME_WIDTH)),
        "bar": _png(heat_picture(np.linspace(0, scale, 256)[None].repeat(12, 0), scale)),
        "scale": f"{percent(scale):.0f} %",
        "over_time": _chart(draw_over_time, pair, (5.6, 4.6 if pair.has_scores else 2.9)),
        "has_scores": pair.has_scores,
        "equal": pair.equal,
        "shots": [_shot(shot, scale, comparison) for shot in comparison.shots],
        "jumps": [[_shot(shot, scale, None) for shot in jump] for jump in comparison.jumps],
        "n_jumps": _count_jumps(comparison),
        "sound": comparison.sound and _chart(draw_sound, pair, (5.6, 5.0)),
        "sound_note": comparison.sound_note,
        "portrait": comparison.alignment.fit.size[0] > comparison.alignment.fit.size[1],
    }


def _count_jumps(comparison: Comparison) -> int:
    return sum(int(person.jumped.sum()) for person in comparison.people)


def describe_match(pair: Pair) -> str:
    """How the clips were matched, in sentences."""
    alignment = pair.comparison.alignment
    (height, width), offset = alignment.fit.size, alignment.offset_s
    fitted = ""
    if alignment.fit.original != alignment.fit.fake:
        fitted = " after scaling to one size" if alignment.fit.scaled else " after trimming to one size"
    shift = (
        f"The fake runs {abs(offset):.2f} s {'behind' if offset > 0 else 'ahead of'} its original. " if offset else ""
    )
    return (
        f"{len(alignment)} pairs of frames, {frame_rate(alignment):.3g} a second, {width} × {height} px{fitted}. "
        f"{shift}Match check passed: both clips move alike ({alignment.movement:.2f} of 1)."
    )


def _tiles(pair: Pair) -> list[dict[str, str]]:
    """The figures at the top of the page."""
    comparison, tiles = pair.comparison, []

    def add(value: str, about: str, kind: str = "") -> None:
        tiles.append({"value": value, "about": about, "kind": kind})

    if comparison.scores:
        for name, scores in zip(("original", "fake"), comparison.scores, strict=True):
            if scores.n_faces:
                kind = "bad" if scores.probability > 0.5 else "good"
                add(f"{scores.probability:.0%}", f"P(fake) of the {name}, from {scores.n_faces} frames", kind)
            else:
                add("–", f"no score for the {name}: no face found")
    outside = mean_level(comparison.outside)
    if comparison.people:
        face = max(mean_level(person.levels) for person in comparison.people)
        ratio = f", {face / outside:.1f} times the background's" if outside > 0.05 else ""
        add(f"{percent(face):.1f} %", f"of full brightness: the face's difference{ratio}")
        add(str(_count_jumps(comparison)), "frames with a sudden change on the face")
    add(f"{percent(outside):.1f} %", "of full brightness: the background's difference")
    if comparison.sound and len(comparison.sound.comparison.heard):
        same = float(np.median(comparison.sound.comparison.heard))
        add(f"{same:.2f}", "median correlation of the sounds (1 is the same recording)")
    return tiles


def _face(pair: Pair, person: Person, scale: float) -> dict[str, str]:
    """The clearest whole shot of a person as three pictures, and the person's mean heat map."""
    shots = [cut for shot in pair.comparison.shots if (cut := cut_face(shot, person)) is not None]
    best = max(shots, key=lambda shot: difference_levels(shot.original, shot.fake).mean(), default=None)
    pictures = {
        "mean": _png(heat_picture(person.heat, scale)),
        "difference": f"{percent(mean_level(person.levels)):.1f} %",
    }
    return {**pictures, **(_shot(best, scale, None) if best else {})}


def _shot(shot: Shot, scale: float, comparison: Comparison | None) -> dict[str, str]:
    """The pictures of a moment; with a comparison, also the faces below the frames."""
    first, second = (_reduce(frame, FRAME_WIDTH) for frame in (shot.original, shot.fake))
    pictures = {
        "time": f"{shot.time_s:.2f} s",
        "original": _jpeg(first),
        "fake": _jpeg(second),
        "heat": _jpeg(heat_picture(difference_levels(first, second), scale)),
    }
    if comparison is None:
        return pictures
    cuts = [cut for person in comparison.people if (cut := cut_face(shot, person)) is not None]
    return {**pictures, "faces": [_shot(cut, scale, None) for cut in cuts[:2]]}


def _boxed(shot: Shot, comparison: Comparison) -> np.ndarray:
    """A frame of the fake with a thin box around each face."""
    picture = shot.fake.copy()
    width = max(round(picture.shape[1] / 320), 1)
    for person in comparison.people:
        box = person.boxes[shot.index]
        if not np.isnan(box).any():
            x0, y0, x1, y1 = (round(float(value)) for value in box)
            cv2.rectangle(picture, (x0, y0), (x1, y1), (255, 255, 255), width)
    return picture


def _reduce(picture: np.ndarray, width: int) -> np.ndarray:
    """A picture reduced to at most this width and four thirds of it in height."""
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


def _chart(draw: Callable[[Figure, Pair], None], pair: Pair, size: tuple[float, float]) -> str:
    figure = Figure(figsize=size, dpi=170, layout="constrained")
    draw(figure, pair)
    buffer = BytesIO()
    FigureCanvasAgg(figure).print_png(buffer)
    return f"data:image/png;base64,{base64.b64encode(buffer.getvalue()).decode()}"
