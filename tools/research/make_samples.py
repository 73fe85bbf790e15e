"""Make the sample clips in samples/, one real and one doctored, from a public-domain portrait.

python tools/research/make_samples.py --out samples

The portrait is NASA's of Eileen Collins (public domain, shipped with scikit-image). The camera moves. In the doctored
clip an oval of the face is replaced by a colour-shifted, blurred and slightly enlarged copy of itself, as a careless
face swap would do.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path

import av
import cv2
import numpy as np
from skimage.data import astronaut

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from dfdc.files import make_folder
from dfdc.flags import make_parser, run_tool, tool

SIDE = 384
FRAMES = 75
RATE = 25
# The oval of the face in the portrait of 512 pixels: centre and half axes.
FACE_CENTRE = (223.0, 120.0)
FACE_AXES = (44.0, 60.0)


def move_camera(portrait: np.ndarray) -> Iterator[np.ndarray]:
    """Frames (SIDE, SIDE, 3) uint8 RGB of a hand-held camera that drifts, sways and zooms in a little."""
    for index in range(FRAMES):
        phase = 2 * np.pi * index / FRAMES
        zoom = 1.15 + 0.15 * np.sin(phase / 2)
        matrix = cv2.getRotationMatrix2D(FACE_CENTRE, 4 * np.sin(phase), zoom)
        matrix[:, 2] += np.array([SIDE / 2, SIDE / 2.6]) - FACE_CENTRE
        matrix[:, 2] += [14 * np.sin(phase), 8 * np.sin(2 * phase)]
        yield cv2.warpAffine(portrait, matrix, (SIDE, SIDE), flags=cv2.INTER_AREA, borderMode=cv2.BORDER_REFLECT)


def doctor(portrait: np.ndarray) -> np.ndarray:
    """The portrait (512, 512, 3) uint8 RGB with a careless copy pasted over the face."""
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
    make_folder(out)
    portrait = astronaut()
    return [
        write_clip(out / "real.mp4", move_camera(portrait)),
        write_clip(out / "doctored.mp4", move_camera(doctor(portrait))),
    ]


@tool
def main(argv: list[str] | None = None) -> None:
    parser = make_parser(__doc__)
    parser.add_argument("--out", type=Path, default=Path("samples"), help="folder to write to (default: %(default)s)")
    for path in make_samples(parser.parse_args(argv).out):
        print(f"{path}: {path.stat().st_size / 1000:.0f} kB")


if __name__ == "__main__":
    run_tool(main)
