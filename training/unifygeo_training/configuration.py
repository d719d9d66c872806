"""Config files: YAML, checked against the settings' types and ranges; an unknown key is an error."""

from __future__ import annotations

from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import BaseModel, ValidationError

from unifygeo_ros.errors import ConfigurationError
from unifygeo_training.model.config import NetworkConfig

Settings = TypeVar("Settings", bound=BaseModel)


def read_settings(path: Path | str, kind: type[Settings]) -> Settings:
    """Read one config file. Raises ConfigurationError naming each key that does not fit."""
    try:
        raw = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise ConfigurationError(f"{path}: cannot be read as YAML ({error})") from error
    return check_settings(raw or {}, kind, str(path))


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
