"""Check the sample counts that an MP4's tables declare, before FFmpeg allocates memory for them.

FFmpeg keeps an entry for every sample that a track declares, and 12 bytes are enough to declare 80 million samples: a
file of 100 kB with four such tracks takes 10 GB. FFmpeg has no option to limit this.
"""

from __future__ import annotations

import io
import itertools
import re
import sys
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import BinaryIO

import numpy as np

from dfdc.errors import VideoError

# Most samples in all tracks together: 20 hours of video and sound.
MAX_SAMPLES = 4_000_000
# A clip of ten hours with fragments of one second has 400,000 boxes.
MAX_BOXES = 500_000
# FFmpeg does not look deeper either.
MAX_DEPTH = 10
# No more than this is read of a table or a compressed header.
MAX_BYTES = 1 << 24
# FFmpeg divides uncompressed sound into pieces of this many samples and keeps an entry for each piece.
PIECE = 1024
# Boxes in which FFmpeg looks for tables; even a box that is marked as free may hold some.
PARENTS = frozenset(b"moov trak mdia minf stbl moof traf udta edts dinf mvex wide free skip hoov".split())
# A HEIF picture has the box meta among its first boxes. An entry of the items in it: version and flags, number,
# protection, and the type, here a grid of tiles (ISO 14496-12, 8.11.6).
HEIF_BOXES = 8
TILED = re.compile(rb"infe(?:\x02.{7}|\x03.{9})grid", re.DOTALL)
SOUND, PICTURE = b"soun", b"vide"


@dataclass
class _Track:
    """The counts in the tables of one track.

    Attributes:
        n_samples: number of samples that it declares.
        n_chunks, longest: number of its chunks, and the samples that the longest of them declares.
        is_sound: whether it declares itself as sound, and as nothing else; None if it declares nothing.
        is_even: whether every sample lasts one tick, as in uncompressed sound; None if it has no such table.
    """

    n_samples: int = 0
    n_chunks: int = 0
    longest: int = 0
    is_sound: bool | None = None
    is_even: bool | None = None

    def n_entries(self) -> int:
        if self.is_sound and self.is_even:
            return self.n_chunks * -(-self.longest // PIECE)
        return self.n_samples


@dataclass
class _Claims:
    tracks: list[_Track] = field(default_factory=lambda: [_Track()])
    n_boxes: int = 0


def check_tables(file: BinaryIO, size: int) -> None:
    """Reject an MP4 whose tables declare more than a clip can have; files of other kinds pass.

    Args:
        file: open for reading; its position changes.
        size: of the file in bytes.

    Raises:
        VideoError: more samples than `MAX_SAMPLES` or more boxes than `MAX_BOXES`.
    """
    claims = _Claims()
    _walk(file, 0, size, claims, depth=0)
    n_entries = sum(track.n_entries() for track in claims.tracks)
    if n_entries > MAX_SAMPLES:
        raise VideoError(f"its tables claim {n_entries} samples; allowed are {MAX_SAMPLES}")


def lacks_index(file: BinaryIO, size: int) -> bool:
    """Whether a file is an MP4 without the whole box moov, which cameras write last.

    Args:
        file: open for reading; its position changes.
        size: of the file in bytes.
    """
    ends = {kind: end for kind, _, end in itertools.islice(_boxes(file, 0, sys.maxsize), MAX_BOXES)}
    end = ends.get(b"moov")
    # A box without a length lasts to the end of its file. HEIF pictures have a box meta instead.
    return b"ftyp" in ends and b"meta" not in ends and (end is None or size < end < sys.maxsize)


def is_tiled(file: BinaryIO, size: int) -> bool:
    """Whether a file is a HEIF picture (HEIC, AVIF) that is made of tiles (ISO 23008-12, 6.6.2.3), as cameras write it.

    FFmpeg gives each tile as a stream, so that one tile would be taken for the picture.

    Args:
        file: open for reading; its position changes.
        size: of the file in bytes.
    """
    for kind, start, end in itertools.islice(_boxes(file, 0, size), HEIF_BOXES):
        if kind == b"meta":
            file.seek(start)
            return TILED.search(file.read(min(end - start, MAX_BYTES))) is not None
    return False


def _walk(file: BinaryIO, start: int, end: int, claims: _Claims, *, depth: int) -> None:
    for kind, first, last in _boxes(file, start, end):
        claims.n_boxes += 1
        if claims.n_boxes > MAX_BOXES:
            raise VideoError(f"more than {MAX_BOXES} boxes in an MP4; allowed are {MAX_BOXES}")
        if kind == b"trak":
            claims.tracks.append(_Track())
        if kind in PARENTS or kind == b"cmov":
            if depth < MAX_DEPTH:
                step = _walk if kind in PARENTS else _walk_compressed
                step(file, first, last, claims, depth=depth + 1)
        else:
            _note(claims.tracks[-1], kind, file, first, last)


def _walk_compressed(file: BinaryIO, start: int, end: int, claims: _Claims, *, depth: int) -> None:
    """Read a compressed QuickTime header: one box names the method, the next one holds the size and the data."""
    for kind, first, last in _boxes(file, start, end):
        if kind == b"cmvd":
            file.seek(first + 4)
            try:
                data = zlib.decompressobj().decompress(file.read(max(min(last - first - 4, MAX_BYTES), 0)), MAX_BYTES)
            except zlib.error:
                return  # FFmpeg cannot read it either
            _walk(io.BytesIO(data), 0, len(data), claims, depth=depth)


def _boxes(file: BinaryIO, start: int, end: int) -> Iterator[tuple[bytes, int, int]]:
    """The successive boxes of a range (ISO 14496-12, 4.2): kind, and start and end of the content."""
    while start + 8 <= end:
        file.seek(start)
        head = file.read(16)
        if len(head) < 8:
            return
        length, kind, header = int.from_bytes(head[:4], "big"), head[4:8], 8
        if length == 1 and len(head) == 16:
            length, header = int.from_bytes(head[8:], "big"), 16
        elif length == 0:
            length = end - start
        if length < header:
            return
        yield kind, start + header, min(start + length, end)
        start += length


def _note(track: _Track, kind: bytes, file: BinaryIO, start: int, end: int) -> None:
    """Record the counts in one box of a track; every box begins with four bytes of version and flags."""

    def numbers(first: int, count: int) -> list[int]:
        file.seek(start + 4 * first)
        data = file.read(max(min(4 * count, end - start - 4 * first), 0))
        return np.frombuffer(data[: len(data) // 4 * 4], ">u4").tolist()

    if kind in (b"stsz", b"stz2"):
        track.n_samples += sum(numbers(2, 1))
    elif kind == b"trun":
        track.n_samples += sum(numbers(1, 1))
    elif kind in (b"stco", b"co64"):
        track.n_chunks += sum(numbers(1, 1))
    elif kind == b"stsc":
        track.longest = max([track.longest, *numbers(2, MAX_BYTES // 4)[1::3]])
    elif kind == b"stts":
        even = numbers(1, 3)[::2] == [1, 1]
        track.is_even = even and track.is_even is not False
    elif kind == b"hdlr":
        for name in (number.to_bytes(4, "big") for number in numbers(2, 1)):
            if name in (SOUND, PICTURE):
                track.is_sound = name == SOUND and track.is_sound is not False
