from __future__ import annotations

from fractions import Fraction
from pathlib import Path

import av
import cv2
import numpy as np
import pytest
from av.filter import Graph
from clips import copy_packets, draw, numbers, rewrite_packets, turn_clip, write_clip

from dfdc.pixels import MAX_SIDE, tone_map
from dfdc.video import read_clip, read_frames

# Colours


def test_colours_are_red_green_blue(tmp_path):
    path = write_clip(tmp_path / "a.mp4", codec="ffv1", container="matroska", n_frames=1, pixel_format="yuv444p")
    (frame,) = read_frames(path, 1)
    assert frame.pixels.dtype == np.uint8 and frame.pixels.flags.c_contiguous
    # The conversion to YUV and back costs one or two levels.
    assert np.abs(frame.pixels - draw(0, (64, 48)).astype(int)).max() <= 3


@pytest.mark.parametrize("matrix", ["YCgCo", "bt2020c", "chroma-derived-nc", "ICtCp"])
def test_unusual_colour_spaces_still_give_frames(tmp_path, matrix):
    path = write_clip(tmp_path / "a.mp4", n_frames=4, options={"x264-params": f"colormatrix={matrix}"})
    assert numbers(read_frames(path, 4)) == [0, 1, 2, 3]


def on_pq_curve(picture: np.ndarray) -> np.ndarray:
    """Convert a standard picture (H, W, 3) uint8 to 16-bit HDR10, as bright as on a display with white at 203 nits.

    ITU-R BT.1886 for the display, BT.2087 for the primaries, SMPTE ST 2084 for the curve.
    """
    light = (picture / 255) ** 2.4
    red, green = (0.6274039, 0.0690973, 0.0163914), (0.3292830, 0.9195404, 0.0880133)
    blue = (0.0433131, 0.0113623, 0.8955953)
    share = np.clip(light @ np.array([red, green, blue]) * 203 / 10_000, 0, 1) ** 0.1593017578125
    return np.round(65535 * ((0.8359375 + 18.8515625 * share) / (1 + 18.6875 * share)) ** 78.84375).astype(np.uint16)


def test_hdr10_is_converted_to_the_standard_picture(tmp_path):
    # Up to .75 of white, which is a value of 226; HDR10's steps are coarse where a primary is almost dark.
    ramp = np.stack(np.meshgrid(np.linspace(40, 225, 64), np.linspace(40, 225, 48)), -1)
    picture = np.concatenate([ramp, ramp.mean(2, keepdims=True)], 2).round().astype(np.uint8)
    assert np.abs(tone_map(on_pq_curve(picture)).astype(int) - picture).max() <= 3


def test_hdr10_highlights_remain_distinguishable_below_white():
    nits = np.array([203, 400, 1000, 4000])
    value = (nits / 10_000) ** 0.1593017578125
    value = ((0.8359375 + 18.8515625 * value) / (1 + 18.6875 * value)) ** 78.84375
    shown = tone_map(np.round(np.tile(value[:, None, None], (1, 1, 3)) * 65535).astype(np.uint16))[:, 0, 0].astype(int)
    assert (np.diff(shown) > 0).all() and shown[0] > 235 and shown[-1] <= 255


def test_hdr10_clips_equal_their_standard_source(shared):
    reading = read_clip(shared / "cases" / "hdr_pq.mp4", 8)
    source = read_frames(Path(__file__).parent.parent / "samples" / "real.mp4", 8)
    assert reading.tone_mapped
    for frame, expected in zip(reading.frames, source, strict=True):
        assert frame.time_s == pytest.approx(expected.time_s, abs=0.001)
        # Re-encoded at a low bit rate: two levels on average.
        assert np.abs(frame.pixels - expected.pixels.astype(float)).mean() < 4


def interlace(path: Path, *, n_frames: int = 12) -> Path:
    """Write a clip whose two fields are a moment apart: a bright bar that moves four pixels a field."""
    with av.open(str(path), "w") as output:
        stream = output.add_stream("mpeg2video", rate=25, options={"flags": "+ilme+ildct", "bf": "0", "qmax": "2"})
        stream.width, stream.height, stream.pix_fmt = 128, 96, "yuv420p"
        for number in range(n_frames):
            picture = np.full((96, 128, 3), 60, np.uint8)
            for field in (0, 1):
                left = 8 * number + 4 * field
                picture[field::2, left : left + 24] = 200
            frame = av.VideoFrame.from_ndarray(picture, "rgb24").reformat(format="yuv420p")
            output.mux(stream.encode(frame))
        output.mux(stream.encode(None))
    return path


def combs(pixels: np.ndarray) -> float:
    """How much more rows differ from their neighbours than from the rows two lines away."""
    rows = pixels[..., 1].astype(float)
    return np.abs(np.diff(rows, axis=0)).mean() - np.abs(rows[2:] - rows[:-2]).mean()


def test_interlaced_frames_are_deinterlaced_as_by_ffmpeg(tmp_path):
    path = interlace(tmp_path / "a.mpg")
    graph = Graph()
    with av.open(str(path)) as clip:
        stored = list(clip.decode(video=0))
    assert all(frame.interlaced_frame for frame in stored)
    source = graph.add_buffer(width=128, height=96, format="yuv420p", time_base=Fraction(1, 25))
    graph.link_nodes(source, graph.add("bwdif", "mode=send_frame"), graph.add("buffersink")).configure()
    for frame in stored:
        graph.push(frame)
    graph.push(None)
    expected = [graph.pull().to_ndarray(format="rgb24").astype(int) for _ in stored]
    reading = read_clip(path, 12)
    assert reading.deinterlaced and len(reading.frames) == 12
    assert combs(stored[6].to_ndarray(format="rgb24")) > 5 > combs(reading.frames[6].pixels)
    for number, frame in enumerate(reading.frames[1:-1], start=1):
        assert np.abs(frame.pixels - expected[number]).mean() < 2, number


def test_neighbours_of_interlaced_frames_are_deinterlaced(tmp_path):
    frames = read_frames(interlace(tmp_path / "a.mpg"), 12, n_pairs=12)
    assert all(combs(frame.neighbour) < 5 for frame in frames[:-1])


# Shape


@pytest.mark.parametrize(("size", "expected"), [((3840, 2160), (1080, 1920)), ((1200, 2400), (1920, 960))])
def test_large_clips_are_reduced(tmp_path, size, expected):
    path = write_clip(tmp_path / "a.mp4", codec="mpeg4", size=size, n_frames=3)
    frames = read_frames(path, 3)
    assert numbers(frames) == [0, 1, 2]
    assert {frame.pixels.shape for frame in frames} == {(*expected, 3)}
    assert max(expected) == MAX_SIDE


@pytest.mark.parametrize(
    ("ratio", "shape"),
    [
        ((4, 3), (48, 85)),
        ((1, 2), (96, 64)),
        ((1, 1), (48, 64)),
        (None, (48, 64)),
        ((32, 11), (48, 186)),
        ((1, 3), (144, 64)),
        ((9, 1), (48, 64)),  # a picture twelve times as wide as high shows nobody
    ],
)
def test_non_square_pixels_are_resampled_to_square_ones(tmp_path, ratio, shape):
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
def test_frames_are_turned_and_mirrored_as_the_container_states(tmp_path, matrix):
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


def test_side_data_unknown_to_pyav_does_not_hide_a_rotation(tmp_path):
    # The maker of a camera in EXIF: one TIFF 6.0 entry with tag 0x10f and four bytes of text.
    exif = b"Exif\0\0MM\0*\0\0\0\x08\0\x01\x01\x0f\0\x02\0\0\0\x04abc\0\0\0\0\0"
    segment = b"\xff\xe1" + (len(exif) + 2).to_bytes(2, "big") + exif
    path = write_clip(tmp_path / "a.mov", codec="mjpeg", pixel_format="yuvj420p", n_frames=1)
    (stored,) = read_frames(path, 1)
    path = rewrite_packets(path, tmp_path / "b.mov", lambda jpeg: jpeg[:2] + segment + jpeg[2:])
    (shown,) = read_frames(turn_clip(path, (0, 1, -1, 0)), 1)
    assert np.array_equal(shown.pixels, np.rot90(stored.pixels, -1))
