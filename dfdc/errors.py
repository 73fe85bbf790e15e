"""The errors that the package raises for mistakes of the user and for unusable files.

Each message is one or two sentences that name the thing, its value, what is allowed and the cure. A program that uses
the package catches `DfdcError`; every other exception is a bug and keeps its traceback.
"""

from __future__ import annotations


class DfdcError(Exception):
    """The base of all errors that the package raises on purpose."""


class SettingError(DfdcError, ValueError):
    """A setting outside its allowed values."""


class InputError(DfdcError):
    """An argument, a path or a table that cannot be used."""


class OutputError(InputError, OSError):
    """A file that was named for output and cannot be written, or must not be."""


class WeightsError(DfdcError):
    """Weights that are missing, damaged or do not fit their architecture."""


class NonFiniteError(DfdcError, FloatingPointError):
    """A model whose output is infinite or not a number, which half precision may cause."""


class DeviceError(DfdcError):
    """A device that was asked for and cannot be used."""


class DataError(DfdcError):
    """Training or evaluation data that cannot be used."""


class MachineError(DfdcError):
    """A failure of the machine, not of the clip or the user: a read error, or too little memory, space or processes."""


class VideoError(DfdcError):
    """A clip that cannot be read."""


class VideoTimeout(VideoError):
    """A clip whose time limit ended before anything was read."""


class Misaligned(VideoError):
    """Two clips that do not show the same scene frame by frame."""


class BundleError(DfdcError):
    """A Kaggle bundle that is damaged, cannot be made or does not fit this machine."""
