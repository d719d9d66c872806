"""A simulated town for tests of the tracker: drives, odometry, and a stand-in for the localizer.

`SimulatedLocalizer` is no localizer. It knows the truth and makes up what a network would have said of it by a
parametric model: re-ranking scores of the true tiles and of wrong ones, places that look alike, images that are
outliers, and distributions D whose errors last for some metres of way. The real localizer has its own tests; this one
is here because its errors have known statistics, against which a filter can be judged.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from types import SimpleNamespace

import numpy as np

from unifygeo_ros.core.geodesy import Datum, LocalFrame, wrap_angle
from unifygeo_ros.core.records import (
    CameraImage,
    Fix,
    GroundFeatures,
    Heading,
    HeadingSource,
    Matches,
    Observation,
    Query,
    Rejection,
    RejectionReason,
    TileDistribution,
)
from unifygeo_ros.inference.bundle import Calibration, Confidence
from unifygeo_ros.localization.config import CameraMount, LocalizerConfig
from unifygeo_ros.motion.samples import ODOM_FRAME, ImuSample, OdometrySample
from unifygeo_ros.sessions.config import SessionConfig
from unifygeo_ros.sessions.factory import make_session
from unifygeo_ros.sessions.sequence import SequenceSession
from unifygeo_ros.tracking.config import TrackerConfig

SECOND = 1_000_000_000
SIDE_M, STRIDE_M, PIXELS = 70.0, 35.0, 64
IMAGE_HZ, ODOMETRY_HZ = 2, 20


@dataclass(frozen=True)
class Drive:
    """A drive sampled at ODOMETRY_HZ. pose: (n, 3), true east, north, yaw. odometry: (n, 3) in its own frame."""

    time_s: np.ndarray
    pose: np.ndarray
    odometry: np.ndarray

    def stamps(self) -> list[int]:
        return [round(t * SECOND) for t in self.time_s]


def make_drive(
    seed: int, seconds: float, extent_m: float = 1000.0, speed: float = 8.0, drift: float = 0.02, standing: float = 0.0
) -> Drive:
    """Through a grid of streets 100 m apart inside a square, turning at every second crossing or so; the wheels' scale
    is off by `drift` and the gyro's rate by a little. standing: seconds at rest before the start."""
    rng = np.random.default_rng([seed, 1])
    dt = 1 / ODOMETRY_HZ
    position = np.array([rng.integers(2, extent_m // 100 - 2) * 100.0, rng.integers(2, extent_m // 100 - 2) * 100.0])
    direction, to_turn = rng.integers(4), 100.0
    yaw = direction * math.pi / 2
    poses, v = [], 0.0
    for step in range(round(seconds * ODOMETRY_HZ)):
        v = 0.0 if step * dt < standing else min(speed, v + 2.0 * dt)
        target = direction * math.pi / 2
        error = wrap_angle(target - yaw)
        yaw = wrap_angle(yaw + np.clip(error, -1.0 * dt, 1.0 * dt) if v > 0 else yaw)
        position = position + v * dt * np.array([math.cos(yaw), math.sin(yaw)])
        to_turn -= v * dt
        if to_turn <= 0:
            to_turn = 100.0
            ahead = position + 150.0 * np.array([math.cos(target), math.sin(target)])
            turns = [0, 1, 3] if ((ahead > 100) & (ahead < extent_m - 100)).all() else [1, 3]
            # The turn that stays inside: away from the nearer edge.
            choices = []
            for turn in turns:
                angle = (direction + turn) * math.pi / 2
                end = position + 150.0 * np.array([math.cos(angle), math.sin(angle)])
                if ((end > 50) & (end < extent_m - 50)).all():
                    choices.append(turn)
            direction = (direction + (rng.choice(choices) if choices else 2)) % 4
        poses.append([*position, yaw])
    pose = np.array(poses)
    increment = np.diff(pose, axis=0, prepend=pose[:1])
    increment[:, 2] = wrap_angle(increment[:, 2])
    before = np.roll(pose[:, 2], 1)
    before[0] = pose[0, 2]
    way = np.hypot(increment[:, 0], increment[:, 1])
    forward = np.cos(before) * increment[:, 0] + np.sin(before) * increment[:, 1]
    left = -np.sin(before) * increment[:, 0] + np.cos(before) * increment[:, 1]
    scale = 1 + drift * rng.choice([-1, 1])
    turn = increment[:, 2] * (1 + 0.02 * rng.standard_normal()) + 0.002 * np.sqrt(way) * rng.standard_normal(len(way))
    odom_yaw = 0.7 + np.concatenate([[0.0], np.cumsum(turn[1:])])
    base = np.concatenate([[0.7], odom_yaw[:-1]])
    odom_x = np.cumsum(scale * (np.cos(base) * forward - np.sin(base) * left))
    odom_y = np.cumsum(scale * (np.sin(base) * forward + np.cos(base) * left))
    time_s = 1.0 + np.arange(len(pose)) * dt
    return Drive(time_s, pose, np.stack([odom_x, odom_y, wrap_angle(odom_yaw)], axis=-1))


@dataclass(frozen=True)
class ObservationModel:
    """How good the simulated network is.

    true_score, wrong_score, score_sigma: re-ranking scores; with the calibration's temperature of 0.1 the mean gap of
    0.4 is 4 nats. outliers: share of the way on which the true tiles look like wrong ones. outlier_m, error_m: how far
    outliers and errors last. sigma_m: error of D's peak, and the width D states. second_mode: share of D in
    a rival mode 12 m further along the street. aliases: displacements (m) of places that look exactly like the true one
    for the first alias_m of the drive.
    """

    true_score: float = 1.3
    wrong_score: float = 0.9
    score_sigma: float = 0.12
    outliers: float = 0.1
    outlier_m: float = 15.0
    error_m: float = 10.0
    sigma_m: float = 1.5
    second_mode: float = 0.15
    aliases: tuple[tuple[float, float], ...] = ()
    alias_m: float = 200.0


class SimulatedLocalizer:
    """Stands in for `Localizer`; see the module's docstring. The truth is looked up by the image's stamp."""

    def __init__(
        self, truth: dict[int, np.ndarray], model: ObservationModel, seed: int, extent_m: float = 1000.0
    ) -> None:
        side = np.arange(STRIDE_M, extent_m, STRIDE_M)
        east, north = np.meshgrid(side, side)
        centres = np.stack([east.ravel(), north.ravel()], axis=-1)
        frame = LocalFrame(Datum(48.5, 9.0))
        manifest = SimpleNamespace(side_m=SIDE_M, stride_m=STRIDE_M)

        class Index(SimpleNamespace):
            def __len__(self) -> int:
                return len(self.centres_m)

        area_m2 = len(centres) * STRIDE_M**2
        self.index = Index(frame=frame, centres_m=centres, manifest=manifest, area_m2=area_m2)
        self.bundle = SimpleNamespace(
            manifest=SimpleNamespace(calibration=Calibration(tile_temperature=0.1, position_floor_m=0.5))
        )
        self.config = LocalizerConfig()
        self.mount = CameraMount()
        self._truth, self._model = truth, model
        self._rng = np.random.default_rng([seed, 2])
        self._last: np.ndarray | None = None
        self._way = 0.0
        self._tile_noise = self._rng.standard_normal(len(centres))
        self._error = self._rng.standard_normal(2)
        self._outlier = self._rng.random() < model.outliers
        self.requests: list[Query] = []
        self.outliers: set[int] = set()  # stamps of images that did not show where they were taken

    def observe(self, image: CameraImage, query: Query) -> Observation | Rejection:
        self.requests.append(query)
        prior, heading = query.prior, query.heading
        pose = self._truth[image.stamp_ns]
        self._age(pose)
        if image.pixels.max() == 0:
            return Rejection(image.stamp_ns, RejectionReason.BLACK_IMAGE, "simulated")
        model, rng, centres = self._model, self._rng, self.index.centres_m
        misled = heading is not None and abs(wrap_angle(heading.yaw_rad - pose[2])) > math.radians(20)
        scores = model.wrong_score + model.score_sigma * self._tile_noise
        aliases = model.aliases if self._way < model.alias_m else ()
        seen = [pose[:2]] + [pose[:2] + np.array(alias) for alias in aliases]
        place = np.full(len(centres), -1)
        if self._outlier or misled:
            self.outliers.add(image.stamp_ns)
        for number, position in enumerate(seen):
            inside = (np.abs(centres - position) <= SIDE_M / 2).all(1)
            if not (self._outlier or misled):
                scores[inside] = model.true_score + model.score_sigma * self._tile_noise[inside]
                place[inside] = number
        allowed = np.arange(len(centres))
        if prior is not None:
            sigma = 4 * math.sqrt(np.linalg.eigvalsh(prior.covariance_m2)[-1])
            near = np.abs(centres - np.array([prior.east_m, prior.north_m])) <= SIDE_M / 2 + sigma
            allowed = np.flatnonzero(near.all(1))
            if not len(allowed):
                return Rejection(image.stamp_ns, RejectionReason.OFF_MAP, "simulated")
        best = allowed[np.argsort(-scores[allowed], kind="stable")[: query.candidates or 5]]
        yaw = heading
        if heading is None:
            wrong = rng.random() < 0.1
            found = wrap_angle(pose[2] + (rng.uniform(-3, 3) if wrong else math.radians(4) * rng.standard_normal()))
            yaw = Heading(float(found), math.radians(4) ** 2, HeadingSource.SEARCH)
        decoded = []
        for tile in best[: query.distributions]:
            own = None
            if heading is None:
                own = (
                    yaw
                    if place[tile] >= 0
                    else Heading(float(rng.uniform(-3, 3)), math.radians(4) ** 2, HeadingSource.SEARCH)
                )
            position = seen[place[tile]] if place[tile] >= 0 else None
            decoded.append(self._distribution(int(tile), position, pose[2], own))
        maps = np.zeros((len(best), 6, 6), np.float32)
        matches = Matches(
            best, scores[best].astype(np.float32), np.zeros(len(best), np.float32), maps, np.arange(len(best))
        )
        assert yaw is not None
        return Observation(
            image.stamp_ns, matches, tuple(decoded), yaw, GroundFeatures(np.zeros(1, np.float32), (), {})
        )

    def _age(self, pose: np.ndarray) -> None:
        """Errors that last: first-order Markov in the way driven."""
        way = math.inf if self._last is None else float(np.hypot(*(pose[:2] - self._last)))
        self._last = pose[:2]
        self._way += 0.0 if math.isinf(way) else way
        model, rng = self._model, self._rng

        def renew(old: np.ndarray, length_m: float) -> np.ndarray:
            keep = math.exp(-way / length_m)
            return keep * old + math.sqrt(1 - keep**2) * rng.standard_normal(old.shape)

        self._tile_noise = renew(self._tile_noise, model.error_m)
        self._error = renew(self._error, model.error_m)
        if rng.random() < 1 - math.exp(-way / model.outlier_m):
            self._outlier = rng.random() < model.outliers

    def _distribution(
        self, tile: int, position: np.ndarray | None, yaw: float, heading: Heading | None
    ) -> TileDistribution:
        model, centre, scale = self._model, self.index.centres_m[tile], SIDE_M / PIXELS
        along = (np.arange(PIXELS) - (PIXELS - 1) / 2) * scale
        east, north = centre[0] + along[None, :], centre[1] - along[:, None]

        def bump(at: np.ndarray) -> np.ndarray:
            return np.exp(-((east - at[0]) ** 2 + (north - at[1]) ** 2) / (2 * model.sigma_m**2))

        if position is None:
            at = centre + self._rng.uniform(-SIDE_M / 2, SIDE_M / 2, 2)
            density = bump(at) + 1e-4
        else:
            at = position + model.sigma_m * self._error
            other = at + 12.0 * np.array([math.cos(yaw), math.sin(yaw)])
            density = (1 - model.second_mode) * bump(at) + model.second_mode * bump(other) + 1e-5
        return TileDistribution(
            tile, float(centre[0]), float(centre[1]), scale, (density / density.sum()).astype(np.float32), heading
        )


@dataclass
class Run:
    """Results of a drive, image by image. error_m: of fixes; nan for rejections. nees: of fixes; nan for rejections."""

    time_s: list[float] = field(default_factory=list)
    error_m: list[float] = field(default_factory=list)
    nees: list[float] = field(default_factory=list)
    integrity: list[float] = field(default_factory=list)
    inside: list[bool] = field(default_factory=list)
    states: list[str] = field(default_factory=list)
    results: list[Fix | Rejection] = field(default_factory=list)

    def availability(self, first_s: float = 0.0) -> float:
        time, error = np.array(self.time_s), np.array(self.error_m)
        return float(np.isfinite(error[time >= first_s]).mean())

    def false_fixes(self, limit_m: float = 10.0) -> float:
        error = np.array(self.error_m)
        fixes = np.isfinite(error)
        return float((error[fixes] > limit_m).mean()) if fixes.any() else 0.0

    def first_fix_s(self, after_s: float = 0.0) -> float:
        good = [t for t, e in zip(self.time_s, self.error_m, strict=True) if np.isfinite(e) and t >= after_s]
        return good[0] - after_s if good else math.inf

    def anees(self) -> float:
        """Mean NEES per degree of freedom."""
        return float(np.nanmean(self.nees)) / 2


def run_drive(
    drive: Drive,
    model: ObservationModel,
    seed: int,
    *,
    extent_m: float = 1000.0,
    heading: str = "imu",
    config: TrackerConfig | None = None,
    black: tuple[float, float] = (0.0, 0.0),
    odometry_gap: tuple[float, float] = (0.0, 0.0),
    prepare: object = None,
    on_map: tuple[Confidence, Confidence] | None = None,
) -> tuple[Run, SequenceSession, SimulatedLocalizer]:
    """Play a drive through a real session in mode sequence. black, odometry_gap: seconds from and to without images or
    odometry. prepare: called with the session and the time before each image. on_map: the calibration's odds of
    being on the map, with a heading and searched; None: every image is."""
    stamps = drive.stamps()
    localizer = SimulatedLocalizer(dict(zip(stamps, drive.pose, strict=True)), model, seed, extent_m)
    if on_map is not None:
        manifest = localizer.bundle.manifest
        manifest.calibration = replace(
            manifest.calibration, on_map_confidence=on_map[0], searched_on_map_confidence=on_map[1]
        )
    session = make_session(
        localizer, SessionConfig(mode="sequence", heading_source=heading, camera_check_images=0), config
    )
    rng = np.random.default_rng([seed, 3])
    bias = math.radians(1.0) * rng.standard_normal()
    run = Run()
    for step, (time_s, stamp) in enumerate(zip(drive.time_s, stamps, strict=True)):
        if not odometry_gap[0] <= time_s < odometry_gap[1]:
            x, y, yaw = drive.odometry[step]
            session.add_odometry(OdometrySample(stamp, ODOM_FRAME, float(x), float(y), float(yaw)))
        yaw_imu = wrap_angle(drive.pose[step, 2] + bias + math.radians(0.5) * rng.standard_normal())
        session.add_imu(ImuSample(stamp, 0.0, 0.0, float(yaw_imu), math.radians(2.0) ** 2))
        if step % (ODOMETRY_HZ // IMAGE_HZ):
            continue
        if prepare is not None:
            prepare(session, float(time_s))  # type: ignore[operator]
        pixels = rng.integers(1, 255, (16, 32, 3), np.uint8)
        if black[0] <= time_s < black[1]:
            pixels = np.zeros_like(pixels)
            pixels[0, 0, 0] = 0
        result = session.locate(CameraImage(pixels, stamp)).result
        run.time_s.append(float(time_s))
        run.results.append(result)
        track = session.status().track
        run.states.append("" if track is None else track.state.value)
        if isinstance(result, Fix):
            error = np.array([result.east_m, result.north_m]) - drive.pose[step, :2]
            nees = float(error @ np.linalg.solve(result.covariance_m2, error))
            run.error_m.append(float(np.hypot(*error)))
            run.nees.append(nees)
            run.integrity.append(float(result.integrity or math.nan))
            run.inside.append(nees < 5.991)
        else:
            run.error_m.append(math.nan)
            run.nees.append(math.nan)
    return run, session, localizer
