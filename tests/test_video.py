from __future__ import annotations

import gc
import os
import struct
from pathlib import Path

import av
import cv2
import numpy as np
import pytest
from av import VideoFrame
from clips import copy_packets, everything, number_of, numbers, turn_clip, write_clip, write_streams, write_with_sound

from dfdc import container, video
from dfdc.container import MediaFile
from dfdc.deadline import Deadline
from dfdc.errors import VideoTimeout
from dfdc.listing import span_s
from dfdc.pixels import PictureMaker
from dfdc.run.inputs import SUFFIXES
from dfdc.video import read_clip, read_frames

QUIET = {"x265-params": "log-level=none"}
# The middles of 8 equal parts of 30 frames, (i + 0.5) * 30 / 8, rounded down.
EIGHT_OF_THIRTY = [1, 5, 9, 13, 16, 20, 24, 28]

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
def test_short_clips_give_all_their_frames(tmp_path, n_frames):
    frames = read_frames(write_clip(tmp_path / "a.mp4", n_frames=n_frames), 16)
    assert numbers(frames) == list(range(n_frames))
    assert frames[0].time_s == 0


def test_zero_frames_are_refused(tmp_path):
    with pytest.raises(ValueError, match="n_frames is 0"):
        read_frames(write_clip(tmp_path / "a.mp4", n_frames=1), 0)


def test_unevenly_spaced_frames_are_chosen_by_time(tmp_path):
    times = [0, 0.1, 0.2, 0.3, 0.4, 0.5, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10]
    frames = read_frames(write_clip(tmp_path / "a.mp4", n_frames=16, times=times), 8)
    # 16 frames in 10 s are 2/3 s apart on average: the middles less half a frame are 1/3, 5/3, 9/3, ... s.
    assert [frame.time_s for frame in frames] == pytest.approx([0.3, 2, 3, 4, 6, 7, 8, 10])
    assert numbers(frames) == [times.index(round(frame.time_s, 3)) for frame in frames]


def test_long_gap_costs_no_frames(tmp_path):
    times = [number / 30 for number in range(29)] + [10]
    frames = read_frames(write_clip(tmp_path / "a.mp4", codec="mpeg4", times=times), 8)
    assert numbers(frames) == EIGHT_OF_THIRTY


def test_frames_outside_the_edit_list_are_not_returned(tmp_path):
    path = write_clip(tmp_path / "a.mp4", n_frames=20, times=[number / 10 - 1 for number in range(20)])
    frames = read_frames(path, 4)
    # Ten frames are shown, 10 to 19; the middles of four parts are 1.25, 3.75, 6.25 and 8.75, less half a frame.
    assert numbers(frames) == [11, 13, 16, 18]
    assert [frame.time_s for frame in frames] == pytest.approx([0.1, 0.3, 0.6, 0.8])


def test_frames_of_raw_streams_without_times_are_counted(tmp_path):
    path = write_clip(tmp_path / "a.mp4", container="h264", rate=25)
    with av.open(str(path)) as clip:
        assert all(packet.pts is None for packet in clip.demux(video=0))
    frames = read_frames(path, 8)
    assert numbers(frames) == EIGHT_OF_THIRTY
    assert [frame.time_s for frame in frames] == pytest.approx([number / 25 for number in EIGHT_OF_THIRTY])


def test_frames_with_identical_times_are_counted(tmp_path):
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


# Which stream


@pytest.mark.parametrize("suffix", [".mkv", ".mp4"])
def test_default_stream_is_chosen(tmp_path, suffix):
    path = write_streams(tmp_path / f"a{suffix}", [(32, 32, 0), (64, 48, 100)], default=1)
    reading = read_clip(path, 4)
    assert numbers(reading.frames) == [103, 111, 118, 126]
    assert reading.stream == 1 and reading.frames[0].pixels.shape == (48, 64, 3)
    assert reading.duration_s == pytest.approx(1, abs=0.05)


def test_largest_stream_is_chosen_if_none_is_marked_as_default(tmp_path):
    path = write_streams(tmp_path / "a.ts", [(32, 32, 0), (96, 64, 100), (64, 48, 200)])
    assert numbers(read_frames(path, 4)) == [103, 111, 118, 126]


def test_thumbnail_marked_as_default_is_not_chosen(tmp_path):
    """FFmpeg's rule: being the default is worth five million pixels."""
    path = write_streams(tmp_path / "a.mkv", [(2560, 2160, 100), (64, 48, 0)], default=1, n_frames=2)
    assert read_clip(path, 1).stream == 0


def test_next_stream_is_read_if_no_frame_of_the_main_stream_decodes(tmp_path):
    path = write_streams(tmp_path / "a.mkv", [(32, 32, 100), (64, 48, 0)], default=1, damaged=1)
    reading = read_clip(path, 4)
    assert numbers(reading.frames) == [103, 111, 118, 126]
    assert reading.stream == 0


@pytest.mark.parametrize("share", [0.5, 0.75, 0.97])
def test_truncated_audio_costs_no_frame(tmp_path, share):
    """In one fragment, all video comes before all audio."""
    path = write_with_sound(tmp_path / "a.mp4", {"movflags": "empty_moov+default_base_moof"})
    whole = path.read_bytes()
    with av.open(str(path)) as clip:
        ends = [packet.pos + packet.size for packet in clip.demux(video=0) if packet.size]
    assert ends[-1] < len(whole) / 2
    path.write_bytes(whole[: int(len(whole) * share)])
    reading = read_clip(path, 8)
    assert numbers(reading.frames) == EIGHT_OF_THIRTY
    assert (reading.from_s, reading.to_s) == (pytest.approx(1 / 30), pytest.approx(28 / 30))
    assert reading.share == pytest.approx(1, abs=0.1)


def test_fragment_with_truncated_audio_is_read_to_its_end(shared):
    reading = read_clip(shared / "cases" / "sound_cut_off.mp4", 8)
    assert (reading.from_s, reading.to_s, reading.duration_s) == pytest.approx((0.24, 3.72, 4), abs=0.04)


# How much of the clip


def test_read_part_of_the_clip_is_reported(tmp_path):
    reading = read_clip(write_clip(tmp_path / "a.mp4", codec="mpeg4"), 8)
    assert reading.from_s == pytest.approx(1 / 30) and reading.to_s == pytest.approx(28 / 30)
    assert reading.duration_s == pytest.approx(1)
    assert reading.share == pytest.approx(1, abs=0.05)
    assert not (reading.is_cut or reading.tone_mapped or reading.deinterlaced)


@pytest.mark.parametrize(("part", "share"), [(1.0, 1.0), (0.5, 0.5), (0.2, 0.2)])
def test_read_share_of_a_truncated_clip_is_reported(tmp_path, part, share):
    options = {"movflags": "faststart"}
    path = write_clip(tmp_path / "a.mp4", codec="mjpeg", pixel_format="yuvj420p", container_options=options)
    data = path.read_bytes()
    start = data.index(b"mdat") + 4
    path.write_bytes(data[: start + int((len(data) - start) * part)])
    reading = read_clip(path, 4)
    assert reading.duration_s == pytest.approx(1)
    assert reading.share == pytest.approx(share, abs=0.1)


def test_frames_are_planned_over_the_decodable_part(tmp_path):
    """A stream without its first key frame: the frames of the first third cannot be decoded."""
    whole = write_clip(tmp_path / "a.ts", n_frames=90, options={"g": "45", "bf": "0", "x264-params": "scenecut=0"})
    with av.open(str(whole)) as clip:
        packets = [packet for packet in clip.demux(video=0) if packet.size]
        cut = next(packet.pos for packet in packets[15:])
    path = tmp_path / "b.ts"
    path.write_bytes(whole.read_bytes()[cut // 188 * 188 :])
    decoded = [number_of(frame.to_ndarray(format="rgb24")) for _, frame in everything(path)]
    assert decoded[-1] == 89 and len(decoded) == 45
    # The middles of eight parts of the frames 45 to 89.
    assert numbers(read_frames(path, 8)) == [47, 53, 59, 64, 70, 75, 81, 87]


# Neighbours


@pytest.mark.parametrize(("n_pairs", "with_neighbour"), [(1, [16]), (2, [9, 24]), (8, EIGHT_OF_THIRTY)])
def test_some_frames_come_with_their_next_frame(tmp_path, n_pairs, with_neighbour):
    path = write_clip(tmp_path / "a.mp4", codec="mpeg4")
    frames = read_frames(path, 8, n_pairs=n_pairs)
    assert numbers(frames) == EIGHT_OF_THIRTY
    paired = [frame for frame in frames if frame.neighbour is not None]
    assert numbers(paired) == with_neighbour
    assert [number_of(frame.neighbour) for frame in paired] == [number + 1 for number in with_neighbour]


def test_last_frame_has_no_next_frame(tmp_path):
    frames = read_frames(write_clip(tmp_path / "a.mp4", n_frames=6), 6, n_pairs=6)
    assert [frame.neighbour is None for frame in frames] == [False] * 5 + [True]


@pytest.mark.parametrize(
    ("suffix", "settings"),
    [(".mp4", {}), (".avi", {"codec": "mpeg4", "options": {"bf": "2"}}), (".h264", {"rate": 25})],
)
def test_pairs_do_not_change_the_frames_and_join_close_neighbours(tmp_path, suffix, settings):
    path = write_clip(tmp_path / f"a{suffix}", n_frames=60, **settings)
    alone, paired = read_frames(path, 8), read_frames(path, 8, n_pairs=8)
    assert numbers(alone) == numbers(paired)
    gaps = [number_of(frame.neighbour) - number_of(frame.pixels) for frame in paired]
    # At most three non-reference B-frames lie between two decoded frames.
    assert all(1 <= gap <= 4 for gap in gaps)


def test_rotation_applies_to_the_next_frame_too(tmp_path):
    path = turn_clip(write_clip(tmp_path / "a.mp4", codec="mpeg4"), (0, 1, -1, 0))
    (frame,) = read_frames(path, 1, n_pairs=1)
    assert frame.neighbour.shape == frame.pixels.shape == (64, 48, 3)
    upright = [np.rot90(picture) for picture in (frame.pixels, frame.neighbour)]
    assert [number_of(picture) for picture in upright] == [15, 16]


def test_negative_number_of_pairs_is_refused(tmp_path):
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
        # Containers round times to milliseconds, and next to a skipped frame the one or two frames away is taken.
        assert frame.time_s == pytest.approx(number / rate, abs=0.002)
        assert abs(number - expected) <= 2
        time, same = min(full, key=lambda other: abs(other[0] - frame.time_s))
        assert time == pytest.approx(frame.time_s, abs=1e-6)
        # The two ways interpolate chroma differently, which shows at the edges of the bars.
        assert np.abs(frame.pixels - same.to_ndarray(format="rgb24").astype(float)).mean() < 4


def test_last_frame_is_assumed_to_last_as_long_as_the_average():
    assert span_s([1.0, 1.5, 2.0]) == pytest.approx(1.5)
    assert span_s([0.0, 0.1, 0.4, 0.6]) == pytest.approx(0.8)
    assert span_s([3.0]) == 0


def test_container_without_duration_and_frame_count_is_read(tmp_path):
    path = write_clip(tmp_path / "a.webm", codec="libvpx-vp9", container_options={"live": "1"})
    with av.open(str(path)) as clip:
        assert clip.duration is None and clip.streams.video[0].frames == 0
    assert len(read_frames(path, 30)) == 30


def test_metadata_in_an_unknown_encoding_are_ignored(tmp_path):
    path = write_clip(tmp_path / "a.mkv", n_frames=2, metadata={"title": "XXXX"})
    path.write_bytes(path.read_bytes().replace(b"XXXX", b"\xe9\xff\xfe\xe8"))
    assert numbers(read_frames(path, 2)) == [0, 1]


def test_frame_size_may_change_in_the_middle(tmp_path):
    parts = [write_clip(tmp_path / f"{size[0]}.ts", codec="mpeg2video", size=size) for size in ((64, 48), (96, 64))]
    path = tmp_path / "both.ts"
    path.write_bytes(b"".join(part.read_bytes() for part in parts))
    assert {frame.pixels.shape for frame in read_frames(path, 30)} == {(48, 64, 3), (64, 96, 3)}


@pytest.mark.parametrize("n_first", [20, 10])
def test_parts_whose_times_restart_are_read(tmp_path, n_first):
    parts = [write_clip(tmp_path / f"{n}.ts", codec="mpeg2video", n_frames=n) for n in (n_first, 30 - n_first)]
    path = tmp_path / "both.ts"
    path.write_bytes(b"".join(part.read_bytes() for part in parts))
    assert numbers(read_frames(path, 30)) == [*range(n_first), *range(30 - n_first)]


@pytest.mark.parametrize("suffix", [".ts", ".mkv"])
def test_damaged_time_hides_no_frame(tmp_path, suffix):
    """A frame with a time long after all others."""

    def damage(packet, number):
        packet.pts += (number == 13) * int(1000 / packet.time_base)

    path = copy_packets(write_clip(tmp_path / "a.mp4", n_frames=60), tmp_path / f"b{suffix}", damage)
    # The middles of 8 equal parts of 60 frames.
    assert numbers(read_frames(path, 8)) == [3, 11, 18, 26, 33, 41, 48, 56]


def test_first_time_centuries_before_the_others_is_ignored(tmp_path):
    path = write_clip(tmp_path / "a.ivf", codec="libvpx", n_frames=60)
    content = bytearray(path.read_bytes())
    content[36:44] = struct.pack("<q", -5 << 60)  # after the file's header of 32 bytes and the frame's size
    path.write_bytes(content)
    reading = read_clip(path, 8)
    assert numbers(reading.frames) == [3, 11, 18, 26, 33, 41, 48, 56]
    assert reading.duration_s == pytest.approx(2.0)


def test_long_still_among_reordered_frames_is_accepted(tmp_path):
    times = [number / 30 for number in range(40)] + [60 + number / 30 for number in range(40)]
    path = write_clip(tmp_path / "a.mp4", n_frames=80, times=times, options={"bf": "3"})
    assert [frame.time_s for frame in read_frames(path, 80)] == pytest.approx(times, abs=1e-3)


# Which frames are decoded


def test_frames_that_no_other_refers_to_are_skipped(tmp_path):
    options = {"bf": "3", "x264-params": "b-adapt=0:b-pyramid=none:scenecut=0:keyint=250"}
    path = write_clip(tmp_path / "a.mp4", n_frames=64, options=options)
    kept = [i for i, (_, frame) in enumerate(everything(path)) if frame.pict_type != av.video.frame.PictureType.B]
    assert kept == [0, *range(4, 64, 4), 63]
    # The middles of eight parts of 64 frames are 3.5, 11.5, 19.5, ...
    expected = [min(kept, key=lambda number: abs(number - (3.5 + 8 * i))) for i in range(8)]
    assert numbers(read_frames(path, 8)) == expected == [4, 12, 20, 28, 36, 44, 52, 60]


def test_everything_is_decoded_if_skipping_leaves_too_few_frames(tmp_path):
    options = {"bf": "15", "x264-params": "b-adapt=0:b-pyramid=none:scenecut=0:keyint=250"}
    path = write_clip(tmp_path / "a.mp4", options=options)
    assert sum(frame.pict_type != av.video.frame.PictureType.B for _, frame in everything(path)) == 3
    assert numbers(read_frames(path, 8)) == EIGHT_OF_THIRTY


def test_key_frames_are_enough_for_a_long_clip(tmp_path, monkeypatch):
    path = write_clip(tmp_path / "a.mp4", codec="mpeg4", options={"g": "2"})
    height, width = read_frames(path, 1)[0].pixels.shape[:2]
    monkeypatch.setattr(video, "LONG_CLIP_PIXELS", 20 * height * width)
    # Key frames are the even ones; the middles of four parts are 3.25, 10.75, 18.25 and 25.75.
    assert numbers(read_frames(path, 4)) == [4, 10, 18, 26]
    assert numbers(read_frames(path, 8)) == EIGHT_OF_THIRTY, "15 key frames are too few for 8"
    monkeypatch.setattr(video, "LONG_CLIP_PIXELS", 30 * height * width)
    assert numbers(read_frames(path, 4)) != [4, 10, 18, 26], "the clip is not long enough"


# Deadlines


def test_expired_deadline_is_a_timeout(tmp_path):
    path = write_clip(tmp_path / "a.avi", codec="mjpeg", pixel_format="yuvj420p")
    with pytest.raises(VideoTimeout, match="out of time"):
        read_frames(path, 4, deadline=Deadline(0, lambda: 1))


def test_deadline_during_decoding_returns_the_frames_so_far(tmp_path, monkeypatch):
    path = write_clip(tmp_path / "a.avi", codec="mjpeg", pixel_format="yuvj420p")
    picture, now_s = PictureMaker.picture, [0]

    def take_a_second(*args: object, **kwargs: object) -> np.ndarray:
        now_s[0] += 1
        return picture(*args, **kwargs)

    monkeypatch.setattr(PictureMaker, "picture", take_a_second)
    found = numbers(read_frames(path, 8, deadline=Deadline(3.5, lambda: now_s[0])))
    # Four seconds are enough for four frames; the last decoded one is returned, too.
    assert found[:4] == EIGHT_OF_THIRTY[:4] and len(found) <= 5


@pytest.mark.parametrize("suffix", [".mpg", ".mkv"])
def test_long_tail_without_frames_leaves_time_for_the_frames_before_it(tmp_path, monkeypatch, suffix):
    path = write_clip(tmp_path / f"a{suffix}", codec="mpeg2video")
    os.truncate(path, 1 << 34)
    read, now_s = MediaFile.read, [0.0]

    def read_slowly(*args: object) -> bytes:
        now_s[0] += 0.01
        return read(*args)

    monkeypatch.setattr(MediaFile, "read", read_slowly)
    monkeypatch.setattr(container, "MAX_OPENING_BYTES", 1 << 20)
    monkeypatch.setattr(container, "MAX_GAP_BYTES", 1 << 60)
    found = numbers(read_frames(path, 8, deadline=Deadline(10, lambda: now_s[0])))
    # The last frame may still be in the decoder.
    assert found == pytest.approx(EIGHT_OF_THIRTY, abs=1)


@pytest.mark.parametrize("suffix", [".mpg", ".mkv"])
def test_tail_of_zeros_costs_little(tmp_path, monkeypatch, suffix):
    monkeypatch.setattr(container, "MAX_OPENING_BYTES", 1 << 20)
    monkeypatch.setattr(container, "MAX_GAP_BYTES", 1 << 20)
    path = write_clip(tmp_path / f"a{suffix}", codec="mpeg2video")
    whole = read_clip(path, 8)
    os.truncate(path, 1 << 36)
    found = read_clip(path, 8)
    assert numbers(found.frames) == numbers(whole.frames) == EIGHT_OF_THIRTY
    assert found.is_cut and not whole.is_cut
    assert found.duration_s == pytest.approx(whole.duration_s, abs=0.1)


def test_decoded_frames_are_released_at_once(tmp_path: Path) -> None:
    """A decoded frame takes three megabytes at 1080p, and the returned pictures are copies."""
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


def check_16_frames(path):
    """Check that a clip gives 16 frames that are evenly spread: no step is twice as long as another."""
    steps = np.diff([frame.time_s for frame in read_frames(path, 16)])
    assert len(steps) == 15 and max(steps) < 2 * min(steps), path.name


@pytest.mark.parametrize("name", ["brtujopkby.mp4", "ghost_elon.webm", "grid_bbaf2n.mpg", "two_faces.mp4"])
def test_clip_of_each_format_gives_16_frames(shared_videos, name):
    check_16_frames(shared_videos / name)


@pytest.mark.slow
def test_every_shared_clip_gives_16_frames(shared_videos):
    paths = [path for path in shared_videos.iterdir() if path.suffix in SUFFIXES]
    assert len(paths) >= 28
    for path in paths:
        check_16_frames(path)


@pytest.mark.parametrize("name", ["yhffcuhhjy.mp4", "brtujopkby.mp4"])
def test_portrait_clips_are_returned_upright(shared_videos, name):
    (frame,) = read_frames(shared_videos / name, 1)
    clip = cv2.VideoCapture(str(shared_videos / name))
    for _ in range(round(frame.time_s * clip.get(cv2.CAP_PROP_FPS))):
        clip.grab()
    _, expected = clip.read()
    height, width, _ = frame.pixels.shape
    assert height > width
    assert frame.pixels.shape == expected.shape
    assert np.abs(frame.pixels - cv2.cvtColor(expected, cv2.COLOR_BGR2RGB).astype(float)).mean() < 2
