"""Write malicious files by hand, and some that are merely odd."""

from __future__ import annotations

import os
from pathlib import Path

import av
import numpy as np

from tests.clips import claim_size, draw, rewrite_packets, write_audio, write_clip

BASELINE = {"profile": "baseline", "bf": "0"}
# File name and text of each kind of list. The text names the intact clip beside it and an address.
LISTS = {
    "list-concat.mp4": "ffconcat version 1.0\nfile {file}\nfile {url}\n",
    "list-hls.mp4": "#EXTM3U\n#EXT-X-TARGETDURATION:9\n#EXTINF:9,\n{file}\n#EXTINF:9,\n{url}\n#EXT-X-ENDLIST\n",
    "list-hls-key.ts": '#EXTM3U\n#EXT-X-KEY:METHOD=AES-128,URI="{url}"\n#EXTINF:9,\n{file}\n#EXT-X-ENDLIST\n',
    "list-dash.mp4": '<?xml version="1.0"?>\n<MPD xmlns="urn:mpeg:dash:schema:mpd:2011" type="static" '
    'mediaPresentationDuration="PT1S"><Period><AdaptationSet mimeType="video/mp4"><Representation id="1" '
    'bandwidth="1"><BaseURL>{url}</BaseURL></Representation></AdaptationSet></Period></MPD>',
    "list-sdp.mp4": "v=0\no=- 0 0 IN IP4 127.0.0.1\ns=x\nc=IN IP4 127.0.0.1\nt=0 0\nm=video {port} RTP/AVP 96\n"
    "a=rtpmap:96 H264/90000\n",
    "list-ram.mp4": "{url}\n",
    "list-asx.wmv": '<asx version="3.0"><entry><ref href="{url}"/></entry></asx>',
    "list-reference.wmv": "[Reference]\nRef1={url}?MSWMExt=.asf\n",
}
ODD_NAMES = (
    "line\nbreak.mp4",
    "carriage\rreturn.mp4",
    'quotes"and,comma.mp4',
    "=cmd|'calc'!A1.mp4",
    "@SUM(A1).mp4",
    "<script>alert(1)<\\script>.mp4",
    "http:x.mp4",
    "concat:a|b.mp4",
    "%s%n%03d.mp4",
    "-rf.mp4",
    "\udcff\udcfe.mp4",
    "\u202egpj.mp4",
    f"{'n' * 240}.mp4",
)


def claim_in_header(path: Path, size: tuple[int, int]) -> Path:
    """Patch the size in pixels in an MP4's only video sample entry (ISO 14496-12, 12.1.3)."""
    data = bytearray(path.read_bytes())
    entry = data.index(b"avc1") + 4 + 24
    data[entry : entry + 4] = b"".join(side.to_bytes(2, "big") for side in size)
    path.write_bytes(data)
    return path


def claim_in_packets(path: Path, source: Path, size: tuple[int, int]) -> Path:
    """Copy an H.264 clip into another container, with headers that claim another size."""
    scratch = path.with_name("packet.tmp")

    def lie(packet: bytes) -> bytes:
        scratch.write_bytes(packet)
        return claim_size(scratch, size).read_bytes()

    rewrite_packets(source, path, lie)
    scratch.unlink()
    return path


def drop_tables(path: Path) -> Path:
    """Remove the tables (identifiers 0, 17 and 4096) from an MPEG transport stream."""
    data = path.read_bytes()
    packets = [data[i : i + 188] for i in range(0, len(data), 188)]
    path.write_bytes(b"".join(p for p in packets if (p[1] & 31) << 8 | p[2] not in (0, 17, 4096)))
    return path


def write_still(path: Path, *, size: tuple[int, int], n_frames: int) -> Path:
    """Write a clip that repeats one picture, which is the cheapest large or long clip."""
    with av.open(str(path), "w") as output:
        stream = output.add_stream("mpeg4", rate=25)
        stream.width, stream.height, stream.pix_fmt = *size, "yuv420p"
        stream.gop_size = 250
        frame = av.VideoFrame.from_ndarray(draw(90, size), "rgb24").reformat(format="yuv420p")
        for _ in range(n_frames):
            frame.pts = None
            output.mux(stream.encode(frame))
        output.mux(stream.encode(None))
    return path


def write_crowd(path: Path, face: np.ndarray, *, columns: int = 10, rows: int = 6, n_frames: int = 4) -> Path:
    """Write a clip whose frames show one face many times; face is (S, S, 3) uint8 RGB."""
    picture = np.ascontiguousarray(np.tile(face, (rows, columns, 1)))
    with av.open(str(path), "w") as output:
        stream = output.add_stream("libx264", rate=25)
        stream.width, stream.height, stream.pix_fmt = picture.shape[1], picture.shape[0], "yuv420p"
        for _ in range(n_frames):
            output.mux(stream.encode(av.VideoFrame.from_ndarray(picture, "rgb24")))
        output.mux(stream.encode(None))
    return path


def write_handmade(folder: Path, intact: Path, *, beside: str, port: int, large: bool = True) -> list[str]:
    """Write every hand-made file into a folder.

    Args:
        folder: folder to write into.
        intact: an H.264 MP4 with a face.
        beside: name of an intact clip in the folder, to which the lists refer.
        port: local port on which a listener counts connections.
        large: whether to write clips in 8K, of 100,000 frames and with sixty faces, too.

    Returns:
        The names of the files. Only those that start with "face-" may have the status "ok".
    """
    before = set(os.listdir(folder))
    (folder / "empty.mp4").touch()
    (folder / "text.mp4").write_text("this is no video\n" * 1000)
    (folder / "zeros.mp4").write_bytes(bytes(100_000))
    (folder / "noise.mp4").write_bytes(np.random.default_rng(0).bytes(100_000))
    for name, text in LISTS.items():
        text = text.format(file=beside, url=f"http://127.0.0.1:{port}/a.mp4", port=port)
        (folder / name).write_text(text)
    (folder / "folder.mp4").mkdir()
    os.mkfifo(folder / "pipe.mp4")
    for name, leads_to in {
        "dangling.mp4": "nowhere.mp4",
        "loop.mp4": "loop.mp4",
        "zero-device.mp4": "/dev/zero",
        "random-device.mp4": "/dev/urandom",
        "folder-link.mp4": "/etc",
        "text-link.mp4": "/etc/passwd",
    }.items():
        (folder / name).symlink_to(leads_to)
    write_audio(folder / "audio.mp4")
    write_audio(folder / "audio-cover.mp4", cover=True)
    write_clip(folder / "no-frames.mp4", n_frames=0)
    write_clip(folder / "one-frame.mp4", n_frames=1)
    still = write_clip(folder / "zero-fps.mp4", n_frames=8)
    data = bytearray(still.read_bytes())
    count = data.index(b"stts") + 12  # ISO 14496-12, 8.6.1.2: all frames at one moment
    data[count : count + 4] = bytes(4)
    still.write_bytes(data)
    for name in ODD_NAMES:
        write_clip(folder / "odd.tmp.mp4", n_frames=2).rename(folder / name)
    claim_in_header(write_clip(folder / "claims-65535.mp4", options=BASELINE), (65535, 65535))
    raw = write_clip(folder / "raw.tmp", container="h264", options=BASELINE)
    for side in (8192, 16000, 65520):
        (folder / f"claims-{side}-raw.mp4").write_bytes(raw.read_bytes())
        claim_size(folder / f"claims-{side}-raw.mp4", (side, side))
    raw.unlink()
    honest = write_clip(folder / "honest.tmp.ts", options=BASELINE | {"g": "1"}, n_frames=250)
    claim_in_packets(folder / "claims-16000.ts", honest, (16000, 16000))
    claim_in_packets(folder / "claims-16000.mpg", honest, (16000, 16000))
    drop_tables(claim_in_packets(folder / "claims-16000-no-tables.ts", honest, (16000, 16000)))
    honest.unlink()
    if large:
        write_still(folder / "size-8k.mp4", size=(7680, 4320), n_frames=6)
        write_still(folder / "long.mp4", size=(64, 48), n_frames=100_000)
        with av.open(str(intact)) as clip:
            face = next(clip.decode(video=0)).to_ndarray(format="rgb24")
        write_crowd(folder / "face-sixty.mp4", face)
    return sorted(set(os.listdir(folder)) - before)
