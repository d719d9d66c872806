"""Bags, whole and damaged, written with `rosbags` and broken byte by byte."""

import contextlib
import gc
import sqlite3
import struct
import sys
import warnings
import zlib
from pathlib import Path

import numpy as np
import pytest
from rosbags.highlevel import AnyReader
from rosbags.rosbag1 import Writer as Writer1
from rosbags.rosbag2 import CompressionFormat, CompressionMode, StoragePlugin
from rosbags.rosbag2 import Writer as Writer2
from rosbags.typesys import Stores, get_typestore

from unifygeo_ros.core.errors import InputError
from unifygeo_ros.evaluation.recordings.bags import Bag, choose_topic

COUNT = 200
TYPE = "sensor_msgs/msg/CompressedImage"
REAL_BAG = Path(__file__).parents[2] / "shared/data/bags/robot_localization_test1.bag"


def image(store, k, ros1=False):
    T = store.types
    extra = {"seq": k} if ros1 else {}
    header = T["std_msgs/msg/Header"](stamp=T["builtin_interfaces/msg/Time"](k, 5), frame_id="c", **extra)
    # Random bytes do not compress, so that chunks keep their size.
    data = np.random.default_rng(k).integers(0, 256, 20_000, np.uint8)
    return T[TYPE](header, format="jpeg", data=data)


def write_bag2(path, plugin, compression=None):
    store = get_typestore(Stores.ROS2_JAZZY)
    writer = Writer2(path, version=9, storage_plugin=plugin)
    if compression:
        writer.set_compression(compression, CompressionFormat.ZSTD)
    with writer:
        connection = writer.add_connection("/images", TYPE, typestore=store)
        for k in range(COUNT):
            writer.write(connection, k * 10**9 + 7, store.serialize_cdr(image(store, k), TYPE))
    return path


def write_bag1(path, compression=None):
    store = get_typestore(Stores.ROS1_NOETIC)
    writer = Writer1(path)
    if compression:
        writer.set_compression(compression)
    with writer:
        connection = writer.add_connection("/images", TYPE, typestore=store)
        for k in range(COUNT):
            writer.write(connection, k * 10**9 + 7, store.serialize_ros1(image(store, k, True), TYPE))
    return path


MAKERS = {
    "mcap": lambda folder: write_bag2(folder / "bag", StoragePlugin.MCAP),
    "mcap_zstd": lambda folder: write_bag2(folder / "bag", StoragePlugin.MCAP, CompressionMode.STORAGE),
    "sqlite": lambda folder: write_bag2(folder / "bag", StoragePlugin.SQLITE3),
    "sqlite_zstd_messages": lambda folder: write_bag2(folder / "bag", StoragePlugin.SQLITE3, CompressionMode.MESSAGE),
    "rosbag1": lambda folder: write_bag1(folder / "bag.bag"),
    "rosbag1_lz4": lambda folder: write_bag1(folder / "bag.bag", Writer1.CompressionFormat.LZ4),
    "rosbag1_bz2": lambda folder: write_bag1(folder / "bag.bag", Writer1.CompressionFormat.BZ2),
}


def storage_file(path):
    return path if path.is_file() else next(file for file in path.iterdir() if file.suffix in (".mcap", ".db3"))


def stamps(bag):
    """Stamps (s) of the messages, each checked to be as it was written."""
    found = []
    for message in bag.messages(["/images"]):
        content = bag.deserialize(message)
        k = content.header.stamp.sec
        assert message.log_time_ns == k * 10**9 + 7
        expected = np.random.default_rng(k).integers(0, 256, 20_000, np.uint8)
        np.testing.assert_array_equal(content.data, expected)
        found.append(k)
    return found


@pytest.mark.parametrize("kind", MAKERS)
def test_whole_bags(tmp_path, kind):
    bag = Bag(MAKERS[kind](tmp_path))
    assert bag.topics["/images"].type == TYPE
    assert bag.topics["/images"].count == COUNT
    assert stamps(bag) == list(range(COUNT))
    assert bag.problems == []


@pytest.fixture
def openings(monkeypatch):
    """Grows with each opening of a bag's files."""
    counted, opens = [], AnyReader.open

    def count_and_open(self):
        counted.append(self)
        opens(self)

    monkeypatch.setattr(AnyReader, "open", count_and_open)
    return counted


@pytest.mark.parametrize("kind", MAKERS)
def test_bag_is_opened_once_for_many_readings(tmp_path, kind, openings):
    bag = Bag(MAKERS[kind](tmp_path))
    assert bag.deserialize(next(iter(bag.messages(["/images"])))).header.stamp.sec == 0
    part = bag.messages(["/images"], start_ns=20 * 10**9, stop_ns=21 * 10**9)
    assert [message.log_time_ns for message in part] == [20 * 10**9 + 7]
    assert stamps(bag) == list(range(COUNT))
    assert stamps(bag) == list(range(COUNT))
    assert bag.problems == []
    assert len(openings) == 1


@pytest.mark.parametrize("kind", MAKERS)
def test_readings_of_a_bag_at_the_same_time_do_not_disturb_each_other(tmp_path, kind, openings):
    bag = Bag(MAKERS[kind](tmp_path))
    outer = bag.messages(["/images"])
    first = [next(outer) for _ in range(60)]
    assert stamps(bag) == list(range(COUNT))
    assert [message.log_time_ns for message in (*first, *outer)] == [k * 10**9 + 7 for k in range(COUNT)]
    assert len(openings) == 2


def open_files(folder):
    found = set()
    for link in Path("/proc/self/fd").iterdir():
        with contextlib.suppress(FileNotFoundError):  # the one of this listing
            found.add(link.readlink())
    return [file for file in found if folder in file.parents]


@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="no /proc")
def test_files_of_a_bag_are_closed_with_it(tmp_path):
    path = MAKERS["mcap"](tmp_path)
    bag = Bag(path)
    next(iter(bag.messages(["/images"])))
    assert open_files(tmp_path) == [storage_file(path)]
    with warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always", ResourceWarning)
        del bag
        gc.collect()
    assert open_files(tmp_path) == []
    assert not [warning for warning in warned if str(tmp_path) in str(warning.message)]  # closed, not left to the end


@pytest.mark.parametrize("kind", [kind for kind in MAKERS if "rosbag1" not in kind])
def test_truncated_bag_gives_the_whole_chunks_or_rows_before_the_cut(tmp_path, kind):
    path = MAKERS[kind](tmp_path)
    file = storage_file(path)
    size = file.stat().st_size
    with file.open("r+b") as stream:
        stream.truncate(size * 6 // 10)
    bag = Bag(path)
    found = stamps(bag)
    assert found == list(range(len(found)))
    # A chunk of the rosbags writer is 1 MiB, 52 of these messages; the one that was cut is lost.
    assert 0.5 * COUNT <= len(found) <= 0.6 * COUNT
    assert bag.problems
    assert bag.topics["/images"].count == len(found)


@pytest.mark.parametrize("kind", [kind for kind in MAKERS if "rosbag1" in kind])
def test_damaged_rosbag1_file_is_refused_with_the_remedy(tmp_path, kind):
    path = MAKERS[kind](tmp_path)
    with path.open("r+b") as stream:
        stream.truncate(path.stat().st_size * 6 // 10)
    with pytest.raises(InputError, match=r"bag\.bag: is damaged or no bag .*repair it by `rosbag reindex`"):
        Bag(path)


def test_damaged_mcap_without_its_library_is_refused(tmp_path, monkeypatch):
    path = storage_file(MAKERS["mcap"](tmp_path))
    with path.open("r+b") as stream:
        stream.truncate(path.stat().st_size * 6 // 10)
    monkeypatch.setitem(sys.modules, "mcap.stream_reader", None)
    with pytest.raises(InputError, match="`pip install mcap`, or repair the file by `mcap recover`"):
        Bag(path)


def overwrite_middle(file):
    with file.open("r+b") as stream:
        stream.seek(file.stat().st_size // 2)
        stream.write(b"\xa5" * 6000)


def add_chunk_checksums(file):
    """As rosbag2 writes them and the `rosbags` writer does not."""
    data = bytearray(file.read_bytes())
    place = 8
    while data[place] != 0x02:
        opcode, length = struct.unpack_from("<BQ", data, place)
        if opcode == 0x06:
            body = place + 9 + 28 + 4 + 8  # behind times, size and checksum; no compression; length of the records
            struct.pack_into("<I", data, place + 9 + 24, zlib.crc32(data[body : place + 9 + length]))
        place += 9 + length
    file.write_bytes(data)


def test_mcap_with_a_broken_chunk_loses_only_that_chunk(tmp_path):
    path = MAKERS["mcap"](tmp_path)
    add_chunk_checksums(storage_file(path))
    assert stamps(Bag(path)) == list(range(COUNT))
    overwrite_middle(storage_file(path))
    bag = Bag(path)
    found = stamps(bag)
    assert bag.problems
    assert found == sorted(set(found))
    assert (found[0], found[-1]) == (0, COUNT - 1)
    assert 0.6 * COUNT < len(found) < COUNT


@pytest.mark.parametrize("kind", ["mcap", "mcap_zstd"])
def test_mcap_damage_without_a_checksum_loses_one_image(tmp_path, kind):
    path = MAKERS[kind](tmp_path)
    overwrite_middle(storage_file(path))
    bag = Bag(path)
    wrong = [
        message.log_time_ns // 10**9
        for message in bag.messages(["/images"])
        if not np.array_equal(
            np.frombuffer(message.data, np.uint8)[-20_000:],
            np.random.default_rng(message.log_time_ns // 10**9).integers(0, 256, 20_000, np.uint8),
        )
    ]
    assert len(wrong) in (1, 2)
    assert abs(wrong[0] - COUNT / 2) < 5


def test_sqlite_with_a_broken_page_gives_the_rows_before_it(tmp_path):
    path = MAKERS["sqlite"](tmp_path)
    file = storage_file(path)
    connection = sqlite3.connect(file)
    page_size = connection.execute("PRAGMA page_size").fetchone()[0]
    # A leaf of the table of messages: its tree page that starts with 0x0d and is neither first nor last.
    data = file.read_bytes()
    leaves = [start for start in range(0, len(data), page_size) if data[start] == 0x0D]
    connection.close()
    with file.open("r+b") as stream:
        stream.seek(leaves[len(leaves) // 2])
        stream.write(b"\xff" * page_size)
    bag = Bag(path)
    found = stamps(bag)
    assert bag.problems
    assert found == list(range(len(found)))
    assert 0.2 * COUNT < len(found) < 0.8 * COUNT


def test_bag_without_metadata_of_a_killed_recorder_is_read(tmp_path):
    path = MAKERS["mcap"](tmp_path)
    (path / "metadata.yaml").unlink()
    bag = Bag(path)
    assert stamps(bag) == list(range(COUNT))
    assert "metadata" in bag.problems[0]


def test_single_files_are_bags(tmp_path):
    assert stamps(Bag(storage_file(MAKERS["mcap"](tmp_path)))) == list(range(COUNT))


def test_open_bag_refuses_other_files(tmp_path):
    with pytest.raises(InputError, match="no such bag"):
        Bag(tmp_path / "missing.mcap")
    (tmp_path / "notes.txt").write_text("hello")
    with pytest.raises(InputError, match=r"\.mcap"):
        Bag(tmp_path / "notes.txt")
    with pytest.raises(InputError, match="holds no"):
        Bag(tmp_path)
    (tmp_path / "not_a_bag.mcap").write_bytes(b"hello" * 100)
    with pytest.raises(InputError, match="does not begin as an MCAP file"):
        Bag(tmp_path / "not_a_bag.mcap")


def test_damaged_message_is_refused_with_its_time(tmp_path):
    bag = Bag(MAKERS["mcap"](tmp_path))
    message = next(iter(bag.messages(["/images"])))
    with pytest.raises(InputError, match=r"/images at 0\.000 s is damaged"):
        bag.deserialize(message._replace(data=message.data[:9]))


@pytest.mark.skipif(not REAL_BAG.exists(), reason=f"{REAL_BAG} is not there")
def test_topics_are_found_by_type_and_named_by_option():
    bag = Bag(REAL_BAG)
    choose = {"purpose": "odometry", "option": "--odometry-topic", "required": True}
    odometry = choose_topic(bag, None, ["nav_msgs/msg/Odometry"], **choose)
    assert odometry.count == 3952
    assert choose_topic(bag, odometry.name, ["nav_msgs/msg/Odometry"], **choose) == odometry
    with pytest.raises(InputError, match=f"--odometry-topic /x is not in the bag; .*{odometry.name}"):
        choose_topic(bag, "/x", ["nav_msgs/msg/Odometry"], **choose)
    with pytest.raises(InputError, match="no topic can serve as odometry"):
        choose_topic(bag, None, [TYPE], **choose)
    assert choose_topic(bag, None, [TYPE], **{**choose, "required": False}) is None
    both = ["nav_msgs/msg/Odometry", "sensor_msgs/msg/Imu"]
    with pytest.raises(InputError, match="2 topics can serve as odometry; choose by --odometry-topic"):
        choose_topic(bag, None, both, **choose)
    # What serves another purpose already is no choice.
    assert choose_topic(bag, None, both, **choose, taken=[odometry.name]).type == "sensor_msgs/msg/Imu"
    assert choose_topic(bag, "none", both, **{**choose, "required": False}) is None
    with pytest.raises(InputError, match="cannot be left out"):
        choose_topic(bag, "none", both, **choose)
