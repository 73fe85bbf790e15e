"""What an MP4's tables claim, read before FFmpeg allocates by it.

FFmpeg keeps an entry for every sample that a track claims, and a claim of 80 million samples takes 12 bytes: a file of
100 kB with four such tracks takes 10 GB. No option of FFmpeg limits it.
"""

from __future__ import annotations

import io
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import BinaryIO

import numpy as np

from dfdc.errors import VideoError

# Samples in all tracks: 20 hours of video and sound.
MAX_SAMPLES = 4_000_000
# A clip of ten hours in fragments of a second has 400,000 boxes.
MAX_BOXES = 500_000
# FFmpeg looks no deeper either.
MAX_DEPTH = 10
# Of a table or a compressed header, no more than this is read.
MAX_BYTES = 1 << 24
# FFmpeg cuts sound without compression into pieces of so many samples, and keeps an entry for each.
PIECE = 1024
# Boxes that FFmpeg looks for tables in, which may hide in one that is marked as free.
PARENTS = frozenset(b"moov trak mdia minf stbl moof traf udta edts dinf mvex wide free skip hoov".split())
SOUND, PICTURE = b"soun", b"vide"


@dataclass
class _Track:
    """What the tables of one track say.

    Attributes:
        n_samples: how many samples it claims.
        n_chunks, longest: its chunks, and how many samples the longest of them claims.
        is_sound: whether it says that it is sound, and nothing else.
        is_even: whether every sample lasts one tick, as those of uncompressed sound do.
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
    """Refuse an MP4 whose tables claim more than a clip has; a file of another kind passes.

    Args:
        file: open for reading; its position changes.
        size: of it in bytes.

    Raises:
        VideoError: more samples than `MAX_SAMPLES` or more boxes than `MAX_BOXES`.
    """
    claims = _Claims()
    _walk(file, 0, size, claims, depth=0)
    n_entries = sum(track.n_entries() for track in claims.tracks)
    if n_entries > MAX_SAMPLES:
        raise VideoError(f"its tables claim {n_entries} samples; allowed are {MAX_SAMPLES}")


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
    """A QuickTime header that is compressed: a box that names the method, then one with its size and the data."""
    for kind, first, last in _boxes(file, start, end):
        if kind == b"cmvd":
            file.seek(first + 4)
            try:
                data = zlib.decompressobj().decompress(file.read(max(min(last - first - 4, MAX_BYTES), 0)), MAX_BYTES)
            except zlib.error:
                return  # FFmpeg does not read it either
            _walk(io.BytesIO(data), 0, len(data), claims, depth=depth)


def _boxes(file: BinaryIO, start: int, end: int) -> Iterator[tuple[bytes, int, int]]:
    """The boxes that follow one another (ISO 14496-12, 4.2): kind, start and end of the content of each."""
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
    """Enter what one box says of a track; each begins with four bytes of version and flags."""

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
