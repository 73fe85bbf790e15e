"""Compare ways to pool the frame scores of a clip: the mean, the challenge winners' rules, and a learned layer.

python tools/research/compare_pooling.py videos --json pooling.json --picture docs/pooling.png
python tools/research/compare_pooling.py videos --logits logits.npz --fake-share 0.3

Clips are scored once, as the kernel does with all models. The frame logits are kept in a file that is used as long as
weights, clips and the number of frames are the same. Fitted rules are measured on sources that they never saw.
"""

from __future__ import annotations

import json
import sys
import zipfile
import zlib
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np
from tqdm import tqdm

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from dfdc.analyze import Analyzer
from dfdc.data.clips import LabelledClip, digest_clip, read_present
from dfdc.files import drafted, write_json
from dfdc.flags import (
    above_zero,
    add_device,
    check_outputs,
    make_parser,
    natural,
    png,
    positive,
    run_tool,
    share,
    tool,
)
from dfdc.research.pooling import (
    EDGES,
    FIXED_RULES,
    ScoredClip,
    compare_rules,
    fit_pooling,
    splice_fakes,
)
from dfdc.research.pooling_chart import draw_comparison
from dfdc.run.journal import digest_code
from dfdc.run.limits import limit_tool
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
        made_from: weights, frames, clips and code in JSON; equal ones mean equal scores.
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
    """The frame logits of a folder's clips, from an earlier run's file, or scored and written to the file.

    Args:
        folder: of clips with metadata.json; clips that are listed but absent are left out.
        logits: the file, NumPy's .npz.
        weights: file or folder.
        n_frames: number of frames of each clip.
        device: "auto", "cpu" or "cuda".
        overwrite: score the clips even if the file is valid.

    Raises:
        DataError: metadata.json cannot be used, or lists no clip that is there.
        WeightsError, DeviceError, InputError: the weights, the device or the file cannot be used.
    """
    check_outputs([logits])
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
    device = choose_device(device)
    limit_tool(device)
    analyzer = Analyzer(files, device=device)
    clips = tuple(_score_clip(analyzer, clip, n_frames) for clip in tqdm(listed, desc="scoring", unit="clip"))
    scores = Scores(clips, *analyzer.ensemble.bounds(), made_from)
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
    """The scores of an earlier run; None if the file is absent or cannot be read."""
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
        print(f"{path}: holds no frame logits ({error}); the clips are scored again", file=sys.stderr)
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

    Fitted rules must also be better than the recalibrated mean; otherwise they have only found a scale and a bias.
    """
    keys = {name: ("difference",) if name in FIXED_RULES else ("difference", "beyond_calibration") for name in rules}
    return [name for name, scores in rules.items() if all(scores[key]["high"] < 0 for key in keys[name])]


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
        json_path: file for the table and the learned rule, fitted to all clips; None writes none.
        picture: PNG file; None draws none.
        samples, seed: of the bootstrap over sources.
        spread: how far the learned rule may deviate from the mean; see `fit_pooling`.
        fake_share: share of fake frames in simulated, partly faked clips; 1 for the clips as they are.

    Returns:
        Per rule its scores; see `compare_rules`.

    Raises:
        DataError: the clips cannot be compared.
        InputError: an output cannot be written.
    """
    check_outputs([json_path, picture])
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
    print(f"Learned from all clips: weights {weights} for the ranks {parts}, bias {learned.bias:+.3f}")
    print(f"Clearly better than the kernel's mean: {', '.join(find_better(rules)) or 'none'}")
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
        write_json(json_path, found)
    if picture is not None:
        draw_comparison(picture, rules, clips)
    return rules


@tool
def main(argv: list[str] | None = None) -> None:
    parser = make_parser(__doc__)
    add = parser.add_argument
    add("videos", type=Path, metavar="VIDEOS", help="folder of clips with metadata.json")
    add("--weights", type=Path, default=WEIGHTS, help="weights file or folder (default: weights/)")
    logits_help = "file that keeps the frame logits (default: %(default)s)"
    add("--logits", type=Path, default=Path("runs/pooling.npz"), metavar="FILE", help=logits_help)
    add("--overwrite", action="store_true", help="score the clips again (default: use the file of --logits if it fits)")
    add("--frames", type=positive, default=32, help="number of frames of each clip (default: %(default)s)")
    add_device(parser)
    add("--json", type=Path, metavar="FILE", help="write the scores to this file (default: print them only)")
    add("--picture", type=png, metavar="FILE", help="draw the scores into this PNG file (default: none)")
    spread_help = "how far the learned layer may deviate from the mean (default: %(default)s)"
    add("--spread", type=above_zero, default=1.0, help=spread_help)
    share_help = "simulate partly faked clips: only this share of frames is fake (default: %(default)s, none)"
    add("--fake-share", type=share, default=1.0, metavar="SHARE", help=share_help)
    add("--samples", type=positive, default=5000, help="number of bootstrap samples (default: %(default)s)")
    add("--seed", type=natural, default=0, help="seed of the bootstrap (default: %(default)s)")
    args = parser.parse_args(argv)
    if args.fake_share == 0:
        parser.error("--fake-share 0 is not allowed; give a number above 0, up to 1")
    check_outputs([args.json, args.picture])
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


if __name__ == "__main__":
    run_tool(main)
