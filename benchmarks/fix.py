"""What a fix costs, by the work it cannot do without (`python benchmarks/fix.py`).

ONNX Runtime on the CPU, a warm tile, all in one run and in turn:

* a fix against the bare sessions it needs, ground encoder and decoder (at most 1.15 ×);
* a plain eager PyTorch pass that encodes the query and its five candidates and decodes, against a fix (at least 3 ×);
* re-ranking five candidates from the mapped maps, as a part of a fix (under 2%);
* the heading search's matching, as a part of a fix (under 10%), and how often a fix without a heading takes the time of
  one with a heading.

A network of the published size is made and exported here (a minute), unless --bundle gives another one; the limits are
those of the published size. Needs the training package and PyTorch. Exits with 1 when a limit is missed. The first is
judged by processor time, and by the clock unless other programs were busy meanwhile.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
from pathlib import Path

import cv2
import numpy as np
import onnxruntime
import rasterio
import torch
from measuring import Others, clock_verdict, describe_machine, measure, verdict
from rasterio.transform import from_origin

from unifygeo_ros.aerial.build import build_index
from unifygeo_ros.aerial.index import open_index
from unifygeo_ros.core.records import CameraImage, Heading, HeadingSource, Query
from unifygeo_ros.inference.bundle import GROUND_FEATURES, PYRAMID, ModelBundle, load_bundle
from unifygeo_ros.inference.onnxruntime_engine import session_options
from unifygeo_ros.inference.select import open_engines
from unifygeo_ros.localization.config import LocalizerConfig
from unifygeo_ros.localization.localizer import Localizer
from unifygeo_training.export import BundleText, export_bundle
from unifygeo_training.model import NetworkConfig
from unifygeo_training.model.network import UnifyGeo

CANDIDATES = LocalizerConfig().candidates
IMAGES = 3


def network(config: NetworkConfig | None = None) -> UnifyGeo:
    """With random weights; of the published size, unless a config is given."""
    torch.manual_seed(0)
    return UnifyGeo(config or NetworkConfig()).eval().requires_grad_(False)


def coloured_panorama(rng: np.random.Generator, columns: int, stamp_ns: int) -> CameraImage:
    """Colours that change every few degrees; both ends are one direction, the first and the last row one point each."""
    coarse = rng.integers(0, 256, (18, 36, 3), dtype=np.uint8)
    coarse[[0, -1]], coarse[:, -1] = coarse[[0, -1], :1], coarse[:, 0]
    pixels = cv2.resize(coarse, (columns, columns // 2), interpolation=cv2.INTER_CUBIC)
    return CameraImage(np.asarray(pixels, np.uint8), stamp_ns)


def random_imagery(path: Path, side_m: float, metres_per_pixel: float) -> Path:
    """A GeoTIFF of colours that change every few metres."""
    size = round(side_m / metres_per_pixel)
    noise = np.random.default_rng(0).integers(0, 256, (size // 40, size // 40, 3), dtype=np.uint8)
    pixels = cv2.resize(noise, (size, size), interpolation=cv2.INTER_CUBIC)
    transform = from_origin(500_000.0, 5_372_000.0, metres_per_pixel, metres_per_pixel)
    with rasterio.open(
        path,
        "w",
        driver="GTiff",
        width=size,
        height=size,
        count=3,
        dtype="uint8",
        crs="EPSG:32632",
        transform=transform,
    ) as file:
        file.write(np.moveaxis(pixels, 2, 0))
    return path


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--bundle", type=Path, help="a bundle of any size, instead of exporting one of the published")
    parser.add_argument("--rounds", type=int, default=15)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        if args.bundle:
            bundle = load_bundle(args.bundle)
            model = network(NetworkConfig(**bundle.manifest.network))
        else:
            model = network()
            text = BundleText("random", "none", "nothing")
            bundle = export_bundle(model, folder / "bundle", text, precisions=("fp32",))
        return compare(model, bundle, folder, args.rounds)


def compare(model: UnifyGeo, bundle: ModelBundle, folder: Path, rounds: int) -> int:
    spec = bundle.manifest.aerial
    imagery = random_imagery(folder / "imagery.tif", 3.1 * spec.side_m, spec.metres_per_pixel)
    rng = np.random.default_rng(1)
    images = [coloured_panorama(rng, 2048, n) for n in range(IMAGES)]
    north = Heading(np.pi / 2, 1e-4, HeadingSource.CONSTANT)
    with open_engines(bundle, backend="onnx_cpu", precision="fp32") as engines:
        build_index([imagery], bundle, engines, folder / "index")
        index = open_index(folder / "index", bundle=bundle)
        localizer = Localizer(index, bundle, engines, LocalizerConfig(candidates=CANDIDATES))
        timings: dict[str, list[float]] = {}

        def fix(heading: Heading | None, name: str) -> None:
            """One image after the other; the tiles they win are in the cache after the first."""
            image = images[len(timings.get(f"{name} total", ())) % IMAGES]
            result = localizer.locate(image, Query(heading=heading))
            assert "decision" in result.timings_ms, result  # rejected before the network saw it
            for stage, value in result.timings_ms.items():
                timings.setdefault(f"{name} {stage}", []).append(value)

        sessions = {
            graph: onnxruntime.InferenceSession(
                str(bundle.graph_path(graph, "fp32")), session_options(), providers=["CPUExecutionProvider"]
            )
            for graph in ("ground_encoder", "decoder")
        }
        ground = rng.integers(0, 256, (1, bundle.manifest.ground.height, bundle.manifest.ground.width, 3), np.uint8)
        tiles = rng.integers(0, 256, (CANDIDATES, spec.size, spec.size, 3), np.uint8)
        pyramid = engines.aerial_encoder.run({"image": tiles[:1]}, PYRAMID)

        def bare() -> None:
            f = dict(
                zip(GROUND_FEATURES, sessions["ground_encoder"].run(GROUND_FEATURES, {"image": ground}), strict=True)
            )
            sessions["decoder"].run(("logits",), {**f, **pyramid})

        @torch.inference_mode()
        def eager() -> None:
            query = model.encode_ground(torch.from_numpy(ground))
            candidates = model.encode_aerial(torch.from_numpy(tiles))
            model.decode(query.levels, tuple(level[:1] for level in candidates.pyramid))

        for _ in range(IMAGES):  # every tile that wins is warm
            fix(north, "warm-up")
            fix(None, "warm-up")
        timings.clear()
        others = Others()
        costs = measure(
            {
                "fix": lambda: fix(north, "given"),
                "bare sessions": bare,
                "fix without heading": lambda: fix(None, "searched"),
                "eager PyTorch": eager,
            },
            rounds,
        )
        quiet = others.were_quiet()
    print(describe_machine("onnxruntime", "torch", "numpy"))
    print(f"{len(index)} tiles, {rounds} rounds in turn, medians:")
    for name, cost in costs.items():
        print(f"  {name}: {cost.clock * 1e3:.1f} ms, of the processor {cost.processor * 1e3:.1f} ms")
    stages = {name: statistics.median(values) for name, values in timings.items()}
    print(
        "  stages of a fix, ms: " + ", ".join(f"{n[6:]} {v:.1f}" for n, v in stages.items() if n.startswith("given "))
    )
    fix_cost, bare_cost, eager_cost = costs["fix"], costs["bare sessions"], costs["eager PyTorch"]
    fix_ms, searched_ms = fix_cost.clock * 1e3, costs["fix without heading"].clock * 1e3
    kept = [
        clock_verdict("fix / bare sessions", fix_cost.clock / bare_cost.clock, 1.15, quiet=quiet),
        verdict("fix / bare sessions, by processor time", fix_cost.processor / bare_cost.processor, 1.15),
        verdict("eager PyTorch with five candidates / fix", eager_cost.clock / fix_cost.clock, 3.0, at_least=True),
        verdict("re-ranking / fix", stages["given reranking"] / fix_ms, 0.02),
        verdict("heading search / fix", stages["searched heading_search"] / fix_ms, 0.10),
    ]
    print(f"fix without heading / fix {searched_ms / fix_ms:.1f}")
    print(f"by processor time: eager PyTorch / fix {eager_cost.processor / fix_cost.processor:.3f}")
    return 0 if all(kept) else 1


if __name__ == "__main__":
    sys.exit(main())
