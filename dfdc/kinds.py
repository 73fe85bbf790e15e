"""What the first bytes of a picture tell before it is decoded: a kind that is not read, or the size of a JPEG."""

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


def jpeg_size(data: bytes) -> tuple[int, int] | None:
    """Width and height in pixels that a JPEG declares (ITU T.81, B.2.2); None if it is not a JPEG."""
    place = 2
    while data[:2] == b"\xff\xd8" and place + 9 <= len(data) and data[place] == 0xFF:
        marker = data[place + 1]
        if 0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC):  # a frame, and no table
            return int.from_bytes(data[place + 7 : place + 9], "big"), int.from_bytes(
                data[place + 5 : place + 7], "big"
            )
        place += 2 + int.from_bytes(data[place + 2 : place + 4], "big")
    return None
