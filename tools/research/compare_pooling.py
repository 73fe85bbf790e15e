"""Compare ways to make one score of a clip's frames: the mean, the winners' rules, and a learned layer.

python tools/research/compare_pooling.py videos --json pooling.json --picture docs/pooling.png
python tools/research/compare_pooling.py videos --logits logits.npz --fake-share 0.3

Clips are scored by the kernel's own path and all nets, once: their frame logits stay in a file, which serves while
weights, clips and number of frames are the same. What is fitted is measured on sources that it never saw.
"""

from __future__ import annotations

import argparse
import json
import sys
import zipfile
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from tqdm import tqdm

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from dfdc.analyze import Analyzer
from dfdc.data.clips import LabelledClip, digest_clip, read_present
from dfdc.errors import DataError, DeviceError, WeightsError
from dfdc.evaluation.charts import FAKE, GREY, REAL, plain, save
from dfdc.files import check_out, drafted, write_json
from dfdc.flags import natural, positive, run_tool
from dfdc.research.pooling import (
    EDGES,
    FIXED_RULES,
    KERNELS,
    LEARNED,
    ScoredClip,
    compare_rules,
    fit_pooling,
    splice_fakes,
)
from dfdc.run.journal import digest_code
from dfdc.runtime import choose_device
from dfdc.weights import find_weights

WEIGHTS = Path(__file__).resolve().parents[2] / "weights"
HEADINGS = {
    "auc": "AUC",
    "log_loss": "log loss",
    "balanced_log_loss": "balanced log loss",
    "difference": "difference from the mean",
    "beyond_calibration": "from the recalibrated mean",
}


@dataclass(frozen=True)
class Scores:
    """Clips with their frame logits.

    Attributes:
        clips: by name.
        low, high: the bounds of the probabilities of the weights that scored them.
        made_from: weights, frames and clips in JSON; where it is the same, scoring again would give the same.
    """

    clips: tuple[ScoredClip, ...]
    low: float
    high: float
    made_from: str


def score_clips(
    folder: Path,
    logits: Path,
    *,
    weights: Path = WEIGHTS,
    n_frames: int = 32,
    device: str = "auto",
    overwrite: bool = False,
) -> Scores:
    """Frame logits of a folder's clips, from a file if they are in it, else scored and written to it.

    Args:
        folder: of clips with metadata.json; those that it lists and that are absent are left out.
        logits: the file.
        weights: file or folder.
        n_frames: looked at per clip.
        device: "auto", "cpu" or "cuda".
        overwrite: whether clips are scored whatever the file holds.

    Raises:
        DataError: metadata.json cannot be used, or lists no clip that is there.
        WeightsError, DeviceError, OSError: the weights, the device or the file cannot be used.
    """
    listed = read_present(folder)
    files = find_weights(weights)
    made_from = json.dumps(
        {
            "weights": [file.digest for file in files],
            "n_frames": n_frames,
            "clips": [[clip.name, clip.label, clip.source, digest_clip(clip.path)] for clip in listed],
            "code": digest_code(),
        }
    )
    kept = None if overwrite else _read_scores(logits)
    if kept is not None and kept.made_from == made_from:
        return kept
    analyzer = Analyzer(files, device=choose_device(device))
    clips = tuple(_score_clip(analyzer, clip, n_frames) for clip in tqdm(listed, desc="scoring", unit="clip"))
    scores = Scores(clips, *analyzer.ensemble.bounds(), made_from)
    logits.parent.mkdir(parents=True, exist_ok=True)
    with drafted(logits) as draft:
        _save_scores(draft, scores)
    return scores


def _score_clip(analyzer: Analyzer, clip: LabelledClip, n_frames: int) -> ScoredClip:
    analysis = analyzer.analyze(clip.path, n_frames)
    if analysis.status != "ok":
        tqdm.write(f"{clip.name}: {analysis.status}, {analysis.reason}", file=sys.stderr)
    tracks = tuple(track.logits for track in analysis.tracks)
    return ScoredClip(clip.name, clip.source, int(clip.label == "FAKE"), tracks)


def _save_scores(path: Path, scores: Scores) -> None:
    tracks = [(index, track) for index, clip in enumerate(scores.clips) for track in clip.tracks]
    with open(path, "wb") as file:
        np.savez_compressed(
            file,
            names=[clip.name for clip in scores.clips],
            sources=[clip.source for clip in scores.clips],
            labels=[clip.label for clip in scores.clips],
            owners=np.array([index for index, _ in tracks], int),
            lengths=np.array([len(track) for _, track in tracks], int),
            logits=np.concatenate([np.zeros(0), *(track for _, track in tracks)]),
            bounds=[scores.low, scores.high],
            made_from=scores.made_from,
        )


def _read_scores(path: Path) -> Scores | None:
    """What an earlier run kept; None where that is nothing, or nothing that can be read."""
    try:
        with np.load(path) as kept:
            tracks = np.split(kept["logits"], np.cumsum(kept["lengths"]))[:-1]
            by_clip: list[list[np.ndarray]] = [[] for _ in kept["names"]]
            for owner, track in zip(kept["owners"], tracks, strict=True):
                by_clip[owner].append(track)
            rows = zip(kept["names"], kept["sources"], kept["labels"], by_clip, strict=True)
            clips = tuple(
                ScoredClip(str(name), str(source), int(label), tuple(own)) for name, source, label, own in rows
            )
            return Scores(clips, *map(float, kept["bounds"]), str(kept["made_from"]))
    except FileNotFoundError:
        return None
    except (ValueError, KeyError, IndexError, EOFError, zlib.error, zipfile.BadZipFile) as error:
        print(f"{path}: holds no frame logits ({error}); the clips are scored anew", file=sys.stderr)
        return None


def format_table(rules: dict[str, dict]) -> str:
    """Scores as lines of text, a row for each rule."""
    width = max(map(len, rules))
    lines = [f"{'':<{width}}  " + "  ".join(f"{heading:<26}" for heading in HEADINGS.values())]
    for name, scores in rules.items():
        cells = "  ".join(
            f"{_describe(scores[key], signed=key in ('difference', 'beyond_calibration')):<26}" for key in HEADINGS
        )
        lines.append(f"{name:<{width}}  {cells}".rstrip())
    return "\n".join(lines)


def _describe(score: dict[str, float], *, signed: bool) -> str:
    value, low, high = (f"{score[key]:{'+' if signed else ''}.3f}" for key in ("value", "low", "high"))
    return f"{value} ({low} to {high})"


def find_better(rules: dict[str, dict]) -> list[str]:
    """The rules that are clearly better than the kernel's mean: the interval of the difference excludes 0.

    What is fitted must be clearly better than the recalibrated mean too; else a scale and a bias are all it found.
    """
    keys = {name: ("difference",) if name in FIXED_RULES else ("difference", "beyond_calibration") for name in rules}
    return [name for name, scores in rules.items() if all(scores[key]["high"] < 0 for key in keys[name])]


def draw_comparison(path: Path, rules: dict[str, dict], clips: Sequence[ScoredClip]) -> None:
    """Write a picture: the rules with their intervals, and below them the frames of every clip that they pool."""
    figure = Figure(figsize=(12.5, 5.0 + 0.21 * len(clips)), dpi=110, layout="constrained")
    figure.get_layout_engine().set(w_pad=0.08, h_pad=0.1)
    grid = figure.add_gridspec(2, 3, height_ratios=(0.36 * len(rules), 0.21 * len(clips) + 0.6))
    n_sources = len({clip.source for clip in clips})
    figure.suptitle(
        f"One score from many frames: {len(clips)} clips of {n_sources} sources, 95 % intervals over sources"
    )
    keys = ("balanced_log_loss", "difference", "auc")
    titles = ("balanced log loss", "minus the kernel's mean: below 0 is better", "AUC")
    for column, (key, title) in enumerate(zip(keys, titles, strict=True)):
        axes = figure.add_subplot(grid[0, column])
        _draw_intervals(axes, rules, key)
        axes.set_title(title, fontsize=10)
        axes.tick_params(labelleft=column == 0)
    _draw_frames(figure.add_subplot(grid[1, :]), clips)
    path.parent.mkdir(parents=True, exist_ok=True)
    save(figure, path)


def _draw_intervals(axes: Axes, rules: dict[str, dict], key: str) -> None:
    for row, (name, scores) in enumerate(rules.items()):
        score = scores[key]
        colour = FAKE if name == LEARNED else "#000000" if name == KERNELS else GREY if "recal" in name else REAL
        reach = [[max(score["value"] - score["low"], 0)], [max(score["high"] - score["value"], 0)]]
        axes.errorbar(score["value"], row, xerr=reach, color=colour, marker="o", ms=5, lw=1.6, capsize=3)
    axes.axvline({"difference": 0, "auc": 0.5}.get(key, np.log(2)), color=GREY, lw=1, ls=":")
    axes.set(yticks=range(len(rules)), yticklabels=list(rules), ylim=(len(rules) - 0.5, -0.5))
    plain(axes, grid="x")


def _draw_frames(axes: Axes, clips: Sequence[ScoredClip]) -> None:
    """A row for each clip, source by source: its frames as dots, each person's mean as a bar."""
    ordered = sorted(clips, key=lambda clip: (clip.source, clip.label, clip.name))
    for row, clip in enumerate(ordered):
        if row and clip.source != ordered[row - 1].source:
            axes.axhline(row - 0.5, color="#c8c8c8", lw=0.8)
        colour = FAKE if clip.label else REAL
        for track in clip.tracks:
            axes.plot(track, np.full(len(track), row), ls="", marker="o", ms=4, mew=0, alpha=0.35, color=colour)
            axes.plot([track.mean()] * 2, [row - 0.4, row + 0.4], color=colour, lw=2.5, solid_capstyle="butt")
    axes.axvline(0, color=GREY, lw=1, ls=":")
    axes.set(yticks=range(len(ordered)), ylim=(len(ordered) - 0.5, -0.5), xlabel="calibrated logit: above 0 means fake")
    axes.set_yticklabels([clip.name for clip in ordered], fontsize=7)
    for tick, clip in zip(axes.get_yticklabels(), ordered, strict=True):
        tick.set_color(FAKE if clip.label else REAL)
    axes.set_title("what is pooled: frames (dots) and their mean (bar); blue are reals, orange fakes", fontsize=10)
    plain(axes, grid="x")


def compare_pooling(
    scores: Scores,
    *,
    json_path: Path | None = None,
    picture: Path | None = None,
    samples: int = 5000,
    seed: int = 0,
    spread: float = 1.0,
    fake_share: float = 1.0,
) -> dict[str, dict]:
    """Compare the rules, print the table, and write what is asked for.

    Args:
        scores: from `score_clips`.
        json_path: gets the table, and the learned rule fitted to all clips; None writes none.
        picture: PNG; None draws none.
        samples, seed: of the bootstrap over sources.
        spread: how far the learned rule may go from the mean; see `fit_pooling`.
        fake_share: below 1, what is compared are clips that are fake in that part only; see `splice_fakes`.

    Returns:
        Per rule its scores; see `compare_rules`.

    Raises:
        DataError: the clips do not serve for a comparison.
    """
    clips = scores.clips if fake_share == 1 else splice_fakes(scores.clips, fake_share)
    rules = compare_rules(
        clips,
        low=scores.low,
        high=scores.high,
        generator=np.random.default_rng(seed),
        samples=samples,
        spread=spread,
    )
    learned = fit_pooling(clips, spread=spread)
    print(format_table(rules))
    parts = ", ".join(f"{low:.0%}-{high:.0%}" for low, high in pairwise(EDGES))
    weights = " ".join(f"{weight:.3f}" for weight in learned.weights)
    print(f"learned from all clips, ranks {parts}: weights {weights}, bias {learned.bias:+.3f}")
    print(f"clearly better than the kernel's mean: {', '.join(find_better(rules)) or 'none'}")
    if json_path is not None:
        found = {
            "spread": spread,
            "fake_share": fake_share,
            "n_clips": len(clips),
            "n_sources": len({clip.source for clip in clips}),
            "made_from": json.loads(scores.made_from),
            "rules": rules,
            "better": find_better(rules),
            "learned": {"edges": EDGES, "weights": learned.weights, "bias": learned.bias},
        }
        json_path.parent.mkdir(parents=True, exist_ok=True)
        write_json(json_path, found)
    if picture is not None:
        draw_comparison(picture, rules, clips)
    return rules


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("videos", type=Path, metavar="VIDEOS", help="folder of clips with metadata.json")
    add("--weights", type=Path, default=WEIGHTS, help="weights file or folder (default: weights/)")
    add(
        "--logits",
        type=Path,
        default=Path("runs/pooling.npz"),
        metavar="FILE",
        help="keeps the frame logits (default: %(default)s)",
    )
    add("--overwrite", action="store_true", help="score the clips whatever that file holds")
    add("--frames", type=positive, default=32, help="looked at per clip (default: %(default)s)")
    add("--device", choices=("auto", "cpu", "cuda"), default="auto", help="where nets run (default: CUDA if there)")
    add("--json", type=Path, metavar="FILE", help="write the scores to it")
    add("--picture", type=Path, metavar="FILE", help="draw them into it, a PNG")
    add("--spread", type=float, default=1.0, help="how far the learned layer may leave the mean (default: %(default)s)")
    add(
        "--fake-share",
        type=float,
        default=1.0,
        metavar="SHARE",
        help="make fakes so much of whose frames are fake, the others their original's (default: %(default)s)",
    )
    add("--samples", type=positive, default=5000, help="of the bootstrap (default: %(default)s)")
    add("--seed", type=natural, default=0, help="of the bootstrap (default: %(default)s)")
    args = parser.parse_args(argv)
    if not 0 < args.fake_share <= 1:
        parser.error(f"--fake-share is {args.fake_share}; allowed: above 0, up to 1")
    if not args.spread > 0:
        parser.error(f"--spread is {args.spread}; allowed are numbers above 0")
    try:
        for path in filter(None, (args.json, args.picture)):
            check_out(path)
        scores = score_clips(
            args.videos,
            args.logits,
            weights=args.weights,
            n_frames=args.frames,
            device=args.device,
            overwrite=args.overwrite,
        )
        compare_pooling(
            scores,
            json_path=args.json,
            picture=args.picture,
            samples=args.samples,
            seed=args.seed,
            spread=args.spread,
            fake_share=args.fake_share,
        )
    except (DataError, WeightsError, DeviceError, OSError) as error:
        print(f"compare_pooling: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    run_tool(main)
