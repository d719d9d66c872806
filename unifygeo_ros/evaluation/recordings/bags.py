"""Recorded drives: rosbag2 (MCAP, SQLite; whole or damaged) and rosbag1, as one stream of messages."""

from __future__ import annotations

import contextlib
import weakref
import zlib
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any, Collection, Iterator, Mapping, NamedTuple

from rosbags.highlevel import AnyReader
from rosbags.typesys import Stores, get_types_from_msg, get_typestore
from rosbags.typesys.store import Typestore

from unifygeo_ros.core.errors import InputError
from unifygeo_ros.core.time import s_from_ns
from unifygeo_ros.evaluation.recordings.recover import RawMessage, recover

MAX_PROBLEMS = 1000
STORAGE_SUFFIXES = (".mcap", ".db3", ".bag")


@dataclass(frozen=True)
class BagTopic:
    """A topic of a bag."""

    name: str
    type: str
    """In ROS 2's spelling, also for rosbag1."""
    count: int
    """Number of its messages."""


class BagMessage(NamedTuple):
    """One message, not yet deserialized."""

    topic: str
    type: str
    log_time_ns: int
    """When it was recorded."""
    data: bytes


class Bag:
    """A recorded drive. Its files are open for as long as it exists.

    `problems` grows while the bag is read: each entry says what could not be read and why, up to MAX_PROBLEMS of them.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.problems: list[str] = []
        self.files = _storage_files(path)
        self._is_rosbag1 = self.files[0].suffix == ".bag"
        self._store: Typestore = get_typestore(Stores.ROS1_NOETIC if self._is_rosbag1 else Stores.ROS2_JAZZY)
        self._idle: list[AnyReader] = []
        weakref.finalize(self, _close, self._idle)
        try:
            with self._reader() as reader:
                self._whole = True
                self._store = reader.typestore
                counts: Counter[tuple[str, str]] = Counter()
                for connection in reader.connections:
                    counts[connection.topic, connection.msgtype] += connection.msgcount
        except Exception as error:  # damage shows in many ways: rosbags' errors, struct, SQLite, zstd
            self._whole = False
            self.note(f"{self.path.name}: {error}; reading what is left")
            counts = self._survey()
        self.topics: Mapping[str, BagTopic] = MappingProxyType(
            {name: BagTopic(name, type_, count) for (name, type_), count in sorted(counts.items())}
        )
        if not self.topics:
            raise InputError(f"{path}: nothing of the bag can be read ({'; '.join(self.problems)})")

    def messages(
        self, topics: Collection[str], *, start_ns: int | None = None, stop_ns: int | None = None
    ) -> Iterator[BagMessage]:
        """Messages of some topics in the order they were recorded. Only the damaged part of a bag is lost.

        Args:
            topics: their names.
            start_ns: only messages recorded at or after it; None: from the start.
            stop_ns: only messages recorded before it; None: to the end.
        """
        delivered_until = -1
        at_that_time: Counter[tuple[str, int]] = Counter()
        if self._whole:
            try:
                with self._reader() as reader:
                    connections = [c for c in reader.connections if c.topic in topics]
                    for connection, time_ns, data in (
                        reader.messages(connections, start_ns, stop_ns) if connections else ()
                    ):
                        if time_ns != delivered_until:
                            delivered_until = time_ns
                            at_that_time.clear()
                        at_that_time[connection.topic, zlib.crc32(data)] += 1
                        yield BagMessage(connection.topic, connection.msgtype, time_ns, bytes(data))
                    return
            except GeneratorExit:
                raise
            except Exception as error:
                self._whole = False
                self.note(f"{self.path.name}: {error}; going on with what is left")
        # Starts at the beginning; what has been delivered is passed over.
        for message in self._recovered():
            key = (message.topic, zlib.crc32(message.data))
            if message.topic not in topics or message.log_time_ns < max(delivered_until, start_ns or 0):
                continue
            if stop_ns is not None and message.log_time_ns >= stop_ns:
                continue
            if message.log_time_ns == delivered_until and at_that_time[key] > 0:
                at_that_time[key] -= 1
                continue
            yield BagMessage(message.topic, message.type, message.log_time_ns, message.data)

    def deserialize(self, message: BagMessage) -> Any:
        """The message's fields, by name. Raises InputError if its bytes are damaged."""
        try:
            if self._is_rosbag1:
                return self._store.deserialize_ros1(message.data, message.type)
            return self._store.deserialize_cdr(message.data, message.type)
        except Exception as error:  # damaged bytes raise struct, assertion, Unicode and type errors
            raise InputError(
                f"{self.path}: message on {message.topic} at {s_from_ns(message.log_time_ns):.3f} s is damaged: {error}"
            ) from error

    @contextlib.contextmanager
    def _reader(self) -> Iterator[AnyReader]:
        """A reader that nobody else uses now.

        Opening one reads the metadata, the definitions of all messages and, where the files are compressed, all of
        them; so it is kept for the next use.
        """
        try:
            reader = self._idle.pop()
        except IndexError:
            reader = AnyReader([self.path], default_typestore=self._store)
            reader.open()
        try:
            yield reader
        except Exception:
            reader.close()
            raise
        except BaseException:  # above all GeneratorExit: the caller does not want the rest
            self._idle.append(reader)
            raise
        self._idle.append(reader)

    def _recovered(self) -> Iterator[RawMessage]:
        for file in self.files:
            problems = list(self.problems) if self._is_rosbag1 else []
            try:
                yield from recover(file, problems)
            finally:
                # The file may be gone through more than once.
                for problem in problems:
                    self.note(problem)

    def _survey(self) -> Counter[tuple[str, str]]:
        """Topics and counts of what is left, and the types that its definitions describe."""
        counts: Counter[tuple[str, str]] = Counter()
        definitions: dict[str, str] = {}
        for message in self._recovered():
            counts[message.topic, message.type] += 1
            definitions.setdefault(message.type, message.definition)
        types: dict[str, Any] = {}
        for name, text in definitions.items():
            if text:
                try:
                    types.update(get_types_from_msg(text, name))
                except Exception as error:  # a definition that was cut off
                    self.note(
                        f"{self.path.name}: the definition of {name} is damaged ({error}); the usual one is taken"
                    )
        if types:
            store = get_typestore(Stores.EMPTY)
            store.register({**self._store.fielddefs, **types})
            self._store = store
        return counts

    def note(self, problem: str) -> None:
        """Remember a problem, once."""
        if len(self.problems) < MAX_PROBLEMS and problem not in self.problems:
            self.problems.append(problem)
            if len(self.problems) == MAX_PROBLEMS:
                self.problems.append("further problems are not listed")


def _close(readers: list[AnyReader]) -> None:
    for reader in readers:
        reader.close()


def _storage_files(path: Path) -> list[Path]:
    """The files that hold messages, in the order they were written. Raises InputError."""
    if not path.exists():
        raise InputError(f"{path}: there is no such bag; give a rosbag2 folder, .mcap, .db3 or .bag")
    if path.is_file():
        if path.suffix not in STORAGE_SUFFIXES:
            raise InputError(f"{path}: a bag's name ends in {', '.join(STORAGE_SUFFIXES)}; or give the rosbag2 folder")
        return [path]
    # ros2 bag numbers the parts name_0, name_1, … name_10.
    files = sorted(
        (file for file in path.iterdir() if file.suffix in STORAGE_SUFFIXES), key=lambda f: (len(f.stem), f.stem)
    )
    if not files:
        raise InputError(f"{path}: the folder holds no .mcap or .db3 file; give a rosbag2 folder")
    return files


def choose_topic(
    bag: Bag,
    wanted: str | None,
    types: Collection[str],
    *,
    purpose: str,
    option: str,
    required: bool,
    taken: Collection[str | None] = (),
    together: str = "",
) -> BagTopic | None:
    """The topic for a purpose: the one that was named, or the only one of the right types.

    Args:
        bag: the drive.
        wanted: a topic's name, "none", or None to find it by type among those not `taken`.
        types: of messages that serve the purpose.
        purpose: for the error's words.
        option: of the command line, for the error's words.
        required: whether there must be one.
        taken: topics with another purpose.
        together: option that takes several topics, for the error's words.

    Raises:
        InputError: the topic is not there, of another type, or not the only one; lists the choices.
    """
    fitting = [topic for topic in bag.topics.values() if topic.type in types]
    listed = ", ".join(f"{topic.name} ({topic.type}, {topic.count})" for topic in fitting) or "none"
    if wanted == "none":
        if required:
            raise InputError(f"{bag.path}: {purpose} cannot be left out; {option} one of: {listed}")
        return None
    if wanted is not None:
        named = next((topic for topic in fitting if topic.name == wanted), None)
        if named is None:
            there = bag.topics.get(wanted)
            state = f"is of type {there.type}" if there else "is not in the bag"
            raise InputError(f"{bag.path}: {option} {wanted} {state}; topics that can serve as {purpose}: {listed}")
        return named
    free = [topic for topic in fitting if topic.name not in taken]
    if len(free) > 1:
        raise InputError(
            f"{bag.path}: {len(free)} topics can serve as {purpose}; choose by {option} one of: "
            + ", ".join(f"{topic.name} ({topic.type}, {topic.count})" for topic in free)
            + ("" if required else ", or none")
            + (f"; or take several together by {together}" if together else "")
        )
    if not free and required:
        everything = ", ".join(f"{topic.name} ({topic.type})" for topic in bag.topics.values())
        raise InputError(f"{bag.path}: no topic can serve as {purpose} (types {', '.join(types)}); it has {everything}")
    return free[0] if free else None
