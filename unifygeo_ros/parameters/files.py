"""ROS parameter files, read without ROS and by the rules of rcl's own reader.

The rules are those of `rcl_yaml_param_parser` and `rcl_arguments`, which read `--params-file` for every node:

- A section belongs to a node if its name matches the node's fully qualified name. `/**` stands for any number of
  namespaces, `/*` for exactly one name; the first slash may be left out. A name may be split over nested mappings.
- All sections that match count, in the order of the file, and the later value wins. A section named by a wildcard does
  not give way to one that names the node.
- Parameter names may be nested mappings or dotted names.
- Plain scalars are booleans (`true`, `yes`, `on`, `y` …), whole numbers as C writes them, floats, or text.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any, Iterator

import yaml

from unifygeo_ros.core.errors import ConfigurationError, InputError
from unifygeo_ros.parameters.names import check_names
from unifygeo_ros.parameters.settings import NODE_NAME, PARAMETERS, Settings, with_values

_KEY = "ros__parameters"
_TOKEN = re.compile(r"\*\*?|[A-Za-z_][A-Za-z0-9_]*")
_TRUE = frozenset(["y", "Y", "yes", "Yes", "YES", "true", "True", "TRUE", "on", "On", "ON"])
_FALSE = frozenset(["n", "N", "no", "No", "NO", "false", "False", "FALSE", "off", "Off", "OFF"])
_WHOLE = re.compile(r"[+-]?(0[xX][0-9a-fA-F]+|0[0-7]*|[1-9][0-9]*)")
_FLOAT = re.compile(r"[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][+-]?[0-9]+)?")
_NOT_FINITE = re.compile(r"[+-]?(\.?inf|infinity|\.?nan)", re.IGNORECASE)
_PLAIN = "plain"


class _Loader(yaml.SafeLoader):
    """Marks plain scalars, which are neither quoted nor tagged, in place of resolving them by YAML's own rules."""

    def resolve(self, kind: Any, value: Any, implicit: Any) -> str:
        if kind is yaml.ScalarNode and implicit[0]:
            return _PLAIN
        return str(super().resolve(kind, value, implicit))  # type: ignore[no-untyped-call]


def read_settings_file(path: Path, node: str | None = None) -> Settings:
    """Read the settings of the localizer from a parameter file; what the file leaves out has its default.

    Args:
        path: The YAML file.
        node: The node's fully qualified name, as for `read_parameter_file`.

    Raises:
        InputError: The file cannot be read, or holds nothing for the node.
        ConfigurationError: A parameter is unknown, or its value does not fit.
    """
    return with_values(Settings(), read_parameter_file(path, node))


def read_parameter_file(path: Path, node: str | None = None) -> dict[str, Any]:
    """Read the localizer's parameters from a parameter file, by name.

    Args:
        path: The YAML file.
        node: The node's fully qualified name, "/robot1/unifygeo_localizer". None: `/unifygeo_localizer`, or the
            namespaced localizer that the file names if it names exactly one.

    Returns:
        Values by parameter name: those of the localizer. Parameters of rclpy itself, such as `use_sim_time`, and in
        sections for several nodes parameters of other nodes are left out.

    Raises:
        InputError: The file cannot be read, or has no section for the node.
        ConfigurationError: A parameter is unknown (the message gives the nearest name) or of the wrong type.
    """
    sections = list(_sections(path))
    node = node or _localizer_name(path, [name for name, _ in sections])
    matching = [(name, values) for name, values in sections if _matches(name, node)]
    if not matching:
        listed = ", ".join(name for name, _ in sections) or "none"
        raise InputError(
            f"{path}: has no parameters for {node}; its sections: {listed}. Name a section {NODE_NAME}, or /**/"
            f"{NODE_NAME} for any namespace"
        )
    values: dict[str, Any] = {}
    for name, section in matching:
        try:
            check_names(section, only_ours=not name.endswith("*"))
        except ConfigurationError as error:
            raise ConfigurationError(f"{path}: {error}") from error
        values.update(section)
    try:
        return {name: PARAMETERS[name].checked(value) for name, value in values.items() if name in PARAMETERS}
    except ConfigurationError as error:
        raise ConfigurationError(f"{path}: {error}") from error


def parameter_value(text: str) -> Any:
    """Convert a plain scalar to a value as rcl does: a boolean, whole number, float or text."""
    if text in _TRUE or text in _FALSE:
        return text in _TRUE
    if _WHOLE.fullmatch(text):
        digits = text.lstrip("+-")
        base = 16 if digits[:2].lower() == "0x" else 8 if digits.startswith("0") else 10
        return int(text, base)
    if _FLOAT.fullmatch(text):
        return float(text)
    if _NOT_FINITE.fullmatch(text):
        return float(text.replace(".", ""))
    return text


def _sections(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """The sections of a file in the order in which rcl applies them: (node name or pattern, values by dotted name).

    Sections of the same name count as one, in the place of the first.
    """
    try:
        text = path.read_text(encoding="utf-8")
        if any(isinstance(token, yaml.AliasToken) for token in yaml.scan(text, Loader=yaml.SafeLoader)):
            raise InputError(f"{path}: holds a YAML alias (*name), which ROS does not accept; write the value out")
        documents = list(yaml.compose_all(text, Loader=_Loader))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        reason = " ".join(str(error).split())
        raise InputError(
            f"{path}: cannot be read as a parameter file ({reason}); quote names that begin with *"
        ) from error
    merged: dict[str, dict[str, Any]] = {}
    for document in documents:
        if not isinstance(document, yaml.MappingNode):
            raise InputError(f"{path}: holds no parameters; give the node's parameter file")
        for name, section in _named_sections(path, document, ""):
            merged.setdefault(name, {}).update(_flat(path, section, ""))
    yield from merged.items()


def _named_sections(path: Path, node: yaml.MappingNode, prefix: str) -> Iterator[tuple[str, yaml.MappingNode]]:
    for key, value in node.value:
        where = f"{path}, line {key.start_mark.line + 1}"
        if not isinstance(key, yaml.ScalarNode) or not isinstance(value, yaml.MappingNode):
            raise InputError(f"{where}: a value stands outside {_KEY}; put it below NODE: {_KEY}:")
        if key.value == _KEY:
            if not prefix:
                raise InputError(f"{where}: {_KEY} belongs to no node; put it below the node's name")
            yield prefix, value
            continue
        name = prefix + "/" + key.value.strip("/")
        if not all(_TOKEN.fullmatch(part) for part in name[1:].split("/")):
            raise InputError(
                f"{where}: {key.value!r} is not a node name; give letters, digits and _, or * or ** for a whole part"
            )
        yield from _named_sections(path, value, name)


def _flat(path: Path, section: yaml.MappingNode, prefix: str) -> dict[str, Any]:
    """Values by dotted name."""
    values: dict[str, Any] = {}
    for key, value in section.value:
        name = f"{prefix}{key.value}"
        where = f"{path}, line {key.start_mark.line + 1}"
        if isinstance(value, yaml.MappingNode):
            if not value.value:
                raise InputError(f"{where}: {name} is empty; remove it")
            values.update(_flat(path, value, f"{name}."))
        elif isinstance(value, yaml.SequenceNode):
            values[name] = [_scalar(where, name, item) for item in value.value]
        else:
            values[name] = _scalar(where, name, value)
    return values


def _scalar(where: str, name: str, node: yaml.Node) -> Any:
    if not isinstance(node, yaml.ScalarNode):
        raise InputError(f"{where}: {name} holds a list in a list, which no parameter is")
    if node.tag != _PLAIN:
        return node.value
    if node.value == "":
        raise InputError(f"{where}: {name} has no value; give one or remove the line")
    return parameter_value(node.value)


def _localizer_name(path: Path, sections: list[str]) -> str:
    """The one localizer that a file is for, `/unifygeo_localizer` where it names none or only patterns."""
    default = f"/{NODE_NAME}"
    named = [name for name in sections if name.endswith(default) and "*" not in name]
    if len(named) > 1:
        raise InputError(f"{path}: is for several nodes, {', '.join(named)}; say which one by --node")
    return named[0] if named else default


def _matches(pattern: str, node: str) -> bool:
    parts = [
        "(/[^/]+)*" if part == "**" else "/[^/]+" if part == "*" else f"/{re.escape(part)}"
        for part in pattern[1:].split("/")
    ]
    return re.fullmatch("".join(parts), node) is not None
