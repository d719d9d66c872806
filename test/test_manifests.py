"""The head of a manifest: the same refusals for bundles and indexes, each with its own error and remedy."""

from __future__ import annotations

import hashlib
import json
from typing import Any, Callable

import pytest

from unifygeo_ros.aerial.manifest import IndexManifest
from unifygeo_ros.core.errors import BundleError, IndexFormatError, UnifyGeoError
from unifygeo_ros.core.manifests import ManifestFormat
from unifygeo_ros.inference.bundle import BundleManifest

Read = Callable[[str, str], Any]
KINDS = [
    (BundleManifest.from_json, "unifygeo-bundle", BundleError, "`unifygeo-train export`", "export the bundle again"),
    (IndexManifest.from_json, "unifygeo-index", IndexFormatError, "`unifygeo index build`", "build the index again"),
]


@pytest.mark.parametrize(("read", "name", "error", "made_by", "remedy"), KINDS)
@pytest.mark.parametrize("text", ["", "{", "\x00", "[" * 100_000, '{"format": ' + "9" * 10_000 + "}"])
def test_read_manifest_refuses_text_that_is_not_json(
    read: Read, name: str, error: type[UnifyGeoError], made_by: str, remedy: str, text: str
) -> None:
    """Down to brackets and digits without end, which Python's parser refuses in ways of their own."""
    with pytest.raises(error, match=f"here: not valid JSON .*{remedy}"):
        read(text, "here")


@pytest.mark.parametrize(("read", "name", "error", "made_by", "remedy"), KINDS)
@pytest.mark.parametrize("content", [[], "text", None, {}, {"format": "unifygeo-other"}, {"format_version": 1}])
def test_read_manifest_refuses_other_json(
    read: Read, name: str, error: type[UnifyGeoError], made_by: str, remedy: str, content: Any
) -> None:
    with pytest.raises(error, match=f"here: not a {name} manifest; give a folder that {made_by} wrote"):
        read(json.dumps(content), "here")


@pytest.mark.parametrize(("read", "name", "error", "made_by", "remedy"), KINDS)
@pytest.mark.parametrize("version", [-1, 0, 99, "1", True, 2.0, None])
def test_read_manifest_refuses_another_version(
    read: Read, name: str, error: type[UnifyGeoError], made_by: str, remedy: str, version: Any
) -> None:
    with pytest.raises(error, match=f"here: format version {version}, this release reads [12]; {remedy}"):
        read(json.dumps({"format": name, "format_version": version}), "here")


FORMAT = ManifestFormat("stone", 3, "`quarry`", "cut it again", BundleError, upgrade="polish it")


def test_checksum_is_that_of_the_canonical_text_without_it() -> None:
    """Recomputed from the file's own lines, as `grep -v '"sha256"' | sha256sum` would."""
    text = FORMAT.text_of({"format": "stone", "format_version": 3, "weight": 7.5, "height": None})
    lines = text.splitlines(keepends=True)
    (stated,) = (line for line in lines if line.startswith('  "sha256"'))
    rest = "".join(line for line in lines if line is not stated)
    assert hashlib.sha256(rest.encode()).hexdigest() in stated
    assert FORMAT.parse(text, "here") == {"format": "stone", "format_version": 3, "weight": 7.5, "height": None}


@pytest.mark.parametrize(
    "change",
    [
        lambda text: text.replace("7.5", "7.50"),
        lambda text: text.replace("7.5", "8.5"),
        lambda text: text.replace("7.5", "NaN"),
        lambda text: text.replace("7.5", "9" * 5000),
        lambda text: text + " ",
        lambda text: text.replace('"weight": 7.5', '"weight": 7.5,\n  "weight": 7.5'),
        lambda text: text.replace('"sha256"', '"SHA256"'),
    ],
)
def test_changed_text_is_refused(change: Callable[[str], str]) -> None:
    text = FORMAT.text_of({"format": "stone", "format_version": 3, "weight": 7.5})
    assert change(text) != text
    with pytest.raises(BundleError, match="cut it again"):
        FORMAT.parse(change(text), "here")


def test_bundle_of_an_earlier_version_has_a_remedy_of_its_own() -> None:
    with pytest.raises(BundleError, match="format version 2, this release reads 3; polish it"):
        FORMAT.parse('{"format": "stone", "format_version": 2}', "here")
    with pytest.raises(BundleError, match="format version 4, this release reads 3; cut it again"):
        FORMAT.parse('{"format": "stone", "format_version": 4}', "here")
