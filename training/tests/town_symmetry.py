"""The same town turned by a quarter or seen in a mirror, to check label transforms against the renderer.

An augmentation claims that a turned or mirrored picture is what would have been seen of a turned or mirrored world.
Rendering that world says whether it is so. Solids and ground go over exactly; textures that are a function of the place
(leaves, facades) do not, so compare `rays.cast` hits, or pixels on the ground.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from unifygeo_ros.core.arrays import Float64
from unifygeo_training.towns.scene import Town
from unifygeo_training.towns.streets import Street


def turned(town: Town) -> Town:
    """The town turned by 90° counter-clockwise about its middle: what was east is now north."""

    def turn(points: Float64) -> Float64:
        return np.stack([town.size_m - points[..., 1], points[..., 0]], axis=-1)

    objects = town.objects.copy()
    objects["x"], objects["y"] = turn(np.stack([town.objects["x"], town.objects["y"]], axis=-1)).T
    objects["cos"], objects["sin"] = -town.objects["sin"], town.objects["cos"]
    streets = tuple(replace(s, line=turn(s.line)) for s in town.streets)
    ground = np.ascontiguousarray(np.rot90(town.ground))
    return replace(town, objects=objects, ground=ground, streets=streets, marks=turn(town.marks))


def mirrored(town: Town) -> Town:
    """The town with east and west exchanged."""

    def flip(points: Float64) -> Float64:
        return np.stack([town.size_m - points[..., 0], points[..., 1]], axis=-1)

    def flip_street(s: Street) -> Street:
        return replace(s, line=flip(s.line), parking_left=s.parking_right, parking_right=s.parking_left)

    objects = town.objects.copy()
    objects["x"] = town.size_m - town.objects["x"]
    objects["sin"] = -town.objects[
        "sin"
    ]  # every solid is symmetric in its local x, so the mirrored axis may be reversed
    ground = np.ascontiguousarray(town.ground[:, ::-1])
    streets = tuple(flip_street(s) for s in town.streets)
    return replace(town, objects=objects, ground=ground, streets=streets, marks=flip(town.marks))
