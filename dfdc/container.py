"""Media file -> container, streams and packets: the only place that opens a clip.

FFmpeg reads through `MediaFile`, for three reasons: a clip stays one open file however often it is read; a disk error
can be told from damage in the file, which FFmpeg does not do; and a deadline ends a read that finds no packet.
"""

from __future__ import annotations

import errno
import io
import os
import stat
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import av
import numpy as np
from av.codec.hwaccel import HWAccel
from av.container import InputContainer
from av.stream import Discard, Disposition, Stream
from av.video.stream import VideoStream

from dfdc.deadline import NEVER, Deadline
from dfdc.errors import MachineError, VideoError, VideoTimeout
from dfdc.files import REPLACED, Identity
from dfdc.kinds import name_picture
from dfdc.mp4 import check_tables, is_tiled, lacks_index

# The largest frame that a stream may declare: 8K film. Decoders allocate memory by the declared size, not by the data:
# without a limit, a file of 5 kB that declares 16000 x 16000 takes 1.7 GB and 12 s before it is even open.
MAX_PIXELS = 8192 * 4352
DECODER_OPTIONS = {"max_pixels": str(MAX_PIXELS)}
MAX_PACKETS = 1_000_000
# Reading stops after this many bytes without a packet of the wanted stream, because the rest is not part of the clip.
# Zeros are skipped at 140 to 240 MB per core-second, and a file may contain 50 GB of them. MAX_OPENING_BYTES covers the
# 5 MB that FFmpeg reads to recognise a file, and attachments before the first frame.
MAX_GAP_BYTES = 1 << 26
MAX_OPENING_BYTES = 1 << 25
# Reading continues after up to this many errors in a row; FFmpeg's demuxers recover from most of them.
MAX_ERRORS = 16
# FFmpeg's preference for a stream that is marked as default, in pixels (fftools/ffmpeg_mux_init.c, map_auto_video).
DEFAULT_BONUS_PIXELS = 5_000_000
# Containers that hold their own data. Playlists and lists of other files (hls, dash, concat, ...) are excluded, and so
# is "image2", which interprets a photograph's file name as a pattern.
CONTAINERS = (
    "mov,mp4,m4a,3gp,3g2,mj2,matroska,webm,avi,mpeg,mpegts,mpegvideo,m4v,flv,ogg,asf,wtv,mxf,nut,ivf,obu,h264,hevc,gif,"
    "wav,flac,apng,jpeg_pipe,png_pipe,webp_pipe"
)
CONVERT = "convert it to JPEG or PNG"
# FFmpeg's own buffer size.
BUFFER_BYTES = 1 << 15
# The GPU decodes in the current CUDA context, which torch created: FFmpeg rejects a primary context whose scheduling
# flags differ from its own.
GPU_CONTEXT = {"primary_ctx": "0", "current_ctx": "1"}
# Errors of the machine: FILE_FAULTS while a file is opened or read, WORK_FAULTS while FFmpeg processes what it has read
# (EIO is not among the latter, because FFmpeg also reports it for files that end early).
FILE_FAULTS = frozenset(
    {errno.EIO, errno.ENOMEM, errno.EAGAIN, errno.ENOSPC, errno.EMFILE, errno.ENFILE, errno.ESTALE, errno.ETIMEDOUT}
    | {errno.EBUSY, errno.EINTR, errno.ENODEV, errno.ENXIO, errno.ENOTCONN, errno.EREMOTEIO, errno.ENOBUFS}
)
WORK_FAULTS = frozenset({errno.EAGAIN, errno.ENOSPC, errno.EMFILE, errno.ENFILE})
# Memory that a decoder needs in addition to its frames.
ROOM_BYTES = 1 << 24
# Pauses in seconds before a failed read is repeated.
PAUSES_S = (0.05, 0.2, 0.8)


class MediaFile:
    """A media file that is open for reading; a context manager.

    PyAV needs the attribute `name` and the methods `read`, `seek` and `tell` of a file object.
    """

    def __init__(self, path: Path, *, deadline: Deadline = NEVER, expected: Identity | None = None) -> None:
        """Open a file.

        Args:
            path: of the file; any name is allowed.
            deadline: when it passes, `read` reports the end of the file.
            expected: identity of the file that was opened before under this path; None if this is the first time.

        Raises:
            VideoError: the file is missing, empty, not a regular file, or not readable.
            MachineError: it could not be opened because a resource of the machine is short, or it is not the expected
                file.
        """
        # FFmpeg does not get the file's own name: it should go by content, and some of its demuxers interpret a name as
        # a pattern.
        self.name = "clip"
        self.deadline = deadline
        self.is_cut = False
        self._suffix = path.suffix if path.suffix.isascii() and path.suffix[1:].isalnum() else ""
        self._fault: OSError | None = None
        self._is_open, self._gap = False, 0
        descriptor = _open_file(path)
        self.status = os.fstat(descriptor)
        if not stat.S_ISREG(self.status.st_mode):
            os.close(descriptor)
            is_folder = stat.S_ISDIR(self.status.st_mode)
            raise VideoError(f"cannot be opened ({'Is a directory' if is_folder else 'not a regular file'})")
        self._file = io.FileIO(descriptor)
        try:
            if expected not in (None, self.identity):
                raise MachineError(REPLACED)
            if self.status.st_size == 0:
                raise VideoError("the file is empty")
            check_tables(self, self.status.st_size)
            if is_tiled(self, self.status.st_size):
                raise VideoError(f"a HEIC or AVIF picture in tiles, which are not put together; {CONVERT}")
            self.check()
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> MediaFile:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def identity(self) -> Identity:
        """The identity of the file that is open, whatever its path leads to by now."""
        return Identity.of(self.status)

    def close(self) -> None:
        self._file.close()

    def read(self, size: int) -> bytes:
        """The next bytes; empty at the end, after the deadline or a disk error, or after a long gap without packets."""
        if self._fault is not None or self._is_over():
            return b""
        for pause_s in (*PAUSES_S, None):
            try:
                data = self._file.read(size)
            except OSError as error:
                if pause_s is None:
                    self._fault = error
                    return b""
                time.sleep(pause_s)
            else:
                self._gap += len(data)
                return data or b""
        raise AssertionError("unreachable")

    def _is_over(self) -> bool:
        over = self._gap > (MAX_GAP_BYTES if self._is_open else MAX_OPENING_BYTES) or self.deadline.expired()
        self.is_cut |= over
        return over

    @contextmanager
    def hurried(self, share: float) -> Iterator[None]:
        """Inside the block, end the file after a share of the remaining time; `is_cut` then refers to this block."""
        deadline, self.deadline = self.deadline, self.deadline.part(share)
        self.is_cut = False
        try:
            yield
        finally:
            self.deadline = deadline

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        """Move to a place; a negative number if there can be no such place, as FFmpeg expects.

        Damaged clips refer to places behind the largest possible file, which some file systems refuse.
        """
        try:
            return self._file.seek(offset, whence)
        except (OSError, OverflowError):
            return -errno.EINVAL

    def tell(self) -> int:
        return self._file.tell()

    def check(self) -> None:
        """Report a failed read, even if FFmpeg continued after it, and a file that was changed since it was opened.

        Raises:
            MachineError: a read failed, or the file was changed.
        """
        if self._fault is not None:
            raise MachineError(f"could not be read ({self._fault.strerror or self._fault})") from self._fault
        if Identity.of(os.fstat(self._file.fileno())) != self.identity:
            raise MachineError(REPLACED)

    def container(self, *, gpu: int | None = None) -> InputContainer:
        """Open the file from its start as any kind of media file except a playlist.

        Args:
            gpu: number of the CUDA device that decodes the video if it can; None for the CPU.

        Raises:
            VideoError: the file is not of a known kind, or declares too many pixels.
            VideoTimeout: the deadline passed.
            MachineError: a read failed, or memory or threads are short.
        """
        # FFmpeg decodes some frames to analyse a file. Containers such as MPEG-PS, or MPEG-TS without tables, reveal
        # their streams only while they are read, and then no limit reaches that decoder: 30 kB that declare 16000 x
        # 16000 take 1,180 MB and 8 s. Opened without decoders first (0.6 ms), they take 4 MB.
        with self._container(codec_whitelist="none") as glance:
            claims = [stream.width * stream.height for stream in glance.streams.video if stream.codec_context]
        if claims and (max(claims) > MAX_PIXELS or sum(claims) > 2 * MAX_PIXELS):
            raise VideoError(f"{sum(claims)} pixels in {len(claims)} video stream(s); allowed are {MAX_PIXELS} in one")
        return self._container(gpu=gpu)

    def _container(self, *, gpu: int | None = None, **options: str) -> InputContainer:
        limits = {"protocol_whitelist": "none", "format_whitelist": CONTAINERS, **DECODER_OPTIONS}
        problem: Exception | None = None
        # If damage at the start hides the kind of the file, its suffix decides.
        for name in ("clip", f"clip{self._suffix}"):
            self.name, self._is_open, self._gap = name, False, 0
            self.seek(0)
            try:
                container = av.open(
                    self,
                    options={**limits, **options},
                    metadata_errors="replace",
                    buffer_size=BUFFER_BYTES,
                    hwaccel=None if gpu is None else HWAccel("cuda", str(gpu), options=GPU_CONTEXT, is_hw_owned=True),
                )
            except (av.FFmpegError, MemoryError, ValueError) as error:
                self.check()
                blame_machine(error)
                problem = error
            else:
                self.check()
                return container
            if self.deadline.expired():
                raise VideoTimeout("out of time before the first frame")
        self.check_index()
        self._file.seek(0)
        if kind := name_picture(self._file.read(16)):
            raise VideoError(f"a {kind} picture, which is not read; {CONVERT}") from problem
        reason = getattr(problem, "strerror", None) or problem
        raise VideoError(f"not a video or picture of a known kind ({reason})") from problem

    def check_index(self) -> None:
        """Report an MP4 that ends within its index, of which FFmpeg may make a file without streams or frames.

        Raises:
            VideoError: the file is such an MP4.
        """
        if lacks_index(self._file, self.status.st_size):
            raise VideoError("an MP4 whose index is missing or incomplete: the recording or the download was cut off")

    def demux(self, container: InputContainer, stream: Stream) -> Iterator[av.Packet]:
        """The packets of one stream, up to the end of the file, its deadline, or damage that does not end.

        FFmpeg discards the other streams, so a truncated or damaged one does not end this one.

        Raises:
            MachineError: a read failed, or memory is short.
        """
        for other in container.streams:
            other.discard = Discard.default if other.index == stream.index else Discard.all
        self._is_open = True
        self._gap = n_packets = n_errors = 0
        while n_errors <= MAX_ERRORS:
            try:
                for packet in container.demux(stream):
                    if n_packets == MAX_PACKETS:
                        self.is_cut = True
                        return
                    if packet.size:
                        self._gap = n_errors = 0
                        n_packets += 1
                        yield packet
                break
            except (av.FFmpegError, MemoryError) as error:
                self.check()
                if getattr(error, "errno", None) != errno.EAGAIN:  # some demuxers report it for a useless packet
                    blame_machine(error)
                n_errors += 1
        self.check()


def _open_file(path: Path) -> int:
    """Open a file for reading and return its descriptor; a pipe without a writer does not block."""
    flags = os.O_RDONLY
    for name in ("O_BINARY", "O_CLOEXEC", "O_NONBLOCK", "O_NOCTTY"):
        flags |= getattr(os, name, 0)
    for pause_s in (*PAUSES_S, None):
        try:
            return os.open(path, flags)
        except ValueError as error:  # a null byte in the name
            raise VideoError(f"cannot be opened ({error})") from error
        except OSError as error:
            if error.errno not in FILE_FAULTS:
                raise VideoError(f"cannot be opened ({error.strerror or error})") from error
            if pause_s is None:
                raise MachineError(f"cannot be opened ({error.strerror or error})") from error
            time.sleep(pause_s)
    raise AssertionError("unreachable")


def blame_machine(error: Exception) -> None:
    """Raise a `MachineError` if an error is the machine's fault and not the clip's.

    A damaged clip may declare a packet of gigabytes, and FFmpeg then reports a lack of memory. So memory counts as
    short only if the largest frame that is allowed would not fit either.

    Raises:
        MachineError: memory, threads or descriptors are short.
    """
    if isinstance(error, MemoryError) or getattr(error, "errno", None) == errno.ENOMEM:
        require_memory(MAX_PIXELS)
    elif getattr(error, "errno", None) in WORK_FAULTS:
        raise MachineError(f"could not be decoded ({getattr(error, 'strerror', None) or error!r})") from error


def require_memory(n_pixels: int) -> None:
    """Check that there is memory for a frame, because some decoders report a lack of memory as an invalid packet.

    Raises:
        MachineError: there is not.
    """
    try:
        np.empty(ROOM_BYTES + 8 * n_pixels, np.uint8)  # private memory, which the limits of a process count
    except MemoryError as error:
        raise MachineError("could not be decoded (memory is short)") from error


def video_streams(container: InputContainer) -> list[VideoStream]:
    """A container's video streams without cover pictures, the main one first, as the ffmpeg program would choose it.

    Raises:
        VideoError: there is no video stream, or FFmpeg has no decoder for any of them.
    """
    streams = [stream for stream in container.streams.video if not stream.disposition & Disposition.attached_pic]
    if not streams:
        raise VideoError("has no video stream")
    streams = [stream for stream in streams if stream.codec_context is not None]
    if not streams:
        raise VideoError("has no decoder for its video stream")

    def preference(stream: VideoStream) -> int:
        bonus = DEFAULT_BONUS_PIXELS if stream.disposition & Disposition.default else 0
        return stream.width * stream.height + bonus

    return sorted(streams, key=preference, reverse=True)
