"""Recorded drives and their ground truth."""
