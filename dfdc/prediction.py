"""The result for one clip as a row of predictions.csv."""

from __future__ import annotations

from dataclasses import dataclass

# P(fake) of a clip about which nothing is known. The competition's test sets contain as many fakes as reals, unlike its
# training set (83 % fakes). 0.5 costs a log loss of 0.693 whatever the truth is; a wrong guess at 0.83 costs 1.77.
PRIOR = 0.5
# Frames to look at per clip if nobody asks for another number. On 101 clips of FaceForensics++, 32 frames score no
# better (AUC .913, log loss .388; 16 frames .915, .391) and cost half as much again.
DEFAULT_FRAMES = 16
MAX_FRAMES = 256
# Statuses with a score: as planned; from only a part of the clip; from faces too small or too blurred to judge.
SCORED = ("ok", "partial", "low_quality")
STATUSES = (*SCORED, "no_face", "unreadable", "timeout", "error")


@dataclass(frozen=True)
class Prediction:
    """The result for one clip.

    Attributes:
        filename: the clip's name in the submission.
        label: P(fake), in (0, 1).
        status: one of `STATUSES`; for those that are not in `SCORED`, the label is the prior, unless a voice raises it.
        picture: P(fake) from the picture alone, if a voice was scored as well; None otherwise.
        voice: P(synthetic voice); None if no voice was scored.
        reason: why the status is not "ok"; empty if it is.
        wanted: number of requested frames; 0 if the clip was not processed.
        n_models: number of face models that were used; 0 if the clip was not processed.
        frames: number of frames that were read.
        faces: number of frames in which a face was found.
        tracks: number of persons that were scored.
        persons: number of persons that were found.
        pairs: number of frames whose change to the next frame was scored; 0 without a motion model.
        from_s, to_s: times of the first and the last frame that were read, in seconds from the clip's first frame.
        duration_s: duration of the clip in seconds; 0 if it is not known.
        notes: other remarks, for example on pictures in the picture; sentences joined by "; ".
        cut_s: wall seconds after which the deadline ended reading with fewer frames than wanted; 0 if it did not.
        seconds: wall time in one worker.
        decode_s, detect_s, crop_s, score_s: core-seconds for reading frames, detecting faces, cutting crops, and
            running the models on faces and voice.
    """

    filename: str
    label: float = PRIOR
    status: str = "ok"
    picture: float | None = None
    voice: float | None = None
    reason: str = ""
    wanted: int = 0
    n_models: int = 0
    frames: int = 0
    faces: int = 0
    tracks: int = 0
    persons: int = 0
    pairs: int = 0
    from_s: float = 0.0
    to_s: float = 0.0
    duration_s: float = 0.0
    notes: str = ""
    cut_s: float = 0.0
    seconds: float = 0.0
    decode_s: float = 0.0
    detect_s: float = 0.0
    crop_s: float = 0.0
    score_s: float = 0.0

    @property
    def core_s(self) -> float:
        """Total core-seconds."""
        return self.decode_s + self.detect_s + self.crop_s + self.score_s

    @property
    def scored(self) -> bool:
        """Whether the label is more than the prior."""
        return self.status in SCORED or self.voice is not None

    def __post_init__(self) -> None:
        if self.status not in STATUSES or not 0 < self.label < 1:
            raise ValueError(f"status {self.status!r}, label {self.label}: allowed are {STATUSES} and 0 < label < 1")
