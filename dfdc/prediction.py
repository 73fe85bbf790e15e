"""What is known of one clip: the record that every later station reads."""

from __future__ import annotations

from dataclasses import dataclass

# P(fake) of a clip that nothing is known of. The competition's test sets hold as many fakes as reals, unlike its
# training set (83 % fakes); 0.5 costs 0.693 whatever the truth, a wrong guess at 0.83 costs 1.77.
PRIOR = 0.5
# The first three carry a score: as planned; from a part of the clip only; of faces that are too poor to judge.
SCORED = ("ok", "partial", "low_quality")
STATUSES = (*SCORED, "no_face", "unreadable", "timeout", "error")


@dataclass(frozen=True)
class Prediction:
    """What is known of one clip.

    Attributes:
        filename: its row's name.
        label: P(fake), in (0, 1).
        status: one of `STATUSES`; all but `SCORED` carry the prior, but for what the voice adds to it.
        picture: P(fake) by what is seen alone, where a voice was heard, too; None elsewhere.
        voice: P(made by a machine) of the voice; None where none was heard or nothing listens.
        reason: why it is not "ok"; empty if it is.
        wanted: how many frames were asked for; 0 if the clip was not looked at.
        nets: how many nets that see faces were asked; 0 if the clip was not looked at.
        frames: how many frames were read.
        faces: in how many of them a face was found.
        tracks: how many persons were scored.
        persons: how many persons were found.
        pairs: in how many frames the change to the next one was looked for; 0 if nothing looks for it.
        from_s, to_s: times of the first and the last frame that was looked at, in seconds from the clip's first frame.
        duration_s: of the clip; 0 where it is not known.
        notes: what else is worth knowing, such as pictures in the picture; sentences joined by "; ".
        cut_s: wall seconds after which reading was ended, with fewer frames than wanted; 0 if it was not.
        seconds: wall time of one worker.
        decode_s, detect_s, crop_s, score_s: core-seconds spent on reading frames, on finding faces, on cutting these,
            and on what nets say of them and of the voice.
    """

    filename: str
    label: float = PRIOR
    status: str = "ok"
    picture: float | None = None
    voice: float | None = None
    reason: str = ""
    wanted: int = 0
    nets: int = 0
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
        """Core-seconds in all."""
        return self.decode_s + self.detect_s + self.crop_s + self.score_s

    @property
    def scored(self) -> bool:
        """Whether the label says more than the prior."""
        return self.status in SCORED or self.voice is not None

    def __post_init__(self) -> None:
        if self.status not in STATUSES or not 0 < self.label < 1:
            raise ValueError(f"status {self.status!r}, label {self.label}: allowed are {STATUSES} and 0 < label < 1")
