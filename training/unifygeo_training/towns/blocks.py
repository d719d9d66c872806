"""What stands and grows between the streets: houses, rows, halls, parks, ponds, courts, gardens, car parks."""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np
import numpy.typing as npt
from scipy.spatial import KDTree

from unifygeo_ros.core.arrays import Float64
from unifygeo_training.towns.furniture import ACCENTS, FLATS, Objects, pick
from unifygeo_training.towns.kinds import MIXED, TownKind
from unifygeo_training.towns.paint import FREE_M, Canvas, Colour, rectangle, ribbon
from unifygeo_training.towns.streets import Street, normals

GRASS: tuple[Colour, ...] = ((104, 136, 70), (122, 148, 78), (92, 122, 66), (140, 150, 88), (112, 128, 60))
GRAVEL: tuple[Colour, ...] = ((176, 164, 142), (158, 150, 138), (190, 172, 140))
PAVED: tuple[Colour, ...] = ((150, 146, 140), (168, 150, 132), (132, 130, 130), (176, 168, 156))
WHITE: Colour = (224, 224, 218)

STYLES = {"houses": "house", "rows": "row", "blocks": "block", "flats": "flats", "works": "hall"}
"""Style of the buildings along the streets of a block, by its character; the others build in several."""

LARGEST_SQUARE_M2 = 1800.0

SPILL_M = 20.0
"""A pond with its shore reaches no further than this beyond the block in which it has its middle."""


@dataclass(frozen=True)
class Block:
    """One block."""

    character: str
    area_m2: float
    label: int
    """Its number in the raster of blocks, where it covers `rows` and `columns`."""
    rows: slice
    columns: slice


def fill_blocks(
    rng: np.random.Generator, canvas: Canvas, streets: tuple[Street, ...], objects: Objects, kind: TownKind = MIXED
) -> None:
    """Gives every block its character, then builds along the streets, then fills what is left."""
    count, labels, stats, _ = cv2.connectedComponentsWithStats((1 - canvas.taken).astype(np.uint8), connectivity=4)
    characters, shares = list(kind.blocks), np.array(list(kind.blocks.values()))
    shares = shares / sum(shares.tolist())
    blocks = []
    for label in range(count):
        area = stats[label, cv2.CC_STAT_AREA] * FREE_M**2
        character = str(rng.choice(characters, p=shares))
        if area < 500:
            character = str(rng.choice(["park", "square", "mixed"]))
        elif character == "square" and area > LARGEST_SQUARE_M2:
            character = "rows" if "rows" in kind.blocks else "mixed"
        elif character == "park" and area > 16000:
            character = "mixed"
        left, top, width, height, _ = (int(v) for v in stats[label])
        blocks.append(Block(character, float(area), label, slice(top, top + height), slice(left, left + width)))
    _carpet(rng, canvas, labels, blocks)
    for block in blocks[1:]:
        if block.character == "park":
            _park(rng, canvas, objects, labels, block)
    _build_along(rng, canvas, streets, objects, labels, blocks, kind)
    _fill(rng, canvas, streets, objects, labels, blocks, kind)


def _label_at(labels: npt.NDArray[np.int32], size_m: float, x: float, y: float) -> int:
    row, column = int((size_m - y) / FREE_M), int(x / FREE_M)
    if 0 <= row < labels.shape[0] and 0 <= column < labels.shape[1]:
        return int(labels[row, column])
    return 0


def _carpet(rng: np.random.Generator, canvas: Canvas, labels: npt.NDArray[np.int32], blocks: list[Block]) -> None:
    """The ground of each block, under everything else."""
    colours = np.zeros((len(blocks), 4), np.uint8)
    for block in blocks:
        green = {
            "houses": 0.95,
            "rows": 0.5,
            "blocks": 0.1,
            "flats": 0.75,
            "works": 0.15,
            "park": 1.0,
            "mixed": 0.7,
            "square": 0.0,
        }
        if rng.random() < green[block.character]:
            base, plants = GRASS[int(rng.integers(len(GRASS)))], 255
        else:
            palette = GRAVEL + PAVED
            base, plants = palette[int(rng.integers(len(palette)))], 0
        colours[block.label, :3] = np.clip(np.array(base) * rng.uniform(0.88, 1.12), 0, 255)
        colours[block.label, 3] = plants
    grown = labels.astype(np.float32)
    near = cv2.resize(grown, (canvas.pixels, canvas.pixels), interpolation=cv2.INTER_NEAREST).astype(np.int32)
    inside = near > 0
    canvas.albedo[inside] = colours[near[inside]]
    unpainted = ~canvas.albedo.any(axis=2)  # slivers between the footways' raster and the blocks' coarser one
    canvas.albedo[unpainted] = (150, 146, 138, 0)


def _build_along(
    rng: np.random.Generator,
    canvas: Canvas,
    streets: tuple[Street, ...],
    objects: Objects,
    labels: npt.NDArray[np.int32],
    blocks: list[Block],
    kind: TownKind,
) -> None:
    """Walks along both sides of each street and sets buildings that face it."""
    for k in rng.permutation(len(streets)):
        s = streets[int(k)]
        aside = normals(s.line)
        for side in (1, -1):
            at = rng.uniform(4, 10)
            kerb = s.width_m / 2 + s.pavement_m
            set_back = rng.uniform(0.2, 1.0)
            while at < len(s.line) - 4:
                i = int(at)
                probe = s.line[i] + aside[i] * side * (kerb + 5)
                block = blocks[_label_at(labels, canvas.size_m, *probe)]
                if block.label == 0 or block.character in ("park", "square"):
                    at += 6
                    continue
                style = STYLES.get(block.character, "")
                if not style:
                    style = str(rng.choice(["house", "row", "flats", "tower"], p=[0.4, 0.3, 0.2, 0.1]))
                low, high, deep_low, deep_high, storeys, gap, front = {
                    "house": (7, 13, 7, 11, (1, 2), (2.5, 7), (2.0, 7.0)),
                    "row": (8, 20, 9, 13, (2, 5), (0.0, 0.6), (0.0, 0.4)),
                    "block": (12, 40, 12, 18, (4, 8), (0.0, 0.4), (0.0, 0.3)),
                    "flats": (16, 34, 10, 14, (3, 7), (5, 12), (3.0, 8.0)),
                    "tower": (14, 22, 14, 20, (6, 12), (6, 12), (2.0, 8.0)),
                    "hall": (18, 38, 14, 26, (1, 2), (5, 10), (3.0, 9.0)),
                }[style]
                width, depth = rng.uniform(low, high), rng.uniform(deep_low, deep_high)
                if style in ("row", "block") and rng.random() < 0.15:  # a gap between the rows
                    at += rng.uniform(4, 9)
                back = set_back * 0.4 if style in ("row", "block") else rng.uniform(*front)
                m = int(min(at + width / 2, len(s.line) - 1))
                angle = float(np.arctan2(-aside[m, 0], aside[m, 1])) + (0 if side > 0 else np.pi)
                if style in ("house", "tower"):
                    angle += rng.normal(0, 0.06)
                placed = False
                for shrink in (1.0, 0.75, 0.55):
                    w, d = width * shrink, depth * (1 + shrink) / 2
                    x, y = s.line[m] + aside[m] * side * (kerb + back + d / 2 + 0.3)
                    if w >= 6 and canvas.is_free(x, y, w / 2, d / 2, angle):
                        height = (
                            float(rng.integers(storeys[0], storeys[1] + 1)) * kind.storeys * rng.uniform(2.9, 3.5) + 0.5
                        )
                        if style == "hall":
                            height = rng.uniform(5, 10)
                        _build(rng, canvas, objects, x, y, w, d, angle, height, style)
                        if style in ("house", "flats", "tower"):
                            _front_garden(rng, canvas, objects, s, m, side, kerb, back, w, aside, style)
                        at += (width + w) / 2 + rng.uniform(*gap)
                        placed = True
                        break
                if not placed:
                    at += 3


def _build(
    rng: np.random.Generator,
    canvas: Canvas,
    objects: Objects,
    x: float,
    y: float,
    width: float,
    depth: float,
    angle: float,
    height: float,
    style: str,
) -> None:
    """A building, often with a wing behind it."""
    objects.building(rng, x, y, width / 2, depth / 2, angle, height, style)
    canvas.polygon(rectangle(x, y, width / 2 + 0.5, depth / 2 + 0.5, angle), (128, 124, 118))
    canvas.take(rectangle(x, y, width / 2 + 0.3, depth / 2 + 0.3, angle))
    if rng.random() < {"house": 0.4, "row": 0.45, "block": 0.5, "flats": 0.3, "tower": 0.2, "hall": 0.4}[style]:
        wing, deep = width * rng.uniform(0.3, 0.55), rng.uniform(4, 9)
        u = rng.choice([-1, 1]) * (width - wing) / 2
        v = depth / 2 + deep / 2 + 0.3
        c, s = np.cos(angle), np.sin(angle)
        wx, wy = x + u * c - v * s, y + u * s + v * c
        if canvas.is_free(wx, wy, wing / 2, deep / 2 - 0.2, angle):
            objects.building(rng, wx, wy, wing / 2, deep / 2 + 0.28, angle, height * rng.uniform(0.45, 0.95), style)
            canvas.take(rectangle(wx, wy, wing / 2 + 0.3, deep / 2 + 0.3, angle))


def _front_garden(
    rng: np.random.Generator,
    canvas: Canvas,
    objects: Objects,
    s: Street,
    m: int,
    side: int,
    kerb: float,
    back: float,
    width: float,
    aside: Float64,
    style: str,
) -> None:
    """A path to the door, perhaps a drive with a car, a hedge along the pavement, bushes."""
    if back < 1.5:
        return
    along = np.array([aside[m, 1], -aside[m, 0]])
    edge = s.line[m] + aside[m] * side * kerb
    inner = s.line[m] + aside[m] * side * (kerb + back + 0.4)
    shift = along * rng.uniform(-0.3, 0.3) * width
    paved = PAVED[int(rng.integers(len(PAVED)))]
    canvas.stroke(np.stack([edge + shift, inner + shift]), rng.uniform(1.0, 2.0), paved)
    drive = rng.choice([-1, 1])
    if style == "house" and rng.random() < 0.6:
        at = along * drive * (width / 2 + 1.4)
        far = s.line[m] + aside[m] * side * (kerb + back + 5)
        canvas.stroke(np.stack([edge + at, far + at]), 2.6, PAVED[int(rng.integers(len(PAVED)))])
        middle = (edge + far) / 2 + at + aside[m] * side
        angle = float(np.arctan2(aside[m, 1], aside[m, 0]))
        if rng.random() < 0.6 and canvas.is_free(*middle, 2.3, 1.0, angle):
            objects.car(rng, *middle, angle + rng.choice([0, np.pi]))
            canvas.take(rectangle(*middle, 2.4, 1.1, angle))
    if rng.random() < 0.55:
        hedge_at = edge + aside[m] * side * 0.5
        ends = [hedge_at + along * (-width / 2 - 0.5), hedge_at + along * (width / 2 + 0.5)]
        gap = hedge_at + shift
        objects.hedge(rng, ends[0], gap - along * 1.2)
        objects.hedge(rng, gap + along * 1.2, ends[1])
    elif rng.random() < 0.7:
        for _ in range(int(rng.integers(1, 5))):
            x, y = edge + aside[m] * side * rng.uniform(0.6, back - 0.5) + along * rng.uniform(-0.5, 0.5) * width
            objects.bush(rng, x, y, rng.uniform(0.35, 0.8))


def _spots(rng: np.random.Generator, labels: npt.NDArray[np.int32], block: Block, size_m: float, count: int) -> Float64:
    """Random town points in a block, float64 (count, 2)."""
    rows, columns = np.nonzero(labels[block.rows, block.columns] == block.label)
    k = rng.integers(0, len(rows), count)
    x = (columns[k] + block.columns.start + rng.random(count)) * FREE_M
    y = size_m - (rows[k] + block.rows.start + rng.random(count)) * FREE_M
    return np.stack([x, y], axis=1)


def _park(
    rng: np.random.Generator, canvas: Canvas, objects: Objects, labels: npt.NDArray[np.int32], block: Block
) -> None:
    """Paths from edge to edge, a pond, beds; trees come with the filling."""
    spots = _spots(rng, labels, block, canvas.size_m, 40)
    inside = cv2.resize((labels == block.label).astype(np.uint8), (canvas.pixels,) * 2) > 0
    low = np.array([block.columns.start * FREE_M, canvas.size_m - block.rows.stop * FREE_M])
    high = np.array([block.columns.stop * FREE_M, canvas.size_m - block.rows.start * FREE_M])
    gravel = GRAVEL[int(rng.integers(len(GRAVEL)))]
    paths = []
    for _ in range(max(1, min(5, int(block.area_m2 / 1500)))):
        a, b = spots[rng.integers(40)], spots[rng.integers(40)]
        d = b - a
        a, b = a - d * 1.5, b + d * 1.5
        bend = np.array([-d[1], d[0]]) * rng.normal(0, 0.35)
        t = np.linspace(0, 1, 60)[:, None]
        line = (1 - t) ** 2 * a + 2 * t * (1 - t) * ((a + b) / 2 + bend) + t**2 * b
        half = rng.uniform(1.4, 2.6) / 2
        quads = ribbon(line, half, -half)
        paths.append(quads[((quads.max(axis=1) > low) & (quads.min(axis=1) < high)).all(axis=1)])
    # Paths and shores run over the block's edge; what they cover there is put back.
    corners = np.concatenate([q.reshape(-1, 2) for q in paths] + [np.stack([low - SPILL_M, high + SPILL_M])])
    rows, columns = canvas.window(corners.min(axis=0), corners.max(axis=0))
    before = canvas.albedo[rows, columns].copy()
    for quads in paths:
        for quad in quads:
            canvas.polygon(quad, gravel)
    if block.area_m2 > 1200 and rng.random() < 0.6:
        x, y = spots[0]
        r = rng.uniform(4, min(13, np.sqrt(block.area_m2) / 4))
        angle = np.linspace(0, 2 * np.pi, 60, endpoint=False)
        wobble = 1 + 0.18 * np.sin(2 * angle + rng.uniform(0, 6)) + 0.1 * np.sin(3 * angle + rng.uniform(0, 6))
        shore = np.stack([x + r * wobble * np.cos(angle), y + r * wobble * np.sin(angle) * 0.8], axis=1)
        canvas.polygon((shore - (x, y)) * 1.15 + (x, y), (172, 164, 140))
        canvas.polygon(shore, tuple(np.array([58, 92, 104]) * rng.uniform(0.8, 1.3)))
        canvas.take((shore - (x, y)) * 1.15 + (x, y))
    outside = ~inside[rows, columns]
    canvas.albedo[rows, columns][outside] = before[outside]


def _fill(
    rng: np.random.Generator,
    canvas: Canvas,
    streets: tuple[Street, ...],
    objects: Objects,
    labels: npt.NDArray[np.int32],
    blocks: list[Block],
    kind: TownKind,
) -> None:
    """Scatters things over what is free until no wide empty ground is left."""
    nearest = KDTree(np.concatenate([s.line for s in streets]))
    tangents = np.concatenate([np.gradient(s.line, axis=0) for s in streets])
    menus = {
        "houses": (["tree", "bush", "shed", "bed", "pool", "terrace", "tree", "hedge"], 26),
        "rows": (["tree", "bush", "shed", "bays", "terrace", "bed", "court", "hedge", "garages"], 26),
        "blocks": (["bays", "stack", "terrace", "court", "tree", "garages", "planter", "shed"], 30),
        "flats": (["tree", "tree", "bush", "bays", "playground", "bed", "court", "hedge", "garages"], 32),
        "works": (["bays", "stack", "tree", "terrace", "stack", "garages"], 40),
        "park": (["tree", "tree", "tree", "tree", "bush", "bed", "playground", "court"], 30),
        "mixed": (["tree", "tree", "bush", "bays", "bed", "playground", "court", "shed", "hedge", "pool"], 28),
        "square": (["planter", "planter", "tree", "pattern", "pattern", "kiosk", "bush", "bed"], 14),
    }
    for block in blocks[1:]:
        if block.area_m2 < 12:
            continue
        menu, each_m2 = menus[block.character]
        for x, y in _spots(rng, labels, block, canvas.size_m, int(block.area_m2 / each_m2) + 3):
            distances, candidates = nearest.query((x, y), k=8)
            k = int(candidates[distances == distances[0]].min())  # streets share their ends: the first of them
            angle = float(np.arctan2(tangents[k, 1], tangents[k, 0])) + rng.choice([0, np.pi / 2])
            _put(rng, canvas, objects, str(rng.choice(menu)), float(x), float(y), angle)
    for s in streets:
        _street_furniture(rng, canvas, objects, s, kind.street_trees)


def _put(
    rng: np.random.Generator, canvas: Canvas, objects: Objects, what: str, x: float, y: float, angle: float
) -> None:
    """One thing at (x, y), if there is room for it."""

    def room(half_x: float, half_y: float) -> bool:
        if not canvas.is_free(x, y, half_x, half_y, angle):
            return False
        canvas.take(rectangle(x, y, half_x, half_y, angle))
        return True

    def tint(palette: tuple[Colour, ...]) -> Colour:
        return tuple(np.array(palette[int(rng.integers(len(palette)))]) * rng.uniform(0.9, 1.1))

    if what == "tree":
        r = rng.uniform(1.4, 4.2)
        if room(1.0 + r * 0.35, 1.0 + r * 0.35):
            objects.tree(rng, x, y, r)
    elif what == "bush":
        if room(0.9, 0.9):
            objects.bush(rng, x, y, rng.uniform(0.5, 1.3))
    elif what == "shed":
        a, b = rng.uniform(1.4, 2.8), rng.uniform(1.2, 2.2)
        if room(a + 0.4, b + 0.4):
            objects.building(rng, x, y, a, b, angle, rng.uniform(2.0, 2.6), "house")
    elif what == "bed":
        a, b = rng.uniform(1.0, 4.0), rng.uniform(0.8, 2.0)
        if room(a, b):
            canvas.polygon(
                rectangle(x, y, a, b, angle), tint(((110, 84, 60), (150, 96, 104), (160, 150, 70), (96, 120, 60))), 0.5
            )
            for _ in range(int(rng.integers(0, 4))):
                u, v = rng.uniform(-a, a), rng.uniform(-b, b)
                objects.bush(rng, x + u * np.cos(angle), y + v * np.sin(angle), rng.uniform(0.25, 0.5))
    elif what == "pool":
        a, b = rng.uniform(2.0, 4.5), rng.uniform(1.5, 2.4)
        if room(a + 1, b + 1):
            canvas.polygon(rectangle(x, y, a + 0.9, b + 0.9, angle), tint(PAVED))
            canvas.polygon(rectangle(x, y, a, b, angle), tint(((70, 160, 190), (60, 140, 180))))
    elif what == "terrace":
        a, b = rng.uniform(1.5, 4.5), rng.uniform(1.5, 3.5)
        if room(a, b):
            canvas.polygon(rectangle(x, y, a, b, angle), tint(PAVED + GRAVEL))
    elif what == "hedge":
        length = rng.uniform(2, 8)
        if room(length, 0.5):
            d = np.array([np.cos(angle), np.sin(angle)]) * length
            objects.hedge(rng, np.array([x, y]) - d, np.array([x, y]) + d)
    elif what == "playground":
        a, b = rng.uniform(4, 8), rng.uniform(3, 6)
        if room(a, b):
            canvas.polygon(rectangle(x, y, a, b, angle), tint(((206, 186, 140), (190, 120, 90), (110, 150, 120))))
            for _ in range(int(rng.integers(2, 5))):
                u, v = rng.uniform(-a + 1, a - 1), rng.uniform(-b + 1, b - 1)
                px = x + u * np.cos(angle) - v * np.sin(angle)
                py = y + u * np.sin(angle) + v * np.cos(angle)
                objects.box(
                    rng, px, py, rng.uniform(0.3, 1.2), 0.4, 0, rng.uniform(0.8, 2.6), angle, pick(rng, ACCENTS)
                )
    elif what == "court":
        a, b = rng.uniform(8, 13), rng.uniform(5, 7)
        if room(a, b):
            canvas.polygon(
                rectangle(x, y, a, b, angle), tint(((170, 92, 70), (80, 130, 90), (80, 110, 160), (150, 150, 150)))
            )
            canvas.outline(rectangle(x, y, a - 0.8, b - 0.8, angle), 0.22, WHITE)
            canvas.polygon(rectangle(x, y, 0.11, b - 0.8, angle), WHITE)
            canvas.outline(rectangle(x, y, a * 0.45, b * 0.6, angle), 0.18, WHITE)
    elif what == "bays":
        bays = int(rng.integers(3, 9))
        rows = int(rng.integers(1, 3))
        a, b = bays * 1.3, 2.5 * rows + (3.0 if rows == 2 else 1.5)
        if room(a + 0.5, b + 0.5):
            _car_park(rng, canvas, objects, x, y, a, b, bays, rows, angle)
    elif what == "garages":
        count = int(rng.integers(2, 6))
        if room(count * 1.5 + 0.5, 3.3):
            objects.box(rng, x, y, count * 1.5, 2.8, 0, 2.5, angle, pick(rng, FLATS), pick(rng, FLATS))
    elif what == "stack":
        a, b = rng.uniform(1.2, 6), rng.uniform(1.2, 1.4)
        if room(a + 0.5, b + 0.5):
            objects.box(rng, x, y, a, b, 0, rng.choice([2.6, 5.2]), angle, pick(rng, ACCENTS))
    elif what == "planter":
        a = rng.uniform(0.6, 1.4)
        if room(a + 0.8, a + 0.8):
            objects.box(rng, x, y, a, a, 0, 0.5, angle, (0.6, 0.58, 0.55), (0.35, 0.28, 0.2))
            if rng.random() < 0.5:
                objects.tree(rng, x, y, rng.uniform(1.2, 2.2))
            else:
                objects.add_bush_on(rng, x, y, a * 0.8, 0.5)
    elif what == "pattern":
        a, b = rng.uniform(2, 6), rng.uniform(2, 5)
        if canvas.is_free(x, y, a, b, angle):
            canvas.polygon(rectangle(x, y, a, b, angle), tint(PAVED + GRAVEL + ((120, 84, 76),)))
            canvas.outline(rectangle(x, y, a - 0.3, b - 0.3, angle), 0.3, tint(PAVED))
    elif what == "kiosk" and room(2.2, 2.0):
        objects.building(rng, x, y, 1.6, 1.4, angle, 2.8, "house")


def _car_park(
    rng: np.random.Generator,
    canvas: Canvas,
    objects: Objects,
    x: float,
    y: float,
    half_x: float,
    half_y: float,
    bays: int,
    rows: int,
    angle: float,
) -> None:
    """One or two rows of bays, 2.6 m each, with an aisle."""
    tone = rng.uniform(84, 130)
    canvas.polygon(rectangle(x, y, half_x + 0.4, half_y + 0.4, angle), (tone, tone, tone * 1.02))
    c, s = np.cos(angle), np.sin(angle)
    full = rng.uniform(0.2, 0.9)
    for row in range(rows):
        v = (half_y - 2.5) * (1 if row == 0 else -1)
        for k in range(bays + 1):
            u = -half_x + k * 2.6
            canvas.polygon(rectangle(x + u * c - v * s, y + u * s + v * c, 0.08, 2.4, angle), WHITE)
            if k < bays and rng.random() < full:
                u += 1.3
                objects.car(rng, x + u * c - v * s, y + u * s + v * c, angle + np.pi / 2 + rng.choice([0, np.pi]))


def _street_furniture(rng: np.random.Generator, canvas: Canvas, objects: Objects, s: Street, trees: float) -> None:
    """Rows of street trees, lamps, hedges, bins, boxes and shelters on the footways."""
    aside = normals(s.line)
    n = len(s.line)
    for side in (1, -1):
        if s.pavement_m < 1.2:
            continue
        offset = s.width_m / 2 + 0.5
        a, b = int(s.set_back_m[0]) + 4, n - 5 - int(s.set_back_m[1])
        if s.pavement_m > 1.7 and rng.random() < trees:
            step = rng.uniform(7, 16)
            radius = rng.uniform(1.4, 2.8)
            for k in np.arange(a, b, step):
                if rng.random() < 0.85:
                    i = int(k)
                    x, y = s.line[i] + aside[i] * side * (offset + 0.2)
                    canvas.polygon(rectangle(x, y, 0.6, 0.6, np.arctan2(aside[i, 1], aside[i, 0])), (96, 82, 62), 0.3)
                    objects.tree(rng, x, y, radius * rng.uniform(0.8, 1.15), bare_m=2.6)
        if side == 1 or s.rank == 0:
            for k in np.arange(a + 3, b, rng.uniform(22, 34)):
                x, y = s.line[int(k)] + aside[int(k)] * side * (offset - 0.1)
                objects.lamp(rng, x, y)
        for _ in range(rng.poisson(n / 45)):
            if b <= a:
                break
            i = int(rng.integers(a, b))
            x, y = s.line[i] + aside[i] * side * (offset + 0.3)
            angle = float(np.arctan2(-aside[i, 0], aside[i, 1]))
            kind = int(rng.integers(4))
            if kind == 0:
                objects.box(rng, x, y, 0.5, 0.25, 0, 1.2, angle, pick(rng, ACCENTS))
            elif kind == 1:
                objects.box(rng, x, y, 0.9, 0.3, 0, 0.5, angle, (0.45, 0.3, 0.2))
            elif kind == 2:
                objects.box(rng, x, y, 0.7, 0.5, 0, 0.55, angle, (0.55, 0.54, 0.52), (0.35, 0.45, 0.25))
            elif s.pavement_m > 2:
                objects.box(rng, x, y, 1.8, 0.5, 2.3, 2.45, angle, (0.5, 0.52, 0.55), (0.62, 0.66, 0.7))
                objects.box(
                    rng, *(s.line[i] + aside[i] * side * (offset + 0.75)), 1.8, 0.05, 0, 2.3, angle, (0.4, 0.5, 0.55)
                )
