"""Steps of a long run, each in a folder of its own, each done once.

Beside the folder of a step lies `STEP.json`: what it was made from, and, once it is complete, the checksums of its
files. A step with other inputs, or with files that changed since, is done again from nothing; one that was interrupted
goes on in its folder.
"""

from __future__ import annotations

import hashlib
import json
import logging
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from unifygeo_ros.core.files import write_text
from unifygeo_ros.inference.bundle import sha256_of_file

logger = logging.getLogger(__name__)


class Stages:
    """The steps of one run. `count` is how many there will be, for the progress."""

    def __init__(self, folder: Path, count: int) -> None:
        self._folder, self._count, self._reached = folder, count, 0
        folder.mkdir(parents=True, exist_ok=True)

    def make(self, name: str, inputs: Mapping[str, Any], work: Callable[[Path], None]) -> Path:
        """The folder of a step, made by `work(folder)` where it is not complete.

        Args:
            name: Of the step.
            inputs: All that decides its files, as JSON knows it.
            work: Fills the folder. It may find there what a call that was interrupted left.
        """
        self._reached += 1
        folder, record = self._folder / name, self._folder / f"{name}.json"
        wanted = json.loads(json.dumps(inputs, sort_keys=True, default=str))
        there = _read(record)
        place = f"step {self._reached} of {self._count}, {name}"
        if there.get("inputs") == wanted and "files" in there and there["files"] == _checksums(folder):
            logger.info("%s: done before", place)
            return folder
        if there.get("inputs") != wanted or "files" in there:
            shutil.rmtree(folder, ignore_errors=True)
            write_text(record, _text({"inputs": wanted}))
        logger.info("%s", place)
        folder.mkdir(exist_ok=True)
        work(folder)
        write_text(record, _text({"inputs": wanted, "files": _checksums(folder)}))
        return folder

    def digest(self, name: str) -> str:
        """Checksum of a complete step, as an input of later ones."""
        return hashlib.sha256((self._folder / f"{name}.json").read_bytes()).hexdigest()


def _read(record: Path) -> dict[str, Any]:
    try:
        content = json.loads(record.read_text(encoding="utf-8"))
    except (OSError, ValueError):  # not there, or damaged: the step is done again
        return {}
    return content if isinstance(content, dict) else {}


def _text(content: Mapping[str, Any]) -> str:
    return json.dumps(content, indent=1, sort_keys=True) + "\n"


def _checksums(folder: Path) -> dict[str, str]:
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): sha256_of_file(path) for path in files}
