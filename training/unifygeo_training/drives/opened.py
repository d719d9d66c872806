"""The drives of a file, read and found fit."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from unifygeo_ros.core.errors import InputError, UnifyGeoError
from unifygeo_ros.inference.bundle import AerialSpec, GroundSpec
from unifygeo_training.drives.check import DriveReport, examine, report_of_error
from unifygeo_training.drives.ground import Ground, open_ground
from unifygeo_training.drives.places import PARTS, near_other_part, parts_of
from unifygeo_training.drives.recorded import Drive, Recording, read_drive
from unifygeo_training.drives.settings import DrivesFile, DriveSource, read_drives_file
from unifygeo_training.drives.turns import compare_turns
from unifygeo_training.model.config import NetworkConfig

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class PartOfDrive:
    """Some images of a drive."""

    drive: Drive
    chosen: npt.NDArray[np.int64]
    """int64 (n,), numbers of its used images, rising."""

    def __len__(self) -> int:
        return len(self.chosen)


def check_drives(
    file: DrivesFile, ground_spec: GroundSpec, aerial: AerialSpec | None
) -> Iterator[tuple[DriveReport, Drive | None]]:
    """Read and judge each drive of a file. The drive is None where it cannot be read."""
    grounds: dict[tuple[Path | None, tuple[Path, ...]], Ground] = {}
    for source in file.drives:
        try:
            drive, report = _read(source, file, ground_spec, aerial, grounds)
        except UnifyGeoError as error:
            yield report_of_error(str(source.bag), error), None
            continue
        yield report, drive


def open_drives(path: Path, ground_spec: GroundSpec, aerial: AerialSpec) -> tuple[DrivesFile, list[Drive]]:
    """All drives of a file.

    Raises InputError with the first finding: nothing is learnt from drives that are not fit, not even from the others,
    since a person must decide what to do about it.
    """
    file = read_drives_file(path)
    drives = []
    for report, drive in check_drives(file, ground_spec, aerial):
        logger.info("%s", report)
        if report.problem is not None or drive is None:
            raise InputError(
                f"{report.name}: {report.problem}. Look with `unifygeo-train check-data drives {path}`, repair the "
                "drive or take it out of the file"
            )
        drives.append(drive)
    return file, drives


def part_of(file: DrivesFile, drives: Sequence[Drive], part: str, *, guard_m: float = 0.0) -> list[PartOfDrive]:
    """The images of each drive on the places of one part ("all": everywhere), drives with none left out.

    guard_m: images nearer than this to places of another part are left out, so that no tile shows those.

    Raises InputError where nothing is left.
    """
    split: dict[str, Any] = {"cell_m": file.cell_m, "shares": (file.val_share, file.test_share), "seed": file.seed}
    found = []
    for drive in drives:
        chosen = np.ones(len(drive), np.bool_)
        if part != "all":
            chosen = parts_of(drive.geodetic_deg, **split) == part
            if guard_m:
                near = near_other_part(drive.geodetic_deg, part, guard_m=guard_m, **split)
                logger.info(
                    "%s: %d images at the border of another part left out", drive.name, int((chosen & near).sum())
                )
                chosen &= ~near
        if chosen.any():
            found.append(PartOfDrive(drive, np.flatnonzero(chosen).astype(np.int64)))
    if not found:
        counts = sum(len(drive) for drive in drives)
        raise InputError(
            f"none of {counts} images lies on places of the part {part!r} ({', '.join(PARTS)}; squares of "
            f"{file.cell_m:g} m); set another seed, smaller squares (cell_m) or larger shares in the drives' file, or "
            "take the part all"
        )
    return found


def open_part(path: Path, network: NetworkConfig, part: str) -> list[PartOfDrive]:
    """The images of one part of a file's drives, for judging and calibrating. Raises InputError."""
    file, drives = open_drives(path, network.ground, network.aerial)
    return part_of(file, drives, part)


def _read(
    source: DriveSource,
    file: DrivesFile,
    ground_spec: GroundSpec,
    aerial: AerialSpec | None,
    grounds: dict[tuple[Path | None, tuple[Path, ...]], Ground],
) -> tuple[Drive, DriveReport]:
    key = source.index, source.imagery
    if key not in grounds:
        grounds[key] = open_ground(source.index, source.imagery, aerial)
    recording = Recording(source, grounds[key])
    drive = read_drive(recording, ground_spec, spacing_m=file.spacing_m, largest_sigma_m=file.largest_sigma_m)
    return drive, examine(drive, compare_turns(recording))
