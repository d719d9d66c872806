"""Rows of the table of drives through another land (docs/measurements/training.md) from the reports of replays.

    python benchmarks/land_table.py --former former/shipped.json shipped=out/shipped tuned=out/tuned

Each argument is NAME=FOLDER with one report (`unifygeo replay --report`, the .json beside it) for each drive, of the
same drives in every folder; the first is what the others are compared with. All drives of a row are taken together:
the interval of the availability is the circular block bootstrap's, in blocks of 20 successive images, and Wilson's,
which takes images for independent; the bounds of ANEES are those of as many independent fixes as the correlated ones
are worth, and of one draw of the imagery's error where that is stated. Where the frames of the replays lie beside the
reports, also what the fixes' errors east and north have in common, their spread, and what is claimed for one axis
beside `localizer.imagery_sigma_m`. With --former, the first model's report on the towns that it came from, the share
of what was lost that a row brings back.
"""

from __future__ import annotations

import argparse
import json
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np

from unifygeo_ros.core.covariance import chi2_quantile
from unifygeo_ros.evaluation.metrics.definitions import (
    FALSE_FIX_PROBABILITY,
    block_bootstrap_rows,
    consistency,
    share,
)

BLOCK = 20
DRAWS = 10_000
SEED = 0


def main() -> None:
    """Print a row for each folder."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("rows", nargs="+", metavar="NAME=FOLDER")
    parser.add_argument("--former", type=Path, help="report of the first model on the towns that it came from")
    options = parser.parse_args()
    former = available(json.loads(options.former.read_text())) if options.former else None
    first: float | None = None
    names: list[str] | None = None
    for text in options.rows:
        name, _, folder = text.partition("=")
        reports = {path.stem: json.loads(path.read_text()) for path in sorted(Path(folder).glob("*.json"))}
        bags = [report["identity"]["bag"]["fingerprint"] for report in reports.values()]
        if not bags or (names is not None and bags != names):
            raise SystemExit(f"{folder}: reports of {len(bags)} drives, which are not those of the first folder")
        names = bags
        value = float(np.concatenate([fixed(report) for report in reports.values()]).mean())
        first = value if first is None else first
        print(f"{name}: {row(reports)}")
        frames = [path for path in sorted(Path(folder).glob("*.frames.jsonl")) if path.name.split(".")[0] in reports]
        if frames:
            print(f"  {common_error(frames)}")
        if former is not None and first < former:
            print(f"  brings back {(value - first) / (former - first):.0%} of {100 * (former - first):.1f} points")


def row(reports: dict[str, Any]) -> str:
    """All of one model's drives together."""
    found = np.concatenate([fixed(report) for report in reports.values()])
    drawn = block_bootstrap_rows(len(found), BLOCK, DRAWS, np.random.default_rng(SEED))
    low, high = np.percentile(found[drawn].mean(axis=1), [2.5, 97.5])
    wilson = share(int(found.sum()), len(found))
    assert wilson is not None
    error_m, nees = (np.concatenate([numbers(r, key) for r in reports.values()]) for key in ("error_m", "nees"))
    limit_m = next(iter(reports.values()))["criteria"]["alert_limit_m"]
    wrong = int(((error_m > limit_m) & (nees > chi2_quantile(FALSE_FIX_PROBABILITY))).sum())
    drives = ", ".join(f"{name} {available(report):.1%} of {len(fixed(report))}" for name, report in reports.items())
    parts = [
        f"{found.mean():.1%} ({100 * low:.0f} … {100 * high:.0f}; {100 * wilson.lower:.0f} … {100 * wilson.upper:.0f})"
        f" of {len(found)}",
        drives,
    ]
    known = error_m[~np.isnan(error_m)]
    if len(known):
        parts.append(f"median {np.median(known):.2f} m, 95% {np.percentile(known, 95):.2f} m")
        parts.append(f"false {wrong} of {len(known)}, beyond {limit_m:g} m {int((known > limit_m).sum())}")
        positions = [report["covariance"]["position"] for report in reports.values()]
        judged_fixes = [(p["common"], p["count"]) for p in positions if p is not None]
        common = float(np.average([c for c, _ in judged_fixes], weights=[n for _, n in judged_fixes]))
        judged = consistency(nees[~np.isnan(nees)], common=common)
        assert judged is not None
        parts.append(f"ANEES {judged.anees:.2f} ({judged.effective_lower:.2f} … {judged.effective_upper:.2f})")
    rejected = sum((Counter(report["counts"]["rejections"]) for report in reports.values()), Counter[str]())
    before = sum(int(np.argmax(f)) if f.any() else len(f) for f in (fixed(report) for report in reports.values()))
    parts.append(f"before the first fix {before}; " + ", ".join(f"{k} {n}" for k, n in rejected.most_common()))
    return "\n  ".join(parts)


def common_error(paths: list[Path]) -> str:
    """Mean error and spread of the fixes with a truth in the frames of some replays."""
    errors, own_m2 = [], []
    for path in paths:
        header, *lines = path.read_text().splitlines()
        imagery_m2 = json.loads(header)["identity"]["localizer"]["imagery_sigma_m"] ** 2
        for line in lines:
            frame = json.loads(line)
            fix, truth = frame.get("outcome") or {}, frame.get("truth")
            if fix.get("kind") == "fix" and truth:
                errors.append([fix["east_m"] - truth["east_m"], fix["north_m"] - truth["north_m"]])
                own_m2.append(np.trace(fix["covariance_m2"]) / 2 - imagery_m2)
    east, north = np.mean(errors, axis=0)
    spread, own_m = np.std(errors, axis=0), np.sqrt(np.mean(own_m2))
    return (
        f"mean error east {east:.2f} m, north {north:.2f} m; spread {spread[0]:.2f} m, {spread[1]:.2f} m; "
        f"claimed beside the imagery's {own_m:.2f} m"
    )


def fixed(report: dict[str, Any]) -> np.ndarray:
    """Which images have a fix: bool (n,)."""
    return np.array([outcome == "fix" for outcome in report["per_image"]["outcome"]], np.bool_)


def available(report: dict[str, Any]) -> float:
    """Share of the images with a fix."""
    return float(fixed(report).mean())


def numbers(report: dict[str, Any], name: str) -> np.ndarray:
    """One value for each image, NaN where there is none: float64 (n,)."""
    return np.array([np.nan if value is None else value for value in report["per_image"][name]], np.float64)


if __name__ == "__main__":
    main()
