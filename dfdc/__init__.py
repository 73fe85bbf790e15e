"""Deepfake detection: the probability that a face in a video was faked.

>>> import dfdc
>>> detector = dfdc.load_detector()
>>> analysis = detector.analyze("clip.mp4")
>>> analysis.probability
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from dfdc.version import __version__

if TYPE_CHECKING:
    from dfdc.analysis import Analysis, FaceTrack, Timings
    from dfdc.api import Detector, load_detector
    from dfdc.errors import DataError, DeviceError, DfdcError, InputError, VideoError, WeightsError

# Names are imported at their first use, so `import dfdc` alone loads no library.
_HOMES = {
    **dict.fromkeys(("Detector", "load_detector"), "dfdc.api"),
    **dict.fromkeys(("Analysis", "FaceTrack", "Timings"), "dfdc.analysis"),
    **dict.fromkeys(
        ("DfdcError", "InputError", "WeightsError", "DeviceError", "DataError", "VideoError"), "dfdc.errors"
    ),
}

__all__ = [
    "Analysis",
    "DataError",
    "Detector",
    "DeviceError",
    "DfdcError",
    "FaceTrack",
    "InputError",
    "Timings",
    "VideoError",
    "WeightsError",
    "__version__",
    "load_detector",
]


def __getattr__(name: str) -> object:
    if name not in _HOMES:
        raise AttributeError(f"module 'dfdc' has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted(__all__)
