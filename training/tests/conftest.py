"""Where the training package or what it needs is missing, as in a robot's workspace, its tests are left out, and the
header of the run says so."""

from __future__ import annotations

from importlib.util import find_spec

MISSING = [name for name in ("torch", "timm", "lightning", "unifygeo_training") if find_spec(name) is None]
collect_ignore_glob = ["test_*.py"] if MISSING else []


def pytest_report_header() -> list[str]:
    return [f"training/tests left out, not installed: {', '.join(MISSING)}"] if MISSING else []
