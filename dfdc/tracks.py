"""Face boxes -> face tracks: one per person, linked over time by overlap, confirmed, with the roll of the head."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np

from dfdc.assignment import assign
from dfdc.boxes import iou
from dfdc.confirm import SecondLook, look_again
from dfdc.detect import FaceDetector
from dfdc.faces import Faces, roll_angles
from dfdc.pictures import find_pictures, measure_track
from dfdc.quality import measure_trust

# Sampled frames are about half a second apart; the box of a head that turns or nods keeps at least this overlap.
MIN_OVERLAP = 0.15
# A person who is missing for more than this many frames in a row starts a new track.
MAX_GAP = 4
# Beside longer tracks, a track is taken for a false detection if it was found only once, or if its mean detector score
# is below MIN_SCORE: on ten clips, patterned cloth scored .89 and persons .97 or more. A track that was found in less
# than MIN_SHARE of the frames of the longest track always gets a second look.
MIN_SHARE = 0.25
MIN_SCORE = 0.92
# A track with at least this many hits and this mean score is a person. In 68 clips without people, no track has more
# than .94.
CERTAIN_HITS, CERTAIN_SCORE = 3, 0.98
# Every other track gets a second look. The 30 tracks of the 28 labelled clips scored .90 or more there, and their
# landmarks differed by .019 or less from those of the mirror image. The 27 false tracks in 16 of the 68 clips without
# people never passed both of these limits and the next one. In 19 further clips with people, one track was lost: a
# distant person seen in 2 of 16 frames.
MIN_SECOND_SCORE, MAX_MIRROR_ERROR = 0.8, 0.04
# A face that was found only once, or in few frames, needs a higher score, because little else confirms it.
MIN_LONE_SCORE = 0.95
# Heads rolled by less than UPRIGHT_DEGREES are cropped without rotation, because the models were trained on such crops,
# rolled by up to 20 degrees. From ROLLED_DEGREES on heads are turned upright fully, and in between partly, so that a
# crop never jumps from frame to frame. Scores are nearest to the upright ones with these limits (docs/reliability.md).
UPRIGHT_DEGREES, ROLLED_DEGREES = 12.0, 20.0
# The roll angle is a median over this many frames, because landmarks jitter more than heads move.
SMOOTHED_FRAMES = 5
# A second look at rolled heads corrects their angle, which landmarks underestimate; a larger correction is not a roll.
MAX_CORRECTION = 30.0
# The crops of a clip are shared among all persons: CROPS_PER_FRAME for each sampled frame, at least MIN_CROPS each.
CROPS_PER_FRAME, MIN_CROPS = 8, 2

Kind = Literal["person", "picture", "left out"]


@dataclass(frozen=True)
class Track:
    """One person over time.

    Attributes:
        frames: (T,) int64 indices of frames, ascending; if there are many persons, not every frame that shows this one.
        boxes: (T, 4) float32 x0, y0, x1, y1 in pixels; interpolated where the face was not found.
        found: (T,) bool, whether the box was found rather than interpolated.
        score: mean detector score of the found boxes, 0 to 1.
        angles: (T,) float32 roll of the head in degrees clockwise, -180 to 180. Angles close to a multiple of 90 are
            set to it, so they are 0 in ordinary clips.
        kind: "person" for a face that is scored; "picture" for a picture beside a person (a poster, a thumbnail, a
            blurred copy); "left out" for a person beyond the budget. The last two are not scored.
        reason: why the track is not scored; empty if it is.
        trust: factor for its logits, above 0, at most 1; small or blurred faces are trusted less.
    """

    frames: np.ndarray
    boxes: np.ndarray
    found: np.ndarray
    score: float
    angles: np.ndarray
    kind: Kind = "person"
    reason: str = ""
    trust: float = 1.0

    def __len__(self) -> int:
        return len(self.frames)

    @property
    def n_hits(self) -> int:
        """Number of frames in which the face was found."""
        return int(self.found.sum())

    def at(self, places: np.ndarray) -> Track:
        """The track at some of its T places, given by index or mask."""
        parts = {name: getattr(self, name)[places] for name in ("frames", "boxes", "found", "angles")}
        return replace(self, **parts)


def find_tracks(frames: Sequence[np.ndarray], detector: FaceDetector) -> tuple[list[Track], dict[int, Faces]]:
    """Find the persons in a clip.

    Args:
        frames: (H, W, 3) uint8 RGB each, in order of time; there may be none.
        detector: the face detector.

    Returns:
        The tracks, persons first and the longest of them first, and the faces of every frame that was searched, in
        order of time. Both refer to frames by their index in `frames`.
    """
    if not frames:
        return [], {}
    searched, faces = detector.search(frames)
    places = np.array(searched)
    linked = [replace(track, frames=places[track.frames]) for track in link_tracks(faces)]
    longest = max((track.n_hits for track in linked), default=0)
    looked_at = [
        confirm_track(track, frames, detector, is_brief=track.n_hits < MIN_SHARE * longest) for track in linked
    ]
    confirmed = [
        replace(track, trust=measure_trust(frames, track.frames, track.boxes, track.angles))
        for track in looked_at
        if track
    ]
    if len(confirmed) > 1:
        reasons = find_pictures([measure_track(frames, track.frames, track.boxes, track.angles) for track in confirmed])
        confirmed = [
            replace(track, kind="picture", reason=reason) if reason else track
            for track, reason in zip(confirmed, reasons, strict=True)
        ]
    return share_crops(confirmed, CROPS_PER_FRAME * len(frames)), dict(zip(searched, faces, strict=True))


def link_tracks(faces: list[Faces]) -> list[Track]:
    """Link the faces of successive frames to tracks.

    Each frame's boxes are matched to the last boxes of the tracks so that the sum of the overlaps is largest. Tracks
    with a single face and doubtful ones are dropped if there are better ones, and kept if there are not.

    Args:
        faces: one entry per frame, in order of time.

    Returns:
        The tracks, sorted by number of found boxes, largest first.
    """
    linked: list[list[_Hit]] = []
    for index, found in enumerate(faces):
        rolls = roll_angles(found.landmarks)
        hits: list[_Hit | None] = [
            _Hit(index, box, float(score), float(roll))
            for box, score, roll in zip(found.boxes, found.scores, rolls, strict=True)
        ]
        recent = [track for track in linked if index - track[-1].frame <= MAX_GAP + 1]
        if recent and hits:
            shares = iou(np.stack([track[-1].box for track in recent]), found.boxes)
            shares[shares < MIN_OVERLAP] = 0
            for row, column in assign(shares):
                if shares[row, column] > 0:
                    recent[row].append(hits[column])
                    hits[column] = None
        linked += [[hit] for hit in hits if hit]
    longest = max((len(track) for track in linked), default=0)
    least = min(longest, 2)
    tracks = [_fill(track) for track in sorted(linked, key=len, reverse=True) if len(track) >= least]
    return [track for track in tracks if track.score >= MIN_SCORE] or tracks


def share_crops(tracks: list[Track], budget: int) -> list[Track]:
    """Share the budget of face crops among the persons.

    Every person gets the same number of crops, or all of their frames if they have fewer. If the budget does not allow
    `MIN_CROPS` for each person, the last tracks become "left out", with a reason.

    Args:
        tracks: the most important ones first.
        budget: total number of face crops, at least `MIN_CROPS`.

    Returns:
        The same number of tracks: persons in the given order, thinned evenly over time if necessary, then the others.
    """
    persons = [track for track in tracks if track.kind == "person"]
    kept = persons[: max(budget // MIN_CROPS, 1)]
    left_out = [
        replace(track, kind="left out", reason=f"only {len(kept)} of {len(persons)} persons are scored")
        for track in persons[len(kept) :]
    ]
    most = max((len(track) for track in kept), default=0)
    while most > MIN_CROPS and sum(min(len(track), most) for track in kept) > budget:
        most -= 1
    thinned = [
        track.at(np.linspace(0, len(track) - 1, most).round().astype(int)) if len(track) > most else track
        for track in kept
    ]
    return [*thinned, *(track for track in tracks if track.kind != "person"), *left_out]


@dataclass(frozen=True)
class _Hit:
    """A detected box (4,) in a frame, and the roll of its landmarks in degrees."""

    frame: int
    box: np.ndarray
    score: float
    roll: float


def _fill(hits: list[_Hit]) -> Track:
    """A track without gaps: boxes and angles are interpolated linearly in time between the hits."""
    seen = np.array([hit.frame for hit in hits])
    boxes = np.stack([hit.box for hit in hits])
    rolls = np.unwrap([hit.roll for hit in hits], period=360)
    half = SMOOTHED_FRAMES // 2
    rolls = [np.median(rolls[max(place - half, 0) : place + half + 1]) for place in range(len(rolls))]
    frames = np.arange(seen[0], seen[-1] + 1)
    filled = np.stack([np.interp(frames, seen, boxes[:, side]) for side in range(4)], 1).astype(np.float32)
    score = float(np.mean([hit.score for hit in hits]))
    return Track(frames, filled, np.isin(frames, seen), score, settle_angles(np.interp(frames, seen, rolls)))


def settle_angles(angles: np.ndarray) -> np.ndarray:
    """The angles by which heads are turned upright, from their measured rolls; rolls near a multiple of 90 snap to it.

    Args:
        angles: (T,) measured rolls, degrees clockwise.

    Returns:
        (T,) float32 degrees clockwise, above -180 and up to 180.
    """
    quarters = np.round(np.asarray(angles) / 90) * 90
    beyond = angles - quarters
    sizes = np.interp(np.abs(beyond), [0, UPRIGHT_DEGREES, ROLLED_DEGREES, 45], [0, 0, ROLLED_DEGREES, 45])
    return (180 - (180 - quarters - np.sign(beyond) * sizes) % 360).astype(np.float32)


def confirm_track(
    track: Track, frames: Sequence[np.ndarray], detector: FaceDetector, *, is_brief: bool = False
) -> Track | None:
    """Take a second look at a track that is doubtful or rolled.

    Args:
        track: as `link_tracks` makes it; it refers to frames by index.
        frames: (H, W, 3) uint8 RGB each.
        detector: the face detector.
        is_brief: whether it is much shorter than another track, and therefore doubtful.

    Returns:
        The track with its angles corrected; None if it is not a face.
    """
    # An angle of a few degrees is accurate within one or two and does not need a second look.
    rolled = (np.abs(track.angles - np.round(track.angles / 90) * 90) > UPRIGHT_DEGREES) & track.found
    certain = track.n_hits >= CERTAIN_HITS and track.score >= CERTAIN_SCORE and not is_brief
    if certain and not rolled.any():
        return track
    places = np.flatnonzero(rolled if rolled.any() else track.found)
    look = _look_again(track, places, frames, detector)
    if rolled.any() and abs(look.roll) <= MAX_CORRECTION:
        angles = np.where(track.angles % 90 != 0, settle_angles(track.angles + look.roll), track.angles)
        track = replace(track, angles=angles.astype(np.float32))
        look = look if certain else _look_again(track, places, frames, detector)
    return track if certain or _is_face(look, is_brief=is_brief or track.n_hits == 1) else None


def _look_again(track: Track, places: np.ndarray, frames: Sequence[np.ndarray], detector: FaceDetector) -> SecondLook:
    return look_again(detector, [frames[i] for i in track.frames[places]], track.boxes[places], track.angles[places])


def _is_face(look: SecondLook, *, is_brief: bool) -> bool:
    least = MIN_LONE_SCORE if is_brief else MIN_SECOND_SCORE
    return look.score >= least and look.mirror_error <= MAX_MIRROR_ERROR
