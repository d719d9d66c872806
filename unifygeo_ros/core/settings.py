"""Settings: dataclass fields that carry their range, unit and description.

The node's ROS parameters, the command line's options and the tables in the docs are made from them.
"""

from __future__ import annotations

import dataclasses
import math
from typing import Any

from unifygeo_ros.core.errors import ConfigurationError


def setting(
    default: Any,
    description: str,
    *,
    minimum: float | None = None,
    maximum: float | None = None,
    choices: tuple[str, ...] = (),
    live: bool = False,
) -> Any:
    """A dataclass field with its range. live: may be changed while the node runs."""
    metadata = {"description": description, "minimum": minimum, "maximum": maximum, "choices": choices, "live": live}
    return dataclasses.field(default=default, metadata=metadata)


def check_settings(config: Any) -> None:
    """Check each field of a config dataclass against its type, range and choices. Raises ConfigurationError."""
    for item in dataclasses.fields(config):
        value, meta = getattr(config, item.name), item.metadata
        if isinstance(value, float) and not math.isfinite(value):
            raise ConfigurationError(f"{item.name} is {value}, must be a finite number")
        if isinstance(value, (int, float)) and not isinstance(value, bool):
            low, high = meta.get("minimum"), meta.get("maximum")
            if (low is not None and value < low) or (high is not None and value > high):
                raise ConfigurationError(
                    f"{item.name} is {value}, must be between {'-∞' if low is None else low} and "
                    f"{'∞' if high is None else high} ({meta['description']})"
                )
        if meta.get("choices") and value not in meta["choices"]:
            raise ConfigurationError(f"{item.name} is {value!r}, must be one of {', '.join(meta['choices'])}")


def check_only_live_changed(old: Any, new: Any, user: str) -> None:
    """Compare two configs of one dataclass: only live settings may differ while a `user` runs. Raises ValueError."""
    for item in dataclasses.fields(old):
        if not item.metadata["live"] and getattr(new, item.name) != getattr(old, item.name):
            raise ValueError(f"{item.name} cannot be changed while a {user} runs")
