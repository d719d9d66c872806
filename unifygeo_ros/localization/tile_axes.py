"""Tiles that are turned in the map: those of a region's indexes, whose own datums have another north.

What the network sees of a heading is relative to the tile. So headings are turned to the tiles' axes before the image
is looked at and back afterwards, and each distribution is moved to where its peak lies in the turned tile. The pixels
themselves are not turned: about the peak, a few degrees are nothing beside D's own width.
"""

from __future__ import annotations

import dataclasses
import math

from unifygeo_ros.aerial.map_index import MapIndex
from unifygeo_ros.core.geodesy import map_from_tile, wrap_angle
from unifygeo_ros.core.records import Heading, Observation, Query, TileDistribution


def query_along_tiles(query: Query, index: MapIndex) -> Query:
    """The query with its heading relative to the tiles at its prior.

    Without a prior it stays as it is: which tiles it will be compared with is not known, and the network bears the few
    degrees.
    """
    if query.prior is None or query.heading is None:
        return query
    yaw = index.yaw_at_rad(query.prior.east_m, query.prior.north_m)
    return query if yaw == 0 else dataclasses.replace(query, heading=_turned(query.heading, -yaw))


def observation_in_map(observation: Observation, query: Query, index: MapIndex) -> Observation:
    """An observation relative to its tiles, with its headings and distributions in the map.

    query: the query in the map, whose heading is the observation's again where it has one.
    """
    distributions = tuple(_in_map(distribution, index) for distribution in observation.distributions)
    best_tile = int(observation.matches.tile_ids[0])
    heading = query.heading or _turned(observation.heading, index.tile_yaw_rad(best_tile))
    return dataclasses.replace(observation, distributions=distributions, heading=heading)


def _in_map(distribution: TileDistribution, index: MapIndex) -> TileDistribution:
    yaw = index.tile_yaw_rad(distribution.tile_id)
    if yaw == 0:
        return distribution
    size = len(distribution.probability)
    row, column = divmod(int(distribution.probability.argmax()), size)
    east, north = map_from_tile(row, column, 0.0, 0.0, size, distribution.metres_per_pixel).tolist()
    cos, sin = math.cos(yaw), math.sin(yaw)
    return dataclasses.replace(
        distribution,
        centre_east_m=distribution.centre_east_m + (cos - 1) * east - sin * north,
        centre_north_m=distribution.centre_north_m + sin * east + (cos - 1) * north,
        heading=None if distribution.heading is None else _turned(distribution.heading, yaw),
    )


def _turned(heading: Heading, angle_rad: float) -> Heading:
    return (
        heading
        if angle_rad == 0
        else dataclasses.replace(heading, yaw_rad=float(wrap_angle(heading.yaw_rad + angle_rad)))
    )
