"""What every manifest has in common: JSON in one canonical form, a format name, a version, and its own checksum."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Mapping

from unifygeo_ros.core.errors import UnifyGeoError

CHECKSUM = "sha256"
"""The entry of a manifest that holds the SHA-256 of its canonical text without that entry."""


@dataclass(frozen=True)
class ManifestFormat:
    """One kind of manifest."""

    name: str
    version: int
    """The only version that this release reads."""
    made_by: str
    """The command that writes it."""
    remedy: str
    """How to get a good one."""
    error: type[UnifyGeoError]
    """What is raised."""
    upgrade: str = ""
    """What to do with a manifest of an earlier version; empty: the remedy."""

    def text_of(self, content: Mapping[str, Any]) -> str:
        """The canonical text of a manifest with these entries, its checksum added."""
        return _canonical({**content, CHECKSUM: _digest(content)})

    def read(self, path: Path) -> str:
        """The text of a manifest file, unchanged to the last byte.

        Raises:
            UnifyGeoError: `error`, where the file cannot be read or is not UTF-8.
        """
        try:
            # newline="": text mode would turn a damaged line end into a good one.
            with path.open(encoding="utf-8", newline="") as stream:
                return stream.read()
        except (OSError, UnicodeDecodeError) as error:
            raise self.error(
                f"{path}: cannot be read ({error}); give a folder that {self.made_by} wrote, or {self.remedy}"
            ) from error

    def entries(self, text: str, source: str) -> dict[str, Any]:
        """The entries of a manifest of this format, of any version and not verified.

        Args:
            text: Content of the file.
            source: Name of the file, for messages.
        """
        try:
            raw = json.loads(text)
        except (ValueError, RecursionError) as error:  # ValueError also for a number of thousands of digits
            raise self.error(f"{source}: not valid JSON ({error}); copy it again or {self.remedy}") from error
        if not isinstance(raw, dict) or raw.get("format") != self.name:
            raise self.error(f"{source}: not a {self.name} manifest; give a folder that {self.made_by} wrote")
        return raw

    def parse(self, text: str, source: str) -> dict[str, Any]:
        """The entries of a manifest of this version without its checksum, which has been verified.

        The text itself is compared with its canonical form, so that any edit is detected, even of white space.

        Args:
            text: Content of the file.
            source: Name of the file, for messages.

        Raises:
            UnifyGeoError: `error`, for another format or version and for a text that does not match its checksum.
        """
        raw = self.entries(text, source)
        version = raw.get("format_version")
        if version != self.version or type(version) is not int:
            older = type(version) is int and 0 < version < self.version
            raise self.error(
                f"{source}: format version {version}, this release reads {self.version}; "
                f"{(self.upgrade if older else '') or self.remedy}"
            )
        stated = raw.pop(CHECKSUM, None)
        try:
            intact = stated == _digest(raw) and text == _canonical({**raw, CHECKSUM: stated})
        except (ValueError, RecursionError):  # NaN or Infinity, which JSON does not have; nesting
            intact = False
        if not intact:
            raise self.error(f"{source}: the content does not match its own checksum; copy it again or {self.remedy}")
        return raw

    def check_fields(self, raw: dict[str, Any], kind: type[Any], source: str) -> None:
        """Raises unless the entries are the fields of the dataclass `kind`, all of them and no other."""
        fields = {item.name for item in dataclasses.fields(kind)}
        if set(raw) != fields:
            raise self.error(
                f"{source}: missing fields {sorted(fields - set(raw))}, unknown fields {sorted(set(raw) - fields)}; "
                f"{self.remedy}"
            )


def _canonical(content: Mapping[str, Any]) -> str:
    return json.dumps(content, indent=2, sort_keys=True, allow_nan=False) + "\n"


def _digest(content: Mapping[str, Any]) -> str:
    return hashlib.sha256(_canonical(content).encode()).hexdigest()
