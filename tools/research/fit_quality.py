"""Fit the trust in the scores of small and compressed faces, for dfdc/quality.py.

python tools/research/fit_quality.py --crops ../shared/crops/crops.csv --weights weights --models 1

Validation crops are reduced to random sizes and coded as H.264 at random quality. The factors are fitted on the models'
scores of one half of the sources, and measured on the other half.
"""

from __future__ import annotations

import sys
from pathlib import Path

import av
import cv2
import numpy as np
from scipy.optimize import minimize

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from dfdc.data.dataset import find_sources, load_rows, read_split
from dfdc.ensemble import Ensemble
from dfdc.flags import make_parser, natural, positive, run_tool, tool
from dfdc.quality import Trust, measure_detail
from dfdc.weights import find_weights

ROOT = Path(__file__).resolve().parents[2]

# The smallest side in pixels that faces are reduced to; constant rate factors of x264, None for no coding.
MIN_SIDE, CRFS = 20, (None, 23, 28, 34, 40)
# The factors should also hold for other models and cameras, and there are few crops, so the fit is pulled slightly
# towards no effect.
RIDGE = 1e-3
# Share of unchanged crops that are fully trusted.
ORDINARY = 0.9
N_RESAMPLED = 1000


def degrade(crop: np.ndarray, side: int, crf: int | None) -> np.ndarray:
    """Reduce and code a crop, as if it were cut from a clip with a smaller face.

    Args:
        crop: (S, S, 3) uint8 RGB.
        side: side of the face in pixels, at most S.
        crf: x264's constant rate factor; None leaves the coding out.

    Returns:
        (S, S, 3) uint8 RGB.
    """
    small = cv2.resize(crop, (side, side), interpolation=cv2.INTER_AREA)
    if crf is not None:
        small = _code(small, crf)
    interpolation = cv2.INTER_LINEAR if side < len(crop) else cv2.INTER_AREA
    return cv2.resize(small, crop.shape[1::-1], interpolation=interpolation)


def _code(image: np.ndarray, crf: int) -> np.ndarray:
    """Encode an image as one H.264 key frame, and decode it."""
    side = len(image)
    margin = -(-side // 16) * 16 + 32 - side
    padded = cv2.copyMakeBorder(image, 0, margin, 0, margin, cv2.BORDER_REPLICATE)
    encoder = av.CodecContext.create("libx264", "w")
    encoder.width, encoder.height, encoder.pix_fmt, encoder.framerate = *padded.shape[1::-1], "yuv420p", 25
    encoder.options = {"crf": str(crf), "preset": "veryfast"}
    packets = [*encoder.encode(av.VideoFrame.from_ndarray(padded, "rgb24")), *encoder.encode(None)]
    decoder = av.CodecContext.create("h264", "r")
    frames = [frame for packet in packets for frame in decoder.decode(packet)] + list(decoder.decode(None))
    return np.ascontiguousarray(frames[0].to_ndarray(format="rgb24")[:side, :side])


def log_loss(logits: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """The log loss (N,) of each logit."""
    return np.logaddexp(0, np.where(labels == 1, -logits, logits))


def fit_trust(
    logits: np.ndarray, labels: np.ndarray, sides: np.ndarray, details: np.ndarray, *, own: tuple[np.ndarray, ...]
) -> Trust:
    """Fit factors that minimise the log loss and never rise as faces become poorer.

    The models were calibrated on ordinary faces, so nine of ten unchanged crops are fully trusted.

    Args:
        logits: (N,) calibrated logits of degraded crops.
        labels: (N,) 1 for a fake.
        sides: (N,) sides in pixels.
        details: (N,) from `measure_detail`.
        own: sides and details of the unchanged crops.
    """

    def trust_of(values: np.ndarray) -> Trust:
        side, detail, lean = (float(value) for value in values)
        exponents = side * np.log2(own[0] / 64) + detail * (own[1] + 4)
        return Trust(-float(np.quantile(exponents, 1 - ORDINARY)), side, detail, lean)

    def loss(values: np.ndarray) -> float:
        trust = trust_of(values)
        tempered = trust.temper(logits, trust.factors(sides, details))
        return float(log_loss(tempered, labels).mean() + RIDGE * np.square(values).sum())

    fits = [
        minimize(loss, start, bounds=[(0, 3), (0, 3), (-3, 3)], method="L-BFGS-B")
        for start in ([0.2, 0.2, 0.1], [1.0, 0.1, 0.1], [0.1, 1.0, 0.1])
    ]
    trust = trust_of(min(fits, key=lambda fit: fit.fun).x)
    return Trust(*(round(value, 3) for value in (trust.bias, trust.side, trust.detail, trust.lean)))


def fit_quality(csv: Path, weights: Path, *, n_crops: int = 900, n_models: int | None = None, seed: int = 0) -> Trust:
    """Degrade crops of the validation split, score them, fit the trust, and print the gain.

    Args:
        csv: crop table with the column source_size.
        weights: weights file or folder.
        n_crops: number of crops, half of them fakes.
        n_models: number of models to use; None for all.
        seed: seed of the choice of crops and of their degradation.
    """
    generator = np.random.default_rng(seed)
    rows = read_split(csv, split="val")
    halves = [generator.permutation(np.flatnonzero(rows.label == label))[: n_crops // 2] for label in ("REAL", "FAKE")]
    rows = rows.iloc[np.sort(np.concatenate(halves))].reset_index(drop=True)
    loaded = load_rows(rows, progress=False)
    images, labels = loaded.images.permute(0, 2, 3, 1).numpy(), loaded.labels.numpy().astype(int)
    own = rows.source_size.astype(float).to_numpy()
    # One in five keeps its size, because most faces of clips are large enough.
    shares = np.where(generator.random(len(own)) < 0.2, 1.0, generator.random(len(own)))
    sides = np.round(MIN_SIDE * (own / MIN_SIDE) ** shares).astype(int)
    crfs = generator.integers(0, len(CRFS), len(own))
    seen = np.stack(
        [
            degrade(image, min(side, image.shape[0]), CRFS[crf])
            for image, side, crf in zip(images, sides, crfs, strict=True)
        ]
    )
    details, own_details = measure_detail(seen), measure_detail(images)
    files = find_weights(weights)[:n_models]
    logits = Ensemble(files).score_crops(seen.transpose(0, 3, 1, 2))
    sources = np.array(find_sources(rows), str)
    half = np.isin(sources, np.unique(sources)[::2])
    ordinary = (own, own_details)
    trust = fit_trust(logits[half], labels[half], sides[half], details[half], own=ordinary)
    after = trust.temper(logits, trust.factors(sides, details))
    _report(sides[~half], log_loss(logits, labels)[~half], log_loss(after, labels)[~half], generator)
    whole = fit_trust(logits, labels, sides, details, own=ordinary)
    print(f"fitted on one half: {trust}\nfitted on all:      {whole}")
    for side, detail in ((160, -3.2), (80, -3.8), (48, -4.5), (34, -5.0), (24, -5.5)):
        print(f"factor of a face of {side} px, detail {detail}: {whole.factors([side], [detail])[0]:.2f}")
    return whole


def _report(sides: np.ndarray, before: np.ndarray, after: np.ndarray, generator: np.random.Generator) -> None:
    """Print the log loss by size of the face, and the 95 % interval of its change."""
    for low, high in ((MIN_SIDE, 36), (36, 64), (64, 110), (110, 1000)):
        inside = np.flatnonzero((sides >= low) & (sides < high))
        changes = (after - before)[generator.choice(inside, (N_RESAMPLED, len(inside)))].mean(1)
        bounds = np.quantile(changes, [0.025, 0.975])
        print(
            f"{low} to {high} px: {len(inside)} crops, log loss {before[inside].mean():.3f} -> "
            f"{after[inside].mean():.3f}, change {bounds[0]:+.3f} to {bounds[1]:+.3f}"
        )


@tool
def main(argv: list[str] | None = None) -> None:
    parser = make_parser(__doc__)
    add = parser.add_argument
    add("--crops", type=Path, required=True, metavar="CSV", help="crop table with the column source_size")
    add("--weights", type=Path, default=ROOT / "weights", help="weights file or folder (default: weights/)")
    add("--number", type=positive, default=900, help="number of crops to degrade (default: %(default)s)")
    add("--models", type=positive, metavar="N", help="use only the first N models (default: all)")
    add("--seed", type=natural, default=0, help="seed of crops and degradations (default: %(default)s)")
    args = parser.parse_args(argv)
    fit_quality(args.crops, args.weights, n_crops=args.number, n_models=args.models, seed=args.seed)


if __name__ == "__main__":
    run_tool(main)
