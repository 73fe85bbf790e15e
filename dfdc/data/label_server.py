"""Requests of the labelling page -> sheets of faces, their labels and images: a small web application for one user."""

from __future__ import annotations

import hashlib
import threading
from collections import Counter
from dataclasses import replace
from datetime import datetime, timezone
from pathlib import Path

from flask import Blueprint, Flask, Response, abort, jsonify, render_template, request, send_file

from dfdc.app.local import protect
from dfdc.data.labels import MARKS, FrameLabel, LabelFile, read_box
from dfdc.data.sheets import ClipFakes, Scorer, Sheet, Sheets, Shot, TableFakes
from dfdc.log import shown

# A request waits this long for its clip; then the page asks again.
WAIT_S = 10.0


class LabelSession:
    """Fakes, their labels, and the requests of the page; refusals are HTTP errors."""

    def __init__(
        self, fakes: TableFakes | ClipFakes, labels: LabelFile, scorer: Scorer | None, *, wait_s: float = WAIT_S
    ) -> None:
        """Prepare to label.

        Args:
            fakes: whose frames are labelled.
            labels: the file that gets the labels.
            scorer: gives scores; None for no scores.
            wait_s: how long a request waits for the crops of a clip.
        """
        self.videos = list(fakes.kinds)
        self.sheets = Sheets(self.videos, self._make_sheet)
        self._fakes = fakes
        self._labels = labels
        self._scorer = scorer
        self._wait_s = wait_s
        self._saving = threading.Lock()
        self._numbers = {video: number for number, video in enumerate(self.videos)}
        # A page that outlives its server must not label other clips.
        identity = repr((self.videos, str(labels.path.absolute())))
        self._run = hashlib.sha256(identity.encode("utf-8", "backslashreplace")).hexdigest()[:16]

    def state(self) -> dict[str, object]:
        """All clips, the progress of each, and the one to open: that of the last label."""
        last = next((video for video, *_ in reversed(self._labels.labels) if video in self._numbers), None)
        return {
            "run": self._run,
            "file": shown(self._labels.path),
            "videos": [shown(video) for video in self.videos],
            "kinds": list(self._fakes.kinds.values()),
            "shots": [self.sheets.count(number) for number in range(len(self.videos))],
            "start": self._numbers.get(last, 0),
            **self._progress(),
        }

    def clip(self, number: int) -> dict[str, object]:
        """One clip's shots and labels; "ready" is False while its crops are being cut."""
        sheet = self._sheet(number, self._wait_s)
        if sheet is None:
            return {"ready": False}
        shots = [self._describe(self.videos[number], shot) for shot in sheet.shots]
        return {"ready": True, "run": self._run, "reason": sheet.reason, "shots": shots}

    def crop(self, number: int, index: int, which: str) -> Path:
        """The image file of a shot, or of its original."""
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
                    f"frame {shot.frame} of {label.video} already has a label in {self._labels.path}, but of another "
                    f"face, at {earlier.time_s:.1f} s: those crops were cut with other settings; use another file "
                    "with --labels",
                )
            self._labels.set(label)
        return self._progress()

    def undo(self, run: object) -> dict[str, object]:
        """Undo the last change to these clips, and say whose label it was."""
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
        # A page may ask for a shot whose sheet has been dropped meanwhile.
        sheet = self._sheet(number, self._wait_s)
        if sheet is None:
            abort(503, "the crops of this clip are still being cut; try again")
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


def make_app(session: LabelSession, token: str, *, folder: Path) -> Flask:
    """The web application: the page and its requests, all below the address /TOKEN/.

    Args:
        session: answers the requests.
        token: without which no address exists; hard to guess.
        folder: of page.html and of what it loads.
    """
    app = Flask(__name__, template_folder=folder, static_folder=None)
    protect(app, program="label_frames")
    pages = Blueprint("page", __name__, url_prefix=f"/{token}", static_folder=folder, static_url_path="/static")

    @pages.get("/")
    def page() -> str:
        return render_template("page.html")

    @pages.get("/state")
    def state() -> Response:
        return jsonify(session.state())

    @pages.get("/clips/<int:number>")
    def clip(number: int) -> Response:
        return jsonify(session.clip(number))

    @pages.get("/clips/<int:number>/<int:index>/<any(fake, original):which>")
    def crop(number: int, index: int, which: str) -> Response:
        return send_file(session.crop(number, index, which))

    @pages.post("/labels")
    def label() -> Response:
        return jsonify(session.label(*map(_asked().get, ("run", "clip", "shot", "label"))))

    @pages.post("/undo")
    def undo() -> Response:
        return jsonify(session.undo(_asked().get("run")))

    app.register_blueprint(pages)
    return app


def _asked() -> dict[str, object]:
    asked = request.get_json()
    if not isinstance(asked, dict):
        abort(400, "an object was expected")
    return asked
