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


def test_every_page_of_numbers_is_in_the_table():
    """A page whose numbers nobody compares says at least what makes them and how long that takes."""
    named = {claim["page"] for entry in TABLE["command"] for claim in entry["claim"]}
    named |= {entry["page"] for entry in TABLE["elsewhere"]}
    covered = {file for page in named for file in ROOT.glob(page)}
    pages = {ROOT / "README.md", *(ROOT / "docs/measurements").glob("*.md")}
    assert pages <= covered


def test_claims_of_tracking_and_decoding_find_what_these_programs_print():
    """Lines as they are printed, with the numbers of the pages."""
    rows = {
        "0.04": ("0.04", ("0.172", "1.000", "0.755", "0.001")),
        "1": ("1", ("0.058", "0.257", "0.999", "0.001")),
        "10": ("9.99824", ("0.019", "1.000", "1.000", "0.002")),
    }
    forms = ("grid, 2 m", "particles, 1,000", "particles, 10,000", "mixture")
    printed = "".join(
        f"| grid, 1 m | {area} km² | 0.38 | 0.000 |\n"
        + "".join(f"| {form} | {area} km² | 0.15 | {error} |\n" for form, error in zip(forms, errors, strict=True))
        for area, errors in rows.values()
    )
    printed += "| 2,500 | 12 | 30 |\n| 5,000 | 19 | 31 |\n| 7,500 | 11 | 30 |\n| 10,000 | 20 | 38 |\n"
    printed += "made here: 7680×3840, 9.1 MB, for 768×384: decoded to 1920×960 in 94 instead of 290 ms\n"
    printed += "panorama, level: 99.9% differ by at most 6, mean: 1.540 (limit: at most 2) kept\n"
    printed += "panorama, tilted: 99.9% differ by at most 5, mean: 0.920 (limit: at most 2) kept\n"
    for entry in TABLE["command"]:
        if entry["name"] in ("forms of the belief", "decoding a large JPEG"):
            for claim in entry["claim"]:
                result = claims.compare(claim, claims.text_of(claim["page"]), printed)
                assert result.problem is None, result
