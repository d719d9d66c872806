"""Albedo of solids: facades with windows, doors and shopfronts, roofs, leaves, cars. Shared by both views."""

from __future__ import annotations

import numpy as np
from numba import njit

from unifygeo_training.towns.rays import (
    BOTTOM,
    MINUS_X,
    MINUS_Y,
    PLUS_X,
    PLUS_Y,
    SLOPE_MINUS_X,
    SLOPE_MINUS_Y,
    SLOPE_PLUS_X,
    SLOPE_PLUS_Y,
    TOP,
)
from unifygeo_training.towns.scene import Kind, Shape

_BUILDING, _CAR, _CABIN, _LEAVES = int(Kind.BUILDING), int(Kind.CAR), int(Kind.CABIN), int(Kind.LEAVES)
_CONE = int(Shape.CONE)


@njit(cache=True, inline="always")
def chance(a, b, c):
    """A number in [0, 1) from three integers, the same each time."""
    n = np.uint32(np.uint32(a) * np.uint32(0x9E3779B1)) ^ np.uint32(np.uint32(b) * np.uint32(0x85EBCA77))
    n ^= np.uint32(np.uint32(c) * np.uint32(0xC2B2AE3D))
    n ^= n >> np.uint32(15)
    n = np.uint32(n * np.uint32(0x2C1B3C6D))
    n ^= n >> np.uint32(12)
    n = np.uint32(n * np.uint32(0x297A2D39))
    n ^= n >> np.uint32(15)
    return (n & np.uint32(0xFFFFFF)) / 16777216.0


@njit(cache=True)
def smooth_noise(u, v, seed):
    """Value noise in [0, 1) with cells of one unit."""
    iu, iv = int(np.floor(u)), int(np.floor(v))
    fu, fv = u - iu, v - iv
    fu, fv = fu * fu * (3 - 2 * fu), fv * fv * (3 - 2 * fv)
    low = (1 - fu) * chance(iu, iv, seed) + fu * chance(iu + 1, iv, seed)
    high = (1 - fu) * chance(iu, iv + 1, seed) + fu * chance(iu + 1, iv + 1, seed)
    return (1 - fv) * low + fv * high


@njit(cache=True)
def normal_of(o, face, x, y, z):
    """Outward unit normal at a point of the solid's face."""
    if face == PLUS_X:
        return o.cos, o.sin, 0.0
    if face == MINUS_X:
        return -o.cos, -o.sin, 0.0
    if face == PLUS_Y:
        return -o.sin, o.cos, 0.0
    if face == MINUS_Y:
        return o.sin, -o.cos, 0.0
    if face == TOP:
        return 0.0, 0.0, 1.0
    if face == BOTTOM:
        return 0.0, 0.0, -1.0
    if face in (SLOPE_PLUS_Y, SLOPE_MINUS_Y, SLOPE_PLUS_X, SLOPE_MINUS_X):
        pitch = o.rise / o.half_y
        up = 1 / np.sqrt(1 + pitch * pitch)
        out = pitch * up
        if face == SLOPE_PLUS_Y:
            return -o.sin * out, o.cos * out, up
        if face == SLOPE_MINUS_Y:
            return o.sin * out, -o.cos * out, up
        if face == SLOPE_PLUS_X:
            return o.cos * out, o.sin * out, up
        return -o.cos * out, -o.sin * out, up
    nx, ny = x - o.x, y - o.y
    if o.kind == _LEAVES:
        if o.shape == _CONE:
            nz = np.sqrt(nx * nx + ny * ny) * o.half_x / (o.top - o.bottom)
        else:
            squash = 2 * o.half_x / (o.top - o.bottom)
            nz = (z - (o.top + o.bottom) / 2) * squash * squash
    else:
        nz = 0.0
    length = np.sqrt(nx * nx + ny * ny + nz * nz) + 1e-9
    return nx / length, ny / length, nz / length


@njit(cache=True)
def albedo_of(o, face, x, y, z):
    """Albedo RGB (0 … 1) and share of vegetation of a point of the solid's face."""
    dx, dy = x - o.x, y - o.y
    lx, ly = dx * o.cos + dy * o.sin, -dx * o.sin + dy * o.cos
    if o.kind == _LEAVES:
        grain = 0.62 + 0.5 * smooth_noise(x * 2.6 + z * 1.3, y * 2.6 - z * 1.9, o.seed)
        grain *= 0.8 + 0.4 * smooth_noise(x * 0.9 - z * 0.7, y * 0.9 + z * 0.8, o.seed + 1)
        return o.r * grain, o.g * grain, o.b * grain, 1.0
    if face == BOTTOM:
        return o.r * 0.5, o.g * 0.5, o.b * 0.5, 0.0
    if face >= TOP:
        return _roof(o, face, lx, ly)
    along = ly + o.half_y if face in (PLUS_X, MINUS_X) else lx + o.half_x
    length = 2 * (o.half_y if face in (PLUS_X, MINUS_X) else o.half_x)
    if o.kind == _BUILDING:
        return _facade(o, face, along, z - o.bottom, length)
    if o.kind == _CAR:
        if z < 0.62 and (face in (PLUS_Y, MINUS_Y)) and abs(abs(lx) - 0.62 * o.half_x) < 0.34:
            return 0.04, 0.04, 0.04, 0.0
        if face == PLUS_X and abs(ly) > 0.55 * o.half_y and z > 0.5 and z < 0.75:
            return 0.95, 0.95, 0.85, 0.0
        if face == MINUS_X and abs(ly) > 0.6 * o.half_y and z > 0.5 and z < 0.8:
            return 0.65, 0.05, 0.05, 0.0
        if z < 0.3:
            return 0.08, 0.08, 0.08, 0.0
        return o.r, o.g, o.b, 0.0
    if o.kind == _CABIN:
        inside = z > o.bottom + 0.08 and z < o.top - 0.08 and along > 0.12 and along < length - 0.12
        pillar = (face in (PLUS_Y, MINUS_Y)) and abs(along - 0.52 * length) < 0.07
        if inside and not pillar:
            return 0.07, 0.09, 0.11, 0.0
        return o.r, o.g, o.b, 0.0
    grain = 0.88 + 0.24 * smooth_noise(along * 3, z * 3, o.seed)
    return o.r * grain, o.g * grain, o.b * grain, 0.0


@njit(cache=True)
def _roof(o, face, lx, ly):
    grain = 0.86 + 0.28 * smooth_noise(lx * 1.7, ly * 1.7, o.seed)
    if o.kind == _BUILDING:
        if face == TOP:
            # Flat roof: a lighter rim, and sheets laid side by side.
            edge = min(o.half_x - abs(lx), o.half_y - abs(ly))
            if edge < 0.45:
                return o.accent_r * 0.3 + 0.5, o.accent_g * 0.3 + 0.5, o.accent_b * 0.3 + 0.5, 0.0
            grain *= 0.94 + 0.12 * chance(int(np.floor(lx / 2.5)), o.seed, 3)
        else:
            # Tiles in rows down the slope; a ridge line.
            down = abs(ly) if face in (SLOPE_PLUS_Y, SLOPE_MINUS_Y) else abs(lx)
            grain *= 0.9 + 0.2 * chance(int(np.floor(down / 0.6)), int(np.floor(lx / 1.1)), o.seed)
            if face <= SLOPE_MINUS_Y and abs(ly) < 0.22:
                grain *= 0.7
    return o.top_r * grain, o.top_g * grain, o.top_b * grain, 0.0


@njit(cache=True)
def _facade(o, face, along, up, length):
    height = o.top - o.bottom
    storeys = max(1, int(height / o.storey_m + 0.3))
    storey = height / storeys
    bays = max(1, int(length / o.bay_m + 0.5))
    bay = length / bays
    i, j = int(up / storey), min(int(along / bay), bays - 1)
    fu, fv = along / bay - j, up / storey - i
    own = chance(o.seed, face, 11)
    shade = (0.9 + 0.16 * own) * (0.93 + 0.14 * smooth_noise(along * 0.8, up * 0.8, o.seed + face))
    r, g, b = o.r * shade, o.g * shade, o.b * shade
    if i >= storeys:  # gable end above the walls
        if abs(along - length / 2) < 0.55 and up - height < 1.5 and up - height > 0.4 and own > 0.4:
            return 0.13, 0.16, 0.2, 0.0
        return r, g, b, 0.0
    if up < 0.5:
        return r * 0.6, g * 0.6, b * 0.6, 0.0
    if i == 0 and o.shop > 0.5 and height > 4 and own < 0.85:
        if fv > 0.74:
            tint = 0.55 + 0.6 * chance(o.seed, j // 2 + 7 * face, 5)
            if chance(o.seed, j // 2, 6) > 0.5:
                return o.accent_r * tint, o.accent_g * tint, o.accent_b * tint, 0.0
            return o.accent_b * tint, o.accent_r * tint, o.accent_g * tint, 0.0
        if fu > 0.05 and fu < 0.95:
            lit = 0.12 + 0.3 * chance(o.seed + j, face, 9)
            return lit * 0.9, lit, lit * 1.05, 0.0
        return r * 0.8, g * 0.8, b * 0.8, 0.0
    door = int(chance(o.seed, face, 21) * bays)
    if i == 0 and j == door and abs(fu - 0.5) * bay < 0.65 and up < 2.3:
        return o.accent_r, o.accent_g, o.accent_b, 0.0
    if own > 0.84:  # a fire wall, blank
        return r, g, b, 0.0
    if o.trim == 3:  # ribbon windows
        if abs(fv - 0.55) < o.window_h * 0.5 and fu > 0.03:
            lit = 0.1 + 0.12 * chance(o.seed + 31 * i, j, face)
            return lit * 0.8, lit, lit * 1.2, 0.0
        return r, g, b, 0.0
    if o.trim == 1 and fv < 0.07 and i > 0:
        return min(r * 1.35, 1.0), min(g * 1.35, 1.0), min(b * 1.35, 1.0), 0.0
    if o.trim == 2 and i > 0 and fv < 0.33 and (j + o.seed) % 3 == 0 and (face in (PLUS_Y, MINUS_Y)):
        return 0.5 * r + 0.4 * o.accent_r, 0.5 * g + 0.4 * o.accent_g, 0.5 * b + 0.4 * o.accent_b, 0.0
    across, over = abs(fu - 0.5) / o.window_w, abs(fv - 0.55) / o.window_h
    if across < 0.5 and over < 0.5:
        if across > 0.42 or over > 0.44:
            return 0.8, 0.8, 0.78, 0.0
        dice = chance(o.seed + 13 * i, j, face)
        if dice > 0.9:  # blind down
            return 0.7, 0.68, 0.62, 0.0
        return 0.09 + 0.12 * dice, 0.11 + 0.13 * dice, 0.14 + 0.14 * dice, 0.0
    if o.trim == 0 and across < 0.85 and over < 0.5 and o.seed % 3 == 0:  # shutters
        return o.accent_r * 0.9, o.accent_g * 0.9, o.accent_b * 0.9, 0.0
    return r, g, b, 0.0
