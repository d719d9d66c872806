"""How long the localizer takes to start, and how much memory it takes (`python benchmarks/start.py`).

Each row is a step of a fresh process, as the node takes them (`unifygeo_ros/ros/loading.py`): seconds on the clock, and
the memory that the process holds after it. "own" is memory that nothing else can use, the rest are files that the
system may drop. Then the first search of a whole index of a million tiles, with and without
`TileIndex.prepare_search` before.

It judges nothing: it is run before and after a change. Linux alone.
"""

from __future__ import annotations

import argparse
import math
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from measuring import describe_machine

ROOT = Path(__file__).resolve().parents[1]
MILLION = 1_000_000
PREPARED_S = 30.0
"""Time that the preparation has, as while engines are opened and the camera starts."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", type=Path, default=ROOT / "models/towns-photo")
    parser.add_argument("--index", type=Path, help="made with the model (default: of the demo's town)")
    parser.add_argument("--image", type=Path, help="a panorama (default: one of the demo's)")
    parser.add_argument("--backend", default="onnx_cpu")
    parser.add_argument("--step", choices=("start", "search", "prepared"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.step == "start":
        _start(options.model, options.index, options.image, options.backend)
    elif options.step is not None:
        _search(options.index, prepare=options.step == "prepared")
    else:
        from index_search import sparse_index  # not in the children, whose memory it would take

        print(describe_machine("onnxruntime", "faiss-cpu"))
        with tempfile.TemporaryDirectory() as temporary:
            index = options.index or _demo_index(Path(temporary), options.model)
            image = str(options.image or _demo_image(Path(temporary)))
            _child("start", index, "--model", str(options.model), "--backend", options.backend, "--image", image)
            large = sparse_index(Path(temporary) / "large", MILLION, descriptor_dim=768, match_size=1, match_channels=1)
            for step in ("search", "prepared"):
                _child(step, large)


def _demo_index(folder: Path, model: Path) -> Path:
    command = ["index", "build", str(ROOT / "demo/drive/town.tif"), "--model", str(model)]
    command += ["--output", str(folder / "town")]
    subprocess.run([sys.executable, "-m", "unifygeo_ros.cli", *command], check=True, capture_output=True)
    return folder / "town"


def _demo_image(folder: Path) -> Path:
    command = [str(ROOT / "examples/extract_images.py"), str(ROOT / "demo/drive/bag"), "/camera/image/compressed"]
    subprocess.run([sys.executable, *command, str(folder / "images")], check=True, capture_output=True)
    return folder / "images/00080.jpg"


def _child(step: str, index: Path, *more: str) -> None:
    """A step in a process of its own."""
    subprocess.run([sys.executable, __file__, "--step", step, "--index", str(index), *more], check=True)


class Table:
    """Prints a row for each step: its seconds, and the process's memory after it."""

    def __init__(self) -> None:
        print(f"{'step':34} {'s':>6} {'MB':>6} {'own MB':>7}", flush=True)
        self._start = self._last = time.perf_counter()

    def row(self, step: str) -> None:
        now = time.perf_counter()
        resident, own = (_kilobytes(name) / 1024 for name in ("VmRSS", "RssAnon"))
        print(f"{step:34} {now - self._last:6.2f} {resident:6.0f} {own:7.0f}", flush=True)
        self._last = time.perf_counter()

    def total(self) -> None:
        print(f"{'together':34} {self._last - self._start:6.2f}", flush=True)


def _kilobytes(name: str) -> int:
    lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(f"{name}:"))


def _start(model: Path, index_folder: Path, image_file: Path, backend: str) -> None:
    table = Table()
    import cv2  # noqa: F401
    import numpy as np  # noqa: F401
    import onnxruntime  # noqa: F401

    table.row("numpy, OpenCV, ONNX Runtime")
    from unifygeo_ros.aerial.regions import open_map
    from unifygeo_ros.core.geodesy import yaw_from_azimuth
    from unifygeo_ros.core.records import CameraImage, Heading, HeadingSource, Query
    from unifygeo_ros.images.files import read_image
    from unifygeo_ros.inference.bundle import load_bundle
    from unifygeo_ros.inference.select import open_engines
    from unifygeo_ros.localization.localizer import Localizer
    from unifygeo_ros.sessions.factory import make_session  # noqa: F401

    table.row("modules of the session")
    bundle = load_bundle(model)
    table.row("bundle")
    index = open_map(index_folder, bundle=bundle)
    index.open_gpu_search()
    if hasattr(index, "prepare_search"):  # to compare with versions before it
        index.prepare_search()
    table.row("index")
    engines = open_engines(bundle, backend=backend, threads=1)
    table.row("engines")
    engines.warm_up(bundle.manifest)
    table.row("first run of the engines")
    localizer = Localizer(index, bundle, engines)
    table.total()
    image = CameraImage(read_image(image_file), stamp_ns=0)
    heading = Heading(yaw_from_azimuth(math.radians(195)), math.radians(3) ** 2, HeadingSource.CONSTANT)
    for what, query in (
        ("first image", Query(heading=heading)),
        ("second image", Query(heading=heading)),
        ("third image, heading searched", Query()),
    ):
        localizer.locate(image, query)
        table.row(what)


def _search(folder: Path, *, prepare: bool) -> None:
    import numpy as np

    from unifygeo_ros.aerial.index import open_index

    index = open_index(folder)
    if prepare:
        index.prepare_search()
        time.sleep(PREPARED_S)
    query = np.full(768, 768**-0.5, np.float32)
    seconds = []
    for _ in range(3):
        start = time.perf_counter()
        index.search(query, 5)
        seconds.append(time.perf_counter() - start)
    how = f"prepared {PREPARED_S:.0f} s before" if prepare else "not prepared"
    print(f"search of {MILLION} tiles, {how}: first {seconds[0]:.2f} s, later {seconds[-1]:.2f} s", flush=True)


if __name__ == "__main__":
    main()
