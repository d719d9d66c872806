"""Settings: dataclass fields that carry their range, unit and description.

The node's ROS parameters, the command line's options and the tables in the docs are made from them.
"""

from __future__ import annotations

import dataclasses
import math
from typing import Any, Iterator

from unifygeo_ros.core.errors import ConfigurationError


def setting(
    default: Any,
    description: str,
    *,
    minimum: float | None = None,
    maximum: float | None = None,
    choices: tuple[str, ...] = (),
    live: bool = False,
    acts: str = "",
    advanced: bool = False,
) -> Any:
    """Make a dataclass field that carries what the parameter, the option and the documentation need.

    Args:
        default: Its default, which also gives its type.
        description: What it sets, with the unit.
        minimum: Smallest value, None for no limit.
        maximum: Largest value, None for no limit.
        choices: All values, for text.
        live: Whether it may be changed while the node runs.
        acts: The condition under which it has an effect, such as "mode sequence". Empty: always.
        advanced: Whether it belongs to the method and not to the vehicle. Such settings are documented apart and left
            out of `--help`.
    """
    metadata = {
        "description": description,
        "minimum": minimum,
        "maximum": maximum,
        "choices": choices,
        "live": live,
        "acts": acts,
        "advanced": advanced,
    }
    return dataclasses.field(default=default, metadata=metadata)


def setting_fields(config: Any) -> Iterator[dataclasses.Field[Any]]:
    """The fields of a config dataclass, or of an instance, that `setting` made. Its others are constants."""
    return (item for item in dataclasses.fields(config) if item.metadata)


def check_settings(config: Any) -> None:
    """Check each setting of a config dataclass against its range and choices. Raises ConfigurationError."""
    for item in setting_fields(config):
        value, meta = getattr(config, item.name), item.metadata
        if isinstance(value, float) and not math.isfinite(value):
            raise ConfigurationError(f"{item.name} is {value}, must be a finite number")
        if isinstance(value, (int, float)) and not isinstance(value, bool):
            low, high = meta["minimum"], meta["maximum"]
            if (low is not None and value < low) or (high is not None and value > high):
                raise ConfigurationError(
                    f"{item.name} is {value}, must be between {'-∞' if low is None else low} and "
                    f"{'∞' if high is None else high} ({meta['description']})"
                )
        if meta["choices"] and value not in meta["choices"]:
            raise ConfigurationError(f"{item.name} is {value!r}, must be one of {', '.join(meta['choices'])}")


def check_only_live_changed(old: Any, new: Any, user: str) -> None:
    """Compare two configs of one dataclass: only live settings may differ while a `user` runs. Raises ValueError."""
    for item in setting_fields(old):
        if not item.metadata["live"] and getattr(new, item.name) != getattr(old, item.name):
            raise ValueError(f"{item.name} cannot be changed while a {user} runs")
