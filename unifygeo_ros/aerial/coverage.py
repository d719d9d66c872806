"""Where an index knows the ground: a picture of its tiles."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from unifygeo_ros.aerial.map_index import MapIndex
from unifygeo_ros.core.arrays import Float64, Int64
from unifygeo_ros.core.errors import ConfigurationError

_PIXELS = 512
"""Length of the longer side of the drawn map."""
_PICTURED = 400
"""At most this many tiles are drawn with their own pixels."""


def draw_coverage(index: MapIndex, path: Path) -> None:
    """Draw how many tiles cover each place, over their pixels where they are few enough, as PNG, SVG or PDF."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    side = index.manifest.side_m
    centres = np.asarray(index.centres_m)
    low, high = centres.min(axis=0) - side / 2, centres.max(axis=0) + side / 2
    extent = (low[0], high[0], low[1], high[1])
    figure = Figure(figsize=(9, 8), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    if len(index) <= _PICTURED:
        for tile_id, (east, north) in enumerate(centres.tolist()):
            square = (east - side / 2, east + side / 2, north - side / 2, north + side / 2)
            pixels = index.tile_pixels(tile_id)
            clear = np.dstack([pixels, np.where(pixels.any(axis=-1), 255, 0).astype(np.uint8)])  # unknown is black
            axes.imshow(clear, extent=square, interpolation="bilinear")
    cell = float(np.max(high - low)) / _PIXELS
    counts = _tiles_covering(centres - low, side, cell, np.ceil((high - low) / cell).astype(int))
    shown = np.ma.masked_equal(counts, 0)
    image = axes.imshow(shown, extent=extent, origin="lower", cmap="viridis", alpha=0.3, vmin=1)
    steps = MaxNLocator(integer=True)
    figure.colorbar(image, ax=axes, label="tiles that cover a place", shrink=0.8, ticks=steps)
    axes.plot(0, 0, "r+", markersize=12, label="datum")
    axes.set(xlim=extent[:2], ylim=extent[2:], xlabel="east, m", ylabel="north, m", aspect="equal")
    axes.set_title(f"{index.path.name}: {len(index)} tiles of {side:g} m, {index.manifest.skipped} left out as empty")
    axes.legend(loc="upper right")
    try:
        figure.savefig(path, dpi=120)
    except (OSError, ValueError) as error:
        raise ConfigurationError(
            f"{path}: cannot be drawn into ({error}); give a .png in a folder that exists"
        ) from error


def _tiles_covering(
    centres: Float64,
    side: float,
    cell: float,
    shape: Int64,
) -> Int64:
    """Number of tiles over each cell, int64 (rows from the south, columns), by a difference table summed twice.

    centres: (n, 2) east, north from the corner. shape: columns, rows.
    """
    first = np.clip(np.rint((centres - side / 2) / cell).astype(int), 0, shape)
    last = np.clip(np.rint((centres + side / 2) / cell).astype(int), 0, shape)
    steps = np.zeros((shape[1] + 1, shape[0] + 1), np.int64)
    np.add.at(steps, (first[:, 1], first[:, 0]), 1)
    np.add.at(steps, (last[:, 1], last[:, 0]), 1)
    np.add.at(steps, (first[:, 1], last[:, 0]), -1)
    np.add.at(steps, (last[:, 1], first[:, 0]), -1)
    return steps.cumsum(axis=0).cumsum(axis=1)[:-1, :-1]
