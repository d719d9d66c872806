"""Bytes and ROS messages to pixels."""
