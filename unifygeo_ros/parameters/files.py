"""The node's parameter file as settings of a replay, so that a drive is replayed as the vehicle would localize it."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Iterator, Mapping

from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

from unifygeo_ros.core.errors import ConfigurationError, InputError
from unifygeo_ros.parameters.settings import PARAMETERS

NODE_NAME = "unifygeo_localizer"
GROUPS = ("camera", "localizer", "session", "tracker")
SHARED_PARAMETERS = ("backend", "precision", "device", "threads", "cache_dir", "camera_frame", "base_frame")
"""Of the node's own parameters, those that a replay has too."""


def read_node_parameters(path: Path) -> Mapping[str, Any]:
    """Values by field name: of the groups of settings, and of SHARED_PARAMETERS.

    Raises InputError for a file that is none, ConfigurationError for an unknown or mistyped parameter of a group.
    """
    try:
        content = YAML(typ="safe").load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, YAMLError) as error:
        raise InputError(f"{path}: cannot be read as YAML ({error}); give the node's parameter file") from error
    if not isinstance(content, dict):
        raise InputError(f"{path}: holds no parameters; give the node's parameter file")
    values: dict[str, Any] = {}
    for node, section in content.items():
        # As rcl does: a wildcard and the node's own name, the later of the two counts.
        if str(node).strip("/") in ("**", "*", NODE_NAME) and isinstance(section, dict):
            values.update(_flat(section.get("ros__parameters") or {}))
    if not values:
        raise InputError(f"{path}: holds no ros__parameters of {NODE_NAME} or /**; give the node's parameter file")
    fields = {}
    for name, value in values.items():
        spec = PARAMETERS.get(name)
        if spec is None:
            if name.split(".")[0] in GROUPS:
                raise ConfigurationError(f"{path}: {name} is no parameter of the node; see docs/reference/node.md")
            continue
        if spec.group in GROUPS or name in SHARED_PARAMETERS:
            fields[spec.field] = spec.checked(value)
    return fields


def _flat(section: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Nested mappings as dotted names."""
    for name, value in section.items():
        if isinstance(value, dict):
            yield from _flat(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value
