"""Frames -> face boxes: MTCNN, its three nets over batches, and around known faces only where it can.

The steps between the nets are facenet-pytorch's. Its own `detect_face` resizes whole batches of float frames by torch,
which takes more than half of its time, and stumbles over candidates that lie outside the frame. Here OpenCV resizes
the 8-bit frames once to the scale of the smallest face that matters.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np

from dfdc.crop import CropGeometry, crop_face
from dfdc.nets import ONET_SIDE, PNET_SIDE, RNET_SIDE, open_detector
from dfdc.runtime import Net, run_batches

# Frames go through the first net in groups of so many, candidates through the others. On the CPU, 256 of these take
# O-Net 70 MB; on CUDA each call is a wait for the device.
BATCH_FRAMES = {"cpu": 4, "cuda": 16}
BATCH_CANDIDATES = {"cpu": 64, "cuda": 1024}
# Step of the scale pyramid, facenet-pytorch's own.
PYRAMID_FACTOR = 0.709
# Of a clip's frames every fourth is searched whole, and at least so many are.
WHOLE_STEP, MIN_WHOLE = 4, 4
# Between them a face is looked for in a square of so many times its side around where it was.
WINDOW_RATIO = 2.5
# There the pyramid has three steps: faces of .6 to 1.7 times the size are found.
WINDOW_SIZES = tuple(round(WINDOW_RATIO * PNET_SIDE * factor) for factor in (1 / PYRAMID_FACTOR, 1, PYRAMID_FACTOR))
# Of windows around boxes that share more than this (intersection over union), one will do.
MAX_SHARED = 0.5
WINDOW = CropGeometry(side_ratio=WINDOW_RATIO, shift_ratio=0.0, size=WINDOW_SIZES[0])


@dataclass(frozen=True)
class DetectorSettings:
    """How hard to look.

    Attributes:
        min_face_ratio: the smallest face that matters, as a share of the frame's longest side; frames are reduced
            until it has the first net's 12 px.
        thresholds: of the three nets, 0 to 1.
        brighten: whether shadows are lifted first.
    """

    min_face_ratio: float
    thresholds: tuple[float, float, float]
    brighten: bool = False


# The smallest face has 58 px on 1080p: fewer than 1 in 100 of DFDC's faces are smaller.
QUICK = DetectorSettings(min_face_ratio=0.03, thresholds=(0.6, 0.7, 0.8))
# For clips in which nothing was found: 20 px on 1080p, lower thresholds, shadows lifted.
HARD = DetectorSettings(min_face_ratio=0.0105, thresholds=(0.5, 0.6, 0.7), brighten=True)
# A hard look costs some ten times as much a frame, so it is a look at so many of them.
HARD_FRAMES = 8


@dataclass(frozen=True)
class Faces:
    """The faces of one frame, K of them.

    Attributes:
        boxes: (K, 4) float32 x0, y0, x1, y1 in pixels of the frame.
        scores: (K,) float32, 0 to 1, best first.
        landmarks: (K, 5, 2) float32 x, y of eyes, nose and corners of the mouth.
    """

    boxes: np.ndarray
    scores: np.ndarray
    landmarks: np.ndarray

    def __len__(self) -> int:
        return len(self.boxes)


NO_FACES = Faces(np.zeros((0, 4), np.float32), np.zeros(0, np.float32), np.zeros((0, 5, 2), np.float32))

# Candidates of several frames: boxes (K, 4) and the indices of their frames (K,).
Candidates = tuple[np.ndarray, np.ndarray]
# A frame (H, W, 3) and its halves, the largest first.
Pyramid = list[np.ndarray]


class FaceDetector:
    """MTCNN with facenet-pytorch's weights, which lie in this package."""

    def __init__(self, device: str = "cpu", *, threads: int | None = None, nets: Sequence[Net] | None = None) -> None:
        """Open nets.

        Args:
            device: "cpu" or "cuda".
            threads: see `dfdc.nets.open_nets`.
            nets: those of `dfdc.nets.open_detector` where they are at hand; None opens them.
        """
        device = str(device)
        self.batch_frames, self.batch_candidates = BATCH_FRAMES[device], BATCH_CANDIDATES[device]
        nets = open_detector(device=device, threads=threads) if nets is None else nets
        self.pnet, self.rnet, self.onet = nets

    def search(self, frames: list[np.ndarray]) -> tuple[list[int], list[Faces]]:
        """Find the faces of a clip's frames: a quick look at all; where that finds none, a hard look at some.

        Args:
            frames: (H, W, 3) uint8 RGB each, in order of time.

        Returns:
            The indices of the frames that were searched, rising, and one `Faces` for each of them.
        """
        found = self.follow(frames)
        if any(len(faces) for faces in found):
            return list(range(len(frames))), found
        some = np.unique(np.linspace(0, len(frames) - 1, HARD_FRAMES).round().astype(int)).tolist()
        return some, [self.detect([frames[index]], HARD)[0] for index in some]

    def follow(self, frames: list[np.ndarray]) -> list[Faces]:
        """Find the faces of a clip's frames: some frames are searched whole, the others where faces are expected.

        The gaps between searched frames are halved until none is left: a face is looked for around where it was
        before and after. Where that gives fewer faces than a neighbour has, or none, the frame is searched whole.

        Args:
            frames: (H, W, 3) uint8 RGB each, in order of time.

        Returns:
            One `Faces` per frame, as `detect` gives them.
        """
        step = WHOLE_STEP
        while step > 1 and len(frames) < MIN_WHOLE * step:
            step //= 2
        found: list[Faces | None] = [None] * len(frames)
        self._search_whole(frames, found, list(range(0, len(frames), step)))
        while step > 1:
            step //= 2
            self._search_near(frames, found, list(range(step, len(frames), 2 * step)), step)
        return found

    def _search_whole(self, frames: list[np.ndarray], found: list[Faces | None], indices: list[int]) -> None:
        for index, faces in zip(indices, self.detect([frames[index] for index in indices]), strict=True):
            found[index] = faces

    def _search_near(self, frames: list[np.ndarray], found: list[Faces | None], indices: list[int], step: int) -> None:
        """Fill in frames whose neighbours, so many frames before and after, are done."""
        neighbours = [[found[near] for near in (index - step, index + step) if near < len(frames)] for index in indices]
        around = [np.concatenate([faces.boxes for faces in known]) for known in neighbours]
        looked = self._look_around([frames[index] for index in indices], around)
        lost = []
        for index, known, faces in zip(indices, neighbours, looked, strict=True):
            found[index] = faces
            if len(faces) < max(1, *map(len, known)):
                lost.append(index)
        self._search_whole(frames, found, lost)

    def detect(self, frames: list[np.ndarray], settings: DetectorSettings = QUICK) -> list[Faces]:
        """Find the faces of frames, each searched whole.

        Args:
            frames: (H, W, 3) uint8 RGB each; neighbours of one size are handled in batches.
            settings: how hard to look.

        Returns:
            One `Faces` per frame.
        """
        found: list[Faces] = []
        start = 0
        while start < len(frames):
            stop = start + 1
            while stop < min(len(frames), start + self.batch_frames) and frames[stop].shape == frames[start].shape:
                stop += 1
            batch = [_brighten(frame) for frame in frames[start:stop]] if settings.brighten else frames[start:stop]
            pyramids = [_build_pyramid(frame) for frame in batch]
            found += self._judge(pyramids, self._propose(pyramids, settings), settings.thresholds)
            start = stop
        return found

    def _look_around(self, frames: list[np.ndarray], around: list[np.ndarray]) -> list[Faces]:
        """The faces of frames of any size, each near boxes (K, 4)."""
        owners = np.repeat(np.arange(len(frames)), [len(boxes) for boxes in around])
        if not len(owners):
            return [NO_FACES] * len(frames)
        boxes = np.concatenate(around)
        pyramids = [_build_pyramid(frame) for frame in frames]
        # What was found before and after is mostly one face in one place.
        picked = _nms(boxes, np.ones(len(boxes)), owners, MAX_SHARED)
        windows = [_cut_window(pyramids[owners[k]], boxes[k]) for k in picked]
        images, corners, sides = (np.stack(parts) for parts in zip(*windows, strict=True))
        found = []
        for size in WINDOW_SIZES:
            images = np.stack([cv2.resize(image, (size, size), interpolation=cv2.INTER_AREA) for image in images])
            found.append(self._scan(images, size / sides, QUICK.thresholds[0], corners, owners[picked]))
        return self._judge(pyramids, _merge(found), QUICK.thresholds)

    def _propose(self, pyramids: list[Pyramid], settings: DetectorSettings) -> Candidates:
        """Candidates of frames of one size, from all scales of the whole of each."""
        height, width = pyramids[0][0].shape[:2]
        # A frame smaller than the smallest face that matters is still looked at as a whole.
        smallest = min(max(settings.min_face_ratio * max(height, width), 20.0), float(min(height, width)))
        scale = PNET_SIDE / max(smallest, 1.0)
        images, found = [pyramid[_choose_level(pyramid, 1 / scale)] for pyramid in pyramids], []
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
        """P-Net at one scale.

        Args:
            images: (N, h, w, 3) uint8, parts of frames.
            scales: (N,) pixels of an image per pixel of its frame.
            threshold: of the net.
            corners: (N, 2) x, y of the images' corners in their frames.
            owners: (N,) indices of their frames.

        Returns:
            Boxes, scores and frames, and where the net would move the boxes (K, 4).
        """
        offsets, chances = self._run(self.pnet, images)
        which, row, column = np.nonzero(chances[:, 1] >= threshold)
        scores = chances[which, 1, row, column]
        # Its answers lie two pixels apart.
        place = 2 * np.stack([column, row], 1) + 1
        ends = [np.floor(at / scales[which, None]) + corners[which] for at in (place, place + PNET_SIDE - 1)]
        boxes = np.concatenate(ends, 1)
        moved = boxes + offsets[which, :, row, column] * np.tile(ends[1] - ends[0], 2)
        picked = _nms(boxes, scores, which, 0.5)
        return boxes[picked], scores[picked], owners[which[picked]], moved[picked]

    def _judge(self, pyramids: list[Pyramid], candidates: Candidates, thresholds: tuple[float, ...]) -> list[Faces]:
        """R-Net and O-Net: the faces among candidates."""
        boxes, owners = self._refine(pyramids, *candidates, thresholds[1])
        boxes, scores, owners, points = self._finish(pyramids, boxes, owners, thresholds[2])
        mine = [owners == index for index in range(len(pyramids))]
        return [Faces(*(part[own].astype(np.float32) for part in (boxes, scores, points))) for own in mine]

    def _refine(
        self, pyramids: list[Pyramid], boxes: np.ndarray, owners: np.ndarray, threshold: float
    ) -> tuple[np.ndarray, np.ndarray]:
        """R-Net: of the candidates those that it believes, moved and square again."""
        boxes, owners, patches = _cut_patches(pyramids, boxes, owners, RNET_SIDE)
        if not len(boxes):
            return boxes, owners
        offsets, chances = self._run(self.rnet, patches)
        kept = np.flatnonzero(chances[:, 1] > threshold)
        # facenet-pytorch keeps boxes that share up to .7: twice as many for O-Net, and faces no nearer to the truth.
        kept = kept[_nms(boxes[kept], chances[kept, 1], owners[kept], 0.5)]
        return _square(_move(boxes[kept], offsets[kept])), owners[kept]

    def _finish(
        self, pyramids: list[Pyramid], boxes: np.ndarray, owners: np.ndarray, threshold: float
    ) -> tuple[np.ndarray, ...]:
        """O-Net: final boxes (K, 4), scores (K,), frames (K,) and landmarks (K, 5, 2), best first."""
        boxes, owners, patches = _cut_patches(pyramids, boxes, owners, ONET_SIDE)
        if not len(boxes):
            return boxes, np.zeros(0), owners, np.zeros((0, 5, 2))
        offsets, points, chances = self._run(self.onet, patches)
        kept = np.flatnonzero(chances[:, 1] > threshold)
        boxes, owners, scores = boxes[kept], owners[kept], chances[kept, 1]
        sides = (boxes[:, 2:] - boxes[:, :2] + 1)[:, None]
        points = points[kept].reshape(-1, 2, 5).transpose(0, 2, 1) * sides + boxes[:, None, :2] - 1
        boxes = _move(boxes, offsets[kept])
        picked = _nms_contained(boxes, scores, owners, 0.7)
        return boxes[picked], scores[picked], owners[picked], points[picked]

    def _run(self, net: Net, images: np.ndarray) -> list[np.ndarray]:
        """A net's outputs for uint8 images (N, H, W, 3)."""
        answers = run_batches(net, images, self.batch_candidates)
        return [np.concatenate(parts) for parts in zip(*answers, strict=True)]


def _merge(found: list[tuple[np.ndarray, ...]]) -> Candidates:
    """Of the candidates of all scales, the best where several lie together: moved, square boxes and their frames."""
    if not found:
        return np.zeros((0, 4)), np.zeros(0, int)
    boxes, scores, owners, moved = (np.concatenate(parts) for parts in zip(*found, strict=True))
    picked = _nms(boxes, scores, owners, 0.7)
    return _square(moved[picked]), owners[picked]


def _nms(boxes: np.ndarray, scores: np.ndarray, groups: np.ndarray, most: float) -> np.ndarray:
    """Non-maximum suppression: indices of boxes, best first, without what overlaps a better one of its group more."""
    rectangles = np.concatenate([boxes[:, :2], boxes[:, 2:] - boxes[:, :2]], 1)
    picked = cv2.dnn.NMSBoxesBatched(rectangles.tolist(), scores.tolist(), groups.tolist(), 0.0, most)
    return np.asarray(picked, int).reshape(-1)


def _nms_contained(boxes: np.ndarray, scores: np.ndarray, groups: np.ndarray, most: float) -> np.ndarray:
    """As `_nms`, with the overlap as a share of the smaller box: a part of a face is no second face."""
    sides = np.minimum(boxes[:, None, 2:], boxes[None, :, 2:]) - np.maximum(boxes[:, None, :2], boxes[None, :, :2]) + 1
    areas = (boxes[:, 2:] - boxes[:, :2] + 1).prod(1)
    shares = np.clip(sides, 0, None).prod(2) / np.minimum(areas[:, None], areas)
    rivals = (shares > most) & (groups[:, None] == groups)
    picked: list[int] = []
    for index in np.argsort(-scores, kind="stable"):
        if not rivals[index, picked].any():
            picked.append(int(index))
    return np.array(picked, int)


def _square(boxes: np.ndarray) -> np.ndarray:
    """The smallest squares with the same centres that hold boxes (K, 4)."""
    sides = boxes[:, 2:] - boxes[:, :2]
    side = sides.max(1, keepdims=True)
    low = boxes[:, :2] + sides / 2 - side / 2
    return np.concatenate([low, low + side], 1)


def _move(boxes: np.ndarray, offsets: np.ndarray) -> np.ndarray:
    """Boxes (K, 4) moved by offsets in shares of their sides, both ends included."""
    return boxes + offsets * np.tile(boxes[:, 2:] - boxes[:, :2] + 1, 2)


def _build_pyramid(frame: np.ndarray) -> Pyramid:
    """A frame and its successive halves: what is looked at small is cut out of a small one, for a tenth of the time."""
    levels = [frame]
    while min(levels[-1].shape[:2]) >= 4 * ONET_SIDE:
        height, width = levels[-1].shape[:2]
        levels.append(cv2.resize(levels[-1], (width // 2, height // 2), interpolation=cv2.INTER_AREA))
    return levels


def _choose_level(pyramid: Pyramid, reduction: float) -> int:
    """Which is the smallest level that is reduced no more than so many times."""
    return min(int(math.log2(max(reduction, 1))), len(pyramid) - 1)


def _cut_window(pyramid: Pyramid, box: np.ndarray) -> tuple[np.ndarray, np.ndarray, float]:
    """The surroundings of a box, where they begin and how many pixels of the frame they are wide."""
    level = pyramid[_choose_level(pyramid, WINDOW.square(box)[2] / WINDOW.size)]
    scale = level.shape[1] / pyramid[0].shape[1]
    left, top, side = WINDOW.square(box * scale)
    return crop_face(level, box * scale, WINDOW), np.array([left, top]) / scale, side / scale


def _cut_patches(
    pyramids: list[Pyramid], boxes: np.ndarray, owners: np.ndarray, side: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """What a net sees of its candidates, (K, side, side, 3) uint8, without those that lie outside their frame."""
    limits = np.array([pyramid[0].shape[1::-1] for pyramid in pyramids])[owners]
    low = np.maximum(boxes[:, :2].astype(int), 1) - 1
    high = np.minimum(boxes[:, 2:].astype(int), limits)
    inside = np.flatnonzero((high > low).all(1))
    patches = np.empty((len(inside), side, side, 3), np.uint8)
    for patch, owner, ends in zip(patches, owners[inside], np.hstack([low, high])[inside].tolist(), strict=True):
        shorter = min(ends[2] - ends[0], ends[3] - ends[1])
        number = _choose_level(pyramids[owner], shorter / side)
        x0, y0, x1, y1 = (round(end / 2**number) for end in ends)
        patch[:] = cv2.resize(pyramids[owner][number][y0:y1, x0:x1], (side, side), interpolation=cv2.INTER_AREA)
    return boxes[inside], owners[inside], patches


def _brighten(frame: np.ndarray) -> np.ndarray:
    """Lift shadows by a gamma that brings a dark frame's mean to a third of the range; bright frames stay."""
    mean = float(frame.mean()) / 255
    if mean >= 1 / 3:
        return frame
    gamma = max(np.log(1 / 3) / np.log(max(mean, 1e-3)), 0.25)
    return cv2.LUT(frame, (255 * (np.arange(256) / 255) ** gamma).round().astype(np.uint8))
