"""The one exception family of the project.

Every message names the value that was met, the limit it broke and the remedy, so that it can be
shown to a user as it is. A *rejection* of an image is not an error: it is the value
`unifygeo_ros.core.records.Rejection`.
"""


class UnifyGeoError(Exception):
    """Base of all errors that a user can cause and correct."""


class ConfigurationError(UnifyGeoError):
    """A parameter, option or configuration file holds a value that cannot be used."""


class InputError(UnifyGeoError):
    """An input file or message cannot be read or does not hold what it should."""


class BundleError(UnifyGeoError):
    """A model bundle is missing, damaged, or not the one that was asked for."""


class IndexFormatError(UnifyGeoError):
    """An index is missing, damaged, incomplete, or was made with other weights."""


class EngineError(UnifyGeoError):
    """An inference engine cannot be built, loaded or run on this machine."""
