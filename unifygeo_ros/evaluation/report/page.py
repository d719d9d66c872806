"""The report: one HTML file that needs nothing else to be read."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from pathlib import Path

import jinja2

from unifygeo_ros.evaluation.metrics.definitions import Consistency, Share
from unifygeo_ros.evaluation.metrics.drive import Drive
from unifygeo_ros.evaluation.metrics.summary import Judged, Summary
from unifygeo_ros.evaluation.report import figures
from unifygeo_ros.evaluation.report.close_look import CloseLook
from unifygeo_ros.evaluation.report.drive_map import DriveMap, error_legend
from unifygeo_ros.localization.config import CameraMount, LocalizerConfig
from unifygeo_ros.sessions.session import SessionConfig
from unifygeo_ros.tracking.config import TrackerConfig

GOOD, FAIR, BAD, PLAIN = "good", "fair", "bad", "plain"


@dataclass(frozen=True)
class Card:
    """One headline number. tone: how it is to be taken."""

    title: str
    value: str
    note: str
    tone: str = PLAIN


def write_report(
    path: Path, summary: Summary, drive: Drive, judged: Judged, drive_map: DriveMap | None, looks: tuple[CloseLook, ...]
) -> None:
    """Write the page; the same summary gives the same page."""
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("unifygeo_ros.evaluation.report"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(
        percent=percent, metres=metres, number=number, seconds=seconds, share=share_text, reason=reason_text
    )
    page = environment.get_template("report.html.j2").render(
        s=summary,
        verdict=verdict(summary),
        cards=cards(summary),
        drive_map=drive_map,
        error_legend=error_legend(),
        reasons=[(reason, figures.reason_colour(reason), count) for reason, count in summary.counts.rejections.items()],
        looks=looks,
        changed=changed_settings(summary),
        figures={
            "time": figures.error_over_time(drive, judged, summary.criteria),
            "distribution": figures.error_distribution(drive, judged),
            "drift": figures.drift(drive, judged),
            "stanford": figures.stanford(judged, summary.criteria),
            "risk": figures.risk_coverage(drive, judged),
            "coverage": figures.coverage(summary, judged),
            "nees": figures.nees_distribution(judged),
            "ranks": figures.retrieval_ranks(drive),
            "latency": figures.latency(summary),
        },
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(page, encoding="utf-8")


def verdict(summary: Summary) -> str:
    """What happened, in a few plain sentences."""
    counts, error = summary.counts, summary.accuracy.error_m
    if not counts.images:
        return "The bag held no image that could be read."
    if not counts.fixes:
        reasons = ", ".join(f"{reason_text(reason)} {count}" for reason, count in counts.rejections.items())
        return f"None of the {counts.images} images got a fix ({reasons})."
    text = f"{counts.fixes} of {counts.images} images got a fix ({percent(counts.fixes / counts.images)})."
    if error is None:
        return f"{text} None of them has ground truth, so how good they are is not known."
    text += f" Half of the {counts.judged} fixes with ground truth lie within {metres(error.median)} of it, "
    text += f"95% within {metres(error.p95)}."
    false, position = summary.integrity.false_fix, summary.covariance.position
    assert false is not None  # there are judged fixes
    assert position is not None
    wrong = round(false.value * false.count)
    if wrong:
        text += f" {wrong} {'is' if wrong == 1 else 'are'} false: beyond {summary.criteria.alert_limit_m:g} m and "
        text += f"outside {'its' if wrong == 1 else 'their'} own 99.9% ellipse."
    else:
        text += f" None is false; with 95% confidence fewer than {percent(false.upper)} are."
    honest = summary.covariance.without_false_fixes
    if wrong and honest is not None:
        return f"{text} Apart from {'it' if wrong == 1 else 'them'}: {consistency_text(honest)}"
    sentence = consistency_text(position)
    return f"{text} {sentence[0].upper()}{sentence[1:]}"


def consistency_text(consistency: Consistency) -> str:
    """Whether the covariances can be believed."""
    if consistency.within_bounds:
        return "the declared covariances are honest."
    over = consistency.anees > consistency.upper
    if consistency.within_effective_bounds:
        kind = "over-confident" if over else "too careful"
        return (
            f"The declared covariances look a little {kind}, but no more than neighbouring images' likeness explains."
        )
    factor = math.sqrt(consistency.anees) if over else 1 / math.sqrt(consistency.anees)
    return (
        f"the declared standard deviations are {'too small' if over else 'too large'} by a factor of {factor:.1f} "
        "on average."
    )


def cards(summary: Summary) -> list[Card]:
    """The headline numbers."""
    availability, accuracy, integrity = summary.availability, summary.accuracy, summary.integrity
    made = []
    if availability.fix is not None:
        made.append(
            Card("fixes", percent(availability.fix.value), f"{summary.counts.fixes} of {summary.counts.images} images")
        )
    if accuracy.error_m is not None:
        made += [
            Card("median error", metres(accuracy.error_m.median), f"RMSE {metres(accuracy.error_m.rmse)}"),
            Card("95% within", metres(accuracy.error_m.p95), f"99% within {metres(accuracy.error_m.p99)}"),
        ]
    within = accuracy.within_of_images[accuracy.distances_m.index(5.0)]
    made.append(Card("R@5 m", percent(within), f"of {summary.counts.known} images with ground truth"))
    if integrity.false_fix is not None:
        false = integrity.false_fix
        tone = GOOD if false.upper < 0.01 else FAIR if false.value < 0.01 else BAD
        made.append(Card("false fixes", percent(false.value), share_text(false), tone))
    position = summary.covariance.position
    if position is not None:
        tone = GOOD if position.within_bounds else FAIR if position.within_effective_bounds else BAD
        made.append(Card("ANEES", number(position.anees), f"honest: {position.lower:.2f} – {position.upper:.2f}", tone))
        inside = summary.covariance.coverage[summary.covariance.ellipses.index(0.95)]
        assert inside is not None
        tone = GOOD if 0.90 <= inside.value <= 0.99 else BAD
        made.append(Card("in the 95% ellipse", percent(inside.value), share_text(inside), tone))
    first, outage = availability.time_to_first_fix_s, availability.longest_outage
    made.append(Card("first fix after", "never" if first is None else seconds(first), _good_fix_note(summary)))
    if outage is not None:
        made.append(Card("longest outage", seconds(outage.duration_s), f"from {seconds(outage.start_s)} on"))
    if "total" in summary.latency_ms:
        total = summary.latency_ms["total"]
        made.append(Card("latency", f"{total.median:.0f} ms", f"95% within {total.p95:.0f} ms"))
    return made


def _good_fix_note(summary: Summary) -> str:
    good = summary.availability.time_to_first_good_fix_s
    if good is None:
        return "none within the alert limit"
    return f"within {summary.criteria.alert_limit_m:g} m after {seconds(good)}"


def changed_settings(summary: Summary) -> dict[str, str]:
    """The settings that are not at their defaults."""
    changed = {}
    groups: dict[str, CameraMount | LocalizerConfig | SessionConfig | TrackerConfig] = {
        "camera": CameraMount(),
        "localizer": LocalizerConfig(),
        "session": SessionConfig(),
        "tracker": TrackerConfig(),
    }
    for group, defaults in groups.items():
        for name, default in dataclasses.asdict(defaults).items():
            value = summary.identity[group][name]
            if value != default:
                changed[name] = str(value)
    return changed


def percent(value: float | None) -> str:
    if value is None:
        return "–"
    # 100% and 0% are said only of all and none.
    digits = 0 if value in (0, 1) else 2 if min(value, 1 - value) < 0.0095 else 1
    return f"{100 * value:.{digits}f}%"


def metres(value: float | None) -> str:
    if value is None:
        return "–"
    return f"{value:.2f} m" if abs(value) < 10 else f"{value:.1f} m" if abs(value) < 100 else f"{value:.0f} m"


def number(value: float | None) -> str:
    return "–" if value is None else f"{value:.2f}" if abs(value) < 100 else f"{value:.0f}"


def seconds(value: float | None) -> str:
    if value is None:
        return "–"
    return f"{value:.1f} s" if value < 100 else f"{int(value // 60)} min {value % 60:.0f} s"


def share_text(share: Share | None) -> str:
    """A share as count and interval."""
    if share is None:
        return "–"
    count = round(share.value * share.count)
    return f"{count} of {share.count}; 95% interval {percent(share.lower)} – {percent(share.upper)}"


def reason_text(reason: str) -> str:
    return reason.replace("_", " ")
