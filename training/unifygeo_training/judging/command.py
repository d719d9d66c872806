"""`unifygeo-train test` and `unifygeo-train tables`."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from unifygeo_training.data.command import SPLITS, load_split


def add_command(subparsers: Any) -> None:
    test = subparsers.add_parser("test", help="every metric of the paper, with baselines, for one network")
    test.add_argument("checkpoint", type=Path, help="a checkpoint of `unifygeo-train fit`, or published weights")
    test.add_argument("dataset", choices=("town", *sorted(SPLITS)))
    test.add_argument("root", type=Path, help="folder of the data set; of a town: its cached folder")
    test.add_argument("--part", choices=("train", "val", "test"), default=None, help="default: test, or val for CVUSA")
    test.add_argument("--labels", choices=("corrected", "original"), default="corrected", help="VIGOR's label version")
    test.add_argument("--published", action="store_true", help="the checkpoint is the authors' state dict")
    test.add_argument("--network", type=Path, help="with --published: YAML of another network config")
    test.add_argument("--candidates", type=int, default=5, help="k (default 5, as in the paper)")
    test.add_argument("--batch", type=int, default=32)
    test.add_argument("--workers", type=int, default=4, help="threads that read images")
    test.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:1 …")
    test.add_argument("--scratch", type=Path, help="folder with room for 224 KB a tile (default: the temporary one)")
    test.add_argument("--json", type=Path, help="write the numbers here as well")
    test.set_defaults(run=_test)

    tables = subparsers.add_parser("tables", help="Tables V, VI and VII from the JSON files of several networks")
    tables.add_argument("judgements", type=Path, nargs="+", help="what `unifygeo-train test --json` wrote")
    tables.set_defaults(run=_tables)


def _test(options: argparse.Namespace) -> int:
    import tempfile

    import torch
    from tqdm import tqdm

    from unifygeo_training.checkpoint import load_network, published_network
    from unifygeo_training.configuration import read_network_config
    from unifygeo_training.judging.evaluation_set import EvaluationSet, JudgedSplit
    from unifygeo_training.judging.judge import judge
    from unifygeo_training.judging.tables import Ablation, report, to_json
    from unifygeo_training.judging.town_set import TownImages
    from unifygeo_training.model import NetworkConfig
    from unifygeo_training.towns.pairs import load_town

    if options.published:
        config = read_network_config(options.network) if options.network else NetworkConfig()
        network, ablation = published_network(options.checkpoint, config), Ablation()
    else:
        network, content = load_network(options.checkpoint)
        ablation = Ablation(**content.get("ablation", {}))
    if options.dataset == "town":
        data: EvaluationSet = TownImages(load_town(options.root), network.config)
    else:
        part = options.part or SPLITS[options.dataset][-1]
        data = JudgedSplit(load_split(options.dataset, options.root, part, options.labels), network.config)
    device = options.device
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
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
    print(report(judgement))
    if options.json:
        options.json.write_text(to_json(judgement, str(options.checkpoint), ablation), encoding="utf-8")
        print(f"\nthe numbers are in {options.json}")
    return 0


def _tables(options: argparse.Namespace) -> int:
    from unifygeo_training.judging.tables import ablation_report, read_json

    print(ablation_report([read_json(file) for file in options.judgements]))
    return 0
