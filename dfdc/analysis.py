"""What an analysis finds in one clip: the record from which the submission's row, the report and all tools are derived.

An `Analysis` is a plain value. It goes to JSON and back without loss, and to a table with one row per frame and face.
"""

from __future__ import annotations

import base64
import json
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from dfdc.crop import CropGeometry
from dfdc.errors import InputError
from dfdc.prediction import PRIOR, SCORED, STATUSES, Prediction
from dfdc.weights import sigmoid

if TYPE_CHECKING:
    import pandas as pd

# A thumbnail shows more than the models' crops, so that a person sees a person.
THUMBNAIL = CropGeometry(side_ratio=1.5, shift_ratio=0.0, size=160)
# The version of the JSON form; it changes when a field changes its meaning or goes.
SCHEMA = "dfdc.analysis/1"


@dataclass(frozen=True)
class Timings:
    """What an analysis cost.

    Attributes:
        total_s: wall seconds from the first to the last step.
        decode_s, detect_s, crop_s, score_s: core-seconds for reading frames, finding faces, cutting crops and running
            the models.
    """

    total_s: float = 0.0
    decode_s: float = 0.0
    detect_s: float = 0.0
    crop_s: float = 0.0
    score_s: float = 0.0


@dataclass(frozen=True)
class Model:
    """A model that answered: its architecture, the SHA-256 of its file (64 hex digits) and its training data."""

    name: str
    digest: str
    trained_on: str


@dataclass(frozen=True)
class Provenance:
    """What somebody else needs to reproduce an analysis.

    Attributes:
        version: of this package.
        created: date and time of the analysis, UTC.
        sha256, n_bytes: digest (64 hex digits) and size of the clip's file.
        device: "cpu" or "cuda".
        models: the face models that answered.
    """

    version: str
    created: str
    sha256: str
    n_bytes: int
    device: str
    models: tuple[Model, ...]


@dataclass(frozen=True, eq=False)
class FaceTrack:
    """One person's face over time.

    Attributes:
        frames: (T,) int64, indices into the analysis' `times_s`, rising.
        times_s: (T,) float64, seconds from the clip's first frame.
        boxes: (T, 4) float32, x0, y0, x1, y1 in pixels of the frame.
        found: (T,) bool, whether the face was found in that frame; elsewhere its box is interpolated.
        angles: (T,) float32 degrees clockwise by which the head is rolled, -180 to 180; 0 in ordinary clips.
        logits: (T,) float64, the ensemble's calibrated log-odds that the face is fake; above 0 means fake.
        detection_score: mean of the face detector's scores where the face was found, 0 to 1.
        thumbnails: frame's index -> JPEG of the face; empty unless they were asked for.
        heat: frame's index -> (h, w) float32, the log-odds that each part of the crop contributes by the first model
            (class activation map); for the frames that have a thumbnail.
        trust: the factor by which the logits were shrunk, at most 1: small or blurred faces tell little.
    """

    frames: np.ndarray
    times_s: np.ndarray
    boxes: np.ndarray
    found: np.ndarray
    angles: np.ndarray
    logits: np.ndarray
    detection_score: float
    thumbnails: dict[int, bytes] = field(default_factory=dict, repr=False)
    heat: dict[int, np.ndarray] = field(default_factory=dict, repr=False)
    trust: float = 1.0

    def __len__(self) -> int:
        return len(self.frames)

    @property
    def scores(self) -> np.ndarray:
        """Frame scores: (T,) float64, the probability that the face is fake by each frame alone, 0 to 1."""
        return sigmoid(self.logits)

    @property
    def probability(self) -> float:
        """The probability that this person's face is fake: the sigmoid of the mean of the frames' log-odds."""
        return float(sigmoid(np.mean(self.logits)))


@dataclass(frozen=True, eq=False)
class Analysis:
    """What is known of one clip.

    Attributes:
        filename: the clip's name, as in the submission.
        probability: P(fake), in (0, 1); 0.5 where nothing is known.
        status: "ok"; "partial" where only a part of the clip's time could be looked at; "low_quality" where all faces
            are too small or too blurred to judge; or, without a score, "no_face", "unreadable", "timeout" or "error".
        reason: why the status is not "ok", or why the clip's faces are hard to judge; else empty.
        times_s: (F,) float64, the times of the frames that were looked at, in seconds from the clip's first frame.
        duration_s: of the clip in seconds; None where it is not known.
        frame_size: width and height of the frames in pixels; None where no frame was read.
        n_wanted: how many frames were asked for.
        n_models: how many models of the ensemble were asked.
        weights: the models that answered, by the first 12 digits of their files' SHA-256.
        n_persons: how many persons were found; more than there are tracks where some were left out.
        n_faces: in how many frames a face was found.
        n_pairs: for how many frames the change to the next frame was looked at; 0 unless motion was asked for.
        tracks: the persons, the longest track first.
        notes: sentences on what else is worth knowing, such as pictures in the picture.
        picture: P(fake) by what is seen alone, where a voice was scored as well; else None.
        voice: P(synthetic voice), where a voice was scored; else None.
        cut_s: wall seconds after which reading ended early; 0 where the clip was read as planned.
        timings: what the analysis cost.
        scenes: frame's index -> JPEG of the whole frame; empty unless thumbnails were asked for.
        provenance: what reproduces the analysis; None unless thumbnails were asked for.
    """

    filename: str
    probability: float = PRIOR
    status: str = "ok"
    reason: str = ""
    times_s: np.ndarray = field(default_factory=lambda: np.zeros(0))
    duration_s: float | None = None
    frame_size: tuple[int, int] | None = None
    n_wanted: int = 0
    n_models: int = 0
    weights: tuple[str, ...] = ()
    n_persons: int = 0
    n_faces: int = 0
    n_pairs: int = 0
    tracks: tuple[FaceTrack, ...] = ()
    notes: tuple[str, ...] = ()
    picture: float | None = None
    voice: float | None = None
    cut_s: float = 0.0
    timings: Timings = field(default_factory=Timings)
    scenes: dict[int, bytes] = field(default_factory=dict, repr=False)
    provenance: Provenance | None = None

    def __post_init__(self) -> None:
        if self.status not in STATUSES or not 0 < self.probability < 1:
            raise ValueError(
                f"status {self.status!r}, probability {self.probability}: allowed are {STATUSES} and 0 < p < 1"
            )

    @property
    def scored(self) -> bool:
        """Whether the probability says more than the prior."""
        return self.status in SCORED or self.voice is not None

    @property
    def prediction(self) -> Prediction:
        """The clip's row in the submission and in predictions.csv."""
        return Prediction(
            filename=self.filename,
            label=self.probability,
            status=self.status,
            picture=self.picture,
            voice=self.voice,
            reason=self.reason,
            wanted=self.n_wanted,
            nets=self.n_models,
            frames=len(self.times_s),
            faces=self.n_faces,
            tracks=len(self.tracks),
            persons=self.n_persons,
            from_s=round(float(self.times_s[0]), 3) if len(self.times_s) else 0.0,
            to_s=round(float(self.times_s[-1]), 3) if len(self.times_s) else 0.0,
            duration_s=round(self.duration_s or 0.0, 3),
            notes="; ".join(self.notes),
            pairs=self.n_pairs,
            cut_s=self.cut_s,
            seconds=self.timings.total_s,
            decode_s=self.timings.decode_s,
            detect_s=self.timings.detect_s,
            crop_s=self.timings.crop_s,
            score_s=self.timings.score_s,
        )

    def to_dataframe(self) -> pd.DataFrame:
        """One row per frame and face (needs pandas).

        Returns:
            Columns filename, person (from 0), frame, time_s, x0, y0, x1, y1 (pixels), found, score (0 to 1).
        """
        import pandas as pd

        parts = [
            pd.DataFrame(
                {
                    "filename": self.filename,
                    "person": person,
                    "frame": track.frames,
                    "time_s": track.times_s,
                    **{side: track.boxes[:, i] for i, side in enumerate(("x0", "y0", "x1", "y1"))},
                    "found": track.found,
                    "score": track.scores,
                }
            )
            for person, track in enumerate(self.tracks)
        ]
        columns = ["filename", "person", "frame", "time_s", "x0", "y0", "x1", "y1", "found", "score"]
        return pd.concat(parts, ignore_index=True) if parts else pd.DataFrame(columns=columns)

    def to_json(self) -> str:
        """The analysis as JSON, see docs/analysis_schema.md; `from_json` is its inverse."""
        record = {"schema": SCHEMA, **{name: _to_plain(value) for name, value in vars(self).items()}}
        record["timings"] = asdict(self.timings)
        record["provenance"] = self.provenance and asdict(self.provenance)
        record["tracks"] = [{name: _to_plain(value) for name, value in vars(track).items()} for track in self.tracks]
        return json.dumps(record, allow_nan=False)

    @classmethod
    def from_json(cls, text: str) -> Analysis:
        """An analysis from the text of `to_json`.

        Raises:
            InputError: the text is no analysis, or one of another schema.
        """
        try:
            record = json.loads(text)
            if record.pop("schema") != SCHEMA:
                raise ValueError(f"allowed is the schema {SCHEMA!r}")
            tracks = tuple(
                FaceTrack(
                    frames=np.array(track.pop("frames"), np.int64),
                    times_s=np.array(track.pop("times_s"), np.float64),
                    boxes=np.array(track.pop("boxes"), np.float32).reshape(-1, 4),
                    found=np.array(track.pop("found"), bool),
                    angles=np.array(track.pop("angles"), np.float32),
                    logits=np.array(track.pop("logits"), np.float64),
                    thumbnails=_to_pictures(track.pop("thumbnails")),
                    heat={int(key): np.array(value, np.float32) for key, value in track.pop("heat").items()},
                    **track,
                )
                for track in record.pop("tracks")
            )
            size, origin = record.pop("frame_size"), record.pop("provenance")
            if origin is not None:
                origin = Provenance(**{**origin, "models": tuple(Model(**model) for model in origin["models"])})
            return cls(
                times_s=np.array(record.pop("times_s"), np.float64),
                frame_size=None if size is None else (int(size[0]), int(size[1])),
                tracks=tracks,
                weights=tuple(record.pop("weights")),
                notes=tuple(record.pop("notes")),
                timings=Timings(**record.pop("timings")),
                scenes=_to_pictures(record.pop("scenes")),
                provenance=origin,
                **record,
            )
        except (ValueError, KeyError, TypeError, AttributeError, IndexError) as error:
            raise InputError(f"not an analysis in JSON ({error!r}); `dfdc score --analyses` writes them") from error


def _to_plain(value: Any) -> Any:
    """A value as JSON has it: arrays as lists, pictures as base64."""
    if isinstance(value, np.ndarray):
        return value.tolist()
    if isinstance(value, dict):
        return {
            str(key): item.astype(float).round(4).tolist()
            if isinstance(item, np.ndarray)
            else base64.b64encode(item).decode()
            for key, item in value.items()
        }
    return value


def _to_pictures(values: dict[str, str]) -> dict[int, bytes]:
    return {int(key): base64.b64decode(value) for key, value in values.items()}
