"""Measure the accuracy lost by reading only a window after each key frame instead of the whole clip.

python tools/research/compare_windows.py clips --packets 40 --json windows.json     # labels in clips/metadata.json

The first packets after every key frame are copied, without re-encoding, into a new clip, and the kernel scores both
clips. Windows would miss a clip that is faked only between them, whatever the table says.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import av
import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from dfdc.data.clips import LabelledClip, read_present
from dfdc.errors import DataError
from dfdc.evaluation.metrics import measure
from dfdc.files import write_json
from dfdc.flags import check_outputs, make_parser, positive, run_tool, tool
from dfdc.prediction import Prediction
from dfdc.run.submission import details_path, read_predictions

KERNEL = Path(__file__).resolve().parents[2] / "kernel.py"


@dataclass(frozen=True)
class Reading:
    """The result of one way of reading.

    Attributes:
        name: name of the way of reading.
        packets: mean number of packets per clip.
        decode_s: mean CPU seconds per clip for decoding.
        auc, log_loss: over all clips; the log loss gives reals and fakes equal weight.
        labels: the probability of each clip, in the folder's order.
    """

    name: str
    packets: float
    decode_s: float
    auc: float
    log_loss: float
    labels: tuple[float, ...]


def copy_windows(source: Path, target: Path, n_packets: int | None) -> int:
    """Copy the video's packets into a Matroska file, with their times.

    Args:
        source: clip to copy.
        target: file to write.
        n_packets: number of packets to copy from each key frame on; None for all.

    Returns:
        The number of packets that were copied.
    """
    copied = since_key = 0
    with av.open(str(source)) as container, av.open(str(target), "w", format="matroska") as out:
        stream = container.streams.video[0]
        written = out.add_stream_from_template(stream)
        for packet in container.demux(stream):
            if packet.dts is None:
                continue
            since_key = 0 if packet.is_keyframe else since_key + 1
            if n_packets is None or since_key < n_packets:
                packet.stream = written
                out.mux(packet)
                copied += 1
    return copied


def compare_windows(videos: Path, *, packets: Sequence[int], options: Sequence[str] = ()) -> list[Reading]:
    """Score whole clips, and their windows of each size.

    Args:
        videos: folder of clips with metadata.json.
        packets: sizes of the windows in packets.
        options: more flags for the kernel.

    Raises:
        DataError: the metadata cannot be used, all clips have one label, or the kernel failed.
    """
    clips = read_present(videos)
    if len({clip.label for clip in clips}) < 2:
        raise DataError(f"{videos}: all {len(clips)} clips are {clips[0].label}; scores need both labels")
    return [_read(clips, count, options) for count in (None, *packets)]


def _read(clips: Sequence[LabelledClip], n_packets: int | None, options: Sequence[str]) -> Reading:
    with tempfile.TemporaryDirectory() as folder:
        copies = [Path(folder) / f"{place:04d}.mkv" for place in range(len(clips))]
        counts = [copy_windows(clip.path, copy, n_packets) for clip, copy in zip(clips, copies, strict=True)]
        out = Path(folder) / "submission.csv"
        command = [sys.executable, str(KERNEL), *map(str, copies), "--device=cpu", "--out", str(out), *options]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode != 0:
            raise DataError(f"kernel.py ended with exit code {done.returncode}: {done.stderr.strip()[-500:]}")
        found: list[Prediction] = sorted(read_predictions(details_path(out)), key=lambda p: p.filename)
    labels = np.array([clip.label == "FAKE" for clip in clips], float)
    scores = measure(labels, np.array([prediction.label for prediction in found]))
    return Reading(
        "whole clip" if n_packets is None else f"{n_packets} packets after each key frame",
        float(np.mean(counts)),
        float(np.mean([prediction.decode_s for prediction in found])),
        scores["auc"],
        scores["balanced_log_loss"],
        tuple(prediction.label for prediction in found),
    )


def format_table(readings: Sequence[Reading]) -> str:
    """Format a Markdown table; "moved" is the mean change of a clip's log-odds from those of the whole clip."""
    whole = np.array(readings[0].labels)
    lines = ["| read | packets | decoding | AUC | log loss | moved |", "|---|---|---|---|---|---|"]
    for reading in readings:
        own = np.array(reading.labels)
        moved = np.abs(np.log(own / (1 - own)) - np.log(whole / (1 - whole))).mean()
        cells = (f"{reading.packets:.0f}", f"{reading.decode_s:.2f} s", f"{reading.auc:.3f}", f"{reading.log_loss:.3f}")
        lines.append(f"| {reading.name} | {' | '.join(cells)} | {moved:.2f} |")
    return "\n".join(lines)


@tool
def main(argv: list[str] | None = None) -> int:
    parser = make_parser(__doc__)
    add = parser.add_argument
    add("videos", type=Path, metavar="VIDEOS", help="folder of clips with metadata.json")
    packets_help = "sizes of the windows in packets (default: 40)"
    add("--packets", type=positive, nargs="+", default=[40], metavar="N", help=packets_help)
    add("--frames", type=positive, default=16, help="number of frames to score (default: %(default)s)")
    add("--models", choices=("all", "first"), default="first", help="models to use (default: %(default)s)")
    add("--json", type=Path, metavar="FILE", help="write the figures to this file, too (default: print them only)")
    args = parser.parse_args(argv)
    check_outputs([args.json])
    options = (f"--frames={args.frames}", f"--models={args.models}")
    readings = compare_windows(args.videos, packets=args.packets, options=options)
    print(format_table(readings))
    if args.json:
        write_json(args.json, [asdict(reading) for reading in readings])
    return 0


if __name__ == "__main__":
    run_tool(main)
