"""Frames -> face boxes: facenet-pytorch's MTCNN, in batches, on reduced frames."""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np
import torch
from facenet_pytorch.models.mtcnn import ONet, PNet, RNet
from facenet_pytorch.models.utils.detect_face import detect_face

# Frames go through the net in groups of so many, which bounds memory.
BATCH_FRAMES = 8


@dataclass(frozen=True)
class DetectorSettings:
    """How hard to look.

    Attributes:
        longest_side: frames are reduced to it, in pixels; None leaves them as they are.
        min_face_ratio: the smallest face that matters, as a share of the frame's longest side.
        thresholds: of the three nets, 0 to 1.
        brighten: whether shadows are lifted first.
    """

    longest_side: int | None
    min_face_ratio: float
    thresholds: tuple[float, float, float]
    brighten: bool = False


# On 1080p the smallest face is 58 px, which keeps 29 px after reduction: MTCNN's first net sees 12.
QUICK = DetectorSettings(longest_side=960, min_face_ratio=0.03, thresholds=(0.6, 0.7, 0.8))
# For clips in which nothing was found: everything that MTCNN could see.
HARD = DetectorSettings(longest_side=None, min_face_ratio=0.0125, thresholds=(0.5, 0.6, 0.7), brighten=True)


@dataclass(frozen=True)
class Faces:
    """The faces of one frame, K of them.

    Attributes:
        boxes: (K, 4) float32 x0, y0, x1, y1 in pixels of the frame as it was given.
        scores: (K,) float32, 0 to 1.
        landmarks: (K, 5, 2) float32 x, y of eyes, nose and corners of the mouth.
    """

    boxes: np.ndarray
    scores: np.ndarray
    landmarks: np.ndarray

    def __len__(self) -> int:
        return len(self.boxes)


NO_FACES = Faces(np.zeros((0, 4), np.float32), np.zeros(0, np.float32), np.zeros((0, 5, 2), np.float32))


class FaceDetector:
    """MTCNN with the weights that lie inside the facenet-pytorch package; nothing is downloaded."""

    def __init__(self, device: torch.device | str = "cpu") -> None:
        self.device = torch.device(device)
        self.nets = [net().eval().to(self.device) for net in (PNet, RNet, ONet)]

    def detect(self, frames: list[np.ndarray], settings: DetectorSettings = QUICK) -> list[Faces]:
        """Find the faces of frames.

        Args:
            frames: (H, W, 3) uint8 RGB each; those of one size are handled in batches.
            settings: how hard to look.

        Returns:
            One `Faces` per frame, best score first.
        """
        found: list[Faces] = []
        start = 0
        while start < len(frames):
            shape = frames[start].shape
            stop = start + 1
            while stop < len(frames) and stop - start < BATCH_FRAMES and frames[stop].shape == shape:
                stop += 1
            found += self._detect_batch(frames[start:stop], settings)
            start = stop
        return found

    @torch.inference_mode()
    def _detect_batch(self, frames: list[np.ndarray], settings: DetectorSettings) -> list[Faces]:
        longest = max(frames[0].shape[:2])
        scale = min(1.0, (settings.longest_side or longest) / longest)
        reduced = [_reduce(frame, scale) for frame in frames]
        if settings.brighten:
            reduced = [_brighten(frame) for frame in reduced]
        # The pyramid needs at least one level: its smallest side must not fall below the first net's 12 px.
        shortest = min(reduced[0].shape[:2])
        min_face = max(settings.min_face_ratio * longest * scale, 20.0)
        if shortest < 12:
            return [NO_FACES] * len(frames)
        min_face = min(min_face, float(shortest))
        boxes, points = detect_face(
            np.stack(reduced), min_face, *self.nets, list(settings.thresholds), 0.709, self.device
        )
        return [_to_faces(box, point, scale) for box, point in zip(boxes, points, strict=True)]


def _to_faces(boxes: np.ndarray, points: np.ndarray, scale: float) -> Faces:
    if not len(boxes):
        return NO_FACES
    boxes = np.asarray(boxes, np.float32)
    points = np.asarray(points, np.float32)
    order = np.argsort(-boxes[:, 4], kind="stable")
    return Faces(boxes[order, :4] / scale, boxes[order, 4], points[order] / scale)


def _reduce(frame: np.ndarray, scale: float) -> np.ndarray:
    if scale == 1:
        return frame
    height, width = frame.shape[:2]
    size = (max(round(width * scale), 1), max(round(height * scale), 1))
    return cv2.resize(frame, size, interpolation=cv2.INTER_AREA)


def _brighten(frame: np.ndarray) -> np.ndarray:
    """Lift shadows by a gamma that brings a dark frame's mean to a third of the range; bright frames stay."""
    mean = float(frame.mean()) / 255
    if mean >= 1 / 3:
        return frame
    gamma = max(np.log(1 / 3) / np.log(max(mean, 1e-3)), 0.25)
    return cv2.LUT(frame, (255 * (np.arange(256) / 255) ** gamma).round().astype(np.uint8))
