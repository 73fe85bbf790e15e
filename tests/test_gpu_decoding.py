"""Decoding on a GPU; in most tests the CPU plays the GPU."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from types import SimpleNamespace

import av
import numpy as np
import pytest
import torch
from av import VideoFrame
from clips import copy_packets, rewrite_packets, write_clip

from dfdc import container, decoding, pixels, video
from dfdc.deadline import Deadline
from dfdc.errors import VideoError
from dfdc.video import Frame, read_frames


class OnGpu:
    """A frame as if in GPU memory: it is downloaded as NV12, without colour and other side data."""

    def __init__(self, frame: VideoFrame) -> None:
        self.lies, self.colorspace, self.color_range = frame, frame.colorspace, frame.color_range
        self.color_trc, self.color_primaries = frame.color_trc, frame.color_primaries
        self.format = SimpleNamespace(name="cuda")
        self.width, self.height, self.interlaced_frame = frame.width, frame.height, frame.interlaced_frame
        self.pts, self.side_data = frame.pts, frame.side_data

    def reformat(self, format: str) -> VideoFrame:
        nv12 = self.lies.reformat(format="nv12", src_color_range=self.color_range, dst_color_range=self.color_range)
        return VideoFrame.from_ndarray(nv12.to_ndarray(), "nv12").reformat(format=format)


Change = Callable[[Iterator[Frame]], Iterator[Frame]]


def decode_on_gpu(monkeypatch: pytest.MonkeyPatch, change: Change = iter) -> list[int | None]:
    """Let the CPU play the GPU; returns a list to which the device of each decoded clip is added."""
    decode, where = video.decode, []

    def decode_there(*args: object, gpu: int | None = None, **kwargs: object) -> Iterator[Frame]:
        with monkeypatch.context() as patch:
            if gpu is None:
                where.append(None)
                yield from decode(*args, **kwargs)
                return
            plain = decoding._decoded
            patch.setattr(container, "HWAccel", lambda kind, number, **_: where.append(int(number)))
            patch.setattr(decoding, "_decoded", lambda *a, **k: (OnGpu(frame) for frame in plain(*a, **k)))
            yield from change(decode(*args, gpu=gpu, **kwargs))

    monkeypatch.setattr(video, "decode", decode_there)
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
def test_gpu_decoding_gives_the_same_pixels(tmp_path, monkeypatch, matrix, colours):
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
def test_cpu_decodes_what_the_gpu_does_not_support(tmp_path, monkeypatch, change):
    path = write_clip(tmp_path / "a.mp4")
    expected = read_frames(path, 8)
    where = decode_on_gpu(monkeypatch, change)
    assert same(read_frames(path, 8, gpu=0), expected)
    assert where == [0, None]


def test_reason_for_not_decoding_on_the_gpu_is_logged_once(tmp_path, monkeypatch, caplog):
    path = write_clip(tmp_path / "a.mp4")
    decode_on_gpu(monkeypatch, after_two(av.error.ExternalError, 1, "no surfaces left", "failed"))
    for _ in range(3):
        read_frames(path, 8, gpu=0)
    assert ["no surfaces left" in record.getMessage() for record in caplog.records] == [True]


def test_frames_decoded_on_the_gpu_before_the_deadline_count(tmp_path, monkeypatch):
    path, late = write_clip(tmp_path / "a.mp4"), []

    def give_two(frames: Iterator[Frame]) -> Iterator[Frame]:
        yield from itertools.islice(frames, 2)
        late.append(True)
        raise VideoError("no room")

    decode_on_gpu(monkeypatch, give_two)
    assert len(read_frames(path, 8, gpu=0, deadline=Deadline(1, lambda: len(late)))) == 2


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
def test_gpu_is_not_used_for_formats_that_it_would_decode_differently(tmp_path, monkeypatch, settings, turn):
    path = write_clip(tmp_path / "a.mp4", **settings)
    if "aspect" in settings.get("options", {}):
        path = copy_packets(path, tmp_path / "b.mp4", aspect=(4, 3))
    expected = read_frames(path, 8)
    where = decode_on_gpu(monkeypatch)
    assert same(read_frames(path, 8, gpu=0), expected)
    assert where == turn


def test_damaged_clip_is_decoded_on_the_cpu(tmp_path, monkeypatch):
    numbered = itertools.count()
    whole = write_clip(tmp_path / "whole.mp4", options={"bf": "0"})
    path = rewrite_packets(
        whole, tmp_path / "a.mp4", lambda data: data if next(numbered) != 10 else data[:4] + b"!" * 9
    )
    where = decode_on_gpu(monkeypatch)
    frames = read_frames(path, 8, gpu=0)
    assert where == [0, None]
    assert len(frames) == 8


def test_cpu_decodes_if_there_is_no_gpu(tmp_path):
    path = write_clip(tmp_path / "a.mp4")
    assert same(read_frames(path, 8, gpu=63), read_frames(path, 8))


def test_gpu_decodes_if_its_library_and_pyav_support_it(monkeypatch):
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
    fetch, lay_in = pixels._fetch, set()
    monkeypatch.setattr(pixels, "_fetch", lambda frame: lay_in.add(frame.format.name) or fetch(frame))
    assert same(read_frames(path, 8, n_pairs=8, gpu=0), expected)
    assert lay_in == {"cuda"}
