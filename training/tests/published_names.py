"""Names of the published weights' tensors, for tests that write such files."""

from __future__ import annotations

from unifygeo_training.checkpoint import PREFIXES


def published_name(ours: str) -> str | None:
    """Inverse of `our_name`; None where there is none."""
    for published, prefix in PREFIXES:
        if ours == prefix or (prefix.endswith(".") and ours.startswith(prefix)):
            return published + ours[len(prefix) :]
    return None
