"""Write small clips of a face in eight containers, and damage them with a seed."""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import av

ROOT = Path(__file__).resolve().parents[2]
SAMPLE = ROOT / "samples/real.mp4"

# File name -> encoder and container options: MP4s with the index at the end, at the start and in fragments, then other
# containers.
BASES: dict[str, tuple[str, dict[str, str]]] = {
    "behind.mp4": ("libx264", {}),
    "front.mp4": ("libx264", {"movflags": "faststart"}),
    "pieces.mp4": ("libx264", {"movflags": "frag_keyframe+empty_moov"}),
    "vp8.webm": ("libvpx", {}),
    "h264.mkv": ("libx264", {}),
    "mpeg2.ts": ("mpeg2video", {}),
    "mpeg1.mpg": ("mpeg1video", {}),
    "mpeg4.avi": ("mpeg4", {}),
}
# ISO 14496-12: boxes that hold boxes.
BOXES_OF_BOXES = {b"moov", b"trak", b"mdia", b"minf", b"stbl", b"dinf", b"edts", b"udta", b"mvex", b"moof", b"traf"}


@dataclass(frozen=True)
class Damage:
    """One damaged clip.

    Attributes:
        kind: kind of damage, as the table names it.
        name: file name.
        data: content of the file.
    """

    kind: str
    name: str
    data: bytes


@dataclass(frozen=True)
class Box:
    """Where an MP4's box lies: its first byte and the one behind its last, and the box that holds it (its start)."""

    start: int
    end: int
    parent: int
    kind: bytes


def cut(
    target: Path,
    *,
    codec: str = "libx264",
    size: int = 192,
    n_frames: int = 12,
    container_options: dict[str, str] | None = None,
) -> Path:
    """Write the first frames of the sample clip with another size and encoding."""
    with av.open(str(SAMPLE)) as clip, av.open(str(target), "w", options=container_options or {}) as output:
        stream = output.add_stream(codec, rate=25)
        stream.width = stream.height = size
        stream.pix_fmt = "yuv420p"
        stream.bit_rate = 400_000
        for i, frame in enumerate(clip.decode(video=0)):
            if i == n_frames:
                break
            small = frame.reformat(size, size, "yuv420p")
            small.pts, small.pict_type = i, av.video.frame.PictureType.NONE
            small.time_base = stream.codec_context.time_base or Fraction(1, 25)
            output.mux(stream.encode(small))
        output.mux(stream.encode(None))
    return target


def write_bases(folder: Path) -> dict[str, Path]:
    """Write the clips to damage and return them by name; each shows a face."""
    folder.mkdir(exist_ok=True)
    return {
        name: cut(folder / name, codec=codec, container_options=options) for name, (codec, options) in BASES.items()
    }


def find_boxes(data: bytes) -> list[Box]:
    """List the boxes of an MP4, each before the boxes inside it; empty for other containers."""

    def walk(start: int, end: int, parent: int) -> Iterator[Box]:
        while start + 8 <= end:
            size, kind = int.from_bytes(data[start : start + 4], "big"), data[start + 4 : start + 8]
            if not 8 <= size <= end - start:
                return
            yield Box(start, start + size, parent, kind)
            if kind in BOXES_OF_BOXES:
                yield from walk(start + 8, start + size, start)
            start += size

    return list(walk(0, len(data), -1)) if data[4:8] == b"ftyp" else []


def header_span(data: bytes) -> tuple[int, int]:
    """The byte range of a clip's header: the moov box of an MP4, otherwise the first kilobyte."""
    moov = next((box for box in find_boxes(data) if box.kind == b"moov"), None)
    return (moov.start, moov.end) if moov else (0, 1024)


def truncate(data: bytes) -> Iterator[bytes]:
    """Yield a clip cut off at every fiftieth of its length."""
    for share in range(1, 50):
        yield data[: len(data) * share // 50]


def flip_bits(data: bytes, chance: random.Random, span: tuple[int, int]) -> bytes:
    """Flip 1 to 16 bits."""
    flipped = bytearray(data)
    for _ in range(chance.randint(1, 16)):
        flipped[chance.randrange(*span)] ^= 1 << chance.randrange(8)
    return bytes(flipped)


def zero_span(data: bytes, chance: random.Random) -> bytes:
    """Set up to a tenth of the bytes to zero."""
    length = chance.randint(4, len(data) // 10)
    start = chance.randrange(len(data) - length)
    return data[:start] + bytes(length) + data[start + length :]


def swap_boxes(data: bytes, chance: random.Random) -> bytes:
    """Swap two boxes of the same parent."""
    boxes = find_boxes(data)
    first = chance.choice([box for box in boxes if sum(other.parent == box.parent for other in boxes) > 1])
    second = chance.choice([box for box in boxes if box.parent == first.parent and box != first])
    first, second = sorted((first, second), key=lambda box: box.start)
    between = data[first.end : second.start]
    return (
        data[: first.start]
        + data[second.start : second.end]
        + between
        + data[first.start : first.end]
        + data[second.end :]
    )


def misstate_size(data: bytes, chance: random.Random) -> bytes:
    """Write a wrong size into a box, or into any four bytes of another container's header."""
    boxes = find_boxes(data)
    where = chance.choice(boxes).start if boxes else 4 * chance.randrange(256)
    honest = int.from_bytes(data[where : where + 4], "big")
    size = chance.choice([0, 1, 2, 7, 8, 9, honest + 1, honest - 1, 2 * honest, 2**31 - 1, 2**31, 2**32 - 1, len(data)])
    return data[:where] + (size % 2**32).to_bytes(4, "big") + data[where + 4 :]


def join(data: bytes, other: bytes, chance: random.Random) -> bytes:
    """Concatenate two clips, each of them whole or in part."""
    return (
        data[: chance.choice([len(data), chance.randrange(len(data))])] + other[chance.choice([0, len(other) // 2]) :]
    )


def damage(bases: dict[str, bytes], *, seed: int = 0) -> Iterator[Damage]:
    """Yield all damaged clips: over 500, and the same ones for the same seed and bases.

    Args:
        bases: file name -> content, as `write_bases` writes them.
        seed: seed of all random choices.
    """
    for name in ("behind.mp4", "front.mp4", "vp8.webm", "mpeg2.ts"):
        for i, data in enumerate(truncate(bases[name]), start=1):
            yield Damage("truncated", f"truncated-{2 * i:02d}-{name}", data)
    for name, data in bases.items():
        others = [other for other in bases if other != name]
        span = header_span(data)
        recipes = {
            "bits flipped in the header": (12, lambda chance, d=data, s=span: flip_bits(d, chance, s)),
            "bits flipped anywhere": (8, lambda chance, d=data: flip_bits(d, chance, (0, len(d)))),
            "zeroed span": (6, lambda chance, d=data: zero_span(d, chance)),
            "wrong size": (8, lambda chance, d=data: misstate_size(d, chance)),
            "swapped boxes": (8 if find_boxes(data) else 0, lambda chance, d=data: swap_boxes(d, chance)),
            "concatenated": (4, lambda chance, d=data, o=others: join(d, bases[chance.choice(o)], chance)),
        }
        for kind, (n, recipe) in recipes.items():
            for i in range(n):
                chance = random.Random(f"{seed} {kind} {name} {i}")
                yield Damage(kind, f"{kind.replace(' ', '-')}-{i:02d}-{name}", recipe(chance))
