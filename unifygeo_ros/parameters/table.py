"""The parameters as Markdown tables: `python -m unifygeo_ros.parameters.table PAGE` rewrites those of a page."""

from __future__ import annotations

import math
import sys
from pathlib import Path

from unifygeo_ros.core.errors import InputError
from unifygeo_ros.parameters.settings import PARAMETERS, ParameterSpec

BEGIN = "<!-- parameters: made by `python -m unifygeo_ros.parameters.table docs/reference/parameters.md` -->"
END = "<!-- end of parameters -->"
_TITLES = {
    "node": "The node",
    "camera": "The camera's mount",
    "rig": "A rig of several cameras",
    "localizer": "The localizer and its gates",
    "session": "Sessions",
    "odometry": "The odometry's errors",
    "tracker": "The tracker (`session.mode: sequence`)",
    "map_to_odom": "The pose between images and map → odom (`session.mode: sequence`)",
}


def parameter_tables() -> str:
    """The table of the vehicle's parameters, then one table of advanced ones for each group."""
    vehicle = [spec for spec in PARAMETERS.values() if not spec.advanced]
    parts = [
        "## Parameters of a vehicle\n\nThese are all that an integrator has to know.\n\n" + _table(vehicle),
        "## Advanced parameters\n\nThey belong to the method. Their defaults were chosen on validation drives; "
        "change one only with a replay that shows what it does.",
    ]
    groups: dict[str, list[ParameterSpec]] = {}
    for spec in PARAMETERS.values():
        if spec.advanced:
            groups.setdefault(spec.group, []).append(spec)
    parts += [f"### {_TITLES.get(group, group)}\n\n{_table(specs)}" for group, specs in groups.items()]
    return "\n\n".join(parts)


def _table(specs: list[ParameterSpec]) -> str:
    # Three columns: a page of the site has room for no more.
    lines = ["| parameter | default | meaning |", "|---|---|---|"]
    lines += [f"| `{spec.name}` | {_value(spec.default)} | {_meaning(spec)} |" for spec in specs]
    return "\n".join(lines)


def _meaning(spec: ParameterSpec) -> str:
    """What it sets, its range, when it acts, and whether a change acts at once."""
    parts = [spec.description.replace("|", "\\|"), _range(spec)]
    parts += [f"acts: {spec.acts}" if spec.acts else "", "live" if spec.live else ""]
    return " · ".join(filter(None, parts))


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
        return "values: " + ", ".join(spec.choices)
    if spec.minimum is None and spec.maximum is None:
        return ""
    return f"range: {_bound(spec.minimum)} … {_bound(spec.maximum)}"


def _bound(value: float | None) -> str:
    return "" if value is None else f"{value:g}"


if __name__ == "__main__":
    file = Path(sys.argv[1])
    file.write_text(with_tables(file.read_text(encoding="utf-8")), encoding="utf-8")
