"""What photographs have and rendered towns lack: lenses, exposures, weather, providers' processing, missing sectors.

Every change keeps each thing where it is: labels stay true. `photograph_street` and `photograph_from_above` change the
appearance of one view; `draw_seen` says what a camera rig with gaps would see. Images are float32 (H, W, 3) RGB, 0 … 1,
inside this module.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import scipy.fft
from pydantic import BaseModel, ConfigDict, Field, field_validator

from unifygeo_ros.core.arrays import Bool, Float32, Float64, UInt8
from unifygeo_ros.images.files import read_image
from unifygeo_ros.localization.panorama import FILL_RGB

STREET, ABOVE = "street", "above"
"""Sub-folders of a folder of style pictures."""
PICTURE_ENDINGS = (".jpg", ".jpeg", ".png")


class PhotographyConfig(BaseModel):
    """Probabilities, 0: never. Each option is drawn for each view of each pair by itself."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    styles: Path | None = None
    """Folder with any unpaired pictures: street-level ones in `street`, aerial ones in `above`. `fourier` and
    `statistics` take amplitudes and colours from them. None: they draw them at random."""
    tone: float = Field(default=0.0, ge=0.0, le=1.0)
    """Tone curve of a camera or provider: gamma, contrast about a random middle, crushed shadows, haze."""
    channels: float = Field(default=0.0, ge=0.0, le=1.0)
    """Colours mixed by a random matrix; sometimes grey."""
    fourier: float = Field(default=0.0, ge=0.0, le=1.0)
    """Amplitudes of low spatial frequencies mixed with another picture's."""
    statistics: float = Field(default=0.0, ge=0.0, le=1.0)
    """Mean and contrast of each channel moved towards another picture's."""
    convolution: float = Field(default=0.0, ge=0.0, le=1.0)
    """A random convolution over 3 × 3 pixels and all channels, blended in."""
    lens: float = Field(default=0.0, ge=0.0, le=1.0)
    """Street: exposure that differs by sector, flare, chromatic error."""
    weather: float = Field(default=0.0, ge=0.0, le=1.0)
    """Street: night with a tint and its noise, or the grey of rain."""
    motion: float = Field(default=0.0, ge=0.0, le=1.0)
    """Street: blur along the columns, of motion or a rolling exposure."""
    vehicle: float = Field(default=0.0, ge=0.0, le=1.0)
    """Street: the own vehicle's roof at the bottom."""
    passers: float = Field(default=0.0, ge=0.0, le=1.0)
    """Street: vehicles and people in front of what is there."""
    imagery: float = Field(default=0.0, ge=0.0, le=1.0)
    """Above: coarser ground sampling, sharpening, a seam between two exposures."""
    shadows: float = Field(default=0.0, ge=0.0, le=1.0)
    """Above: shadows of things that are not there."""
    missing: float = Field(default=0.0, ge=0.0, le=1.0)
    """Street: sectors and elevations that no camera sees, filled as the localizer fills them."""

    @field_validator("styles")
    @classmethod
    def _holds_pictures(cls, value: Path | None) -> Path | None:
        if value is not None:
            empty = [kind for kind in (STREET, ABOVE) if not _pictures(value / kind)]
            if empty:
                raise ValueError(f"no JPEG or PNG in {', '.join(str(value / kind) for kind in empty)}; add some")
        return value


def photograph_street(image: UInt8, rng: np.random.Generator, config: PhotographyConfig) -> UInt8:
    """A panorama, uint8 (H, W, 3), as another camera would have taken it."""
    chance = rng.random(9)  # all at once: one option's probability does not shift the others' random numbers
    steps: list[tuple[bool, Callable[[Float32], Float32]]] = [
        (chance[0] < config.passers, lambda x: _passers(x, rng)),
        (chance[1] < config.vehicle, lambda x: _vehicle(x, rng)),
        (chance[2] < config.weather, lambda x: _weather(x, rng)),
        (chance[3] < config.lens, lambda x: _lens(x, rng)),
        *_both(chance[4:8], STREET, rng, config),
        (chance[8] < config.motion, lambda x: blur_along(x, int(rng.integers(2, 7)))),
        (rng.random() < config.tone, lambda x: _tone(x, rng)),
    ]
    return _apply(image, steps)


def photograph_from_above(image: UInt8, rng: np.random.Generator, config: PhotographyConfig) -> UInt8:
    """A tile, uint8 (L, L, 3), as another provider would have made it."""
    chance = rng.random(6)
    steps: list[tuple[bool, Callable[[Float32], Float32]]] = [
        (chance[0] < config.shadows, lambda x: _shadows(x, rng)),
        *_both(chance[1:5], ABOVE, rng, config),
        (chance[5] < config.imagery, lambda x: _imagery(x, rng)),
        (rng.random() < config.tone, lambda x: _tone(x, rng)),
    ]
    return _apply(image, steps)


def _apply(image: UInt8, steps: list[tuple[bool, Callable[[Float32], Float32]]]) -> UInt8:
    chosen = [step for wanted, step in steps if wanted]
    if not chosen:
        return image
    values: Float32 = image.astype(np.float32) / np.float32(255)
    for step in chosen:
        values = step(values)
    return np.clip(values * 255 + 0.5, 0, 255).astype(np.uint8)


def _both(
    chance: np.ndarray, kind: str, rng: np.random.Generator, config: PhotographyConfig
) -> list[tuple[bool, Callable[[Float32], Float32]]]:
    return [
        (bool(chance[0] < config.convolution), lambda x: _convolved(x, rng)),
        (bool(chance[1] < config.channels), lambda x: _channels(x, rng)),
        (bool(chance[2] < config.fourier), lambda x: _fourier(x, rng, config.styles, kind)),
        (bool(chance[3] < config.statistics), lambda x: _statistics(x, rng, config.styles, kind)),
    ]


# -- single changes, each a function of its image and its strength ------------------------------------------------


def toned(image: Float32, gamma: float, middle: float, contrast: float, black: float, white: float) -> Float32:
    """x^gamma, contrast about `middle`, then 0 … 1 mapped to black … white. Values are clipped to 0 … 1 between."""
    curved = np.clip((np.clip(image, 0, 1) ** gamma - middle) * contrast + middle, 0, 1)
    return np.asarray(black + curved * (white - black), np.float32)


def mixed_channels(image: Float32, matrix: Float32) -> Float32:
    """Each pixel's colour times a (3, 3) matrix: out = matrix · colour."""
    return np.asarray(image @ np.asarray(matrix, np.float32).T, np.float32)


def with_amplitudes(image: Float32, other: Float32, reach: float, share: float) -> Float32:
    """Fourier amplitudes up to `reach` (cycles a pixel, both axes) mixed with those of another image; phases stay.

    other: of the image's shape. share 0: the image's own, 1: the other's (Yang and Soatto, CVPR 2020).
    """
    own, theirs = (scipy.fft.rfft2(x, axes=(0, 1)) for x in (image, other))
    rows, columns = scipy.fft.fftfreq(image.shape[0]), scipy.fft.rfftfreq(image.shape[1])
    low = (np.abs(rows)[:, None] <= reach) & (columns[None] <= reach)
    amplitude = np.abs(own)
    factor = np.ones_like(amplitude)
    factor[low] = 1 - share + share * np.abs(theirs)[low] / np.maximum(amplitude[low], 1e-6)
    return np.asarray(scipy.fft.irfft2(own * factor, s=image.shape[:2], axes=(0, 1)), np.float32)


def with_slope(image: Float32, slope: float) -> Float32:
    """Fourier amplitudes times (frequency in units of the mean one) ^ slope, the mean colour kept."""
    own = scipy.fft.rfft2(image, axes=(0, 1))
    rows, columns = scipy.fft.fftfreq(image.shape[0]), scipy.fft.rfftfreq(image.shape[1])
    frequency = np.hypot(rows[:, None], columns[None]).astype(np.float32)
    frequency /= frequency.mean()
    frequency[0, 0] = 1.0
    return np.asarray(scipy.fft.irfft2(own * (frequency**slope)[..., None], s=image.shape[:2], axes=(0, 1)), np.float32)


def with_statistics(image: Float32, mean: Float64, deviation: Float64, share: float) -> Float32:
    """Mean and standard deviation of each channel, (3,), moved by `share` of the way to those that are given."""
    own_mean, own_deviation = _statistics_of(image)
    own_deviation = own_deviation + 1e-4
    new_mean = own_mean + share * (mean - own_mean)
    factor = (own_deviation + share * (deviation - own_deviation)) / own_deviation
    return np.asarray(image * factor.astype(np.float32) + (new_mean - own_mean * factor).astype(np.float32))


def _statistics_of(image: Float32) -> tuple[Float64, Float64]:
    """Mean and standard deviation of each channel, float64 (3,) each."""
    mean, deviation = cv2.meanStdDev(image)
    return mean[:, 0], deviation[:, 0]


def convolved(image: Float32, kernel: Float32, share: float) -> Float32:
    """Blend with a convolution over space and channels. kernel: (k, k, 3 in, 3 out); the edge pixels are repeated."""
    height, width = image.shape[:2]
    reach = kernel.shape[0] // 2
    wide = cv2.copyMakeBorder(image, reach, reach, reach, reach, cv2.BORDER_REPLICATE)
    out = (1 - share) * image
    for row, column in np.ndindex(kernel.shape[:2]):
        out += wide[row : row + height, column : column + width] @ (share * kernel[row, column])
    return out


def blur_along(image: Float32, columns: int) -> Float32:
    """Mean over `columns` neighbouring columns, around the circle."""
    wide = np.concatenate([image[:, -columns:], image, image[:, :columns]], axis=1)
    return np.asarray(cv2.blur(wide, (columns, 1))[:, columns:-columns], np.float32)


def coarser(image: Float32, factor: float) -> Float32:
    """What is left of the image at a ground sampling `factor` times as coarse, at the same size."""
    height, width = image.shape[:2]
    small = cv2.resize(image, (round(width / factor), round(height / factor)), interpolation=cv2.INTER_AREA)
    return np.asarray(cv2.resize(small, (width, height), interpolation=cv2.INTER_LINEAR), np.float32)


def hide_unseen(image: UInt8, seen: Bool) -> UInt8:
    """The panorama with what no camera sees filled as `prepare_panorama` fills it. seen: bool (H, W)."""
    hidden = image.copy()
    hidden[~seen] = FILL_RGB
    return hidden


def draw_seen(rng: np.random.Generator, height: int, width: int) -> Bool:
    """What the cameras of some vehicle see of a panorama: bool (height, width), never nothing.

    One field of 80° to 300°; or four to seven cameras around, up to half of them dead, with gaps where their fields are
    narrow. With half of either, or alone (40%), only a part of the elevations, as surround cameras have: its upper
    limit 10% to 35% below the panorama's upper edge, its lower one as far above the lower edge (with −45° to 45°: 13.5°
    to 36° above and below the horizon).
    """
    seen = np.ones((height, width), np.bool_)
    azimuth = (np.arange(width) + 0.5) / width
    layout = rng.random()
    if layout < 0.3:
        field, first = rng.uniform(80, 300) / 360, rng.random()
        seen &= ((azimuth - first) % 1.0 < field)[None]
    elif layout < 0.6:
        cameras = int(rng.integers(4, 8))
        field = rng.uniform(0.75, 1.15) / cameras
        first = rng.random()
        alive = rng.permutation(cameras)[: cameras - int(rng.integers(0, cameras // 2 + 1))]
        columns = np.zeros(width, np.bool_)
        for camera in alive:
            columns |= np.abs((azimuth - first - camera / cameras + 0.5) % 1.0 - 0.5) < field / 2
        seen &= columns[None]
    if layout >= 0.6 or rng.random() < 0.5:
        top, bottom = rng.uniform(0.1, 0.35) * height, rng.uniform(0.65, 0.9) * height
        rows = np.arange(height) + 0.5
        seen &= ((rows > top) & (rows < bottom))[:, None]
    return seen


# -- random strengths ---------------------------------------------------------------------------------------------


def _tone(image: Float32, rng: np.random.Generator) -> Float32:
    black = rng.uniform(0, 0.25) * (rng.random() < 0.35)
    white = 1 - rng.uniform(0, 0.3) * (rng.random() < 0.35)
    gamma, contrast = np.exp(rng.normal(0, 0.4)), np.exp(rng.normal(0.1, 0.35))
    return toned(image, float(gamma), float(rng.uniform(0.3, 0.7)), float(contrast), float(black), float(white))


def _channels(image: Float32, rng: np.random.Generator) -> Float32:
    matrix = np.eye(3) + rng.normal(0, 0.22, (3, 3))
    matrix /= np.maximum(matrix.sum(axis=1, keepdims=True), 0.3)  # grey stays about grey
    grey = np.array([0.299, 0.587, 0.114])
    saturation = 0.0 if rng.random() < 0.15 else rng.uniform(0.1, 1.3)
    mixed = saturation * matrix + (1 - saturation) * grey[None].repeat(3, axis=0)
    return mixed_channels(image, mixed.astype(np.float32))


def _fourier(image: Float32, rng: np.random.Generator, styles: Path | None, kind: str) -> Float32:
    if styles is None:
        return with_slope(image, float(rng.uniform(-0.4, 0.4)))
    other = _style(styles, kind, rng, image.shape[:2])
    return with_amplitudes(image, other, float(rng.uniform(0.02, 0.25)), float(rng.uniform(0.2, 0.9)))


def _statistics(image: Float32, rng: np.random.Generator, styles: Path | None, kind: str) -> Float32:
    if styles is None:
        mean = np.clip(rng.uniform(0.15, 0.7) + rng.normal(0, 0.05, 3), 0.02, 0.98)
        deviation = rng.uniform(0.08, 0.32) * np.exp(rng.normal(0, 0.1, 3))
    else:
        other = _style(styles, kind, rng, image.shape[:2])
        mean, deviation = _statistics_of(other)
    return with_statistics(image, mean, deviation, float(rng.uniform(0.3, 1.0)))


def _convolved(image: Float32, rng: np.random.Generator) -> Float32:
    kernel = rng.standard_normal((3, 3, 3, 3), np.float32)
    kernel /= np.sqrt((kernel**2).sum(axis=(0, 1, 2), keepdims=True))
    changed = convolved(image, kernel, float(rng.uniform(0.2, 0.7)))
    return with_statistics(changed, *_statistics_of(image), 1.0)


def _lens(image: Float32, rng: np.random.Generator) -> Float32:
    height, width = image.shape[:2]
    azimuth = (np.arange(width) + 0.5) / width
    if rng.random() < 0.6:  # each of several cameras exposes for itself
        cameras = int(rng.integers(2, 7))
        gains = np.exp(rng.normal(0, 0.2, cameras))
        place = ((azimuth - rng.random()) % 1.0) * cameras
        blend = np.clip((place % 1.0) / rng.uniform(0.05, 0.5), 0, 1)
        which = place.astype(int) % cameras
        image = image * (gains[which - 1] * (1 - blend) + gains[which] * blend)[None, :, None].astype(np.float32)
    if rng.random() < 0.3:  # the sun in the lens
        row, column = rng.uniform(0, 0.5) * height, rng.random()
        dx = (np.abs(azimuth - column + 0.5) % 1.0 - 0.5) * width
        dy = np.arange(height) - row
        glow = np.exp(-np.hypot(dy[:, None], dx[None]) / (rng.uniform(0.05, 0.3) * height))
        image = image + (rng.uniform(0.2, 0.9) * glow)[..., None].astype(np.float32)
    if rng.random() < 0.4:  # red and blue a pixel up and down
        image = np.stack([np.roll(image[..., 0], int(rng.integers(-1, 2)), axis=0), image[..., 1], image[..., 2]], -1)
    return np.asarray(image, np.float32)


def _weather(image: Float32, rng: np.random.Generator) -> Float32:
    if rng.random() < 0.4:  # night: little light, of one colour, and noise
        tint = np.array([(1.0, 0.8, 0.5), (0.7, 0.8, 1.1), (0.9, 0.9, 0.9)][int(rng.integers(3))])
        noise = rng.standard_normal(image.shape, np.float32) * np.float32(rng.uniform(0.01, 0.05))
        return np.asarray(image * (rng.uniform(0.2, 0.5) * tint).astype(np.float32) + noise, np.float32)
    # Overcast or rain: the sky becomes one grey, its light flattens the rest, wet ground shines.
    height = image.shape[0]
    grey, share = rng.uniform(0.5, 0.95), rng.uniform(0.2, 0.7)
    mean, deviation = _statistics_of(image)
    flat = with_statistics(image, mean, 0.7 * deviation, 1.0)
    bright = flat.max(axis=2, keepdims=True) > flat[: height // 3].mean()
    bright[height // 2 :] = False
    sky = np.where(bright, np.float32(1 - share) * flat + np.float32(share * grey), flat)
    shine = np.zeros((height, 1, 1), np.float32)
    shine[height // 2 :, 0, 0] = np.linspace(rng.uniform(0, 0.3), 0, height - height // 2)
    return np.asarray(sky * (1 - shine) + shine * np.float32(grey), np.float32)


def _vehicle(image: Float32, rng: np.random.Generator) -> Float32:
    """A roof with a soft outline that a few sines draw, of one colour with a gradient."""
    height, width = image.shape[:2]
    azimuth = np.arange(width) / width * 2 * np.pi
    edge = rng.uniform(0.78, 0.97) + sum(
        rng.normal(0, 0.03) * np.sin(k * azimuth + rng.uniform(0, 2 * np.pi)) for k in (1, 2, 3, 4)
    )
    rows = (np.arange(height) + 0.5) / height
    cover = np.clip((rows[:, None] - edge[None]) * height / 1.5, 0, 1)[..., None]
    colour = rng.uniform(0.02, 0.95) + rng.normal(0, 0.08, 3)
    shade = colour * (1 + 0.3 * np.sin(azimuth + rng.uniform(0, 2 * np.pi)))[None, :, None]
    return np.asarray(image * (1 - cover) + cover * np.clip(shade, 0, 1), np.float32)


def _passers(image: Float32, rng: np.random.Generator) -> Float32:
    """Vans and people: rounded boxes that stand below the horizon and reach above it, of one or two colours."""
    image = image.copy()
    height, width = image.shape[:2]
    for _ in range(int(rng.integers(1, 5))):
        wide, tall = int(rng.uniform(0.01, 0.12) * width) + 1, int(rng.uniform(0.08, 0.35) * height) + 1
        top = max(0, int(rng.uniform(0.38, 0.55) * height))
        left = int(rng.integers(width))
        columns = (left + np.arange(wide)) % width
        colour = np.clip(rng.uniform(0.05, 0.9) + rng.normal(0, 0.15, 3), 0, 1)
        split = top + int(tall * rng.uniform(0.2, 0.6))
        image[top : top + tall, columns] = colour
        image[top:split, columns[wide // 6 : wide - wide // 6]] = colour * rng.uniform(0.1, 0.8)
    return image


def _imagery(image: Float32, rng: np.random.Generator) -> Float32:
    if rng.random() < 0.7:
        image = coarser(image, float(rng.uniform(1.0, 1.9)))
    if rng.random() < 0.4:
        smooth = cv2.GaussianBlur(image, (0, 0), float(rng.uniform(0.7, 1.6)))
        image = np.asarray(image + rng.uniform(0.3, 1.5) * (image - smooth), np.float32)
    if rng.random() < 0.2:  # two exposures meet along a line
        size = image.shape[0]
        turn = rng.uniform(0, 2 * np.pi)
        rows, columns = np.mgrid[:size, :size] / size - rng.uniform(0.25, 0.75)
        beyond = (rows * np.sin(turn) + columns * np.cos(turn) > 0)[..., None]
        other = toned(image, float(np.exp(rng.normal(0, 0.2))), 0.5, float(np.exp(rng.normal(0, 0.2))), 0.0, 1.0)
        image = np.where(beyond, other * np.exp(rng.normal(0, 0.08, 3)).astype(np.float32), image)
    return image


def _shadows(image: Float32, rng: np.random.Generator) -> Float32:
    """Dark quadrilaterals, sheared boxes as walls cast them, with a soft edge and a blue that the sky lends them."""
    size = image.shape[0]
    mask = np.zeros((size, size), np.float32)
    turn = rng.uniform(0, 2 * np.pi)
    for _ in range(int(rng.integers(1, 6))):
        start, along = rng.uniform(0, size, 2), rng.uniform(0, 2 * np.pi)
        side = np.array([np.cos(along), np.sin(along)]) * rng.uniform(0.1, 0.5) * size
        cast = np.array([np.cos(turn), np.sin(turn)]) * rng.uniform(0.03, 0.2) * size
        corners = np.stack([start, start + side, start + side + cast, start + cast]).round().astype(np.int32)
        cv2.fillConvexPoly(mask, corners, 1.0)
    mask = cv2.GaussianBlur(mask, (0, 0), float(rng.uniform(0.5, 1.5)))[..., None]
    depth = rng.uniform(0.3, 0.85)
    return np.asarray(image * (1 - mask * depth * np.array([1.0, 0.97, 0.9], np.float32)), np.float32)


# -- style pictures -----------------------------------------------------------------------------------------------


def _pictures(folder: Path) -> list[Path]:
    return sorted(file for file in folder.rglob("*") if file.suffix.lower() in PICTURE_ENDINGS)


@functools.lru_cache(maxsize=8)
def _read_styles(folder: Path, kind: str, height: int, width: int) -> tuple[Float32, ...]:
    """All pictures of a kind at one size, float32 (height, width, 3); read once in each process. Raises InputError."""
    return tuple(
        cv2.resize(read_image(file), (width, height), interpolation=cv2.INTER_AREA).astype(np.float32) / 255
        for file in _pictures(folder / kind)
    )


def _style(folder: Path, kind: str, rng: np.random.Generator, shape: tuple[int, ...]) -> Float32:
    """One of the pictures, mirrored half of the time."""
    pictures = _read_styles(folder, kind, shape[0], shape[1])
    picture = pictures[int(rng.integers(len(pictures)))]
    return np.ascontiguousarray(picture[:, ::-1]) if rng.random() < 0.5 else picture
