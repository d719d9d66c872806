"""Reading what is left of a damaged bag.

A recorder that lost power leaves a bag without an index or with half a record at its end; a bad disk leaves a broken
chunk in the middle. The readers here go through a file from its beginning, use no index, skip what is broken and say
so in `problems`. They are slower than `rosbags` and deliver messages in the order of the file, so they are used only
where `rosbags` refuses.
"""

from __future__ import annotations

import bz2
import io
import itertools
import sqlite3
import struct
import sys
import zlib
from pathlib import Path
from typing import BinaryIO, Callable, Iterator, NamedTuple

import lz4.frame

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd

MCAP_MAGIC = b"\x89MCAP0\r\n"
ROSBAG1_MAGIC = b"#ROSBAG V2.0\n"

_ZSTD_MAGIC = b"\x28\xb5\x2f\xfd"
_BROKEN_ROWS_IN_A_ROW = 1000


class RawMessage(NamedTuple):
    """One message as it lies in a bag. type: in ROS 2's spelling. definition: its text, empty where there is none."""

    topic: str
    type: str
    definition: str
    log_time_ns: int
    data: bytes


class _Channel(NamedTuple):
    topic: str
    type: str
    definition: str


def salvage(path: Path, problems: list[str]) -> Iterator[RawMessage]:
    """Messages of one storage file (.mcap, .db3, .bag), in the order they were written."""
    readers: dict[str, Callable[[Path, list[str]], Iterator[RawMessage]]] = {
        ".mcap": _salvage_mcap,
        ".db3": _salvage_sqlite3,
        ".bag": _salvage_rosbag1,
    }
    reader = readers.get(path.suffix)
    if reader is None:
        problems.append(f"{path.name}: not a .mcap, .db3 or .bag file, nothing can be read of it")
        return
    yield from reader(path, problems)


# --- MCAP -------------------------------------------------------------------------------------------------------------


def _salvage_mcap(path: Path, problems: list[str]) -> Iterator[RawMessage]:
    schemas: dict[int, tuple[str, str]] = {0: ("", "")}
    channels: dict[int, _Channel] = {}

    def records(stream: BinaryIO, end: int, where: str) -> Iterator[tuple[int, bytes, bool]]:
        """(opcode, content, complete) up to `end`; the last content may be cut off."""
        while (start := stream.tell()) + 9 <= end:
            opcode, length = struct.unpack("<BQ", stream.read(9))
            if not 0x01 <= opcode <= 0x0F or (length > end - start - 9 and opcode not in (0x05, 0x06)):
                problems.append(f"{path.name}: {where}, nothing readable after byte {start}")
                return
            content = stream.read(min(length, end - start - 9))
            yield opcode, content, len(content) == length
        if stream.tell() != end:
            problems.append(f"{path.name}: {where}, cut off at byte {end}")

    def messages(stream: BinaryIO, end: int, where: str, inside_chunk: bool) -> Iterator[RawMessage]:
        for opcode, content, complete in records(stream, end, where):
            if opcode == 0x03:
                identity, name, rest = struct.unpack_from("<H", content)[0], *_string(content, 2)
                encoding, rest = _string(content, rest)
                schemas[identity] = (name, _string(content, rest)[0] if encoding == "ros2msg" else "")
            elif opcode == 0x04:
                identity, schema = struct.unpack_from("<HH", content)
                channels[identity] = _Channel(_string(content, 4)[0], *schemas.get(schema, ("", "")))
            elif opcode == 0x05:
                channel = channels.get(struct.unpack_from("<H", content)[0]) if len(content) >= 22 else None
                if complete and channel is not None:
                    yield RawMessage(*channel, struct.unpack_from("<Q", content, 6)[0], content[22:])
                else:
                    problems.append(f"{path.name}: {where}, one message is incomplete")
            elif opcode == 0x06 and not inside_chunk:
                yield from chunk(content, complete)

    def chunk(content: bytes, complete: bool) -> Iterator[RawMessage]:
        if len(content) < 40:
            problems.append(f"{path.name}: a chunk is cut off within its head")
            return
        start_ns, _, size, checksum = struct.unpack_from("<QQQI", content)
        compression, rest = _string(content, 28)
        where = f"chunk of {start_ns / 1e9:.3f} s"
        plain, error = _decompress(compression, content[rest + 8 :])
        if complete and not error and checksum and zlib.crc32(plain) != checksum:
            problems.append(f"{path.name}: {where} has a wrong checksum and is left out")
            return
        if error or len(plain) != size:
            problems.append(f"{path.name}: {where}: {error or 'incomplete'}, {len(plain)} of {size} bytes are left")
        yield from messages(io.BytesIO(plain), len(plain), where, inside_chunk=True)

    size = path.stat().st_size
    with path.open("rb") as file:
        if file.read(len(MCAP_MAGIC)) != MCAP_MAGIC:
            problems.append(f"{path.name}: does not begin as an MCAP file")
            return
        file_end = size
        if size >= 2 * len(MCAP_MAGIC):
            file.seek(-len(MCAP_MAGIC), 2)
            file_end -= len(MCAP_MAGIC) if file.read() == MCAP_MAGIC else 0
        file.seek(len(MCAP_MAGIC))
        yield from messages(file, file_end, "file", inside_chunk=False)


def _string(content: bytes, offset: int) -> tuple[str, int]:
    """A length-prefixed string, and the offset behind it."""
    length = struct.unpack_from("<I", content, offset)[0]
    end = offset + 4 + length
    return content[offset + 4 : end].decode(errors="replace"), end


def _decompress(compression: str, data: bytes) -> tuple[bytes, str]:
    """As much as can be decompressed, and what went wrong ("" if nothing)."""
    if compression in ("", "none"):
        return data, ""
    decompressors = {
        "zstd": zstd.ZstdDecompressor,
        "lz4": lz4.frame.LZ4FrameDecompressor,
        "bz2": bz2.BZ2Decompressor,
    }
    if compression not in decompressors:
        return b"", f"unknown compression {compression!r}"
    decompressor = decompressors[compression]()
    plain = bytearray()
    # In pieces, so that what lies before the damage is kept.
    for start in range(0, len(data), 4096):
        if decompressor.eof:
            break
        try:
            plain += decompressor.decompress(data[start : start + 4096])
        except Exception as error:  # each library has its own exception
            return bytes(plain), f"{compression}: {error}"
    return bytes(plain), "" if decompressor.eof else "cut off"


# --- rosbag1 ----------------------------------------------------------------------------------------------------------


def _salvage_rosbag1(path: Path, problems: list[str]) -> Iterator[RawMessage]:
    channels: dict[int, _Channel] = {}

    def messages(stream: BinaryIO, end: int, where: str) -> Iterator[RawMessage]:
        while stream.tell() < end:
            start = stream.tell()
            head, head_complete = _block(stream, end)
            data, complete = _block(stream, end)
            fields = _fields(head) if head_complete else {}
            opcode = fields.get("op", b"")
            if len(opcode) != 1:
                problems.append(f"{path.name}: {where}, nothing readable after byte {start}")
                return
            if not complete and opcode != b"\x05":
                problems.append(f"{path.name}: {where}, cut off at byte {end}")
                return
            if opcode == b"\x07":
                about = _fields(data)
                package, _, name = about.get("type", b"").decode(errors="replace").partition("/")
                channels[struct.unpack("<I", fields["conn"])[0]] = _Channel(
                    fields["topic"].decode(errors="replace"),
                    f"{package}/msg/{name}",
                    about.get("message_definition", b"").decode(errors="replace"),
                )
            elif opcode == b"\x02":
                channel = channels.get(struct.unpack("<I", fields["conn"])[0])
                seconds, nanoseconds = struct.unpack("<II", fields["time"])
                if channel is not None:
                    yield RawMessage(*channel, seconds * 1_000_000_000 + nanoseconds, data)
            elif opcode == b"\x05":
                plain, error = _decompress(fields.get("compression", b"").decode(errors="replace"), data)
                if error or not complete:
                    problems.append(f"{path.name}: chunk at byte {start}: {error or 'incomplete'}")
                yield from messages(io.BytesIO(plain), len(plain), f"chunk at byte {start}")

    with path.open("rb") as file:
        if file.read(len(ROSBAG1_MAGIC)) != ROSBAG1_MAGIC:
            problems.append(f"{path.name}: does not begin as a rosbag1 file")
            return
        try:
            yield from messages(file, path.stat().st_size, "file")
        except (struct.error, KeyError) as error:
            problems.append(f"{path.name}: a record is malformed ({error}), the rest is left out")


def _block(stream: BinaryIO, end: int) -> tuple[bytes, bool]:
    """A length-prefixed block, as much of it as there is."""
    prefix = stream.read(4)
    if len(prefix) < 4:
        return b"", False
    length = struct.unpack("<I", prefix)[0]
    data = stream.read(min(length, end - stream.tell()))
    return data, len(data) == length


def _fields(head: bytes) -> dict[str, bytes]:
    """name=value fields of a record's head, as many as are well-formed."""
    fields: dict[str, bytes] = {}
    place = 0
    while place + 4 <= len(head):
        length = struct.unpack_from("<I", head, place)[0]
        name, separator, value = head[place + 4 : place + 4 + length].partition(b"=")
        if not separator:
            break
        fields[name.decode(errors="replace")] = value
        place += 4 + length
    return fields


# --- SQLite -----------------------------------------------------------------------------------------------------------


def _salvage_sqlite3(path: Path, problems: list[str]) -> Iterator[RawMessage]:
    try:
        connection = sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro&immutable=1", uri=True)
        # Without it SQLite refuses a file that is shorter than its head says before it looks at any page.
        connection.execute("PRAGMA writable_schema = ON")
        topics = {
            row[0]: _Channel(row[1], row[2], "") for row in connection.execute("SELECT id, name, type FROM topics")
        }
    except sqlite3.Error as error:
        problems.append(f"{path.name}: its table of topics cannot be read ({error})")
        return
    columns = "SELECT id, topic_id, timestamp, data FROM messages"
    last, broken = 0, 0
    with connection:
        try:
            for identity, topic, timestamp, data in connection.execute(f"{columns} ORDER BY id"):
                last = identity
                yield from _row(topics, topic, timestamp, data)
        except sqlite3.Error as error:
            problems.append(f"{path.name}: the table of messages breaks after row {last} ({error})")
        else:
            return
        # Rows behind the broken page are found one by one, each by its own way through the tree.
        found = 0
        for identity in itertools.count(last + 1):
            try:
                row = connection.execute(f"{columns} WHERE id = ?", (identity,)).fetchone()
            except sqlite3.Error:
                row = None
            broken = 0 if row else broken + 1
            if row:
                found += 1
                yield from _row(topics, *row[1:])
            if broken > _BROKEN_ROWS_IN_A_ROW:
                break
        problems.append(f"{path.name}: {found} more rows were readable behind it")


def _row(topics: dict[int, _Channel], topic: int, timestamp: int, data: bytes) -> Iterator[RawMessage]:
    if topic in topics:
        # CDR begins with a zero byte, so a compressed message cannot be mistaken for a plain one.
        plain, _ = _decompress("zstd", data) if data[:4] == _ZSTD_MAGIC else (data, "")
        yield RawMessage(*topics[topic], timestamp, plain)
