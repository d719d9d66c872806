"""Tiles → aerial encoder → shards of the index."""

from __future__ import annotations

import contextlib
import itertools
import os
import time
from collections import deque
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Callable, Generator, Iterator, Mapping, Sequence

import cv2
import numpy as np

from unifygeo_ros.aerial.imagery import TileImage
from unifygeo_ros.aerial.known_tiles import KnownTiles
from unifygeo_ros.aerial.partial import Shard
from unifygeo_ros.aerial.region import Region
from unifygeo_ros.core.arrays import Float16, Float32, UInt8
from unifygeo_ros.core.errors import EngineError, InputError
from unifygeo_ros.core.unit_length import UNIT_LENGTH_TOLERANCE, wrong_length
from unifygeo_ros.inference.bundle import ModelBundle
from unifygeo_ros.inference.engine import Engine

MINIMUM_TEXTURE = 1.0
"""Grey levels (standard deviation) under which a tile is of one colour and shows nothing: water, fog, fill."""

Advance = Callable[[int], None]
"""Called with the number of tiles of the plan that were just finished."""

Shards = Generator[Shard, None, None]
"""Closing it stops the threads behind it."""

_PNG_OPTIONS = [cv2.IMWRITE_PNG_COMPRESSION, 1]
"""Level 3 takes two thirds longer and saves 2% of the size."""


@dataclass(frozen=True)
class EncodedTiles:
    """Outputs of the aerial encoder for n tiles."""

    descriptors: Float32
    """float32 (n, C), unit length."""
    match_maps: Float16
    """float16 (n, S, S, C_0), finite."""


class TimedEncoder:
    """The aerial encoder, the time it ran, and for how many tiles."""

    def __init__(self, engine: Engine, bundle: ModelBundle) -> None:
        self.description = engine.description
        self.seconds = 0.0
        self.tiles = 0
        self._engine = engine
        self._manifest = bundle.manifest

    def run(self, images: UInt8) -> Mapping[str, Float32]:
        """images: uint8 (n, L, L, 3). Returns what the engine says, unchecked."""
        started = time.perf_counter()
        outputs = self._engine.run({"image": images}, ("descriptor", "match_map"))
        self.seconds += time.perf_counter() - started
        self.tiles += len(images)
        return outputs

    def check(self, outputs: Mapping[str, Float32], count: int) -> EncodedTiles:
        """The outputs for `count` tiles, if a healthy encoder can have made them. Raises EngineError."""
        manifest = self._manifest
        shapes = {
            "descriptor": (count, manifest.descriptor_dim),
            "match_map": (count, manifest.match_size, manifest.match_size, manifest.match_channels),
        }
        for name, shape in shapes.items():
            if name not in outputs or outputs[name].shape != shape:
                found = outputs[name].shape if name in outputs else "nothing"
                raise EngineError(f"{self.description}: {name} is {found}, the bundle says {shape}; export it again")
        descriptors = np.asarray(outputs["descriptor"], np.float32)
        wrong = wrong_length(descriptors)
        if wrong is not None:
            raise EngineError(
                f"{self.description}: a tile's descriptor has length {wrong[1]}, must be finite and 1 to within "
                f"{UNIT_LENGTH_TOLERANCE}; the model is damaged, or its fp16 overflows: try precision fp32"
            )
        match_maps = np.asarray(outputs["match_map"]).astype(np.float16)
        if not np.all(np.isfinite(match_maps)):
            raise EngineError(
                f"{self.description}: a tile's match map is not finite; the model is damaged, or its fp16 "
                "overflows: try precision fp32"
            )
        return EncodedTiles(descriptors, match_maps)


def encode_shards(
    region: Region,
    encoder: TimedEncoder,
    shards: Sequence[int],
    readers: int,
    advance: Advance,
    known: KnownTiles | None = None,
) -> Shards:
    """Encode some shards of the plan in order.

    The calling thread only runs the encoder. Other threads cut the tiles before and check the outputs after it.

    Args:
        region: The tiles.
        encoder: Of the model.
        shards: Their numbers in the plan.
        readers: Threads that cut and pack tiles; 0: one for each core.
        advance: Called with the number of tiles that are done.
        known: Tiles that need not be encoded, because an earlier index holds their features.

    Raises:
        EngineError: The encoder failed, or an output cannot be right.
        IndexFormatError: A tile of `known` is damaged.
    """
    numbers = itertools.chain.from_iterable(region.numbers(shard) for shard in shards)
    threads = readers or os.cpu_count() or 1
    with (
        contextlib.closing(_read_ahead(region, numbers, threads, known)) as tiles,
        ThreadPoolExecutor(1, "output-checker") as checker,
    ):
        for shard in shards:
            yield _encode_shard(region, encoder, region.numbers(shard), tiles, checker, advance, known)


def _encode_shard(
    region: Region,
    encoder: TimedEncoder,
    numbers: range,
    tiles: Iterator[_PackedTile | None],
    checker: ThreadPoolExecutor,
    advance: Advance,
    known: KnownTiles | None,
) -> Shard:
    """Encode the tiles `numbers`, which `tiles` yields next."""
    kept: list[int] = []
    earlier: list[int | None] = []  # the tiles' numbers in `known`
    pngs: list[bytes] = []
    batch: list[UInt8] = []
    batches: list[Future[EncodedTiles]] = []

    def run_batch() -> None:
        batches.append(checker.submit(encoder.check, encoder.run(np.stack(batch)), len(batch)))
        batch.clear()

    for number, tile in zip(numbers, tiles, strict=False):
        if tile is not None:
            kept.append(number)
            pngs.append(tile.png)
            earlier.append(tile.earlier)
            if tile.earlier is None:
                batch.append(tile.pixels)
            if len(batch) == region.settings.batch_size:
                run_batch()
        advance(1)
    if batch:
        run_batch()
    parts = [future.result() for future in batches]
    places = np.array([place for place, tile_id in enumerate(earlier) if tile_id is None], np.int64)
    if known is not None and len(places) < len(kept):
        parts.append(EncodedTiles(*known.features([tile_id for tile_id in earlier if tile_id is not None])))
        places = np.append(places, [place for place, tile_id in enumerate(earlier) if tile_id is not None])
    empty = EncodedTiles(np.empty((0, 0), np.float32), np.empty((0, 0), np.float16))
    order = np.argsort(places)
    return Shard(
        centres_m=region.tiles.centres_m[kept],
        descriptors=np.concatenate([part.descriptors for part in parts or [empty]])[order],
        match_maps=np.concatenate([part.match_maps for part in parts or [empty]])[order],
        pngs=tuple(pngs),
        skipped=len(numbers) - len(kept),
    )


@dataclass(frozen=True)
class _PackedTile:
    """One tile as it is stored."""

    pixels: UInt8
    """uint8 (L, L, 3) RGB."""
    png: bytes
    """The same, losslessly packed, so that the winner is encoded again from the very pixels the index was made of,
    whichever decoder unpacks them."""
    earlier: int | None
    """Its number among the `KnownTiles`, if it is one of them."""


def _read_ahead(
    region: Region, numbers: Iterator[int], readers: int, known: KnownTiles | None
) -> Generator[_PackedTile | None, None, None]:
    """The tiles in order, None for an empty one, cut by other threads up to a few batches ahead."""
    depth = 2 * region.settings.batch_size + readers
    pool = ThreadPoolExecutor(readers, "tile-reader")
    try:
        waiting = deque(pool.submit(_pack_tile, region, number, known) for number in itertools.islice(numbers, depth))
        while waiting:
            tile = waiting.popleft().result()
            waiting.extend(pool.submit(_pack_tile, region, number, known) for number in itertools.islice(numbers, 1))
            yield tile
    finally:
        pool.shutdown(cancel_futures=True)


def _pack_tile(region: Region, number: int, known: KnownTiles | None) -> _PackedTile | None:
    image = region.tiles.read(number)
    if image.valid.mean() < region.settings.minimum_coverage or _is_flat(image):
        return None
    done, png = cv2.imencode(".png", image.pixels[:, :, ::-1], _PNG_OPTIONS)  # RGB → BGR
    if not done:
        raise InputError(f"tile {number} cannot be packed as PNG")
    return _PackedTile(image.pixels, png.tobytes(), None if known is None else known.find(number, image.pixels))


def _is_flat(image: TileImage) -> bool:
    # NumPy takes forty times as long for the same, an eighth of a build with a small network.
    _, deviations = cv2.meanStdDev(image.pixels, mask=image.valid.view(np.uint8))
    return bool(deviations.max() < MINIMUM_TEXTURE)
