"""Panorama → fix or rejection."""
