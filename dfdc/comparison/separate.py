"""A fake and its original -> whether the picture, the sound or both were changed."""

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

# Faces are compared with some of what surrounds them, for the seam of a swap lies outside the box.
GEOMETRY = CropGeometry(side_ratio=1.2, shift_ratio=0.0, size=SIDE)
# Changed is a sound of which more than this share is unlike its original. Of 9 clips' sounds through AAC, MP3 and Opus
# down to 10 kb/s the medians are .86 up, of 8 of them through Griffin-Lim or at another pitch .51 down. Noise 15 dB
# below the speech makes one of the 9, with quiet parts, look changed.
SOUND_LIKENESS, SOUND_SHARE = 0.6, 0.12
NO_FACE = "no face in the original: whole frames were compared"


@dataclass(frozen=True)
class Change:
    """What was changed in one fake.

    Attributes:
        picture_changed: None where it cannot be told.
        sound_changed: None where it cannot be told, because one of the clips has no sound or nothing to hear.
        offset_s: see `Alignment`; None where the pictures cannot be aligned.
        contrast: by how many times a face's blocks differ more than its detail; of the person who differs most.
        block_difference: levels 0..255 by which they differ.
        difference, ssim: of that person's crops, as in the table of tools/make_crops.py.
        sound_lag_s: how much later the fake's sound is.
        sound_likeness: median correlation of the waveforms, 0 to 1.
        sound_share: share of what is heard whose correlation is below `SOUND_LIKENESS`.
        note: why something is None, or what was done instead.
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
    """Tell what of a clip was changed.

    Args:
        original, fake: files with pictures, with sound or without.
        detector: finds faces.
        n_frames: compared, spread evenly over the time that both show.
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
    """Compare the faces of aligned clips, each person for herself; whole frames where there is no face.

    Returns:
        At least one difference, and a note where something was done instead.

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
    """Frames of both clips that belong together, spread evenly over what both show.

    Raises:
        VideoError: fewer decode than before.
    """
    n_pairs = len(alignment)
    chosen = np.unique([n_pairs * (2 * i + 1) // (2 * n_frames) for i in range(n_frames)])
    sides = tuple(
        read_frames_at(path, alignment.times[chosen, side].tolist()) for side, path in enumerate((original, fake))
    )
    if not len(sides[0]) == len(sides[1]) == len(chosen):
        raise VideoError("its frames do not decode the same way twice")
    return sides


def _mean_difference(pairs: list[tuple[np.ndarray, np.ndarray]]) -> PictureDifference:
    return PictureDifference.mean(compare_pictures(first, second) for first, second in pairs)


def _compare_sound(original: Path, fake: Path) -> tuple[dict[str, object], str]:
    """The fields of `Change` about sound, and a note where they are empty."""
    try:
        sounds = [read_sound(original), read_sound(fake)]
    except VideoError as error:
        return {}, f"sound: {error}"
    absent = [name for name, sound in zip(("original", "fake"), sounds, strict=True) if sound is None]
    if absent:
        return {}, f"no sound in the {' and the '.join(absent)}"
    silent = [is_silent(sound) for sound in sounds]
    if any(silent):
        return {}, "silent" if all(silent) else "one of them is silent"
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
