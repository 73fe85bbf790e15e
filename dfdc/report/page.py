"""Analyses -> one self-contained HTML page: the clips with their people, scores over time and facts."""

from __future__ import annotations

import html
import json
from collections.abc import Iterable, Iterator
from dataclasses import asdict, replace
from datetime import datetime, timezone
from importlib import resources
from pathlib import Path
from typing import Any

from dfdc.analysis import THUMBNAIL, Analysis
from dfdc.crop import CropGeometry
from dfdc.detect import QUICK
from dfdc.errors import InputError
from dfdc.files import drafted
from dfdc.log import shown
from dfdc.report.budget import fit_pictures
from dfdc.report.words import describe_finding
from dfdc.version import __version__

# Bytes of all clips' data together, pictures in base64 included: a page of 4,000 clips stays under 50 MB.
MAX_BYTES = 48_000_000
DIGITS = 4
COMPACT = (",", ":")


def write_report(analyses: Iterable[Analysis], out: Path, *, n_clips: int, title: str = "Deepfake analysis") -> Path:
    """Write the page, one clip after another; only one analysis is in memory at a time.

    Args:
        analyses: one per clip.
        out: HTML file to write.
        n_clips: number of analyses, which share `MAX_BYTES` equally.
        title: of the page; plain text.

    Returns:
        out.

    Raises:
        InputError: the file cannot be written.
    """
    share = MAX_BYTES // max(n_clips, 1)
    static = resources.files("dfdc.report") / "static"
    css, js = ((static / name).read_text(encoding="utf-8") for name in ("page.css", "page.js"))
    page = (static / "page.html").read_text(encoding="utf-8").replace("{{css}}", css).replace("{{js}}", js)
    head, tail = (part.replace("{{title}}", html.escape(shown(title))) for part in page.split("{{data}}"))
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
        yield ",\n" * (number > 0) + _write_clip(analysis, share)
    about = {
        "version": __version__,
        "created": datetime.now(timezone.utc).strftime("%Y-%m-%d %H:%M UTC"),
        "models": list(models.values()),
        "crop_in_thumbnail": crop_in_thumbnail(CropGeometry()),
        "min_face_ratio": QUICK.min_face_ratio,
    }
    yield "], " + json.dumps(about)[1:]


def _write_clip(analysis: Analysis, share: int) -> str:
    """A clip's data as JSON, with as many pictures as fit `share` bytes."""
    bare = replace(
        analysis,
        tracks=tuple(replace(track, thumbnails={}) for track in analysis.tracks),
        scenes={},
    )
    n_left = share - len(json.dumps(describe_clip(bare), separators=COMPACT))
    fitted, complete = fit_pictures(analysis, max(n_left, 0))
    record = {**describe_clip(fitted), "pictures_left_out": not complete}
    return json.dumps(record, allow_nan=False, separators=COMPACT)


def describe_clip(analysis: Analysis) -> dict[str, Any]:
    """The data of a clip that the page shows, as a JSON-compatible dict."""
    record = json.loads(analysis.to_json())
    record["filename"] = shown(analysis.filename)
    record["scored"] = analysis.scored
    record["finding"] = asdict(describe_finding(analysis))
    for track, found in zip(record["tracks"], analysis.tracks, strict=True):
        del track["logits"]
        track["scores"] = found.scores.round(DIGITS).tolist()
        track["probability"] = round(found.probability, DIGITS)
        # float32 would be written with digits that mean nothing.
        track["boxes"] = found.boxes.astype(float).round(1).tolist()
        track["angles"] = found.angles.astype(float).round(1).tolist()
        track["times_s"] = found.times_s.round(3).tolist()
        track["heat"] = {str(frame): heat.astype(float).round(2).tolist() for frame, heat in found.heat.items()}
    record["times_s"] = analysis.times_s.round(3).tolist()
    return record


def crop_in_thumbnail(crop: CropGeometry) -> tuple[float, float, float]:
    """Left, top and side of a model's crop inside a thumbnail of the same face, as shares of the thumbnail's side."""
    side = crop.side_ratio / THUMBNAIL.side_ratio
    centre = 0.5 + crop.shift_ratio * side - THUMBNAIL.shift_ratio
    return 0.5 - side / 2, centre - side / 2, side


def _escape(text: str) -> str:
    """Escape JSON so that it is safe inside a script element, whatever names it contains."""
    return text.replace("<", "\\u003c").replace("\u2028", "\\u2028").replace("\u2029", "\\u2029")
