"""Paths as people write them."""

from __future__ import annotations

from pathlib import Path

from unifygeo_ros.core.errors import ConfigurationError


def home_path(text: str | Path) -> Path:
    """A path in which a leading `~` or `~user` is that user's home folder.

    Raises:
        ConfigurationError: The home folder is not known: HOME is not set and the system does not know the user, as in a
            container that is started with a foreign user number; or there is no such user.
    """
    try:
        return Path(text).expanduser()
    except RuntimeError as error:
        raise ConfigurationError(
            f"{text}: the home folder is not known ({error}); set HOME, or write the whole path"
        ) from error


def folder_option(given: Path | None, parameter: str, option: str, name: str) -> Path:
    """A folder that an option gives, or else a parameter.

    Raises:
        ConfigurationError: Neither does.
    """
    if given is None and not parameter:
        raise ConfigurationError(f"{option} is missing; give it, or the parameter {name} in the parameter file")
    return given or home_path(parameter)
