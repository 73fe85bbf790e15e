"""The kinds of pictures that are not read, by their first bytes, so that an error can name them."""

from __future__ import annotations

TIFF = (b"II*\0", b"MM\0*")
# Brands of HEIF pictures in HEVC (ISO 23008-12, annex B).
HEIC = frozenset({b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1"})


def name_picture(head: bytes) -> str:
    """The kind of a picture that is not read; empty if it is none of these kinds.

    Args:
        head: the first 16 bytes of the file, or all if there are fewer.
    """
    if head[:4] in TIFF:
        return "TIFF"
    if head[:2] == b"BM" and head[6:10] == bytes(4):  # two reserved numbers, both 0
        return "BMP"
    return "HEIC" if head[4:8] == b"ftyp" and head[8:12] in HEIC else ""
