"""What INT8 costs and saves on this processor (`python benchmarks/int8.py [FP32_BUNDLE INT8_BUNDLE]`).

A bundle, and the INT8 bundle that `unifygeo-train export --quantise` made of it; without them a network of the
published size with random weights, made, exported and quantised here (two minutes; needs the training package and
PyTorch), all of whose layers are INT8 that can be: good for times, and for nothing else. In turn, in one process:

* the three graphs, for one image;
* a fix with a warm tile, of each bundle, and the bare fp32 sessions that it needs, ground encoder and decoder (INT8 at
  most 0.5 ×);
* building an index: its tiles, cut and encoded (fp32 at least 1.8 ×).

Ratios are of processor time. Images are 768×384, the demo's (--columns 2048 for others), imagery is of random colours.
Exits with 1 when a limit is missed; on a processor that multiplies int8 no faster than floats, that is to be expected.
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
import itertools
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Callable, Iterator

import numpy as np
import onnxruntime
from fix import coloured_panorama
from index_build import write_imagery
from measuring import describe_machine, measure, verdict

from unifygeo_ros.aerial.build import build_index
from unifygeo_ros.aerial.index import open_index
from unifygeo_ros.core.arrays import Array
from unifygeo_ros.core.records import CameraImage, Heading, HeadingSource, Query
from unifygeo_ros.inference.bundle import (
    GRAPHS,
    GROUND_FEATURES,
    MANIFEST_NAME,
    PYRAMID,
    GraphFile,
    ModelBundle,
    load_bundle,
    sha256_of_file,
)
from unifygeo_ros.inference.engine import EngineSet
from unifygeo_ros.inference.interface import expected_inputs
from unifygeo_ros.inference.onnxruntime_engine import session_options
from unifygeo_ros.inference.select import open_engines
from unifygeo_ros.localization.localizer import Localizer

INSTRUCTIONS = ("avx2", "avx512f", "avx_vnni", "avx512_vnni", "amx_int8", "asimddp")
"""As /proc/cpuinfo calls what int8 products are computed with."""
PRECISIONS = ("fp32", "int8")
FIX_LIMIT, BUILD_LIMIT = 0.5, 1.8
IMAGES = 3


@dataclass(frozen=True)
class Pair:
    """The same weights in both precisions."""

    bundles: dict[str, ModelBundle]
    engines: dict[str, EngineSet]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundles", type=Path, nargs="*", metavar="BUNDLE", help="the fp32 one, then the INT8 one")
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--columns", type=int, default=768, help="of the camera's images, twice their rows")
    parser.add_argument("--threads", type=int, default=1, help="of each session; 0: one for each core")
    options = parser.parse_args()
    if len(options.bundles) not in (0, 2):
        parser.error("give two bundles, or none")
    flags = set(Path("/proc/cpuinfo").read_text(encoding="utf-8").split())
    print(f"{describe_machine('onnxruntime')}; has {', '.join(name for name in INSTRUCTIONS if name in flags)}")
    with tempfile.TemporaryDirectory() as temporary:
        paths = options.bundles or _published(Path(temporary))
        bundles = dict(zip(PRECISIONS, map(load_bundle, paths), strict=True))
        engines = {
            p: open_engines(b, backend="onnx_cpu", precision=p, threads=options.threads) for p, b in bundles.items()
        }
        pair = Pair(bundles, engines)
        print(f"{'':28} {'fp32':>10} {'int8':>10} {'ratio':>6}")
        graphs(pair, options.rounds)
        kept = fixes(pair, Path(temporary), options)
        return 0 if build(pair, Path(temporary)) and kept else 1


def graphs(pair: Pair, rounds: int) -> None:
    """The three graphs, and the bundles' files."""
    total = dict.fromkeys(PRECISIONS, 0.0)
    for graph in GRAPHS:
        feed = noise_input(pair.bundles["fp32"], graph)
        runs = {p: functools.partial(getattr(engines, graph).run, feed) for p, engines in pair.engines.items()}
        costs = {p: 1e3 * cost.processor for p, cost in measure(runs, rounds).items()}
        total = {p: total[p] + cost for p, cost in costs.items()}
        _print_row(graph, costs, "ms")
    _print_row("all three", total, "ms")
    _print_row("files", {precision: _megabytes(bundle, precision) for precision, bundle in pair.bundles.items()}, "MB")


def fixes(pair: Pair, folder: Path, options: argparse.Namespace) -> bool:
    """Fixes with warm tiles and the bare sessions; whether the limit is kept."""
    spec = pair.bundles["fp32"].manifest.aerial
    imagery = write_imagery(folder / "imagery.tif", 3.1 * spec.side_m, spec.metres_per_pixel / 2)
    rng = np.random.default_rng(1)
    north = Heading(np.pi / 2, 1e-4, HeadingSource.CONSTANT)
    images = [coloured_panorama(rng, options.columns, n) for n in range(IMAGES)]
    runs: dict[str, Callable[[], object]] = {}
    for precision, bundle in pair.bundles.items():
        index_folder = folder / f"index-{precision}"
        build_index([imagery], bundle, pair.engines[precision], index_folder)
        localizer = Localizer(open_index(index_folder, bundle=bundle), bundle, pair.engines[precision])
        for image in images:  # every tile that wins is warm
            found = localizer.observe(image, Query(heading=north))
            assert hasattr(found, "matches"), found
        runs[precision] = functools.partial(_locate_next, localizer, itertools.cycle(images), Query(heading=north))
    runs["bare"] = _bare_sessions(pair, options.threads)
    costs = measure(runs, options.rounds)
    _print_row("a fix with a warm tile", {p: 1e3 * costs[p].processor for p in PRECISIONS}, "ms")
    bare = costs["bare"]
    fp32_share = costs["fp32"].processor / bare.processor
    print(f"bare fp32 sessions of a fix: {1e3 * bare.processor:.1f} ms, the fp32 fix {fp32_share:.2f} of that")
    return verdict("INT8 fix / bare fp32 sessions", costs["int8"].processor / bare.processor, FIX_LIMIT)


def build(pair: Pair, folder: Path) -> bool:
    """Index builds, two of each; whether the limit is kept."""
    runs = {
        p: functools.partial(_build, bundle, pair.engines[p], folder / "imagery.tif", folder / f"built-{p}")
        for p, bundle in pair.bundles.items()
    }
    costs = measure(runs, 3)
    _print_row("an index", {p: 1e3 * cost.processor for p, cost in costs.items()}, "ms")
    ratio = costs["fp32"].processor / costs["int8"].processor
    return verdict("index build, fp32 / INT8", ratio, BUILD_LIMIT, at_least=True)


def _build(bundle: ModelBundle, engines: EngineSet, imagery: Path, folder: Path) -> None:
    number = next(number for number in itertools.count() if not Path(f"{folder}-{number}").exists())
    build_index([imagery], bundle, engines, Path(f"{folder}-{number}"))


def _published(folder: Path) -> list[Path]:
    """A bundle of the published size with random weights, and the same in INT8."""
    import onnx
    from index_build import published_size

    from unifygeo_training.quantise.graph import quantise_all

    parent = published_size(folder / "published")
    output = folder / "published-int8"
    output.mkdir()
    graphs = {}
    for graph in GRAPHS:
        file = output / f"{graph}.int8.onnx"
        onnx.save(quantise_all(parent.graph_path(graph, "fp32"), [noise_input(parent, graph)]), file)
        graphs[graph] = {"int8": GraphFile(file.name, sha256_of_file(file))}
    manifest = dataclasses.replace(parent.manifest, graphs=graphs)
    (output / MANIFEST_NAME).write_text(manifest.to_json(), encoding="utf-8")
    return [parent.path, output]


def _locate_next(localizer: Localizer, images: Iterator[CameraImage], query: Query) -> None:
    localizer.locate(next(images), query)


def _bare_sessions(pair: Pair, threads: int) -> Callable[[], object]:
    """The fp32 graphs that a fix with a warm tile cannot do without."""
    bundle = pair.bundles["fp32"]
    sessions = {
        graph: onnxruntime.InferenceSession(
            str(bundle.graph_path(graph, "fp32")), session_options(threads), providers=["CPUExecutionProvider"]
        )
        for graph in ("ground_encoder", "decoder")
    }
    ground = noise_input(bundle, "ground_encoder")
    pyramid = pair.engines["fp32"].aerial_encoder.run(noise_input(bundle, "aerial_encoder"), PYRAMID)

    def run() -> None:
        levels = sessions["ground_encoder"].run(GROUND_FEATURES, ground)
        sessions["decoder"].run(("logits",), {**dict(zip(GROUND_FEATURES, levels, strict=True)), **pyramid})

    return run


def noise_input(bundle: ModelBundle, graph: str) -> dict[str, Array]:
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
    print(f"{name:28} {values['fp32']:7.1f} {unit} {values['int8']:7.1f} {unit} {ratio:6.2f}", flush=True)


if __name__ == "__main__":
    sys.exit(main())
