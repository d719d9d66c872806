"""Judgements as text and JSON, in the layout of the paper's Tables I–VII so that both can be compared line by line."""

from __future__ import annotations

import dataclasses
import itertools
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Mapping, Sequence

import numpy as np

from unifygeo_ros.core.errors import InputError
from unifygeo_training.judging.judge import Judgement

FORMAT = "unifygeo-judgement"
FORMAT_VERSION = 3

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
"""UnifyGeo's row of Tables I, II and III: cvgl R@1m and R@10m by the strict protocol; retrieval R@1, R@5, R@10, R@1%
and the hit rate, which is the one before re-ranking; metric mean and median."""


@dataclass(frozen=True)
class Ablation:
    """What a network was trained for, and the switches of Tables V–VII."""

    retrieval: bool = True
    """The descriptors (L_G)."""
    localization: bool = True
    """The decoder (L_D)."""
    matching: bool = True
    """The fine-grained features by L_M."""
    aggregator: Literal["attention", "gem", "average"] = "attention"
    """Of the network's config. FA is "attention"; without it the paper pools by the average. "gem" leaves out the
    attention alone and is neither."""
    reranking_loss: bool = True
    """L_R. Whether re-ranking is *used* is not a property of the network; both are always judged."""

    @property
    def unified_learning(self) -> bool:
        """UL: retrieval and localization in one network."""
        return self.retrieval and self.localization

    @property
    def reranks(self) -> bool:
        """Whether anything has trained the features that re-ranking compares, and there is something to re-rank."""
        return self.retrieval and (self.localization or self.matching or self.reranking_loss)


def to_json(judgement: Judgement, checkpoint: str, ablation: Ablation) -> str:
    """The judgement with what was judged, as JSON; dictionaries of thresholds get their metres as keys."""
    without_arrays: dict[str, Any] = {"results": None}  # they are in their own file
    content = {
        "format": FORMAT,
        "format_version": FORMAT_VERSION,
        "checkpoint": checkpoint,
        "ablation": dataclasses.asdict(ablation),
        **dataclasses.asdict(dataclasses.replace(judgement, **without_arrays)),
    }
    del content["results"]
    for part in _untrained(ablation):
        content[part] = None
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


def _untrained(ablation: Ablation) -> list[str]:
    """Fields of a judgement that say nothing, because no loss has trained what they measure."""
    parts = []
    if not ablation.retrieval:
        parts += ["retrieval", "retrieval_only"]
    if not ablation.reranks:
        parts += ["reranked", "tile_centre"]
    if not ablation.localization:
        parts += ["metric"]
    if not ablation.unified_learning:
        parts += ["without_reranking"]
    if not (ablation.unified_learning and ablation.reranks):
        parts += ["final", "curve"]
    return parts


def report(judgement: Judgement, ablation: Ablation = Ablation()) -> str:
    """One judgement as text: large-scale localization with its baselines, retrieval, metric localization.

    What was not trained is left out and named.
    """
    paper: Mapping[str, Sequence[float]] = next(
        (row for name, row in PAPER.items() if judgement.data.startswith(name)), {}
    )
    untrained = _untrained(ablation)
    missing: dict[str, Any] = dict.fromkeys(untrained)
    judgement = dataclasses.replace(judgement, **missing)
    parts = [f"{judgement.data}: {judgement.queries} queries, {judgement.gallery} tiles, k = {judgement.candidates}"]
    named = (
        ("retrieval only: tile's centre", judgement.retrieval_only),
        ("re-ranked tile's centre", judgement.tile_centre),
        ("without re-ranking", judgement.without_reranking),
        ("this network", judgement.final),
    )
    judged = [(name, score) for name, score in named if score is not None]
    if judged:
        thresholds = list(judged[0][1].strict)
        header = ["LF-CVGL (Table I)", *(f"strict R@{t:g}m" for t in thresholds), *(f"R@{t:g}m" for t in thresholds)]
        rows = [[name, *_two(score.strict.values()), *_two(score.geographic.values())] for name, score in judged]
        if paper:
            r1, r10 = paper["cvgl"]
            published = {1.0: r1, 10.0: r10}
            rows.append(
                ["the paper", *(f"{published[t]:.2f}" if t in published else "" for t in thresholds)]
                + [""] * len(thresholds)
            )
        parts += ["", _table(header, rows), "", PROTOCOLS]
    retrieval, reranked = judgement.retrieval, judgement.reranked
    if retrieval:
        others = (retrieval.recall_5, retrieval.recall_10, retrieval.recall_percent)
        rows = [["without re-ranking", *_two((retrieval.recall_1, *others, retrieval.hit_rate))]]
        if reranked:
            rows.append(["this network", *_two((reranked.recall_1, *others, reranked.hit_rate))])
        if paper:
            rows.append(["the paper *", *_two(paper["retrieval"])])
        header = ["Retrieval (Table II, IV)", "R@1", "R@5", "R@10", "R@1%", "Hit Rate"]
        parts += ["", _table(header, rows)]
        if paper:
            parts += ["", "* R@1 after re-ranking, hit rate before it."]
    if judgement.metric:
        metric = judgement.metric
        header = ["Metric localization (Table III)", "Mean(m)", "Median(m)", *(f"R@{t:g}m" for t in metric.recall)]
        rows = [["this network", *_two((metric.mean_m, metric.median_m, *metric.recall.values()))]]
        if paper:
            rows.append(["the paper", *_two(paper["metric"]), *[""] * len(metric.recall)])
        parts += ["", _table(header, rows)]
    if untrained:
        parts += ["", f"Left out, because no loss has trained it: {', '.join(untrained)}."]
    return "\n".join(parts)


PROTOCOLS = """strict: the positive tile must win, too (the paper's protocol).
Without it: distance on the earth, whichever tile wins."""


def ablation_report(judgements: Sequence[Mapping[str, Any]]) -> str:
    """Tables V, VI and VII over several networks (as `read_json` gives them), in the order of the paper.

    A network has two rows where it matters, without and with re-ranking. Numbers are means over the data sets, and with
    two data sets or more Table VII is followed by each row's differences from the row before it, with their standard
    errors. Raises InputError unless all networks were judged on the same data sets.
    """
    networks: dict[str, dict[str, Mapping[str, Any]]] = {}
    for judgement in judgements:
        of_network = networks.setdefault(judgement["checkpoint"], {})
        if judgement["data"] in of_network:
            raise InputError(f"{judgement['checkpoint']} is given twice on {judgement['data']}; leave one out")
        of_network[judgement["data"]] = judgement
    data = sorted(next(iter(networks.values())))
    for checkpoint, of_network in networks.items():
        if sorted(of_network) != data:
            raise InputError(
                f"{checkpoint} was judged on {', '.join(sorted(of_network))}, another network on {', '.join(data)}; "
                "judge all on the same data"
            )
    retrieval, metric, cvgl = [], [], []
    for of_network in networks.values():
        sets = [of_network[name] for name in data]
        ablation = Ablation(**sets[0]["ablation"])
        first = (_mark(ablation.unified_learning), FA_MARKS[ablation.aggregator])
        last = _mark(ablation.reranking_loss)
        for used in (False, True) if ablation.reranks else (False,):
            switches = (*first, _mark(used), last)
            if ablation.retrieval:
                scores = [{**s["retrieval"], **s["reranked" if used else "retrieval"]} for s in sets]
                retrieval.append(_Row(switches, [[score[name] for name in _RETRIEVAL] for score in scores]))
            # Without a decoder the answer is the tile's centre, as in the paper's rows 1 and 2.
            decoded, centre = ("final", "tile_centre") if used else ("without_reranking", "retrieval_only")
            answers = [s[decoded if ablation.localization else centre] for s in sets]
            if ablation.retrieval and all(answers):
                cvgl.append(
                    _Row(switches, [[*score["strict"].values(), *score["geographic"].values()] for score in answers])
                )
        if ablation.localization and all(s["metric"] for s in sets):
            metric.append(_Row((*first, last), [[s["metric"]["mean_m"], s["metric"]["median_m"]] for s in sets]))
    columns = ["UL", "FA", "Re-rank", "L_R"]
    recalls = ["R@1", "R@5", "R@10", "R@1%", "Hit Rate"]
    parts = [", ".join(data)]
    if retrieval:
        parts += ["", "Table V", _means([*columns, *recalls], retrieval)]
    if metric:
        parts += ["", "Table VI", _means(["UL", "FA", "L_R", "Mean(m)", "Median(m)"], metric)]
    if cvgl:
        of_one = next(s for s in judgements if s["retrieval_only"])["retrieval_only"]["strict"]
        thresholds = [f"R@{float(t):g}m" for t in of_one]
        header = [*columns, *(f"strict {t}" for t in thresholds), *thresholds]
        parts += ["", "Table VII", _means(header, cvgl), "", PROTOCOLS]
        if any(row.switches[0] == OFF for row in cvgl):
            parts += ["Rows without UL have no decoder: their answer is the tile's centre."]
        if len(data) > 1 and len(cvgl) > 1:
            parts += ["", "Table VII, each row less the row before it", _differences(header, cvgl)]
    return "\n".join(parts)


ON, OFF = "✓", "-"
"""Marks of a switch. In the order of their characters off comes before "GeM" and that before on."""
FA_MARKS = {"average": OFF, "gem": "GeM", "attention": ON}

_RETRIEVAL = ("recall_1", "recall_5", "recall_10", "recall_percent", "hit_rate")


@dataclass(frozen=True)
class _Row:
    """One row of the ablation tables."""

    switches: tuple[str, ...]
    """Marks of the configuration, in the order of the paper's columns, so that sorted rows stand in the order of the
    paper's."""
    values: list[list[float]]
    """Of each data set, all numbers."""


def _means(header: Sequence[str], rows: Sequence[_Row]) -> str:
    ordered = sorted(rows, key=lambda row: row.switches)
    return _table(header, [[*row.switches, *_two(np.mean(row.values, axis=0))] for row in ordered])


def _differences(header: Sequence[str], rows: Sequence[_Row]) -> str:
    cells = []
    for before, row in itertools.pairwise(sorted(rows, key=lambda row: row.switches)):
        paired = np.array(row.values) - np.array(before.values)
        errors = paired.std(axis=0, ddof=1) / np.sqrt(len(paired))
        found = [f"{mean:+.2f} ± {error:.2f}" for mean, error in zip(paired.mean(axis=0), errors, strict=True)]
        cells.append([*row.switches, *found])
    return _table(header, cells)


def _mark(switch: bool) -> str:
    return ON if switch else OFF


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
