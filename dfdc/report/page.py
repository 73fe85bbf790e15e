"""Analyses -> one self-contained HTML page: the clips with their people, scores over time and facts."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from dataclasses import asdict, replace
from datetime import datetime, timezone
from importlib import resources
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from dfdc.analysis import THUMBNAIL, Analysis, FaceTrack
from dfdc.crop import CropGeometry
from dfdc.errors import InputError
from dfdc.files import drafted
from dfdc.illustrate import spread
from dfdc.version import __version__

# Bytes for the pictures of all clips together (as base64): a page of 4,000 clips stays under 50 MB.
MAX_PICTURE_BYTES = 40_000_000
# If a clip's share is smaller than this many bytes, its pictures are reduced before any is left out.
SMALL_SHARE = 100_000
SMALL_SIDE, SMALL_QUALITY = 96, 70
DIGITS = 4


def write_report(analyses: Iterable[Analysis], out: Path, *, n_clips: int, title: str = "Deepfake analysis") -> Path:
    """Write the page, one clip after another; only one analysis is in memory at a time.

    Args:
        analyses: one per clip.
        out: HTML file to write.
        n_clips: number of analyses, which share the bytes for pictures equally.
        title: of the page.

    Returns:
        out.

    Raises:
        InputError: the file cannot be written.
    """
    share = MAX_PICTURE_BYTES // max(n_clips, 1)
    static = resources.files("dfdc.report") / "static"
    css, js = ((static / name).read_text(encoding="utf-8") for name in ("page.css", "page.js"))
    page = (static / "page.html").read_text(encoding="utf-8").replace("{{title}}", title)
    head, tail = page.replace("{{css}}", css).replace("{{js}}", js).split("{{data}}")
    try:
        with drafted(out) as draft, open(draft, "w", encoding="utf-8", errors="replace") as file:
            file.write(head)
            for part in _write_data(analyses, share):
                file.write(_escape(part))
            file.write(tail)
    except OSError as error:
        raise InputError(f"{out}: the report cannot be written ({error.strerror}); name another file") from error
    return out


def _write_data(analyses: Iterable[Analysis], share: int) -> Iterator[str]:
    """The page's data as JSON, in parts."""
    models: dict[str, dict[str, Any]] = {}
    yield '{"clips": ['
    for number, analysis in enumerate(analyses):
        if analysis.provenance:
            models.update({model.digest: asdict(model) for model in analysis.provenance.models})
        fitted, complete = _fit(analysis, share)
        yield ",\n" * (number > 0) + json.dumps(
            {**describe_clip(fitted), "pictures_left_out": not complete}, allow_nan=False
        )
    about = {
        "version": __version__,
        "created": datetime.now(timezone.utc).strftime("%Y-%m-%d %H:%M UTC"),
        "models": list(models.values()),
        "crop_in_thumbnail": crop_in_thumbnail(CropGeometry()),
    }
    yield "], " + json.dumps(about)[1:]


def describe_clip(analysis: Analysis) -> dict[str, Any]:
    """The data of a clip that the page shows, as a JSON-compatible dict."""
    record = json.loads(analysis.to_json())
    record["scored"] = analysis.scored
    for track, found in zip(record["tracks"], analysis.tracks, strict=True):
        del track["logits"]
        track["scores"] = found.scores.round(DIGITS).tolist()
        track["probability"] = round(found.probability, DIGITS)
        track["boxes"] = found.boxes.round(1).tolist()
        track["times_s"] = found.times_s.round(3).tolist()
    record["times_s"] = analysis.times_s.round(3).tolist()
    return record


def crop_in_thumbnail(crop: CropGeometry) -> tuple[float, float, float]:
    """Left, top and side of a model's crop inside a thumbnail of the same face, as shares of the thumbnail's side."""
    side = crop.side_ratio / THUMBNAIL.side_ratio
    centre = 0.5 + crop.shift_ratio * side - THUMBNAIL.shift_ratio
    return 0.5 - side / 2, centre - side / 2, side


def _fit(analysis: Analysis, share: int) -> tuple[Analysis, bool]:
    """The analysis with at most `share` bytes of pictures, and whether all of its pictures were kept."""
    tracks, scenes = list(analysis.tracks), dict(analysis.scenes)
    if share < SMALL_SHARE:
        tracks = [replace(t, thumbnails={f: _reduce(p) for f, p in t.thumbnails.items()}) for t in tracks]
    if _n_bytes(tracks, scenes) <= share:
        return replace(analysis, tracks=tuple(tracks), scenes=scenes), True
    middle = sorted(scenes)[len(scenes) // 2 : len(scenes) // 2 + 1]
    scenes = {frame: scenes[frame] for frame in middle}
    for most in (6, 3, 1):
        tracks = [replace(t, thumbnails=_keep(t.thumbnails, most)) for t in tracks]
        if _n_bytes(tracks, scenes) <= share:
            return replace(analysis, tracks=tuple(tracks), scenes=scenes), False
    if _n_bytes(tracks, {}) > share:
        tracks = [replace(t, thumbnails={} if i else t.thumbnails) for i, t in enumerate(tracks)]
    return replace(analysis, tracks=tuple(tracks), scenes={}), False


def _n_bytes(tracks: list[FaceTrack], scenes: dict[int, bytes]) -> int:
    pictures = [*scenes.values(), *(picture for track in tracks for picture in track.thumbnails.values())]
    return sum(map(len, pictures)) * 4 // 3


def _keep(pictures: dict[int, bytes], most: int) -> dict[int, bytes]:
    frames = sorted(pictures)
    return {frames[i]: pictures[frames[i]] for i in spread(len(frames), most)}


def _reduce(picture: bytes) -> bytes:
    pixels = cv2.imdecode(np.frombuffer(picture, np.uint8), cv2.IMREAD_COLOR)
    small = cv2.resize(pixels, (SMALL_SIDE, SMALL_SIDE), interpolation=cv2.INTER_AREA)
    return cv2.imencode(".jpg", small, [cv2.IMWRITE_JPEG_QUALITY, SMALL_QUALITY])[1].tobytes()


def _escape(text: str) -> str:
    """Escape JSON so that it is safe inside a script element, whatever names it contains."""
    return text.replace("<", "\\u003c").replace("\u2028", "\\u2028").replace("\u2029", "\\u2029")
