"""Command line parsing: a parser that takes negative values, and options made from settings.

Options made from a settings dataclass take their default, range and description from it, so these have one home.
"""

from __future__ import annotations

import argparse
import difflib
import itertools
import re
import sys
from typing import Any, Callable, NoReturn, Sequence, TypeVar

from unifygeo_ros.core.errors import UnifyGeoError
from unifygeo_ros.core.settings import setting_fields

SettingsT = TypeVar("SettingsT")
ValueT = TypeVar("ValueT")

_OPTION = re.compile(r"--[A-Za-z][\w-]*")
_NEGATIVE_VALUE = re.compile(r"-\.?\d")


class CommandParser(argparse.ArgumentParser):
    """An argument parser for which `--datum -33.9,18.4` is a value, and whose errors are one line.

    `argparse` takes a value that begins with a minus for an option unless it is a single number. Subparsers made
    from this parser are of the same class.
    """

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        arguments = join_negative_values(sys.argv[1:] if args is None else args)
        self._refuse_unknown_options(arguments)
        return super().parse_known_args(arguments, namespace)

    def _refuse_unknown_options(self, arguments: Sequence[str]) -> None:
        """End with the nearest option's name: argparse reports what is missing before it reports what is unknown."""
        if self._subparsers is not None:
            return  # most options belong to a subparser, which looks at them itself
        known = self._option_string_actions
        for argument in itertools.takewhile(lambda word: word != "--", arguments):
            name = argument.partition("=")[0]
            if _OPTION.fullmatch(name) and not any(option.startswith(name) for option in known):
                near = difflib.get_close_matches(name, known, n=1)
                self.error(f"there is no option {name}" + (f"; did you mean {near[0]}?" if near else ""))

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: error: {message} (options: {self.prog} --help)\n")


def join_negative_values(arguments: Sequence[str]) -> list[str]:
    """Write `--option -1,2` as `--option=-1,2`, so that argparse takes `-1,2` for the option's value."""
    joined: list[str] = []
    for argument in arguments:
        if joined and _NEGATIVE_VALUE.match(argument) and _OPTION.fullmatch(joined[-1]):
            joined[-1] += "=" + argument
        else:
            joined.append(argument)
    return joined


def checked(convert: Callable[[str], ValueT]) -> Callable[[str], ValueT]:
    """An option's `type` whose UnifyGeoError becomes the parser's one-line error."""

    def convert_option(text: str) -> ValueT:
        try:
            return convert(text)
        except UnifyGeoError as error:
            raise argparse.ArgumentTypeError(str(error)) from error

    return convert_option


def numbers(text: str, counts: tuple[int, ...], wanted: str) -> list[float]:
    """Finite numbers separated by commas.

    Args:
        text: the option's value.
        counts: how many numbers there may be.
        wanted: the form of a good value, for the message.

    Raises:
        argparse.ArgumentTypeError: there are more or fewer of them, or one is not a finite number.
    """
    try:
        values = [float(part) for part in text.split(",")]
    except ValueError:
        values = []
    if len(values) not in counts or not all(abs(value) < float("inf") for value in values):
        raise argparse.ArgumentTypeError(f"{text!r} is not {wanted}")
    return values


def add_settings(parser: argparse.ArgumentParser, settings: type[Any]) -> None:
    """Add one option for each field of a settings dataclass, in a group of its own.

    Args:
        parser: takes the options.
        settings: a dataclass whose fields are made by `unifygeo_ros.core.settings.setting`.
    """
    summary = (settings.__doc__ or settings.__name__).splitlines()[0]
    if any(item.metadata["advanced"] for item in setting_fields(settings)):
        summary += " Advanced ones are not listed here but in docs/reference/parameters.md."
    group = parser.add_argument_group(settings.__name__, summary)
    for item in setting_fields(settings):
        meta, option = item.metadata, "--" + item.name.replace("_", "-")
        text = f"{meta['description']} ({item.default})".replace("%", "%%")
        if meta["advanced"]:
            text = argparse.SUPPRESS
        if isinstance(item.default, bool):
            action = group.add_argument(
                option, action=argparse.BooleanOptionalAction, default=item.default, help=text.rsplit(" (", 1)[0]
            )
            if meta["advanced"]:
                action.help = argparse.SUPPRESS  # Python 3.10 appends the default to it and shows it
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
    """Settings from the parsed options. Raises ConfigurationError for a value out of range."""
    return settings(**{item.name: getattr(args, item.name) for item in setting_fields(settings)})
