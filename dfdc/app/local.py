"""Pages on the loopback interface, for one user: a token in the address, and no requests from other sites.

The labelling page and the app use it.
"""

from __future__ import annotations

import secrets
import socket
import threading
import webbrowser
from collections.abc import Callable

from flask import Flask, Response, abort, jsonify, request
from werkzeug.exceptions import HTTPException
from werkzeug.serving import make_server

from dfdc.errors import DfdcError, InputError

HOST = "127.0.0.1"
# Allowed Host headers: under any other name of this machine another site could read the page (DNS rebinding).
TRUSTED_HOSTS = ["127.0.0.1", "localhost"]
TOKEN_BYTES = 24
POLICY = (
    "default-src 'none'; img-src 'self' data:; script-src 'self'; style-src 'self'; "
    "connect-src 'self'; frame-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
HEADERS = {
    "Content-Security-Policy": POLICY,
    "Cross-Origin-Resource-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
    "Cache-Control": "no-store",
}


def protect(app: Flask, *, program: str) -> None:
    """Refuse what other sites ask of an application, and answer errors in JSON.

    Args:
        app: whose pages lie below an address that is hard to guess.
        program: that printed the address, for an error that names it.
    """
    app.config["TRUSTED_HOSTS"] = TRUSTED_HOSTS

    @app.before_request
    def refuse_other_sites() -> None:
        # Browsers say who asks; a page of another site cannot forge it.
        own = request.host_url.rstrip("/")
        same_site = request.headers.get("Sec-Fetch-Site", "none") in ("same-origin", "none")
        if not same_site or request.headers.get("Origin", own) != own:
            abort(403, "another site sent this request; open the page itself")

    @app.after_request
    def add_headers(response: Response) -> Response:
        for name, value in HEADERS.items():
            response.headers.setdefault(name, value)
        return response

    @app.errorhandler(HTTPException)
    def explain(error: HTTPException) -> tuple[Response, int]:
        return jsonify(error=error.description), error.code or 500

    @app.errorhandler(404)
    def explain_absent(error: HTTPException) -> tuple[Response, int]:
        unknown = f"there is nothing at this address; open the one that {program} printed when it was last started"
        return jsonify(error=unknown if request.url_rule is None else error.description), 404

    @app.errorhandler(DfdcError)
    @app.errorhandler(OSError)
    def explain_refusal(error: Exception) -> tuple[Response, int]:
        return jsonify(error=str(error)), 409


def serve(make_app: Callable[[str], Flask], *, port: int, show: bool, say: Callable[[str], None]) -> None:
    """Serve an application on the loopback interface until Ctrl-C.

    Args:
        make_app: makes it from the token that begins its addresses.
        port: of the page; 0 for any free one.
        show: open the page in the browser.
        say: tells the user the page's address.

    Raises:
        InputError: the port cannot be used.
    """
    token = secrets.token_urlsafe(TOKEN_BYTES)
    try:
        listener = socket.create_server((HOST, port))
    except (OSError, OverflowError) as error:
        raise InputError(f"port {port} cannot be used ({error}); choose another with --port") from error
    with listener:
        url = f"http://{HOST}:{listener.getsockname()[1]}/{token}/"
        server = make_server(HOST, port, make_app(token), threaded=True, fd=listener.fileno())
        say(url)
        if show:
            threading.Thread(target=webbrowser.open, args=(url,), daemon=True).start()
        server.serve_forever()
