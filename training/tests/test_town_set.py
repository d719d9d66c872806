"""A cached town as an evaluation set: tiles, positives and offsets against coordinates."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from small_runs import TOWNS_ATTO

from unifygeo_ros.core.errors import InputError
from unifygeo_ros.core.geodesy import tile_from_map
from unifygeo_training.data.towns import Member, TownPairs
from unifygeo_training.judging.town_set import TownImages
from unifygeo_training.towns.pairs import CachedTown, TownRecord

SIZE_M, RESOLUTION = 280.0, 0.5


def _town(positions: np.ndarray, *, seed: int = 1) -> CachedTown:
    """A town whose orthophoto is grey with a white square of 3 m at each camera."""
    pixels = int(SIZE_M / RESOLUTION)
    photo = np.full((1, pixels, pixels, 3), 60, np.uint8)
    for east, north in positions:
        row, column = int((SIZE_M - north) / RESOLUTION), int(east / RESOLUTION)
        photo[0, row - 3 : row + 3, column - 3 : column + 3] = 255
    record = TownRecord(seed, SIZE_M, RESOLUTION, 0.0, 0.0, len(positions), 1, 2.0, np.pi / 4, -np.pi / 4, 1)
    return CachedTown(record, photo, np.zeros((len(positions), 96, 320, 3), np.uint8), positions)


def test_tiles_overlap_by_half_and_positives_are_the_nearest() -> None:
    data = TownImages(_town(np.array([[140.0, 140.0], [100.0, 61.0]])), TOWNS_ATTO)
    assert len(data.side_m) == 49  # (280 − 70) / 35 + 1 = 7 a side
    assert data.centres[0].tolist() == [35.0, 245.0]  # the north-western one
    assert data.centres[-1].tolist() == [245.0, 35.0]
    # (140, 140) is a centre itself: row 3, column 3. The neighbours' edges touch it: they hold it as well.
    assert data.tiles[0, 0] == 3 * 7 + 3
    assert data.offsets_m[0].tolist() == [0.0, 0.0]
    # (100, 61): columns at 35, 70, 105, rows at 35, 70 → nearest (105, 70).
    positive = data.tiles[1, 0]
    assert data.centres[positive].tolist() == [105.0, 70.0]
    assert data.offsets_m[1].tolist() == [-5.0, -9.0]
    others = [n for n in data.tiles[1, 1:] if n >= 0]
    assert {tuple(data.centres[n]) for n in others} == {(70.0, 70.0), (105.0, 35.0), (70.0, 35.0)}
    assert data.displacement_m(np.array([positive]), np.array(others[:1])).tolist() == [
        (data.centres[others[0]] - data.centres[positive]).tolist()
    ]


def test_camera_position_follows_the_offset() -> None:
    data = TownImages(_town(np.array([[100.0, 61.0]])), TOWNS_ATTO)
    tile = data.aerial_image(int(data.tiles[0, 0]))
    row, column = tile_from_map(*data.offsets_m[0], 0.0, 0.0, 192, 70.0 / 192)
    white = np.argwhere(tile[..., 0] > 200)
    assert white.mean(axis=0) == pytest.approx([row, column], abs=1.0)


def test_training_pairs_show_the_camera_where_they_say() -> None:
    positions = np.random.default_rng(0).uniform(45, 235, (40, 2))
    pairs = TownPairs([_town(positions)], TOWNS_ATTO, camera_range=0.65)
    rng = np.random.default_rng(1)
    members = pairs.draw(rng, 6)
    centres = np.array([(m.east_m, m.north_m) for m in members])
    apart = np.abs(centres[:, None] - centres[None]).max(axis=2)[~np.eye(6, dtype=bool)]
    assert apart.min() >= 35.0
    for member in members:
        pair = pairs.read(member, rng)
        row, column = np.array(pair.position) * 192 - 0.5
        # The tile is cut so that the camera is in it, and a white square lies around that pixel.
        assert (
            0.17 <= min(pair.position) <= max(pair.position) <= 0.83 or not 80 < positions[member.panorama].min() < 200
        )
        around = pair.tile[int(row) - 2 : int(row) + 3, int(column) - 2 : int(column) + 3]
        assert around.mean() > 200


def test_places_are_counted_through_the_towns() -> None:
    """Tiles for hard negatives: of each camera in the order of the towns, overlapping in one town alone."""
    rng = np.random.default_rng(0)
    first, second = rng.uniform(110, 170, (3, 2)), np.array([[140.0, 140.0], [20.0, 140.0], [230.0, 140.0]])
    pairs = TownPairs([_town(first), _town(second, seed=2)], TOWNS_ATTO, camera_range=0.5)
    tiles = pairs.tiles(None)
    assert len(pairs) == len(tiles.area) == 6
    np.testing.assert_array_equal(tiles.centre_m, [*first, [140, 140], [35, 140], [230, 140]])  # inside the town
    assert tiles.excludes(0, [1])
    assert not tiles.excludes(0, [3])  # the same coordinates, but of another town
    assert not tiles.excludes(3, [0, 1, 2, 4, 5])
    assert pairs.member(4, tiles) == Member(town=1, panorama=1, east_m=35.0, north_m=140.0)

    moved = pairs.tiles(np.random.default_rng(1))
    offsets = (moved.centre_m - tiles.centre_m)[[0, 1, 2, 3]]
    assert 0 < np.abs(offsets).max() <= 0.5 * 35.0
    pair = pairs.read(pairs.member(3, moved), rng)
    assert np.array(pair.position) * 70 - 35 == pytest.approx([offsets[3, 1], -offsets[3, 0]])


@pytest.mark.parametrize("other", [{"ground_width": 640}, {"ground_height": 64}], ids=str)
def test_panoramas_that_are_too_narrow_or_of_other_rows_are_refused(other: dict[str, int]) -> None:
    town = _town(np.array([[140.0, 140.0]]))
    with pytest.raises(InputError, match=r"has panoramas of 96 × 320, the network takes"):
        TownImages(town, TOWNS_ATTO.model_copy(update=other))


def test_narrower_network_sees_panoramas_averaged_over_their_columns() -> None:
    """Half the columns: each is the mean of two."""
    town = _town(np.array([[140.0, 140.0]]))
    noise = np.random.default_rng(0).integers(0, 256, town.panoramas.shape, dtype=np.uint8)
    images = TownImages(dataclasses.replace(town, panoramas=noise), TOWNS_ATTO.model_copy(update={"ground_width": 160}))
    expected = noise[0].reshape(96, 160, 2, 3).astype(float).mean(axis=2)
    assert np.abs(images.ground_image(0) - expected).max() <= 0.5
