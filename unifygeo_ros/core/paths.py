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
