"""Kinds of towns: what distinguishes a city of large blocks from a suburb or an industrial estate."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from unifygeo_ros.core.errors import ConfigurationError


@dataclass(frozen=True)
class TownKind:
    """What a kind of town draws from."""

    name: str
    blocks: Mapping[str, float]
    """Share of each character of block, see `unifygeo_training.towns.blocks`."""
    lattice_m: tuple[float, float] | None = None
    """Shortest and longest distance of crossings on a turned, uneven lattice; None: crossings scattered 52 to 92 m
    apart."""
    bend: float = 1.0
    """Factor on the bends of the streets."""
    width: float = 1.0
    """Factor on the widths of carriageways and footways."""
    storeys: float = 1.0
    """Factor on the number of storeys."""
    street_trees: float = 0.5
    """Share of the sides of streets with trees."""


MIXED = TownKind(
    "mixed",
    {"houses": 0.32, "rows": 0.24, "flats": 0.14, "works": 0.07, "park": 0.09, "mixed": 0.10, "square": 0.04},
)
"""The kind of the first releases, of the held-out towns and of the demonstration."""

KINDS = {
    kind.name: kind
    for kind in (
        MIXED,
        TownKind(
            "city",
            {"blocks": 0.62, "flats": 0.08, "works": 0.04, "park": 0.07, "mixed": 0.07, "square": 0.12},
            lattice_m=(62.0, 130.0),
            bend=0.35,
            width=1.35,
            street_trees=0.3,
        ),
        TownKind(
            "old_town",
            {"blocks": 0.35, "rows": 0.45, "park": 0.06, "mixed": 0.06, "square": 0.08},
            width=0.85,
            storeys=1.2,
            street_trees=0.15,
        ),
        TownKind(
            "suburb",
            {"houses": 0.72, "rows": 0.1, "park": 0.1, "mixed": 0.08},
            lattice_m=(70.0, 140.0),
            street_trees=0.6,
        ),
        TownKind(
            "estate",
            {"flats": 0.5, "works": 0.28, "park": 0.1, "mixed": 0.12},
            lattice_m=(80.0, 150.0),
            bend=0.6,
            width=1.25,
            storeys=1.4,
            street_trees=0.4,
        ),
    )
}

VARIED = ("city", "city", "old_town", "suburb", "estate", "mixed")
"""Kinds of `towns render --kind varied`, by seed."""


def kind_of(name: str, seed: int) -> TownKind:
    """A kind by name; "varied" draws it by the seed. Raises ConfigurationError for a name that is none."""
    if name == "varied":
        name = VARIED[seed % len(VARIED)]
    if name not in KINDS:
        raise ConfigurationError(f"kind of town {name!r} is not known; choose one of {', '.join((*KINDS, 'varied'))}")
    return KINDS[name]
