"""Cut face crops out of labelled clips or photographs, for tools/train.py.

python tools/make_crops.py dfdc_train_part_0 dfdc_train_part_1 --val dfdc_train_part_2 --out crops
python tools/make_crops.py photographs.csv --out crops          # columns path, label and, where known, dataset,
                                            # manipulation, identity, source, split, original (a path)
python tools/make_crops.py clips --out frames --plain-frames        # all frames whole, and a CSV of name,label
python tools/make_crops.py dfdc_train_part_0 --out crops --ray HOST:6379        # on a cluster

The same command resumes a run that was stopped. The choice of validation clips may change between runs.
"""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures.process import BrokenProcessPool
from dataclasses import replace
from functools import partial
from pathlib import Path

from tqdm import tqdm

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from dfdc.cluster.command import MISSING, add_ray_argument, path_or_url, to_address
from dfdc.crop import CropGeometry
from dfdc.data.clips import (
    LabelledClip,
    group_families,
    is_held_out,
    read_metadata,
    refuse_leaks,
    report_alone,
)
from dfdc.data.crop_folder import (
    STATUSES,
    CutSettings,
    Report,
    find_done,
    find_record,
    format_of,
    prepare_folder,
    read_records,
)
from dfdc.data.crops import cut_families
from dfdc.data.dataset import read_table
from dfdc.data.photographs import make_photograph_crops
from dfdc.errors import DataError, DfdcError
from dfdc.files import write_csv
from dfdc.flags import add_device, crop_side, make_parser, positive
from dfdc.run.limits import count_cores
from dfdc.runtime import choose_device


def make_crops(
    videos: list[Path],
    out: Path,
    *,
    held_out: list[Path] | None = None,
    val_share: float = 0.0,
    settings: CutSettings | None = None,
    n_workers: int = 1,
    device: str = "cpu",
    overwrite: bool = False,
    progress: bool = True,
    cluster: str | None = None,
) -> Path:
    """Cut clips into face crops and write their table.

    Args:
        videos: folders of clips with metadata.json in DFDC's form.
        out: folder for the table and for images/, which has a folder for each clip; made if absent.
        held_out: more such folders, whose clips get the split "val"; None for none.
        val_share: share (0 to 1) of the other originals that also get this split, with their fakes.
        settings: how to cut; None for the defaults.
        n_workers: number of families (an original with its fakes) to cut in parallel.
        device: "auto", "cpu" or "cuda", for the face detector.
        overwrite: start again instead of resuming.
        progress: draw a progress bar.
        cluster: "local" or the address of a Ray cluster that cuts on its CPUs; None for workers on this machine.

    Returns:
        The path of crops.csv, or of frames.csv with whole frames.

    Raises:
        DataError: the metadata cannot be used, the output folder belongs to another run, no crop was cut, or a worker
            died.
        OSError: the output cannot be written.
    """
    settings = settings or CutSettings()
    families = group_families(_label(videos, held_out or [], val_share))
    clips = {clip.name: clip for family in families for clip in family}
    if not settings.plain_frames:
        refuse_leaks(families)
    prepare_folder(out, settings, overwrite=overwrite)
    done = frozenset(find_done(out, clips))
    stale = {name: find_record(out, name) for name in clips if name not in done}
    wanted = [family for family in families if any(clip.name not in done for clip in family)]
    n_done = len(clips) - sum(clip.name not in done for family in wanted for clip in family)
    if not settings.plain_frames:
        report_alone(wanted)
    table = out / ("frames.csv" if settings.plain_frames else "crops.csv")
    here = partial(cut_families, n_workers=n_workers, device=choose_device(device))
    cut_all = here if cluster is None else _join_cluster(cluster)
    reports: list[Report] = []
    bar = tqdm(total=len(clips), initial=n_done, desc="cutting", unit="clip", disable=not progress)
    try:
        with bar:
            for cut in cut_all(wanted, out, settings, done=done):
                bar.update(len(cut))
                reports += cut
    except BrokenProcessPool as error:
        raise DataError(
            "a worker died, perhaps for lack of memory; resume with the same command and fewer --workers"
        ) from error
    finally:
        records = {report.video: report for report in read_records(out)}
        valid = [report for name, report in records.items() if report != stale.get(name)]
        rows = [row for report in valid for row in _rows(report, settings, clips)]
        write_csv(table, settings.columns, rows)
    _summarize(list({**records, **{report.video: report for report in reports}}.values()), len(rows))
    if not rows:
        raise DataError(f"{out}: no image could be cut; the reasons are above")
    if not settings.plain_frames:
        read_table(table)
    return table


def make_stored_crops(
    videos: list[Path | str], out: Path | str, *, held_out: list[Path | str], settings: CutSettings, cluster: str
) -> str:
    """Cut clips of an object store on a cluster, and write the crops to the store; returns the URL of crops.csv.

    Args:
        videos, held_out: as in `make_crops`; paths or URLs.
        out: path or URL for the crops.
        settings: how to cut.
        cluster: see `make_crops`.

    Raises:
        DfdcError: see `dfdc.cluster.crop_store.cut_in_store`; or clips of the same face have different splits.
    """
    try:
        from dfdc.cluster.crop_store import cut_in_store, read_stored
    except ModuleNotFoundError as error:
        raise DataError(f"{error}; {MISSING}") from error
    stored = read_stored(map(str, videos), map(str, held_out))
    table, reports = cut_in_store(stored, str(out), settings, address=to_address(cluster))
    _summarize(reports, sum(len(report.rows) for report in reports))
    return table


def _join_cluster(address: str) -> Callable[..., Iterator[list[Report]]]:
    """Return the function that cuts on a cluster; see `make_crops`."""
    try:
        from dfdc.cluster.cutting import cut_on_cluster
    except ModuleNotFoundError as error:
        raise DataError(f"{error}; {MISSING}") from error
    return partial(cut_on_cluster, address=to_address(address))


def _label(videos: list[Path], held_out: list[Path], val_share: float) -> list[LabelledClip]:
    if not 0 <= val_share <= 1:
        raise DataError(f"--val-share is {val_share}; allowed: 0 to 1")
    clips = [clip for folder in videos for clip in read_metadata(folder)]
    clips = [replace(clip, split="val") if is_held_out(clip, val_share) else clip for clip in clips]
    return clips + [replace(clip, split="val") for folder in held_out for clip in read_metadata(folder)]


def _rows(report: Report, settings: CutSettings, clips: dict[str, LabelledClip]) -> Iterator[tuple[object, ...]]:
    """The rows of a clip with its current metadata; clips of earlier runs that are no longer listed keep theirs."""
    clip = clips.get(report.video)
    for row in report.rows:
        columns = dict(zip(settings.columns, row, strict=True))
        if clip is not None:
            told = {name: getattr(clip, name) for name in ("label", "manipulation", "split", "dataset", "identity")}
            told |= {"source": clip.origin, "format": format_of(clip.path)}
            columns |= {name: value for name, value in told.items() if name in columns}
        yield tuple(columns.values())


def _summarize(reports: list[Report], n_images: int) -> None:
    for report in reports:
        if report.status != "ok":
            print(f"{report.video}: {report.status}, {report.reason}", file=sys.stderr)
    statuses = Counter(report.status for report in reports)
    counts = ", ".join(f"{statuses[status]} {status}" for status in STATUSES if statuses[status])
    print(f"clips: {len(reports)} ({counts}); images: {n_images}")


def main(argv: list[str] | None = None) -> int:
    defaults = CutSettings()
    parser = make_parser(__doc__)
    add = parser.add_argument
    sources_help = "folder of clips with metadata.json; or CSV tables of photographs (path, label)"
    add("videos", nargs="+", type=path_or_url, metavar="SOURCE", help=sources_help)
    add("--out", type=path_or_url, required=True, help="folder for the crops and crops.csv")
    add(
        "--val",
        nargs="+",
        type=path_or_url,
        default=[],
        metavar="VIDEOS",
        help="folders whose clips get the split val (default: none)",
    )
    val_share_help = "share of the other originals that get the split val, with their fakes (default: %(default)s)"
    add("--val-share", type=float, default=0.0, help=val_share_help)
    frames_help = f"number of frames per clip (default: {defaults.n_frames}; all with --plain-frames)"
    add("--frames", type=positive, help=frames_help)
    add(
        "--size", type=crop_side, default=defaults.geometry.size, help="side of a crop in pixels (default: %(default)s)"
    )
    add("--jpeg", type=int, metavar="QUALITY", help="write crops as JPEG, 1 to 100 (default: PNG, lossless)")
    add(
        "--skip-equal",
        action="store_true",
        help="leave out faces of fakes that equal the original's (default: keep them)",
    )
    add(
        "--plain-frames",
        action="store_true",
        help="write whole frames as JPEG, and frames.csv with name and label (default: write crops)",
    )
    add(
        "--precut", action="store_true", help="treat photographs as ready-made face crops (default: find faces in them)"
    )
    add(
        "--workers",
        type=positive,
        default=count_cores(),
        help="number of clips at a time (default: one per core, %(default)s)",
    )
    add_device(parser)
    add_ray_argument(parser, "cut the clips, in folders that all nodes see, with the CPUs")
    add("--overwrite", action="store_true", help="delete what is there and start again (default: continue)")
    args = parser.parse_args(argv)
    urls = any(isinstance(place, str) for place in (*args.videos, *args.val, args.out))
    if urls and args.ray is None:
        parser.error("SOURCE, --val, --out: URLs need --ray; copy the clips to a folder, or add --ray")
    if urls and (args.val_share or args.plain_frames or args.overwrite):
        parser.error("--val-share, --plain-frames, --overwrite: do not work with URLs; leave them out")
    tables = [] if urls else [path for path in args.videos if path.suffix == ".csv"]
    if tables and len(tables) < len(args.videos):
        parser.error("SOURCE: cut clips and photographs into folders of their own; tools/train.py takes several tables")
    if tables and (args.val or args.plain_frames or args.frames or args.skip_equal):
        parser.error(
            "--val, --frames, --skip-equal, --plain-frames: apply to clips, not to photographs; leave them out"
        )
    if args.ray is not None and (tables or args.device == "cuda"):
        parser.error("--ray: cuts clips, and on CPUs; leave out tables of photographs and --device cuda")
    if args.precut and not tables:
        parser.error("--precut: needs tables of photographs; leave it out")
    try:
        settings = CutSettings(
            n_frames=args.frames or (None if args.plain_frames else defaults.n_frames),
            geometry=CropGeometry(size=args.size),
            jpeg_quality=args.jpeg,
            skip_equal=args.skip_equal,
            plain_frames=args.plain_frames,
        )
        table = (
            make_photograph_crops(
                tables, args.out, val_share=args.val_share, settings=settings, precut=args.precut, device=args.device
            )
            if tables
            else make_stored_crops(args.videos, args.out, held_out=args.val, settings=settings, cluster=args.ray)
            if urls
            else make_crops(
                args.videos,
                args.out,
                held_out=args.val,
                val_share=args.val_share,
                settings=settings,
                n_workers=args.workers,
                device=args.device,
                overwrite=args.overwrite,
                cluster=args.ray,
            )
        )
    except (DfdcError, OSError) as error:
        print(f"make_crops: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("make_crops: stopped; the same command resumes from here", file=sys.stderr)
        return 130
    print(table)
    return 0


if __name__ == "__main__":
    sys.exit(main())
