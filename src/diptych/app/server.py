"""A server of one page for this machine alone. It holds uploads in memory while it answers, and writes nothing.

Three things keep other programs and other pages out. It listens on 127.0.0.1. Every address begins with a secret that is
drawn at each start. The names in ``Host`` and ``Origin`` must be its own, so no page of another site can ask it, not even
under a name that points to this machine.
"""

from __future__ import annotations

import hmac
import json
import secrets
import sys
import threading
import time
import traceback
from collections.abc import Callable
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib import resources
from typing import Any
from urllib.parse import urlsplit

from diptych.errors import ConfigError, DiptychError
from diptych.escaping import one_line
from diptych.results.html import STYLE
from diptych.results.record import plain

__all__ = ["MOST_BYTES", "Page", "Question", "Server"]

MOST_BYTES = 64 << 20
"""Bytes of the largest question, file included. A radiograph of 16 million pixels of 16 bits has 32 MiB."""
_LINE = 64 << 10
"""Bytes of the line before the file."""
_SECONDS = 60
"""How long the server waits for a slow sender."""
_FILES = {"": "page.html", "page.css": "page.css", "page.js": "page.js"}
_KINDS = {"html": "text/html", "css": "text/css", "js": "text/javascript"}
_HEADERS = {
    "Cache-Control": "no-store",
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; img-src data:; connect-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Referrer-Policy": "same-origin",
    "X-Content-Type-Options": "nosniff",
}

Question = tuple[bytes, str, int | None]
"""A file, a phrase, and the place of a word in it."""


class Page:
    """What the server shows.

    Args:
        about: what the page says before it is asked, in plain values.
        answer: answers a question in plain values. One question is answered at a time.
    """

    def __init__(self, about: dict[str, Any], answer: Callable[[bytes, str, int | None], dict[str, Any]]) -> None:
        self.about, self._answer, self._turn = about, answer, threading.Lock()

    def answer(self, question: Question) -> dict[str, Any]:
        """The answer, and the seconds that it took."""
        with self._turn:
            start = time.perf_counter()
            return {**self._answer(*question), "seconds": time.perf_counter() - start}

    def close(self) -> None:
        """Wait for the answer that is being made. No other begins."""
        self._turn.acquire()


class Server(ThreadingHTTPServer):
    """The server of a page, at :attr:`address`.

    Args:
        page: what it shows.
        port: where it listens on 127.0.0.1. 0 takes a free port.

    Raises:
        ConfigError: the port is taken, or not this user's to take.
    """

    daemon_threads = True
    allow_reuse_port = False  # newer Pythons set it, and a second server would then take the same port

    def __init__(self, page: Page, port: int = 0) -> None:
        self.page, self.secret = page, secrets.token_urlsafe(24)
        try:
            super().__init__(("127.0.0.1", port), _Handler)
        except OSError as error:
            raise ConfigError(f"--port is {port}: {error.strerror}; give another port, or leave it out") from error

    @property
    def address(self) -> str:
        """What a browser opens."""
        return f"http://127.0.0.1:{self.server_address[1]}/{self.secret}/"

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Say nothing of a browser that has gone. Other errors are printed."""
        if not isinstance(sys.exception(), ConnectionError | TimeoutError):
            super().handle_error(request, client_address)


class _Refused(Exception):
    def __init__(self, status: HTTPStatus, message: str) -> None:
        super().__init__(message)
        self.status = status


class _Handler(BaseHTTPRequestHandler):
    server: Server
    timeout = _SECONDS
    server_version, sys_version = "diptych", ""

    def do_GET(self) -> None:
        """The page, its style and script, and what it says before it is asked."""
        self._guarded(self._get)

    def do_POST(self) -> None:
        """The answer to a question: a line of JSON with ``phrase`` and ``word``, then the file."""
        self._guarded(self._post)

    def log_message(self, format: str, *args: Any) -> None:
        """Requests are not logged: their addresses hold the secret."""

    def _guarded(self, work: Callable[[str], None]) -> None:
        try:
            work(self._place())
        except _Refused as error:
            self._send_plain(error.status, {"error": str(error)})
        except DiptychError as error:
            self._send_plain(HTTPStatus.UNPROCESSABLE_ENTITY, {"error": one_line(str(error))})
        except (ConnectionError, TimeoutError):
            raise
        except Exception as error:  # the page says that it failed, and the terminal where
            traceback.print_exc()
            message = f"{type(error).__name__}: {one_line(str(error))[:200]} (the terminal has more)"
            self._send_plain(HTTPStatus.INTERNAL_SERVER_ERROR, {"error": message})

    def _place(self) -> str:
        """The path behind the secret.

        Raises:
            _Refused: the request is not from this server's own page.
        """
        host = self.headers.get("Host", "")
        try:
            name = urlsplit(f"//{host}").hostname
        except ValueError:
            name = None
        if name not in {"127.0.0.1", "localhost"}:
            raise _Refused(HTTPStatus.FORBIDDEN, "this page answers to 127.0.0.1 and localhost alone")
        origin = self.headers.get("Origin")
        if (origin is not None or self.command == "POST") and origin != f"http://{host}":
            raise _Refused(HTTPStatus.FORBIDDEN, "only the page itself may ask; a request needs its Origin")
        _, secret, place = [*self.path.partition("?")[0].split("/", 2), "", ""][:3]
        if not hmac.compare_digest(secret.encode(), self.server.secret.encode()):
            raise _Refused(HTTPStatus.NOT_FOUND, "open the address that the program has printed, with all its letters")
        return place

    def _get(self, place: str) -> None:
        if place == "about":
            self._send_plain(HTTPStatus.OK, self.server.page.about)
        elif place in _FILES:
            file = resources.files("diptych.app") / "page" / _FILES[place]
            text = (STYLE if file.name.endswith(".css") else "") + file.read_text(encoding="utf-8")
            kind = _KINDS[file.name.rpartition(".")[2]]
            self._send(HTTPStatus.OK, f"{kind}; charset=utf-8", text.encode())
        else:
            raise _Refused(HTTPStatus.NOT_FOUND, "there is nothing here")

    def _post(self, place: str) -> None:
        if place != "ask":
            raise _Refused(HTTPStatus.NOT_FOUND, "there is nothing here")
        self._send_plain(HTTPStatus.OK, self.server.page.answer(self._question()))

    def _question(self) -> Question:
        stated = self.headers.get("Content-Length", "")
        if not (stated.isascii() and stated.isdigit()):
            raise _Refused(HTTPStatus.LENGTH_REQUIRED, "a question states its length (Content-Length)")
        if len(stated) > 12 or int(stated) > MOST_BYTES:
            text = f"the file is over the limit of {MOST_BYTES >> 20} MiB; give a smaller one"
            raise _Refused(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, text)
        body = self.rfile.read(int(stated))
        if len(body) < int(stated):
            raise ConnectionAbortedError("the sender has gone")
        line, _, raw = body.partition(b"\n")
        try:
            asked = json.loads(line) if len(line) <= _LINE else None
        except (ValueError, RecursionError):
            asked = None
        if not isinstance(asked, dict):
            raise _Refused(HTTPStatus.BAD_REQUEST, "a question begins with a line of JSON")
        phrase, word = asked.get("phrase"), asked.get("word")
        if not isinstance(phrase, str) or not (word is None or type(word) is int):
            raise _Refused(HTTPStatus.BAD_REQUEST, "a question has a 'phrase', and 'word' is a number or null")
        return raw, phrase, word

    def _send_plain(self, status: HTTPStatus, values: dict[str, Any]) -> None:
        self._send(status, "application/json", json.dumps(plain(values), allow_nan=False).encode())

    def _send(self, status: HTTPStatus, kind: str, content: bytes) -> None:
        self.send_response(status)
        for name, value in {**_HEADERS, "Content-Type": kind, "Content-Length": str(len(content))}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(content)
