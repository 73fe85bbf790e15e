"""A compared pair of clips and the pictures that its page, its chart and its video share."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np

from dfdc.comparison.compare import SHOWN, Comparison, Person, Shot
from dfdc.crop import crop_face

# Heat maps are black where nothing differs, and brightest at the greatest difference on the face. This scale is limited
# to these levels of 255.
MIN_SCALE, MAX_SCALE = 12.0, 80.0
# Frames that differ by less on average are the same: encoding them again makes at least ten times this difference.
EQUAL_LEVELS = 0.05


@dataclass(frozen=True)
class Pair:
    """The files of two clips and their comparison."""

    original: Path
    fake: Path
    comparison: Comparison

    @property
    def scale(self) -> float:
        """Levels of 255 at which heat maps are brightest, the same in all pictures of a pair."""
        tops = [np.percentile(person.heat, 99) for person in self.comparison.people] or [self.comparison.heat.max()]
        return float(np.clip(1.3 * max(tops), MIN_SCALE, MAX_SCALE))

    @property
    def equal(self) -> bool:
        """Whether no frame of one clip differs noticeably from its partner."""
        levels = [self.comparison.outside, *(person.levels for person in self.comparison.people)]
        return all(np.nanmax(part, initial=0) < EQUAL_LEVELS for part in levels)

    @property
    def has_scores(self) -> bool:
        """Whether the ensemble scored a face of either clip."""
        return self.comparison.scores is not None and any(scores.n_faces for scores in self.comparison.scores)


def heat_picture(levels: np.ndarray, scale: float) -> np.ndarray:
    """Levels (H, W) as colours (H, W, 3) uint8 RGB: black at 0, pale yellow from `scale` on."""
    grey = (np.clip(levels / scale, 0, 1) * 255).round().astype(np.uint8)
    return cv2.applyColorMap(grey, cv2.COLORMAP_INFERNO)[..., ::-1]


def cut_face(shot: Shot, person: Person) -> Shot | None:
    """A person's face in both clips at the time of a shot; None where the person is absent."""
    box = person.boxes[shot.index]
    if np.isnan(box).any():
        return None
    return Shot(shot.index, shot.time_s, *(crop_face(frame, box, SHOWN) for frame in (shot.original, shot.fake)))


def show_name(path: Path) -> str:
    """A file's name; bytes that are not text appear as escapes."""
    return path.name.encode("utf-8", "backslashreplace").decode()


def mean_level(values: np.ndarray) -> float:
    """The mean (levels of 255) of what is known of (P,) values; 0 if nothing is."""
    known = values[~np.isnan(values)]
    return float(known.mean()) if len(known) else 0.0


def percent(levels: float | np.ndarray) -> float | np.ndarray:
    """Levels of 255 in percent of full brightness."""
    return levels / 2.55
