"""Adapting a bundle to a vehicle's camera and region from drives without ground truth."""
