"""The charts of the report, each as one SVG string."""

from __future__ import annotations

import io
import math
from typing import Any, Callable, Mapping

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from scipy import stats

from unifygeo_ros.core.arrays import Float64
from unifygeo_ros.core.covariance import chi2_quantile
from unifygeo_ros.evaluation.metrics import definitions as metrics
from unifygeo_ros.evaluation.metrics.drive import Drive, dead_reckoning
from unifygeo_ros.evaluation.metrics.summary import DISTANCES_M, ELLIPSES, Judged, Summary
from unifygeo_ros.evaluation.settings import Criteria

# The palette of Okabe and Ito, which colour-blind people can distinguish, too.
BLUE, ORANGE, GREEN, RED = "#0072b2", "#e69f00", "#009e73", "#d55e00"
PURPLE, SKY, YELLOW, GREY = "#cc79a7", "#56b4e9", "#f0e442", "#8a8f98"
INK, FAINT = "#1f2933", "#d9dee4"

REASON_COLOURS: Mapping[str, str] = {
    "ambiguous": ORANGE,
    "uncertain": YELLOW,
    "low_score": PURPLE,
    "off_map": SKY,
    "prior_conflict": RED,
    "camera_mismatch": RED,
    "unfamiliar": BLUE,
    "searching": "#b3b8c0",
    "lost": "#5b6470",
}
"""Other reasons, which are faults of the input, are grey."""

_STYLE: Any = {
    "svg.fonttype": "none",  # text stays text: small, sharp, can be searched
    "svg.hashsalt": "unifygeo",  # else the ids are random
    "font.family": "sans-serif",
    "font.size": 9.5,
    "axes.edgecolor": "#9aa5b1",
    "axes.labelcolor": INK,
    "axes.titlesize": 10.5,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#e8ecf0",
    "grid.linewidth": 0.8,
    "xtick.color": "#52606d",
    "ytick.color": "#52606d",
    "text.color": INK,
    "legend.frameon": False,
    "legend.fontsize": 9,
    "lines.linewidth": 1.6,
    "figure.facecolor": "none",
    "axes.facecolor": "none",
    "savefig.facecolor": "none",
}
_MANY_POINTS = 4000
"""More points than this are drawn as pixels inside the SVG."""


def reason_colour(reason: str) -> str:
    return REASON_COLOURS.get(reason, GREY)


def _svg(width: float, height: float, draw: Callable[[Figure], None]) -> str:
    """Draw on a figure of width × height inches."""
    with matplotlib.rc_context(_STYLE):
        figure = Figure(figsize=(width, height), layout="constrained")
        draw(figure)
        buffer = io.StringIO()
        figure.savefig(buffer, format="svg", dpi=150, metadata={"Date": None, "Creator": None})
    text = buffer.getvalue()
    return text[text.index("<svg") :]


def _nothing(axes: Axes, why: str) -> None:
    axes.set_axis_off()
    axes.text(0.5, 0.5, why, ha="center", va="center", color="#52606d", transform=axes.transAxes)


def error_over_time(drive: Drive, judged: Judged, criteria: Criteria) -> str:
    """Error and declared accuracy over time, along and across the track; rejections as ticks by reason."""
    if not drive.has_truth.any():
        return _declared_over_time(drive, criteria)

    def draw(figure: Figure) -> None:
        top, along_axes, cross_axes, strip = figure.subplots(
            4, 1, sharex=True, gridspec_kw={"height_ratios": [3, 1.6, 1.6, 0.55]}
        )
        time = drive.time_s[judged.frame_index]
        dense = len(time) > _MANY_POINTS
        top.set_title("Error of the fixes over the drive")
        if len(time):
            radius = math.sqrt(chi2_quantile(0.95)) * judged.sigma_major_m
            top.vlines(time, 0, radius, color=SKY, alpha=0.35, lw=1.6, rasterized=dense, label="declared 95% radius")
            fine = ~judged.false
            top.plot(time[fine], judged.errors_m[fine], ".", ms=4, color=BLUE, rasterized=dense, label="error")
            if judged.false.any():
                top.plot(time[judged.false], judged.errors_m[judged.false], "X", ms=6, color=RED, label="false fix")
            # One far outlier would flatten everything else; it is named at the edge instead.
            reach = float(max(np.percentile(judged.errors_m, 95), np.percentile(radius, 98)))
            limit = max(1.0, 1.25 * reach)
            for moment, error in zip(time, judged.errors_m, strict=True):
                if error > limit:
                    top.text(moment, limit, f"{error:.0f} m", ha="center", va="top", fontsize=7.5, color=RED)
            _alert_limit(top, criteria.alert_limit_m, limit)
        top.set_ylabel("error, m")
        if top.get_legend_handles_labels()[0]:
            top.legend(ncol=4, loc="lower right", bbox_to_anchor=(1, 1.0), borderaxespad=0.2)
        tracked = ~np.isnan(drive.track_yaw_rad[judged.frame_index])
        along, cross = metrics.along_and_cross_track(
            judged.vectors_m[tracked], drive.track_yaw_rad[judged.frame_index][tracked]
        )
        for axes, values, name in ((along_axes, along, "along track, m"), (cross_axes, cross, "to the left, m")):
            axes.axhline(0, color="#9aa5b1", lw=0.8)
            axes.plot(time[tracked], values, ".", ms=3.2, color=GREEN, rasterized=dense)
            believable = values[~judged.false[tracked]]
            if len(believable):
                reach = max(1.0, 1.2 * float(np.percentile(np.abs(believable), 99)))
                axes.set_ylim(-reach, reach)
            axes.set_ylabel(name)
        _outcome_strip(strip, drive)
        strip.set_xlabel("time since the first image, s")

    return _svg(11.6, 6.6, draw)


def forecast_along_route(along_m: Float64, single: Float64, sequences: Mapping[str, Float64], risks: Any) -> str:
    """What is expected along a route.

    Args:
        along_m: float64 (n,), of the route's points.
        single: float64 (n,), expected share of single images with a fix.
        sequences: the same in mode sequence, by a name for the legend.
        risks: (start, end) of each stretch at risk, metres.
    """

    def draw(figure: Figure) -> None:
        axes = figure.subplots()
        for number, (start_m, end_m) in enumerate(risks):
            axes.axvspan(start_m, end_m, color=RED, alpha=0.12, lw=0, label="" if number else "at risk")
        axes.plot(along_m, 100 * single, color=BLUE, label="single images, heading given")
        for (name, values), colour in zip(sequences.items(), (GREEN, ORANGE), strict=False):
            axes.plot(along_m, 100 * values, color=colour, label=name)
        axes.set(xlabel="along the route, m", ylabel="expected images with a fix, %", ylim=(-2, 102))
        axes.set_xlim(float(along_m[0]), float(along_m[-1]))
        axes.legend(ncol=4, loc="lower right", bbox_to_anchor=(1, 1.0), borderaxespad=0.2)

    return _svg(11.6, 3.4, draw)


def _alert_limit(axes: Axes, alert_limit_m: float, limit: float) -> None:
    """Set the upper end of an axis of errors. The alert limit is drawn where it is near, and named where it is not."""
    if alert_limit_m <= 1.6 * limit:
        limit = max(limit, 1.1 * alert_limit_m)
        axes.axhline(alert_limit_m, color=RED, lw=1, ls="--", label="alert limit")
    else:
        axes.text(0.995, 0.97, f"alert limit {alert_limit_m:g} m is above this axis", transform=axes.transAxes,
                  ha="right", va="top", fontsize=8, color="#52606d")  # fmt: skip
    axes.set_ylim(0, limit)


def _declared_over_time(drive: Drive, criteria: Criteria) -> str:
    """Declared accuracy over time, for a drive without ground truth."""

    def draw(figure: Figure) -> None:
        top, strip = figure.subplots(2, 1, sharex=True, gridspec_kw={"height_ratios": [3, 0.55]})
        top.set_title("Declared accuracy of the fixes over the drive")
        time = drive.time_s[drive.fixed]
        if len(time):
            radius = math.sqrt(chi2_quantile(0.95)) * metrics.major_sigmas(drive.covariance_m2[drive.fixed])
            top.plot(time, radius, ".", ms=4, color=BLUE, rasterized=len(time) > _MANY_POINTS)
            _alert_limit(top, criteria.alert_limit_m, max(1.0, 1.25 * float(np.percentile(radius, 98))))
        top.set_ylabel("declared 95% radius, m")
        _outcome_strip(strip, drive)
        strip.set_xlabel("time since the first image, s")

    return _svg(11.6, 4.0, draw)


def _outcome_strip(axes: Axes, drive: Drive) -> None:
    """One coloured bar an image: fix or reason, as wide as the time to the next."""
    axes.grid(False)
    axes.set_yticks([])
    axes.set_ylabel("outcome", rotation=0, ha="right", va="center")
    for side in ("left", "bottom"):
        axes.spines[side].set_visible(False)
    if not len(drive):
        return
    steps = np.diff(drive.time_s)
    usual = float(np.median(steps)) if len(steps) else 1.0
    widths = np.minimum(np.append(steps, usual), 2 * usual)
    for outcome in dict.fromkeys(drive.outcomes):
        chosen = np.array([o == outcome for o in drive.outcomes])
        spans = list(zip(drive.time_s[chosen].tolist(), widths[chosen].tolist(), strict=True))
        colour = BLUE if outcome == "fix" else reason_colour(outcome)
        axes.broken_barh(spans, (0, 1), facecolors=colour, rasterized=len(spans) > _MANY_POINTS)
    axes.set_ylim(0, 1)


def error_distribution(drive: Drive, judged: Judged) -> str:
    """Share of fixes and of all images within each error, and the accuracy that was declared."""

    def draw(figure: Figure) -> None:
        axes = figure.subplots()
        axes.set_title("Distribution of the errors and of the declared radius")
        known = int(drive.has_truth.sum())
        errors, of_fixes = metrics.error_distribution(judged.errors_m)
        if len(errors):
            axes.step(errors, of_fixes, where="post", color=BLUE, label="of the fixes")
            axes.step(errors, of_fixes * len(judged.errors_m) / known, where="post", color=GREEN, label="of all images")
        radius = math.sqrt(chi2_quantile(0.95)) * metrics.major_sigmas(drive.covariance_m2[drive.fixed])
        radii, shares = metrics.error_distribution(radius)
        if len(radii):
            axes.step(
                radii, shares * len(radius) / len(drive), where="post", color=GREY, ls="--", lw=1.3,
                label="declared 95% radius,\nof all images",
            )  # fmt: skip
        for distance in DISTANCES_M:
            axes.axvline(distance, color=FAINT, lw=1, zorder=0)
        axes.set_xscale("log")
        axes.set_xlim(0.1, 100)
        axes.set_ylim(0, 1.02)
        ticks = (0.1, *DISTANCES_M, 100.0)
        axes.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
        axes.minorticks_off()
        axes.yaxis.set_major_formatter(matplotlib.ticker.PercentFormatter(1.0))
        axes.set_xlabel("metres")
        if axes.lines[len(DISTANCES_M) :]:
            axes.legend(loc="lower right")

    return _svg(5.7, 3.7, draw)


def stanford(judged: Judged, criteria: Criteria) -> str:
    """Error against protection level, with the regions of the integrity diagram."""

    def draw(figure: Figure) -> None:
        axes = figure.subplots()
        axes.set_title("Stanford diagram")
        limit = criteria.alert_limit_m
        top = 2.5 * limit
        axes.fill([0, limit, 0], [0, limit, limit], color=GREEN, alpha=0.10, lw=0)
        axes.fill([0, limit, limit], [0, 0, limit], color=YELLOW, alpha=0.22, lw=0)
        axes.fill([limit, top, top, limit], [0, 0, limit, limit], color=RED, alpha=0.16, lw=0)
        axes.fill([0, limit, top, 0], [limit, limit, top, top], color=GREY, alpha=0.10, lw=0)
        axes.plot([0, top], [0, top], color=INK, lw=0.9)
        axes.axhline(limit, color=RED, lw=0.9, ls="--")
        axes.plot([limit, limit], [0, limit], color=RED, lw=0.9, ls="--")
        inside = 0.985 * top
        axes.plot(
            np.minimum(judged.errors_m, inside), np.minimum(judged.protection_m, inside), ".", ms=5, color=BLUE,
            alpha=0.55, mec="none", rasterized=len(judged.errors_m) > _MANY_POINTS,
        )  # fmt: skip
        regions = metrics.stanford_regions(judged.errors_m, judged.protection_m, limit)
        text: dict[str, Any] = {"fontsize": 8.5, "color": INK}
        axes.text(0.04 * limit, 0.93 * limit, f"nominal {regions.nominal}", va="top", **text)
        axes.text(0.96 * limit, 0.07 * limit, f"misleading {regions.misleading}", ha="right", **text)
        axes.text(0.97 * top, 0.07 * limit, f"hazardous {regions.hazardous}", ha="right", weight="bold", **text)
        axes.text(0.04 * limit, 0.96 * top, f"not available {regions.unavailable}", va="top", **text)
        axes.text(
            0.97 * top, 1.08 * limit, f"not available, misleading {regions.unavailable_misleading}", ha="right", **text
        )
        axes.set_xlim(0, top)
        axes.set_ylim(0, top)
        axes.set_xlabel("error, m")
        axes.set_ylabel("protection level, m")

    return _svg(5.7, 4.3, draw)


def risk_coverage(drive: Drive, judged: Judged) -> str:
    """False and gross fixes when only the most confident fixes are kept."""

    def draw(figure: Figure) -> None:
        axes = figure.subplots()
        axes.set_title("Risk when only the most confident fixes are used")
        for failed, name, colour in (
            (judged.gross, "beyond the alert limit", ORANGE),
            (judged.false, "false fix", RED),
        ):
            curve = metrics.risk_coverage(judged.sigma_major_m, failed, max(int(drive.has_truth.sum()), 1))
            if curve is None:
                _nothing(axes, "no fix with ground truth")
                return
            axes.step(curve.coverage, curve.risk, where="post", color=colour, label=name)
        if not judged.gross.any():
            axes.text(0.5, 0.5, "none of the fixes fails", transform=axes.transAxes, ha="center", color="#52606d")
        axes.set_xlim(0, min(1.0, 1.04 * float(axes.dataLim.x1)))
        axes.set_ylim(0, max(0.02, 1.15 * float(axes.dataLim.y1)))
        for axis in (axes.xaxis, axes.yaxis):
            axis.set_major_formatter(matplotlib.ticker.PercentFormatter(1.0, decimals=None))
        axes.set_xlabel("images that keep their fix, by rising declared σ")
        axes.set_ylabel("share of them that fail")
        axes.legend(loc="upper left")

    return _svg(5.7, 4.3, draw)


def coverage(summary: Summary, judged: Judged) -> str:
    """Truths inside the ellipses against what the ellipses promise."""

    def draw(figure: Figure) -> None:
        axes = figure.subplots()
        axes.set_title("Truths inside the declared ellipses")
        axes.plot([0, 1], [0, 1], color=INK, lw=0.9, ls=":")
        promised = np.linspace(0.01, 0.999, 120)
        if len(judged.nees):
            limits = [chi2_quantile(share, metrics.DIMENSIONS) for share in promised]
            found = np.searchsorted(np.sort(judged.nees), limits, side="right") / len(judged.nees)
            axes.plot(promised, found, color=BLUE)
            for content, share in zip(ELLIPSES, summary.covariance.coverage, strict=True):
                assert share is not None  # there are fixes
                below, above = share.value - share.lower, share.upper - share.value
                axes.errorbar(content, share.value, [[below], [above]], fmt="o", ms=4, color=BLUE, capsize=3, lw=1.2)
        axes.text(0.03, 0.93, "conservative", color="#52606d", fontsize=8.5)
        axes.text(0.97, 0.05, "over-confident", color="#52606d", fontsize=8.5, ha="right")
        axes.set_xlim(0, 1)
        axes.set_ylim(0, 1.02)
        for axis in (axes.xaxis, axes.yaxis):
            axis.set_major_formatter(matplotlib.ticker.PercentFormatter(1.0))
        axes.set_xlabel("promised by the covariance")
        axes.set_ylabel("found")

    return _svg(5.7, 3.9, draw)


def nees_distribution(judged: Judged) -> str:
    """Histogram of the normalised squared errors against χ² with two degrees of freedom."""

    def draw(figure: Figure) -> None:
        axes = figure.subplots()
        axes.set_title("Normalised squared error of the fixes (NEES)")
        if not len(judged.nees):
            _nothing(axes, "no fix with ground truth")
            return
        edges = np.linspace(0, 16, 33)
        clipped = np.minimum(judged.nees, edges[-1] - 1e-9)
        axes.hist(
            clipped, edges.tolist(), density=True, color=SKY, alpha=0.8, label="fixes; the last bar holds all beyond"
        )
        grid = np.linspace(0, 16, 300)
        axes.plot(
            grid, stats.chi2.pdf(grid, metrics.DIMENSIONS), color=INK, lw=1.3, label="consistent covariances: χ²(2)"
        )
        axes.axvline(chi2_quantile(0.95), color=GREY, lw=1, ls="--")
        axes.text(chi2_quantile(0.95) + 0.15, axes.get_ylim()[1] * 0.62, "95%", fontsize=8.5, color="#52606d")
        axes.set_xlim(0, 16)
        axes.set_xlabel("NEES")
        axes.set_ylabel("density")
        axes.legend(loc="upper right")

    return _svg(5.7, 3.9, draw)


def retrieval_ranks(drive: Drive) -> str:
    """Share of images whose right tile is among the first k, before and after re-ranking."""

    def draw(figure: Figure) -> None:
        axes = figure.subplots()
        axes.set_title("Finding the right tile")
        if not drive.ranked.any():
            _nothing(axes, "no image with ground truth on the map was searched")
            return
        lines = (
            (drive.ranks_covering_retrieved, drive.rank_depth, BLUE, "-", "contains the camera, retrieved"),
            (drive.ranks_covering_reranked, drive.candidates, ORANGE, "-", "contains the camera, re-ranked"),
            (drive.ranks_nearest_retrieved, drive.rank_depth, BLUE, ":", "nearest centre, retrieved"),
            (drive.ranks_nearest_reranked, drive.candidates, ORANGE, ":", "nearest centre, re-ranked"),
        )
        for ranks, depth, colour, dashes, name in lines:
            found = ranks[drive.ranked]
            steps = np.unique(np.concatenate([[1], found[found > 0], [depth]]))
            shares = [float(np.mean((found >= 1) & (found <= k))) for k in steps]
            axes.step(steps, shares, where="post", color=colour, ls=dashes, marker="o" if depth < 50 else "", ms=3,
                      label=name)  # fmt: skip
        axes.set_xscale("log")
        axes.set_xlim(0.9, max(100, drive.candidates))
        axes.set_xticks([1, 2, 5, 10, 20, 50, 100], ["1", "2", "5", "10", "20", "50", "100"])
        axes.minorticks_off()
        axes.set_ylim(0, 1.02)
        axes.yaxis.set_major_formatter(matplotlib.ticker.PercentFormatter(1.0))
        axes.set_xlabel("first k tiles")
        axes.legend(loc="best")

    return _svg(5.7, 3.9, draw)


def latency(summary: Summary) -> str:
    """Median, 95th and 99th percentile of each stage."""

    def draw(figure: Figure) -> None:
        axes = figure.subplots()
        axes.set_title("Latency by stage")
        stages = list(summary.latency_ms.items())[::-1]
        if not stages:
            _nothing(axes, "no image was localized")
            return
        rows = np.arange(len(stages))
        for share, colour, name in (("p99", "#dbe7f1", "99%"), ("p95", SKY, "95%"), ("median", BLUE, "median")):
            axes.barh(rows, [getattr(values, share) for _, values in stages], color=colour, label=name, height=0.66)
        axes.set_yticks(rows, [stage.replace("_", " ") for stage, _ in stages])
        axes.tick_params(axis="y", length=0)
        axes.grid(False, axis="y")
        axes.set_xlabel("milliseconds")
        axes.legend(loc="lower right", ncol=3, bbox_to_anchor=(1, 1.0), borderaxespad=0.2)

    return _svg(5.7, max(2.2, 0.9 + 0.27 * len(summary.latency_ms)), draw)


def drift(drive: Drive, judged: Judged) -> str:
    """Error of odometry alone and error of the fixes."""

    def draw(figure: Figure) -> None:
        axes = figure.subplots()
        axes.set_title("Compared with odometry alone")
        reckoned = dead_reckoning(drive)
        usable = drive.has_truth & ~np.isnan(reckoned).any(axis=1)
        if not usable.any():
            _nothing(axes, "no odometry in the bag, or no direction to start it with")
            return
        travelled = _travelled(drive)
        errors = metrics.horizontal_errors(reckoned[usable], drive.truth_m[usable])
        axes.plot(travelled[usable], errors, color=GREY, label="odometry alone, from the true start")
        dense = len(judged.frame_index) > _MANY_POINTS
        axes.plot(
            travelled[judged.frame_index], judged.errors_m, ".", ms=4, color=BLUE, rasterized=dense, label="fixes"
        )
        limit = max(1.0, 1.2 * float(errors.max()))
        if (~judged.false).any():
            limit = max(limit, 1.3 * float(np.percentile(judged.errors_m[~judged.false], 99)))
        axes.set_ylim(0, limit)
        axes.set_xlabel("distance travelled, m")
        axes.set_ylabel("error, m")
        axes.legend(loc="upper left")

    return _svg(5.7, 3.7, draw)


def _travelled(drive: Drive) -> Float64:
    """Metres since the first image with ground truth, gaps bridged straight: float64 (n,)."""
    distance = np.zeros(len(drive))
    rows = np.flatnonzero(drive.has_truth)
    if len(rows):
        steps = np.hypot(*np.diff(drive.truth_m[rows], axis=0).T)
        distance[rows[1:]] = np.cumsum(steps)
    return distance
