"""The same index, its shards encoded by workers of a Ray cluster (optional: `pip install ray`).

Every worker opens the imagery and the model itself, so both must lie at the same paths on every machine, on a shared
disk for instance. The driver hands out shards by number, and alone writes what comes back, in order: a build on a
cluster is resumed like any other, by the cluster or by one process, and its bytes are those of one process, provided
that all workers run the same backend and precision, which is checked.
"""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
from collections import deque
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Iterator, Sequence

from unifygeo_ros.aerial.build import (
    BuildReport,
    build_plan,
    manifest_of,
    report_of_finished,
    write_index,
)
from unifygeo_ros.aerial.encoding import Advance, Shards, TimedEncoder, encode_shards
from unifygeo_ros.aerial.familiarity import warn_if_unlike
from unifygeo_ros.aerial.imagery import ImageryOptions
from unifygeo_ros.aerial.partial import Shard, finish_rename
from unifygeo_ros.aerial.region import Region, plan_region
from unifygeo_ros.aerial.settings import BuildSettings
from unifygeo_ros.core.errors import ConfigurationError, EngineError, UnifyGeoError
from unifygeo_ros.core.geodesy import Datum
from unifygeo_ros.inference.bundle import ModelBundle, load_bundle
from unifygeo_ros.inference.select import CPU_BACKENDS, open_engines

_IN_FLIGHT = 2
"""Shards handed to each worker: one in work, one waiting."""


@dataclass(frozen=True)
class RayOptions:
    """How a build uses a Ray cluster."""

    address: str
    """Address of the cluster: "auto", "ray://HOST:PORT", or "local" for a cluster on this machine alone."""
    workers: int = 0
    """Number of workers; 0: one for each GPU of the cluster, or for each machine where there is none or a CPU backend
    was asked for."""
    backend: str = "auto"
    precision: str = "auto"
    readers: int = 0
    """Threads that cut tiles in each worker, 0: one for each core of its machine."""


@dataclass(frozen=True)
class _Task:
    """All that a worker needs to plan the same region."""

    sources: tuple[Path, ...]
    imagery_options: ImageryOptions | None
    bundle: Path
    datum: Datum
    settings: BuildSettings


class _Worker:
    """One process of the cluster with one encoder."""

    def __init__(self, task: _Task, options: RayOptions, threads: int) -> None:
        self._bundle = load_bundle(task.bundle)
        self._region = plan_region(task.sources, task.imagery_options, self._bundle, task.datum, task.settings)
        self._engines = open_engines(
            self._bundle, backend=options.backend, precision=options.precision, threads=threads
        )
        self._encoder = TimedEncoder(self._engines.aerial_encoder, self._bundle)
        self._readers = options.readers

    def plan(self) -> dict[str, Any]:
        return build_plan(self._region, self._bundle, self._engines.aerial_encoder.description)

    def encode(self, shard: int) -> Shard:
        return next(encode_shards(self._region, self._encoder, [shard], self._readers, lambda _: None))

    def encoder_seconds(self) -> float:
        return self._encoder.seconds


def build_index_on_ray(
    sources: Sequence[Path | str],
    bundle: ModelBundle,
    output: Path | str,
    ray_options: RayOptions,
    *,
    datum: Datum | None = None,
    settings: BuildSettings | None = None,
    options: ImageryOptions | None = None,
    progress: bool = False,
) -> BuildReport:
    """As `build_index`, on a cluster. The report's encoder_share is the mean of the workers'."""
    settings = settings or BuildSettings()
    output = Path(output)
    if finish_rename(output):
        return report_of_finished(output)
    paths = tuple(Path(source).resolve() for source in sources)
    region = plan_region(paths, options, bundle, datum, settings)
    task = _Task(paths, options, bundle.path.resolve(), region.datum, settings)
    with _cluster(ray_options.address) as ray:
        workers = _start_workers(ray, task, ray_options)
        description = _agreed_encoder(ray, workers, region, bundle)

        def encode(first_shard: int, advance: Advance) -> Shards:
            return _encode(ray, workers, region, first_shard, advance)

        plan, manifest = build_plan(region, bundle, description), manifest_of(region, bundle, description)
        total = len(region.tiles.centres_m)
        report = write_index(output, plan, manifest, total, settings.shard_tiles, encode, progress)
        warn_if_unlike(report.path, bundle)
        busy = sum(_get(ray, [worker.encoder_seconds.remote() for worker in workers]))
        return dataclasses.replace(report, encoder_share=busy / report.seconds / len(workers))


@contextlib.contextmanager
def _cluster(address: str) -> Iterator[Any]:
    try:
        import ray
    except ImportError as error:
        raise ConfigurationError(
            f"--ray {address}: Ray cannot be imported ({error}); pip install ray, or build without --ray"
        ) from error
    started_here = not ray.is_initialized()
    try:
        if started_here:
            extra = {"include_dashboard": False} if address == "local" else {}
            ray.init(address=address, log_to_driver=False, logging_level="warning", **extra)
    except Exception as error:  # Ray's own are of no common class, down to a bare Exception for a start that took long
        raise ConfigurationError(
            f"--ray {address}: no cluster answers there ({' '.join(str(error).split())[:200]}); start one with "
            "`ray start --head`, or give its address"
        ) from error
    try:
        yield ray
    finally:
        if started_here:
            ray.shutdown()


def _start_workers(ray: Any, task: _Task, options: RayOptions) -> list[Any]:
    resources = ray.cluster_resources()
    processors, gpus = int(resources.get("CPU", 0)), int(resources.get("GPU", 0))
    on_gpu = gpus > 0 and options.backend not in CPU_BACKENDS
    machines = sum(1 for node in ray.nodes() if node["Alive"])
    count = options.workers or (gpus if on_gpu else machines)
    threads = max(1, processors // count)
    remote = ray.remote(num_cpus=threads, num_gpus=1 if on_gpu else 0)(_Worker)
    if count > processors or (on_gpu and count > gpus):
        raise ConfigurationError(
            f"{count} workers asked for, the cluster has {processors} processors and {gpus} GPUs; ask for fewer"
        )
    return [remote.remote(task, options, threads) for _ in range(count)]


def _agreed_encoder(ray: Any, workers: list[Any], region: Region, bundle: ModelBundle) -> str:
    """The encoder that all workers run. Raises ConfigurationError where they do not have the driver's plan."""
    plans = _get(ray, [worker.plan.remote() for worker in workers])
    description = str(plans[0]["encoder"])
    expected = build_plan(region, bundle, description)
    for plan in plans:
        differing = sorted(name for name in expected if plan.get(name) != expected[name])
        if differing:
            raise ConfigurationError(
                f"a worker has another {differing[0]}: {plan[differing[0]]} instead of {expected[differing[0]]}; give "
                "every machine of the cluster the same imagery, model, backend and versions"
            )
    return description


def _encode(ray: Any, workers: list[Any], region: Region, first_shard: int, advance: Advance) -> Shards:
    """The shards in order, a few of them in work ahead."""
    numbers = iter(range(first_shard, region.shards))

    def submit(shard: int) -> tuple[int, Any]:
        return shard, workers[shard % len(workers)].encode.remote(shard)

    waiting = deque(submit(shard) for shard in itertools.islice(numbers, _IN_FLIGHT * len(workers)))
    while waiting:
        shard, reference = waiting.popleft()
        (encoded,) = _get(ray, [reference])
        del reference  # the cluster's memory of it
        waiting.extend(submit(later) for later in itertools.islice(numbers, 1))
        yield encoded
        advance(len(region.numbers(shard)))


def _get(ray: Any, references: list[Any]) -> list[Any]:
    try:
        return list(ray.get(references))
    except ray.exceptions.RayTaskError as error:
        if isinstance(error.cause, UnifyGeoError):
            raise type(error.cause)(str(error.cause)) from None  # without the worker's stack in the message
        raise
    except ray.exceptions.RayError as error:
        cause = getattr(error, "cause", None)
        if isinstance(cause, UnifyGeoError):
            raise type(cause)(str(cause)) from None
        raise EngineError(
            f"a worker of the cluster was lost ({' '.join(str(error).split())[:300]}); start the same build again, it "
            "resumes where it stopped"
        ) from error
