"""Evaluate weights on labelled crops, the whole kernel on labelled clips, or both on several families of data.

python tools/evaluate.py --crops crops/crops.csv --split val --weights weights --json scores.json --pictures pictures
python tools/evaluate.py --videos dfdc_train_part_35 --json scores.json --pictures pictures
python tools/evaluate.py --protocol protocol.json --weights weights --json table.json    # one table, all families

A protocol is a JSON file that lists families of crops and clips; its paths are relative to its folder:
{"families": [{"name": "DFDC", "tables": ["dfdc.csv"], "split": "val", "traits": ["dataset", "sex", "size"]},
              {"name": "clips", "clips": "folder", "frames": 16}]}
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from functools import cache
from pathlib import Path

import numpy as np
from tqdm import tqdm

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from dfdc.crop import CropGeometry, crop_face
from dfdc.data.clips import read_present
from dfdc.data.dataset import find_sources, load_rows, read_split
from dfdc.data.protocol import Family, find_identities, find_traits, read_protocol
from dfdc.deadline import NEVER
from dfdc.detect import FaceDetector
from dfdc.ensemble import Ensemble
from dfdc.errors import DataError, DeviceError, InputError, VideoError, WeightsError
from dfdc.evaluation.families import Answers, Row, describe_rows, format_rows, measure_protocol
from dfdc.evaluation.scored import Scored, draw_pictures, format_table, report_scores
from dfdc.files import check_out, write_json
from dfdc.flags import add_device, make_parser, natural, positive, run_tool
from dfdc.run.pool import predict_clips
from dfdc.run.worker import WorkerSettings
from dfdc.runtime import choose_device
from dfdc.video import read_frames
from dfdc.weights import EXTRAS, find_weights, sigmoid

WEIGHTS = Path(__file__).resolve().parent.parent / "weights"


def score_crop_table(
    csv: Path, weights: Path, *, split: str = "val", device: str = "auto", limit: int | None = None
) -> Scored:
    """Score the crops of one split with the mean of all models' calibrated logits, as the kernel scores a frame.

    Raises:
        DataError, WeightsError, DeviceError: the table, an image, the weights or the device cannot be used.
    """
    ensemble = Ensemble(find_weights(weights), choose_device(device))
    rows = read_split(csv, split=split, limit=limit)
    crops = load_rows(rows)
    return Scored(
        list(rows.path),
        crops.labels.numpy().astype(int),
        np.clip(sigmoid(ensemble.score_crops(crops.images)), *ensemble.bounds()),
        np.array(rows.get("manipulation", [""] * len(rows)), str),
        np.array(find_sources(rows), str),
        lambda index: crops.images[index].permute(1, 2, 0).numpy(),
    )


def score_clips(
    folder: Path,
    weights: Path,
    *,
    extras: Sequence[str] = (),
    device: str = "auto",
    n_frames: int | None = None,
    n_workers: int | None = None,
) -> Scored:
    """Score the clips of a folder as the kernel does; clips that cannot be scored get the prior.

    Args:
        folder: folder of clips with metadata.json.
        weights: weights file or folder.
        extras: optional models, as with the kernel's --with.
        device: "auto", "cpu" or "cuda".
        n_frames, n_workers: number of frames per clip, and of worker processes; None for the kernel's defaults.

    Raises:
        DataError: metadata.json cannot be used, or lists no clip that is there.
        WeightsError, InputError: the weights cannot be used, or workers cannot start.
    """
    clips = read_present(folder)
    files = tuple(find_weights(weights, extras=extras))
    settings = WorkerSettings(files, device=device, n_frames=n_frames, models="all")
    paths = {clip.name: clip.path for clip in clips}
    predictions = {}
    for prediction in tqdm(
        predict_clips(paths, settings, n_workers=n_workers, deadline=NEVER),
        total=len(paths),
        desc="scoring",
        unit="clip",
    ):
        predictions[prediction.filename] = prediction.label
        if prediction.status != "ok":
            tqdm.write(f"{prediction.filename}: {prediction.status}, {prediction.reason}", file=sys.stderr)
    return Scored(
        list(paths),
        np.array([clip.label == "FAKE" for clip in clips], int),
        np.array([predictions[name] for name in paths]),
        np.array([clip.manipulation for clip in clips]),
        np.array([clip.source for clip in clips]),
        lambda index: _middle_face(clips[index].path, files[0].spec.crop),
    )


def _middle_face(path: Path, geometry: CropGeometry) -> np.ndarray | None:
    """The most certain face of a clip's middle frame; the whole frame if there is no face; None if it is unreadable."""
    try:
        frame = read_frames(path, 1)[0].pixels
    except VideoError:
        return None
    (faces,) = _load_detector().detect([frame])
    return crop_face(frame, faces.boxes[0], geometry) if len(faces) else frame


@cache
def _load_detector() -> FaceDetector:
    return FaceDetector()


def evaluate(
    scored: Scored, *, json_path: Path | None = None, pictures: Path | None = None, samples: int = 1000, seed: int = 0
) -> dict[str, dict]:
    """Evaluate predictions, print the table, and write the requested files.

    Args:
        scored: from `score_crop_table` or `score_clips`.
        json_path: file for the scores; None writes none.
        pictures: folder for pictures; None draws none.
        samples, seed: number of samples and seed of the bootstrap.

    Returns:
        The scores; see `report_scores`.
    """
    scores = report_scores(scored, samples=samples, seed=seed)
    print(format_table(scores))
    if json_path is not None:
        write_json(json_path, scores)
    if pictures is not None:
        draw_pictures(scored, scores, pictures)
    return scores


def evaluate_protocol(
    protocol: Path,
    weights: Path,
    *,
    json_path: Path | None = None,
    device: str = "auto",
    limit: int | None = None,
    n_workers: int | None = None,
    samples: int = 1000,
    seed: int = 0,
) -> list[Row]:
    """Evaluate weights on all families of a protocol, print the table, and write it.

    Args:
        protocol: see `dfdc.data.protocol.read_protocol`.
        weights: weights file or folder.
        json_path: file for the table; None writes none.
        device, limit, n_workers, samples, seed: see the flags of the same names.

    Raises:
        DataError, WeightsError, DeviceError: the protocol, its data, the weights or the device cannot be used.
    """
    families = read_protocol(protocol)
    ensemble = Ensemble(find_weights(weights), choose_device(device))
    answers = []
    for family in families:
        if family.clips is None:
            answers.append(_answer_crops(family, ensemble, limit=limit))
        else:
            scored = score_clips(family.clips, weights, device=device, n_frames=family.n_frames, n_workers=n_workers)
            logits = np.log(scored.probabilities / (1 - scored.probabilities))
            answers.append(Answers(family.name, scored.labels, logits, scored.sources, scored.manipulations))
    rows = measure_protocol(answers, samples=samples, seed=seed)
    print(format_rows(rows))
    if json_path is not None:
        write_json(json_path, describe_rows(rows))
    return rows


def _answer_crops(family: Family, ensemble: Ensemble, *, limit: int | None) -> Answers:
    rows = read_split(*family.tables, split=family.split, limit=limit)
    logits = ensemble.score_crops(load_rows(rows).images)
    low, high = ensemble.bounds()
    return Answers(
        family.name,
        (rows.label == "FAKE").to_numpy(int),
        logits,
        find_identities(rows),
        np.array(rows.get("manipulation", [""] * len(rows)), str),
        find_traits(rows, family.traits),
        low,
        high,
    )


def main(argv: list[str] | None = None) -> int:
    parser = make_parser(__doc__)
    add = parser.add_argument
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument(
        "--crops", type=Path, metavar="CSV", help="crop table; its images are beside it or in its zip files"
    )
    what.add_argument("--videos", type=Path, metavar="FOLDER", help="folder of clips with metadata.json")
    what.add_argument(
        "--protocol", type=Path, metavar="JSON", help="list of families of crops and clips, evaluated in one table"
    )
    add("--split", help="split of the crop table to score (default: val)")
    add("--weights", type=Path, default=WEIGHTS, help="weights file or folder (default: weights/)")
    add("--json", type=Path, metavar="FILE", help="file for the scores (default: print them only)")
    add("--pictures", type=Path, metavar="FOLDER", help="folder for charts and the worst mistakes (default: none)")
    add(
        "--with",
        dest="extras",
        action="append",
        choices=EXTRAS,
        default=[],
        help="optional model to use as well, with --videos; can be repeated (default: none)",
    )
    add_device(parser)
    add(
        "--limit",
        type=positive,
        help="score only this many crops of each table, half of them real if possible (default: all)",
    )
    add("--frames", type=positive, help="number of frames of each clip (default: the kernel's)")
    add("--workers", type=positive, help="number of clips scored in parallel (default: the kernel's)")
    add("--samples", type=positive, default=1000, help="number of bootstrap samples (default: %(default)s)")
    add("--seed", type=natural, default=0, help="seed of the bootstrap (default: %(default)s)")
    args = parser.parse_args(argv)
    what_for = {
        "split": ("crops",),
        "limit": ("crops", "protocol"),
        "extras": ("videos",),
        "frames": ("videos",),
        "workers": ("videos", "protocol"),
        "pictures": ("crops", "videos"),
    }
    for name, uses in what_for.items():
        if getattr(args, name) != parser.get_default(name) and not any(getattr(args, use) for use in uses):
            flags = " or ".join(f"--{use}" for use in uses)
            parser.error(f"--{name.replace('extras', 'with')}: works with {flags} only; leave it out")
    try:
        if args.json:
            check_out(args.json)
        if args.protocol:
            evaluate_protocol(
                args.protocol,
                args.weights,
                json_path=args.json,
                device=args.device,
                limit=args.limit,
                n_workers=args.workers,
                samples=args.samples,
                seed=args.seed,
            )
            return 0
        if args.crops:
            scored = score_crop_table(
                args.crops, args.weights, split=args.split or "val", device=args.device, limit=args.limit
            )
        else:
            scored = score_clips(
                args.videos,
                args.weights,
                extras=args.extras,
                device=args.device,
                n_frames=args.frames,
                n_workers=args.workers,
            )
        evaluate(scored, json_path=args.json, pictures=args.pictures, samples=args.samples, seed=args.seed)
    except (DataError, WeightsError, InputError, DeviceError, FloatingPointError, MemoryError, OSError) as error:
        print(f"evaluate: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    run_tool(main)
