"""The parameters as Markdown tables: `python -m unifygeo_ros.parameters.table PAGE` rewrites those of a page."""

from __future__ import annotations

import math
import sys
from pathlib import Path

from unifygeo_ros.core.errors import InputError
from unifygeo_ros.parameters.settings import PARAMETERS, ParameterSpec

BEGIN = "<!-- parameters: made by `python -m unifygeo_ros.parameters.table docs/reference/node.md` -->"
END = "<!-- end of parameters -->"
_TITLES = {
    "node": "The node",
    "camera": "The camera's mount",
    "localizer": "The localizer and its gates",
    "session": "Sources and times",
    "tracker": "The tracker (`session.mode: sequence`)",
}


def parameter_tables() -> str:
    """One table a group."""
    groups: dict[str, list[ParameterSpec]] = {}
    for spec in PARAMETERS.values():
        groups.setdefault(spec.group, []).append(spec)
    parts = []
    for group, specs in groups.items():
        lines = [
            f"### {_TITLES.get(group, group)}",
            "",
            "| parameter | default | range | live | |",
            "|---|---|---|---|---|",
        ]
        lines += [
            f"| `{spec.name}` | {_value(spec.default)} | {_range(spec)} | {'yes' if spec.live else ''} "
            f"| {spec.description.replace('|', chr(92) + '|')} |"
            for spec in specs
        ]
        parts.append("\n".join(lines))
    return "\n\n".join(parts)


def with_tables(page: str) -> str:
    """A page with the tables between its markers renewed. Raises InputError for a page without markers."""
    head, begin, rest = page.partition(BEGIN)
    _, end, tail = rest.partition(END)
    if not begin or not end:
        raise InputError(f"the page lacks the line {BEGIN!r} or {END!r}; put both where the tables belong")
    return f"{head}{BEGIN}\n\n{parameter_tables()}\n\n{END}{tail}"


def _value(value: object) -> str:
    if value == "":
        return "empty"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, float) and abs(value) == math.pi / 2:
        return "π/2" if value > 0 else "−π/2"
    # 5.0, not 5: a parameter file must say it so.
    return str(value)


def _range(spec: ParameterSpec) -> str:
    if spec.choices:
        return ", ".join(spec.choices)
    if spec.minimum is None and spec.maximum is None:
        return ""
    return f"{_bound(spec.minimum)} … {_bound(spec.maximum)}"


def _bound(value: float | None) -> str:
    return "" if value is None else f"{value:g}"


if __name__ == "__main__":
    file = Path(sys.argv[1])
    file.write_text(with_tables(file.read_text(encoding="utf-8")), encoding="utf-8")
