"""Frames -> face boxes: MTCNN's three nets from facenet-pytorch, in batches.

facenet-pytorch's own `detect_face` resizes whole batches of float frames by torch, which takes more than half of its
time, and stumbles over candidates that lie outside the frame. Here OpenCV resizes the 8-bit frames once to the scale
of the smallest face that matters; the nets, their weights and the steps between them are the package's.
"""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np
import torch
from facenet_pytorch.models.mtcnn import ONet, PNet, RNet
from facenet_pytorch.models.utils.detect_face import batched_nms_numpy, bbreg, generateBoundingBox, pad, rerec
from torch import Tensor
from torchvision.ops import batched_nms

from dfdc.runtime import Net, compile_net

# Frames go through the first net in groups of so many, which bounds memory; candidates likewise.
BATCH_FRAMES = 4
BATCH_CANDIDATES = 256
# The side in pixels of what each net sees.
PNET_SIDE, RNET_SIDE, ONET_SIDE = 12, 24, 48
# Step of the scale pyramid, facenet-pytorch's own.
PYRAMID_FACTOR = 0.709


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


class FaceDetector:
    """MTCNN with the weights that lie inside the facenet-pytorch package; nothing is downloaded."""

    def __init__(self, device: torch.device | str = "cpu") -> None:
        self.device = torch.device(device)
        self.pnet = self._load(PNet(), 4 * PNET_SIDE, any_size=True)
        self.rnet = self._load(RNet(), RNET_SIDE)
        self.onet = self._load(ONet(), ONET_SIDE)

    def _load(self, net: torch.nn.Module, side: int, *, any_size: bool = False) -> Net:
        net = net.eval().requires_grad_(False).to(self.device)
        return compile_net(net, torch.zeros((1, 3, side, side), device=self.device), any_size=any_size)

    def detect(self, frames: list[np.ndarray], settings: DetectorSettings = QUICK) -> list[Faces]:
        """Find the faces of frames.

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
            while stop < min(len(frames), start + BATCH_FRAMES) and frames[stop].shape == frames[start].shape:
                stop += 1
            found += self._detect_batch(frames[start:stop], settings)
            start = stop
        return found

    def search(self, frames: list[np.ndarray]) -> tuple[list[int], list[Faces]]:
        """Find the faces of a clip's frames: a quick look at all; where that finds none, a hard look at some.

        Args:
            frames: (H, W, 3) uint8 RGB each, in order of time.

        Returns:
            The indices of the frames that were searched, rising, and one `Faces` for each of them.
        """
        found = self.detect(frames)
        if any(len(faces) for faces in found):
            return list(range(len(frames))), found
        some = np.unique(np.linspace(0, len(frames) - 1, HARD_FRAMES).round().astype(int)).tolist()
        return some, [self.detect([frames[index]], HARD)[0] for index in some]

    @torch.inference_mode()
    def _detect_batch(self, frames: list[np.ndarray], settings: DetectorSettings) -> list[Faces]:
        if settings.brighten:
            frames = [_brighten(frame) for frame in frames]
        boxes, owners = self._propose(frames, settings)
        boxes, owners = self._refine(frames, boxes, owners, settings.thresholds[1])
        boxes, owners, points = self._finish(frames, boxes, owners, settings.thresholds[2])
        order = torch.argsort(boxes[:, 4], descending=True, stable=True)
        faces = []
        for index in range(len(frames)):
            own = order[owners[order] == index]
            faces.append(Faces(boxes[own, :4].numpy(), boxes[own, 4].numpy(), points[own].numpy()))
        return faces

    def _propose(self, frames: list[np.ndarray], settings: DetectorSettings) -> tuple[Tensor, Tensor]:
        """P-Net over a pyramid: square candidates (K, 5) x0, y0, x1, y1, score and their frames (K,)."""
        height, width = frames[0].shape[:2]
        # A frame smaller than the smallest face that matters is still looked at as a whole.
        smallest = min(max(settings.min_face_ratio * max(height, width), 20.0), float(min(height, width)))
        scale = PNET_SIDE / max(smallest, 1.0)
        levels, found, owners = frames, [torch.zeros((0, 9))], [torch.zeros(0, dtype=torch.int64)]
        while min(height, width) * scale >= PNET_SIDE - 1e-6:
            size = (int(width * scale + 1), int(height * scale + 1))
            levels = [cv2.resize(level, size, interpolation=cv2.INTER_AREA) for level in levels]
            offsets, scores = self._run(self.pnet, np.stack(levels))
            boxes, frame = generateBoundingBox(offsets, scores[:, 1], scale, settings.thresholds[0])
            picked = batched_nms(boxes[:, :4], boxes[:, 4], frame, 0.5)
            found.append(boxes[picked])
            owners.append(frame[picked])
            scale *= PYRAMID_FACTOR
        boxes, frame = torch.cat(found), torch.cat(owners)
        picked = batched_nms(boxes[:, :4], boxes[:, 4], frame, 0.7)
        boxes, frame = boxes[picked], frame[picked]
        sides = (boxes[:, 2:4] - boxes[:, :2]).repeat(1, 2)
        return rerec(torch.cat([boxes[:, :4] + boxes[:, 5:9] * sides, boxes[:, 4:5]], 1)), frame

    def _refine(
        self, frames: list[np.ndarray], boxes: Tensor, owners: Tensor, threshold: float
    ) -> tuple[Tensor, Tensor]:
        """R-Net: of the candidates those that it believes, moved and square again."""
        boxes, owners, patches = _cut_patches(frames, boxes, owners, RNET_SIDE)
        if not len(boxes):
            return boxes, owners
        offsets, scores = self._run(self.rnet, patches)
        kept = scores[:, 1] > threshold
        boxes, owners, offsets = torch.cat([boxes[kept, :4], scores[kept, 1:]], 1), owners[kept], offsets[kept]
        picked = batched_nms(boxes[:, :4], boxes[:, 4], owners, 0.7)
        return rerec(bbreg(boxes[picked], offsets[picked])), owners[picked]

    def _finish(
        self, frames: list[np.ndarray], boxes: Tensor, owners: Tensor, threshold: float
    ) -> tuple[Tensor, Tensor, Tensor]:
        """O-Net: final boxes (K, 5), their frames (K,) and landmarks (K, 5, 2)."""
        boxes, owners, patches = _cut_patches(frames, boxes, owners, ONET_SIDE)
        if not len(boxes):
            return boxes, owners, torch.zeros((0, 5, 2))
        offsets, points, scores = self._run(self.onet, patches)
        kept = scores[:, 1] > threshold
        boxes, owners, offsets = torch.cat([boxes[kept, :4], scores[kept, 1:]], 1), owners[kept], offsets[kept]
        sides = (boxes[:, 2:4] - boxes[:, :2] + 1)[:, None]
        points = points[kept].view(-1, 2, 5).transpose(1, 2) * sides + boxes[:, None, :2] - 1
        boxes = bbreg(boxes, offsets)
        picked = batched_nms_numpy(boxes[:, :4], boxes[:, 4], owners, 0.7, "Min")
        return boxes[picked], owners[picked], points[picked]

    def _run(self, net: Net, images: np.ndarray) -> list[Tensor]:
        """A net's outputs, on the CPU, for uint8 images (N, H, W, 3)."""
        outputs = []
        for batch in torch.from_numpy(images).split(BATCH_CANDIDATES):
            pixels = (batch.to(self.device).permute(0, 3, 1, 2).float() - 127.5) / 128
            outputs.append([output.cpu() for output in net(pixels)])
        return [torch.cat(parts) for parts in zip(*outputs, strict=True)]


def _cut_patches(
    frames: list[np.ndarray], boxes: Tensor, owners: Tensor, side: int
) -> tuple[Tensor, Tensor, np.ndarray]:
    """What a net sees of its candidates, (K, side, side, 3) uint8, without those that lie outside their frame."""
    height, width = frames[0].shape[:2]
    top, bottom, left, right = (np.asarray(edge) for edge in pad(boxes, width, height))
    inside = torch.from_numpy((bottom >= top) & (right >= left))
    patches = np.empty((int(inside.sum()), side, side, 3), np.uint8)
    for patch, k in zip(patches, torch.nonzero(inside).flatten().tolist(), strict=True):
        region = frames[int(owners[k])][top[k] - 1 : bottom[k], left[k] - 1 : right[k]]
        patch[:] = cv2.resize(region, (side, side), interpolation=cv2.INTER_AREA)
    return boxes[inside], owners[inside], patches


def _brighten(frame: np.ndarray) -> np.ndarray:
    """Lift shadows by a gamma that brings a dark frame's mean to a third of the range; bright frames stay."""
    mean = float(frame.mean()) / 255
    if mean >= 1 / 3:
        return frame
    gamma = max(np.log(1 / 3) / np.log(max(mean, 1e-3)), 0.25)
    return cv2.LUT(frame, (255 * (np.arange(256) / 255) ** gamma).round().astype(np.uint8))
