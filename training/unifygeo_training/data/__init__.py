"""Pairs of a panorama and an aerial tile: where they come from, how batches are drawn, how they are augmented."""
