"""What the members of the family cost (`python benchmarks/family.py BUNDLE …`).

Parameters, multiplications of one image (ground encoder, aerial encoder, decoder), and the processor time of each graph
in ONNX Runtime on one thread, in turn and in one process. A fix with a warm tile is the ground encoder and the decoder;
its last column is as a share of the first bundle's. INT8 bundles are members like others. Needs the training package.
"""

from __future__ import annotations

import argparse
import functools
from pathlib import Path

import torch
from int8 import noise_input
from measuring import describe_machine, measure
from torch.utils.flop_counter import FlopCounterMode

from unifygeo_ros.inference.bundle import GRAPHS, ModelBundle, load_bundle
from unifygeo_ros.inference.select import choose_precision, open_engines
from unifygeo_training.model import NetworkConfig, UnifyGeo

FIX = ("ground_encoder", "decoder")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundles", type=Path, nargs="+", metavar="BUNDLE")
    parser.add_argument("--rounds", type=int, default=30)
    options = parser.parse_args()
    bundles = {path.name: load_bundle(path) for path in options.bundles}
    runs = {}
    for name, bundle in bundles.items():
        precision = choose_precision(bundle, "onnx_cpu", "auto")
        engines = open_engines(bundle, backend="onnx_cpu", precision=precision, threads=1)
        for graph in GRAPHS:
            runs[f"{name} {graph}"] = functools.partial(getattr(engines, graph).run, noise_input(bundle, graph))
    costs = {name: 1e3 * cost.processor for name, cost in measure(runs, options.rounds).items()}
    print(describe_machine("onnxruntime"))
    print(f"{'':20} {'parameters':>10} {'10⁶ multiplications':>22} {'ms, by graph':>20} {'a fix':>8} {'share':>6}")
    first = next(iter(bundles))
    for name, bundle in bundles.items():
        by_graph = [costs[f"{name} {graph}"] for graph in GRAPHS]
        fix = sum(costs[f"{name} {graph}"] for graph in FIX)
        share = fix / sum(costs[f"{first} {graph}"] for graph in FIX)
        parameters, multiplications = arithmetic(bundle)
        print(
            f"{name:20} {parameters / 1e6:8.2f} M "
            f"{' + '.join(f'{1e-6 * n:.0f}' for n in multiplications):>22} "
            f"{' + '.join(f'{ms:.1f}' for ms in by_graph):>20} {fix:5.1f} ms {share:6.2f}"
        )


def arithmetic(bundle: ModelBundle) -> tuple[int, list[int]]:
    """Parameters, and multiplications of one image in each of GRAPHS: convolutions and matrix products."""
    network = UnifyGeo(NetworkConfig(**bundle.manifest.network)).eval()
    config = network.config
    panorama = torch.zeros(1, config.ground_height, config.ground_width, 3, dtype=torch.uint8)
    tile = torch.zeros(1, config.aerial_size, config.aerial_size, 3, dtype=torch.uint8)
    counts = {}
    with torch.inference_mode():
        with FlopCounterMode(display=False) as counter:
            ground = network.encode_ground(panorama)
        counts["ground_encoder"] = counter.get_total_flops() // 2
        with FlopCounterMode(display=False) as counter:
            aerial = network.encode_aerial(tile)
        counts["aerial_encoder"] = counter.get_total_flops() // 2
        with FlopCounterMode(display=False) as counter:
            network.decode(ground.levels, aerial.pyramid)
        counts["decoder"] = counter.get_total_flops() // 2
    return sum(p.numel() for p in network.parameters()), [counts[graph] for graph in GRAPHS]


if __name__ == "__main__":
    main()
