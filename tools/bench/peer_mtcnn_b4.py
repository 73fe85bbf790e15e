"""Score clips as published notebooks of the challenge do, through the packages' own code, and print what it costs.

python tools/bench/peer_mtcnn_b4.py clip.mp4 other.mp4 --frames 32

OpenCV reads 32 frames spread over the clip, facenet-pytorch's MTCNN finds faces in the frames at half size, and
efficientnet-pytorch's EfficientNet-B4 scores the largest face of each frame at 224 px, in PyTorch. Its weights are
random: they cost what trained ones cost, and the scores are thrown away. The last line is JSON.
"""

from __future__ import annotations

import json
import resource
import sys
import time
from pathlib import Path

import cv2
import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from dfdc.errors import InputError
from dfdc.flags import make_parser, positive, run_tool, tool

FACE_MARGIN, FACE_SIZE = 0.3, 224


def read_spread(path: Path, n_frames: int) -> list[np.ndarray]:
    """RGB frames (H, W, 3) uint8, spread evenly over the clip: all are grabbed, the chosen ones retrieved."""
    video = cv2.VideoCapture(str(path))
    count = int(video.get(cv2.CAP_PROP_FRAME_COUNT))
    chosen = set(np.linspace(0, count - 1, n_frames).astype(int).tolist())
    frames = []
    for place in range(count):
        if not video.grab():
            break
        if place in chosen:
            ok, frame = video.retrieve()
            if ok:
                frames.append(cv2.cvtColor(frame, cv2.COLOR_BGR2RGB))
    video.release()
    return frames


def cut_face(frame: np.ndarray, box: np.ndarray) -> np.ndarray:
    """The face's square with a margin, (224, 224, 3) uint8."""
    left, top, right, bottom = box
    half = max(right - left, bottom - top) * (1 + FACE_MARGIN) / 2
    x, y = (left + right) / 2, (top + bottom) / 2
    height, width = frame.shape[:2]
    part = frame[max(int(y - half), 0) : min(int(y + half), height), max(int(x - half), 0) : min(int(x + half), width)]
    return cv2.resize(part, (FACE_SIZE, FACE_SIZE), interpolation=cv2.INTER_AREA)


@tool
def main(argv: list[str] | None = None) -> int:
    parser = make_parser(__doc__)
    parser.add_argument("paths", nargs="+", type=Path, metavar="CLIP", help="clips, scored one after another")
    frames_help = "number of frames of each clip (default: %(default)s)"
    parser.add_argument("--frames", type=positive, default=32, help=frames_help)
    parser.add_argument("--threads", type=positive, default=2, help="threads of PyTorch (default: %(default)s)")
    args = parser.parse_args(argv)
    began = time.monotonic()
    import torch
    from efficientnet_pytorch import EfficientNet
    from facenet_pytorch import MTCNN

    torch.set_num_threads(args.threads)
    detector = MTCNN(keep_all=True, post_process=False, device="cpu")
    model = EfficientNet.from_name("efficientnet-b4", num_classes=1).eval()
    startup_s, walls, cores = time.monotonic() - began, [], []
    for path in args.paths:
        started, cpu = time.monotonic(), time.process_time()
        frames = read_spread(path, args.frames)
        if not frames:
            raise InputError(f"{path}: OpenCV reads no frame of it; name another clip")
        halves = [cv2.resize(frame, None, fx=0.5, fy=0.5, interpolation=cv2.INTER_AREA) for frame in frames]
        boxes, _ = detector.detect(halves)
        largest = [
            own[np.argmax(np.prod(own[:, 2:] - own[:, :2], axis=1))] * 2 if own is not None else None for own in boxes
        ]
        crops = [cut_face(frame, box) for frame, box in zip(frames, largest, strict=True) if box is not None]
        if crops:
            with torch.inference_mode():
                model((torch.from_numpy(np.stack(crops)).permute(0, 3, 1, 2).float() - 127) / 128)
        walls.append(time.monotonic() - started)
        cores.append(time.process_time() - cpu)
    peak_mb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e6
    print(json.dumps({"startup_s": startup_s, "seconds": walls, "core_seconds": cores, "peak_mb": peak_mb}))
    return 0


if __name__ == "__main__":
    run_tool(main)
