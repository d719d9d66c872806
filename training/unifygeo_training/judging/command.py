"""`unifygeo-train test`, `sensitivity` and `tables`."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from unifygeo_ros.core.errors import ConfigurationError
from unifygeo_ros.localization.config import LocalizerConfig
from unifygeo_training.data.command import SPLITS, add_split_options, load_split

if TYPE_CHECKING:
    from unifygeo_training.weights import Weights


def add_command(subparsers: Any) -> None:
    test = subparsers.add_parser("test", help="every metric of the paper, with baselines, for one network")
    test.add_argument("weights", type=Path, help="a checkpoint of `unifygeo-train fit`, a bundle, or published weights")
    test.add_argument("dataset", choices=("town", "pairs", "drives", *sorted(SPLITS)))
    test.add_argument(
        "root",
        type=Path,
        help="folder of the data set; of a town: its cached folder; of pairs: your own photographs with pairs.csv; of "
        "drives: the file that names them",
    )
    test.add_argument(
        "--part",
        choices=("train", "val", "test", "all"),
        default=None,
        help="default: test, or val for CVUSA; all: of drives, every place",
    )
    add_split_options(test)
    test.add_argument("--network", type=Path, help="YAML of the network config of published weights, if another")
    test.add_argument(
        "--candidates", type=int, default=LocalizerConfig().candidates, help="k (default: %(default)s, as in the paper)"
    )
    test.add_argument("--batch", type=int, default=32)
    test.add_argument("--workers", type=int, default=4, help="threads that read images")
    test.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:1 …")
    test.add_argument("--scratch", type=Path, help="folder with room for 224 KB a tile (default: the temporary one)")
    test.add_argument("--json", type=Path, help="write the numbers here as well")
    test.add_argument(
        "--output",
        type=Path,
        help="folder for errors.npz (every query's answers), recall_curve.png and .json (the paper's Fig. 4), sheets",
    )
    test.add_argument("--sheets", type=int, default=0, metavar="N", help="draw N queries into --output (Fig. 5)")
    test.add_argument("--seed", type=int, default=0, help="which queries are drawn (default: %(default)s)")
    pairs = test.add_argument_group("pairs (real photographs, docs/measurements/streets.md)")
    pairs.add_argument(
        "--distractors",
        type=Path,
        nargs="+",
        default=[],
        help="GeoTIFFs, folders of them, or indexes of the model, whose tiles join the gallery",
    )
    pairs.add_argument("--tilings", type=int, default=4, choices=(1, 2, 3, 4), help="(default: %(default)s)")
    pairs.add_argument("--temperature", type=float, help="of D (default: the bundle's; 1 for a checkpoint)")
    test.set_defaults(run=_test)

    sensitivity = subparsers.add_parser(
        "sensitivity", help="what networks lose when panoramas or tiles of a town are changed in one way at a time"
    )
    sensitivity.add_argument("town", type=Path, help="folder of a cached town")
    sensitivity.add_argument("weights", type=Path, nargs="+", help="checkpoints, bundles or published weights")
    sensitivity.add_argument(
        "--only", choices=("missing", "photography", "turned"), help="kind of changes (default: all)"
    )
    sensitivity.add_argument("--panoramas", type=int, default=160, help="evenly spread (default: %(default)s)")
    sensitivity.add_argument("--seed", type=int, default=0, help="of what the changes draw (default: %(default)s)")
    sensitivity.add_argument("--network", type=Path, help="YAML of the network config of published weights, if another")
    sensitivity.add_argument("--batch", type=int, default=32)
    sensitivity.add_argument("--workers", type=int, default=1, help="threads that read images")
    sensitivity.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:1 …")
    sensitivity.add_argument("--scratch", type=Path, help="folder with room for the tiles' features, as for `test`")
    sensitivity.add_argument("--json", type=Path, help="write the numbers here as well")
    sensitivity.set_defaults(run=_sensitivity)

    tables = subparsers.add_parser("tables", help="Tables V, VI and VII from the JSON files of several networks")
    tables.add_argument("judgements", type=Path, nargs="+", help="what `unifygeo-train test --json` wrote")
    tables.set_defaults(run=_tables)


def _test(options: argparse.Namespace) -> int:
    if options.dataset == "pairs":
        return _test_pairs(options)
    if options.distractors or options.temperature is not None:
        raise ConfigurationError(f"--distractors and --temperature are for pairs, not for {options.dataset}")
    import dataclasses
    import json
    import tempfile

    import cv2
    import numpy as np
    from tqdm import tqdm

    from unifygeo_training.drives.judged import DriveImages, describe
    from unifygeo_training.drives.opened import open_part
    from unifygeo_training.judging.evaluation_set import EvaluationSet, JudgedSplit
    from unifygeo_training.judging.judge import judge
    from unifygeo_training.judging.pictures import draw_curve, draw_sheet
    from unifygeo_training.judging.tables import report, to_json
    from unifygeo_training.judging.town_set import TownImages
    from unifygeo_training.towns.pairs import load_town
    from unifygeo_training.weights import open_weights

    if options.sheets and not options.output:
        raise ConfigurationError(f"--sheets {options.sheets} needs the folder --output")
    weights = open_weights(options.weights, options.network)
    network, ablation = weights.network, weights.ablation
    if options.dataset == "town":
        data: EvaluationSet = TownImages(load_town(options.root), network.config)
    elif options.dataset == "drives":
        part = options.part or "test"
        parts = open_part(options.root, network.config, part)
        data = DriveImages(parts, describe(parts, options.root, part))
    else:
        part = options.part or SPLITS[options.dataset][-1]
        if part not in SPLITS[options.dataset]:
            raise ConfigurationError(f"--part {part}: {options.dataset} has {', '.join(SPLITS[options.dataset])}")
        split = load_split(options.dataset, options.root, part, options.labels, skip_missing=options.missing == "skip")
        data = JudgedSplit(split, network.config, resize=options.resize)
    device = _device(options.device, weights)
    with tempfile.TemporaryDirectory(dir=options.scratch) as scratch:
        judgement = judge(
            network,
            data,
            Path(scratch),
            candidates=options.candidates,
            batch=options.batch,
            workers=options.workers,
            device=device,
            progress=lambda batches, what, total: tqdm(batches, desc=what, total=total, unit="batch", leave=False),
        )
    print(report(judgement, ablation))
    if options.json:
        options.json.write_text(to_json(judgement, str(options.weights), ablation), encoding="utf-8")
        print(f"\nthe numbers are in {options.json}")
    if options.output:
        options.output.mkdir(parents=True, exist_ok=True)
        np.savez(options.output / "errors.npz", **judgement.results.arrays())
        if judgement.curve and ablation.unified_learning and ablation.reranks:
            content = {"data": judgement.data, "queries": judgement.queries, **dataclasses.asdict(judgement.curve)}
            (options.output / "recall_curve.json").write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
            draw_curve(judgement.curve, judgement.data, options.output / "recall_curve.png")
        chosen = np.random.default_rng(options.seed).permutation(judgement.queries)[: options.sheets]
        for query in sorted(chosen.tolist()):
            sheet = draw_sheet(network, data, judgement.results, query, device=device)
            cv2.imwrite(str(options.output / f"query_{query:06d}.jpg"), sheet[..., ::-1])
        print(f"\nerrors, curve and {len(chosen)} sheets are in {options.output}")
    return 0


def _test_pairs(options: argparse.Namespace) -> int:
    import json
    import tempfile

    from unifygeo_ros.inference.select import choose_precision, open_engines
    from unifygeo_training.export import BundleText, export_bundle
    from unifygeo_training.judging.street_pairs import judge_pairs, read_pairs, report, to_json
    from unifygeo_training.weights import open_weights

    if options.temperature is not None and not options.temperature > 0:
        raise ConfigurationError(f"--temperature {options.temperature:g} must be above 0")
    pairs = read_pairs(options.root)
    weights = open_weights(options.weights, options.network)
    with tempfile.TemporaryDirectory(dir=options.scratch) as scratch:
        bundle = weights.bundle or export_bundle(
            weights.network, Path(scratch) / "model", BundleText("pairs", "unstated", "unstated"), precisions=("fp32",)
        )
        precision = choose_precision(bundle, "onnx_cpu", "auto")
        with open_engines(bundle, backend="onnx_cpu", precision=precision) as engines:
            judgement = judge_pairs(
                pairs,
                bundle,
                engines,
                distractors=options.distractors,
                tilings=options.tilings,
                temperature=options.temperature,
            )
    print(report(judgement))
    if options.json:
        content = {"weights": str(options.weights), **to_json(judgement)}
        options.json.write_text(json.dumps(content, indent=2, allow_nan=False) + "\n", encoding="utf-8")
        print(f"\nthe numbers are in {options.json}")
    return 0


def _device(choice: str, weights: Weights) -> str:
    """The device that --device names; auto: a GPU where there is one, for anything but a bundle."""
    import torch

    if choice != "auto":
        return choice
    return "cuda" if weights.kind != "bundle" and torch.cuda.is_available() else "cpu"


def _sensitivity(options: argparse.Namespace) -> int:
    import dataclasses
    import json
    import tempfile

    from unifygeo_training.judging.sensitivity import losses, missing_parts, photographic_changes, report, turns
    from unifygeo_training.judging.town_set import TownImages
    from unifygeo_training.towns.pairs import load_town
    from unifygeo_training.weights import open_weights

    town, found = load_town(options.town), {}
    for path in options.weights:
        weights = open_weights(path, options.network)
        data = TownImages(town, weights.network.config)
        changes = missing_parts(weights.network.config.ground) if options.only in (None, "missing") else []
        changes += photographic_changes() if options.only in (None, "photography") else []
        changes += turns() if options.only in (None, "turned") else []
        with tempfile.TemporaryDirectory(dir=options.scratch) as scratch:
            found[str(path)] = losses(
                weights.network,
                data,
                changes,
                Path(scratch),
                panoramas=options.panoramas,
                seed=options.seed,
                batch=options.batch,
                workers=options.workers,
                device=_device(options.device, weights),
            )
        tiles = len(data.side_m)
    print(report(f"town {town.record.seed}", options.panoramas, tiles, found))
    if options.json:
        content = {
            "town": town.record.seed,
            "panoramas": options.panoramas,
            "tiles": tiles,
            "seed": options.seed,
            "networks": {name: [dataclasses.asdict(row) for row in rows] for name, rows in found.items()},
        }
        options.json.write_text(json.dumps(content, indent=2, allow_nan=False) + "\n", encoding="utf-8")
        print(f"\nthe numbers are in {options.json}")
    return 0


def _tables(options: argparse.Namespace) -> int:
    from unifygeo_training.judging.tables import ablation_report, read_json

    print(ablation_report([read_json(file) for file in options.judgements]))
    return 0
