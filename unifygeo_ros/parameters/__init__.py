"""The node's parameters: settings, files, tables. No ROS is imported."""
