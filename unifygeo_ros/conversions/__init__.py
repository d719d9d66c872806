"""ROS messages to records and back, by their fields alone: no ROS is imported."""
