"""The node's parameters on a command line: `--params FILE` and `--set NAME=VALUE`, as `ros2 run` has them."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from unifygeo_ros.core.errors import ConfigurationError
from unifygeo_ros.parameters.names import check_names
from unifygeo_ros.parameters.settings import PARAMETERS, Settings, with_values


def add_parameter_options(parser: argparse.ArgumentParser) -> None:
    """Add `--params`, `--node` and `--set` to a command."""
    group = parser.add_argument_group("parameters of the node", "see docs/reference/parameters.md; later ones win.")
    group.add_argument(
        "--params", type=Path, action="append", default=[], metavar="FILE.yaml", help="the node's parameter file"
    )
    group.add_argument(
        "--node", metavar="NAME", help="whose section of the file counts, where it is for several: /robot1/NODE"
    )
    group.add_argument(
        "--set",
        dest="parameters",
        action="append",
        default=[],
        metavar="NAME=VALUE",
        help="one parameter, such as session.mode=sequence; overrides the file",
    )


def settings_of_options(args: argparse.Namespace) -> Settings:
    """The settings that `--params` and `--set` ask for; what they leave out has its default.

    Raises:
        InputError: A file cannot be read.
        ConfigurationError: A name is unknown, or a value does not fit.
    """
    from unifygeo_ros.parameters.files import read_parameter_file  # needs PyYAML

    values: dict[str, Any] = {}
    for path in args.params:
        values.update(read_parameter_file(path, args.node))
    for assignment in args.parameters:
        name, equals, text = assignment.partition("=")
        if not equals:
            raise ConfigurationError(f"--set {assignment}: has no value; write --set NAME=VALUE")
        try:
            check_names([name], only_ours=True)
            values[name] = _value(name, text)
        except ConfigurationError as error:
            raise ConfigurationError(f"--set {assignment}: {error}") from error
    return with_values(Settings(), values)


def _value(name: str, text: str) -> Any:
    """The value of a parameter. Unlike a file, where ROS refuses them, whole numbers serve as floats."""
    from unifygeo_ros.parameters.files import parameter_value

    kind = type(PARAMETERS[name].default)
    if kind is str:
        return text
    value = parameter_value(text)
    return PARAMETERS[name].checked(float(value) if kind is float and type(value) is int else value)
