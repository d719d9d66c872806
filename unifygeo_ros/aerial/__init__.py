"""Imagery → tiles → index."""
