"""One tile after the other from a server of web tiles, no faster than it likes.

Written to the standard library's `urllib.request`, which knows proxies and certificates; the robot's package gets no
further dependency for a command that runs once for each region.
"""

from __future__ import annotations

import email.utils
import http.client
import logging
import time
import urllib.error
import urllib.parse
import urllib.request
from dataclasses import dataclass
from typing import Callable

import unifygeo_ros
from unifygeo_ros.core.errors import ConfigurationError, InputError
from unifygeo_ros.core.settings import check_settings, setting
from unifygeo_ros.images.files import decode_rgba

logger = logging.getLogger(__name__)

_MISSING = (204, 404, 410)
"""The server has no such tile: the place lies outside its imagery."""

_TRANSIENT = (408, 425, 429, 500, 502, 503, 504)
"""Worth asking again, later."""

_SLOWEST_S = 10.0
"""A server that says 429 is asked half as often from then on, at most this seldom."""

_MOST_BYTES = 16 << 20
"""Largest tile that is read."""

_SECRETS = ("key", "token", "secret", "signature", "password", "auth")
"""A parameter of a URL with one of these in its name is not written into any file."""

_NOT_FOR_STORAGE = {
    "tile.openstreetmap.org": "its tile usage policy forbids bulk downloads, and it has no imagery",
    "google.com": "Google's terms forbid storing its tiles",
    "googleapis.com": "Google's terms forbid storing its tiles",
    "virtualearth.net": "Bing's terms forbid storing its tiles",
    "arcgisonline.com": "Esri's terms allow its basemaps to be stored by its own export only",
    "mapbox.com": "Mapbox's terms forbid downloading its tiles for other programs",
}
"""Hosts whose terms do not allow what this command does, and why."""


@dataclass(frozen=True)
class FetchSettings:
    """How a server is asked for tiles."""

    rate_hz: float = setting(4.0, "most requests a second; one connection is used", minimum=0.01, maximum=20.0)
    attempts: int = setting(6, "requests for one tile before the download stops", minimum=1, maximum=20)
    timeout_s: float = setting(30.0, "longest wait for a server that says nothing", minimum=1.0, maximum=600.0)
    longest_wait_s: float = setting(
        300.0, "longest wait that a server may ask for (Retry-After)", minimum=0.0, maximum=86_400.0
    )
    most_tiles: int = setting(
        20_000, "tiles of one download; more must be asked for by this option", minimum=1, maximum=100_000_000
    )

    def __post_init__(self) -> None:
        check_settings(self)


@dataclass(frozen=True)
class TileSource:
    """Where tiles come from, and under which terms. Tiles are those of spherical Mercator."""

    url: str
    """With `{z}`, `{x}` and `{y}`, or `{-y}` for rows counted from the south. WMTS: TILEMATRIX, TILECOL and TILEROW."""
    attribution: str
    """The text that the provider asks for, such as "© swisstopo"."""
    licence: str
    """Name of the licence, and where it stands."""

    def __post_init__(self) -> None:
        parts = urllib.parse.urlsplit(self.url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ConfigurationError(f"{self.url}: is no URL of http or https; give one with {{z}}, {{x}} and {{y}}")
        lacking = [name for name in ("{z}", "{x}") if name not in self.url]
        if lacking or ("{y}" in self.url) == ("{-y}" in self.url):
            raise ConfigurationError(
                f"{self.url}: lacks {' and '.join(lacking) or 'either {y} or {-y}'}; write {{z}} for the zoom, {{x}} "
                "for the column and {y} for the row ({-y} if rows are counted from the south), and the rest as it is"
            )
        for name, text in (("attribution", self.attribution), ("licence", self.licence)):
            if not text.strip():
                raise ConfigurationError(
                    f"--{name} is empty; write what the provider asks for: it goes into the index and its reports"
                )
        for host, reason in _NOT_FOR_STORAGE.items():
            if parts.hostname == host or parts.hostname.endswith("." + host):
                raise ConfigurationError(
                    f"{parts.hostname}: {reason}; take openly licensed imagery (docs/how-to/imagery_sources.md)"
                )

    def tile_url(self, zoom: int, x: int, y: int) -> str:
        """URL of one tile; y is counted from the north."""
        values = {"{z}": zoom, "{x}": x, "{y}": y, "{-y}": (1 << zoom) - 1 - y}
        url = self.url
        for name, value in values.items():
            url = url.replace(name, str(value))
        return url

    @property
    def public_url(self) -> str:
        """The URL without user, password and keys."""
        parts = urllib.parse.urlsplit(self.url)
        shown = []
        for item in parts.query.split("&"):
            name, equals, value = item.partition("=")
            secret = equals and any(word in name.lower() for word in _SECRETS)
            shown.append(f"{name}=…" if secret else item if equals else name + value)
        host = parts.hostname or ""
        port = f":{parts.port}" if parts.port else ""
        return urllib.parse.urlunsplit((parts.scheme, host + port, parts.path, "&".join(shown), ""))


class TileServer:
    """Asks for tiles, one at a time."""

    def __init__(
        self,
        source: TileSource,
        contact: str,
        settings: FetchSettings,
        sleep: Callable[[float], None] = time.sleep,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """contact: e-mail address or web page of who downloads, for the User-Agent."""
        if not ("@" in contact or contact.startswith(("http://", "https://"))) or not contact.isprintable():
            raise ConfigurationError(
                f"--contact {contact!r}: give an e-mail address or a web page, by which the server's operator can "
                "reach you before blocking you"
            )
        self._source = source
        self._settings = settings
        self._headers = {"User-Agent": f"unifygeo/{unifygeo_ros.__version__} (+{contact})", "Accept": "image/*"}
        self._interval_s = 1 / settings.rate_hz
        self._sleep = sleep
        self._clock = clock
        self._next_s = clock()

    def get(self, zoom: int, x: int, y: int) -> bytes | None:
        """One tile as it was sent, a whole image; None where the server has none.

        Raises:
            InputError: The server refuses, or sends nothing usable in as many attempts as are allowed.
        """
        name = f"{self._source.public_url}, tile {zoom}/{x}/{y}"
        problem = ""
        for attempt in range(self._settings.attempts):
            wait_s = self._next_s - self._clock()
            if wait_s > 0:
                self._sleep(wait_s)
            self._next_s = self._clock() + self._interval_s
            asked_s: float | None = None
            try:
                data = self._request(self._source.tile_url(zoom, x, y))
                if data is not None:
                    _check_image(data)
                return data
            except urllib.error.HTTPError as error:
                problem = f"status {error.code} {error.reason}"
                if error.code in _MISSING:
                    return None
                if error.code not in _TRANSIENT:
                    raise InputError(
                        f"{name}: {problem}; check the URL, the key if it takes one, and the provider's terms"
                    ) from error
                asked_s = _retry_after_s(error.headers.get("Retry-After"))
                if error.code == 429:
                    self._interval_s = min(2 * self._interval_s, max(_SLOWEST_S, self._interval_s))
            except (OSError, http.client.HTTPException) as error:  # no connection, a cut one, a timeout
                problem = str(error) or type(error).__name__
            except InputError as error:  # a page of words, or an image that was cut off
                problem = str(error)
            if asked_s is not None and asked_s > self._settings.longest_wait_s:
                problem = f"{problem}, and asks to wait {asked_s:.0f} s"
                break
            backoff_s = 2.0**attempt
            self._next_s = max(self._next_s, self._clock() + max(backoff_s, asked_s or 0.0))
            logger.info("%s: %s; asking again in %.0f s", name, problem, self._next_s - self._clock())
        raise InputError(
            f"{name}: {problem} ({self._settings.attempts} attempts at most); what is there is kept: give the same "
            "command again later"
        )

    def _request(self, url: str) -> bytes | None:
        request = urllib.request.Request(url, headers=self._headers)
        with urllib.request.urlopen(request, timeout=self._settings.timeout_s) as response:
            data: bytes = response.read(_MOST_BYTES + 1)
            if response.status in _MISSING:
                return None
            stated = response.headers.get("Content-Length")
        if len(data) > _MOST_BYTES:
            raise InputError(f"more than {_MOST_BYTES >> 20} MiB, which is no tile")
        if stated is not None and stated.isdecimal() and len(data) != int(stated):
            raise InputError(f"{len(data)} bytes of {stated} came")
        return data


def _check_image(data: bytes) -> None:
    """Raises InputError for what is no whole image; the beginning of an HTML, XML or JSON answer is quoted."""
    if data.lstrip().startswith((b"<", b"{")):
        words = " ".join(data[:200].decode("utf-8", errors="replace").split())
        raise InputError(f"the server sends no image but {words[:60]!r}; check the URL, and the key if it takes one")
    decode_rgba(data, "what the server sends")


def _retry_after_s(text: str | None) -> float | None:
    """Seconds that a Retry-After header asks to wait: a number, or a date."""
    if text is None:
        return None
    if text.strip().isdecimal():
        return float(text)
    try:
        return max(0.0, email.utils.parsedate_to_datetime(text).timestamp() - time.time())
    except (TypeError, ValueError):
        return None
