"""The analysis of one clip: the record behind the submission's row, the report and all tools.

An `Analysis` is a plain value. It converts to JSON and back without loss, and to a table with one row per frame and
face.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from dfdc.aggregate import track_logit
from dfdc.crop import CropGeometry
from dfdc.errors import InputError
from dfdc.files import Identity
from dfdc.kinds import jpeg_size
from dfdc.prediction import PRIOR, SCORED, STATUSES, Prediction
from dfdc.weights import sigmoid

if TYPE_CHECKING:
    import pandas as pd

# A thumbnail shows more than the models' crops, so that a reader can recognise the person.
THUMBNAIL = CropGeometry(side_ratio=1.5, shift_ratio=0.0, size=160)
# The version of the JSON form; it changes if a field is removed or changes its meaning.
SCHEMA = "dfdc.analysis/1"
# So many pictures of a person, and of whole frames, are kept at most, and so large (see `dfdc.illustrate`). Heat maps
# have a value for each 32 pixels of a model's input, which has up to 1024.
MAX_THUMBNAILS, MAX_SCENES, MAX_PICTURE_SIDE, MAX_HEAT_SIDE = 12, 3, 640, 1024 // 32
MAX_PICTURE_BYTES = 3 * MAX_PICTURE_SIDE**2
# The columns of the table with one row per frame and face.
FRAME_COLUMNS = ("filename", "person", "frame", "time_s", "x0", "y0", "x1", "y1", "found", "score")


@dataclass(frozen=True)
class Timings:
    """The time that an analysis took.

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
    """A model that was used: its architecture, the SHA-256 of its file (64 hex digits) and its training data."""

    name: str
    digest: str
    trained_on: str


@dataclass(frozen=True)
class Provenance:
    """The information that is needed to reproduce an analysis.

    Attributes:
        version: of this package.
        created: date and time of the analysis, UTC.
        sha256, n_bytes: digest (64 hex digits) and size of the clip's file.
        device: "cpu" or "cuda".
        models: the face models that were used.
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
        frames: (T,) int64, indices into the analysis' `times_s`, ascending.
        times_s: (T,) float64, seconds from the clip's first frame.
        boxes: (T, 4) float32, x0, y0, x1, y1 in pixels of the frame.
        found: (T,) bool, whether the face was found in that frame; elsewhere its box is interpolated.
        angles: (T,) float32, roll of the head in degrees clockwise, -180 to 180; 0 in ordinary clips.
        logits: (T,) float64, the ensemble's calibrated log-odds that the face is fake; above 0 means fake.
        detection_score: mean score of the face detector in the frames where it found the face, 0 to 1.
        thumbnails: frame index -> JPEG of the face; empty unless thumbnails were requested.
        heat: frame index -> (h, w) float32, the log-odds that each part of the crop contributes in the first model
            (class activation map); for some of the frames with a thumbnail.
        trust: factor by which the logits were shrunk, at most 1; small or blurred faces are trusted less.
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
        """The probability that this person's face is fake; see `dfdc.aggregate.track_logit`."""
        return float(sigmoid(np.array(track_logit(self.logits))))


@dataclass(frozen=True, eq=False)
class Analysis:
    """The result of analyzing one clip.

    Attributes:
        filename: the clip's name, as in the submission.
        probability: P(fake), in (0, 1); 0.5 where nothing is known.
        status: "ok"; "partial" if only a part of the clip could be examined; "low_quality" if all faces are too small
            or too blurred to judge; or, without a score, "no_face", "unreadable", "timeout" or "error".
        reason: why the status is not "ok", or why the clip's faces are hard to judge; otherwise empty.
        times_s: (F,) float64, times of the examined frames, in seconds from the clip's first frame.
        duration_s: duration of the clip in seconds; None if it is not known.
        frame_size: width and height of the frames in pixels; None if no frame was read.
        n_wanted: number of requested frames.
        n_models: number of models of the ensemble that were used.
        weights: the models that were used, by the first 12 digits of their files' SHA-256.
        n_persons: number of persons that were found; larger than the number of tracks if some were left out.
        n_faces: number of frames in which a face was found.
        n_pairs: number of frames whose change to the next frame was scored; 0 unless the motion model was requested.
        tracks: the persons, the longest track first.
        notes: sentences with other remarks, for example on pictures in the picture.
        picture: P(fake) from the picture alone, if a voice was scored as well; otherwise None.
        voice: P(synthetic voice), if a voice was scored; otherwise None.
        cut_s: wall seconds after which reading ended early; 0 if the clip was read as planned.
        timings: the time that the analysis took.
        scenes: frame index -> JPEG of the whole frame; empty unless thumbnails were requested.
        provenance: information to reproduce the analysis; None unless thumbnails were requested.
        identity: identity of the file that was opened; None if none was. It is not part of the JSON form, because it
            means nothing on another machine.
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
    identity: Identity | None = field(default=None, repr=False)

    def __post_init__(self) -> None:
        if self.status not in STATUSES or not 0 < self.probability < 1:
            raise ValueError(
                f"status {self.status!r}, probability {self.probability}: allowed are {STATUSES} and 0 < p < 1"
            )

    @property
    def scored(self) -> bool:
        """Whether the probability is more than the prior."""
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
            n_models=self.n_models,
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
        """One row per frame and face (needs the extra pandas).

        Returns:
            Columns filename, person (from 0), frame, time_s, x0, y0, x1, y1 (pixels), found, score (0 to 1).

        Raises:
            InputError: pandas is not installed.
        """
        try:
            import pandas as pd
        except ImportError as error:
            raise InputError(f"to_dataframe() needs pandas ({error}); pip install 'dfdc[pandas]'") from error

        return pd.DataFrame(list(self.frame_rows()), columns=list(FRAME_COLUMNS))

    def frame_rows(self) -> Iterator[list[Any]]:
        """One list per frame and face, with the values of `FRAME_COLUMNS`: the rows of `to_dataframe`."""
        for person, track in enumerate(self.tracks):
            columns = (track.frames, track.times_s, track.boxes, track.found, track.scores)
            for frame, time_s, box, found, score in zip(*(column.tolist() for column in columns), strict=True):
                yield [self.filename, person, frame, time_s, *box, found, score]

    def to_json(self) -> str:
        """Convert to JSON (see docs/analysis_schema.md); `from_json` is the inverse."""
        record = {"schema": SCHEMA, **{name: _to_plain(value) for name, value in vars(self).items()}}
        del record["identity"]
        record["timings"] = asdict(self.timings)
        record["provenance"] = self.provenance and asdict(self.provenance)
        record["tracks"] = [{name: _to_plain(value) for name, value in vars(track).items()} for track in self.tracks]
        return json.dumps(record, allow_nan=False)

    @classmethod
    def from_json(cls, text: str) -> Analysis:
        """Convert the text of `to_json` to an analysis.

        Raises:
            InputError: the text is not an analysis, has another schema, or holds more or larger pictures than this
                package writes.
        """
        try:
            record = json.loads(text)
            if record.pop("schema") != SCHEMA:
                raise ValueError(f"allowed is the schema {SCHEMA!r}")
            tracks = tuple(
                FaceTrack(
                    frames=_to_array(track.pop("frames"), np.int64),
                    times_s=_to_array(track.pop("times_s"), np.float64),
                    boxes=_to_array(track.pop("boxes"), np.float32).reshape(-1, 4),
                    found=_to_array(track.pop("found"), np.bool_),
                    angles=_to_array(track.pop("angles"), np.float32),
                    logits=_to_array(track.pop("logits"), np.float64),
                    thumbnails=_to_pictures(track.pop("thumbnails"), MAX_THUMBNAILS),
                    heat=_to_heat(track.pop("heat")),
                    **track,
                )
                for track in record.pop("tracks")
            )
            if any(len({len(values) for values in _columns(track)}) != 1 for track in tracks):
                raise ValueError("a track's lists differ in length")
            if not all(isinstance(text, str) for text in (record["filename"], record["reason"], *record["notes"])):
                raise ValueError("a name, reason or note is not a text")
            size, origin = record.pop("frame_size"), record.pop("provenance")
            if origin is not None:
                origin = Provenance(**{**origin, "models": tuple(Model(**model) for model in origin["models"])})
            return cls(
                times_s=_to_array(record.pop("times_s"), np.float64),
                frame_size=None if size is None else (int(size[0]), int(size[1])),
                tracks=tracks,
                weights=tuple(record.pop("weights")),
                notes=tuple(record.pop("notes")),
                timings=Timings(**record.pop("timings")),
                scenes=_to_pictures(record.pop("scenes"), MAX_SCENES),
                provenance=origin,
                **record,
            )
        except (ValueError, KeyError, TypeError, AttributeError, IndexError, OverflowError, RecursionError) as error:
            raise InputError(f"not an analysis in JSON ({error!r}); `dfdc score --analyses` writes them") from error


def _columns(track: FaceTrack) -> tuple[np.ndarray, ...]:
    """The arrays with one entry per frame of the track."""
    return track.frames, track.times_s, track.boxes, track.found, track.angles, track.logits


def _to_plain(value: Any) -> Any:
    """Convert a value for JSON: arrays to lists, pictures to base64."""
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


def _to_array(values: Any, dtype: type[np.generic]) -> np.ndarray:
    array = np.array(values, dtype)
    if not np.isfinite(array).all():
        raise ValueError("a number is not finite")
    return array


def _to_heat(values: dict[str, list[list[float]]]) -> dict[int, np.ndarray]:
    for rows in values.values():
        if not 1 <= len(rows) <= MAX_HEAT_SIDE or not {len(row) for row in rows} <= {*range(1, MAX_HEAT_SIDE + 1)}:
            raise ValueError(f"a heat map has other sides than 1 to {MAX_HEAT_SIDE}")
    if len(values) > MAX_THUMBNAILS:
        raise ValueError(f"a track has {len(values)} heat maps; allowed are {MAX_THUMBNAILS}")
    return {int(key): _to_array(rows, np.float32) for key, rows in values.items()}


def _to_pictures(values: dict[str, str], most: int) -> dict[int, bytes]:
    pictures = {int(key): base64.b64decode(value) for key, value in values.items()}
    if len(pictures) > most:
        raise ValueError(f"{len(pictures)} pictures in one place; allowed are {most}")
    for picture in pictures.values():
        size = jpeg_size(picture)
        if size is None or max(size) > MAX_PICTURE_SIDE or len(picture) > MAX_PICTURE_BYTES:
            told = "is no JPEG" if size is None else f"has {size[0]} x {size[1]} pixels and {len(picture)} bytes"
            raise ValueError(
                f"a picture {told}; allowed are sides up to {MAX_PICTURE_SIDE} and {MAX_PICTURE_BYTES} bytes"
            )
    return pictures
