"""Replaying recorded drives and judging the fixes."""
