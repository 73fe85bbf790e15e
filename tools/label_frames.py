"""Label frames of fakes by hand for tools/train.py --frame-labels, on a page in your browser.

python tools/label_frames.py samples                  # clips, or folders of clips, with metadata.json
python tools/label_frames.py crops/crops.csv          # crops that tools/make_crops.py cut

The page is served on this machine only, under an address that nobody can guess. Every label is on the disk before the
page moves on. Press Ctrl-C to stop; the same command continues where you stopped.
"""

from __future__ import annotations

import argparse
import logging
import sys
from dataclasses import replace
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from dfdc.app.local import serve as serve_pages
from dfdc.crop import CropGeometry
from dfdc.data.crop_folder import CutSettings
from dfdc.data.label_server import LabelSession, make_app
from dfdc.data.labels import LabelFile
from dfdc.data.sheets import ClipFakes, Scorer, TableFakes
from dfdc.errors import DataError
from dfdc.files import make_folder
from dfdc.flags import check_outputs, crop_side, make_parser, natural, positive, run_tool, tool
from dfdc.run.limits import limit_tool
from dfdc.weights import find_weights

HOST, PORT = "127.0.0.1", 8765
CLIP_CROPS = Path("labelling")
WEIGHTS = Path(__file__).resolve().parent.parent / "weights"
PAGE = Path(__file__).resolve().parent / "label_page"
# The address of the page contains this many random bytes, because other users of this machine can reach the port, too.
TOKEN_BYTES = 16


def open_fakes(sources: list[Path], out: Path, settings: CutSettings) -> TableFakes | ClipFakes:
    """The fakes of a crop table, or those among clips and folders of clips; see `TableFakes` and `ClipFakes`.

    Raises:
        DataError: a crop table beside other sources, or one of them cannot be used.
    """
    tables = find_tables(sources)
    if not tables:
        return ClipFakes(sources, out, settings)
    if len(sources) > 1:
        raise DataError(f"{tables[0]}: a crop table is labelled by itself; name either one table, or clips")
    return TableFakes(tables[0])


def find_tables(sources: list[Path]) -> list[Path]:
    """The crop tables among the sources."""
    return [source for source in sources if source.suffix.lower() == ".csv"]


def serve(session: LabelSession, *, port: int = PORT, show: bool = True) -> None:
    """Serve the page on the loopback interface until Ctrl-C.

    Args:
        session: what is labelled.
        port: of the page; 0 for any free one.
        show: open the page in the browser.

    Raises:
        InputError: the port cannot be used.
    """
    try:
        serve_pages(
            lambda token: make_app(session, token, folder=PAGE),
            port=port,
            show=show,
            say=lambda url: print(
                f"{len(session.videos)} clips to label. Open {url} in a browser; press Ctrl-C here to stop.", flush=True
            ),
        )
    finally:
        session.sheets.close()


def label_frames(
    sources: list[Path],
    labels: Path,
    *,
    crops: Path = CLIP_CROPS,
    settings: CutSettings | None = None,
    weights: Path | None = WEIGHTS,
    port: int = PORT,
    show: bool = True,
) -> Path:
    """Serve the labelling page until Ctrl-C.

    Args:
        sources: clips, folders of clips, or one crop table.
        labels: CSV file that gets the labels; an existing one is continued.
        crops: folder for the crops of clips; unused with a crop table.
        settings: how to cut the crops of clips; None for the defaults.
        weights: file or folder of the models that give scores; None shows no scores.
        port, show: see `serve`.

    Returns:
        labels.

    Raises:
        DataError, WeightsError, InputError: a source, the label file, the weights or an output cannot be used.
    """
    file = LabelFile(labels)
    check_outputs([labels], inputs=sources)
    scorer = None if weights is None else Scorer(find_weights(weights))
    if not find_tables(sources):
        make_folder(crops)
        limit_tool()
    session = LabelSession(open_fakes(sources, crops, settings or CutSettings()), file, scorer)
    try:
        serve(session, port=port, show=show)
    except KeyboardInterrupt:
        print(f"\n{labels}: {len(file.labels)} labels. Run the same command to continue.")
    return labels


def build_parser() -> argparse.ArgumentParser:
    defaults = CutSettings()
    parser = make_parser(__doc__)
    add = parser.add_argument
    add("clips", nargs="+", type=Path, metavar="CLIPS", help="clips, folders of clips, or one crops.csv")
    labels_help = "CSV file for the labels; an existing one is continued (default: %(default)s)"
    add("--labels", type=Path, default=Path("frame_labels.csv"), metavar="FILE", help=labels_help)
    add("--crops", type=Path, metavar="FOLDER", help=f"folder for the crops of clips (default: {CLIP_CROPS})")
    frames_help = f"frames to show of each clip; use the same value for make_crops (default: {defaults.n_frames})"
    add("--frames", type=positive, help=frames_help)
    add("--size", type=crop_side, help=f"side of a clip's crops in pixels (default: {defaults.geometry.size})")
    add("--weights", type=Path, default=WEIGHTS, help="weights file or folder that gives scores (default: weights/)")
    add("--no-scores", action="store_true", help="hide the scores, which may influence you (default: show them)")
    add("--port", type=natural, default=PORT, help="port of the page, 0 for any free one (default: %(default)s)")
    add("--no-browser", action="store_true", help="print the page's address only (default: open a browser, too)")
    return parser


@tool
def main(argv: list[str] | None = None) -> None:
    parser = build_parser()
    args = parser.parse_args(argv)
    given = {name: getattr(args, name) for name in ("crops", "frames", "size") if getattr(args, name) is not None}
    if given and find_tables(args.clips):
        parser.error(f"--{next(iter(given))} is for clips; the crops of a crop table are already cut, so leave it out")
    logging.getLogger("werkzeug").setLevel(logging.WARNING)  # it logs a line for every picture
    settings = CutSettings()
    if "frames" in given:
        settings = replace(settings, n_frames=args.frames)
    if "size" in given:
        settings = replace(settings, geometry=CropGeometry(size=args.size))
    label_frames(
        args.clips,
        args.labels,
        crops=args.crops or CLIP_CROPS,
        settings=settings,
        weights=None if args.no_scores else args.weights,
        port=args.port,
        show=not args.no_browser,
    )


if __name__ == "__main__":
    run_tool(main)
