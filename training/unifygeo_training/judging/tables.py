"""Judgements as text and JSON, in the layout of the paper's Tables I–VII so that one can be laid beside the other."""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Mapping, Sequence

from unifygeo_ros.errors import InputError
from unifygeo_training.judging.judge import Judgement

FORMAT = "unifygeo-judgement"
FORMAT_VERSION = 1

PAPER = {
    "VIGOR same-area": {
        "cvgl": (39.64, 81.37),
        "retrieval": (82.80, 94.92, 96.57, 99.47, 88.72),
        "metric": (2.26, 1.13),
    },
    "VIGOR cross-area": {
        "cvgl": (25.58, 66.24),
        "retrieval": (67.58, 81.60, 86.02, 97.26, 68.24),
        "metric": (3.05, 1.39),
    },
}
"""UnifyGeo's row of Tables I, II and III."""


@dataclass(frozen=True)
class Ablation:
    """The switches of Tables V–VII that a network was trained with: unified learning (UL), feature aggregator (FA),
    re-ranking loss (L_R). Whether re-ranking is *used* is not a property of the network; both are always judged."""

    unified_learning: bool = True
    feature_aggregator: bool = True
    reranking_loss: bool = True


def to_json(judgement: Judgement, checkpoint: str, ablation: Ablation) -> str:
    """The judgement with what was judged, as JSON; dictionaries of thresholds get their metres as keys."""
    content = {
        "format": FORMAT,
        "format_version": FORMAT_VERSION,
        "checkpoint": checkpoint,
        "ablation": dataclasses.asdict(ablation),
        **dataclasses.asdict(judgement),
    }
    return json.dumps(content, indent=2, allow_nan=False) + "\n"


def read_json(file: Path) -> dict[str, Any]:
    """A file that `to_json` wrote. Raises InputError."""
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(f"{file}: cannot be read ({error}); give what `unifygeo-train test --json` wrote") from error
    found = (content.get("format"), content.get("format_version")) if isinstance(content, dict) else content
    if found != (FORMAT, FORMAT_VERSION):
        raise InputError(f"{file}: is {found}, must be {(FORMAT, FORMAT_VERSION)}; write it again with this release")
    return content


def report(judgement: Judgement) -> str:
    """One judgement as text: large-scale localization with its baselines, retrieval, metric localization."""
    paper: Mapping[str, Sequence[float]] = next(
        (row for name, row in PAPER.items() if judgement.data.startswith(name)), {}
    )
    parts = [
        f"{judgement.data}: {judgement.queries} queries, {judgement.gallery} tiles, k = {judgement.candidates}",
        "",
    ]
    if judgement.final and judgement.without_reranking and judgement.tile_centre and judgement.retrieval_only:
        thresholds = list(judgement.final.geographic)
        header = ["LF-CVGL (Table I)", *(f"R@{t:g}m" for t in thresholds), *(f"strict R@{t:g}m" for t in thresholds)]
        named = (
            ("retrieval only", judgement.retrieval_only),
            ("re-ranked tile's centre", judgement.tile_centre),
            ("without re-ranking", judgement.without_reranking),
            ("this network", judgement.final),
        )
        rows = [[name, *_two(score.geographic.values()), *_two(score.strict.values())] for name, score in named]
        if paper:
            r1, r10 = paper["cvgl"]
            published = {1.0: r1, 10.0: r10}
            rows.append(
                ["the paper", *(f"{published[t]:.2f}" if t in published else "" for t in thresholds)]
                + [""] * len(thresholds)
            )
        parts += [_table(header, rows), ""]
    retrieval, reranked = judgement.retrieval, judgement.reranked
    others = (retrieval.recall_5, retrieval.recall_10, retrieval.recall_percent)
    rows = [
        ["without re-ranking", *_two((retrieval.recall_1, *others, retrieval.hit_rate))],
        ["this network", *_two((reranked.recall_1, *others, reranked.hit_rate))],
    ]
    if paper:
        rows.append(["the paper", *_two(paper["retrieval"])])
    parts += [_table(["Retrieval (Table II, IV)", "R@1", "R@5", "R@10", "R@1%", "Hit Rate"], rows)]
    if judgement.metric:
        metric = judgement.metric
        header = ["Metric localization (Table III)", "Mean(m)", "Median(m)", *(f"R@{t:g}m" for t in metric.recall)]
        rows = [["this network", *_two((metric.mean_m, metric.median_m, *metric.recall.values()))]]
        if paper:
            rows.append(["the paper", *_two(paper["metric"]), *[""] * len(metric.recall)])
        parts += ["", _table(header, rows)]
    return "\n".join(parts)


def ablation_report(judgements: Sequence[Mapping[str, Any]]) -> str:
    """Tables V, VI and VII over several networks (as `read_json` gives them), two rows each: without and with
    re-ranking. Raises InputError for judgements of different data."""
    data = {judgement["data"] for judgement in judgements}
    if len(data) != 1:
        raise InputError(f"judgements of {len(data)} data sets ({', '.join(sorted(data))}) cannot stand in one table")
    switches = ["UL", "FA", "Re-rank", "L_R"]
    retrieval, cvgl, metric = [], [], []
    for judgement in judgements:
        ablation = Ablation(**judgement["ablation"])
        scores = judgement["retrieval"]
        others = [scores["recall_5"], scores["recall_10"], scores["recall_percent"]]
        for used, row in ((False, judgement["retrieval"]), (True, judgement["reranked"])):
            marks = _marks(ablation.unified_learning, ablation.feature_aggregator, used, ablation.reranking_loss)
            retrieval.append([*marks, *_two([row["recall_1"], *others, row["hit_rate"]])])
            final = judgement["final" if used else "without_reranking"]
            if final:
                cvgl.append([*marks, *_two(final["geographic"].values())])
        if judgement["metric"]:
            marks = _marks(ablation.unified_learning, ablation.feature_aggregator, ablation.reranking_loss)
            metric.append([*marks, *_two([judgement["metric"]["mean_m"], judgement["metric"]["median_m"]])])
    parts = [data.pop(), "", "Table V", _table([*switches, "R@1", "R@5", "R@10", "R@1%", "Hit Rate"], retrieval)]
    if metric:
        parts += ["", "Table VI", _table(["UL", "FA", "L_R", "Mean(m)", "Median(m)"], metric)]
    if cvgl:
        thresholds = judgements[0]["final"]["geographic"]
        parts += ["", "Table VII", _table([*switches, *(f"R@{float(t):g}m" for t in thresholds)], cvgl)]
    return "\n".join(parts)


def _marks(*switches: bool) -> list[str]:
    return ["✓" if switch else "-" for switch in switches]


def _two(values: Any) -> list[str]:
    return [f"{value:.2f}" for value in values]


def _table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table with aligned columns."""
    widths = [max(len(row[i]) for row in (header, *rows)) for i in range(len(header))]
    rule = "|".join("-" * (width + 2) for width in widths)

    def line(cells: Sequence[str]) -> str:
        first, *others = zip(cells, widths, strict=True)
        padded = [first[0].ljust(first[1]), *(cell.rjust(width) for cell, width in others)]
        return "| " + " | ".join(padded) + " |"

    return "\n".join([line(header), f"|{rule}|", *(line(row) for row in rows)])
