"""The model bundle: `manifest.json` and three ONNX graphs, the hand-over from training to the robot.

Graphs (network.md §1), each in one or more precisions ("fp32", "fp16"):

* ``ground_encoder``: ``image`` uint8 (N, H, W, 3) RGB → ``descriptor`` (N, C), ``f0`` … ``f3`` (N, C_l)
* ``aerial_encoder``: ``image`` uint8 (N, L, L, 3) RGB → ``descriptor`` (N, C), ``match_map`` (N, S, S, C_0),
  ``pyramid0`` … ``pyramid3`` (N, C_l, S_l, S_l)
* ``decoder``: ``f0`` … ``f3``, ``pyramid0`` … ``pyramid3`` → ``logits`` (N, P, P)

Descriptors, f's and match maps have unit length (match maps along their last axis). Cast, transposition and
normalisation of the image are inside the graphs. N is dynamic. In the fp16 graphs f's, match maps and pyramids are
float16; descriptors and logits are float32 in both.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Mapping

import numpy as np
import numpy.typing as npt

from unifygeo_ros.core.errors import BundleError
from unifygeo_ros.core.manifests import ManifestFormat

FORMAT = ManifestFormat("unifygeo-bundle", 1, "`unifygeo-train export`", "export the bundle again", BundleError)
MANIFEST_NAME = "manifest.json"
GRAPHS = ("ground_encoder", "aerial_encoder", "decoder")
PRECISIONS = ("fp32", "fp16")
LEVELS = 4
_SHA256 = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True)
class GroundSpec:
    """What the ground encoder takes.

    height, width: pixels. The width covers 360°; the rows cover the elevations from elevation_top_rad down to
    elevation_bottom_rad (edges, not pixel centres; ±π/2 is a full 2:1 panorama). columns: azimuth sectors in each f.
    """

    height: int
    width: int
    elevation_top_rad: float
    elevation_bottom_rad: float
    columns: int

    def __post_init__(self) -> None:
        if min(self.height, self.width, self.columns) < 1 or self.width % self.columns:
            raise BundleError(
                f"ground size {self.height}x{self.width} with {self.columns} columns: all must be positive and "
                "the width a multiple of the columns; export the bundle again"
            )
        if not -math.pi / 2 - 1e-9 <= self.elevation_bottom_rad < self.elevation_top_rad <= math.pi / 2 + 1e-9:
            raise BundleError(
                f"ground elevations {self.elevation_bottom_rad} … {self.elevation_top_rad} rad are not inside ±π/2 in "
                "rising order; export the bundle again"
            )


@dataclass(frozen=True)
class AerialSpec:
    """What the aerial encoder takes: north-up squares of size × size pixels at metres_per_pixel."""

    size: int
    metres_per_pixel: float

    @property
    def side_m(self) -> float:
        return self.size * self.metres_per_pixel


def log_odds(belief: npt.ArrayLike) -> npt.NDArray[np.float64]:
    """ln(b / (1 − b)) of beliefs 0 … 1 of any shape, cut at ±9.2 (one in ten thousand): a belief holds no more than
    that."""
    clipped = np.clip(np.asarray(belief, np.float64), 1e-4, 1 - 1e-4)
    return np.asarray(np.log(clipped / (1 - clipped)))


@dataclass(frozen=True)
class Confidence:
    """How sure an answer is, given its belief among the candidates and its score: they may all be wrong.

    P(right) = 1 / (1 + exp(−(bias + belief · log_odds(b) + score · s))). As it stands: as sure as the belief.
    """

    bias: float = 0.0
    belief: float = 1.0
    score: float = 0.0

    def __post_init__(self) -> None:
        if not all(map(math.isfinite, (self.bias, self.belief, self.score))) or min(self.belief, self.score) < 0:
            raise BundleError(f"{self}: must be finite, belief and score at least 0; calibrate again")

    def probability(self, belief: float, score: float) -> float:
        exponent = self.bias + self.belief * float(log_odds(belief)) + self.score * score
        return 1 / (1 + math.exp(-min(max(exponent, -50.0), 50.0)))


@dataclass(frozen=True)
class Calibration:
    """Constants fitted on validation data, never on test data.

    distribution_temperature: D = softmax(logits / T).
    tile_temperature: belief in the candidate tiles = softmax(re-ranking score / T).
    heading_temperature: belief in the rolls of the heading search = softmax(max M⁰ / T).
    minimum_score: re-ranking score under which the place is not on the map.
    covariance_scale: factor on the covariance of D about the answer.
    position_floor_m: standard deviation added in quadrature to each axis (georeference, what D does not know of).
    heading_lever_m: metres by which a heading error of one radian moves the answer, as a standard deviation.
    confidence, searched_confidence: of answers of images with a heading, and of those whose heading was searched.
    """

    distribution_temperature: float = 1.0
    tile_temperature: float = 0.05
    heading_temperature: float = 0.05
    minimum_score: float = -2.0
    covariance_scale: float = 1.0
    position_floor_m: float = 0.5
    heading_lever_m: float = 5.0
    confidence: Confidence = Confidence()
    searched_confidence: Confidence = Confidence()

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if isinstance(value, Confidence):
                continue
            if not (math.isfinite(value) and (value > 0 or field.name == "minimum_score")):
                limit = "finite" if field.name == "minimum_score" else "finite and above 0"
                raise BundleError(f"calibration.{field.name} is {value}, must be {limit}; calibrate again")


def calibration_from_json(raw: Mapping[str, Any]) -> Calibration:
    """Inverse of `dataclasses.asdict`. Raises TypeError for what is no calibration, BundleError for bad values."""
    confidences = {name: Confidence(**value) for name, value in raw.items() if name.endswith("confidence")}
    return Calibration(**{**raw, **confidences})


@dataclass(frozen=True)
class GraphFile:
    """One ONNX file of the bundle: name inside the bundle, SHA-256 of its bytes.

    data_file, data_sha256: the same of the file with the graph's weights, where they are not in the ONNX file itself
    (ONNX external data); graphs may share one.
    """

    file: str
    sha256: str
    data_file: str | None = None
    data_sha256: str | None = None

    @property
    def files(self) -> tuple[tuple[str, str], ...]:
        """Every file that the graph needs, as (name, SHA-256)."""
        if self.data_file is None or self.data_sha256 is None:
            return ((self.file, self.sha256),)
        return ((self.file, self.sha256), (self.data_file, self.data_sha256))


@dataclass(frozen=True)
class BundleManifest:
    """All that the robot must know about a model. See docs/reference/bundle_format.md.

    pyramid: (channels, rows = columns) of pyramid0 … pyramid3. distribution_size: rows = columns of the logits.
    mean, std: of the RGB values scaled to 0 … 1 (already inside the graphs; for information and training).
    heading_convention: the azimuth that the centre column of a training panorama faces; only "north_centre" exists.
    weights_sha256: identity of the weights, the same in every precision; engines and indexes are tied to it.
    network: the training package's network config, so that a checkpoint can be rebuilt.
    """

    name: str
    ground: GroundSpec
    aerial: AerialSpec
    descriptor_dim: int
    pyramid: tuple[tuple[int, int], ...]
    distribution_size: int
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    weights_sha256: str
    graphs: Mapping[str, Mapping[str, GraphFile]]  # graph name → precision → file
    calibration: Calibration
    licence: str
    trained_on: str
    network: Mapping[str, Any]
    channel_order: str = "rgb"
    heading_convention: str = "north_centre"
    format: str = FORMAT.name
    format_version: int = FORMAT.version

    @property
    def match_size(self) -> int:
        """Rows = columns of the match maps, S."""
        return self.pyramid[0][1]

    @property
    def match_channels(self) -> int:
        """Channels of the match maps, C_0."""
        return self.pyramid[0][0]

    def to_json(self) -> str:
        return json.dumps(dataclasses.asdict(self), indent=2, sort_keys=True, allow_nan=False) + "\n"

    @classmethod
    def from_json(cls, text: str, source: str) -> BundleManifest:
        """Parse and check a manifest. source: the file's name, for messages. Raises BundleError."""
        raw = FORMAT.parse(text, source)
        FORMAT.check_fields(raw, cls, source)
        try:
            raw["ground"] = GroundSpec(**raw["ground"])
            raw["aerial"] = AerialSpec(**raw["aerial"])
            raw["calibration"] = calibration_from_json(raw["calibration"])
            raw["pyramid"] = tuple((channels, size) for channels, size in raw["pyramid"])
            raw["mean"] = tuple(map(float, raw["mean"]))
            raw["std"] = tuple(map(float, raw["std"]))
            raw["graphs"] = {
                graph: {precision: GraphFile(**entry) for precision, entry in files.items()}
                for graph, files in raw["graphs"].items()
            }
            manifest = cls(**raw)
            problems = manifest._problems()
        except BundleError as error:  # of one of the parts, which do not know the file's name
            raise BundleError(f"{source}: {error}") from error
        except (TypeError, ValueError, AttributeError, OverflowError) as error:
            raise BundleError(f"{source}: malformed ({error}); export the bundle again") from error
        if problems:
            raise BundleError(f"{source}: {'; '.join(problems)}; export the bundle again")
        return manifest

    def _problems(self) -> list[str]:
        problems = [
            f"{name} is {value!r}, must be a whole number above 0"
            for name, value in (
                ("ground.height", self.ground.height),
                ("ground.width", self.ground.width),
                ("ground.columns", self.ground.columns),
                ("aerial.size", self.aerial.size),
                ("descriptor_dim", self.descriptor_dim),
                ("distribution_size", self.distribution_size),
            )
            if type(value) is not int or value < 1
        ]
        problems += [
            f"{name} is not a text"
            for name in ("name", "licence", "trained_on")
            if not isinstance(getattr(self, name), str)
        ]
        if not _SHA256.fullmatch(self.weights_sha256):
            problems.append(f"weights_sha256 is {self.weights_sha256!r}, not a SHA-256")
        if not isinstance(self.network, dict):
            problems.append("network is not a mapping")
        if set(self.graphs) != set(GRAPHS):
            problems.append(f"graphs {sorted(self.graphs)} instead of {sorted(GRAPHS)}")
        elif not set.intersection(*(set(files) for files in self.graphs.values())):
            problems.append("no precision that all three graphs have")
        for graph, files in self.graphs.items():
            for precision, entry in files.items():
                if precision not in PRECISIONS:
                    problems.append(f"{graph} in precision {precision!r}, only {', '.join(PRECISIONS)} exist")
                if (entry.data_file is None) != (entry.data_sha256 is None):
                    problems.append(f"{graph} {precision} must have both data_file and data_sha256, or neither")
                for file, sha256 in entry.files:
                    if not _SHA256.fullmatch(sha256):
                        problems.append(f"{graph} {precision} has sha256 {sha256!r}, not a SHA-256")
                    # A name, not a path: nothing outside the bundle is ever opened.
                    if not isinstance(file, str) or file in ("", ".", "..") or set(file) & set("/\\\0"):
                        problems.append(f"{graph} {precision} is in {file!r}, which is not a file of the bundle")
        if len(self.pyramid) != LEVELS:
            problems.append(f"{len(self.pyramid)} pyramid levels instead of {LEVELS}")
        for channels, size in self.pyramid:
            whole = type(channels) is int and type(size) is int
            if not whole or channels < 1 or size < 1 or channels % self.ground.columns:
                problems.append(
                    f"pyramid level {channels} @ {size}: both must be whole numbers above 0, and the channels a "
                    f"multiple of the {self.ground.columns} columns"
                )
        if len(self.mean) != 3 or len(self.std) != 3:
            problems.append("mean and std must have 3 values each")
        elif not all(map(math.isfinite, self.mean + self.std)) or min(self.std) <= 0:
            problems.append(f"mean {self.mean} and std {self.std} must be finite, and std above 0")
        if self.channel_order != "rgb":
            problems.append(f"channel_order {self.channel_order!r} instead of 'rgb'")
        if self.heading_convention != "north_centre":
            problems.append(f"heading_convention {self.heading_convention!r} instead of 'north_centre'")
        if not (math.isfinite(self.aerial.metres_per_pixel) and self.aerial.metres_per_pixel > 0):
            problems.append(f"aerial.metres_per_pixel {self.aerial.metres_per_pixel}, must be above 0")
        return problems


@dataclass(frozen=True)
class ModelBundle:
    """A bundle folder whose manifest has been read and whose graph files exist with the right checksums."""

    path: Path
    manifest: BundleManifest

    def graph_path(self, graph: str, precision: str) -> Path:
        """File of a graph. Raises BundleError if the bundle does not hold that precision."""
        files = self.manifest.graphs[graph]
        if precision not in files:
            raise BundleError(
                f"{self.path}: {graph} is not there in {precision}, only in {sorted(files)}; "
                "export it or choose another"
            )
        return self.path / files[precision].file


def load_bundle(path: Path | str) -> ModelBundle:
    """Open a bundle folder and verify every file of it. Raises BundleError."""
    folder = Path(path)
    manifest_path = folder / MANIFEST_NAME
    try:
        text = manifest_path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise BundleError(f"{manifest_path}: cannot be read ({error}); give the folder of a model bundle") from error
    manifest = BundleManifest.from_json(text, str(manifest_path))
    graph_files = (entry for files in manifest.graphs.values() for entry in files.values())
    for name, sha256 in sorted({pair for entry in graph_files for pair in entry.files}):  # shared files once
        file = folder / name
        try:
            digest = sha256_of_file(file)
        except OSError as error:
            raise BundleError(f"{file}: cannot be read ({error}); copy the whole bundle again") from error
        if digest != sha256:
            raise BundleError(
                f"{file}: SHA-256 is {digest[:12]}…, the manifest says {sha256[:12]}…; copy the bundle again"
            )
    return ModelBundle(folder, manifest)


def sha256_of_file(path: Path) -> str:
    """Hexadecimal SHA-256 of a file's bytes."""
    with path.open("rb") as stream:
        digest = hashlib.sha256()
        while block := stream.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()
