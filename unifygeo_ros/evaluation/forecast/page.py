"""The forecast as one self-contained HTML file, as GeoJSON, and in words."""

from __future__ import annotations

import json
from pathlib import Path

from unifygeo_ros.aerial.map_index import MapIndex
from unifygeo_ros.aerial.mosaic import Extent
from unifygeo_ros.core.files import write_text
from unifygeo_ros.evaluation.forecast.availability import AT_RISK, confirmed
from unifygeo_ros.evaluation.forecast.forecast import FirstFix, Forecast, Stretch
from unifygeo_ros.evaluation.report.drive_map import draw_route
from unifygeo_ros.evaluation.report.figures import forecast_along_route
from unifygeo_ros.evaluation.report.page import FAIR, GOOD, PLAIN, Card, template

_COLOURS = ((0.1, "#cc3232"), (0.25, "#db7b2b"), (0.4, "#e7b416"), (0.55, "#99c140"), (1.0, "#2dc937"))
_NOT_COVERED = "#5b6470"


def write_page(path: Path, found: Forecast, index: MapIndex, speed_m_s: float) -> None:
    """Write the HTML file. Raises OSError, and IndexFormatError where the index is damaged."""
    along_m = found.route.along_m
    sequences = {
        f"sequence, heading {heading}": found.found.covered * confirmed(found.availability, along_m, heading)
        for heading in found.first_fix
    }
    known = found.found.covered
    page = template("forecast.html.j2").render(
        f=found,
        verdict=verdict(found, speed_m_s),
        cards=_cards(found, speed_m_s),
        drive_map=draw_route(found.route.points_m[known], index, lambda extent: _layers(found, extent)),
        legend=_legend(),
        at_risk=AT_RISK,
        chart=forecast_along_route(
            along_m, found.availability, sequences, [(one.start_m, one.end_m) for one in found.at_risk]
        ),
    )
    write_text(path, page)


def write_geojson(path: Path, found: Forecast) -> None:
    """Write the stretches as LineStrings with what is expected of them. Raises OSError.

    `stroke` is what viewers colour lines by.
    """
    features = [
        {
            "type": "Feature",
            "geometry": {
                "type": "LineString",
                "coordinates": [[round(lon, 7), round(lat, 7)] for lat, lon in found.route.geodetic_deg[one.rows]],
            },
            "properties": {
                "from_m": round(one.start_m, 1),
                "to_m": round(one.end_m, 1),
                "covered": round(one.covered, 3),
                "single_heading_given": round(one.availability, 3),
                "sequence_heading_given": round(one.sequence["given"], 3),
                "sequence_heading_searched": round(one.sequence["searched"], 3),
                "likeness": None if one.likeness is None else round(one.likeness, 3),
                "at_risk": one.reason,
                "stroke": colour(one),
                "stroke-width": 5,
            },
        }
        for one in found.stretches
    ]
    write_text(path, json.dumps({"type": "FeatureCollection", "features": features}, ensure_ascii=False) + "\n")


def verdict(found: Forecast, speed_m_s: float) -> str:
    """What is to be expected, in a few plain sentences."""
    route = found.route
    text = f"{_metres(route.length_m)}, {_percent(found.covered)} of it on the index. "
    single = float(found.availability.mean())
    text += f"A single image whose heading is given gets a fix in {_percent(single)} of the places. "
    for heading, first in found.first_fix.items():
        text += f"A sequence, heading {heading}: {_first(first, speed_m_s)}, "
        text += f"fixes on {_percent(found.share(heading))} of the route. "
    risks = found.at_risk
    length_m = sum(one.end_m - one.start_m for one in risks)
    return text + (f"{_metres(length_m)} in {len(risks)} stretches are at risk." if risks else "No stretch is at risk.")


def _first(first: FirstFix, speed_m_s: float) -> str:
    if first.median_m is None:
        return "the first fix hardly comes on this route"
    text = f"the first fix is expected after {_metres(first.median_m)} ({_seconds(first.median_m / speed_m_s)}"
    late = "later than the route is long" if first.late_m is None else f"after {_metres(first.late_m)}"
    return f"{text} at {speed_m_s:g} m/s; in one of ten drives {late})"


def _cards(found: Forecast, speed_m_s: float) -> list[Card]:
    risk_m = sum(one.end_m - one.start_m for one in found.at_risk)
    made = [
        Card("route", _metres(found.route.length_m), found.route.name),
        Card("on the index", _percent(found.covered), "", GOOD if found.covered == 1 else FAIR),
        Card("single images with a fix", _percent(float(found.availability.mean())), "heading given"),
        Card("at risk", _metres(risk_m), f"{len(found.at_risk)} stretches", FAIR)
        if risk_m
        else Card("at risk", "none", "", PLAIN),
    ]
    for heading, first in found.first_fix.items():
        value = "–" if first.median_m is None else _metres(first.median_m)
        note = "" if first.median_m is None else f"{_seconds(first.median_m / speed_m_s)} at {speed_m_s:g} m/s"
        made.append(Card(f"first fix, heading {heading}", value, note))
        made.append(Card("route with fixes", _percent(found.share(heading)), f"sequence, heading {heading}"))
    return made


def colour(one: Stretch) -> str:
    """Of a stretch, by the expected share of single images with a fix."""
    if not one.covered:
        return _NOT_COVERED
    return next(colour for limit, colour in _COLOURS if one.availability <= limit)


def _legend() -> list[tuple[str, str]]:
    texts = [f"up to {limit:.0%}" for limit, _ in _COLOURS[:-1]] + [f"over {_COLOURS[-2][0]:.0%}"]
    return [*zip(texts, (colour for _, colour in _COLOURS), strict=True), ("not on the index", _NOT_COVERED)]


def _layers(found: Forecast, extent: Extent) -> tuple[tuple[str, str], ...]:
    drawn = []
    for one in found.stretches:
        points = extent.pixels(found.route.points_m[one.rows])
        data = "M" + "L".join(f"{x:.1f} {y:.1f}" for x, y in points.tolist() if x == x)
        title = f"{one.start_m:.0f} to {one.end_m:.0f} m: {_percent(one.availability)} of single images"
        title += f"; {one.reason}" if one.reason else ""
        drawn.append(
            f'<path class="casing" d="{data}"/>'
            f'<path class="stretch" stroke="{colour(one)}" d="{data}"><title>{title}</title></path>'
        )
    (x, y) = extent.pixels(found.route.points_m[found.found.covered][:1])[0]
    start = f'<circle cx="{x:.1f}" cy="{y:.1f}" r="{extent.mark:.2f}" fill="#fff"><title>start</title></circle>'
    return ("stretches", "".join(drawn)), ("start", start)


def _percent(value: float) -> str:
    """A forecast has no decimals."""
    return f"{value:.0%}"


def _metres(value: float) -> str:
    return f"{value:.0f} m" if value < 10_000 else f"{value / 1e3:.1f} km"


def _seconds(value: float) -> str:
    return f"{value:.0f} s" if value < 120 else f"{value / 60:.0f} min"
