"""Labelled clips -> face crops; a fake's crops are aligned with those of its original, pixel for pixel."""

from __future__ import annotations

import logging
import os
import shutil
from collections.abc import Iterator
from dataclasses import astuple, dataclass, replace
from pathlib import Path

import numpy as np

from dfdc.crop import crop_face
from dfdc.data.clips import LabelledClip, digest_clip
from dfdc.data.crop_folder import (
    DRAFTS,
    IMAGES,
    CropRow,
    CutSettings,
    Report,
    format_of,
    store,
    write_image,
)
from dfdc.data.detectors import detect_in_parallel
from dfdc.data.pictures import PictureDifference, compare_pictures
from dfdc.detect import FaceDetector, Faces
from dfdc.errors import Misaligned, VideoError
from dfdc.tracks import find_tracks
from dfdc.video import read_frames, read_frames_at, stream_frames

log = logging.getLogger(__name__)

# A frame of a fake matches one of its original if their times differ by at most half a frame at 60 frames per second.
SAME_TIME_S = 0.008
# FaceForensics++'s Face2Face and NeuralTextures trim 11 and 8 px from both sides, to make the sizes multiples of 32
# (measured by shifting them over their originals). A clip whose size differs by more was scaled and cannot be compared
# pixel for pixel.
MAX_TRIM = 64
PLAIN_JPEG_QUALITY = 95


@dataclass(frozen=True)
class Cut:
    """One face of one frame.

    Attributes:
        frame: index among the clip's sampled frames; a fake's is its original's.
        time_s: seconds from the clip's first frame.
        track: index of the person.
        box: (4,) float32 x0, y0, x1, y1 in pixels of the frame.
        landmarks: (5, 2) float32 x, y; None where the box is interpolated.
        angle: degrees clockwise by which the head is rolled; the crop shows it upright.
        crop: (size, size, 3) uint8 RGB.
    """

    frame: int
    time_s: float
    track: int
    box: np.ndarray
    landmarks: np.ndarray | None
    angle: float
    crop: np.ndarray


@dataclass(frozen=True)
class CutClip:
    """The faces of one clip, and the height and width in pixels of its frames."""

    size: tuple[int, int]
    cuts: list[Cut]


def cut_clip(path: Path, detector: FaceDetector, settings: CutSettings) -> CutClip:
    """Find and cut the faces of a clip's persons as the kernel does.

    Raises:
        VideoError: it gives no frame.
    """
    frames = read_frames(path, settings.n_frames)
    tracks, faces = find_tracks([frame.pixels for frame in frames], detector)
    cuts = [
        Cut(
            int(index),
            frames[index].time_s,
            number,
            box,
            _landmarks(faces[index], box) if found else None,
            float(angle),
            crop_face(frames[index].pixels, box, settings.geometry, angle=float(angle)),
        )
        for number, track in enumerate(track for track in tracks if track.kind == "person")
        for index, box, found, angle in zip(track.frames, track.boxes, track.found, track.angles, strict=True)
    ]
    return CutClip(frames[0].pixels.shape[:2], cuts)


def cut_fake(path: Path, original: CutClip, settings: CutSettings) -> CutClip:
    """Cut a fake at the same times, with the same boxes and angles as its original.

    Args:
        path: of the fake.
        original: the original's crops; it shows at least one face.
        settings: the settings with which the original was cut.

    Raises:
        Misaligned: the frame sizes differ by more than `MAX_TRIM`, or no frame has the time of one of the original's.
        VideoError: no frame of the fake decodes.
    """
    times = {cut.time_s for cut in original.cuts}
    frames = read_frames_at(path, sorted(times))
    if not frames:
        raise VideoError("no frame of it decodes at its original's times")
    size = frames[0].pixels.shape[:2]
    trims = np.subtract(size, original.size) / 2
    if (np.abs(trims) > MAX_TRIM / 2).any():
        raise Misaligned("{1}x{0} pixels, its original has {3}x{2}".format(*size, *original.size))
    shift = trims[::-1].astype(np.float32)
    cuts = []
    for cut in original.cuts:
        frame = min(frames, key=lambda frame: abs(frame.time_s - cut.time_s))
        if abs(frame.time_s - cut.time_s) <= SAME_TIME_S:
            box = cut.box + np.tile(shift, 2)
            landmarks = None if cut.landmarks is None else cut.landmarks + shift
            crop = crop_face(frame.pixels, box, settings.geometry, angle=cut.angle)
            cuts.append(replace(cut, box=box, landmarks=landmarks, crop=crop))
    if not cuts:
        raise Misaligned("none of its frames is shown when one of its original's is")
    return CutClip(size, cuts)


def cut_family(
    detector: FaceDetector, clips: list[LabelledClip], out: Path, settings: CutSettings, done: frozenset[str]
) -> list[Report]:
    """Cut an original and its fakes, and write their crops.

    Args:
        detector: finds faces.
        clips: one family, with the original first if it exists.
        out: output folder; each clip gets a folder in it.
        settings: how to cut.
        done: names of the clips that are already finished.

    Returns:
        A report for each clip that was not finished. Failures are logged. A clip that failed, a fake whose original
        failed, and a clip whose file is absent are not marked as finished.
    """
    todo = [clip for clip in clips if clip.name not in done]
    wanted = not settings.plain_frames and any(clip.path.is_file() for clip in todo)
    reports, original, lead_digest = [], None, ""
    for clip in clips:
        leads = clip.label == "REAL" and wanted
        if clip not in todo and not leads:
            continue
        draft = out / DRAFTS / clip.name
        shutil.rmtree(draft, ignore_errors=True)
        images, report, cut = _cut(clip, original, detector, settings, draft)
        report = replace(
            report,
            **{"label": clip.label, "original": clip.original},
            **{"path": os.path.realpath(clip.path), "digest": digest_clip(clip.path)},
            original_digest=(lead_digest if original else "") if clip.original and wanted else None,
        )
        if leads and report.status == "error":  # its fakes, cut without it, would never be aligned with it
            reason = f"its original {clip.name} failed"
            return [report if other is clip else Report(other.name, "error", reason) for other in todo]
        if leads:
            original, lead_digest = cut, report.digest
        if clip in todo:
            reports.append(report)
            if report.status != "error" and clip.path.is_file():
                store(draft, report, images, settings)
    return reports


def _cut(
    clip: LabelledClip, original: CutClip | None, detector: FaceDetector, settings: CutSettings, draft: Path
) -> tuple[dict[str, np.ndarray], Report, CutClip | None]:
    """Cut one clip and catch every error that concerns only this clip.

    Returns:
        The crops by file name, the report, and the faces, which are None if there are none. Whole frames may be too
        many for the memory, so they are written to the draft at once.
    """
    try:
        if settings.plain_frames:
            return {}, _write_frames(clip, settings, draft), None
        cut = cut_fake(clip.path, original, settings) if original else cut_clip(clip.path, detector, settings)
        return *_describe(clip, cut, original, settings), cut if cut.cuts else None
    except Misaligned as error:
        return {}, Report(clip.name, "misaligned", str(error)), None
    except VideoError as error:
        return {}, Report(clip.name, "unreadable", str(error)), None
    except OSError:  # reading clips raises no OSError: the output cannot be written, and that of other clips neither
        raise
    except Exception as error:  # one odd clip must not end a run of days
        log.exception("%s: failed", clip.path)
        return {}, Report(clip.name, "error", f"{type(error).__name__}: {error}"), None


def cut_families(
    families: list[list[LabelledClip]],
    out: Path,
    settings: CutSettings,
    *,
    n_workers: int,
    device: str = "cpu",
    done: frozenset[str] = frozenset(),
) -> Iterator[list[Report]]:
    """Run `cut_family` for many families in several processes, and yield the reports as families are finished.

    Args:
        families: from `dfdc.data.clips.group_families`.
        out: see `cut_family`.
        settings: how to cut.
        n_workers, device: see `detect_in_parallel`.
        done: names of the clips that are already finished.

    Raises:
        BrokenProcessPool: a worker died.
        OSError: the output cannot be written.
    """
    calls = [(family, out, settings, done & {clip.name for clip in family}) for family in families]
    yield from detect_in_parallel(cut_family, calls, n_workers=n_workers, device=device)


def _landmarks(faces: Faces, box: np.ndarray) -> np.ndarray:
    return faces.landmarks[np.abs(faces.boxes - box).sum(1).argmin()]


def _describe(
    clip: LabelledClip, cut_clip: CutClip, original: CutClip | None, settings: CutSettings
) -> tuple[dict[str, np.ndarray], Report]:
    """The images of a clip by file name, and its report with their rows."""
    if not cut_clip.cuts:
        return {}, Report(clip.name, "no_face", f"no face in {settings.n_frames} frames")
    twins = {(cut.frame, cut.track): cut.crop for cut in original.cuts} if original else {}
    likeness = {
        (cut.frame, cut.track): compare_pictures(twins[cut.frame, cut.track], cut.crop)
        for cut in cut_clip.cuts
        if original
    }
    equal = _equal_tracks(likeness) if settings.skip_equal else set()
    images, rows = {}, []
    for cut in cut_clip.cuts:
        if cut.track in equal:
            continue
        name = f"{cut.frame:05d}-{cut.track}.{'png' if settings.jpeg_quality is None else 'jpg'}"
        images[name] = cut.crop
        differs = likeness.get((cut.frame, cut.track))
        row = CropRow(
            f"{IMAGES}/{clip.name}/{name}",
            clip.name,
            label=clip.label,
            original=clip.original,
            manipulation=clip.manipulation,
            split=clip.split,
            frame=cut.frame,
            time=round(cut.time_s, 4),
            track=cut.track,
            box=_numbers(cut.box),
            landmarks="" if cut.landmarks is None else _numbers(cut.landmarks),
            source_size=settings.geometry.square(cut.box)[2],
            difference="" if differs is None else round(differs.difference, 4),
            ssim="" if differs is None else round(differs.ssim, 5),
            dataset=clip.dataset,
            identity=clip.identity,
            source=clip.origin,
            format=format_of(clip.path),
            angle=round(cut.angle, 2),
        )
        rows.append(astuple(row))
    if not rows:
        return {}, Report(clip.name, "equal", "its faces are its original's: only its sound is fake, if that")
    return images, Report(clip.name, rows=tuple(rows))


def _equal_tracks(likeness: dict[tuple[int, int], PictureDifference]) -> set[int]:
    """The tracks whose face equals the original's.

    Args:
        likeness: (frame, track) -> how the crop differs from the original's crop.
    """
    tracks: dict[int, list[PictureDifference]] = {}
    for (_, track), difference in likeness.items():
        tracks.setdefault(track, []).append(difference)
    return {track for track, differences in tracks.items() if PictureDifference.mean(differences).equal}


def _write_frames(clip: LabelledClip, settings: CutSettings, draft: Path) -> Report:
    """Write a clip's whole frames one after another, up to the first damaged one."""
    n_frames, names = settings.n_frames, []
    try:
        for frame in stream_frames(clip.path) if n_frames is None else read_frames(clip.path, n_frames):
            names.append(f"{len(names):05d}.jpg")
            write_image(draft / names[-1], frame.pixels, PLAIN_JPEG_QUALITY)
    except VideoError:
        if not names:
            raise
    if not names:
        raise VideoError("none of its frames decodes")
    return Report(clip.name, rows=tuple((f"{IMAGES}/{clip.name}/{name}", clip.label) for name in names))


def _numbers(values: np.ndarray) -> str:
    return " ".join(str(value) for value in values.flat)
