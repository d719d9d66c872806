"""Streets on the ground: asphalt, footways, kerbs, lane marks, crossings, arrows, patches, manholes, parking."""

from __future__ import annotations

import cv2
import numpy as np

from unifygeo_ros.core.arrays import Bool, Float64, UInt8
from unifygeo_training.towns.furniture import Objects
from unifygeo_training.towns.paint import Canvas, Colour, band, rectangle, ribbon
from unifygeo_training.towns.streets import PARKING_M, Street, normals

WHITE: Colour = (226, 226, 220)
YELLOW: Colour = (222, 178, 60)


def _asphalt(rng: np.random.Generator, rank: int) -> Colour:
    if rank == 3 and rng.random() < 0.5:  # cobbles or red paving
        base = np.array([(150, 138, 122), (150, 112, 96), (128, 124, 120)][int(rng.integers(3))], float)
    else:
        base = np.array([1.0, 1.0, 1.02]) * rng.uniform(72, 122)
    return tuple(base * rng.uniform(0.95, 1.05, 3))


def _paving(rng: np.random.Generator) -> Colour:
    base = np.array([(168, 164, 158), (180, 170, 152), (150, 148, 150), (176, 150, 134), (140, 140, 136)])[
        rng.integers(5)
    ]
    return tuple(base * rng.uniform(0.9, 1.08))


def _close(mask: UInt8, radius_px: float) -> Bool:
    """Morphological closing with a disc: rounds the kerbs at crossings."""
    grown = cv2.distanceTransform(1 - mask, cv2.DIST_L2, 5) <= radius_px
    return cv2.distanceTransform(grown.astype(np.uint8), cv2.DIST_L2, 5) > radius_px


def paint_streets(rng: np.random.Generator, canvas: Canvas, streets: tuple[Street, ...], objects: Objects) -> Float64:
    """Paints all streets and parks cars along them. Returns the crosswalk stripes, float64 (m, 4, 2)."""
    res = canvas.metres_per_pixel
    road = Canvas(canvas.size_m, res)
    walk = Canvas(canvas.size_m, res)
    for s in streets:
        half = s.width_m / 2
        road.polygon(band(s.line, half, -half), (1, 0, 0))
        walk.polygon(band(s.line, half + s.pavement_m, -half - s.pavement_m), (1, 0, 0))
        for end in (s.line[0], s.line[-1]):
            road.disc(end[0], end[1], half, (1, 0, 0))
            walk.disc(end[0], end[1], half + s.pavement_m, (1, 0, 0))
    carriageway = _close(road.albedo[..., 0], 4.0 / res)
    footway = _close(np.maximum(walk.albedo[..., 0], carriageway.astype(np.uint8)), 3.0 / res)
    canvas.taken |= cv2.resize(footway.astype(np.uint8), canvas.taken.shape[::-1], interpolation=cv2.INTER_AREA)

    paving = _paving(rng)
    canvas.paint_mask(footway, paving)
    for s in streets:
        _pave(rng, canvas, s)
    distance = cv2.distanceTransform(1 - carriageway.astype(np.uint8), cv2.DIST_L2, 3)
    canvas.paint_mask((distance < 0.3 / res) & ~carriageway, (186, 184, 178))
    canvas.paint_mask(carriageway, _asphalt(rng, 1))
    for s in sorted(streets, key=lambda street: -street.rank):
        _surface(rng, canvas, s)
    _crossing_surfaces(rng, canvas, streets)
    stripes: list[Float64] = []
    for s in streets:
        stripes += _mark(rng, canvas, s, objects)
    # Joints and discs may have spilled over the kerb; the carriageway is what the masks say.
    return np.array(stripes).reshape(-1, 4, 2)


def _pave(rng: np.random.Generator, canvas: Canvas, s: Street) -> None:
    """Footways in their own tone, with joints and now and then a verge of grass."""
    half = s.width_m / 2
    for side in (1, -1):
        colour = _paving(rng)
        canvas.polygon(band(s.line, side * half, side * (half + s.pavement_m)), colour)
        dark = tuple(0.84 * v for v in colour)
        step = int(rng.integers(2, 5))
        for quad in ribbon(s.line, side * half, side * (half + s.pavement_m))[::step]:
            canvas.stroke(quad[[0, 3]], 0.12, dark)
        if s.pavement_m > 2.2 and rng.random() < 0.35:
            inner = band(s.line[12:-12], side * (half + 0.35), side * (half + 1.2)) if len(s.line) > 40 else None
            if inner is not None:
                canvas.polygon(inner, (92, 122, 62), 1.0)


def _surface(rng: np.random.Generator, canvas: Canvas, s: Street) -> None:
    """Asphalt that changes along the street, with patches, cracks and manholes."""
    half = s.width_m / 2
    colour = _asphalt(rng, s.rank)
    canvas.polygon(band(s.line, half, -half), colour)
    n = len(s.line)
    at = 0
    while at < n - 12:
        length = int(rng.uniform(18, 50))
        if rng.random() < 0.5:
            tone = rng.uniform(0.86, 1.16)
            part = s.line[at : min(at + length, n)]
            if len(part) > 2:
                canvas.polygon(band(part, half, -half), tuple(v * tone for v in colour))
        at += length
    aside = normals(s.line)
    for _ in range(rng.poisson(n / 14)):  # patches of repaired asphalt
        k = int(rng.integers(n))
        x, y = s.line[k] + aside[k] * rng.uniform(-half + 0.8, half - 0.8)
        angle = np.arctan2(-aside[k, 0], aside[k, 1]) + rng.normal(0, 0.05)
        tone = rng.choice([rng.uniform(0.62, 0.85), rng.uniform(1.1, 1.3)])
        canvas.polygon(
            rectangle(x, y, rng.uniform(0.6, 4.5), rng.uniform(0.4, 1.3), angle),
            tuple(v * tone for v in colour),
        )
    for _ in range(rng.poisson(n / 25)):  # tarred cracks and trenches
        k = int(rng.integers(n - 6))
        end = min(n - 1, k + int(rng.integers(4, 20)))
        a, b = rng.uniform(-half, half, 2)
        line = np.linspace(s.line[k] + aside[k] * a, s.line[end] + aside[end] * b, 6)
        line[1:-1] += rng.normal(0, 0.3, (4, 2))
        canvas.stroke(line, rng.uniform(0.12, 0.35), tuple(v * 0.55 for v in colour))
    for _ in range(rng.poisson(n / 22)):
        k = int(rng.integers(n))
        x, y = s.line[k] + aside[k] * rng.uniform(-half + 0.7, half - 0.7)
        canvas.disc(x, y, 0.42, tuple(v * 0.5 for v in colour))
        canvas.disc(x, y, 0.26, tuple(v * 0.75 for v in colour))


def _crossing_surfaces(rng: np.random.Generator, canvas: Canvas, streets: tuple[Street, ...]) -> None:
    """Some crossings are paved, painted red, or are small roundabouts."""
    legs: dict[int, list[Street]] = {}
    for s in streets:
        legs.setdefault(s.start, []).append(s)
        legs.setdefault(s.end, []).append(s)
    for node, here in sorted(legs.items()):
        centre = here[0].line[0] if here[0].start == node else here[0].line[-1]
        reach = min(s.width_m for s in here) / 2
        dice = rng.random()
        if dice < 0.12:
            canvas.disc(*centre, reach * 1.1, (150, 82, 70))
        elif dice < 0.24:
            canvas.disc(*centre, reach * 1.1, _paving(rng))
        elif dice < 0.36 and len(here) >= 3:
            canvas.disc(*centre, reach * 0.62, WHITE)
            canvas.disc(*centre, reach * 0.56, (150, 130, 110) if rng.random() < 0.5 else (96, 128, 64), 0.6)
        elif dice < 0.5:
            canvas.disc(*centre, reach * rng.uniform(0.5, 1.2), (96 * rng.uniform(0.7, 1.2),) * 3)


def _dashes(
    canvas: Canvas, line: Float64, offset_m: float, on_m: float, off_m: float, width: float, ink: Colour
) -> None:
    shifted = line + normals(line) * offset_m
    if off_m == 0:
        canvas.polygon(band(shifted, width / 2, -width / 2), ink)
        return
    at = 0.0
    length = len(line) - 1.0
    while at + on_m < length:
        k = slice(int(at), int(at + on_m) + 1)
        if len(shifted[k]) > 1:
            canvas.polygon(band(shifted[k], width / 2, -width / 2), ink)
        at += on_m + off_m


def _mark(rng: np.random.Generator, canvas: Canvas, s: Street, objects: Objects) -> list[Float64]:
    n = len(s.line)
    a, b = int(np.ceil(s.set_back_m[0])), n - 1 - int(np.ceil(s.set_back_m[1]))
    if b - a < 14:
        return []
    half = s.width_m / 2
    left, right = s.lane_edges_m
    middle = (left + right) / 2
    stripes: list[Float64] = []
    ends = []
    for end, inward in ((a, 1), (b, -1)):
        crosswalk = rng.random() < (0.75, 0.5, 0.25, 0.08)[s.rank]
        if crosswalk:
            stripes += _crosswalk(rng, canvas, s, end, inward)
        ends.append(end + inward * (5 if crosswalk else 1))
    a, b = ends
    if s.rank == 3:
        _park(rng, canvas, s, a, b, objects)
        return stripes
    inner = s.line[a : b + 1]
    if len(inner) > 10:
        ink = YELLOW if rng.random() < 0.25 else WHITE
        style = rng.random()
        if s.rank == 0 and style < 0.4:  # a median, planted or hatched
            if rng.random() < 0.5:
                canvas.polygon(band(inner[2:-2] + normals(inner[2:-2]) * middle, 0.8, -0.8), (190, 186, 178))
                canvas.polygon(band(inner[2:-2] + normals(inner[2:-2]) * middle, 0.6, -0.6), (88, 118, 58), 1.0)
                objects.row_of_bushes(rng, inner[4:-4] + normals(inner[4:-4]) * middle)
            else:
                for quad in ribbon(inner + normals(inner) * middle, 0.7, -0.7)[::2]:
                    canvas.stroke(quad[[0, 2]], 0.25, ink)
                _dashes(canvas, inner, middle + 0.8, 1, 0, 0.16, ink)
                _dashes(canvas, inner, middle - 0.8, 1, 0, 0.16, ink)
        elif style < 0.35 and s.rank < 2:
            _dashes(canvas, inner, middle + 0.18, 1, 0, 0.15, ink)
            _dashes(canvas, inner, middle - 0.18, 1, 0, 0.15, ink)
        elif style < 0.5 and s.rank < 2:
            _dashes(canvas, inner, middle, 1, 0, 0.18, ink)
        elif style < 0.88:
            on, off = ((3.0, 3.0), (3.0, 6.0), (4.0, 8.0), (2.0, 2.0))[int(rng.integers(4))]
            _dashes(canvas, inner, middle, on, off, 0.18, ink)
        if s.rank == 0:
            for quarter in ((left + middle) / 2, (right + middle) / 2):
                if left - right > 10:
                    _dashes(canvas, inner, quarter, 3, 6, 0.16, WHITE)
        if rng.random() < 0.3:
            for edge, sign in ((left, -1), (right, 1)):
                _dashes(canvas, inner, edge + sign * 0.25, 1, 0, 0.13, WHITE)
        if s.rank < 2 and rng.random() < 0.3:  # cycle lanes, red, green or blue, one side or both
            tint = [(158, 84, 72), (82, 132, 84), (78, 104, 146)][int(rng.integers(3))]
            for edge, sign in ((left, -1), (right, 1)):
                if rng.random() < 0.7:
                    lane = band(inner, edge + sign * 0.2, edge + sign * 1.7)
                    canvas.polygon(lane, tint)
                    _dashes(canvas, inner, edge + sign * 1.7, 2, 1, 0.14, WHITE)
        # Stop and give-way lines, arrows, letters and signs on the road.
        aside = normals(s.line)
        for end, inward, lane in ((a, 1, middle + (left - middle) / 2), (b, -1, middle + (right - middle) / 2)):
            if rng.random() < 0.55:
                across = aside[end] * (left - middle if inward > 0 else right - middle)
                centre = s.line[end] + aside[end] * middle
                if rng.random() < 0.5:
                    canvas.stroke(np.stack([centre, centre + across]), 0.5, WHITE)
                else:
                    for share in np.arange(0.1, 1.0, 0.25):
                        tip = centre + across * share
                        forward = (s.line[end] - s.line[end + inward]) * 0.8
                        wide = across / np.hypot(*across) * 0.28
                        canvas.polygon(np.stack([tip - wide, tip + wide, tip - forward]), WHITE)
            k = end + inward * int(rng.integers(5, 9))
            if 2 < k < n - 3 and rng.random() < 0.6:
                _arrow(rng, canvas, s.line[k] + aside[k] * lane, s.line[k - inward] - s.line[k])
        for _ in range(rng.poisson(len(inner) / 60)):
            k = int(rng.integers(a, b))
            lane = rng.choice([left * 0.5, right * 0.5])
            _road_sign(rng, canvas, s.line[k] + aside[k] * lane, np.arctan2(-aside[k, 0], aside[k, 1]))
        if rng.random() < 0.2:  # a speed table across the street
            k = int(rng.integers(a + 3, max(b - 6, a + 4)))
            part = s.line[k : k + 4]
            canvas.polygon(band(part, half, -half), (150, 90, 78) if rng.random() < 0.5 else (170, 160, 144))
            for quad in ribbon(part[[0, -1]], half, -half):
                canvas.stroke(quad[[0, 3]], 0.25, WHITE)
                canvas.stroke(quad[[1, 2]], 0.25, WHITE)
    _park(rng, canvas, s, a, b, objects)
    return stripes


def _crosswalk(rng: np.random.Generator, canvas: Canvas, s: Street, end: int, inward: int) -> list[Float64]:
    """Stripes along the street, 0.5 m wide and 0.5 m apart, 3 m long, sometimes on red."""
    half = s.width_m / 2
    near, far = s.line[end], s.line[end + 3 * inward]
    along = (far - near) / np.hypot(*(far - near))
    across = np.array([-along[1], along[0]])
    centre = (near + far) / 2
    angle = float(np.arctan2(along[1], along[0]))
    if rng.random() < 0.2:
        canvas.polygon(rectangle(*centre, 1.8, half, angle), (150, 80, 70))
    count = int((2 * half - 0.6) // 1.0)
    stripes = []
    for k in range(count):
        x, y = centre + across * (k - (count - 1) / 2) * 1.0
        stripe = rectangle(x, y, 1.5, 0.25, angle)
        canvas.polygon(stripe, WHITE)
        stripes.append(stripe)
    return stripes


def _arrow(rng: np.random.Generator, canvas: Canvas, at: Float64, forward: Float64) -> None:
    """A lane arrow 4 m long, pointing along `forward`: straight, left, right or both."""
    f = forward / np.hypot(*forward)
    left = np.array([-f[1], f[0]])
    canvas.stroke(np.stack([at - 2 * f, at + 0.8 * f]), 0.2, WHITE)
    kind = int(rng.integers(4))
    if kind in (0, 3):
        canvas.polygon(np.stack([at + 0.8 * f + 0.45 * left, at + 0.8 * f - 0.45 * left, at + 2.2 * f]), WHITE)
    for sign, drawn in ((1, kind in (1, 3)), (-1, kind == 2)):
        if drawn:
            side = left * sign
            canvas.stroke(np.stack([at - 0.2 * f, at + 0.5 * f + 0.6 * side]), 0.2, WHITE)
            tip = at + 0.5 * f + 0.6 * side
            canvas.polygon(np.stack([tip + 0.5 * f, tip - 0.5 * f, tip + 0.9 * side]), WHITE)


def _road_sign(rng: np.random.Generator, canvas: Canvas, at: Float64, angle: float) -> None:
    """A painted field on the lane: a speed disc, bars, or a coloured box."""
    kind = int(rng.integers(3))
    if kind == 0:
        canvas.disc(*at, 1.1, (196, 60, 50))
        canvas.disc(*at, 0.8, WHITE)
    elif kind == 1:
        for k in range(int(rng.integers(2, 5))):
            along = np.array([np.cos(angle), np.sin(angle)]) * 0.9 * k
            canvas.polygon(rectangle(*(at + along), 0.22, 1.2, angle), WHITE)
    else:
        tint = [(70, 100, 160), (160, 84, 70), (206, 180, 70)][int(rng.integers(3))]
        canvas.polygon(rectangle(*at, rng.uniform(1, 2.2), 1.0, angle), tint)
        canvas.outline(rectangle(*at, 1.4, 0.8, angle), 0.16, WHITE)


def _park(rng: np.random.Generator, canvas: Canvas, s: Street, a: int, b: int, objects: Objects) -> None:
    """Bays and cars along the kerbs; a few cars in the lanes."""
    half = s.width_m / 2
    aside = normals(s.line)
    for side, here in ((1, s.parking_left), (-1, s.parking_right)):
        if not here:
            continue
        if rng.random() < 0.4:
            tone = rng.uniform(90, 150)
            canvas.polygon(
                band(s.line[a : b + 1], side * (half - 0.05), side * (half - PARKING_M)),
                (tone, tone * 0.95, tone * 0.9),
            )
        lines = rng.random() < 0.6
        full = rng.uniform(0.35, 0.9)
        k = a + 3
        while k < b - 5:
            if rng.random() < 0.07:  # a tree or planter between bays
                x, y = s.line[k] + aside[k] * side * (half - 1.0)
                canvas.polygon(rectangle(x, y, 0.9, 0.9, np.arctan2(-aside[k, 0], aside[k, 1])), (96, 108, 62), 0.8)
                objects.tree(rng, x, y, rng.uniform(1.4, 2.4))
                k += 3
                continue
            middle = k + 3
            angle = float(np.arctan2(-aside[middle, 0], aside[middle, 1]))
            if lines:
                edge = np.stack([s.line[k] + aside[k] * side * half, s.line[k] + aside[k] * side * (half - PARKING_M)])
                canvas.stroke(edge, 0.14, WHITE)
            if rng.random() < full:
                x, y = s.line[middle] + aside[middle] * side * (half - PARKING_M / 2 + rng.normal(0, 0.06))
                objects.car(rng, x, y, angle + (np.pi if side > 0 else 0) + rng.normal(0, 0.02))
            k += 6
    left, right = s.lane_edges_m
    middle_m = (left + right) / 2
    for _ in range(rng.poisson((b - a) / 120)):
        k = int(rng.integers(a, max(b, a + 1)))
        side = int(rng.choice([1, -1]))
        lane = (middle_m + (left if side > 0 else right)) / 2
        x, y = s.line[k] + aside[k] * lane
        angle = float(np.arctan2(-aside[k, 0], aside[k, 1]))
        objects.car(rng, x, y, angle + (np.pi if side > 0 else 0), moving=True)
