"""Command line options made from the settings, so that their defaults, ranges and descriptions have one home."""

from __future__ import annotations

import argparse
import dataclasses
from typing import Any, TypeVar

SettingsT = TypeVar("SettingsT")


def add_settings(parser: argparse.ArgumentParser, settings: type[Any]) -> None:
    """Add one option for each field of a settings dataclass (`unifygeo_ros.core.settings.setting`), in a group."""
    summary = (settings.__doc__ or settings.__name__).splitlines()[0]
    group = parser.add_argument_group(settings.__name__, summary)
    for item in dataclasses.fields(settings):
        meta, option = item.metadata, "--" + item.name.replace("_", "-")
        text = f"{meta['description']} ({item.default})".replace("%", "%%")
        if isinstance(item.default, bool):
            group.add_argument(
                option, action=argparse.BooleanOptionalAction, default=item.default, help=text.rsplit(" (", 1)[0]
            )
        else:
            choices = meta["choices"] or None
            group.add_argument(
                option,
                type=type(item.default),
                default=item.default,
                choices=choices,
                metavar=None if choices else "VALUE",
                help=text,
            )


def settings_of(args: argparse.Namespace, settings: type[SettingsT]) -> SettingsT:
    """The settings that the options ask for. Raises ConfigurationError for a value out of range."""
    return settings(**{item.name: getattr(args, item.name) for item in dataclasses.fields(settings)})  # type: ignore[arg-type]
