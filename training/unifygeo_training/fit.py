"""`unifygeo-train fit`: the training run, on Lightning Fabric."""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from lightning.fabric import Fabric
from lightning.fabric.loggers import TensorBoardLogger
from torch import Tensor, nn
from torch.optim.lr_scheduler import CosineAnnealingLR, LinearLR, LRScheduler, SequentialLR
from tqdm import tqdm

from unifygeo_ros.core.errors import ConfigurationError, InputError, UnifyGeoError
from unifygeo_ros.core.files import new_file
from unifygeo_ros.inference.bundle import load_bundle
from unifygeo_training.checkpoint import load_network, load_strictly, read_tensors
from unifygeo_training.data.hard_negatives import ComparablePairs, DescriptorTable, HardNegatives
from unifygeo_training.data.pairs import Batches, PairSet
from unifygeo_training.descriptor_table import describe
from unifygeo_training.distillation import Teacher
from unifygeo_training.fit_config import FitConfig, OptimiserConfig, with_kind
from unifygeo_training.loading import loaded
from unifygeo_training.model.lite_trunk import first_layers, load_lite_weights
from unifygeo_training.model.network import UnifyGeo
from unifygeo_training.objective import Objective, exact
from unifygeo_training.unfold import freeze_norms, network_of_bundle

logger = logging.getLogger(__name__)

CHECKPOINT_NAME = "last.pt"
SMALLEST_GRADIENT_SCALE = 1.0
"""Gradients that overflow float16 with this factor or less overflow by themselves."""
Draw = Callable[[np.random.Generator, int], Sequence[Any]]


class NonFiniteLossError(UnifyGeoError):
    """Training met a loss or gradient that is not finite. The message says where the batch was saved."""


def fit(config: FitConfig, pairs: PairSet, output: Path | str, *, stop_after: int | None = None) -> Path:
    """Train, or go on where the checkpoint in `output` stopped. Returns the last checkpoint's path.

    stop_after: end at this step as a kill would, schedule unchanged (for tests and for sharing a machine).
    """
    output = Path(output)
    hardware = config.hardware
    if hardware.threads:
        torch.set_num_threads(hardware.threads)
    fabric = Fabric(
        accelerator=hardware.accelerator,
        devices=hardware.devices,
        num_nodes=hardware.nodes,
        # Until L_G joins, the semantic heads have no gradients: data-parallel training must expect that.
        strategy="ddp_find_unused_parameters_true" if hardware.strategy == "ddp" else hardware.strategy,
        precision=hardware.precision,
        loggers=TensorBoardLogger(output.parent, name=output.name, version=""),
    )
    fabric.launch()
    if fabric.is_global_zero:
        warn_of_emulated_bf16(hardware.precision, fabric.device)
    if config.batch_size % fabric.world_size:
        raise ConfigurationError(
            f"batch_size {config.batch_size} is not a multiple of the {fabric.world_size} devices; choose one that is"
        )
    if config.hard_negatives is not None and not isinstance(pairs, ComparablePairs):
        raise ConfigurationError(f"hard_negatives: {config.data.describe()} cannot be compared; leave them out")
    run = Run(config, fabric)
    first = run.resume(output / CHECKPOINT_NAME)
    if fabric.is_global_zero:
        output.mkdir(parents=True, exist_ok=True)
        (output / f".{CHECKPOINT_NAME}.part").unlink(missing_ok=True)  # of a run that was killed while it saved
        (output / "config.json").write_text(config.model_dump_json(indent=2) + "\n", encoding="utf-8")
    last = config.steps if stop_after is None else min(stop_after, config.steps)
    with _progress(config, fabric, first) as bar:
        clock = _Clock()
        for step, batch in run.batches(pairs, first, last, clock):
            values = run.step(step, batch, output)
            done = step + 1
            if done % config.log_every == 0 or done == last:
                numbers = {name: float(value) for name, value in values.items()}
                numbers |= clock.read(config.batch_size)
                fabric.log_dict(numbers, step=done)
                if fabric.is_global_zero:
                    _show(bar, done, numbers, config.batch_size)
            if done % config.checkpoint_every == 0 or done == last:
                run.save(output, done)
            bar.update()
    return output / CHECKPOINT_NAME


class _Clock:
    """How fast the run is, and how much of its time it waits for data."""

    def __init__(self) -> None:
        self._start, self._waited, self._batches = time.perf_counter(), 0.0, 0

    def waits(self, batches: Iterable[dict[str, Tensor]]) -> Iterator[dict[str, Tensor]]:
        iterator = iter(batches)
        while True:
            before = time.perf_counter()
            batch = next(iterator, None)
            self._waited += time.perf_counter() - before
            if batch is None:
                return
            self._batches += 1
            yield batch

    def read(self, batch_size: int) -> dict[str, float]:
        """Since the last reading. The caller has just read values off the device, so that its work is done."""
        seconds = time.perf_counter() - self._start
        speed = {"pairs_per_s": self._batches * batch_size / seconds, "waiting_for_data": self._waited / seconds}
        self._start, self._waited, self._batches = time.perf_counter(), 0.0, 0
        return speed


class Run:
    """The state of a run: what a checkpoint holds."""

    def __init__(self, config: FitConfig, fabric: Fabric) -> None:
        self.config, self.fabric = config, fabric
        fabric.seed_everything(config.seed, verbose=False)  # the same initial weights on every rank
        network = UnifyGeo(config.network, pretrained=config.pretrained)
        if config.trunk_weights:
            state = read_tensors(config.trunk_weights)
            for branch in (network.ground, network.aerial):
                load_lite_weights(branch.trunk, state, str(config.trunk_weights))
        if config.start_from:
            load_strictly(network, first_weights(config.start_from), str(config.start_from))
        objective = _objective(network, config, fabric.device)
        self.network = objective.network.to(memory_format=torch.channels_last)
        if fabric.device.type == "cpu" and config.hardware.precision != "32-true":
            use_float32_depthwise(self.network)
        if config.hardware.compile:
            _compile(self.network)
        optimiser = optimiser_of(self.network, config.optimiser)
        self.schedule = schedule_of(optimiser, config.optimiser, config.steps)
        self.objective, self.optimiser = fabric.setup(objective, optimiser)
        self._train()
        self.table: DescriptorTable | None = None

    def _train(self) -> None:
        self.objective.train()
        if self.config.start_from and self.config.start_from.is_dir():  # a bundle
            freeze_norms(self.network)
        if self.config.frozen_maps:
            for branch in (self.network.ground, self.network.aerial):
                freeze_norms(branch.trunk)
                for layer in first_layers(branch.trunk, self.config.frozen_maps):
                    layer.requires_grad_(requires_grad=False)

    def batches(self, pairs: PairSet, first: int, last: int, clock: _Clock) -> Iterator[tuple[int, dict[str, Tensor]]]:
        """Steps first … last − 1 with this rank's batches.

        Before some steps the descriptors of the places are recomputed.
        """
        hard, start = self.config.hard_negatives, first
        while start < last:
            end, draw = last, pairs.draw
            if hard is not None:
                end = min(last, hard.next_description(start))
                assert isinstance(pairs, ComparablePairs)  # `fit` refuses others
                if hard.describes_at(start):
                    self.table = describe(self.network, pairs, self.config, self.fabric, start)
                    self._train()
                if self.table is not None:
                    draw = HardNegatives(pairs, self.table, hard).draw
            batches = clock.waits(_batches(self.config, pairs, draw, self.fabric, start, end))
            yield from zip(range(start, end), batches, strict=True)
            start = end

    def step(self, step: int, batch: dict[str, Tensor], output: Path) -> dict[str, Tensor | float]:
        """One optimiser step. Raises NonFiniteLossError before anything that is not finite reaches the weights."""
        rate = self.schedule.get_last_lr()[0]
        inputs = {**batch, "position": exact(batch["position"])}
        values = self.objective(**inputs, alpha=self.config.losses.retrieval_at(step))
        self.optimiser.zero_grad(set_to_none=True)
        self.fabric.backward(values["loss"])
        norm = self.fabric.clip_gradients(
            self.objective, self.optimiser, max_norm=self.config.optimiser.clip_norm, error_if_nonfinite=False
        )
        loss_is_finite = bool(torch.isfinite(values["loss"]))
        if not loss_is_finite or not (bool(torch.isfinite(norm)) or self._scale_is_too_large()):
            self._fail(step, batch, values, float(norm), output)
        self.optimiser.step()  # with 16-mixed, gradients that overflowed skip it and halve the scale
        self.schedule.step()
        detached = {name: value.detach() for name, value in values.items()}
        return {**detached, "gradient_norm": norm.detach(), "learning_rate": rate}

    def _scale_is_too_large(self) -> bool:
        """Whether float16 gradients may have overflowed by their scale alone (`precision: 16-mixed`)."""
        scaler = getattr(self.fabric.strategy.precision, "scaler", None)
        return scaler is not None and scaler.get_scale() > SMALLEST_GRADIENT_SCALE

    def _fail(self, step: int, batch: dict[str, Tensor], values: dict[str, Tensor], norm: float, output: Path) -> None:
        output.mkdir(parents=True, exist_ok=True)
        file = output / f"not_finite_step{step}_rank{self.fabric.global_rank}.npz"
        np.savez(file, **{name: tensor.cpu().numpy() for name, tensor in batch.items()})
        terms = ", ".join(f"{name} {float(value.detach()):.4g}" for name, value in values.items())
        raise NonFiniteLossError(
            f"step {step}: {terms}, gradient norm {norm:.4g}: not finite, training stopped before the weights were "
            f"touched; the batch is in {file}; lower the learning rate or look at the images"
        )

    def save(self, output: Path, step: int) -> None:
        """Write the checkpoint; a kill at any moment leaves the old or the new one, never half of one."""
        state = {
            "network": self.config.network.model_dump(mode="json"),
            "model": {name: value.contiguous() for name, value in self.network.state_dict().items()},
            "optimiser": self.optimiser.state_dict(),
            "schedule": self.schedule.state_dict(),
            "precision": self.fabric.strategy.precision.state_dict(),
            "step": step,
            "config": self.config.model_dump(mode="json"),
            "trained_on": self.config.data.describe(),
            "ablation": self.config.ablation(),
        }
        if self.table is not None:
            state["hard_negatives"] = self.table.state()
        if self.fabric.is_global_zero:
            with new_file(output / CHECKPOINT_NAME) as stream:
                torch.save(state, stream)
        self.fabric.barrier()

    def resume(self, path: Path) -> int:
        """Load the checkpoint if there is one; the step to go on with. Raises InputError if it is another run's."""
        if not path.exists():
            return 0
        state = read_tensors(path)
        ours, theirs = self.config.model_dump(mode="json"), state.get("config", {})
        theirs = {**theirs, "data": with_kind(theirs.get("data"))}
        free = {"hardware", "log_every", "checkpoint_every"}  # where it runs and how often it reports may change
        changed = sorted(
            key for key in ours.keys() | theirs.keys() if ours.get(key) != theirs.get(key) and key not in free
        )
        if changed:
            raise InputError(
                f"{path} was written with another {', '.join(changed)} than the config says; "
                "choose another --output for a new run"
            )
        self.network.load_state_dict(state["model"], strict=True)
        self.optimiser.load_state_dict(state["optimiser"])
        self.schedule.load_state_dict(state["schedule"])
        self.fabric.strategy.precision.load_state_dict(state["precision"])
        if "hard_negatives" in state:
            self.table = DescriptorTable.from_state(state["hard_negatives"])
        return int(state["step"])


def _objective(network: UnifyGeo, config: FitConfig, device: torch.device) -> Objective:
    """The losses of a run, with its teacher if it has one."""
    if config.distillation is None:
        return Objective(network, config.losses)
    path, temperature = config.distillation.teacher, config.distillation.descriptor_temperature
    master = network_of_bundle(load_bundle(path)) if path.is_dir() else load_network(path)[0]
    teacher = Teacher(master.to(device), config.network, temperature)
    return Objective(network, config.losses, teacher, config.distillation.weight)


def first_weights(path: Path) -> Mapping[str, Tensor]:
    """The state dict of a checkpoint or of a bundle. Raises InputError or BundleError."""
    if path.is_dir():
        return network_of_bundle(load_bundle(path)).state_dict()
    weights: Mapping[str, Tensor] = read_tensors(path).get("model", {})
    return weights


def schedule_of(optimiser: torch.optim.Optimizer, config: OptimiserConfig, steps: int) -> LRScheduler:
    """Linear warm-up, then half a cosine to zero at the last step."""
    decay = CosineAnnealingLR(optimiser, max(1, steps - config.warmup_steps))
    if not config.warmup_steps:
        return decay
    warmup = LinearLR(optimiser, 1 / config.warmup_steps, total_iters=config.warmup_steps - 1)
    return SequentialLR(optimiser, [warmup, decay], milestones=[config.warmup_steps])


def optimiser_of(network: nn.Module, config: OptimiserConfig) -> torch.optim.AdamW:
    """AdamW; no decay for biases, norms, layer scales and temperatures."""
    groups: list[dict[str, Any]] = []
    for rate, of_trunk in ((1.0, False), (config.trunk_rate, True)):
        parameters = [p for name, p in network.named_parameters() if (".trunk." in name) == of_trunk]
        for decay, is_matrix in ((config.weight_decay, True), (0.0, False)):
            members = [p for p in parameters if (p.ndim > 1) == is_matrix]
            groups.append({"params": members, "weight_decay": decay, "lr": rate * config.learning_rate})
    return torch.optim.AdamW([group for group in groups if group["params"]], lr=config.learning_rate)


class Float32Depthwise(nn.Conv2d):
    """A depthwise convolution that autocast leaves in float32."""

    def forward(self, x: Tensor) -> Tensor:
        with torch.autocast(x.device.type, enabled=False):
            return super().forward(x.float()).to(x.dtype)


def use_float32_depthwise(network: nn.Module) -> None:
    """Change depthwise convolutions in place; their names in the state dict stay.

    On CPUs their backward pass takes two to eighty times as long in bfloat16 as in float32 (torch 2.15, oneDNN): an
    EfficientNet-Lite0 learns 1.7 times as fast with this (`benchmarks/depthwise.py`).
    """
    for module in network.modules():
        if type(module) is nn.Conv2d and module.groups == module.in_channels > 1:
            module.__class__ = Float32Depthwise


def _compile(network: UnifyGeo) -> None:
    """Compile the large parts in place, which leaves the names in the state dict as they are."""
    for branch in (network.ground, network.aerial):
        branch.trunk.compile()
        branch.fine_head.compile()
        branch.semantic_head.compile()
    network.decoder.compile()


def _batches(
    config: FitConfig, pairs: PairSet, draw: Draw, fabric: Fabric, first: int, last: int
) -> Iterable[dict[str, Tensor]]:
    """This rank's batches of steps first … last − 1, on its device, prepared ahead by the workers."""
    batches = Batches(
        pairs,
        config.batch_size // fabric.world_size,
        config.augmentation,
        seed=config.seed,
        rank=fabric.global_rank,
        world_size=fabric.world_size,
        draw=draw,
    )
    return loaded(batches, range(first, last), fabric, workers=config.hardware.workers)


def _progress(config: FitConfig, fabric: Fabric, first: int) -> tqdm[Any]:
    """A bar over the whole run that knows when it ends. Not drawn into files, where every update would stay."""
    hidden = not fabric.is_global_zero or not sys.stderr.isatty()
    return tqdm(total=config.steps, initial=first, unit="step", disable=hidden, mininterval=10.0)


def _show(bar: tqdm[Any], done: int, numbers: dict[str, float], batch_size: int) -> None:
    """The numbers beside the bar, or in a line of the log where there is none."""
    short = {name: f"{number:.3g}" for name, number in numbers.items()}
    if not bar.disable:
        bar.set_postfix(short, refresh=False)
        return
    minutes = (bar.total - done) * batch_size / numbers["pairs_per_s"] / 60
    text = ", ".join(f"{name} {number}" for name, number in short.items())
    logger.info("step %d of %d, %.0f min left: %s", done, bar.total, minutes, text)


def warn_of_emulated_bf16(precision: str, device: torch.device) -> None:
    """One warning where `bf16-mixed` would make the run slower than float32: a CPU without instructions for it.

    It is measured, because processors that have them are of several families.
    """
    if precision != "bf16-mixed" or device.type != "cpu":
        return
    ratio = bf16_time_ratio()
    if ratio > 1.0:
        logger.warning(
            "precision bf16-mixed takes %.1f times as long as float32 on this CPU (measured on a convolution): it has "
            "no instructions for bfloat16, as AVX-512 BF16 or AMX; end the run and give "
            "--set hardware.precision=32-true",
            ratio,
        )


def fastest_precision() -> Literal["bf16-mixed", "32-true"]:
    """Mixed with bfloat16 on a GPU, and on a CPU that has instructions for it; float32 elsewhere."""
    return "bf16-mixed" if torch.cuda.is_available() or bf16_time_ratio() < 1.0 else "32-true"


def bf16_time_ratio() -> float:
    """Processor time of a convolution like the network's in bfloat16 over that in float32, the least of five each."""
    images, kernel = torch.ones(2, 64, 24, 24), torch.ones(256, 64, 1, 1)
    seconds: dict[torch.dtype, list[float]] = {torch.float32: [], torch.bfloat16: []}
    with torch.inference_mode():
        for _ in range(6):  # the first ones are a warm-up
            for dtype, found in seconds.items():
                a, b = images.to(dtype), kernel.to(dtype)
                start = time.process_time()
                torch.nn.functional.conv2d(a, b)
                found.append(time.process_time() - start)
    return min(seconds[torch.bfloat16][1:]) / min(seconds[torch.float32][1:])
