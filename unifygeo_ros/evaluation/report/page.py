"""The report: one self-contained HTML file."""

from __future__ import annotations

import math
import statistics
from dataclasses import dataclass
from pathlib import Path

import jinja2

from unifygeo_ros.core.covariance import chi2_quantile
from unifygeo_ros.core.files import write_text
from unifygeo_ros.evaluation.metrics.definitions import Consistency, Share
from unifygeo_ros.evaluation.metrics.drive import Drive
from unifygeo_ros.evaluation.metrics.summary import Judged, Summary
from unifygeo_ros.evaluation.report import figures
from unifygeo_ros.evaluation.report.drive_map import UNJUDGED_COLOUR, DriveMap, error_legend
from unifygeo_ros.evaluation.report.frame_details import FrameDetails
from unifygeo_ros.parameters.settings import PARAMETERS

GOOD, FAIR, BAD, PLAIN = "good", "fair", "bad", "plain"

LEAST_FIXES = 10.0
"""Independent fixes that a judgement of covariances needs. With 10, any ANEES from 0.48 to 1.71 is consistent."""
MUCH_IN_COMMON = 0.2
"""Share of the covariance that all fixes have in common from which it is said that the judgement is of one draw."""


@dataclass(frozen=True)
class Card:
    """One headline number."""

    title: str
    value: str
    note: str
    tone: str = PLAIN
    """How the number is to be judged."""


def write_report(
    path: Path,
    summary: Summary,
    drive: Drive,
    judged: Judged,
    drive_map: DriveMap | None,
    looks: tuple[FrameDetails, ...],
) -> None:
    """Write the page; the same summary gives the same page."""
    page = template("report.html.j2").render(
        s=summary,
        verdict=verdict(summary),
        cards=cards(summary),
        drive_map=drive_map,
        error_legend=error_legend(),
        unjudged_colour=UNJUDGED_COLOUR,
        reasons=[(reason, figures.reason_colour(reason), count) for reason, count in summary.counts.rejections.items()],
        looks=looks,
        changed=changed_settings(summary),
        unjudged=int((drive.fixed & ~drive.has_truth).sum()),
        figures={
            "time": figures.error_over_time(drive, judged, summary.criteria),
            "latency": figures.latency(summary),
        }
        | (
            {}
            if not summary.counts.with_truth
            else {
                "distribution": figures.error_distribution(drive, judged),
                "drift": figures.drift(drive, judged),
                "stanford": figures.stanford(judged, summary.criteria),
                "risk": figures.risk_coverage(drive, judged),
                "coverage": figures.coverage(summary, judged),
                "nees": figures.nees_distribution(judged),
                "ranks": figures.retrieval_ranks(drive),
            }
        ),
    )
    write_text(path, page)


def template(name: str) -> jinja2.Template:
    """A page's template, with the filters that it may use."""
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
    return environment.get_template(name)


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
        return f"{text} None of them has ground truth, so how good they are is not known.{_declared(summary)}"
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
        text += f" None is false; the 95% interval of their share reaches to {percent(false.upper)}."
    others = summary.covariance.without_false_fixes
    if wrong and others is not None:
        return f"{text} Apart from {'it' if wrong == 1 else 'them'}: {consistency_text(others)}"
    sentence = consistency_text(position)
    return f"{text} {sentence[0].upper()}{sentence[1:]}"


def _declared(summary: Summary) -> str:
    """The accuracy that the fixes claim, where there is nothing to compare it with."""
    sigmas = [sigma for sigma in summary.per_image.sigma_major_m if sigma is not None]
    if not sigmas:
        return ""
    radius = math.sqrt(chi2_quantile(0.95)) * statistics.median(sigmas)
    return f" Half of them declare to be within {metres(radius)} (95% radius)."


def consistency_text(consistency: Consistency) -> str:
    """Whether the covariances can be believed."""
    if consistency.effective_count < LEAST_FIXES:
        fixes = "fix is" if consistency.count == 1 else "fixes are"
        return f"{consistency.count} {fixes} too few to judge the declared covariances."
    shared = ""
    if consistency.common > MUCH_IN_COMMON:
        shared = f" {percent(consistency.common)} of them is the imagery's error, of which one place tells little."
    if consistency.within_bounds:
        return f"the declared covariances are consistent with the errors.{shared}"
    over = consistency.anees > consistency.upper
    if consistency.within_effective_bounds:
        kind = "over-confident" if over else "conservative"
        return (
            f"the declared covariances look {kind} (ANEES {consistency.anees:.2f}), but errors of "
            "neighbouring images are correlated: "
            f"the {consistency.count} fixes are worth about {consistency.effective_count:.0f} independent ones, for "
            f"which it is within the 95% bounds.{shared}"
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
    if summary.counts.with_truth:
        within = accuracy.within_of_images[accuracy.distances_m.index(5.0)]
        made.append(Card("R@5 m", percent(within), f"of {summary.counts.with_truth} images with ground truth"))
    if integrity.false_fix is not None:
        false = integrity.false_fix
        made.append(Card("false fixes", percent(false.value), share_text(false), false_fix_tone(false)))
    position = summary.covariance.position
    if position is not None:
        inside = summary.covariance.coverage[summary.covariance.ellipses.index(0.95)]
        assert inside is not None
        tone = consistency_tone(position)
        bounds = f"consistent: {position.effective_lower:.2f} – {position.effective_upper:.2f}"
        made.append(Card("ANEES", number(position.anees), bounds, tone))
        # The same fixes and the same question, so the same colour.
        made.append(Card("in the 95% ellipse", percent(inside.value), share_text(inside), tone))
    first, outage = availability.time_to_first_fix_s, availability.longest_outage
    made.append(Card("first fix after", "never" if first is None else seconds(first), _good_fix_note(summary)))
    if outage is not None:
        made.append(Card("longest outage", seconds(outage.duration_s), f"from {seconds(outage.start_s)} on"))
    if "total" in summary.latency_ms:
        total = summary.latency_ms["total"]
        made.append(Card("latency", f"{total.median:.0f} ms", f"95% within {total.p95:.0f} ms"))
    return made


def false_fix_tone(false: Share) -> str:
    """Good where the interval excludes 1%, bad from 1% on; no false fix among few fixes is neither."""
    if false.upper < 0.01:
        return GOOD
    return PLAIN if false.value == 0 else FAIR if false.value < 0.01 else BAD


def consistency_tone(consistency: Consistency) -> str:
    """Bad is over-confidence that correlated images do not explain; few fixes say nothing."""
    if consistency.effective_count < LEAST_FIXES:
        return PLAIN
    if consistency.within_effective_bounds:
        return GOOD
    return BAD if consistency.anees > consistency.effective_upper else FAIR


def _good_fix_note(summary: Summary) -> str:
    if not summary.counts.with_truth:
        return ""
    good = summary.availability.time_to_first_good_fix_s
    if good is None:
        return "none within the alert limit"
    return f"within {summary.criteria.alert_limit_m:g} m after {seconds(good)}"


def changed_settings(summary: Summary) -> dict[str, str]:
    """The settings that are not at their defaults, of the groups that act in a replay."""
    return {
        name: str(value)
        for name, spec in PARAMETERS.items()
        if spec.group in summary.identity and (value := summary.identity[spec.group][spec.field]) != spec.default
    }


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
