"""The page and its data over HTTP, for any number of browsers. Nothing can be changed through it.

It answers GET alone. While it listens on the loopback it also answers only those who ask for the loopback by name, so
that a page of the internet that is open in the same browser cannot read where the vehicle is (DNS rebinding).
"""

from __future__ import annotations

import errno
import http.server
import ipaddress
import json
import re
import secrets
import socket
import sys
import threading
from http import HTTPStatus
from pathlib import Path
from typing import Any, Protocol

from unifygeo_ros.core.errors import ConfigurationError, IndexFormatError
from unifygeo_ros.watch.journal import Journal
from unifygeo_ros.watch.orthophoto import Orthophoto
from unifygeo_ros.watch.pictures import Pictures

PAGE = Path(__file__).parent / "page"
FILES = {
    "/": "index.html",
    "/page.css": "page.css",
    "/page.js": "page.js",
    "/map.js": "map.js",
    "/icon.svg": "icon.svg",
}
KINDS = {".html": "text/html", ".css": "text/css", ".js": "text/javascript", ".svg": "image/svg+xml"}
ALIVE_S = 5.0
"""How often a page that nothing happens for gets a sign of life, by which a closed page is noticed, too."""


class Source(Protocol):
    """What is watched: a node or a replay."""

    journal: Journal

    @property
    def pictures(self) -> Pictures | None: ...

    @property
    def orthophoto(self) -> Orthophoto | None: ...

    def description(self) -> dict[str, Any]:
        """For the page: "mode" (live or replay), "name", and "notes", sentences about what is missing."""


class WatchServer(http.server.ThreadingHTTPServer):
    """Serves one source until `stop`."""

    allow_reuse_address = True
    daemon_threads = False

    def __init__(self, source: Source, host: str, port: int) -> None:
        """Raises ConfigurationError where host and port cannot be listened on."""
        self.source = source
        self.epoch = secrets.token_hex(8)
        """A page that finds another one belongs to an earlier server and starts again."""
        self.local_only = _is_loopback(host)
        if ":" in host:
            self.address_family = socket.AF_INET6
        try:
            super().__init__((host, port), _Handler)
        except OSError as error:
            taken = error.errno == errno.EADDRINUSE
            remedy = "give another --port, or 0 for any that is free" if taken else "give another --host or --port"
            raise ConfigurationError(f"cannot listen on {host}, port {port} ({error.strerror}); {remedy}") from error

    @property
    def url(self) -> str:
        host, port = self.server_address[:2]
        return f"http://{f'[{host!s}]' if ':' in str(host) else host!s}:{port}/"

    def start(self) -> threading.Thread:
        """Serve in a thread of its own."""
        thread = threading.Thread(target=self.serve_forever, name="watch", daemon=True)
        thread.start()
        return thread

    def stop(self) -> None:
        """End all answers, those that go on for as long as a page is open, too."""
        self.source.journal.close()
        self.shutdown()
        self.server_close()

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A browser that goes away in the middle of an answer is no error."""
        if not isinstance(sys.exc_info()[1], ConnectionError):
            super().handle_error(request, client_address)


class _Handler(http.server.BaseHTTPRequestHandler):
    server: WatchServer
    timeout = 10.0
    """A browser that takes nothing for so many seconds is given up."""
    server_version = "unifygeo"
    sys_version = ""

    def do_GET(self) -> None:  # the name that http.server calls
        if self.server.local_only and not _is_loopback(_host_of(self.headers.get("Host", ""))):
            self._refuse(HTTPStatus.FORBIDDEN, "this page is served for this machine only; see --host")
            return
        path, _, query = self.path.partition("?")
        source = self.server.source
        if path in FILES:
            file = PAGE / FILES[path]
            self._answer(file.read_bytes(), f"{KINDS[file.suffix]}; charset=utf-8")
        elif path == "/info.json":
            orthophoto = source.orthophoto
            info = {**source.description(), "epoch": self.server.epoch, "map": orthophoto and orthophoto.description()}
            self._answer(json.dumps(info, allow_nan=False).encode(), "application/json")
        elif path == "/events":
            self._stream(query)
        elif match := re.fullmatch(r"/tiles/(\d{1,2})/(-?\d{1,9})/(-?\d{1,9})\.jpg", path):
            self._tile(*map(int, match.groups()))
        elif match := re.fullmatch(r"/images/(\d{1,12})\.jpg", path):
            pictures = source.pictures
            picture = None if pictures is None else pictures.picture(int(match[1]))
            self._picture(picture, "there is no such picture")
        else:
            self._refuse(HTTPStatus.NOT_FOUND, "there is no such page")

    def _tile(self, level: int, x: int, y: int) -> None:
        orthophoto = self.server.source.orthophoto
        try:
            jpeg = None if orthophoto is None else orthophoto.tile(level, x, y)
            self._picture(jpeg, "the index has no imagery here")
        except (IndexFormatError, OSError) as error:
            self._refuse(HTTPStatus.INTERNAL_SERVER_ERROR, str(error))

    def _picture(self, jpeg: bytes | None, missing: str) -> None:
        if jpeg is None:
            self._refuse(HTTPStatus.NOT_FOUND, missing)
        else:
            self._answer(jpeg, "image/jpeg", "max-age=3600")

    def _stream(self, query: str) -> None:
        """Server-sent events: what is in the journal, then what is added, each message a list of entries."""
        journal = self.server.source.journal
        resumed = re.fullmatch(rf"{self.server.epoch}-(\d+)", self.headers.get("Last-Event-ID", ""))
        number = int(resumed[1]) if resumed else 0
        self.send_response(HTTPStatus.OK)
        self.send_header("Content-Type", "text/event-stream")
        self.send_header("Cache-Control", "no-store")
        self.end_headers()
        while True:
            news = journal.after(number, ALIVE_S)
            if news:
                number = news[-1][0]
                data = json.dumps([entry for _, entry in news], separators=(",", ":"), allow_nan=False)
                self._write(f"id: {self.server.epoch}-{number}\ndata: {data}\n\n")
            elif journal.closed:
                self._write("event: end\ndata: {}\n\n")
                return
            else:
                self._write(": alive\n\n")

    def _write(self, text: str) -> None:
        self.wfile.write(text.encode())
        self.wfile.flush()

    def _answer(self, content: bytes, kind: str, cache: str = "no-store") -> None:
        self.send_response(HTTPStatus.OK)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(content)))
        self.send_header("Cache-Control", cache)
        self.send_header("Content-Security-Policy", "default-src 'self'; frame-ancestors 'none'")
        self.send_header("X-Content-Type-Options", "nosniff")
        self.end_headers()
        self.wfile.write(content)

    def _refuse(self, status: HTTPStatus, reason: str) -> None:
        content = reason.encode()
        self.send_response(status)
        self.send_header("Content-Type", "text/plain; charset=utf-8")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, format: str, *args: Any) -> None:
        """Requests are not logged: a page makes hundreds."""


def _host_of(header: str) -> str:
    """The host of a Host header, without port and brackets."""
    match = re.fullmatch(r"\[([^\]]*)\](?::\d+)?|([^:]*)(?::\d+)?", header.strip())
    return (match[1] or match[2] or "") if match else ""


def _is_loopback(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
