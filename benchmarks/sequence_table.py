"""Single images against sequences on recorded drives, in one table.

    unifygeo-train towns drive --seed 1000 --length-m 2000 --output drives/1000        # and 1001, 1002
    python benchmarks/sequence_table.py --model MODEL drives/1000 drives/1001 drives/1002

A drive is a folder with `town.tif` (the aerial imagery) and `bag`. Every row replays all drives through the session
that the node runs; the metrics are those of `unifygeo replay`. What does not depend on a row (encodings of an image
under one heading, D of an image in a tile) is computed once and shared, so that a table costs little more than its
first rows; the rows' results are those of separate replays.

Recovery: the drive again, of which a piece from the middle is cut out while clock and odometry go on, as of a vehicle
that was carried. Time until the next fix within the alert limit, and the fixes beyond it before that.

Settings are chosen on validation drives (towns 900 to 999), never on those of the table:

    python benchmarks/sequence_table.py --model MODEL --rows '**' --redraw 4 \
        --sweep accuracy_correlation_m=2,4,8 --sweep correlation_m=5,10 drives/900 drives/901

tries all combinations. A drive is one draw of the odometry's scale, of its drift and of the IMU's bias, and ANEES over
a few drives says little; `--redraw` adds replays of each drive with these errors drawn again, the images as they are.
"""

from __future__ import annotations

import argparse
import dataclasses
import hashlib
import itertools
import json
import math
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Callable, Collection, Hashable, Iterable, Mapping, Sequence

import numpy as np
from recorded_drive import images_in_turn, read_drive

from unifygeo_ros.aerial.build import build_index
from unifygeo_ros.aerial.index import TileIndex, open_index
from unifygeo_ros.conversions.from_messages import camera_image
from unifygeo_ros.core.covariance import CHI2_95
from unifygeo_ros.core.geodesy import wrap_angle
from unifygeo_ros.core.records import (
    CameraImage,
    Fix,
    GroundFeatures,
    Heading,
    Matches,
    Observation,
    Prior,
    Query,
    Rejection,
)
from unifygeo_ros.core.time import s_from_ns, stamp_from_parts
from unifygeo_ros.evaluation.metrics.definitions import Share, anees_bounds
from unifygeo_ros.evaluation.metrics.drive import gather
from unifygeo_ros.evaluation.metrics.results import FrameResult
from unifygeo_ros.evaluation.metrics.summary import Summary, summarise
from unifygeo_ros.evaluation.recordings.truth import Truth, TruthPose
from unifygeo_ros.evaluation.settings import Criteria
from unifygeo_ros.inference.bundle import ModelBundle, load_bundle
from unifygeo_ros.inference.engine import Engine, EngineSet
from unifygeo_ros.inference.select import open_engines
from unifygeo_ros.localization.camera_alternatives import Alternative
from unifygeo_ros.localization.config import CameraMount, LocalizerConfig
from unifygeo_ros.localization.localizer import Localizer
from unifygeo_ros.motion.samples import ImuSample, OdometrySample
from unifygeo_ros.sessions.config import SessionConfig
from unifygeo_ros.sessions.factory import make_session
from unifygeo_ros.tracking.config import TrackerConfig
from unifygeo_training.towns.sensors import ImuNoise, OdometryNoise

CUT = 0.25
"""Share of a drive that is cut out for the recovery."""


class RememberingEngine:
    """An engine that remembers its results. Images are compared by content, other inputs by identity."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._results: dict[Hashable, tuple[Any, Any]] = {}

    @property
    def description(self) -> str:
        return self._engine.description

    def run(self, inputs: Mapping[str, Any], outputs: Collection[str] | None = None) -> Any:
        return self._remembered((), inputs, outputs, lambda: self._engine.run(inputs, outputs))

    def run_resident(
        self, inputs: Mapping[str, Any], resident: Collection[str], outputs: Collection[str] | None = None
    ) -> Any:
        run = self._engine.run_resident
        return self._remembered(tuple(resident), inputs, outputs, lambda: run(inputs, resident, outputs))

    def close(self) -> None:
        self._results.clear()
        self._engine.close()

    def _remembered(
        self, resident: Hashable, inputs: Mapping[str, Any], outputs: Collection[str] | None, run: Callable[[], Any]
    ) -> Any:
        key = (
            resident,
            None if outputs is None else tuple(outputs),
            tuple((name, _identity(value)) for name, value in sorted(inputs.items())),
        )
        if key not in self._results:
            kept = [value for name, value in inputs.items() if name != "image"]  # so that no id is given twice
            self._results[key] = kept, run()
        return self._results[key][1]


def _identity(value: Any) -> Hashable:
    if isinstance(value, np.ndarray) and value.dtype == np.uint8:
        return hashlib.sha1(value.tobytes()).digest()
    return id(value)


def remembering(engines: EngineSet) -> EngineSet:
    """The engines, with encodings and distributions remembered from row to row."""
    return dataclasses.replace(
        engines,
        ground_encoder=RememberingEngine(engines.ground_encoder),
        decoder=RememberingEngine(engines.decoder),
    )


class ChangedLocalizer:
    """A localizer whose observations are changed before the session takes them."""

    def __init__(self, localizer: Localizer) -> None:
        self._localizer = localizer
        self.config, self.index = localizer.config, localizer.index
        self.bundle, self.mount = localizer.bundle, localizer.mount

    def observe(self, image: CameraImage, query: Query) -> Observation | Rejection:
        observed = self._localizer.observe(image, self.asked(query))
        return observed if isinstance(observed, Rejection) else self.changed(observed, query)

    def decide(self, observation: Observation, query: Query) -> Fix | Rejection:
        return self._localizer.decide(observation, query)

    def camera_fits(
        self,
        image: CameraImage,
        heading: Heading,
        alternatives: Sequence[Alternative],
        configured: GroundFeatures | None,
        prior: Prior | None,
    ) -> dict[str, float]:
        return self._localizer.camera_fits(image, heading, alternatives, configured, prior)

    def asked(self, query: Query) -> Query:
        return query

    def changed(self, observation: Observation, query: Query) -> Observation:
        return observation


class WithoutReranking(ChangedLocalizer):
    """The order of retrieval stays: every M⁰ counts as nothing. For images whose heading is given."""

    def asked(self, query: Query) -> Query:
        count = self.config.candidates if query.candidates is None else query.candidates
        return dataclasses.replace(query, distributions=count)

    def changed(self, observation: Observation, query: Query) -> Observation:
        matches = observation.matches
        order = np.argsort(matches.retrieval_ranks)
        unranked = Matches(
            tile_ids=matches.tile_ids[order],
            scores=matches.similarities[order],
            similarities=matches.similarities[order],
            match_maps=np.zeros_like(matches.match_maps),
            retrieval_ranks=np.arange(len(order)),
        )
        distributions = tuple(observation.distributions[place] for place in order[: query.distributions])
        return dataclasses.replace(observation, matches=unranked, distributions=distributions)


class WinnerOnly(ChangedLocalizer):
    """The tracker sees a single answer: the best tile, and of its D only the peak.

    The peak has a fixed width of two pixels of its own and the floor.
    """

    def changed(self, observation: Observation, query: Query) -> Observation:
        matches = observation.matches
        best = Matches(
            tile_ids=matches.tile_ids[:1],
            scores=matches.scores[:1],
            similarities=matches.similarities[:1],
            match_maps=matches.match_maps[:1],
            retrieval_ranks=matches.retrieval_ranks[:1],
        )
        winner = observation.distributions[0]
        row, column = np.unravel_index(int(winner.probability.argmax()), winner.probability.shape)
        rows, columns = np.indices(winner.probability.shape)
        peak = np.exp(-((rows - row) ** 2 + (columns - column) ** 2) / 8.0)
        peaked = dataclasses.replace(winner, probability=(peak / peak.sum()).astype(np.float32))
        return dataclasses.replace(observation, matches=best, distributions=(peaked,))


@dataclass(frozen=True)
class Row:
    """One configuration."""

    name: str
    session: SessionConfig
    tracker: TrackerConfig = dataclasses.field(default_factory=TrackerConfig)
    localizer: type[ChangedLocalizer] = ChangedLocalizer


def rows(base: TrackerConfig) -> list[Row]:
    def session(mode: str, heading_source: str, prior_source: str = "none") -> SessionConfig:
        return SessionConfig(mode=mode, heading_source=heading_source, prior_source=prior_source)

    def k(count: int) -> TrackerConfig:
        return dataclasses.replace(
            base,
            search_candidates=count,
            track_candidates=count,
            search_distributions=min(count, base.search_distributions),
        )

    return [
        Row("single, heading given", session("single", "imu")),
        Row("single, heading given, prior from the last fix", session("single", "imu", "last_fix")),
        Row("**sequence, heading given**", session("sequence", "imu"), base),
        Row("single, heading searched", session("single", "none")),
        Row("**sequence, heading searched**", session("sequence", "none"), base),
        Row(
            "sequence, fix from the image",
            session("sequence", "imu"),
            dataclasses.replace(base, fix_from="image"),
        ),
        Row("sequence without re-ranking", session("sequence", "imu"), base, WithoutReranking),
        Row("sequence without D (winner's peak only)", session("sequence", "imu"), base, WinnerOnly),
        *(Row(f"sequence, k = {count}", session("sequence", "imu"), k(count)) for count in (1, 5, 20)),
    ]


# -- drives -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Recording:
    """A drive in memory: what arrived, in order, and the truth: at each image's stamp, and at any."""

    name: str
    arrivals: list[OdometrySample | ImuSample | Any]
    truth: dict[int, TruthPose | None]
    image_stamps: list[int]
    whole_truth: Truth


def read_recording(folder: Path, index: TileIndex) -> Recording:
    drive = read_drive(folder, index)
    samples = (OdometrySample, ImuSample)
    stamps = [stamp_of(item) for item in drive.arrivals if not isinstance(item, samples)]
    poses = {stamp: drive.truth.at(stamp) for stamp in stamps}
    return Recording(folder.name, drive.arrivals, poses, stamps, drive.truth)


def stamp_of(message: Any) -> int:
    return stamp_from_parts(message.header.stamp.sec, message.header.stamp.nanosec)


def carried(recording: Recording) -> tuple[Recording, int]:
    """The drive without the CUT in its middle, clock and odometry going on. Also the stamp of the first image after."""
    first, last = recording.image_stamps[0], recording.image_stamps[-1]
    begin = first + round((last - first) * (1 - CUT) / 2)
    end = begin + round((last - first) * CUT)
    before: OdometrySample | None = None
    after: OdometrySample | None = None
    for item in recording.arrivals:
        if isinstance(item, OdometrySample):
            if item.stamp_ns < begin:
                before = item
            elif item.stamp_ns >= end and after is None:
                after = item
    assert before is not None
    assert after is not None
    shift = after.stamp_ns - before.stamp_ns - 50_000_000
    arrivals: list[Any] = []
    truth = {}
    stamps = []
    for item in recording.arrivals:
        stamp = item.stamp_ns if isinstance(item, (OdometrySample, ImuSample)) else stamp_of(item)
        if begin <= stamp < end:
            continue
        moved = stamp >= end
        new = stamp - shift if moved else stamp
        if isinstance(item, OdometrySample) and moved:
            pose = before.pose.compose(after.pose.between(item.pose))
            item = dataclasses.replace(item, stamp_ns=new, x_m=pose.x_m, y_m=pose.y_m, yaw_rad=pose.yaw_rad)
        elif isinstance(item, ImuSample) and moved:
            item = dataclasses.replace(item, stamp_ns=new)
        elif not isinstance(item, (OdometrySample, ImuSample)):
            truth[new] = recording.truth[stamp]
            stamps.append(new)
            item = (item, new)
        arrivals.append(item)
    shorter = Recording(recording.name + ", carried", arrivals, truth, stamps, recording.whole_truth)
    return shorter, next(s for s in stamps if s >= end - shift)


WHEELS, IMU = OdometryNoise(), ImuNoise()
"""Of the recorded drives (`unifygeo-train towns drive`), and of `redrawn`."""


def redrawn(recording: Recording, seed: int) -> Recording:
    """The drive with other errors of wheel odometry and of the IMU's yaw; the images and all else are as they were."""
    rng = np.random.default_rng([seed, len(recording.arrivals)])
    scale, drift = 1 + WHEELS.scale * rng.standard_normal(), WHEELS.yaw_rate_bias_rad_s * rng.standard_normal()
    bias = IMU.yaw_bias_rad * rng.standard_normal()
    pose, last, imu_ns = np.zeros(3), None, None
    arrivals: list[Any] = []
    for item in recording.arrivals:
        if isinstance(item, (OdometrySample, ImuSample)):
            truth = recording.whole_truth.at(item.stamp_ns)
            if truth is None or truth.yaw_rad is None:
                continue
            if isinstance(item, OdometrySample):
                if last is not None:
                    time_s = s_from_ns(item.stamp_ns - last[0])
                    way = math.hypot(truth.east_m - last[1].east_m, truth.north_m - last[1].north_m)
                    step = scale * way + WHEELS.speed_m_s * time_s * rng.standard_normal()
                    turn = wrap_angle(truth.yaw_rad - last[2])
                    turn += (drift + WHEELS.yaw_rate_rad_s * rng.standard_normal()) * time_s
                    middle = pose[2] + turn / 2
                    pose = pose + np.array([step * math.cos(middle), step * math.sin(middle), turn])
                last = (item.stamp_ns, truth, truth.yaw_rad)
                x, y, yaw = (float(value) for value in pose)
                item = dataclasses.replace(item, x_m=x, y_m=y, yaw_rad=wrap_angle(yaw))
            else:
                time_s = 0.0 if imu_ns is None else s_from_ns(item.stamp_ns - imu_ns)
                bias += IMU.yaw_walk_rad_sqrt_s * math.sqrt(time_s) * rng.standard_normal()
                imu_ns = item.stamp_ns
                item = dataclasses.replace(
                    item, yaw_rad=wrap_angle(truth.yaw_rad + bias + IMU.yaw_rad * rng.standard_normal())
                )
        arrivals.append(item)
    return dataclasses.replace(recording, name=f"{recording.name}, redraw {seed}", arrivals=arrivals)


def play(recording: Recording, localizer: Localizer, row: Row, decoded: dict[int, CameraImage]) -> list[FrameResult]:
    session = make_session(row.localizer(localizer), row.session, row.tracker)
    results: list[FrameResult] = []
    for item in images_in_turn(recording.arrivals, session):
        message, stamp = item if isinstance(item, tuple) else (item, stamp_of(item))
        recorded = stamp_of(message)
        if recorded not in decoded:
            decoded[recorded] = camera_image(message)
        image = dataclasses.replace(decoded[recorded], stamp_ns=stamp)
        outcome = session.locate(image).result
        results.append(FrameResult(len(results), stamp, outcome, recording.truth[stamp], None, None, None, None))
    return results


# -- the table ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Scores:
    """Of one row on one drive.

    first_fix_m: way to the first fix. independent: how many independent fixes those of the drive are worth. recovery_s,
    wrong_after: of the carried drive.
    """

    row: str
    drive: str
    images: int
    availability: float
    within: tuple[float, ...]
    fixes: int
    false_fixes: int
    gross: int
    first_fix_s: float | None
    first_fix_m: float | None
    outage_s: float
    median_m: float | None
    anees: float | None
    coverage95: float | None
    nees: tuple[float, ...]
    independent: float
    recovery_s: float | None
    wrong_after: int | None
    tracker_ms: float | None
    total_ms: float | None


def scores_of(
    row: Row, recording: Recording, results: list[FrameResult], recovered: tuple[float | None, int] | None
) -> Scores:
    summary: Summary = summarise(gather(results, CAMERA), Criteria(), identity={}, latency_ms={}, problems=())
    error = summary.accuracy.error_m
    first = next((r for r in results if isinstance(r.outcome, Fix)), None)
    way = None
    if first is not None:
        poses = [r.truth for r in results[: first.number + 1] if r.truth is not None]
        way = sum(math.hypot(b.east_m - a.east_m, b.north_m - a.north_m) for a, b in itertools.pairwise(poses))
    consistency = summary.covariance.position
    outage = summary.availability.longest_outage
    within = dict(zip(summary.accuracy.distances_m, summary.accuracy.within_of_images, strict=True))
    tracker = [r.outcome.timings_ms["tracker"] for r in results if "tracker" in r.outcome.timings_ms]
    total = [r.outcome.timings_ms["total"] for r in results if "total" in r.outcome.timings_ms]
    nees = tuple(value for value in summary.per_image.nees if value is not None)
    return Scores(
        row=row.name,
        drive=recording.name,
        images=summary.counts.images,
        availability=summary.counts.fixes / summary.counts.images,
        within=tuple(within[d] or 0.0 for d in (1.0, 5.0, 10.0)),
        fixes=summary.counts.judged,
        false_fixes=_count(summary.integrity.false_fix),
        gross=_count(summary.integrity.gross_error),
        first_fix_s=summary.availability.time_to_first_fix_s,
        first_fix_m=way,
        outage_s=outage.duration_s if outage else 0.0,
        median_m=error.median if error else None,
        anees=float(np.mean(nees)) / 2 if consistency and nees else None,
        coverage95=float(np.mean(np.array(nees) <= CHI2_95)) if nees else None,
        nees=nees,
        independent=consistency.effective_count if consistency else 0.0,
        recovery_s=recovered[0] if recovered else None,
        wrong_after=recovered[1] if recovered else None,
        tracker_ms=float(np.median(tracker)) if tracker else None,
        total_ms=float(np.median(total)) if total else None,
    )


def _count(share: Share | None) -> int:
    return 0 if share is None else round(share.value * share.count)


def recovery(results: Iterable[FrameResult], since_ns: int, limit_m: float) -> tuple[float | None, int]:
    """Seconds from the carrying to the first good fix (None: never), and the fixes beyond the limit before it."""
    wrong = 0
    for result in results:
        if result.log_time_ns < since_ns or not isinstance(result.outcome, Fix) or result.truth is None:
            continue
        fix, truth = result.outcome, result.truth
        if math.hypot(fix.east_m - truth.east_m, fix.north_m - truth.north_m) <= limit_m:
            return s_from_ns(result.log_time_ns - since_ns), wrong
        wrong += 1
    return None, wrong


HEADER = (
    "| | available | R@1 m | R@5 m | R@10 m | false fixes | > 10 m | first fix | longest outage "
    "| recovery (wrong fixes) | median error | ANEES (95% bounds) | in 95% ellipse |\n" + "|---" * 13 + "|"
)


def line(name: str, outcomes: list[Scores]) -> str:
    """A row over its drives: shares of all images and fixes, medians of times, the worst outage."""
    images, fixes = sum(o.images for o in outcomes), sum(o.fixes for o in outcomes)

    def share(values: list[float]) -> str:
        return f"{100 * sum(v * o.images for v, o in zip(values, outcomes, strict=True)) / images:.1f}%"

    def of_fixes(count: int) -> str:
        return f"{100 * count / fixes:.2f}% ({count})" if fixes else "–"

    def median(values: list[float | None], unit: str) -> str:
        known = [math.inf if v is None else v for v in values]
        middle = float(np.median(known)) if known else math.inf
        return "never" if math.isinf(middle) else f"{middle:.1f} {unit}"

    nees = [value for o in outcomes for value in o.nees]
    low, high = anees_bounds(max(sum(o.independent for o in outcomes), 1.0))
    recovered = [o for o in outcomes if o.wrong_after is not None]
    cells = [
        name,
        share([o.availability for o in outcomes]),
        *(share([o.within[place] for o in outcomes]) for place in range(3)),
        of_fixes(sum(o.false_fixes for o in outcomes)),
        of_fixes(sum(o.gross for o in outcomes)),
        f"{median([o.first_fix_s for o in outcomes], 's')}, {median([o.first_fix_m for o in outcomes], 'm')}",
        f"{max(o.outage_s for o in outcomes):.1f} s",
        f"{median([o.recovery_s for o in recovered], 's')} ({sum(o.wrong_after or 0 for o in recovered)})"
        if recovered
        else "–",
        median([o.median_m for o in outcomes], "m"),
        f"{np.mean(nees) / 2:.2f} ({low:.2f} … {high:.2f})" if nees else "–",
        f"{100 * np.mean(np.array(nees) <= CHI2_95):.1f}%" if nees else "–",
    ]
    return "| " + " | ".join(cells) + " |"


def draw(results: list[FrameResult], title: str, folder: Path) -> None:
    """The drive's true way, its fixes tied to where they should be, and where images were rejected."""
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot

    limit = Criteria().alert_limit_m
    figure, axes = pyplot.subplots(figsize=(6, 6))
    known = [r for r in results if r.truth is not None]
    way = np.array([(r.truth.east_m, r.truth.north_m) for r in known if r.truth is not None])
    fixed = np.array([isinstance(r.outcome, Fix) for r in known])
    axes.plot(*way.T, color="0.8", linewidth=4, zorder=0, label="true way")
    if (~fixed).any():
        axes.plot(*way[~fixed].T, "x", color="0.4", markersize=4, label=f"rejected ({(~fixed).sum()})")
    fixes = np.array([(r.outcome.east_m, r.outcome.north_m) for r in known if isinstance(r.outcome, Fix)]).reshape(
        -1, 2
    )
    true = way[fixed]
    wrong = np.hypot(*(fixes - true).T) > limit
    for place, truth in zip(fixes[wrong], true[wrong], strict=True):
        axes.plot(*np.stack([place, truth]).T, color="tab:red", linewidth=0.5)
    axes.plot(*fixes[~wrong].T, ".", color="tab:blue", markersize=4, label=f"fix ({(~wrong).sum()})")
    axes.plot(*fixes[wrong].T, ".", color="tab:red", markersize=6, label=f"fix off by > {limit:g} m ({wrong.sum()})")
    axes.set(title=title, xlabel="east, m", ylabel="north, m", aspect="equal")
    axes.legend(fontsize="small")
    figure.tight_layout()
    folder.mkdir(parents=True, exist_ok=True)
    name = "".join(c if c.isalnum() else "_" for c in title)
    figure.savefig(folder / f"{name}.png", dpi=80)
    pyplot.close(figure)


CAMERA = CameraMount(x_m=0.2)
"""As `unifygeo-train towns drive` mounts it."""


def index_of(folder: Path, bundle: ModelBundle, engines: Any) -> TileIndex:
    path = folder / f"index-{bundle.manifest.weights_sha256[:12]}"
    if not path.exists():
        build_index([folder / "town.tif"], bundle, engines, path)
    return open_index(path, bundle=bundle)


def changed(config: TrackerConfig, settings: dict[str, str]) -> TrackerConfig:
    values = {name: type(getattr(config, name))(value) for name, value in settings.items()}
    return dataclasses.replace(config, **values)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("drives", type=Path, nargs="+", help="folders with town.tif and bag")
    parser.add_argument("--rows", default="", help="only rows whose name contains this")
    parser.add_argument("--set", action="append", default=[], metavar="NAME=VALUE", help="tracker settings")
    parser.add_argument(
        "--sweep",
        action="append",
        default=[],
        metavar="NAME=VALUE,VALUE",
        help="tracker settings of which all combinations are tried, each a row of its own",
    )
    parser.add_argument("--redraw", type=int, default=0, metavar="N", help="add N replays with other sensor errors")
    parser.add_argument("--no-recovery", action="store_true")
    parser.add_argument("--json", type=Path, help="all outcomes, for further use")
    parser.add_argument("--pictures", type=Path, help="folder for a picture of each drive and row")
    args = parser.parse_args()
    base = changed(TrackerConfig(), dict(text.split("=", 1) for text in args.set))
    swept = [(name, values.split(",")) for name, values in (text.split("=", 1) for text in args.sweep)]
    chosen = []
    for values in itertools.product(*(values for _, values in swept)):
        settings = {name: value for (name, _), value in zip(swept, values, strict=True)}
        label = "".join(f", {name} = {value}" for name, value in settings.items())
        chosen += [
            dataclasses.replace(row, name=row.name + label)
            for row in rows(changed(base, settings))
            if args.rows in row.name
        ]
    outcomes: dict[str, list[Scores]] = {row.name: [] for row in chosen}
    bundle = load_bundle(args.model)
    with open_engines(bundle, backend="onnx_cpu", threads=1) as engines:
        for folder in args.drives:
            index = index_of(folder, bundle, engines)
            original = read_recording(folder, index)
            config = LocalizerConfig(pyramid_cache_tiles=4096)
            localizer = Localizer(index, bundle, remembering(engines), config, CAMERA)
            decoded: dict[int, CameraImage] = {}
            for seed in range(args.redraw + 1):
                recording = redrawn(original, seed) if seed else original
                shorter, since = carried(recording)
                for row in chosen:
                    results = play(recording, localizer, row, decoded)
                    if args.pictures is not None:
                        draw(results, f"{recording.name}, {row.name.strip('*')}", args.pictures)
                    recovered = None
                    if not args.no_recovery:
                        recovered = recovery(play(shorter, localizer, row, decoded), since, Criteria().alert_limit_m)
                    outcomes[row.name].append(scores_of(row, recording, results, recovered))
                    print(f"{recording.name}: {line(row.name, outcomes[row.name][-1:])}", file=sys.stderr, flush=True)
    print(HEADER)
    for row in chosen:
        print(line(row.name, outcomes[row.name]))
    if args.json:
        content = [dataclasses.asdict(outcome) for group in outcomes.values() for outcome in group]
        args.json.write_text(json.dumps(content, indent=1))
    return 0


if __name__ == "__main__":
    sys.exit(main())
