"""Where training spends its time, stage by stage (`python benchmarks/training_stages.py`).

One process on the CPU or one GPU, the network and batch of training/configs/towns_atto.yaml (or --config), all losses
on, a town rendered here. First the stages of real optimiser steps, fed with batches that are ready; then a run of
`fit` with its worker processes, as its log tells it. Limits, which exit with 1 when they are missed:

* the run waits for data at most 5% of its time;
* a step of the run takes at most 1.2 × the sum of its stages: the trainer, its log and the workers cost the rest;
* preparing a batch costs the workers together at most the time of a step, so that they keep up;
* losses, clipping and optimiser are at most 15% of a step: the rest is the network, forward and backward.

The second compares times on the clock that are not taken in turn, and is not judged where other programs were busy.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from lightning.fabric import Fabric
from measuring import Others, clock_verdict, describe_machine, verdict
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tqdm import tqdm

from unifygeo_ros.core.errors import ConfigurationError
from unifygeo_training.configuration import read_settings
from unifygeo_training.data.augmentation import augment
from unifygeo_training.data.pairs import Batches
from unifygeo_training.data.towns import TownPairs, TownsConfig
from unifygeo_training.fit import Run, fit
from unifygeo_training.fit_config import FitConfig
from unifygeo_training.towns.pairs import render_pairs

CONFIG = Path(__file__).parent.parent / "training/configs/towns_atto.yaml"
NETWORK = ("ground encoder", "aerial encoder", "decoder", "backward")


class Stopwatch:
    """Seconds of each call of some functions, by stage; waits for the GPU before and after."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.seconds: dict[str, list[float]] = {}

    def watch(self, owner: Any, function: str, stage: str) -> None:
        """Time a method from now on."""
        setattr(owner, function, self.timed(getattr(owner, function), stage))

    def timed(self, function: Callable[..., Any], stage: str) -> Callable[..., Any]:
        def call(*arguments: Any, **options: Any) -> Any:
            self._wait()
            start = time.perf_counter()
            result = function(*arguments, **options)
            self._wait()
            self.seconds.setdefault(stage, []).append(time.perf_counter() - start)
            return result

        return call

    def _wait(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--config", type=Path, default=CONFIG, help="of `unifygeo-train fit` (default: towns_atto.yaml)"
    )
    parser.add_argument("--accelerator", default="auto", help="cpu or cuda (default: %(default)s)")
    parser.add_argument("--rounds", type=int, default=10, help="steps whose stages are timed (default: %(default)s)")
    parser.add_argument("--steps", type=int, default=30, help="of the run (default: %(default)s)")
    parser.add_argument("--workers", type=int, default=1, help="processes that prepare batches (default: %(default)s)")
    parser.add_argument("--compile", action="store_true", help="compile the network, which takes minutes")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        config = configure(args, folder)
        render_pairs(config.data.first_seed, 240, folder / "towns")
        pairs = config.data.open(config.network)
        assert isinstance(pairs, TownPairs)
        ready, preparing = prepare(config, pairs)
        others = Others()
        stages = time_stages(config, ready, args.rounds, folder)
        waiting, step = time_run(config, pairs, folder)
        quiet = others.were_quiet()
    print(describe_machine("torch", "lightning", "timm"))
    return judge(config, preparing, stages, waiting, step, quiet)


def configure(args: argparse.Namespace, folder: Path) -> FitConfig:
    """The config with one device, one town, and all losses from the first step on."""
    config = read_settings(args.config, FitConfig)
    if not isinstance(config.data, TownsConfig):
        raise ConfigurationError(f"{args.config}: trains on {config.data.describe()}; give a config of kind towns")
    data = config.data.model_copy(update={"folder": folder / "towns", "last_seed": config.data.first_seed})
    losses = config.losses.model_copy(update={"retrieval_from_step": 0, "retrieval_ramp_steps": 0})
    one = {"accelerator": args.accelerator, "devices": 1, "strategy": "auto", "threads": 0, "compile": args.compile}
    hardware = config.hardware.model_copy(update={**one, "workers": args.workers})
    optimiser = config.optimiser.model_copy(update={"warmup_steps": args.steps})
    changed = {"data": data, "losses": losses, "hardware": hardware, "optimiser": optimiser}
    lengths = {"steps": args.steps, "log_every": max(1, args.steps // 2), "checkpoint_every": args.steps}
    return config.model_copy(update={**changed, **lengths, "hard_negatives": None})


def prepare(config: FitConfig, pairs: TownPairs) -> tuple[list[dict[str, torch.Tensor]], dict[str, float]]:
    """Batches for the timed steps, and the seconds of a batch that reading and augmentation take one core."""
    cv2.setNumThreads(1)
    watch = Stopwatch(torch.device("cpu"))
    read, change = watch.timed(pairs.read, "reading"), watch.timed(augment, "augmentation")
    rng = np.random.default_rng(0)
    for member in pairs.draw(rng, config.batch_size):
        pair = read(member, rng)
        change(pair.panorama, pair.tile, pair.position, rng, config.augmentation)
    each = {stage: config.batch_size * statistics.mean(values) for stage, values in watch.seconds.items()}
    batches = Batches(pairs, config.batch_size, config.augmentation, seed=config.seed)
    return [{name: torch.from_numpy(value) for name, value in batches[n].items()} for n in range(3)], each


def time_stages(
    config: FitConfig, batches: list[dict[str, torch.Tensor]], rounds: int, folder: Path
) -> dict[str, float]:
    """Median seconds of each stage of a step, and of what is none of them ("the rest")."""
    fabric = Fabric(accelerator=config.hardware.accelerator, devices=1, precision=config.hardware.precision)
    fabric.launch()
    run = Run(config, fabric)
    watch = Stopwatch(fabric.device)
    watch.watch(run.network, "encode_ground", "ground encoder")
    watch.watch(run.network, "encode_aerial", "aerial encoder")
    watch.watch(run.network, "decode", "decoder")
    watch.watch(run.objective.module, "forward", "forward")
    watch.watch(fabric, "backward", "backward")
    watch.watch(fabric, "clip_gradients", "clipping")
    watch.watch(run.optimiser, "step", "optimiser")
    step = watch.timed(run.step, "step")
    ready = [fabric.to_device(batch) for batch in batches]
    for number in tqdm(range(rounds + 2), desc="stages", leave=False):
        if number == 2:  # the first steps allocate, and compile if that is wanted
            watch.seconds.clear()
        step(0, ready[number % len(ready)], folder)
    each = {stage: np.array(values) for stage, values in watch.seconds.items()}  # one value a step
    each["losses"] = each.pop("forward") - sum(each[stage] for stage in NETWORK[:3])
    stages = {stage: each[stage] for stage in (*NETWORK[:3], "losses", "backward", "clipping", "optimiser")}
    stages["the rest"] = each["step"] - sum(stages.values())
    return {stage: float(np.median(values)) for stage, values in stages.items()}


def time_run(config: FitConfig, pairs: TownPairs, folder: Path) -> tuple[float, float]:
    """The share of the second half of a run during which it waits for data, and the seconds of a step there."""
    fit(config, pairs, folder / "run")
    log = EventAccumulator(str(folder / "run"))
    log.Reload()
    last = {name: log.Scalars(name)[-1].value for name in ("waiting_for_data", "pairs_per_s")}
    return last["waiting_for_data"], config.batch_size / last["pairs_per_s"]


def judge(
    config: FitConfig,
    preparing: dict[str, float],
    stages: dict[str, float],
    waiting: float,
    step: float,
    quiet: bool,
) -> int:
    """Print the table and the ratios; the exit status."""
    whole, workers = sum(stages.values()), config.hardware.workers
    print(f"{config.network.backbone}, batches of {config.batch_size}, {config.hardware.precision}:")
    for stage, seconds in {**preparing, **stages}.items():
        share = "on one core, in parallel" if stage in preparing else f"{seconds / whole:.1%} of a step"
        print(
            f"  {stage:16} {config.batch_size / seconds:10.1f} pairs a second {1e3 * seconds:8.1f} ms a batch, {share}"
        )
    print(f"  {'a step':16} {config.batch_size / whole:10.1f} pairs a second {1e3 * whole:8.1f} ms")
    print(f"  {'in a run':16} {config.batch_size / step:10.1f} pairs a second {1e3 * step:8.1f} ms")
    network = sum(stages[name] for name in NETWORK)
    kept = [
        verdict("time that the run waits for data", waiting, 0.05),
        clock_verdict("a step of the run / the sum of its stages", step / whole, 1.2, quiet=quiet),
        verdict("preparing a batch / a step, by worker", sum(preparing.values()) / max(1, workers) / step, 1.0),
        verdict("losses, clipping, optimiser and the rest / a step", 1 - network / whole, 0.15),
    ]
    return 0 if all(kept) else 1


if __name__ == "__main__":
    sys.exit(main())
