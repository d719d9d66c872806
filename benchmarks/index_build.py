"""How busy the encoder is while an index is built (`python benchmarks/index_build.py`).

Network of the published size with random weights, ONNX Runtime on the CPU, a compressed GeoTIFF at half the model's
metres per pixel in another CRS than the map's. The share of the build's time during which the encoder runs must be at
least 90%: reading, warping, packing and writing happen at the same time. The network is made and exported here (a
minute) unless --bundle gives one exported before. Exits with 1 when the limit is missed.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from pathlib import Path

import cv2
import numpy as np
import rasterio
from measuring import describe_machine, verdict
from rasterio.transform import from_origin

from unifygeo_ros.aerial.build import build_index
from unifygeo_ros.aerial.settings import BuildSettings
from unifygeo_ros.inference.bundle import ModelBundle, load_bundle
from unifygeo_ros.inference.select import open_engines


def write_imagery(path: Path, side_m: float, metres_per_pixel: float) -> Path:
    """Textured, tiled, deflated, in UTM."""
    size = round(side_m / metres_per_pixel)
    rng = np.random.default_rng(0)
    coarse = rng.integers(20, 236, (size // 40, size // 40, 3), dtype=np.uint8)
    pixels = cv2.resize(coarse, (size, size), interpolation=cv2.INTER_CUBIC)
    pixels = cv2.add(pixels, rng.integers(0, 12, pixels.shape, dtype=np.uint8))
    settings = {"driver": "GTiff", "width": size, "height": size, "count": 3, "dtype": "uint8", "crs": "EPSG:32632",
                "transform": from_origin(560_000.0, 5_372_000.0, metres_per_pixel, metres_per_pixel),
                "compress": "deflate", "tiled": True, "blockxsize": 256, "blockysize": 256}  # fmt: skip
    with rasterio.open(path, "w", **settings) as file:
        file.write(np.moveaxis(pixels, 2, 0))
    return path


def published_size(folder: Path) -> ModelBundle:
    """A bundle of the published size with random weights. Needs the training package and PyTorch."""
    from fix import network

    from unifygeo_training.export import BundleText, export_bundle

    return export_bundle(network(), folder, BundleText("random", "none", "nothing"), precisions=("fp32",))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--bundle", type=Path, help="a bundle to build with, instead of exporting one")
    parser.add_argument("--side", type=float, default=350.0, help="of the imagery, metres")
    args = parser.parse_args()
    print(describe_machine("onnxruntime", "rasterio", "opencv-python"))
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        bundle = load_bundle(args.bundle) if args.bundle else published_size(folder / "bundle")
        spec = bundle.manifest.aerial
        imagery = write_imagery(folder / "imagery.tif", args.side, spec.metres_per_pixel / 2)
        with open_engines(bundle, backend="onnx_cpu", precision="fp32") as engines:
            report = build_index([imagery], bundle, engines, folder / "index", settings=BuildSettings())
            # The encoder alone, for comparison: what one batch takes when nothing else runs.
            batch = np.zeros((BuildSettings.batch_size, spec.size, spec.size, 3), np.uint8)
            engines.aerial_encoder.run({"image": batch})
            started = time.perf_counter()
            engines.aerial_encoder.run({"image": batch})
            alone = (time.perf_counter() - started) / len(batch)
        size = sum(file.stat().st_size for file in report.path.iterdir())
        print(f"{report.tiles} tiles of {spec.size}x{spec.size} in {report.seconds:.1f} s: "
              f"{report.seconds / report.tiles * 1e3:.0f} ms a tile (encoder alone {alone * 1e3:.0f} ms), "
              f"{size / report.tiles / 1e3:.0f} kB a tile")  # fmt: skip
        return 0 if verdict("time during which the encoder runs", report.encoder_share, 0.9, at_least=True) else 1


if __name__ == "__main__":
    sys.exit(main())
