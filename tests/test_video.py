from __future__ import annotations

import ast
import gc
import itertools
import os
import random
import socket
from collections.abc import Callable, Iterator
from fractions import Fraction
from pathlib import Path
from types import SimpleNamespace

import av
import cv2
import numpy as np
import pytest
import torch
from av import VideoFrame
from clips import claim_size, draw, number_of, rewrite_packets, turn_clip, write_audio, write_clip

from dfdc import video
from dfdc.deadline import NEVER, Deadline
from dfdc.errors import VideoError, VideoTimeout
from dfdc.run.inputs import SUFFIXES
from dfdc.video import MAX_SIDE, Frame, read_frames

QUIET = {"x265-params": "log-level=none"}
# Where the middles of 8 equal parts of 30 frames lie, (i + 0.5) * 30 / 8, cut to whole numbers.
EIGHT_OF_THIRTY = [1, 5, 9, 13, 16, 20, 24, 28]


def numbers(frames: list[Frame]) -> list[int]:
    return [number_of(frame.pixels) for frame in frames]


def everything(path: Path) -> list[tuple[float, av.VideoFrame]]:
    """Every frame with its time from the first, in PyAV's plain way."""
    with av.open(str(path)) as clip:
        frames = list(clip.decode(video=0))
    return [(frame.time - frames[0].time, frame) for frame in frames]


def copy_packets(
    source: Path,
    target: Path,
    change: Callable[[av.Packet, int], None] = lambda packet, number: None,
    *,
    aspect: tuple[int, int] | None = None,
) -> Path:
    """Copy a clip without coding it anew, each packet changed, and with pixels of an aspect."""
    with av.open(str(source)) as clip, av.open(str(target), "w") as output:
        stream = output.add_stream_from_template(clip.streams.video[0])
        if aspect:
            stream.codec_context.sample_aspect_ratio = Fraction(*aspect)
        for number, packet in enumerate(clip.demux(video=0)):
            if packet.size:
                change(packet, number)
                packet.stream = stream
                output.mux(packet)
    return target


def refusal(path: Path) -> str:
    with pytest.raises(VideoError) as caught:
        read_frames(path, 4)
    reason = str(caught.value)
    assert reason and "\n" not in reason and str(path.parent) not in reason
    return reason


# Which frames


@pytest.mark.parametrize(
    ("n_frames", "expected"),
    [
        (2, [7, 22]),
        (4, [3, 11, 18, 26]),
        (8, EIGHT_OF_THIRTY),
        (16, [0, 2, 4, 6, 8, 10, 12, 14, 15, 17, 19, 21, 23, 25, 27, 29]),
        (30, list(range(30))),
        (100, list(range(30))),
    ],
)
def test_frames_are_spread_evenly_over_the_whole_time(tmp_path, n_frames, expected):
    frames = read_frames(write_clip(tmp_path / "a.mp4", codec="mpeg4"), n_frames)
    assert numbers(frames) == expected
    assert [frame.time_s for frame in frames] == pytest.approx([number / 30 for number in expected])


def test_one_frame_comes_from_the_middle(tmp_path):
    assert numbers(read_frames(write_clip(tmp_path / "a.mp4", codec="mpeg4", n_frames=31), 1)) == [15]


@pytest.mark.parametrize("n_frames", [1, 2, 3])
def test_clips_of_few_frames_give_them_all(tmp_path, n_frames):
    frames = read_frames(write_clip(tmp_path / "a.mp4", n_frames=n_frames), 16)
    assert numbers(frames) == list(range(n_frames))
    assert frames[0].time_s == 0


def test_no_frames_asked_for_is_the_callers_mistake(tmp_path):
    with pytest.raises(ValueError, match="n_frames is 0"):
        read_frames(write_clip(tmp_path / "a.mp4", n_frames=1), 0)


def test_uneven_frames_are_spread_over_time_not_over_their_count(tmp_path):
    times = [0, 0.1, 0.2, 0.3, 0.4, 0.5, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10]
    frames = read_frames(write_clip(tmp_path / "a.mp4", n_frames=16, times=times), 8)
    # 16 frames in 10 s are shown for 2/3 s each: the middles are 1/3, 5/3, 9/3, ... s.
    assert [frame.time_s for frame in frames] == pytest.approx([0.3, 2, 3, 4, 6, 7, 8, 10])
    assert numbers(frames) == [times.index(round(frame.time_s, 3)) for frame in frames]


def test_a_long_gap_costs_no_frames(tmp_path):
    times = [number / 30 for number in range(29)] + [10]
    frames = read_frames(write_clip(tmp_path / "a.mp4", codec="mpeg4", times=times), 8)
    assert numbers(frames) == EIGHT_OF_THIRTY


def test_frames_cut_off_by_an_edit_list_are_not_shown(tmp_path):
    path = write_clip(tmp_path / "a.mp4", n_frames=20, times=[number / 10 - 1 for number in range(20)])
    frames = read_frames(path, 4)
    # Ten frames are shown, 10 to 19; the middles of four parts are 1.25, 3.75, 6.25 and 8.75, less half a frame.
    assert numbers(frames) == [11, 13, 16, 18]
    assert [frame.time_s for frame in frames] == pytest.approx([0.1, 0.3, 0.6, 0.8])


def test_raw_streams_without_times_are_counted(tmp_path):
    path = write_clip(tmp_path / "a.mp4", container="h264", rate=25)
    with av.open(str(path)) as clip:
        assert all(packet.pts is None for packet in clip.demux(video=0))
    frames = read_frames(path, 8)
    assert numbers(frames) == EIGHT_OF_THIRTY
    assert [frame.time_s for frame in frames] == pytest.approx([number / 25 for number in EIGHT_OF_THIRTY])


def test_frames_that_all_claim_one_time_are_counted(tmp_path):
    path = write_clip(tmp_path / "a.mp4", codec="mpeg4")
    data = bytearray(path.read_bytes())
    # ISO 14496-12: the table of durations has its name, version, count of entries, then that of an entry's frames.
    count = data.index(b"stts") + 12
    assert int.from_bytes(data[count : count + 4], "big") == 30
    data[count : count + 4] = bytes(4)
    path.write_bytes(data)
    with av.open(str(path)) as clip:
        assert {packet.pts for packet in clip.demux(video=0) if packet.size} == {0}
    assert numbers(read_frames(path, 8)) == EIGHT_OF_THIRTY


# Decoded by a GPU


class OnGpu:
    """A decoded frame as one in a GPU's memory: what it gives away is NV12, and has lost all that is said of it."""

    def __init__(self, frame: VideoFrame) -> None:
        self.lies, self.colorspace, self.color_range = frame, frame.colorspace, frame.color_range
        self.format = SimpleNamespace(name="cuda")
        self.width, self.height, self.interlaced_frame = frame.width, frame.height, frame.interlaced_frame
        self.pts, self.side_data = frame.pts, frame.side_data

    def reformat(self, format: str) -> VideoFrame:
        nv12 = self.lies.reformat(format="nv12", src_color_range=self.color_range, dst_color_range=self.color_range)
        return VideoFrame.from_ndarray(nv12.to_ndarray(), "nv12").reformat(format=format)


Change = Callable[[Iterator[Frame]], Iterator[Frame]]


def decode_on_gpu(monkeypatch: pytest.MonkeyPatch, change: Change = iter) -> list[int | None]:
    """Let this machine's CPU play the GPU; returns where clips were decoded, as it comes."""
    decode, where = video._decode, []

    def decode_there(*args: object, gpu: int | None = None, **kwargs: object) -> Iterator[Frame]:
        with monkeypatch.context() as patch:
            if gpu is None:
                where.append(None)
                yield from decode(*args, **kwargs)
                return
            plain = video._decoded
            patch.setattr(video, "HWAccel", lambda kind, number, **_: where.append(int(number)))
            patch.setattr(video, "_decoded", lambda *a, **k: (OnGpu(frame) for frame in plain(*a, **k)))
            yield from change(decode(*args, gpu=gpu, **kwargs))

    monkeypatch.setattr(video, "_decode", decode_there)
    return where


def same(frames: list[Frame], others: list[Frame]) -> bool:
    return all(
        one.time_s == other.time_s
        and np.array_equal(one.pixels, other.pixels)
        and (one.neighbour is None) == (other.neighbour is None)
        and (one.neighbour is None or np.array_equal(one.neighbour, other.neighbour))
        for one, other in zip(frames, others, strict=True)
    )


@pytest.mark.parametrize("colours", ["tv", "pc"])
@pytest.mark.parametrize("matrix", ["bt709", "smpte170m", "bt2020nc"])
def test_a_gpu_gives_the_same_pixels(tmp_path, monkeypatch, matrix, colours):
    path = write_clip(tmp_path / "a.mp4", options={"colorspace": matrix, "color_range": colours})
    expected = read_frames(path, 8, n_pairs=8)
    where = decode_on_gpu(monkeypatch)
    assert same(read_frames(path, 8, n_pairs=8, gpu=1), expected)
    assert where == [1]


def after_two(error: type[Exception], *arguments: object) -> Change:
    def give(frames: Iterator[Frame]) -> Iterator[Frame]:
        yield from itertools.islice(frames, 2)
        raise error(*arguments)

    return give


@pytest.mark.parametrize(
    "change",
    [
        lambda frames: itertools.islice(frames, 3),
        after_two(VideoError, "no room"),
        after_two(av.error.ExternalError, 1, "CUDA", "failed"),
    ],
)
def test_what_a_gpu_does_not_decode_the_cpu_does(tmp_path, monkeypatch, change):
    path = write_clip(tmp_path / "a.mp4")
    expected = read_frames(path, 8)
    where = decode_on_gpu(monkeypatch, change)
    assert same(read_frames(path, 8, gpu=0), expected)
    assert where == [0, None]


def test_why_a_gpu_did_not_decode_is_told_once(tmp_path, monkeypatch, caplog):
    path = write_clip(tmp_path / "a.mp4")
    decode_on_gpu(monkeypatch, after_two(av.error.ExternalError, 1, "no surfaces left", "failed"))
    for _ in range(3):
        read_frames(path, 8, gpu=0)
    assert caplog.text.count("a GPU did not decode a clip to its end (no surfaces left); the CPU does") == 1


def test_frames_that_a_gpu_decoded_before_time_was_up_count(tmp_path, monkeypatch):
    path = write_clip(tmp_path / "a.mp4")
    out_of_time = itertools.chain([False] * 40, itertools.repeat(True))
    monkeypatch.setattr(Deadline, "expired", lambda _: next(out_of_time))
    decode_on_gpu(monkeypatch, after_two(VideoError, "no room"))
    assert len(read_frames(path, 8, gpu=0)) == 2


@pytest.mark.parametrize(
    ("settings", "turn"),
    [
        ({"options": {"flags": "+ilme+ildct", "x264-params": "tff=1"}}, [0, None]),
        ({"size": (2048, 64)}, [None]),
        ({"options": {"aspect": "1"}}, [None]),
        ({"codec": "mpeg4"}, [None]),
        ({"pixel_format": "yuv444p"}, [None]),
    ],
    ids=str,
)
def test_a_gpu_is_not_asked_for_what_it_would_give_otherwise(tmp_path, monkeypatch, settings, turn):
    path = write_clip(tmp_path / "a.mp4", **settings)
    if "aspect" in settings.get("options", {}):
        path = copy_packets(path, tmp_path / "b.mp4", aspect=(4, 3))
    expected = read_frames(path, 8)
    where = decode_on_gpu(monkeypatch)
    assert same(read_frames(path, 8, gpu=0), expected)
    assert where == turn


def test_what_is_damaged_the_cpu_decodes(tmp_path, monkeypatch):
    numbered = itertools.count()
    whole = write_clip(tmp_path / "whole.mp4", options={"bf": "0"})
    path = rewrite_packets(
        whole, tmp_path / "a.mp4", lambda data: data if next(numbered) != 10 else data[:4] + b"!" * 9
    )
    where = decode_on_gpu(monkeypatch)
    frames = read_frames(path, 8, gpu=0)
    assert where == [0, None]
    assert len(frames) == 8


def test_where_no_gpu_is_the_cpu_decodes(tmp_path):
    path = write_clip(tmp_path / "a.mp4")
    assert same(read_frames(path, 8, gpu=63), read_frames(path, 8))


def test_a_gpu_decodes_where_library_and_pyav_do(monkeypatch):
    has_gpu_decoder = video.has_gpu_decoder.__wrapped__
    monkeypatch.setattr(video, "hwdevices_available", lambda: ["cuda"])
    with monkeypatch.context() as patch:
        patch.setattr(video, "NVDEC_LIBRARY", "libno-such-library.so.1")
        assert not has_gpu_decoder()
    monkeypatch.setattr(video.ctypes, "CDLL", lambda name: None)
    assert has_gpu_decoder()
    monkeypatch.setattr(video, "hwdevices_available", lambda: ["vaapi"])
    assert not has_gpu_decoder()


@pytest.mark.skipif(not (torch.cuda.is_available() and video.has_gpu_decoder()), reason="no GPU that decodes")
def test_this_gpu_gives_the_same_pixels(tmp_path, monkeypatch):
    torch.zeros(1, device="cuda")
    path = write_clip(tmp_path / "a.mp4", size=(640, 480))
    expected = read_frames(path, 8, n_pairs=8)
    fetch, lay_in = video._fetch, set()
    monkeypatch.setattr(video, "_fetch", lambda frame: lay_in.add(frame.format.name) or fetch(frame))
    assert same(read_frames(path, 8, n_pairs=8, gpu=0), expected)
    assert lay_in == {"cuda"}


# Neighbours


@pytest.mark.parametrize(("n_pairs", "with_neighbour"), [(1, [16]), (2, [9, 24]), (8, EIGHT_OF_THIRTY)])
def test_some_frames_come_with_the_next_one(tmp_path, n_pairs, with_neighbour):
    path = write_clip(tmp_path / "a.mp4", codec="mpeg4")
    frames = read_frames(path, 8, n_pairs=n_pairs)
    assert numbers(frames) == EIGHT_OF_THIRTY
    paired = [frame for frame in frames if frame.neighbour is not None]
    assert numbers(paired) == with_neighbour
    assert [number_of(frame.neighbour) for frame in paired] == [number + 1 for number in with_neighbour]


def test_the_last_frame_has_no_neighbour(tmp_path):
    frames = read_frames(write_clip(tmp_path / "a.mp4", n_frames=6), 6, n_pairs=6)
    assert [frame.neighbour is None for frame in frames] == [False] * 5 + [True]


@pytest.mark.parametrize(
    ("suffix", "settings"),
    [(".mp4", {}), (".avi", {"codec": "mpeg4", "options": {"bf": "2"}}), (".h264", {"rate": 25})],
)
def test_pairs_change_no_frame_and_are_of_frames_that_follow_closely(tmp_path, suffix, settings):
    path = write_clip(tmp_path / f"a{suffix}", n_frames=60, **settings)
    alone, paired = read_frames(path, 8), read_frames(path, 8, n_pairs=8)
    assert numbers(alone) == numbers(paired)
    gaps = [number_of(frame.neighbour) - number_of(frame.pixels) for frame in paired]
    # At most three B-frames that no other refers to lie between two frames that are decoded.
    assert all(1 <= gap <= 4 for gap in gaps)


def test_turned_clips_turn_the_neighbour_too(tmp_path):
    path = turn_clip(write_clip(tmp_path / "a.mp4", codec="mpeg4"), (0, 1, -1, 0))
    (frame,) = read_frames(path, 1, n_pairs=1)
    assert frame.neighbour.shape == frame.pixels.shape == (64, 48, 3)
    upright = [np.rot90(picture) for picture in (frame.pixels, frame.neighbour)]
    assert [number_of(picture) for picture in upright] == [15, 16]


def test_fewer_than_no_pairs_are_the_callers_mistake(tmp_path):
    with pytest.raises(ValueError, match="n_pairs is -1; allowed: 0 and up"):
        read_frames(write_clip(tmp_path / "a.mp4", n_frames=1), 1, n_pairs=-1)


# Every kind of clip


@pytest.mark.parametrize(
    ("suffix", "settings"),
    [
        (".mp4", {}),
        (".mkv", {}),
        (".ts", {}),
        (".flv", {}),
        (".mp4", {"options": {"g": "1"}}),
        (".mp4", {"size": (65, 49), "pixel_format": "yuv444p"}),
        (".mp4", {"pixel_format": "yuv420p10le"}),
        (".mp4", {"pixel_format": "yuv422p"}),
        (".mp4", {"codec": "libx265", "options": QUIET}),
        (".mp4", {"codec": "libsvtav1", "size": (64, 64)}),
        (".mp4", {"codec": "mpeg4", "options": {"bf": "2"}}),
        (".webm", {"codec": "libvpx"}),
        (".webm", {"codec": "libvpx-vp9"}),
        (".webm", {"codec": "libvpx-vp9", "size": (65, 49)}),
        (".webm", {"codec": "libvpx-vp9", "container_options": {"live": "1"}}),
        (".mpg", {"codec": "mpeg1video"}),
        (".mpg", {"codec": "mpeg2video", "options": {"bf": "2"}}),
        (".avi", {"codec": "mpeg4"}),
        (".avi", {"codec": "mjpeg", "pixel_format": "yuvj420p"}),
        (".mov", {"codec": "prores_ks", "pixel_format": "yuv422p10le"}),
        (".wmv", {"codec": "wmv2"}),
        (".mxf", {"codec": "mpeg2video", "rate": 25}),
        (".mkv", {"codec": "ffv1"}),
    ],
    ids=lambda value: value if isinstance(value, str) else "-".join(map(str, value.values())),
)
def test_frames_equal_those_of_a_full_decode(tmp_path, suffix, settings):
    path = write_clip(tmp_path / f"a{suffix}", **settings)
    frames = read_frames(path, 8)
    rate = settings.get("rate", 30)
    full = everything(path)
    for frame, expected in zip(frames, EIGHT_OF_THIRTY, strict=True):
        number = number_of(frame.pixels)
        # Containers round times to a millisecond, and skipped frames have a neighbour one or two away.
        assert frame.time_s == pytest.approx(number / rate, abs=0.002)
        assert abs(number - expected) <= 2
        time, same = min(full, key=lambda other: abs(other[0] - frame.time_s))
        assert time == pytest.approx(frame.time_s, abs=1e-6)
        # The two ways differ in how they interpolate chroma, which shows at the bars' edges.
        assert np.abs(frame.pixels - same.to_ndarray(format="rgb24").astype(float)).mean() < 4


def test_a_container_may_state_neither_duration_nor_frame_count(tmp_path):
    path = write_clip(tmp_path / "a.webm", codec="libvpx-vp9", container_options={"live": "1"})
    with av.open(str(path)) as clip:
        assert clip.duration is None and clip.streams.video[0].frames == 0
    assert len(read_frames(path, 30)) == 30


def test_colours_are_red_green_blue(tmp_path):
    path = write_clip(tmp_path / "a.mp4", codec="ffv1", container="matroska", n_frames=1, pixel_format="yuv444p")
    (frame,) = read_frames(path, 1)
    assert frame.pixels.dtype == np.uint8 and frame.pixels.flags.c_contiguous
    # To YUV and back costs a level or two.
    assert np.abs(frame.pixels - draw(0, (64, 48)).astype(int)).max() <= 3


@pytest.mark.parametrize("matrix", ["YCgCo", "bt2020c", "chroma-derived-nc", "ICtCp"])
def test_unusual_colour_spaces_still_give_frames(tmp_path, matrix):
    path = write_clip(tmp_path / "a.mp4", n_frames=4, options={"x264-params": f"colormatrix={matrix}"})
    assert numbers(read_frames(path, 4)) == [0, 1, 2, 3]


def test_metadata_in_an_unknown_encoding_does_not_matter(tmp_path):
    path = write_clip(tmp_path / "a.mkv", n_frames=2, metadata={"title": "XXXX"})
    path.write_bytes(path.read_bytes().replace(b"XXXX", b"\xe9\xff\xfe\xe8"))
    assert numbers(read_frames(path, 2)) == [0, 1]


@pytest.mark.parametrize(("size", "expected"), [((3840, 2160), (1080, 1920)), ((1200, 2400), (1920, 960))])
def test_large_clips_are_reduced(tmp_path, size, expected):
    path = write_clip(tmp_path / "a.mp4", codec="mpeg4", size=size, n_frames=3)
    frames = read_frames(path, 3)
    assert numbers(frames) == [0, 1, 2]
    assert {frame.pixels.shape for frame in frames} == {(*expected, 3)}
    assert max(expected) == MAX_SIDE


def test_the_picture_may_change_its_size_midway(tmp_path):
    parts = [write_clip(tmp_path / f"{size[0]}.ts", codec="mpeg2video", size=size) for size in ((64, 48), (96, 64))]
    path = tmp_path / "both.ts"
    path.write_bytes(b"".join(part.read_bytes() for part in parts))
    assert {frame.pixels.shape for frame in read_frames(path, 30)} == {(48, 64, 3), (64, 96, 3)}


@pytest.mark.parametrize("n_first", [20, 10])
def test_parts_whose_times_begin_anew_are_looked_at_too(tmp_path, n_first):
    parts = [write_clip(tmp_path / f"{n}.ts", codec="mpeg2video", n_frames=n) for n in (n_first, 30 - n_first)]
    path = tmp_path / "both.ts"
    path.write_bytes(b"".join(part.read_bytes() for part in parts))
    assert numbers(read_frames(path, 30)) == [*range(n_first), *range(30 - n_first)]


@pytest.mark.parametrize("suffix", [".ts", ".mkv"])
def test_a_damaged_time_hides_no_frame(tmp_path, suffix):
    """One that is said to be shown long after all others."""

    def damage(packet, number):
        packet.pts += (number == 13) * int(1000 / packet.time_base)

    path = copy_packets(write_clip(tmp_path / "a.mp4", n_frames=60), tmp_path / f"b{suffix}", damage)
    # The middles of 8 equal parts of 60 frames.
    assert numbers(read_frames(path, 8)) == [3, 11, 18, 26, 33, 41, 48, 56]


def test_a_long_still_among_frames_out_of_order_is_believed(tmp_path):
    times = [number / 30 for number in range(40)] + [60 + number / 30 for number in range(40)]
    path = write_clip(tmp_path / "a.mp4", n_frames=80, times=times, options={"bf": "3"})
    assert video._index(path, NEVER).rate is None


@pytest.mark.parametrize(
    ("ratio", "shape"),
    [((4, 3), (48, 85)), ((1, 2), (96, 64)), ((1, 1), (48, 64)), (None, (48, 64)), ((9, 1), (48, 64))],
)
def test_pixels_that_are_not_square_are_made_so(tmp_path, ratio, shape):
    path = copy_packets(write_clip(tmp_path / "plain.mp4", n_frames=8), tmp_path / "a.mp4", aspect=ratio)
    frames = read_frames(path, 8)
    assert {frame.pixels.shape for frame in frames} == {(*shape, 3)}
    assert numbers(frames) == list(range(8))


# Upright

TURNS = {
    (1, 0, 0, 1): lambda p: p,
    (0, 1, -1, 0): lambda p: np.rot90(p, -1),
    (-1, 0, 0, -1): lambda p: np.rot90(p, 2),
    (0, -1, 1, 0): lambda p: np.rot90(p, 1),
    (-1, 0, 0, 1): lambda p: p[:, ::-1],
    (1, 0, 0, -1): lambda p: p[::-1],
    (0, 1, 1, 0): lambda p: p.transpose(1, 0, 2),
    (0, -1, -1, 0): lambda p: p[::-1, ::-1].transpose(1, 0, 2),
    (0, 0, 0, 0): lambda p: p,
}


@pytest.mark.parametrize("matrix", TURNS, ids=str)
def test_frames_are_turned_and_mirrored_as_the_container_asks(tmp_path, matrix):
    path = write_clip(tmp_path / "a.mp4", n_frames=1, size=(64, 32))
    (stored,) = read_frames(path, 1)
    (shown,) = read_frames(turn_clip(path, matrix), 1)
    assert np.array_equal(shown.pixels, TURNS[matrix](stored.pixels))
    assert shown.pixels.flags.c_contiguous


@pytest.mark.parametrize("matrix", list(TURNS)[:4], ids=str)
def test_turned_frames_equal_opencvs(tmp_path, matrix):
    path = turn_clip(write_clip(tmp_path / "a.mp4", n_frames=1), matrix)
    found, expected = cv2.VideoCapture(str(path)).read()
    assert found
    (frame,) = read_frames(path, 1)
    assert frame.pixels.shape == expected.shape
    assert np.abs(frame.pixels - cv2.cvtColor(expected, cv2.COLOR_BGR2RGB).astype(float)).mean() < 4


def test_side_data_that_pyav_does_not_know_does_not_hide_a_turn(tmp_path):
    # A camera's maker in EXIF form, as in TIFF 6.0: one entry, tag 0x10f, text of four bytes.
    exif = b"Exif\0\0MM\0*\0\0\0\x08\0\x01\x01\x0f\0\x02\0\0\0\x04abc\0\0\0\0\0"
    segment = b"\xff\xe1" + (len(exif) + 2).to_bytes(2, "big") + exif
    path = write_clip(tmp_path / "a.mov", codec="mjpeg", pixel_format="yuvj420p", n_frames=1)
    (stored,) = read_frames(path, 1)
    path = rewrite_packets(path, tmp_path / "b.mov", lambda jpeg: jpeg[:2] + segment + jpeg[2:])
    (shown,) = read_frames(turn_clip(path, (0, 1, -1, 0)), 1)
    assert np.array_equal(shown.pixels, np.rot90(stored.pixels, -1))


# Which frames are decoded


def test_frames_that_no_other_refers_to_are_skipped(tmp_path):
    options = {"bf": "3", "x264-params": "b-adapt=0:b-pyramid=none:scenecut=0:keyint=250"}
    path = write_clip(tmp_path / "a.mp4", n_frames=64, options=options)
    kept = [i for i, (_, frame) in enumerate(everything(path)) if frame.pict_type != av.video.frame.PictureType.B]
    assert kept == [0, *range(4, 64, 4), 63]
    # The middles of eight parts of 64 frames are 3.5, 11.5, 19.5, ...
    expected = [min(kept, key=lambda number: abs(number - (3.5 + 8 * i))) for i in range(8)]
    assert numbers(read_frames(path, 8)) == expected == [4, 12, 20, 28, 36, 44, 52, 60]


def test_where_skipping_leaves_too_few_everything_is_decoded(tmp_path):
    options = {"bf": "15", "x264-params": "b-adapt=0:b-pyramid=none:scenecut=0:keyint=250"}
    path = write_clip(tmp_path / "a.mp4", options=options)
    assert sum(frame.pict_type != av.video.frame.PictureType.B for _, frame in everything(path)) == 3
    assert numbers(read_frames(path, 8)) == EIGHT_OF_THIRTY


def test_of_a_long_clip_key_frames_alone_will_do(tmp_path, monkeypatch):
    path = write_clip(tmp_path / "a.mp4", codec="mpeg4", options={"g": "2"})
    height, width = read_frames(path, 1)[0].pixels.shape[:2]
    monkeypatch.setattr(video, "LONG_CLIP_PIXELS", 20 * height * width)
    # Key frames are the even ones; the middles of four parts are 3.25, 10.75, 18.25 and 25.75.
    assert numbers(read_frames(path, 4)) == [4, 10, 18, 26]
    assert numbers(read_frames(path, 8)) == EIGHT_OF_THIRTY, "15 key frames are too few for 8"
    monkeypatch.setattr(video, "LONG_CLIP_PIXELS", 30 * height * width)
    assert numbers(read_frames(path, 4)) != [4, 10, 18, 26], "it is not long"


def test_the_reader_never_seeks():
    tree = ast.parse(Path(video.__file__).read_text(encoding="utf-8"))
    names = {node.attr for node in ast.walk(tree) if isinstance(node, ast.Attribute)}
    names |= {node.id for node in ast.walk(tree) if isinstance(node, ast.Name)}
    assert "demux" in names
    assert not {name for name in names if "seek" in name}


# Bad files


def test_an_empty_file_is_named_so(tmp_path):
    path = tmp_path / "a.mp4"
    path.touch()
    assert refusal(path) == "the file is empty"


def test_missing_files_folders_and_dead_links_are_refused(tmp_path):
    (tmp_path / "folder.mp4").mkdir()
    (tmp_path / "link.mp4").symlink_to("nowhere.mp4")
    (tmp_path / "loop.mp4").symlink_to("loop.mp4")
    assert refusal(tmp_path / "missing.mp4") == "cannot be opened (No such file or directory)"
    assert refusal(tmp_path / "link.mp4") == "cannot be opened (No such file or directory)"
    assert refusal(tmp_path / "folder.mp4") == "cannot be opened (Is a directory)"
    assert "cannot be opened" in refusal(tmp_path / "loop.mp4")
    assert "cannot be opened" in refusal(tmp_path / f"{'x' * 300}.mp4")
    assert "null byte" in refusal(tmp_path / "a\0b.mp4")


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no named pipes here")
def test_a_pipe_does_not_block(tmp_path):
    os.mkfifo(tmp_path / "a.mp4")
    refusal(tmp_path / "a.mp4")


@pytest.mark.parametrize(
    "data",
    [
        b"\0",
        bytes(5000),
        b"\xff" * 5000,
        b"hello there\n" * 500,
        b"<html><body>404 not found</body></html>",
        b"\x89PNG\r\n\x1a\n" + bytes(100),
        (b"G" + b"\xff" * 187) * 50,
        *(random.Random(seed).randbytes(3000 * seed) for seed in range(1, 5)),
    ],
    ids=lambda data: f"{data[:4]!r}x{len(data)}",
)
def test_what_is_no_video_is_refused(tmp_path, data):
    path = tmp_path / "a.mp4"
    path.write_bytes(data)
    refusal(path)


def test_sound_alone_is_refused(tmp_path):
    assert refusal(write_audio(tmp_path / "a.mp4")) == "has no video stream"


def test_a_cover_picture_is_no_video(tmp_path):
    path = write_audio(tmp_path / "a.mp4", cover=True)
    with av.open(str(path)) as clip:
        assert len(clip.streams.video) == 1
    assert refusal(path) == "has no video stream"


@pytest.mark.parametrize("suffix", [".mp4", ".mkv", ".avi"])
def test_a_video_of_no_frames_is_refused(tmp_path, suffix):
    refusal(write_clip(tmp_path / f"a{suffix}", codec="mpeg4", n_frames=0))


@pytest.mark.parametrize("share", [0.01, 0.1, 0.3, 0.5, 0.7, 0.9])
def test_a_file_cut_off_before_its_index_is_refused(tmp_path, share):
    path = write_clip(tmp_path / "a.mp4")
    data = path.read_bytes()
    assert data.index(b"mdat") < data.index(b"moov")
    path.write_bytes(data[: int(len(data) * share)])
    refusal(path)


@pytest.mark.parametrize("share", [0.2, 0.5, 0.8, 1.0])
def test_a_file_cut_off_behind_its_index_gives_the_frames_that_are_there(tmp_path, share):
    # Every frame is a key frame of much the same size: share by share of the data there are as many frames.
    options = {"movflags": "faststart"}
    path = write_clip(
        tmp_path / "a.mp4", codec="mjpeg", pixel_format="yuvj420p", n_frames=40, container_options=options
    )
    data = path.read_bytes()
    start = data.index(b"mdat") + 4
    path.write_bytes(data[: start + int((len(data) - start) * share)])
    found = numbers(read_frames(path, 100))
    # The last one may be cut and show anything.
    assert found[:-1] == list(range(len(found) - 1))
    assert len(found) == pytest.approx(40 * share, abs=2)


@pytest.mark.parametrize("container", ["mp4", "matroska", "mpegts", "avi"])
def test_damage_gives_frames_or_a_reason(tmp_path, container):
    whole = write_clip(tmp_path / "whole", container=container, options={"g": "10", "bf": "2"}).read_bytes()
    path = tmp_path / "damaged.mp4"
    outcomes = set()
    for seed in range(25):
        chance = random.Random(seed)
        data = bytearray(whole)
        for _ in range(chance.randrange(1, 40)):
            data[chance.randrange(len(data))] = chance.randrange(256)
        path.write_bytes(data[: chance.randrange(len(data) // 2, len(data) + 1)])
        try:
            frames = read_frames(path, 4)
        except VideoError as error:
            outcomes.add("reason")
            assert str(error) and "\n" not in str(error)
        else:
            outcomes.add("frames")
            assert 1 <= len(frames) <= 4
            times = [frame.time_s for frame in frames]
            assert times == sorted(set(times)) and times[0] >= 0
    assert "frames" in outcomes


@pytest.mark.parametrize(
    "name",
    [
        "with space.mp4",
        "a,b.mp4",
        "a\"b'c.mp4",
        "ünï-日本.mp4",
        "100%.mp4",
        "x%03d.mp4",
        "#a.mp4",
        "a?b=c&d.mp4",
        "a:b.mp4",
        "http:x.mp4",
        "file:x.mp4",
        "concat:a|b.mp4",
        "-i.mp4",
        "*.mp4",
        "[a].mp4",
        "a\nb.mp4",
        "a\\b.mp4",
        " .mp4",
        b"\xff\xfe.mp4".decode("utf-8", "surrogateescape"),
    ],
    ids=ascii,
)
def test_any_file_name_will_do(tmp_path, name):
    path = write_clip(tmp_path / "plain.mp4", n_frames=2).rename(tmp_path / name)
    assert numbers(read_frames(path, 2)) == [0, 1]


def test_a_name_relative_to_the_current_folder_will_do(tmp_path, monkeypatch):
    write_clip(tmp_path / "plain.mp4", n_frames=1).rename(tmp_path / "http:x.mp4")
    monkeypatch.chdir(tmp_path)
    assert len(read_frames(Path("http:x.mp4"), 1)) == 1


PLAYLISTS = {
    "concat": "ffconcat version 1.0\nfile real.mp4\n",
    "hls": "#EXTM3U\n#EXT-X-TARGETDURATION:10\n#EXTINF:10,\nreal.mp4\n#EXT-X-ENDLIST\n",
    "sdp": "v=0\no=- 0 0 IN IP4 127.0.0.1\ns=x\nc=IN IP4 127.0.0.1\nt=0 0\nm=video 5004 RTP/AVP 96\n"
    "a=rtpmap:96 H264/90000\n",
    "dash": '<?xml version="1.0"?>\n<MPD xmlns="urn:mpeg:dash:schema:mpd:2011" type="static" '
    'mediaPresentationDuration="PT1S"><Period><AdaptationSet mimeType="video/mp4"><Representation id="1" '
    'bandwidth="1"><BaseURL>real.mp4</BaseURL></Representation></AdaptationSet></Period></MPD>',
}


@pytest.mark.parametrize("kind", PLAYLISTS)
def test_a_list_of_other_files_is_not_followed(tmp_path, kind):
    write_clip(tmp_path / "real.mp4")
    path = tmp_path / "a.mp4"
    path.write_text(PLAYLISTS[kind])
    refusal(path)


def test_plain_ffmpeg_would_have_followed_a_list(tmp_path):
    write_clip(tmp_path / "real.mp4")
    path = tmp_path / "a.mp4"
    path.write_text(PLAYLISTS["concat"])
    with av.open(str(path)) as clip:
        assert len(list(clip.decode(video=0))) == 30


def peak_mb() -> float:
    """The most memory this process has had in use since `forget_peak`."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith("VmHWM")).split()[1]) / 1024


def forget_peak() -> None:
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        pytest.skip("the system does not let a process reset its peak memory")


@pytest.mark.parametrize("side", [65536 - 16, 16000, 8192])
def test_a_header_that_claims_too_much_is_refused_for_little_memory(tmp_path, side):
    options = {"profile": "baseline", "bf": "0"}
    path = claim_size(write_clip(tmp_path / "a.mp4", container="h264", options=options), (side, side))
    forget_peak()
    before = peak_mb()
    refusal(path)
    # Unlimited, 16000 takes 1,670 MB and 12 s.
    assert peak_mb() - before < 150


def test_a_claim_that_the_container_makes_is_refused(tmp_path):
    gif = write_clip(tmp_path / "a.gif", codec="gif", pixel_format="rgb8", rate=25, n_frames=4)
    gif.write_bytes(gif.read_bytes()[:6] + b"\xff" * 4 + gif.read_bytes()[10:])
    refusal(gif)
    # Matroska's PixelWidth and PixelHeight, each of two bytes.
    mkv = write_clip(tmp_path / "a.mkv", codec="ffv1", size=(320, 304), n_frames=4)
    honest, claim = b"\xb0\x82\x01\x40\xba\x82\x01\x30", b"\xb0\x82\xff\xff\xba\x82\xff\xff"
    assert honest in mkv.read_bytes()
    mkv.write_bytes(mkv.read_bytes().replace(honest, claim))
    refusal(mkv)


def test_a_claim_of_a_modest_size_is_honoured(tmp_path):
    options = {"profile": "baseline", "bf": "0"}
    path = claim_size(write_clip(tmp_path / "a.mp4", container="h264", options=options), (320, 304))
    assert {frame.pixels.shape for frame in read_frames(path, 2)} == {(304, 320, 3)}


# Deadlines


def after_looks(n_looks: int) -> Deadline:
    """A deadline that passes once it has been looked at so many times."""
    return Deadline(float(n_looks), itertools.count().__next__)


def test_an_expired_deadline_is_a_timeout(tmp_path):
    path = write_clip(tmp_path / "a.avi", codec="mjpeg", pixel_format="yuvj420p")
    with pytest.raises(VideoTimeout, match="out of time"):
        read_frames(path, 4, deadline=after_looks(0))


def test_a_deadline_between_the_passes_is_a_timeout(tmp_path):
    path = write_clip(tmp_path / "a.avi", codec="mjpeg", pixel_format="yuvj420p")
    with pytest.raises(VideoTimeout, match="out of time"):
        read_frames(path, 4, deadline=after_looks(31))


def test_a_deadline_amid_decoding_returns_the_frames_so_far(tmp_path):
    path = write_clip(tmp_path / "a.avi", codec="mjpeg", pixel_format="yuvj420p")
    # 31 looks for the first pass, one a packet and one at the end; then 15, for the frames 0 to 14.
    frames = read_frames(path, 8, deadline=after_looks(31 + 15))
    assert numbers(frames) == [1, 5, 9, 13, 14]


def test_decoded_frames_are_let_go_of_at_once(tmp_path: Path) -> None:
    """They are three megabytes each at 1080p; the pictures that are returned are others."""
    path = write_clip(tmp_path / "a.mp4")
    gc.collect()
    gc.disable()
    try:
        frames = read_frames(path, 8)
        held = [thing.format.name for thing in gc.get_objects() if type(thing) is VideoFrame]
    finally:
        gc.enable()
    assert len(frames) == 8
    assert held.count("yuv420p") <= 1


# Real clips


def test_every_shared_clip_gives_16_frames(shared_videos):
    paths = [path for path in shared_videos.iterdir() if path.suffix in SUFFIXES]
    assert len(paths) >= 28
    for path in paths:
        frames = read_frames(path, 16)
        times = [frame.time_s for frame in frames]
        assert len(times) == 16, path.name
        # Evenly: no step is twice as long as another.
        assert max(np.diff(times)) < 2 * min(np.diff(times)), path.name


@pytest.mark.parametrize("name", ["yhffcuhhjy.mp4", "brtujopkby.mp4"])
def test_portrait_clips_come_upright(shared_videos, name):
    (frame,) = read_frames(shared_videos / name, 1)
    clip = cv2.VideoCapture(str(shared_videos / name))
    for _ in range(round(frame.time_s * clip.get(cv2.CAP_PROP_FPS))):
        clip.grab()
    _, expected = clip.read()
    height, width, _ = frame.pixels.shape
    assert height > width
    assert frame.pixels.shape == expected.shape
    assert np.abs(frame.pixels - cv2.cvtColor(expected, cv2.COLOR_BGR2RGB).astype(float)).mean() < 2


def test_no_test_reaches_the_network():
    with pytest.raises(pytest.fail.Exception), socket.socket() as plug:
        plug.connect(("127.0.0.1", 9))
    with pytest.raises(pytest.fail.Exception):
        socket.create_connection(("localhost", 9))
