"""The head of a manifest: the same refusals for bundles and indexes, each with its own error and remedy."""

from __future__ import annotations

import json
from typing import Any, Callable

import pytest

from unifygeo_ros.aerial.manifest import IndexManifest
from unifygeo_ros.core.errors import BundleError, IndexFormatError, UnifyGeoError
from unifygeo_ros.inference.bundle import BundleManifest

Read = Callable[[str, str], Any]
KINDS = [
    (BundleManifest.from_json, "unifygeo-bundle", BundleError, "`unifygeo-train export`", "export the bundle again"),
    (IndexManifest.from_json, "unifygeo-index", IndexFormatError, "`unifygeo index build`", "build the index again"),
]


@pytest.mark.parametrize(("read", "name", "error", "made_by", "remedy"), KINDS)
@pytest.mark.parametrize("text", ["", "{", "\x00", "[" * 100_000, '{"format": ' + "9" * 10_000 + "}"])
def test_what_is_not_json(
    read: Read, name: str, error: type[UnifyGeoError], made_by: str, remedy: str, text: str
) -> None:
    """Down to brackets and digits without end, which Python's parser refuses in ways of their own."""
    with pytest.raises(error, match=f"here: not valid JSON .*{remedy}"):
        read(text, "here")


@pytest.mark.parametrize(("read", "name", "error", "made_by", "remedy"), KINDS)
@pytest.mark.parametrize("content", [[], "text", None, {}, {"format": "unifygeo-other"}, {"format_version": 1}])
def test_what_is_no_manifest(
    read: Read, name: str, error: type[UnifyGeoError], made_by: str, remedy: str, content: Any
) -> None:
    with pytest.raises(error, match=f"here: not a {name} manifest; give a folder that {made_by} wrote"):
        read(json.dumps(content), "here")


@pytest.mark.parametrize(("read", "name", "error", "made_by", "remedy"), KINDS)
@pytest.mark.parametrize("version", [0, 2, "1", None])
def test_another_version(
    read: Read, name: str, error: type[UnifyGeoError], made_by: str, remedy: str, version: Any
) -> None:
    with pytest.raises(error, match=f"here: format version {version}, this release reads 1; {remedy}"):
        read(json.dumps({"format": name, "format_version": version}), "here")
