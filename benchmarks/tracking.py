"""What the tracker costs, how that grows with the region, and why its belief is a mixture.

    python benchmarks/tracking.py

Three tables. The first and the last run the real tracker on synthetic observations of a moving camera (the network is
not run: its cost does not depend on the tracker). Times are CPU times of one thread, so that a busy machine does not
change them.

1. An image's cost, tracking and searching, in regions of 1, 10 and 100 km²: in the largest at most 1.5 × that in the
   smallest.
2. The forms a belief could have, on the same problem: a dense grid (exact, the reference), particles, the mixture. Cost
   of an image and the largest error of the belief within 6 m of the truth, which must be at most 0.01 for the mixture.
3. Memory over hours: hypotheses and allocated bytes after each quarter of 10,000 images: never more hypotheses than
   configured, and after the first quarter less than 64 bytes more an image: half a megabyte an hour at 2 Hz.

Exits with 1 when a limit is missed.
"""

from __future__ import annotations

import argparse
import gc
import math
import sys
import time
import tracemalloc
from functools import partial
from typing import Callable

import numpy as np
from measuring import describe_machine, verdict
from scipy import ndimage

from unifygeo_ros.core.geodesy import Datum, LocalFrame
from unifygeo_ros.core.records import (
    GroundFeatures,
    Heading,
    HeadingSource,
    Matches,
    Observation,
    Query,
    TileDistribution,
)
from unifygeo_ros.inference.bundle import Calibration
from unifygeo_ros.localization.config import LocalizerConfig
from unifygeo_ros.motion.increments import Motion, MotionNoise
from unifygeo_ros.tracking import filter
from unifygeo_ros.tracking.belief import uniform
from unifygeo_ros.tracking.config import TrackerConfig
from unifygeo_ros.tracking.evidence import Evidence
from unifygeo_ros.tracking.filter import predict, restart
from unifygeo_ros.tracking.reduction import reduce
from unifygeo_ros.tracking.region import Region
from unifygeo_ros.tracking.track import TrackState
from unifygeo_ros.tracking.tracker import Tracker

SIDE_M, STRIDE_M, PIXELS = 70.0, 35.0, 96
STEP_M = 4.0


class Camera:
    """A camera driving east and west along a street, and what an image of it might say."""

    def __init__(self, area_km2: float, seed: int) -> None:
        extent = 1000.0 * math.sqrt(area_km2)
        side = np.arange(STRIDE_M / 2, extent, STRIDE_M)
        east, north = np.meshgrid(side, side)
        centres = np.stack([east.ravel(), north.ravel()], axis=-1)
        self.region = Region(LocalFrame(Datum(48.5, 9.0)), extent**2, SIDE_M, centres)
        self._rng = np.random.default_rng(seed)
        self._extent = extent
        self.position = np.array([extent / 3, extent / 2])
        self.direction = 1.0

    def drive(self) -> Motion:
        if not 100.0 < self.position[0] + self.direction * STEP_M < self._extent - 100.0:
            self.direction *= -1.0
        self.position[0] += self.direction * STEP_M
        spread = MotionNoise().walk ** 2 * STEP_M
        # base_link keeps facing east; it drives backwards on the way back.
        return Motion(self.direction * STEP_M, 0.0, 0.0, STEP_M, np.diag([spread, spread, 1e-5]))

    def observe(self, stamp_ns: int, query: Query) -> Observation:
        assert query.candidates is not None
        rng = self._rng
        columns = round(self._extent / STRIDE_M)
        near = np.floor(self.position / STRIDE_M).astype(int)
        own = [int((near[1] + dy) * columns + near[0] + dx) for dy in (0, -1) for dx in (0, -1)]
        count = len(self.region.centres_m)
        others = [int(i) for i in rng.integers(0, count, query.candidates)] if query.prior is None else []
        tiles = np.array(list(dict.fromkeys(own + others)))[: query.candidates]
        scores = np.where(np.isin(tiles, own), 1.3, 0.9) + 0.05 * rng.standard_normal(len(tiles))
        order = np.argsort(-scores, kind="stable")
        tiles, ranked = tiles[order], scores[order].astype(np.float32)
        decoded = tuple(self._decode(int(tile)) for tile in tiles[: query.distributions])
        maps = np.zeros((len(tiles), 6, 6), np.float32)
        matches = Matches(tiles, ranked, ranked, maps, np.arange(len(tiles)))
        return Observation(
            stamp_ns,
            matches,
            decoded,
            Heading(0.0, 0.01, HeadingSource.IMU),
            GroundFeatures(np.zeros(1, np.float32), (), {}),
        )

    def _decode(self, tile: int) -> TileDistribution:
        centre, scale = self.region.centres_m[tile], SIDE_M / PIXELS
        along = (np.arange(PIXELS) - (PIXELS - 1) / 2) * scale
        at = self.position - centre + self._rng.standard_normal(2)
        density = np.exp(-((along - at[0]) ** 2)[None, :] / 4 - ((-along - at[1]) ** 2)[:, None] / 4)
        density += 0.2 * np.exp(-((along - at[0] - 12) ** 2)[None, :] / 4 - ((-along - at[1]) ** 2)[:, None] / 4) + 1e-5
        return TileDistribution(tile, float(centre[0]), float(centre[1]), scale, (density / density.sum()).astype("f4"))


def play(camera: Camera, images: int, lost: bool = False) -> tuple[Tracker, list[float]]:
    """CPU milliseconds of the tracker for each image. lost: it forgets all before each, so that it always searches."""
    tracker = Tracker(camera.region, Calibration(tile_temperature=0.1), TrackerConfig())
    times = []
    for image in range(images):
        motion = camera.drive()
        start = time.thread_time()
        if lost:
            tracker.reset()
        plan = tracker.plan(motion, Heading(0.0, 0.01, HeadingSource.IMU), LocalizerConfig())
        spent = time.thread_time() - start
        observation = camera.observe(image + 1, plan.query)
        start = time.thread_time()
        tracker.update(plan, observation)
        times.append(1e3 * (spent + time.thread_time() - start))
    return tracker, times


def cost_by_region() -> bool:
    print("\n| region | tiles | tracking, ms an image (median, 95%) | searching, ms an image (median, 95%) |")
    print("|---|---|---|---|")
    medians = []
    for area in (1.0, 10.0, 100.0):
        camera = Camera(area, seed=1)
        tracker, times = play(camera, 300)
        assert tracker.status.state is TrackState.TRACKING
        _, searching = play(Camera(area, seed=2), 100, lost=True)
        a, b = (np.percentile(t, [50, 95]) for t in (times[50:], searching))
        print(
            f"| {area:g} km² | {len(camera.region.centres_m):,} | {a[0]:.2f}, {a[1]:.2f} | {b[0]:.2f}, {b[1]:.2f} |",
            flush=True,
        )
        medians.append((a[0], b[0]))
    (small_tracking, small_searching), _, (large_tracking, large_searching) = medians
    kept = verdict("tracking in 100 km² / in 1 km²", large_tracking / small_tracking, 1.5)
    return verdict("searching in 100 km² / in 1 km²", large_searching / small_searching, 1.5) and kept


def memory_over_hours(images: int) -> bool:
    camera = Camera(10.0, seed=3)
    tracker = Tracker(camera.region, Calibration(tile_temperature=0.1), TrackerConfig())
    print("\n| images | hypotheses | allocated, KiB |\n|---|---|---|")
    allocated, most = [], 0
    tracemalloc.start()
    for image in range(images):
        plan = tracker.plan(camera.drive(), Heading(0.0, 0.01, HeadingSource.IMU), LocalizerConfig())
        tracker.update(plan, camera.observe(image + 1, plan.query))
        most = max(most, tracker.status.hypotheses)
        if (image + 1) % (images // 4) == 0:
            gc.collect()  # of what is left, nothing waits for the collector
            allocated.append(tracemalloc.get_traced_memory()[0] / 1024)
            print(f"| {image + 1:,} | {tracker.status.hypotheses} | {allocated[-1]:.0f} |", flush=True)
    tracemalloc.stop()
    kept = verdict("most hypotheses of an image", most, TrackerConfig().hypotheses)
    growth = 1024 * (allocated[-1] - allocated[0]) / (images - images // 4)
    return verdict("growth after the first quarter, bytes an image", growth, 64.0) and kept


# -- forms of a belief --------------------------------------------------------------------------------------------

RESTART, NOISE_M = 0.001, 0.7
EXACT = MotionNoise(scale=0.0)


class Grid:
    """Every `cell` metres of a square torus, heading known."""

    def __init__(self, side_m: int, cell_m: float = 1.0) -> None:
        self.count, self.cell = round(side_m / cell_m), cell_m
        self.area = float(side_m) ** 2
        self.mass = np.full((self.count, self.count), 1 / self.count**2, np.float32)

    def step(self, move: tuple[int, int], evidence: Evidence) -> None:
        shift = (round(move[0] / self.cell), round(move[1] / self.cell))
        mass = ndimage.gaussian_filter(np.roll(self.mass, shift, (0, 1)), NOISE_M / self.cell, mode="wrap", truncate=5)
        mass = (1 - RESTART) * mass + RESTART / self.count**2
        likelihood = np.full_like(mass, evidence.open_share)
        for weight, mean, covariance in zip(evidence.weights, evidence.means_m, evidence.covariances_m2, strict=True):
            # Isotropic components, as in this benchmark; only cells within 6 σ are touched.
            sigma = math.sqrt(covariance[0, 0])
            reach = math.ceil(6 * sigma / self.cell)
            middle = np.floor(mean / self.cell).astype(int)
            rows, columns = (np.arange(m - reach, m + reach + 1) for m in middle)
            a = np.exp(-(((rows + 0.5) * self.cell - mean[0]) ** 2) / (2 * sigma**2))
            b = np.exp(-(((columns + 0.5) * self.cell - mean[1]) ** 2) / (2 * sigma**2))
            where = np.ix_(rows % self.count, columns % self.count)
            likelihood[where] += weight * self.area / (2 * math.pi * sigma**2) * np.outer(a, b)
        mass *= likelihood
        self.mass = mass / mass.sum()

    def near(self, truth: np.ndarray) -> float:
        cells = (np.arange(self.count) + 0.5) * self.cell
        return float(self.mass[(cells[:, None] - truth[0]) ** 2 + (cells - truth[1]) ** 2 < 36].sum())


class Particles:
    """A bootstrap filter that draws a share of its particles from each image's evidence.

    So it can find a place in a region too large to be filled; weights make up for the proposal. The uniform weight is
    separate, as in the mixture.
    """

    def __init__(self, side_m: int, count: int, seed: int) -> None:
        self.rng, self.count, self.area = np.random.default_rng(seed), count, float(side_m) ** 2
        self.places = np.zeros((0, 2))
        self.weights = np.zeros(0)
        self.uniform_weight = 1.0

    def step(self, move: tuple[int, int], evidence: Evidence) -> None:
        rng = self.rng
        places = self.places + np.array(move) + NOISE_M * rng.standard_normal(self.places.shape)
        weights = (1 - RESTART) * self.weights
        uniform_weight = (1 - RESTART) * self.uniform_weight + RESTART
        drawn = self.count // 4
        component = rng.choice(len(evidence.weights), drawn, p=evidence.weights / evidence.weights.sum())
        sigma = np.sqrt(evidence.covariances_m2[:, 0, 0])
        new = evidence.means_m[component] + sigma[component, None] * rng.standard_normal((drawn, 2))
        born = np.full(
            drawn, uniform_weight * evidence.weights.sum() / drawn
        )  # uniform weight / A · evidence, by its own density
        apart2 = ((places[:, None] - evidence.means_m) ** 2).sum(-1)
        density = (evidence.weights / (2 * math.pi * sigma**2) * np.exp(-apart2 / (2 * sigma**2))).sum(1)
        weights = weights * (evidence.open_share + self.area * density)
        uniform_weight = uniform_weight * evidence.open_share
        places, weights = np.concatenate([places, new]), np.concatenate([weights, born])
        total = weights.sum() + uniform_weight
        weights, self.uniform_weight = weights / total, uniform_weight / total
        kept = self.count
        steps = (np.arange(kept) + rng.random()) / kept * weights.sum()
        chosen = np.minimum(np.searchsorted(np.cumsum(weights), steps), len(weights) - 1)
        self.places, self.weights = places[chosen], np.full(kept, weights.sum() / kept)

    def near(self, truth: np.ndarray) -> float:
        return float(self.weights[((self.places - truth) ** 2).sum(1) < 36].sum())


class Mixture:
    """The tracker's belief."""

    def __init__(self, side_m: int) -> None:
        self.area = float(side_m) ** 2
        self.belief = uniform()
        self._normal = np.random.default_rng(0).standard_normal((400, 2))

    def step(self, move: tuple[int, int], evidence: Evidence) -> None:
        motion = Motion(move[0], move[1], 0.0, 4.0, np.diag([NOISE_M**2, NOISE_M**2, 1e-9]))
        belief = restart(predict(self.belief, motion, EXACT), RESTART)
        belief, _ = filter.observe(
            belief,
            evidence,
            area_m2=self.area,
            exponent=1.0,
            near=np.ones(len(belief), bool),
            lever_m=(0.0, 0.0),
            scale_sigma=0.0,
            prune=1e-9,
            limit=128,
        )
        self.belief = reduce(belief, merge_distance2=0.5, limit=64)

    def near(self, truth: np.ndarray) -> float:
        factors = np.linalg.cholesky(self.belief.covariances[:, :2, :2])
        points = self.belief.means[:, None, :2] + self._normal @ factors.transpose(0, 2, 1)
        return float(self.belief.weights @ (((points - truth) ** 2).sum(-1) < 36).mean(1))


def images_of(side_m: int, seed: int, count: int) -> list[tuple[tuple[int, int], Evidence, np.ndarray]]:
    """Moves, evidence and truths: an ambiguous place for the first half, outliers, spurious answers."""
    rng = np.random.default_rng(seed)
    truth, alias = np.array([side_m * 0.4, side_m * 0.4]), np.array([side_m * 0.3, side_m * 0.1])
    images = []
    for image in range(count):
        move = (4, 0) if image else (0, 0)
        truth = truth + np.array(move)
        weights = 0.8 * rng.dirichlet([2.0, 2.0 if image < count // 2 else 0.2, 1.0, 1.0])
        at = truth + 1.5 * rng.standard_normal(2)
        if rng.random() < 0.15:
            at = rng.uniform(0, side_m, 2)
        means = np.stack(
            [at, truth + alias + 1.5 * rng.standard_normal(2), at + np.array([9.0, 0]), rng.uniform(0, side_m, 2)]
        )
        sigma = np.array([1.5, 1.5, 2.0, 3.0])
        yaw = np.zeros(4)
        covariances = sigma[:, None, None] ** 2 * np.eye(2)
        evidence = Evidence(weights, means, covariances, yaw, yaw + 1e-6, False, np.arange(4), 0.2, 0.2)
        images.append((move, evidence, truth.copy()))
    return images


def forms() -> bool:
    worst = 0.0
    print("\n| form | region | ms an image | largest error of the belief in the true place |\n|---|---|---|---|")
    for side_m in (200, 1000, 3162):
        images = images_of(side_m, seed=4, count=14)
        reference: list[float] = []
        makers: dict[str, Callable[[], Grid | Particles | Mixture]] = {
            "grid, 1 m": partial(Grid, side_m),
            "grid, 2 m": partial(Grid, side_m, 2.0),
        }
        for count in (1000, 10_000):
            makers[f"particles, {count:,}"] = partial(Particles, side_m, count, 5)
        makers["mixture"] = partial(Mixture, side_m)
        for name, make in makers.items():
            form, spent, errors = make(), 0.0, []
            for number, (move, evidence, truth) in enumerate(images):
                start = time.thread_time()
                form.step(move, evidence)
                spent += time.thread_time() - start
                if name == "grid, 1 m":
                    reference.append(form.near(truth))
                errors.append(abs(form.near(truth) - reference[number]))
            print(
                f"| {name} | {side_m**2 / 1e6:g} km² | {1e3 * spent / len(images):.2f} | {max(errors):.3f} |",
                flush=True,
            )
            worst = max(worst, max(errors)) if name == "mixture" else worst
    return verdict("largest error of the mixture", worst, 0.01)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=10_000, help="images of the memory table")
    arguments = parser.parse_args()
    print(describe_machine("numpy", "scipy"))
    sys.exit(0 if all([cost_by_region(), forms(), memory_over_hours(arguments.images)]) else 1)
