"""Whether the vehicle is where the index holds imagery: a Bayes filter of two states, on the map and off it.

Off the map every image looks most like some wrong place, and while the vehicle moves along a street that place may move
along with it for tens of metres. So agreement with a track says less of the map than of the place. The stronger
evidence is what each image shows by itself: the clues that single images are judged by (`Calibration.outside_ratio`).
Of an image that shows a part of the surroundings these tell little, and then it counts whether track and images go on
to agree. Between images the vehicle may have crossed the border.
"""

from __future__ import annotations

import math

RATIO_LIMIT = 100.0
"""One image counts for or against the map by at most this factor, however far its clues lie beyond the data that the
calibration was fitted on."""


def after_way(on_map: float, way_m: float, prior: float, crossings_per_m: float) -> float:
    """P(on the map) after a way on which nothing was seen: it approaches the prior as border crossings accumulate.

    Args:
        on_map: before.
        way_m: in metres; may be infinite.
        prior: the long-term share of on the map.
        crossings_per_m: how often the vehicle crosses the border (`Region.border_rate_per_m`).
    """
    return prior + (on_map - prior) * math.exp(-way_m * crossings_per_m)


def after_image(on_map: float, outside_ratio: float, exponent: float) -> float:
    """Bayes' rule with an image of which the share `exponent` is new.

    Args:
        on_map: P(on the map) before.
        outside_ratio: how much likelier an image like this is off the map than on it.
        exponent: 0 … 1.
    """
    ratio: float = min(max(outside_ratio, 1 / RATIO_LIMIT), RATIO_LIMIT) ** exponent
    return on_map / (on_map + (1 - on_map) * ratio)
