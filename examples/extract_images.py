"""Save the panoramas of a bag as JPEG or PNG files.

Usage: python extract_images.py BAG TOPIC FOLDER [EVERY]

BAG is a rosbag2 folder, TOPIC one of sensor_msgs/CompressedImage. Each EVERY-th image is saved (default 20), with its
number in the bag as name. `unifygeo locate` takes the files.
"""

import sys
from pathlib import Path

from rosbags.highlevel import AnyReader
from rosbags.typesys import Stores, get_typestore

bag, topic, folder, *every = sys.argv[1:]
output, step = Path(folder), int(every[0]) if every else 20
output.mkdir(parents=True, exist_ok=True)
with AnyReader([Path(bag)], default_typestore=get_typestore(Stores.ROS2_JAZZY)) as reader:
    connections = [connection for connection in reader.connections if connection.topic == topic]
    if not connections or connections[0].msgtype != "sensor_msgs/msg/CompressedImage":
        sys.exit(f"{bag} has no CompressedImage on {topic}; its topics: {', '.join(sorted(reader.topics))}")
    for number, (connection, _, data) in enumerate(reader.messages(connections)):
        if number % step == 0:
            message = reader.deserialize(data, connection.msgtype)
            file = output / f"{number:05d}.{'png' if 'png' in message.format.lower() else 'jpg'}"
            file.write_bytes(bytes(message.data))
            print(file)
