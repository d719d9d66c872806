"""What INT8 costs and saves on this processor (`python benchmarks/int8.py FP32_BUNDLE INT8_BUNDLE`).

The three graphs of a bundle and of the INT8 bundle that `unifygeo-train export --quantise` made of it, in ONNX Runtime
on one thread, in turn, on noise: processor time and size. It judges nothing: the processor's instructions decide.
"""

from __future__ import annotations

import argparse
import functools
from pathlib import Path

import numpy as np
from measuring import describe_machine, measure

from unifygeo_ros.core.arrays import Array
from unifygeo_ros.inference.bundle import GRAPHS, ModelBundle, load_bundle
from unifygeo_ros.inference.interface import expected_inputs
from unifygeo_ros.inference.select import open_engines

INSTRUCTIONS = ("avx2", "avx512f", "avx_vnni", "avx512_vnni", "amx_int8", "asimddp")
"""As /proc/cpuinfo calls what int8 products are computed with."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("fp32", type=Path)
    parser.add_argument("int8", type=Path)
    parser.add_argument("--rounds", type=int, default=20)
    options = parser.parse_args()
    bundles = {"fp32": load_bundle(options.fp32), "int8": load_bundle(options.int8)}
    flags = set(Path("/proc/cpuinfo").read_text(encoding="utf-8").split())
    print(f"{describe_machine('onnxruntime')}; has {', '.join(name for name in INSTRUCTIONS if name in flags)}")
    print(f"{'':16} {'fp32':>9} {'int8':>9} {'ratio':>6}")
    sets = {p: open_engines(b, backend="onnx_cpu", precision=p, threads=1) for p, b in bundles.items()}
    total = dict.fromkeys(bundles, 0.0)
    for graph in GRAPHS:
        feed = _noise(bundles["fp32"], graph)
        runs = {p: functools.partial(getattr(engines, graph).run, feed) for p, engines in sets.items()}
        costs = {p: 1e3 * cost.processor for p, cost in measure(runs, options.rounds).items()}
        total = {p: total[p] + cost for p, cost in costs.items()}
        _print_row(graph, costs, "ms")
    _print_row("all three", total, "ms")
    _print_row("files", {precision: _megabytes(bundle, precision) for precision, bundle in bundles.items()}, "MB")


def _noise(bundle: ModelBundle, graph: str) -> dict[str, Array]:
    """Inputs of one image."""
    rng = np.random.default_rng(0)
    return {
        spec.name: rng.integers(0, 256, (1, *spec.shape), dtype=np.uint8)
        if spec.dtype == np.uint8
        else rng.normal(size=(1, *spec.shape)).astype(np.float32)
        for spec in expected_inputs(bundle.manifest, graph, "fp32")
    }


def _megabytes(bundle: ModelBundle, precision: str) -> float:
    names = {name for files in bundle.manifest.graphs.values() for name, _ in files[precision].files}
    return sum((bundle.path / name).stat().st_size for name in names) / 1e6


def _print_row(name: str, values: dict[str, float], unit: str) -> None:
    ratio = values["int8"] / values["fp32"]
    print(f"{name:16} {values['fp32']:6.1f} {unit} {values['int8']:6.1f} {unit} {ratio:6.2f}")


if __name__ == "__main__":
    main()
