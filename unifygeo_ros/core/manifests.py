"""How every manifest begins: JSON, the name of its format, its version, and exactly the fields of its class."""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass
from typing import Any

from unifygeo_ros.core.errors import UnifyGeoError


@dataclass(frozen=True)
class ManifestFormat:
    """One kind of manifest. made_by: the command that writes it. remedy: how to get a good one. error: what is raised.

    version: a release reads this one alone.
    """

    name: str
    version: int
    made_by: str
    remedy: str
    error: type[UnifyGeoError]

    def parse(self, text: str, source: str) -> dict[str, Any]:
        """The entries of a manifest of this format and version. source: the file's name, for messages."""
        try:
            raw = json.loads(text)
        except (ValueError, RecursionError) as error:  # ValueError also for a number of thousands of digits
            raise self.error(f"{source}: not valid JSON ({error}); copy it again or {self.remedy}") from error
        if not isinstance(raw, dict) or raw.get("format") != self.name:
            raise self.error(f"{source}: not a {self.name} manifest; give a folder that {self.made_by} wrote")
        if raw.get("format_version") != self.version:
            raise self.error(
                f"{source}: format version {raw.get('format_version')}, this release reads {self.version}; "
                f"{self.remedy}"
            )
        return raw

    def check_fields(self, raw: dict[str, Any], kind: type[Any], source: str) -> None:
        """Raises unless the entries are the fields of the dataclass `kind`, all of them and no other."""
        fields = {item.name for item in dataclasses.fields(kind)}
        if set(raw) != fields:
            raise self.error(
                f"{source}: missing fields {sorted(fields - set(raw))}, unknown fields {sorted(set(raw) - fields)}; "
                f"{self.remedy}"
            )
