"""Frames -> face boxes: MTCNN run in batches, with a search of only the area around known faces where possible.

The steps between the three networks follow facenet-pytorch. Its own `detect_face` resizes whole batches of float
frames with torch, which takes more than half of its time, and it fails on candidates that lie outside the frame. Here
OpenCV resizes the 8-bit frames once, to the scale of the smallest face that matters.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import cv2
import numpy as np

from dfdc.boxes import make_square, move_boxes, suppress, suppress_contained
from dfdc.faces import NO_FACES, Faces, roll_angles, turn_back, turn_upright
from dfdc.models import ONET_SIDE, PNET_SIDE, RNET_SIDE, open_detector
from dfdc.pyramid import (
    PYRAMID_FACTOR,
    WINDOW_SIZES,
    Pyramid,
    brighten,
    build_pyramid,
    choose_level,
    cut_patches,
    cut_window,
)
from dfdc.runtime import Network, run_batches

# Batch sizes: frames for the first network, candidates for the other two. On the CPU, 256 candidates take 70 MB in
# O-Net; on CUDA, every call waits for the device.
BATCH_FRAMES = {"cpu": 4, "cuda": 16}
BATCH_CANDIDATES = {"cpu": 64, "cuda": 1024}
# One in WHOLE_STEP frames of a clip is searched in full, and at least MIN_WHOLE frames are.
WHOLE_STEP, MIN_WHOLE = 4, 4
# If two boxes overlap by more than this (intersection over union), one search window serves both.
MAX_SHARED = 0.5
# The orientation of a clip is certain if most of its frames with faces have a face with this score.
CERTAIN_SCORE = 0.99
# Otherwise TURN_FRAMES frames are also searched in the other ORIENTATIONS. One of them wins if its evidence is larger
# by at least MIN_GAIN, and at least MIN_EVIDENCE. Evidence is the mean over the frames of the best face's log-odds, at
# most MAX_EVIDENCE. For clips on their side, the stored orientation reached 3.5 and the correct one 6 to 7; for rolled
# ones the correct one reached 4 and more, and for drawn leaves a wrong one reached 2.
TURN_FRAMES, MIN_GAIN, MIN_EVIDENCE, MAX_EVIDENCE = 3, 1.5, 3.0, 7.0
ORIENTATIONS = (0, 90, 180, 270, 45, 135, 225, 315)
# If heads are rolled by more than this many degrees, the frames are searched again with the heads upright: the detector
# misses some heads from 40 degrees on.
MAX_ROLL = 25.0


@dataclass(frozen=True)
class DetectorSettings:
    """How thoroughly the detector searches.

    Attributes:
        min_face_ratio: size of the smallest face that matters, as a share of the frame's longest side; frames are
            reduced until a face of this size has the 12 px that the first network needs.
        thresholds: score thresholds of the three networks, 0 to 1.
        brighten: whether dark frames are brightened first.
    """

    min_face_ratio: float
    thresholds: tuple[float, float, float]
    brighten: bool = False


# On 1080p the smallest face is 58 px wide; fewer than 1 in 100 of DFDC's faces are smaller.
QUICK = DetectorSettings(min_face_ratio=0.03, thresholds=(0.6, 0.7, 0.8))
# For clips in which the quick search found nothing: faces from 20 px on 1080p, lower thresholds, brightened frames.
HARD = DetectorSettings(min_face_ratio=0.0105, thresholds=(0.5, 0.6, 0.7), brighten=True)
# The thorough search costs about ten times as much per frame, so it examines only this many frames.
HARD_FRAMES = 8
# Candidates of several frames: boxes (K, 4) and the indices of their frames (K,).
Candidates = tuple[np.ndarray, np.ndarray]


class FaceDetector:
    """MTCNN with the weights of facenet-pytorch, which are part of this package."""

    def __init__(
        self, device: str = "cpu", *, threads: int | None = None, models: Sequence[Network] | None = None
    ) -> None:
        """Open the three networks.

        Args:
            device: "cpu" or "cuda".
            threads: see `dfdc.models.open_models`.
            models: the result of `dfdc.models.open_detector`, if it is already at hand; None opens the networks.
        """
        device = str(device)
        self.batch_frames, self.batch_candidates = BATCH_FRAMES[device], BATCH_CANDIDATES[device]
        models = open_detector(device=device, threads=threads) if models is None else models
        self.pnet, self.rnet, self.onet = models

    def search(self, frames: list[np.ndarray]) -> tuple[list[int], list[Faces]]:
        """Find the faces in a clip: search all frames quickly and, if that finds nothing, some frames thoroughly.

        If the quick search is not certain, or the heads are rolled, the clip may be stored on its side or slanted. Its
        orientation is then determined, and the frames are searched upright. Boxes and landmarks are returned in the
        pixels of the frame as it is stored; the landmarks show how a face is rolled.

        Args:
            frames: (H, W, 3) uint8 RGB each, in order of time.

        Returns:
            The indices of the frames that were searched, ascending, and one `Faces` for each of them.
        """
        found = self.follow(frames)
        angle = _median_roll(found) if _is_certain(found) else self.find_turn(frames, found)
        if angle:
            turned = self.follow([turn_upright(frame, angle) for frame in frames])
            found = [turn_back(faces, angle, frame.shape) for faces, frame in zip(turned, frames, strict=True)]
        if any(len(faces) for faces in found):
            return list(range(len(frames))), found
        some = np.unique(np.linspace(0, len(frames) - 1, HARD_FRAMES).round().astype(int)).tolist()
        return some, [self.detect([frames[index]], HARD)[0] for index in some]

    def find_turn(self, frames: list[np.ndarray], found: list[Faces]) -> int:
        """By how many degrees clockwise a clip's heads are rolled, in steps of 45.

        Some frames are searched in the other orientations. On ten real clips, faces on their side or upside down were
        missed or had a mean score below .97; in the correct orientation the mean score was above .99.

        Args:
            frames: (H, W, 3) uint8 RGB each, in order of time.
            found: the faces in these frames as they are stored.

        Returns:
            One of `ORIENTATIONS`; 0 unless another one gives clearly more evidence of faces.
        """
        some = np.unique(np.linspace(0, len(frames) - 1, TURN_FRAMES + 2).round().astype(int))
        some = (some[1:-1] if len(some) > 2 else some).tolist()
        ways = [[found[index] for index in some]]
        ways += [self.detect([turn_upright(frames[index], angle) for index in some]) for angle in ORIENTATIONS[1:]]
        evidence = [np.mean([_evidence(faces) for faces in way]) for way in ways]
        best = int(np.argmax(evidence))
        return ORIENTATIONS[best] if evidence[best] > max(evidence[0] + MIN_GAIN, MIN_EVIDENCE) else 0

    def follow(self, frames: list[np.ndarray]) -> list[Faces]:
        """Find the faces in a clip's frames: search some frames in full, the others only where faces are expected.

        The frames between two searched frames are filled in by repeated halving: a face is looked for near its position
        in the frames before and after. If this finds no face, or fewer faces than a neighbour has, the frame is
        searched in full. The first and the last frame are searched in full, so that somebody who appears late is seen.

        Args:
            frames: (H, W, 3) uint8 RGB each, in order of time.

        Returns:
            One `Faces` per frame, as `detect` gives them.
        """
        step = WHOLE_STEP
        while step > 1 and len(frames) < MIN_WHOLE * step:
            step //= 2
        n_whole = -(-len(frames) // step)
        whole = np.linspace(0, len(frames) - 1, n_whole).round().astype(int).tolist()
        found: dict[int, Faces] = {}
        self._search_whole(frames, found, whole)
        gaps = list(pairwise(whole))
        while gaps := [(before, after) for before, after in gaps if after - before > 1]:
            self._search_between(frames, found, gaps)
            gaps = [half for before, after in gaps for half in pairwise((before, (before + after) // 2, after))]
        return [found[index] for index in range(len(frames))]

    def _search_whole(self, frames: list[np.ndarray], found: dict[int, Faces], indices: list[int]) -> None:
        found |= zip(indices, self.detect([frames[index] for index in indices]), strict=True)

    def _search_between(self, frames: list[np.ndarray], found: dict[int, Faces], gaps: list[tuple[int, int]]) -> None:
        """Search the frame in the middle of each gap between two frames that are already searched."""
        middles = [sum(gap) // 2 for gap in gaps]
        neighbours = [[found[index] for index in gap] for gap in gaps]
        around = [np.concatenate([faces.boxes for faces in known]) for known in neighbours]
        looked = self._look_around([frames[index] for index in middles], around)
        lost = []
        for index, known, faces in zip(middles, neighbours, looked, strict=True):
            found[index] = faces
            if len(faces) < max(1, *map(len, known)):
                lost.append(index)
        self._search_whole(frames, found, lost)

    def detect(self, frames: list[np.ndarray], settings: DetectorSettings = QUICK) -> list[Faces]:
        """Find the faces in frames, each searched in full.

        Args:
            frames: (H, W, 3) uint8 RGB each; neighbours of the same size are processed in batches.
            settings: how thoroughly to search.

        Returns:
            One `Faces` per frame.
        """
        found: list[Faces] = []
        start = 0
        while start < len(frames):
            stop = start + 1
            while stop < min(len(frames), start + self.batch_frames) and frames[stop].shape == frames[start].shape:
                stop += 1
            batch = [brighten(frame) for frame in frames[start:stop]] if settings.brighten else frames[start:stop]
            pyramids = [build_pyramid(frame) for frame in batch]
            found += self._judge(pyramids, self._propose(pyramids, settings), settings.thresholds)
            start = stop
        return found

    def judge_patches(self, patches: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Run O-Net on square patches, each around one face.

        Args:
            patches: (N, 48, 48, 3) uint8 RGB, N at least 1.

        Returns:
            (N,) float32 probabilities of a face, and (N, 5, 2) float32 landmarks as shares of the patch's side.
        """
        _, points, probabilities = self._run(self.onet, patches)
        return probabilities[:, 1], points.reshape(-1, 2, 5).transpose(0, 2, 1)

    def _look_around(self, frames: list[np.ndarray], around: list[np.ndarray]) -> list[Faces]:
        """The faces in frames of any size, each searched near its boxes (K, 4)."""
        owners = np.repeat(np.arange(len(frames)), [len(boxes) for boxes in around])
        if not len(owners):
            return [NO_FACES] * len(frames)
        boxes = np.concatenate(around)
        pyramids = [build_pyramid(frame) for frame in frames]
        # The boxes before and after mostly show the same face in the same place, so one window is enough.
        picked = suppress(boxes, np.ones(len(boxes)), owners, MAX_SHARED)
        windows = [cut_window(pyramids[owners[k]], boxes[k]) for k in picked]
        images, corners, sides = (np.stack(parts) for parts in zip(*windows, strict=True))
        found = []
        for size in WINDOW_SIZES:
            images = np.stack([cv2.resize(image, (size, size), interpolation=cv2.INTER_AREA) for image in images])
            found.append(self._scan(images, size / sides, QUICK.thresholds[0], corners, owners[picked]))
        return self._judge(pyramids, _merge(found), QUICK.thresholds)

    def _propose(self, pyramids: list[Pyramid], settings: DetectorSettings) -> Candidates:
        """Candidates in frames of one size, from all scales of each whole frame."""
        height, width = pyramids[0][0].shape[:2]
        # A frame smaller than the smallest face that matters is still searched as a whole.
        smallest = min(max(settings.min_face_ratio * max(height, width), 20.0), float(min(height, width)))
        scale = PNET_SIDE / max(smallest, 1.0)
        images, found = [pyramid[choose_level(pyramid, 1 / scale)] for pyramid in pyramids], []
        corners, owners = np.zeros((len(images), 2)), np.arange(len(images))
        while min(height, width) * scale >= PNET_SIDE - 1e-6:
            size = (int(width * scale + 1), int(height * scale + 1))
            images = [cv2.resize(image, size, interpolation=cv2.INTER_AREA) for image in images]
            scales = np.full(len(images), scale)
            found.append(self._scan(np.stack(images), scales, settings.thresholds[0], corners, owners))
            scale *= PYRAMID_FACTOR
        return _merge(found)

    def _scan(
        self, images: np.ndarray, scales: np.ndarray, threshold: float, corners: np.ndarray, owners: np.ndarray
    ) -> tuple[np.ndarray, ...]:
        """Run P-Net at one scale.

        Args:
            images: (N, h, w, 3) uint8, parts of frames.
            scales: (N,) pixels of an image per pixel of its frame.
            threshold: score threshold of the network.
            corners: (N, 2) x, y of the images' top-left corners in their frames.
            owners: (N,) indices of their frames.

        Returns:
            Boxes (K, 4), scores (K,), indices of frames (K,), and the boxes as moved by the network's offsets (K, 4).
        """
        offsets, chances = self._run(self.pnet, images)
        which, row, column = np.nonzero(chances[:, 1] >= threshold)
        scores = chances[which, 1, row, column]
        # P-Net has a stride of two pixels.
        place = 2 * np.stack([column, row], 1) + 1
        ends = [np.floor(at / scales[which, None]) + corners[which] for at in (place, place + PNET_SIDE - 1)]
        boxes = np.concatenate(ends, 1)
        moved = boxes + offsets[which, :, row, column] * np.tile(ends[1] - ends[0], 2)
        picked = suppress(boxes, scores, which, 0.5)
        return boxes[picked], scores[picked], owners[which[picked]], moved[picked]

    def _judge(self, pyramids: list[Pyramid], candidates: Candidates, thresholds: tuple[float, ...]) -> list[Faces]:
        """Run R-Net and O-Net: the faces among the candidates."""
        boxes, owners = self._refine(pyramids, *candidates, thresholds[1])
        boxes, scores, owners, points = self._finish(pyramids, boxes, owners, thresholds[2])
        mine = [owners == index for index in range(len(pyramids))]
        return [Faces(*(part[own].astype(np.float32) for part in (boxes, scores, points))) for own in mine]

    def _refine(
        self, pyramids: list[Pyramid], boxes: np.ndarray, owners: np.ndarray, threshold: float
    ) -> tuple[np.ndarray, np.ndarray]:
        """Run R-Net: the candidates that it accepts, moved by its offsets and made square again."""
        boxes, owners, patches = cut_patches(pyramids, boxes, owners, RNET_SIDE)
        if not len(boxes):
            return boxes, owners
        offsets, chances = self._run(self.rnet, patches)
        kept = np.flatnonzero(chances[:, 1] > threshold)
        # facenet-pytorch keeps boxes with an overlap up to .7, which doubles the work of O-Net and does not place faces
        # more accurately.
        kept = kept[suppress(boxes[kept], chances[kept, 1], owners[kept], 0.5)]
        return make_square(move_boxes(boxes[kept], offsets[kept])), owners[kept]

    def _finish(
        self, pyramids: list[Pyramid], boxes: np.ndarray, owners: np.ndarray, threshold: float
    ) -> tuple[np.ndarray, ...]:
        """Run O-Net: final boxes (K, 4), scores (K,), indices of frames (K,) and landmarks (K, 5, 2), best first."""
        boxes, owners, patches = cut_patches(pyramids, boxes, owners, ONET_SIDE)
        if not len(boxes):
            return boxes, np.zeros(0), owners, np.zeros((0, 5, 2))
        offsets, points, chances = self._run(self.onet, patches)
        kept = np.flatnonzero(chances[:, 1] > threshold)
        boxes, owners, scores = boxes[kept], owners[kept], chances[kept, 1]
        sides = (boxes[:, 2:] - boxes[:, :2] + 1)[:, None]
        points = points[kept].reshape(-1, 2, 5).transpose(0, 2, 1) * sides + boxes[:, None, :2] - 1
        boxes = move_boxes(boxes, offsets[kept])
        picked = suppress_contained(boxes, scores, owners, 0.7)
        return boxes[picked], scores[picked], owners[picked], points[picked]

    def _run(self, network: Network, images: np.ndarray) -> list[np.ndarray]:
        """A network's outputs for uint8 images (N, H, W, 3)."""
        answers = run_batches(network, images, self.batch_candidates)
        return [np.concatenate(parts) for parts in zip(*answers, strict=True)]


def _is_certain(found: list[Faces]) -> bool:
    """Whether most frames with faces have a certain one; False if no frame has a face."""
    best = [faces.scores[0] for faces in found if len(faces)]
    return sum(score > CERTAIN_SCORE for score in best) > len(best) / 2


def _median_roll(found: list[Faces]) -> float:
    """The median roll of the best faces, in degrees clockwise; 0 if it is at most `MAX_ROLL`."""
    rolls = [roll_angles(faces.landmarks[:1])[0] for faces in found if len(faces)]
    # Rolls near 180 and -180 are near each other.
    middle = np.degrees(np.angle(np.exp(1j * np.radians(rolls)).sum()))
    angle = float(np.median((np.array(rolls) - middle + 180) % 360 - 180) + middle)
    return angle if abs(angle) > MAX_ROLL else 0.0


def _evidence(faces: Faces) -> float:
    """Log-odds of a frame's best face, 0 to `MAX_EVIDENCE`; 0 if there is no face."""
    if not len(faces):
        return 0.0
    score = float(faces.scores[0])
    return float(np.clip(np.log(max(score, 1e-6) / max(1 - score, 1e-6)), 0, MAX_EVIDENCE))


def _merge(found: list[tuple[np.ndarray, ...]]) -> Candidates:
    """Merge the candidates of all scales by non-maximum suppression: moved, square boxes and their frames."""
    if not found:
        return np.zeros((0, 4)), np.zeros(0, int)
    boxes, scores, owners, moved = (np.concatenate(parts) for parts in zip(*found, strict=True))
    picked = suppress(boxes, scores, owners, 0.7)
    return make_square(moved[picked]), owners[picked]
