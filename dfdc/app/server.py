"""The app: a page on this machine where one drops clips and gets the report."""

from __future__ import annotations

import tempfile
import time
from pathlib import Path

from flask import Blueprint, Flask, Response, abort, jsonify, request

from dfdc.analysis import Analysis
from dfdc.app.jobs import MAX_BYTES, Job, JobQueue, QueueFull
from dfdc.app.local import protect
from dfdc.report.page import write_report
from dfdc.report.words import describe_finding
from dfdc.run.inputs import SUFFIXES

STATIC = Path(__file__).with_name("static")
# The report is one file that brings its own script and style; it may be shown inside the app and nowhere else.
REPORT_POLICY = (
    "default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'unsafe-inline'; frame-ancestors 'self'"
)


def make_app(queue: JobQueue, token: str) -> Flask:
    """The web application: all addresses lie below /TOKEN/.

    Args:
        queue: takes clips and keeps analyses.
        token: without which no address exists; hard to guess.
    """
    app = Flask(__name__, static_folder=None)
    app.config["MAX_CONTENT_LENGTH"] = MAX_BYTES + 2**20
    protect(app, program="dfdc app")
    pages = Blueprint("app", __name__, url_prefix=f"/{token}", static_folder=STATIC, static_url_path="/static")

    @pages.get("/")
    def page() -> Response:
        return Response((STATIC / "app.html").read_text(encoding="utf-8"), mimetype="text/html")

    @pages.get("/state")
    def state() -> Response:
        """The clips in the queue, those that have an analysis, and what may be handed in."""
        jobs = [_describe_job(job) for job in queue.jobs() if job.stage not in ("uploading", "done")]
        clips = [_describe_clip(clip) for clip in queue.summaries()]
        return jsonify(jobs=jobs, clips=clips, max_bytes=MAX_BYTES, suffixes=sorted(SUFFIXES))

    @pages.post("/clips")
    def add() -> tuple[Response, int]:
        name = request.args.get("name", "")
        if not name:
            abort(400, "the request names no file")
        try:
            job = queue.add(name, request.stream)
        except QueueFull as error:
            abort(429, str(error))
        return jsonify(filename=job.filename), 202

    @pages.delete("/clips")
    def delete() -> Response:
        queue.delete(request.args.get("name", ""))
        return jsonify(deleted=True)

    @pages.get("/report")
    def report() -> Response:
        """The report of one clip, or of all."""
        name = request.args.get("name")
        analyses: list[Analysis] = [a for a in queue.analyses() if name is None or a.filename == name]
        if not analyses:
            abort(404, "there is no analysis of this clip")
        with tempfile.TemporaryDirectory(prefix="dfdc-") as folder:
            out = write_report(analyses, Path(folder) / "report.html", n_clips=len(analyses))
            response = Response(out.read_bytes(), mimetype="text/html")
        response.headers["Content-Security-Policy"] = REPORT_POLICY
        return response

    app.register_blueprint(pages)
    return app


def _describe_job(job: Job) -> dict[str, object]:
    seconds = max(time.time() - job.began_s, 0.0) if job.began_s else 0.0
    return {
        "filename": job.filename,
        "stage": job.stage,
        "n_done": job.n_done,
        "n_all": job.n_all,
        "seconds": round(seconds),
        "reason": job.reason,
    }


def _describe_clip(clip: Analysis) -> dict[str, object]:
    found = describe_finding(clip)
    return {
        "filename": clip.filename,
        "probability": clip.probability if clip.scored else None,
        "finding": found.text,
        "tone": found.tone,
        "status": clip.status,
        "reason": clip.reason,
    }
