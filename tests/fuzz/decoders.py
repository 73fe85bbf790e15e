"""What fuzzing asserts of the decoders' entry: any bytes give sound frames, or the clip's own error."""

from __future__ import annotations

import os
import shutil
import tempfile
import time
from pathlib import Path

import av
import cv2
import numpy as np

from dfdc.audio import RATE, read_sound
from dfdc.deadline import Deadline
from dfdc.errors import VideoError, VideoTimeout
from dfdc.pixels import MAX_SIDE
from dfdc.video import Reading, read_clip
from tests.clips import draw, write_audio, write_clip, write_with_sound

# Inputs that were found by fuzzing, or that cannot be made here.
FOUND = Path(__file__).with_name("corpus")
N_FRAMES = 3
# Core-seconds of one clip. An intact one of this size takes .003; damage must not make it take this long.
LIMIT_S = 10.0
MAX_SOUND_S = 5.0
# Kinds of seeds: encoder, suffix and muxer (None where the suffix says it). AV1's is in the folder corpus, because
# SVT-AV1 gives the whole process a real-time priority, which stops every other program on that core.
KINDS = {
    "h264": ("libx264", ".mp4", None),
    "mpeg4": ("mpeg4", ".mov", None),
    "vp8": ("libvpx", ".webm", None),
    "vp9": ("libvpx-vp9", ".mkv", None),
    "hevc": ("libx265", ".mkv", None),
    "mjpeg": ("mjpeg", ".avi", None),
    "mpeg1": ("mpeg1video", ".mpg", None),
    "mpeg2": ("mpeg2video", ".ts", None),
    "mpeg2-mxf": ("mpeg2video", ".mxf", None),
    "flv1": ("flv", ".flv", None),
    "theora": ("libtheora", ".ogv", None),
    "wmv2": ("wmv2", ".wmv", None),
    "ffv1": ("ffv1", ".nut", None),
    "gif": ("gif", ".gif", None),
    "apng": ("apng", ".apng", None),
    "raw-h264": ("libx264", ".h264", "h264"),
    "raw-hevc": ("libx265", ".hevc", "hevc"),
}
# Words that mutation alone would take long to find: boxes of MP4, and names and starts of other containers.
WORDS = [
    *b"ftyp moov mdat trak mdia minf stbl stsd stts stsc stsz stz2 stco co64 ctts stss elst edts moof traf".split(),
    *b"trun tfhd tfdt mvex trex hdlr vide soun udta meta free wide skip cmov dcom cmvd avc1 hvc1 mp4v av01".split(),
    *b"pasp RIFF AVI LIST movi idx1 00dc WEBPVP8X ANIM ANMF DKIF FLV OggS acTL fcTL fdAT IDAT IHDR GIF89a".split(),
    *(b"\x1aE\xdf\xa3", b"\x18S\x80g", b"\x1fC\xb6u", b"\x16T\xaek", b"\0\0\1\xba", b"\0\0\1\xb3", b"\0\0\0\1g"),
    *(b"\xff\xff\xff\xff", b"\x7f\xff\xff\xff", b"\0\0\0\1", b"\0\0\0\0\0\0\0\0"),
]


def check_decoding(data: bytes, folder: Path) -> str:
    """Read a clip of these bytes, as pictures and as sound, and check the results.

    Args:
        data: of the clip.
        folder: gets the file.

    Returns:
        What came of it: "frames", or the reason why it is refused.

    Raises:
        AssertionError: the result is not sound.
        Exception: anything else than the clip's own error, such as a `MachineError`, which would blame the machine for
            what the clip did.
    """
    path = folder / "clip"
    path.write_bytes(data)
    try:
        # The size decides, so that one input always takes the same way.
        n_pairs = len(data) % 3
        deadline = Deadline.after(LIMIT_S, clock=time.process_time)
        reading = read_clip(path, N_FRAMES, n_pairs=n_pairs, deadline=deadline)
        assert not deadline.expired(), f"read only in part after {LIMIT_S} core-seconds"
    except VideoTimeout as error:
        raise AssertionError(f"not opened after {LIMIT_S} core-seconds") from error
    except VideoError as error:
        outcome = str(error)
    else:
        check_reading(reading)
        outcome = "frames"
    try:
        samples = read_sound(path, max_s=MAX_SOUND_S)
    except VideoError:
        return outcome
    if samples is not None:
        assert samples.dtype == np.float32 and samples.ndim == 1, (samples.dtype, samples.shape)
        assert len(samples) <= MAX_SOUND_S * RATE and np.isfinite(samples).all()
    return outcome


def check_reading(reading: Reading) -> None:
    times = [frame.time_s for frame in reading.frames]
    assert 1 <= len(times) <= N_FRAMES, times
    assert times == sorted(set(times)) and times[0] >= 0 and np.isfinite(times).all(), times
    assert np.isfinite(reading.duration_s) and reading.duration_s >= 0, reading.duration_s
    assert 0 <= reading.share <= 1, reading.share
    for frame in reading.frames:
        for pixels in (frame.pixels, frame.neighbour):
            if pixels is not None:
                assert pixels.dtype == np.uint8 and pixels.ndim == 3 and pixels.shape[2] == 3, pixels.shape
                assert min(pixels.shape[:2]) >= 1 and max(pixels.shape[:2]) <= MAX_SIDE, pixels.shape


def write_seeds(folder: Path) -> None:
    """Write a small clip of each kind for which FFmpeg has an encoder here, a few pictures, and what was found."""
    folder.mkdir(parents=True, exist_ok=True)
    for path in FOUND.iterdir():
        shutil.copyfile(path, folder / path.name)
    with tempfile.TemporaryDirectory() as name:
        drafts = Path(name)
        for kind, (codec, suffix, muxer) in KINDS.items():
            draft = drafts / f"{kind}{suffix}"
            pixel_format = {"gif": "rgb8", "apng": "rgb24", "mjpeg": "yuvj420p"}.get(codec, "yuv420p")
            rate = 25 if kind == "mpeg2-mxf" else 30
            try:
                write_clip(
                    draft,
                    codec=codec,
                    n_frames=6,
                    rate=rate,
                    pixel_format=pixel_format,
                    container=muxer,
                    options={"x265-params": "log-level=none"} if codec == "libx265" else {},
                )
            except (av.FFmpegError, ValueError, OSError):
                continue
            shutil.copy(draft, folder / kind)
        write_clip(
            drafts / "parts.mp4",
            n_frames=6,
            container_options={"movflags": "frag_keyframe+empty_moov"},
        )
        shutil.copy(drafts / "parts.mp4", folder / "fragments")
        write_audio(drafts / "sound.mp4", cover=True)
        shutil.copy(drafts / "sound.mp4", folder / "sound")
        for suffix, options in ((".mov", {"movflags": "faststart"}), (".mkv", {})):
            write_with_sound(drafts / f"both{suffix}", options)
            data = (drafts / f"both{suffix}").read_bytes()
            (folder / f"both{suffix}").write_bytes(data[: 1 << 15])
    picture = cv2.cvtColor(draw(90, (64, 48)), cv2.COLOR_RGB2BGR)
    for suffix in (".png", ".jpg", ".webp"):
        (folder / f"picture{suffix}").write_bytes(cv2.imencode(suffix, picture)[1].tobytes())
    if hasattr(cv2, "Animation"):
        animation = cv2.Animation()
        animation.frames, animation.durations = [picture, picture[:, ::-1].copy(), picture[::-1].copy()], [40, 40, 40]
        draft = folder / "animation.webp"
        cv2.imwriteanimation(str(draft), animation)
    for path in folder.iterdir():
        assert path.stat().st_size and not os.path.islink(path), path
