"""The comparison of pages with commands (benchmarks/claims.py); every claim of its table stands in its page."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

import pytest

tomllib = pytest.importorskip("tomllib", reason="Python 3.11 or newer")
ROOT = Path(__file__).resolve().parents[1]
SPEC = importlib.util.spec_from_file_location("claims", ROOT / "benchmarks" / "claims.py")
claims = importlib.util.module_from_spec(SPEC)
sys.modules["claims"] = claims
SPEC.loader.exec_module(claims)
TABLE = tomllib.loads((ROOT / "benchmarks" / "claims.toml").read_text(encoding="utf-8"))
CLAIM = {"page": "page.md", "what": "error", "stated": r"median ([\d.]+) m of ([\d,]+)", "found": r"m=(\S+) n=(\S+)"}


@pytest.mark.parametrize(
    ("page", "output", "tolerance", "problem"),
    [
        ("median 0.50\nm of 1,000", "m=0.50 n=1000", 0, None),  # the line may break anywhere
        ("median 0.50 m of 1,000", "m=0.51 n=1000", 0.01, None),
        ("median 0.50 m of 1,000", "m=0.52 n=1000", 0.01, "0.50 is now 0.52"),
        ("median 0.50 m of 1,000", "m=0.50 n=999", 0.01, "1,000 is now 999"),
        ("median 0.50 m of 1,000", "m=inf n=-", 0, "0.50 is now inf; 1,000 is now -"),
        ("median 0.50 m of 1,000", "m=9 n=9", "machine", None),
        ("nothing", "m=0.50 n=1000", 0, "the page has 0 places"),
        ("median 1 m of 2, median 1 m of 2", "m=1 n=2", 0, "the page has 2 places"),
        ("median 0.50 m of 1,000", "nothing", "machine", "the output has nothing like"),
    ],
)
def test_compare_names_what_differs_or_is_missing(page, output, tolerance, problem):
    result = claims.compare({**CLAIM, "tolerance": tolerance}, page, output)
    assert (result.problem or "").startswith(problem or "")
    assert (result.problem is None) == (problem is None)
    assert result.judged == (tolerance != "machine" or problem is not None)


def test_compare_refuses_another_count_of_numbers():
    result = claims.compare({**CLAIM, "found": r"m=(\S+)", "tolerance": 0}, "median 1 m of 2", "m=1")
    assert result.problem == "2 numbers in the page, 1 in the output"


@pytest.mark.parametrize(
    "claim",
    [claim for entry in TABLE["command"] for claim in entry["claim"]],
    ids=lambda claim: f"{claim['page']}: {claim['what']}",
)
def test_each_claim_stands_once_in_its_page(claim):
    result = claims.compare(claim, claims.text_of(claim["page"]), "")
    assert result.stated, result.problem
    assert set(claim) == {"page", "what", "stated", "found", "tolerance"}


def test_pages_of_numbers_that_are_not_run_exist():
    for entry in TABLE["elsewhere"]:
        assert claims.text_of(entry["page"]), entry
