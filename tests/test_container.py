from __future__ import annotations

import errno
import io
import itertools
import os
import random
import socket
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import av
import cv2
import numpy as np
import pytest
from clips import claim_size, numbers, write_audio, write_clip

from dfdc import container, pixels, video
from dfdc.audio import read_sound
from dfdc.container import MediaFile
from dfdc.errors import MachineError, VideoError
from dfdc.files import identify
from dfdc.video import read_frames, stream_frames


def refusal(path: Path) -> str:
    with pytest.raises(VideoError) as caught:
        read_frames(path, 4)
    reason = str(caught.value)
    assert reason and "\n" not in reason and str(path.parent) not in reason
    return reason


# Bad files


def test_empty_file_is_reported_as_empty(tmp_path):
    path = tmp_path / "a.mp4"
    path.touch()
    assert refusal(path) == "the file is empty"


def test_missing_files_folders_and_broken_links_are_refused(tmp_path):
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
def test_files_that_are_no_video_are_refused(tmp_path, data):
    path = tmp_path / "a.mp4"
    path.write_bytes(data)
    refusal(path)


def test_audio_without_video_is_refused(tmp_path):
    assert refusal(write_audio(tmp_path / "a.mp4")) == "has no video stream"


def test_cover_picture_is_not_a_video(tmp_path):
    path = write_audio(tmp_path / "a.mp4", cover=True)
    with av.open(str(path)) as clip:
        assert len(clip.streams.video) == 1
    assert refusal(path) == "has no video stream"


@pytest.mark.parametrize("suffix", [".mp4", ".mkv", ".avi"])
def test_video_without_frames_is_refused(tmp_path, suffix):
    refusal(write_clip(tmp_path / f"a{suffix}", codec="mpeg4", n_frames=0))


@pytest.mark.parametrize("share", [0.01, 0.1, 0.3, 0.5, 0.7, 0.9])
def test_file_truncated_before_its_index_is_refused(tmp_path, share):
    path = write_clip(tmp_path / "a.mp4")
    data = path.read_bytes()
    assert data.index(b"mdat") < data.index(b"moov")
    path.write_bytes(data[: int(len(data) * share)])
    assert refusal(path).startswith("an MP4 whose index is missing or incomplete: the recording or the download")


def test_file_truncated_inside_its_index_is_told_wherever_ffmpeg_gets_to(tmp_path):
    path = write_clip(tmp_path / "whole.mp4")
    data = path.read_bytes()
    reasons = set()
    for end in range(data.index(b"moov") + 4, len(data), 29):
        path = tmp_path / f"{end}.mp4"
        path.write_bytes(data[:end])
        try:
            read_frames(path, 4)
        except VideoError as error:
            reasons.add(str(error))
    assert reasons == {"an MP4 whose index is missing or incomplete: the recording or the download was cut off"}


def test_index_without_a_length_is_whole(tmp_path):
    data = write_audio(tmp_path / "a.mp4").read_bytes()
    start = data.index(b"moov") - 4  # the last box: the length 0 means up to the end of the file
    path = tmp_path / "b.mp4"
    path.write_bytes(data[:start] + bytes(4) + data[start + 4 :])
    assert refusal(path) == "has no video stream"


@pytest.mark.parametrize(("suffix", "kind"), [(".bmp", "BMP"), (".tiff", "TIFF")])
def test_picture_of_a_kind_that_is_not_read_gets_a_cure(tmp_path, suffix, kind):
    cv2.imwrite(str(tmp_path / f"a{suffix}"), np.zeros((64, 64, 3), np.uint8))
    assert refusal(tmp_path / f"a{suffix}") == f"a {kind} picture, which is not read; convert it to JPEG or PNG"


def test_damaged_heic_picture_gets_a_cure(tmp_path):
    path = tmp_path / "a.heic"
    path.write_bytes(b"\0\0\0\x18ftypheic\0\0\0\0mif1heic" + b"\0\0\0\x08meta")
    assert refusal(path) == "a HEIC picture, which is not read; convert it to JPEG or PNG"


def test_picture_in_tiles_is_refused_and_not_scored_by_one_of_them(tmp_path):
    infe = b"\0\0\0\x15infe\x02\0\0\0\0\x31\0\0grid\0"  # ISO 14496-12, 8.11.6: item 49 is a grid
    iinf = (14 + len(infe)).to_bytes(4, "big") + b"iinf" + bytes(4) + b"\0\x01" + infe
    meta = (12 + len(iinf)).to_bytes(4, "big") + b"meta" + bytes(4) + iinf
    path = tmp_path / "a.heic"
    path.write_bytes(b"\0\0\0\x18ftypheic\0\0\0\0mif1heic" + meta)
    assert "picture in tiles, which are not put together; convert it" in refusal(path)


@pytest.mark.parametrize("share", [0.2, 0.5, 0.8, 1.0])
def test_file_truncated_after_its_index_gives_the_remaining_frames(tmp_path, share):
    # Every frame is a key frame of similar size, so the number of frames is proportional to the data.
    options = {"movflags": "faststart"}
    path = write_clip(
        tmp_path / "a.mp4", codec="mjpeg", pixel_format="yuvj420p", n_frames=40, container_options=options
    )
    data = path.read_bytes()
    start = data.index(b"mdat") + 4
    path.write_bytes(data[: start + int((len(data) - start) * share)])
    found = numbers(read_frames(path, 100))
    # The last one may be truncated and show anything.
    assert found[:-1] == list(range(len(found) - 1))
    assert len(found) == pytest.approx(40 * share, abs=2)


@pytest.mark.parametrize("container", ["mp4", "matroska", "mpegts", "avi"])
def test_damaged_file_gives_frames_or_a_reason(tmp_path, container):
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
def test_any_file_name_is_accepted(tmp_path, name):
    path = write_clip(tmp_path / "plain.mp4", n_frames=2).rename(tmp_path / name)
    assert numbers(read_frames(path, 2)) == [0, 1]


def test_relative_path_is_accepted(tmp_path, monkeypatch):
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
def test_playlist_of_other_files_is_not_followed(tmp_path, kind):
    write_clip(tmp_path / "real.mp4")
    path = tmp_path / "a.mp4"
    path.write_text(PLAYLISTS[kind])
    refusal(path)


def test_plain_ffmpeg_would_follow_the_playlist(tmp_path):
    write_clip(tmp_path / "real.mp4")
    path = tmp_path / "a.mp4"
    path.write_text(PLAYLISTS["concat"])
    with av.open(str(path)) as clip:
        assert len(list(clip.decode(video=0))) == 30


def peak_mb() -> float:
    """The peak memory of this process since `forget_peak`."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith("VmHWM")).split()[1]) / 1024


def forget_peak() -> None:
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        pytest.skip("the system does not let a process reset its peak memory")


@pytest.mark.parametrize("side", [65536 - 16, 16000, 8192])
def test_header_with_a_huge_size_is_refused_with_little_memory(tmp_path, side):
    options = {"profile": "baseline", "bf": "0"}
    path = claim_size(write_clip(tmp_path / "a.mp4", container="h264", options=options), (side, side))
    forget_peak()
    before = peak_mb()
    refusal(path)
    # Unlimited, 16000 takes 1,670 MB and 12 s.
    assert peak_mb() - before < 150


def test_huge_size_in_the_container_is_refused(tmp_path):
    gif = write_clip(tmp_path / "a.gif", codec="gif", pixel_format="rgb8", rate=25, n_frames=4)
    gif.write_bytes(gif.read_bytes()[:6] + b"\xff" * 4 + gif.read_bytes()[10:])
    refusal(gif)
    # Matroska's PixelWidth and PixelHeight, each of two bytes.
    mkv = write_clip(tmp_path / "a.mkv", codec="ffv1", size=(320, 304), n_frames=4)
    honest, claim = b"\xb0\x82\x01\x40\xba\x82\x01\x30", b"\xb0\x82\xff\xff\xba\x82\xff\xff"
    assert honest in mkv.read_bytes()
    mkv.write_bytes(mkv.read_bytes().replace(honest, claim))
    refusal(mkv)


def test_moderate_size_in_the_header_is_accepted(tmp_path):
    options = {"profile": "baseline", "bf": "0"}
    path = claim_size(write_clip(tmp_path / "a.mp4", container="h264", options=options), (320, 304))
    assert {frame.pixels.shape for frame in read_frames(path, 2)} == {(304, 320, 3)}


def read_or_fail(numbers_of_bad_reads: set[int] | None, code: int) -> type[io.FileIO]:
    """A file in which the reads with some numbers fail; None lets all reads from the tenth on fail."""
    reads = itertools.count()

    class Faulty(io.FileIO):
        def read(self, size: int = -1) -> bytes:
            number = next(reads)
            if number >= 10 if numbers_of_bad_reads is None else number in numbers_of_bad_reads:
                raise OSError(code, os.strerror(code))
            return super().read(size)

    return Faulty


@pytest.fixture
def large_clip(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A clip that takes many reads."""
    monkeypatch.setattr(container, "PAUSES_S", (0, 0))
    monkeypatch.setattr(video, "RETRY_PAUSE_S", 0)
    path = write_clip(tmp_path / "a.avi", codec="rawvideo", size=(320, 240))
    assert path.stat().st_size > 20 * container.BUFFER_BYTES
    return path


@pytest.mark.parametrize("code", [errno.EIO, errno.ENOMEM, errno.EAGAIN, errno.ENOSPC], ids=errno.errorcode.get)
def test_read_that_fails_once_changes_nothing(monkeypatch, large_clip, code):
    expected = [frame.pixels.copy() for frame in read_frames(large_clip, 8)]
    for number in (0, 5, 12, 20, 31):
        with monkeypatch.context() as patch:
            patch.setattr(container.io, "FileIO", read_or_fail({number, number + 1}, code))
            found = [frame.pixels for frame in read_frames(large_clip, 8)]
        assert len(found) == 8 and all(map(np.array_equal, found, expected))


@pytest.mark.parametrize("code", [errno.EIO, errno.ENOMEM, errno.EAGAIN, errno.ENOSPC], ids=errno.errorcode.get)
def test_persistent_read_errors_are_machine_errors(monkeypatch, large_clip, code):
    monkeypatch.setattr(container.io, "FileIO", read_or_fail(None, code))
    with pytest.raises(MachineError, match=os.strerror(code)):
        read_frames(large_clip, 8)
    with pytest.raises(MachineError, match=os.strerror(code)):
        list(stream_frames(large_clip))
    with pytest.raises(MachineError, match=os.strerror(code)):
        read_sound(large_clip)


def test_too_many_open_files_is_a_machine_error(monkeypatch, large_clip):
    def refuse(*_: object) -> int:
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))

    monkeypatch.setattr(container.os, "open", refuse)
    with pytest.raises(MachineError, match="Too many open files"):
        read_frames(large_clip, 8)


def test_too_little_memory_is_a_machine_error(monkeypatch, large_clip):
    def run_out(*_: object, **__: object) -> None:
        raise av.error.MemoryError(errno.ENOMEM, os.strerror(errno.ENOMEM))

    monkeypatch.setattr(pixels, "VideoReformatter", lambda: SimpleNamespace(reformat=run_out))
    monkeypatch.setattr(container, "ROOM_BYTES", 2**60)  # more memory than there is
    with pytest.raises(MachineError, match="memory is short"):
        read_frames(large_clip, 8)


def test_packet_larger_than_its_file_counts_as_damage(tmp_path):
    path = write_clip(tmp_path / "a.ivf", codec="libvpx", n_frames=12)
    data = bytearray(path.read_bytes())
    places = [32]  # IVF: a header of 32 bytes; each frame begins with its size (4 bytes) and its time (8 bytes)
    while places[-1] < len(data):
        places.append(places[-1] + 12 + int.from_bytes(data[places[-1] : places[-1] + 4], "little"))
    data[places[6] : places[6] + 4] = b"\xff" * 4  # FFmpeg: "Cannot allocate memory"
    path.write_bytes(data)
    assert numbers(read_frames(path, 12)) == [0, 1, 2, 3, 4, 5]


def test_seek_beyond_the_largest_file_size_keeps_the_position(tmp_path):
    with MediaFile(write_clip(tmp_path / "a.mp4")) as file:
        file.seek(7)
        for offset in (2**62, 2**70, -1):
            assert file.seek(offset) < 0 or file.seek(offset) == offset  # some file systems allow 2**62
        file.seek(7)
        assert file.tell() == 7


# Which file was read


def test_reading_reports_the_identity_of_the_opened_file(tmp_path):
    one, other = write_clip(tmp_path / "one.mp4"), write_clip(tmp_path / "other.mp4", size=(80, 48))
    link = tmp_path / "link"
    link.symlink_to(one)
    with MediaFile(link) as file:
        link.unlink()
        link.symlink_to(other)
        assert file.identity == identify(one) != identify(link)
        with pytest.raises(MachineError, match="changed or replaced"):
            MediaFile(link, expected=file.identity)
    assert video.read_clip(link, 2).identity == identify(other)


def test_file_that_changes_while_it_is_read_is_not_scored(tmp_path, monkeypatch):
    monkeypatch.setattr(video, "RETRY_PAUSE_S", 0)
    path, decode = write_clip(tmp_path / "a.mp4"), video.decode

    def change(*args, **kwargs):
        yield from decode(*args, **kwargs)
        with open(path, "ab") as file:
            file.write(b"more")

    monkeypatch.setattr(video, "decode", change)
    with pytest.raises(MachineError, match="changed or replaced"):
        video.read_clip(path, 2)


def test_audio_of_a_replaced_file_is_not_used(tmp_path):
    one, other = (write_audio(tmp_path / name) for name in ("one.m4a", "other.m4a"))
    assert read_sound(one, expected=identify(one)) is not None
    with pytest.raises(MachineError, match="changed or replaced"):
        read_sound(one, expected=identify(other))


@pytest.mark.skipif(sys.platform != "linux", reason="limits of memory are Linux's")
@pytest.mark.parametrize("room_mb", [2, 24])
def test_memory_limit_is_not_reported_as_damage_of_the_clip(tmp_path, room_mb):
    path = write_clip(tmp_path / "a.mp4", size=(1280, 720), n_frames=4)
    code = """
import resource, sys
from pathlib import Path
from dfdc import video
from dfdc.errors import MachineError

video.RETRY_PAUSE_S = 0
in_use = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (in_use + int(sys.argv[2]) * 2**20,) * 2)
try:
    print(len(video.read_frames(Path(sys.argv[1]), 4)))
except MachineError as error:
    print(error)
"""
    command = [sys.executable, "-c", code, str(path), str(room_mb)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=Path(container.__file__).parents[1], check=True)
    assert done.stdout.strip() == "4" or "memory" in done.stdout, done.stderr


def test_no_test_reaches_the_network():
    with pytest.raises(pytest.fail.Exception), socket.socket() as plug:
        plug.connect(("127.0.0.1", 9))
    with pytest.raises(pytest.fail.Exception):
        socket.create_connection(("localhost", 9))
