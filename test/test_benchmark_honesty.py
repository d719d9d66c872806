"""The benchmark of honesty imports what it needs by present names, and its table adds up result files."""

from __future__ import annotations

import argparse
import importlib.util
import json
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest


@pytest.fixture(scope="module")
def honesty() -> ModuleType:
    path = Path(__file__).parent.parent / "benchmarks" / "honesty.py"
    spec = importlib.util.spec_from_file_location("benchmark_honesty", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # its dataclasses look their module up
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(path.parent))  # benchmarks import each other by their bare names
        spec.loader.exec_module(module)
    return module


def fix(error_m: float, nees: float) -> dict[str, object]:
    return {"on_map": True, "outcome": "fix", "ambiguity": 0.0, "error_m": error_m, "nees": nees, "yaw_nees": 1.0}


def test_table_adds_up_two_drives(honesty: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    off = {"on_map": False, "outcome": "ambiguous", "detail": ""}
    first = [[fix(0.5, 1.0), fix(0.5, 3.0), {"on_map": True, "outcome": "ambiguous", "detail": ""}, off]]
    second = [[fix(50.0, 100.0), off, off, {"on_map": False, "outcome": "fix", "ambiguity": 0.0}], [off]]
    folder = tmp_path / "results"
    folder.mkdir()
    for name, parts in (("1", first), ("2", second)):
        (folder / f"single-half_of_the_town-{name}.json").write_text(json.dumps(parts))
    honesty.table(argparse.Namespace(work=tmp_path, label="results", rows="", drives=""))
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 3  # two of the header and the one situation that has results
    cells = [cell.strip() for cell in lines[-1].strip("|").split("|")]
    assert cells[0] == "single: half of the town"
    assert cells[1:3] == ["4", "75.0%"]
    assert cells[3].startswith("1 = 33.33% (")
    assert cells[7] == "5"  # images off the map
    assert cells[8].startswith("1 = 20.00% (3.6")  # Wilson's interval of 1 of 5 begins at 3.6%


def test_every_feed_keeps_an_image_an_image(honesty: ModuleType) -> None:
    picture = np.random.default_rng(0).integers(0, 255, (64, 128, 3), np.uint8)
    for feed in honesty.FEEDS.values():
        fed = feed(picture)
        assert fed.dtype == np.uint8
        assert fed.shape[1:] == (2 * fed.shape[0], 3)
