"""Write a clip twice in the same encoding: unchanged, and with a flickering face."""

from __future__ import annotations

from itertools import islice
from pathlib import Path

import av
import cv2
import numpy as np
import torch

from dfdc.crop import CropGeometry
from dfdc.detect import FaceDetector
from dfdc.training.blend import self_blend
from dfdc.video import stream_frames


def write_twins(source: Path, folder: Path, *, n_frames: int = 48, detector: FaceDetector) -> tuple[Path, Path]:
    """Write the first frames of a clip twice in H.264: unchanged, and with the face self-blended anew in each frame.

    Args:
        source: clip with a face in its first frame that hardly moves.
        folder: folder for steady.mp4 and flickering.mp4.
        n_frames: number of frames.
        detector: detector that finds the face.

    Returns:
        The paths of the steady and of the flickering clip.
    """
    frames = [frame.pixels for frame in islice(stream_frames(source), n_frames)]
    (faces,) = detector.detect(frames[:1])
    left, top, side = CropGeometry().square(faces.boxes[0])
    height, width = (length // 2 * 2 for length in frames[0].shape[:2])
    paths = folder / "steady.mp4", folder / "flickering.mp4"
    for path in paths:
        with av.open(str(path), "w") as output:
            stream = output.add_stream("libx264", rate=25, options={"crf": "18", "preset": "ultrafast"})
            stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
            for number, pixels in enumerate(frames):
                if path == paths[1]:
                    pixels = pixels.copy()
                    rows, columns = slice(max(top, 0), top + side), slice(max(left, 0), left + side)
                    pixels[rows, columns] = _blend(pixels[rows, columns], number)
                output.mux(stream.encode(av.VideoFrame.from_ndarray(pixels[:height, :width], "rgb24")))
            output.mux(stream.encode(None))
    return paths


def _blend(patch: np.ndarray, seed: int) -> np.ndarray:
    """Blend a face onto itself; the patch is resized for that and back."""
    square = torch.from_numpy(cv2.resize(patch, (224, 224))).permute(2, 0, 1)[None].float()
    _, blended = self_blend(square, torch.Generator().manual_seed(seed), keep_target=True)
    changed = cv2.resize((blended - square)[0].permute(1, 2, 0).numpy(), patch.shape[1::-1])
    return np.clip(patch + changed, 0, 255).round().astype(np.uint8)
