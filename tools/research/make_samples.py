"""Make the sample clips that lie in samples/: one real, one doctored, from a public-domain portrait.

    python tools/research/make_samples.py --out samples

The face is Eileen Collins's, from NASA's portrait (public domain, shipped with scikit-image). The camera moves; in the
doctored clip an oval of the face is replaced by a colour-shifted, blurred and slightly larger copy of itself, as a
careless face swap would leave it.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path

import av
import cv2
import numpy as np
from skimage.data import astronaut

SIDE = 384
FRAMES = 75
RATE = 25
# Where the face is in the portrait, in its 512 pixels: centre, and half axes of its oval.
FACE_CENTRE = (223.0, 120.0)
FACE_AXES = (44.0, 60.0)


def move_camera(portrait: np.ndarray) -> Iterator[np.ndarray]:
    """Frames (SIDE, SIDE, 3) uint8 RGB of a hand-held camera that drifts, sways and comes a little closer."""
    for index in range(FRAMES):
        phase = 2 * np.pi * index / FRAMES
        zoom = 1.15 + 0.15 * np.sin(phase / 2)
        matrix = cv2.getRotationMatrix2D(FACE_CENTRE, 4 * np.sin(phase), zoom)
        matrix[:, 2] += np.array([SIDE / 2, SIDE / 2.6]) - FACE_CENTRE
        matrix[:, 2] += [14 * np.sin(phase), 8 * np.sin(2 * phase)]
        yield cv2.warpAffine(portrait, matrix, (SIDE, SIDE), flags=cv2.INTER_AREA, borderMode=cv2.BORDER_REFLECT)


def doctor(portrait: np.ndarray) -> np.ndarray:
    """The portrait (512, 512, 3) uint8 RGB with its face pasted over, badly."""
    larger = cv2.getRotationMatrix2D(FACE_CENTRE, 3.0, 1.08)
    pasted = cv2.GaussianBlur(cv2.warpAffine(portrait, larger, portrait.shape[1::-1]), (0, 0), 1.6).astype(np.float32)
    pasted = pasted * [0.92, 1.0, 1.06] + [10, 4, -6]
    mask = np.zeros(portrait.shape[:2], np.float32)
    cv2.ellipse(mask, (FACE_CENTRE, (2 * FACE_AXES[0], 2 * FACE_AXES[1]), 0), 1.0, -1)
    mask = cv2.GaussianBlur(mask, (0, 0), 2.5)[..., None]
    return np.clip(mask * pasted + (1 - mask) * portrait, 0, 255).round().astype(np.uint8)


def write_clip(path: Path, frames: Iterator[np.ndarray]) -> Path:
    """Write frames (H, W, 3) uint8 RGB as H.264; the same frames give the same bytes with the same encoder."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=RATE, options={"crf": "23", "preset": "slow", "threads": "1"})
        stream.width, stream.height, stream.pix_fmt = SIDE, SIDE, "yuv420p"
        stream.time_base = Fraction(1, RATE)
        for frame in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(stream.encode(None))
    return path


def make_samples(out: Path) -> list[Path]:
    """Write both clips into a folder and return their paths."""
    out.mkdir(parents=True, exist_ok=True)
    portrait = astronaut()
    return [
        write_clip(out / "real.mp4", move_camera(portrait)),
        write_clip(out / "doctored.mp4", move_camera(doctor(portrait))),
    ]


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("samples"), help="folder to write to (default: %(default)s)")
    for path in make_samples(parser.parse_args(argv).out):
        print(f"{path}: {path.stat().st_size / 1000:.0f} kB")
    return 0


if __name__ == "__main__":
    sys.exit(main())
