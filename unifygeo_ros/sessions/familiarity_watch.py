"""Are the images of a drive, and the imagery, of a kind that the model knows?"""

from __future__ import annotations

from collections import deque

import numpy as np

from unifygeo_ros.core.records import Distances

LAST_IMAGES = 20
"""The medians of so many are judged."""

LEAST_IMAGES = 10


class FamiliarityWatch:
    """The distances of the last images of one drive, and of the tiles that they looked most like."""

    def __init__(self) -> None:
        self._last: deque[tuple[float, float]] = deque(maxlen=LAST_IMAGES)

    def see(self, distances: Distances) -> None:
        """Take in an image."""
        self._last.append((distances.ground, distances.aerial))

    @property
    def medians(self) -> tuple[float, float] | None:
        """Of panoramas and of tiles; None: too few images."""
        if len(self._last) < LEAST_IMAGES:
            return None
        ground, aerial = np.median(self._last, axis=0).tolist()
        return ground, aerial

    @property
    def warnings(self) -> dict[str, str]:
        """Sentences by what is unfamiliar."""
        medians = self.medians
        if medians is None:
            return {}
        return {
            f"unfamiliar {what}": f"the {what} {verb} unlike what the model knows: half of the last "
            f"{len(self._last)} are {median:.1f} times as far from it as 99 of 100 pictures of its calibration; fixes "
            "are rarer there, and a model trained for such pictures is better"
            for what, verb, median in zip(("images", "aerial imagery"), ("are", "is"), medians, strict=True)
            if median > 1
        }
