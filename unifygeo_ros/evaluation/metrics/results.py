"""What a replay leaves behind for each image, and the file that holds it.

The file has one JSON object a line: who made it, then one result an image in the order of the bag, then the end. It is
flushed after every image, so an interrupted replay resumes where it stopped. Nothing in it depends on the machine's
clock; latencies go into a second file in the same folder.
"""

from __future__ import annotations

import dataclasses
import enum
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Iterator, Mapping

import numpy as np

from unifygeo_ros.core.arrays import Float64
from unifygeo_ros.core.errors import InputError
from unifygeo_ros.core.records import Fix, Heading, HeadingSource, Hypothesis, Prior, Rejection, RejectionReason
from unifygeo_ros.evaluation.recordings.truth import TruthPose

FORMAT = "unifygeo-replay"
FORMAT_VERSION = 1


@dataclass(frozen=True)
class RecordedQuery:
    """What the localizer knew besides the pixels."""

    prior: Prior | None
    heading: Heading | None
    roll_rad: float | None
    pitch_rad: float | None


@dataclass(frozen=True)
class SeenTiles:
    """The candidates after re-ranking, best first."""

    tile_ids: tuple[int, ...]
    centres_m: Float64
    """float64 (k, 2), east and north."""
    scores: tuple[float, ...]
    similarities: tuple[float, ...]
    retrieval_ranks: tuple[int, ...]
    """Rank of each by retrieval, before re-ranking, from 0."""
    yaw_rad: float
    """The heading that was used, given or found."""


@dataclass(frozen=True)
class TileRanks:
    """Places, from 1, of the right tile; None where it is not among the first `depth` (re-ranked: the candidates).

    covering: the first tile that contains the camera's true position (several do, since tiles overlap). nearest: the
    one tile whose centre is nearest to it.
    """

    depth: int
    candidates: int
    covering_retrieved: int | None
    covering_reranked: int | None
    nearest_retrieved: int | None
    nearest_reranked: int | None


@dataclass(frozen=True)
class FrameResult:
    """One image of the drive."""

    number: int
    """Its number in the image topic, from 0."""
    log_time_ns: int
    """When it was recorded."""
    outcome: Fix | Rejection
    truth: TruthPose | None
    """None in a gap."""
    query: RecordedQuery | None
    """None where the image did not get so far."""
    tiles: SeenTiles | None
    """None where the image did not get so far."""
    ranks: TileRanks | None
    """None where the image did not get so far."""
    odometry: tuple[float, float, float] | None
    """x (m), y (m), yaw (rad) in the odometry's own frame at the exposure, None where there is none."""


def to_json(result: FrameResult) -> str:
    """One line, without its end. Floats keep every bit."""
    content = _plain(result)
    content["outcome"]["kind"] = "fix" if isinstance(result.outcome, Fix) else "rejection"
    return json.dumps(content, separators=(",", ":"), allow_nan=False)


def from_json(line: str) -> FrameResult:
    """Inverse of `to_json`."""
    raw = json.loads(line)
    outcome, truth, query, tiles = raw["outcome"], raw["truth"], raw["query"], raw["tiles"]
    outcome["hypotheses"] = tuple(Hypothesis(**hypothesis) for hypothesis in outcome["hypotheses"])
    made: Fix | Rejection
    if outcome.pop("kind") == "fix":
        made = Fix(**{**outcome, "covariance_m2": _matrix(outcome["covariance_m2"])})
    else:
        made = Rejection(**{**outcome, "reason": RejectionReason(outcome["reason"])})
    if query is not None:
        prior, heading = query["prior"], query["heading"]
        query["prior"] = prior and Prior(**{**prior, "covariance_m2": _matrix(prior["covariance_m2"])})
        query["heading"] = heading and Heading(**{**heading, "source": HeadingSource(heading["source"])})
    if tiles is not None:
        tiles = {name: tuple(value) if isinstance(value, list) else value for name, value in tiles.items()}
        tiles["centres_m"] = _matrix(tiles["centres_m"])
    return FrameResult(
        number=raw["number"],
        log_time_ns=raw["log_time_ns"],
        outcome=made,
        truth=truth and TruthPose(**{**truth, "covariance_m2": _matrix(truth["covariance_m2"])}),
        query=query and RecordedQuery(**query),
        tiles=tiles and SeenTiles(**tiles),
        ranks=raw["ranks"] and TileRanks(**raw["ranks"]),
        odometry=raw["odometry"] and tuple(raw["odometry"]),
    )


def _matrix(rows: Any) -> Float64:
    return np.array(rows, np.float64).reshape(-1, 2)


def _plain(value: Any) -> Any:
    """Records, arrays and enums as what JSON knows. Latencies are left out."""
    if dataclasses.is_dataclass(value):
        names = (item.name for item in dataclasses.fields(value) if item.name != "timings_ms")
        return {name: _plain(getattr(value, name)) for name in names}
    if isinstance(value, np.ndarray):
        return value.tolist()
    if isinstance(value, (tuple, list)):
        return [_plain(item) for item in value]
    if isinstance(value, enum.Enum):
        return value.value
    return value


class ResultFile:
    """The results of one replay on disk, new or to be continued.

    identity: what the replay was made with. A file that is there already must have the same, or InputError says what
    differs.
    """

    def __init__(self, path: Path, identity: Mapping[str, Any]) -> None:
        self.path = path
        self.timings_path = path.with_name(path.name.replace(".frames.", ".timings."))
        self.done = 0
        self.complete = False
        self.problems: tuple[str, ...] = ()
        head = json.dumps({"format": FORMAT, "format_version": FORMAT_VERSION, "identity": identity}, sort_keys=True)
        if path.exists():
            length = self._take_up(head)
        else:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(head + "\n", encoding="utf-8")
            self.timings_path.write_text("", encoding="utf-8")
            length = path.stat().st_size
        self._frames = path.open("r+", encoding="utf-8")
        self._frames.truncate(length)
        self._frames.seek(length)
        self._timings = self.timings_path.open("a", encoding="utf-8")

    def __enter__(self) -> ResultFile:
        return self

    def __exit__(self, *_: object) -> None:
        self._frames.close()
        self._timings.close()

    def append(self, result: FrameResult, timings_ms: Mapping[str, float]) -> None:
        """Add the next image's result."""
        self._frames.write(to_json(result) + "\n")
        self._frames.flush()
        self._timings.write(json.dumps({"number": result.number, "ms": dict(timings_ms)}) + "\n")
        self._timings.flush()
        self.done += 1

    def finish(self, problems: tuple[str, ...]) -> None:
        """Mark the file as complete. problems: what was wrong with the recording."""
        self._frames.write(json.dumps({"end": self.done, "problems": problems}) + "\n")
        self._frames.flush()
        self.problems, self.complete = problems, True

    def frames(self) -> Iterator[FrameResult]:
        """The results so far, from the first, one at a time."""
        return read_frames(self.path)

    def _take_up(self, head: str) -> int:
        """Count what is there, and say how many bytes of it are whole lines."""
        length = 0
        with self.path.open("rb") as stream:
            for line in stream:
                if not line.endswith(b"\n"):
                    break  # written when the replay was interrupted
                if length == 0:
                    self._compare(line.decode(), head)
                elif line.startswith(b'{"end"'):
                    self.complete, self.problems = True, tuple(json.loads(line)["problems"])
                else:
                    self.done += 1
                length += len(line)
        if length == 0:
            raise InputError(f"{self.path}: holds no results; remove it")
        return length

    def _compare(self, there: str, head: str) -> None:
        if there == head + "\n":
            return
        try:
            old, new = json.loads(there), json.loads(head)
        except json.JSONDecodeError as error:
            raise InputError(f"{self.path}: not a file of results ({error}); choose another --output") from error
        differences = ", ".join(sorted(_differences(old, new))) or "its format"
        raise InputError(
            f"{self.path}: made by another replay, which differs in {differences}; choose another --output, or give "
            "--restart to replace it"
        )


def _differences(old: Any, new: Any, path: str = "") -> Iterator[str]:
    if isinstance(old, dict) and isinstance(new, dict):
        for name in old.keys() | new.keys():
            yield from _differences(old.get(name), new.get(name), f"{path}.{name}" if path else name)
    elif old != new:
        yield f"{path} ({old} there, {new} now)"


def read_frames(path: Path) -> Iterator[FrameResult]:
    """The whole results of a file, one at a time."""
    with path.open(encoding="utf-8") as stream:
        next(stream)
        for line in stream:
            if line.startswith('{"end"') or not line.endswith("\n"):
                return
            yield from_json(line)


def read_timings(path: Path) -> dict[str, list[float]]:
    """Milliseconds by stage, of the images that passed it. An image replayed twice counts with its last time."""
    by_number: dict[int, dict[str, float]] = {}
    with path.open(encoding="utf-8") as stream:
        for line in stream:
            if line.endswith("\n"):
                entry = json.loads(line)
                by_number[entry["number"]] = entry["ms"]
    stages: dict[str, list[float]] = {}
    for timings in by_number.values():
        for stage, milliseconds in timings.items():
            stages.setdefault(stage, []).append(milliseconds)
    return {stage: stages[stage] for stage in sorted(stages, key=lambda stage: stage == "total")}  # the sum last
