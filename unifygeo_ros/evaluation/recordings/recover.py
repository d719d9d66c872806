"""Reading what is left of a damaged bag, by the libraries of its format.

A recorder that lost power leaves a bag without an index or with half a record at its end; a bad disk leaves a broken
chunk in the middle. A file is read from its beginning without its index, and what is broken is left out and named in
`problems`. That is slower than `rosbags`, so it is used only where `rosbags` refuses.

MCAP is read by the `mcap` library, chunk by chunk; a broken or unfinished chunk is lost as a whole. SQLite is read by
`sqlite3` up to the first broken page. For rosbag1 there is no such library: `rosbag reindex` repairs the file.
"""

from __future__ import annotations

import sqlite3
import sys
from pathlib import Path
from typing import Callable, Iterator, NamedTuple

from unifygeo_ros.core.errors import InputError
from unifygeo_ros.core.time import s_from_ns

_ZSTD_MAGIC = b"\x28\xb5\x2f\xfd"


class RawMessage(NamedTuple):
    """One message as stored in a bag."""

    topic: str
    type: str
    """In ROS 2's spelling."""
    definition: str
    """The text of the type's definition, empty where the bag has none."""
    log_time_ns: int
    data: bytes


def recover(path: Path, problems: list[str]) -> Iterator[RawMessage]:
    """Yield the readable messages of one storage file (.mcap or .db3), in the order they were written.

    Args:
        path: The file.
        problems: Takes what could not be read.

    Raises:
        InputError: The format's library is not installed, or has no way to read a damaged file.
    """
    readers: dict[str, Callable[[Path, list[str]], Iterator[RawMessage]]] = {
        ".mcap": _recover_mcap,
        ".db3": _recover_sqlite3,
    }
    reader = readers.get(path.suffix)
    if reader is None:
        raise InputError(f"{path}: is damaged or no bag ({'; '.join(problems)}); repair it by `rosbag reindex` first")
    yield from reader(path, problems)


def _recover_mcap(path: Path, problems: list[str]) -> Iterator[RawMessage]:
    try:
        from mcap.exceptions import InvalidMagic
        from mcap.records import Channel, Chunk, Message, Schema
        from mcap.stream_reader import StreamReader, breakup_chunk
    except ImportError as error:
        raise InputError(
            f"{path}: is damaged, and the library that reads what is left is missing ({error}); `pip install mcap`, or "
            "repair the file by `mcap recover`"
        ) from error
    schemas: dict[int, Schema] = {}
    channels: dict[int, tuple[str, str, str]] = {}
    with path.open("rb") as stream:
        # Chunks are taken apart here, so that a broken one costs no other.
        records = StreamReader(stream, emit_chunks=True).records
        while True:
            start = stream.tell()
            try:
                record = next(records)
            except StopIteration:
                return
            except InvalidMagic:
                if start == 0:
                    problems.append(f"{path.name}: does not begin as an MCAP file")
                return
            except Exception as error:  # the library raises many kinds; none of them can be passed over
                problems.append(
                    f"{path.name}: nothing readable after byte {start} ({str(error) or type(error).__name__})"
                )
                return
            parts = [record]
            if isinstance(record, Chunk):
                try:
                    parts = breakup_chunk(record, validate_crc=True)
                except Exception as error:  # checksum, decompression, lengths
                    where = f"the chunk of {s_from_ns(record.message_start_time):.3f} s"
                    problems.append(
                        f"{path.name}: {where} is damaged and left out ({str(error) or type(error).__name__})"
                    )
            for part in parts:
                if isinstance(part, Schema):
                    schemas[part.id] = part
                elif isinstance(part, Channel):
                    schema = schemas.get(part.schema_id)
                    definition = schema.data.decode(errors="replace") if schema and schema.encoding == "ros2msg" else ""
                    channels[part.id] = (part.topic, schema.name if schema else "", definition)
                elif isinstance(part, Message) and part.channel_id in channels:
                    yield RawMessage(*channels[part.channel_id], part.log_time, part.data)


def _recover_sqlite3(path: Path, problems: list[str]) -> Iterator[RawMessage]:
    try:
        connection = sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro&immutable=1", uri=True)
        # Without it SQLite refuses a file that is shorter than its header's page count.
        connection.execute("PRAGMA writable_schema = ON")
        topics: dict[int, tuple[str, str]] = {
            row[0]: (row[1], row[2]) for row in connection.execute("SELECT id, name, type FROM topics")
        }
    except sqlite3.Error as error:
        problems.append(f"{path.name}: its table of topics cannot be read ({error})")
        return
    count = 0
    try:
        for topic, timestamp, data in connection.execute("SELECT topic_id, timestamp, data FROM messages ORDER BY id"):
            count += 1
            if topic in topics:
                yield RawMessage(*topics[topic], "", timestamp, _plain(data))
    except sqlite3.Error as error:
        problems.append(f"{path.name}: breaks after {count} messages, the rest is left out ({error})")
    finally:
        connection.close()


def _plain(data: bytes) -> bytes:
    """A message of a bag that compresses each. CDR begins with a zero byte, so that the two cannot be confused."""
    if data[:4] != _ZSTD_MAGIC:
        return data
    # rosbags brings it.
    if sys.version_info >= (3, 14):
        from compression import zstd
    else:
        from backports import zstd
    return bytes(zstd.decompress(data))
