"""A fake and its original -> whether its picture, its sound or both were changed."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np

from dfdc.audio import read_sound
from dfdc.comparison.sound import SoundComparison, compare_sounds, is_silent
from dfdc.crop import CropGeometry, crop_face
from dfdc.data.align import Alignment, align_clips
from dfdc.data.pictures import SIDE, PictureDifference, compare_pictures
from dfdc.detect import FaceDetector
from dfdc.errors import VideoError
from dfdc.tracks import find_tracks
from dfdc.video import read_frames_at

# Faces are compared with some of their surroundings, since the seam of a face swap lies outside the box.
GEOMETRY = CropGeometry(side_ratio=1.2, shift_ratio=0.0, size=SIDE)
# A sound counts as changed if more than this share of its windows is less like its original than this likeness. The
# median likeness of 9 clips' sounds is at least .86 after AAC, MP3 and Opus down to 10 kb/s, and at most .51 for 8 of
# them after Griffin-Lim or a change of pitch. Noise 15 dB below the speech makes one of the 9, which has quiet parts,
# look changed.
SOUND_LIKENESS, SOUND_SHARE = 0.6, 0.12
NO_FACE = "no face in the original: whole frames were compared"


@dataclass(frozen=True)
class Change:
    """What was changed in a fake.

    Attributes:
        picture_changed: None if it cannot be determined.
        sound_changed: None if it cannot be determined, because one of the clips has no sound or is silent.
        offset_s: see `Alignment`; None if the pictures cannot be aligned.
        contrast: the ratio of a face's block difference to its detail, for the person who differs most.
        block_difference: levels 0..255 by which they differ.
        difference, ssim: of that person's crops, as in the table of tools/make_crops.py.
        sound_lag_s: how much later the fake's sound is.
        sound_likeness: median correlation of the waveforms, 0 to 1.
        sound_share: share of the windows with sound whose correlation is below `SOUND_LIKENESS`.
        note: why something is None, or what was compared instead.
    """

    picture_changed: bool | None = None
    sound_changed: bool | None = None
    offset_s: float | None = None
    contrast: float | None = None
    block_difference: float | None = None
    difference: float | None = None
    ssim: float | None = None
    sound_lag_s: float | None = None
    sound_likeness: float | None = None
    sound_share: float | None = None
    note: str = ""


def separate(original: Path, fake: Path, detector: FaceDetector, *, n_frames: int = 16) -> Change:
    """Determine what was changed in a fake.

    Args:
        original, fake: video files, with or without sound.
        detector: finds faces.
        n_frames: the number of frames to compare, evenly spread over the time that both clips show.
    """
    sound, sound_note = _compare_sound(original, fake)
    try:
        alignment = align_clips(original, fake)
        people, note = measure_pictures(original, fake, alignment, detector, n_frames=n_frames)
    except VideoError as error:
        return Change(**sound, note="; ".join(filter(None, [f"picture: {error}", sound_note])))
    worst = max(people, key=lambda person: (person.changed, person.contrast))
    return Change(
        picture_changed=worst.changed,
        offset_s=alignment.offset_s,
        contrast=worst.contrast,
        block_difference=worst.block_difference,
        difference=worst.difference,
        ssim=worst.ssim,
        **sound,
        note="; ".join(filter(None, [note, sound_note])),
    )


def measure_pictures(
    original: Path, fake: Path, alignment: Alignment, detector: FaceDetector, *, n_frames: int
) -> tuple[list[PictureDifference], str]:
    """Compare the faces of aligned clips, person by person, or whole frames if there is no face.

    Returns:
        At least one difference, and a note if whole frames were compared.

    Raises:
        VideoError: frames no longer decode.
    """
    frames = [
        [alignment.fit.apply(frame.pixels) for frame in side]
        for side in read_pairs(original, fake, alignment, n_frames)
    ]
    tracks, _ = find_tracks(frames[0], detector)
    crops = [
        [
            tuple(crop_face(side[index], box, GEOMETRY) for side in frames)
            for index, box in zip(track.frames, track.boxes, strict=True)
        ]
        for track in tracks
    ]
    if crops:
        return [_mean_difference(pairs) for pairs in crops], ""
    side = (GEOMETRY.size, GEOMETRY.size)
    whole = [
        tuple(cv2.resize(f, side, interpolation=cv2.INTER_AREA) for f in pair) for pair in zip(*frames, strict=True)
    ]
    return [_mean_difference(whole)], NO_FACE


def read_pairs(original: Path, fake: Path, alignment: Alignment, n_frames: int) -> tuple[list, list]:
    """Matching frames of both clips, evenly spread over the time that both show.

    Raises:
        VideoError: fewer frames decode than when the clips were aligned.
    """
    n_pairs = len(alignment)
    chosen = np.unique([n_pairs * (2 * i + 1) // (2 * n_frames) for i in range(n_frames)])
    sides = tuple(
        read_frames_at(path, alignment.times[chosen, side].tolist()) for side, path in enumerate((original, fake))
    )
    if not len(sides[0]) == len(sides[1]) == len(chosen):
        raise VideoError("its frames decode differently each time")
    return sides


def _mean_difference(pairs: list[tuple[np.ndarray, np.ndarray]]) -> PictureDifference:
    return PictureDifference.mean(compare_pictures(first, second) for first, second in pairs)


def _compare_sound(original: Path, fake: Path) -> tuple[dict[str, object], str]:
    """The fields of `Change` about sound, and a note if they are empty."""
    try:
        sounds = [read_sound(original), read_sound(fake)]
    except VideoError as error:
        return {}, f"sound: {error}"
    absent = [name for name, sound in zip(("original", "fake"), sounds, strict=True) if sound is None]
    if absent:
        return {}, f"no sound in the {' and the '.join(absent)}"
    silent = [is_silent(sound) for sound in sounds]
    if any(silent):
        return {}, "both sounds are silent" if all(silent) else "one of the sounds is silent"
    return judge_sound(compare_sounds(*sounds)), ""


def judge_sound(comparison: SoundComparison) -> dict[str, object]:
    """The fields of `Change` about sound."""
    heard = comparison.heard
    if not len(heard):
        return {}
    share = float(np.mean(heard < SOUND_LIKENESS))
    return {
        "sound_changed": share > SOUND_SHARE,
        "sound_lag_s": comparison.lag_s,
        "sound_likeness": float(np.median(heard)),
        "sound_share": share,
    }
