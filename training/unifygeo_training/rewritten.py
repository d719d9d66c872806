"""A bundle of before with its float graphs written as exports write them now: faster, the same weights.

Indexes that were made with the bundle stay valid, since they are bound to the weights.
"""

from __future__ import annotations

import dataclasses
import shutil
from pathlib import Path

import onnx
import torch

from unifygeo_ros.core.errors import ConfigurationError, InputError
from unifygeo_ros.inference.bundle import (
    FLOAT_PRECISIONS,
    MANIFEST_NAME,
    GraphFile,
    ModelBundle,
    load_bundle,
    sha256_of_file,
)
from unifygeo_training.files import locked, new_folder
from unifygeo_training.quantise.rewrite import rewrite_floats
from unifygeo_training.weights import BundleNetwork

TOLERANCE = {"fp32": 1e-5, "fp16": 1e-2}
"""Largest difference of an output from that of the graphs of before, relative to its largest value."""


def rewrite_bundle(parent: ModelBundle, output: Path | str, *, name: str) -> ModelBundle:
    """Write the bundle folder, complete or not at all.

    Args:
        parent: A bundle of fp32 or fp16 graphs.
        output: Folder of the bundle; must not exist.
        name: Of the bundle, in its manifest.

    Raises:
        ConfigurationError: `output` exists, or the parent holds INT8 graphs, which are written so already.
        InputError: the new graphs compute something else than those of before.
    """
    output, manifest = Path(output), parent.manifest
    if output.exists():
        raise ConfigurationError(f"{output} exists; remove it or choose another --output")
    if unknown := {precision for files in manifest.graphs.values() for precision in files} - set(FLOAT_PRECISIONS):
        raise ConfigurationError(
            f"{parent.path} holds graphs in {', '.join(sorted(unknown))}, which are written anew from fp32 alone; give "
            "the bundle that it was made of"
        )
    with locked(output), new_folder(output) as folder:
        graphs: dict[str, dict[str, GraphFile]] = {}
        for graph, files in manifest.graphs.items():
            for precision, file in files.items():
                path = parent.graph_path(graph, precision)
                model = onnx.load(path, load_external_data=False)
                rewrite_floats(model)
                if file.data_file is not None and not (folder / file.data_file).exists():
                    shutil.copyfile(path.parent / file.data_file, folder / file.data_file)
                onnx.save(model, folder / file.file)
                onnx.checker.check_model(folder / file.file, full_check=True)
                written = dataclasses.replace(file, sha256=sha256_of_file(folder / file.file))
                graphs.setdefault(graph, {})[precision] = written
        step = {
            "made_by": "unifygeo-train export BUNDLE",
            "parent_sha256": manifest.sha256,
            "data": "none: the same weights in graphs that are written anew",
        }
        changed = dataclasses.replace(manifest, name=name, graphs=graphs, lineage=(*manifest.lineage, step))
        (folder / MANIFEST_NAME).write_text(changed.to_json(), encoding="utf-8")
        bundle = load_bundle(folder)
        for precision in FLOAT_PRECISIONS:
            if all(precision in files for files in graphs.values()):
                _check(parent, bundle, precision)
    return load_bundle(output)


@torch.no_grad()
def _check(parent: ModelBundle, bundle: ModelBundle, precision: str) -> None:
    """Compare both bundles on noise. Raises InputError."""
    ground, aerial = parent.manifest.ground, parent.manifest.aerial
    draw = torch.Generator().manual_seed(0)
    panorama = torch.randint(256, (2, ground.height, ground.width, 3), generator=draw, dtype=torch.uint8)
    tile = torch.randint(256, (2, aerial.size, aerial.size, 3), generator=draw, dtype=torch.uint8)
    outputs = []
    for one in (parent, bundle):
        network = BundleNetwork(one, precision)
        of_panorama, of_tile = network.encode_ground(panorama), network.encode_aerial(tile)
        logits = network.decode(of_panorama.levels, of_tile.pyramid).logits
        assert of_panorama.descriptor is not None
        assert of_tile.descriptor is not None
        assert of_tile.match_map is not None
        outputs.append((of_panorama.descriptor, *of_panorama.levels, of_tile.descriptor, of_tile.match_map, logits))
    for before, after in zip(*outputs, strict=True):
        away = float((after - before).abs().max() / before.abs().max())
        if not away <= TOLERANCE[precision]:
            raise InputError(
                f"{parent.path}: rewritten, its {precision} graphs differ by {away:.2g} of the largest value, at most "
                f"{TOLERANCE[precision]:g}; export the checkpoint instead; nothing was written"
            )
