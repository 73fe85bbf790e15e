"""Label the frames of fakes by hand, for tools/train.py --frame-labels: a page for your browser, on this machine only.

python tools/label_frames.py samples                  # clips, or folders of clips, with metadata.json
python tools/label_frames.py crops/crops.csv          # what tools/make_crops.py cut

Every label is on the disk before the page goes on. Stop it with Ctrl-C; the same command goes on from there.
"""

from __future__ import annotations

import argparse
import hashlib
import logging
import socket
import sys
import threading
import webbrowser
from collections import Counter
from dataclasses import replace
from datetime import datetime, timezone
from pathlib import Path

from flask import Flask, Response, abort, jsonify, render_template, request, send_file
from werkzeug.exceptions import HTTPException
from werkzeug.serving import make_server

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from dfdc.crop import CropGeometry
from dfdc.data.crops import CutSettings
from dfdc.data.labels import MARKS, FrameLabel, LabelFile, read_box
from dfdc.data.sheets import ClipFakes, Scorer, Sheet, Sheets, Shot, TableFakes
from dfdc.errors import DataError, WeightsError
from dfdc.weights import find_weights

HOST, PORT = "127.0.0.1", 8765
CLIP_CROPS = Path("labelling")
# What Host headers may say: by another name for this machine another site would read the page (DNS rebinding).
TRUSTED_HOSTS = ["127.0.0.1", "localhost"]
# A request waits so long for its clip; then the page asks again.
WAIT_S = 10.0
HEADERS = {
    "Content-Security-Policy": "default-src 'none'; img-src 'self'; script-src 'self'; style-src 'self'; "
    "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
}


class Desk:
    """Fakes, their labels, and what the page may ask of both; refuses by HTTP's codes."""

    def __init__(
        self, fakes: TableFakes | ClipFakes, labels: LabelFile, scorer: Scorer | None, *, wait_s: float = WAIT_S
    ) -> None:
        """Cut nothing yet.

        Args:
            fakes: whose frames are labelled.
            labels: where labels go.
            scorer: asked for scores; None for no scores.
            wait_s: how long a request waits for a clip to be cut.
        """
        self.videos = list(fakes.kinds)
        self.sheets = Sheets(self.videos, self._make_sheet)
        self._fakes = fakes
        self._labels = labels
        self._scorer = scorer
        self._wait_s = wait_s
        self._saving = threading.Lock()
        self._numbers = {video: number for number, video in enumerate(self.videos)}
        # A page that outlives its server must not label the clips of another.
        identity = repr((self.videos, str(labels.path.absolute())))
        self._run = hashlib.sha256(identity.encode("utf-8", "backslashreplace")).hexdigest()[:16]

    def state(self) -> dict[str, object]:
        """All clips, how far each is, and the one to open: that of the last label."""
        last = next((video for video, *_ in reversed(self._labels.labels) if video in self._numbers), None)
        return {
            "run": self._run,
            "file": str(self._labels.path),
            "videos": self.videos,
            "kinds": list(self._fakes.kinds.values()),
            "shots": [self.sheets.count(number) for number in range(len(self.videos))],
            "start": self._numbers.get(last, 0),
            **self._progress(),
        }

    def clip(self, number: int) -> dict[str, object]:
        """One clip's shots and labels; ready is False while it is being cut."""
        sheet = self._sheet(number, self._wait_s)
        if sheet is None:
            return {"ready": False}
        shots = [self._describe(self.videos[number], shot) for shot in sheet.shots]
        return {"ready": True, "run": self._run, "reason": sheet.reason, "shots": shots}

    def crop(self, number: int, index: int, which: str) -> Path:
        """The image of a shot, or of its original's."""
        shot = self._shot(number, index)
        path = shot.path if which == "fake" else shot.original
        if path is None or not path.is_file():
            abort(404, "there is no such crop")
        return path.absolute()

    def label(self, run: object, number: object, index: object, mark: object) -> dict[str, object]:
        """Save a label; it is on the disk when this returns."""
        self._check_run(run)
        if type(number) is not int or type(index) is not int or mark not in MARKS:
            abort(400, f"clip and shot are whole numbers, label is one of {', '.join(MARKS)}")
        shot = self._shot(number, index)
        when = datetime.now(timezone.utc).isoformat(timespec="seconds")
        place = (self.videos[number], shot.frame, shot.time_s, shot.track)
        with self._saving:
            label = FrameLabel(*place, read_box(shot.box), str(mark), when)
            earlier = self._labels.labels.get(label.key)
            if earlier and not earlier.is_of(shot.time_s, shot.box):
                abort(
                    409,
                    f"frame {shot.frame} of {label.video} has a label in {self._labels.path} that was given to another "
                    f"face, at {earlier.time_s:.1f} s: these crops were cut otherwise; name another file with --labels",
                )
            self._labels.set(label)
        return self._progress()

    def undo(self, run: object) -> dict[str, object]:
        """Take the last change to these clips back, and tell whose it was."""
        self._check_run(run)
        with self._saving:
            key = self._labels.undo(self._numbers)
        if key is None:
            return {"undone": None, **self._progress()}
        video, frame, track = key
        undone = {"clip": self._numbers[video], "frame": frame, "track": track}
        return {"undone": undone, **self._progress()}

    def _make_sheet(self, video: str) -> Sheet:
        sheet = self._fakes.collect(video)
        if self._scorer is None or not sheet.shots:
            return sheet
        scores = self._scorer.score([shot.path for shot in sheet.shots])
        scored = zip(sheet.shots, scores, strict=True)
        return replace(sheet, shots=tuple(replace(shot, score=float(score)) for shot, score in scored))

    def _sheet(self, number: int, wait_s: float) -> Sheet | None:
        if not 0 <= number < len(self.videos):
            abort(404, f"there is no clip {number}; there are {len(self.videos)}")
        return self.sheets.get(number, wait_s=wait_s)

    def _shot(self, number: int, index: int) -> Shot:
        # After a restart a page that is still open asks for shots of clips that have to be read again.
        sheet = self._sheet(number, self._wait_s)
        if sheet is None:
            abort(503, "the clip is still being cut; try again")
        if not 0 <= index < len(sheet.shots):
            abort(404, f"{self.videos[number]} has no face {index}; it has {len(sheet.shots)}")
        return sheet.shots[index]

    def _describe(self, video: str, shot: Shot) -> dict[str, object]:
        label = self._labels.labels.get((video, shot.frame, shot.track))
        mark = label.label if label and label.is_of(shot.time_s, shot.box) else None
        return {
            **{"frame": shot.frame, "time": shot.time_s, "track": shot.track, "score": shot.score},
            **{"original": shot.original is not None, "label": mark},
        }

    def _progress(self) -> dict[str, object]:
        mine = [label for label in self._labels.labels.values() if label.video in self._numbers]
        clips = Counter(self._numbers[label.video] for label in mine)
        return {"marks": Counter(label.label for label in mine), "clips": clips}

    def _check_run(self, run: object) -> None:
        if run != self._run:
            abort(409, "this page belongs to another run of label_frames; reload it")


def make_app(desk: Desk) -> Flask:
    """The page, and what it asks for."""
    app = Flask(__name__, template_folder="label_page", static_folder="label_page", static_url_path="/static")
    app.config["TRUSTED_HOSTS"] = TRUSTED_HOSTS

    @app.before_request
    def refuse_other_sites() -> None:
        # Browsers say who asks. What changes something is JSON besides, which other sites may not send.
        if request.headers.get("Sec-Fetch-Site", "none") not in ("same-origin", "none"):
            abort(403, "another site asked for this; open the page itself")

    @app.after_request
    def add_headers(response: Response) -> Response:
        response.headers.update(HEADERS)
        return response

    @app.errorhandler(HTTPException)
    def explain(error: HTTPException) -> tuple[Response, int]:
        return jsonify(error=error.description), error.code or 500

    @app.errorhandler(DataError)
    @app.errorhandler(OSError)
    def explain_unsaved(error: Exception) -> tuple[Response, int]:
        return jsonify(error=str(error)), 409

    @app.get("/")
    def page() -> str:
        return render_template("page.html")

    @app.get("/state")
    def state() -> Response:
        return jsonify(desk.state())

    @app.get("/clips/<int:number>")
    def clip(number: int) -> Response:
        return jsonify(desk.clip(number))

    @app.get("/clips/<int:number>/<int:index>/<any(fake, original):which>")
    def crop(number: int, index: int, which: str) -> Response:
        return send_file(desk.crop(number, index, which))

    @app.post("/labels")
    def label() -> Response:
        return jsonify(desk.label(*map(_asked().get, ("run", "clip", "shot", "label"))))

    @app.post("/undo")
    def undo() -> Response:
        return jsonify(desk.undo(_asked().get("run")))

    return app


def _asked() -> dict[str, object]:
    asked = request.get_json()
    if not isinstance(asked, dict):
        abort(400, "an object was expected")
    return asked


def open_fakes(sources: list[Path], out: Path, settings: CutSettings) -> TableFakes | ClipFakes:
    """The fakes of a crop table, or those among clips and folders of clips; see `TableFakes` and `ClipFakes`."""
    tables = find_tables(sources)
    if not tables:
        return ClipFakes(sources, out, settings)
    if len(sources) > 1:
        raise DataError(f"{tables[0]}: a crop table is labelled alone; name it, or clips")
    return TableFakes(tables[0])


def find_tables(sources: list[Path]) -> list[Path]:
    """The crop tables among what is to be labelled."""
    return [source for source in sources if source.suffix.lower() == ".csv"]


def serve(desk: Desk, *, port: int = PORT, show: bool = True) -> None:
    """Serve the page on the loopback until Ctrl-C.

    Args:
        desk: what is labelled.
        port: 0 for any that is free.
        show: open the page in the browser.

    Raises:
        OSError: the port is taken.
    """
    with socket.create_server((HOST, port)) as listener:
        url = f"http://{HOST}:{listener.getsockname()[1]}/"
        server = make_server(HOST, port, make_app(desk), threaded=True, fd=listener.fileno())
        print(f"{len(desk.videos)} clips to label: open {url} in a browser; Ctrl-C here ends it", flush=True)
        if show:
            threading.Thread(target=webbrowser.open, args=(url,), daemon=True).start()
        try:
            server.serve_forever()
        finally:
            desk.sheets.close()


def build_parser() -> argparse.ArgumentParser:
    defaults = CutSettings()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("clips", nargs="+", type=Path, metavar="CLIPS", help="clips, folders of clips, or one crops.csv")
    labels_help = "CSV that gets the labels and is gone on with (default: %(default)s)"
    add("--labels", type=Path, default=Path("frame_labels.csv"), metavar="FILE", help=labels_help)
    add("--crops", type=Path, metavar="FOLDER", help=f"folder for the crops of clips (default: {CLIP_CROPS})")
    frames_help = f"frames of a clip, as many as make_crops is given (default: {defaults.n_frames})"
    add("--frames", type=int, help=frames_help)
    add("--size", type=int, help=f"side of a clip's crops in pixels (default: {defaults.geometry.size})")
    weights_help = "the net that gives scores (default: weights/ beside the package)"
    add("--weights", type=Path, default=Path(__file__).resolve().parent.parent / "weights", help=weights_help)
    add("--no-scores", action="store_true", help="show no scores: they may sway you")
    add("--port", type=int, default=PORT, help="of the page (default: %(default)s); 0 takes a free one")
    add("--no-browser", action="store_true", help="only print the page's address")
    return parser


def main(argv: list[str] | None = None) -> int:
    parser = build_parser()
    args = parser.parse_args(argv)
    given = {name: getattr(args, name) for name in ("crops", "frames", "size") if getattr(args, name) is not None}
    if given and find_tables(args.clips):
        parser.error(f"--{next(iter(given))}: says how clips are cut; those of a crop table are, so leave it out")
    logging.getLogger("werkzeug").setLevel(logging.WARNING)  # a line for every picture
    try:
        settings = CutSettings()
        if "frames" in given:
            settings = replace(settings, n_frames=args.frames)
        if "size" in given:
            settings = replace(settings, geometry=CropGeometry(size=args.size))
        labels = LabelFile(args.labels)
        scorer = None if args.no_scores else Scorer(find_weights(args.weights))
        desk = Desk(open_fakes(args.clips, args.crops or CLIP_CROPS, settings), labels, scorer)
    except (DataError, WeightsError, ValueError, OSError) as error:
        print(f"label_frames: {error}", file=sys.stderr)
        return 1
    try:
        serve(desk, port=args.port, show=not args.no_browser)
    except (OSError, OverflowError) as error:
        print(f"label_frames: port {args.port} does not serve ({error}); name another with --port", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print(f"\n{labels.path}: {len(labels.labels)} labels; the same command goes on from here")
    return 0


if __name__ == "__main__":
    sys.exit(main())
