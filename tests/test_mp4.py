from __future__ import annotations

import io
import struct
import zlib
from pathlib import Path

import pytest
from clips import write_clip, write_with_sound

from dfdc.errors import VideoError
from dfdc.mp4 import MAX_SAMPLES, check_tables
from dfdc.video import read_frames


def box(kind: bytes, *parts: bytes) -> bytes:
    """A box as defined in ISO 14496-12, 4.2."""
    content = b"".join(parts)
    return struct.pack(">I4s", 8 + len(content), kind) + content


def table(kind: bytes, *numbers: int) -> bytes:
    """A full box of version 0 whose numbers have four bytes."""
    return box(kind, struct.pack(f">I{len(numbers)}I", 0, *numbers))


def track(n_samples: int, *, handler: bytes = b"vide", step: int = 1001, chunks: tuple[int, int] = (1, 1)) -> bytes:
    """A track of one-byte samples; chunks gives the number of chunks and of samples in each."""
    n_chunks, longest = chunks
    tables = box(
        b"stbl",
        table(b"stts", 1, n_samples, step),
        table(b"stsc", 1, 1, longest, 1),
        table(b"stsz", 1, n_samples),
        table(b"stco", n_chunks, *[0] * min(n_chunks, 4)),
    )
    name = box(b"hdlr", bytes(8) + handler + bytes(12))
    return box(b"trak", box(b"mdia", name, box(b"minf", tables)))


def check(data: bytes) -> None:
    check_tables(io.BytesIO(data), len(data))


HEAD = box(b"ftyp", b"isom", bytes(4))
MANY = track(MAX_SAMPLES + 1)


@pytest.mark.parametrize(
    "data",
    [
        HEAD + box(b"moov", MANY),
        HEAD + box(b"moov", *[track(MAX_SAMPLES // 4 + 1)] * 4),
        HEAD + box(b"mdat", bytes(100)) + box(b"moov", MANY),
        HEAD + struct.pack(">I4sQ", 1, b"mdat", 116) + bytes(100) + box(b"moov", MANY),
        HEAD + struct.pack(">I4s", 0, b"moov") + MANY,
        HEAD + box(b"free", MANY),
        HEAD + box(b"moov", box(b"udta", MANY)),
        HEAD + box(b"moof", box(b"traf", table(b"trun", MAX_SAMPLES + 1))),
        HEAD + box(b"moov", box(b"cmov", box(b"dcom", b"zlib"), box(b"cmvd", bytes(4), zlib.compress(MANY)))),
        HEAD + box(b"moov", track(9, handler=b"soun", step=1, chunks=(4, 2**31))),
        HEAD + box(b"moov", track(MAX_SAMPLES + 1, handler=b"soun", step=1024)),
    ],
    ids=["one", "four", "behind", "wide", "to-the-end", "free", "udta", "fragment", "compressed", "chunks", "sound"],
)
def test_tables_with_impossible_counts_are_refused(data):
    with pytest.raises(VideoError, match=rf"its tables claim \d+ samples; allowed are {MAX_SAMPLES}"):
        check(data)


@pytest.mark.parametrize(
    "data",
    [
        HEAD + box(b"moov", track(MAX_SAMPLES)),
        # An hour of uncompressed audio with 48,000 samples per second in chunks of half a second.
        HEAD + box(b"moov", track(3600 * 48_000, handler=b"soun", step=1, chunks=(7200, 24_000))),
        b"",
        bytes(5000),
        b"\x1a\x45\xdf\xa3" * 100,
        HEAD + box(b"moov", box(b"cmov", box(b"dcom", b"zlib"), box(b"cmvd", bytes(4), b"no zlib"))),
        HEAD + struct.pack(">I4s", 3, b"moov") + MANY,
    ],
    ids=["most", "raw-sound", "empty", "zeros", "matroska", "damaged", "no-length"],
)
def test_tables_with_possible_counts_pass(data):
    check(data)


def test_endlessly_nested_boxes_are_not_followed():
    data = MANY
    for _ in range(5000):
        data = box(b"moov", data)
    check(data)


def test_real_tables_pass(tmp_path: Path) -> None:
    for path in (write_clip(tmp_path / "a.mp4"), write_with_sound(tmp_path / "b.mov", {})):
        with path.open("rb") as file:
            check_tables(file, path.stat().st_size)


def test_clip_with_impossible_counts_is_refused(tmp_path):
    path = tmp_path / "a.mp4"
    path.write_bytes(HEAD + box(b"moov", *[track(80_000_000)] * 4))
    with pytest.raises(VideoError, match="its tables claim 320000000 samples"):
        read_frames(path, 4)
