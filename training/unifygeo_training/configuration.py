"""Config files: YAML, checked against the settings' types and ranges; an unknown key is an error."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import BaseModel, ValidationError

from unifygeo_ros.core.errors import ConfigurationError
from unifygeo_training.model.config import NetworkConfig

Settings = TypeVar("Settings", bound=BaseModel)


def read_settings(path: Path | str, kind: type[Settings], changes: Sequence[str] = ()) -> Settings:
    """Read one config file.

    Each of the changes, "section.key=value" with the value in YAML, takes the place of the file's. Raises
    ConfigurationError naming each key that does not fit.
    """
    try:
        raw = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise ConfigurationError(f"{path}: cannot be read as YAML ({error})") from error
    raw = raw or {}
    for change in changes:
        _change(raw, change)
    return check_settings(raw, kind, str(path))


def _change(raw: Any, change: str) -> None:
    key, equals, text = change.partition("=")
    *sections, last = key.split(".")
    if not equals or not all([*sections, last]):
        raise ConfigurationError(f"{change!r} is no change of a setting; write section.key=value")
    for section in sections:
        raw = raw.setdefault(section, {}) if isinstance(raw, dict) else None
    if not isinstance(raw, dict):
        raise ConfigurationError(f"{change!r}: {'.'.join(sections)} is no section")
    try:
        raw[last] = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ConfigurationError(f"{change!r}: the value cannot be read as YAML ({error})") from error


def check_settings(raw: Any, kind: type[Settings], source: str) -> Settings:
    """Settings from plain data. Raises ConfigurationError naming each key that does not fit."""
    try:
        return kind.model_validate(raw)
    except ValidationError as error:
        problems = []
        for item in error.errors():
            key = _key(item["loc"], raw)
            if item["type"] == "extra_forbidden":
                problems.append(f"unknown key {key}")
            else:
                problems.append(f"{key or 'file'} is {item['input']!r}: {item['msg']}")
        raise ConfigurationError(f"{source}: {'; '.join(problems)}") from error


def _key(location: tuple[int | str, ...], raw: Any) -> str:
    """The key as the file has it: without the kind that pydantic puts between a section and its keys."""
    parts = []
    for part in location:
        if isinstance(raw, dict) and part not in raw and part != location[-1]:
            continue
        parts.append(str(part))
        raw = raw.get(part) if isinstance(raw, dict) else None
    return ".".join(parts)


def read_network_config(path: Path | str) -> NetworkConfig:
    return read_settings(path, NetworkConfig)
