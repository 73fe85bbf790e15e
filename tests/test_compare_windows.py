"""tools/research/compare_windows.py: windows after key frames are copied unchanged, and both versions are scored."""

from __future__ import annotations

import json
from pathlib import Path

import av
import numpy as np
import pytest

from tools.research.compare_windows import copy_windows, main

SAMPLES = Path(__file__).resolve().parent.parent / "samples"


def write_clip(path: Path, *, n_frames: int, distance: int) -> None:
    """Write a clip of grey frames of increasing brightness with a key frame every `distance` frames."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mpeg4", rate=10)
        stream.width = stream.height = 64
        stream.pix_fmt, stream.gop_size = "yuv420p", distance
        stream.options = {"sc_threshold": "1000000000"}  # no additional key frames
        for place in range(n_frames):
            frame = av.VideoFrame.from_ndarray(np.full((64, 64, 3), 8 * place, np.uint8), format="rgb24")
            container.mux(stream.encode(frame))
        container.mux(stream.encode())


def test_windows_hold_the_frames_after_each_key_frame_at_their_times(tmp_path: Path) -> None:
    write_clip(tmp_path / "clip.mp4", n_frames=30, distance=10)
    assert copy_windows(tmp_path / "clip.mp4", tmp_path / "whole.mkv", None) == 30
    assert copy_windows(tmp_path / "clip.mp4", tmp_path / "windows.mkv", 3) == 9
    with av.open(str(tmp_path / "windows.mkv")) as container:
        frames = [(round(frame.time * 10), frame.to_ndarray(format="rgb24").mean()) for frame in container.decode()]
    assert [time for time, _ in frames] == [0, 1, 2, 10, 11, 12, 20, 21, 22]
    assert [brightness for _, brightness in frames] == pytest.approx([8 * time for time, _ in frames], abs=4)


@pytest.mark.slow
def test_both_readings_are_scored(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "windows.json"
    assert main([str(SAMPLES), "--packets", "10", "--frames", "4", "--json", str(out)]) == 0
    whole, windows = json.loads(out.read_text())
    assert windows["packets"] < whole["packets"]
    assert len(whole["labels"]) == len(windows["labels"]) == 2
    assert "10 packets after each key frame" in capsys.readouterr().out
