"""A finished replay as a source: all of its frames at once, the camera's pictures from the bag."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from unifygeo_ros.aerial.map_index import MapIndex
from unifygeo_ros.core.errors import InputError
from unifygeo_ros.evaluation.metrics.results import FORMAT, read_frames
from unifygeo_ros.evaluation.recordings.bags import Bag, choose_topic
from unifygeo_ros.evaluation.recordings.recorded_rig import IMAGE_TYPES
from unifygeo_ros.watch.entries import frame_of_replay
from unifygeo_ros.watch.journal import Journal
from unifygeo_ros.watch.orthophoto import Orthophoto
from unifygeo_ros.watch.pictures import BagPictures

FRAMES = ".frames.jsonl"


class ReplaySource:
    """See `server.Source`."""

    def __init__(self, results: Path, index: MapIndex | None, bag: Path | None, image_topic: str | None) -> None:
        """Read a replay.

        Args:
            results: The file OUT.frames.jsonl of `unifygeo replay --output OUT.mcap`, that OUT.mcap, or the only one's
                folder.
            index: What the replay was made with, for the map; None: no map.
            bag: The recorded drive, for the camera's pictures; None: no pictures.
            image_topic: Of the bag; None: the only one.

        Raises:
            InputError: One of them cannot be read, or the index is another one than the replay's.
        """
        self._path = results_file(results)
        self._notes: list[str] = []
        identity = _identity(self._path)
        if index is not None:
            _check_index(identity, index, self._path)
        else:
            self._notes.append("no map: give the replay's INDEX")
        frames = list(read_frames(self._path))
        if not frames:
            raise InputError(f"{self._path}: holds no image yet; let the replay go on first")
        self.journal = Journal(limit=len(frames))
        for frame in frames:
            self.journal.add(frame_of_replay(frame))
        self.journal.close()
        self.orthophoto = Orthophoto(index) if index is not None else None
        self.pictures: BagPictures | None = None
        if bag is None:
            self._notes.append("no camera pictures: give --bag")
        else:
            wanted = image_topic or identity.get("topics", {}).get("image")
            topic = choose_topic(Bag(bag), wanted, IMAGE_TYPES, purpose="images", option="--image-topic", required=True)
            assert topic is not None
            self.pictures = BagPictures(bag, topic.name, {frame.number: frame.log_time_ns for frame in frames})

    def description(self) -> dict[str, Any]:
        """See `server.Source`."""
        name = self._path.name.removesuffix(FRAMES)
        return {"mode": "replay", "name": name, "notes": self._notes, "pictures": self.pictures is not None}


def results_file(path: Path) -> Path:
    """The file of results that a path means. Raises InputError."""
    if path.is_dir():
        found = sorted(path.glob(f"*{FRAMES}"))
        if len(found) != 1:
            listed = ", ".join(file.name for file in found) or "none"
            raise InputError(f"{path}: the folder holds {len(found)} replays ({listed}); name one file, *{FRAMES}")
        return found[0]
    if not path.name.endswith(FRAMES):
        path = path.with_name(path.name.removesuffix(".mcap") + FRAMES)
    if not path.is_file():
        raise InputError(f"{path}: there is no such file; give what `unifygeo replay --output` wrote")
    return path


def _identity(path: Path) -> dict[str, Any]:
    """What the replay was made with. Raises InputError."""
    try:
        with path.open(encoding="utf-8") as stream:
            head = json.loads(stream.readline())
        if head["format"] != FORMAT:
            raise ValueError(f"format {head['format']!r}")
        return dict(head["identity"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(f"{path}: not the results of a replay ({error}); give the file *{FRAMES}") from error


def _check_index(identity: dict[str, Any], index: MapIndex, path: Path) -> None:
    """Positions in the map of another index would be drawn at wrong places."""
    wanted, datum = identity.get("index", {}).get("datum"), index.manifest.datum
    found = f"{datum.latitude_deg:.7f}, {datum.longitude_deg:.7f}, {datum.height_m:g} m"
    if wanted != found:
        raise InputError(
            f"{index.path}: its datum is {found}, the replay {path.name} was made with {wanted}; give the replay's "
            "index"
        )
