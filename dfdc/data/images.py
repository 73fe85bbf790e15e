"""Picture files -> pixels, for everything that tables name: crops, and photographs to cut them from."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np

from dfdc.files import read_file


def read_image(path: Path) -> np.ndarray | None:
    """The pixels of a picture, see `decode_image`; None if it is absent, no regular file, or not a picture."""
    try:
        return decode_image(read_file(path))
    except OSError:
        return None


def decode_image(data: bytes) -> np.ndarray | None:
    """The pixels (H, W, 3) uint8 RGB of an encoded picture; None if it is not one."""
    pixels = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR) if data else None
    return None if pixels is None else cv2.cvtColor(pixels, cv2.COLOR_BGR2RGB)
