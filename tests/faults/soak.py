"""Score 2,000 short clips in one run and record its memory, descriptors, threads and processes."""

from __future__ import annotations

import json
import os
import shutil
from collections import Counter
from dataclasses import asdict
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from dfdc.evaluation.charts import caption, plain, save
from tests.faults import kernels
from tests.faults.damage import cut
from tests.faults.kernels import Sample, sampled, start

# The recorded quantities of all processes together, and the labels of their axes in the plot.
QUANTITIES = {
    "own_mb": "memory\nallocated, MB",
    "pss_mb": "with pages of\nlibraries, MB",
    "n_descriptors": "file\ndescriptors",
    "n_threads": "threads",
    "n_processes": "processes",
}
WHAT_TO_SEE = (
    "A leak would show as a steady rise. The rise at the left fills caches; a fall at the right is the end of the run."
)
# This share of the clips is left out of the trend, because the first clips fill caches.
WARM_UP = 0.1
# Side lengths of the clips in pixels. They vary, because memory that is kept per size must not grow without end.
SIZES = range(160, 480, 8)


def soak(folder: Path, out: Path, *, n_clips: int = 2000) -> str:
    """Score a tiny clip in `SIZES` under many names, and write soak.json and soak.png.

    Args:
        folder: folder to work in.
        out: folder of the results.
        n_clips: number of clips.

    Returns:
        The result in one sentence.
    """
    shutil.rmtree(folder, ignore_errors=True)
    clips = folder / "clips"
    clips.mkdir(parents=True)
    tiny = [cut(folder / f"{size}.mp4", size=size, n_frames=8) for size in SIZES]
    for i in range(n_clips):
        os.link(tiny[i % len(tiny)], clips / f"{i:04d}.mp4")
    kernel = start([clips, "--frames", 2], folder / "submission.csv")
    with sampled(kernel, every_s=2.0) as samples:
        code = kernel.wait()
    known = kernels.details(kernel.out)
    report = {
        "clips": n_clips,
        "exit code": code,
        "statuses": dict(Counter(row["status"] for row in known.values())),
        "labels": len({row["label"] for row in known.values()}),
        "seconds": kernel.age_s(),
        **{name: trend(samples, name) for name in QUANTITIES},
        "samples": [asdict(sample) for sample in samples],
    }
    (out / "soak.json").write_text(json.dumps(report) + "\n")
    plot(samples, out / "soak.png", n_clips=n_clips)
    memory = report["own_mb"]
    return (
        f"soak: {n_clips} clips, exit code {code}, {report['statuses']}; memory {memory['mean']:.0f} MB, "
        f"slope {memory['slope_per_1000']:+.1f} MB per 1,000 clips; "
        + ", ".join(
            f"{name} {report[name]['least']:.0f} to {report[name]['most']:.0f}" for name in list(QUANTITIES)[2:]
        )
    )


def trend(samples: list[Sample], name: str) -> dict[str, float]:
    """The bounds, mean and slope (per 1,000 clips) of a quantity after the caches are full."""
    n_most = max(sample.n_done for sample in samples)
    some = [sample for sample in samples if WARM_UP * n_most < sample.n_done < n_most]
    values = np.array([getattr(sample, name) for sample in some], float)
    slope = np.polyfit([sample.n_done for sample in some], values, 1)[0]
    return {
        "least": values.min(),
        "most": values.max(),
        "mean": values.mean(),
        "slope_per_1000": slope * 1000,
    }


def plot(samples: list[Sample], path: Path, *, n_clips: int) -> None:
    """Plot each quantity over the number of finished clips."""
    figure = Figure(figsize=(8, 8), dpi=110, layout="constrained")
    figure.suptitle(f"Resources of one run over {n_clips:,} short clips", fontsize=12)
    axes = figure.subplots(len(QUANTITIES), 1, sharex=True)
    for axis, (name, words) in zip(axes, QUANTITIES.items(), strict=True):
        axis.plot([sample.n_done for sample in samples], [getattr(sample, name) for sample in samples], color="black")
        axis.set_ylim(bottom=0)
        axis.set_ylabel(words, fontsize=9)
        plain(axis)
    axes[-1].set_xlabel("number of clips done")
    figure.align_ylabels()
    caption(figure, WHAT_TO_SEE)
    save(figure, path)
