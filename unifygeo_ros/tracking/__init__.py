"""Observations and odometry → track."""
