"""The model bundle: `manifest.json` and three ONNX graphs, the hand-over from training to the robot.

Graphs (docs/reference/bundle_format.md), each in one or more precisions ("fp32", "fp16", "int8"):

* ``ground_encoder``: ``image`` uint8 (N, H, W, 3) RGB → ``descriptor`` (N, C), ``f0`` … ``f3`` (N, C_l)
* ``aerial_encoder``: ``image`` uint8 (N, L, L, 3) RGB → ``descriptor`` (N, C), ``match_map`` (N, S, S, C_0),
  ``pyramid0`` … ``pyramid3`` (N, C_l, S_l, S_l)
* ``decoder``: ``f0`` … ``f3``, ``pyramid0`` … ``pyramid3`` → ``logits`` (N, P, P)

Descriptors, f's and match maps have unit length (match maps along their last axis). Cast, transposition and
normalisation of the image are inside the graphs. N is dynamic. In the fp16 graphs f's, match maps and pyramids are
float16; everything else is float32, in the int8 graphs too, which quantise inside.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import logging
import math
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Mapping

import numpy as np
import numpy.typing as npt

from unifygeo_ros.core.arrays import Float64
from unifygeo_ros.core.errors import BundleError
from unifygeo_ros.core.files import write_text
from unifygeo_ros.core.manifests import CHECKSUM, ManifestFormat
from unifygeo_ros.inference.familiarity import Familiarity, UsualFeatures

FORMAT = ManifestFormat(
    "unifygeo-bundle",
    2,
    "`unifygeo-train export`",
    "export the bundle again",
    BundleError,
    upgrade="it has no checksum; rewrite it with `unifygeo bundle migrate BUNDLE`, or export the bundle again",
)
MANIFEST_NAME = "manifest.json"
GRAPHS = ("ground_encoder", "aerial_encoder", "decoder")
FLOAT_PRECISIONS = ("fp32", "fp16")
"""What is exported of a network."""
PRECISIONS = (*FLOAT_PRECISIONS, "int8")
"""What a bundle may hold. int8 graphs are made of fp32 graphs and data (`unifygeo-train export --quantise`)."""
LEVELS = 4
GROUND_FEATURES = tuple(f"f{level}" for level in range(LEVELS))
"""Names of the ground encoder's features, which the decoder takes."""
PYRAMID = tuple(f"pyramid{level}" for level in range(LEVELS))
"""Names of the aerial encoder's maps, which the decoder takes."""
_SHA256 = re.compile(r"[0-9a-f]{64}")
_EXTERNAL_DATA = re.compile(rb"\x0a\x08location\x12(.)", re.DOTALL)
"""The start of an ONNX external-data entry: the key "location" and the length of the file name that follows."""

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class GroundSpec:
    """The input of the ground encoder."""

    height: int
    """Pixels."""
    width: int
    """Pixels; they cover 360°."""
    elevation_top_rad: float
    """Elevation of the image's upper edge (not of its first row's centre); π/2 in a full 2:1 panorama."""
    elevation_bottom_rad: float
    """Elevation of the image's lower edge."""
    columns: int
    """Azimuth sectors in each f."""

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
    """The input of the aerial encoder: north-up squares."""

    size: int
    """Rows = columns, pixels."""
    metres_per_pixel: float

    @property
    def side_m(self) -> float:
        return self.size * self.metres_per_pixel


def log_odds(belief: npt.ArrayLike) -> Float64:
    """ln(b / (1 − b)) of beliefs 0 … 1 of any shape, limited to ±9.2, a probability of one in ten thousand."""
    clipped = np.clip(np.asarray(belief, np.float64), 1e-4, 1 - 1e-4)
    return np.asarray(np.log(clipped / (1 - clipped)))


@dataclass(frozen=True)
class Clues:
    """What an observation shows of whether its answer is right."""

    belief: float
    """Share of the candidates' belief that agrees with the answer, 0 … 1."""
    score: float
    """Re-ranking score of the best candidate."""
    spread: float = 0.0
    """Differential entropy of its D: ln of the area in m² over which D is spread."""
    agreeing: float = 0.0
    """How many other candidates match best where the answer is: overlapping tiles that show the same place."""
    unfamiliarity: float = 0.0
    """How far panorama and best tile are beyond what is usual (`Distances.unfamiliarity`)."""
    blind_azimuth: float = 0.0
    """Share of all azimuths in which nothing was seen, 0 … 1 (`Seen`)."""
    blind_elevation: float = 0.0
    """Share of the elevations that the network takes in and that was not seen in the other azimuths, 0 … 1."""


@dataclass(frozen=True)
class Confidence:
    """Odds that an answer is right, against one way in which it may be wrong (a logistic regression).

    ln(odds) = t · shown + (1 − t) · unseen_bias, where
    shown = bias + belief_weight · ln(belief / (1 − belief)) + score_weight · score + spread_weight · spread
    + agreeing_weight · agreeing + unfamiliar_weight · unfamiliarity + azimuth_weight · blind_azimuth
    + elevation_weight · blind_elevation, and
    t = exp(−azimuth_fade · blind_azimuth − elevation_fade · blind_elevation).
    With the default weights the probability is the belief itself.

    An image of which less is seen has a lower score and a wider D at the right place, too. The last two weights, of any
    sign, shift the border between right and wrong; t is how much the clues still tell. Where they tell nothing the odds
    are those of unseen_bias.
    """

    bias: float = 0.0
    belief_weight: float = 1.0
    score_weight: float = 0.0
    spread_weight: float = 0.0
    agreeing_weight: float = 0.0
    unfamiliar_weight: float = 0.0
    azimuth_weight: float = 0.0
    elevation_weight: float = 0.0
    azimuth_fade: float = 0.0
    elevation_fade: float = 0.0
    unseen_bias: float = 0.0

    def __post_init__(self) -> None:
        falling = (-self.spread_weight, -self.unfamiliar_weight)
        fades = (self.azimuth_fade, self.elevation_fade)
        weights = (self.belief_weight, self.score_weight, self.agreeing_weight, *falling, *fades)
        of_any_sign = (self.bias, self.azimuth_weight, self.elevation_weight, self.unseen_bias)
        if not all(map(math.isfinite, (*of_any_sign, *weights))) or min(weights) < 0:
            raise BundleError(
                f"{self}: must be finite, spread_weight and unfamiliar_weight at most 0 and the other weights at least "
                "0; calibrate again"
            )

    def log_odds(self, clues: Clues) -> float:
        """ln(odds) of one answer, limited to ±50."""
        shown = (
            self.bias
            + self.belief_weight * float(log_odds(clues.belief))
            + self.score_weight * clues.score
            + self.spread_weight * clues.spread
            + self.agreeing_weight * clues.agreeing
            + self.unfamiliar_weight * clues.unfamiliarity
            + self.azimuth_weight * clues.blind_azimuth
            + self.elevation_weight * clues.blind_elevation
        )
        trust = math.exp(-self.azimuth_fade * clues.blind_azimuth - self.elevation_fade * clues.blind_elevation)
        return min(max(trust * shown + (1 - trust) * self.unseen_bias, -50.0), 50.0)


MISSING_PARTS = ("azimuth_weight", "elevation_weight", "azimuth_fade", "elevation_fade", "unseen_bias")
"""The constants of a `Confidence` that say what it means that parts were not seen; 0 where that is not known."""

ALWAYS_ON_MAP = Confidence(bias=50.0, belief_weight=0.0)
"""Of a bundle that knows nothing of places off the map."""


@dataclass(frozen=True)
class Calibration:
    """Constants fitted on validation data, never on test data. The defaults are rough guesses."""

    distribution_temperature: float = 1.0
    """D = softmax(logits / T)."""
    tile_temperature: float = 0.05
    """Belief in the candidate tiles = softmax(re-ranking score / T)."""
    heading_temperature: float = 0.05
    """Belief in the shifts of the heading search = softmax(max M⁰ / T)."""
    minimum_score: float = -2.0
    """Re-ranking score under which the place is taken as not on the map."""
    covariance_scale: float = 1.0
    """Factor on the covariance of D about the answer."""
    position_floor_m: float = 0.5
    """Standard deviation added in quadrature to each axis, for errors that D does not contain (georeference)."""
    heading_lever_m: float = 5.0
    """Metres by which a heading error of one radian moves the answer, as a standard deviation."""
    elevation_widening: float = 0.0
    """How an answer's covariance grows with the elevations that were not seen (`widening`): D is as narrow without
    them, but lies further off. Without some azimuths D itself is wider."""
    confidence: Confidence = Confidence()
    """Right against a wrong place on the map, of answers to images with a heading."""
    searched_confidence: Confidence = Confidence()
    """The same for images whose heading was searched."""
    on_map_confidence: Confidence = ALWAYS_ON_MAP
    """Right against a place that is not on the map, where half of the images are, with a heading."""
    searched_on_map_confidence: Confidence = ALWAYS_ON_MAP
    """The same for images whose heading was searched."""
    near_on_map_confidence: Confidence | None = None
    """On the map, right or not, against off it, where half of the images are, of images with a heading that are looked
    for near a place only; None: not known, in bundles of before."""
    familiarity: Familiarity | None = None
    """What the pictures were like that all this was fitted on; None: not known, in bundles of before."""

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if value is None or isinstance(value, Confidence | Familiarity):
                continue
            holds, limit = value > 0, "finite and above 0"
            if field.name == "minimum_score":
                holds, limit = True, "finite"
            elif field.name == "elevation_widening":
                holds, limit = value >= 0, "finite and at least 0"
            if not (math.isfinite(value) and holds):
                raise BundleError(f"calibration.{field.name} is {value}, must be {limit}; calibrate again")

    def widening(self, blind_elevation: float) -> float:
        """Factor on the covariance of an answer, 1 where all elevations were seen.

        It is exp(elevation_widening · blind_elevation).

        Args:
            blind_elevation: as in `Clues`.
        """
        return math.exp(self.elevation_widening * blind_elevation)

    def wrong_probabilities(self, clues: Clues, *, searched: bool, on_map_prior: float) -> tuple[float, float]:
        """How probably an answer is wrong, and which part of that is that its place is not on the map.

        With the odds a of right against a wrong place on the map, b of right against not on the map where half of the
        images are, and the prior π: right : wrong : not on the map = 1 : 1/a : (1 − π) / (π b).

        Args:
            clues: Of the answer.
            searched: Whether the heading was searched.
            on_map_prior: π, the share of the images that are taken on the map; above 0, at most 1.
        """
        wrong = math.exp(-(self.searched_confidence if searched else self.confidence).log_odds(clues))
        on_map = self.searched_on_map_confidence if searched else self.on_map_confidence
        outside = (1 - on_map_prior) / on_map_prior * math.exp(-on_map.log_odds(clues))
        total = 1 + wrong + outside
        return (wrong + outside) / total, outside / total

    def place_log_odds(self, clues: Clues) -> float:
        """ln of the odds that an image with a heading shows a place on the map against none.

        For a bundle that knows nothing of places off the map: the right place against a wrong one.

        Args:
            clues: of the answer.
        """
        known = self.confidence if self.on_map_confidence == ALWAYS_ON_MAP else self.on_map_confidence
        return known.log_odds(clues)

    def outside_ratio(self, clues: Clues, *, searched: bool, near: bool = False) -> float:
        """How much likelier an image with these clues is off the map than on it.

        Args:
            clues: of the answer.
            searched: whether the heading was searched.
            near: whether only tiles near a place were looked at. The best of a few tiles is less often a wrong one that
                looks right by chance than the best of all.
        """
        if near and not searched and self.near_on_map_confidence is not None:
            return math.exp(-self.near_on_map_confidence.log_odds(clues))
        wrong = math.exp(-(self.searched_confidence if searched else self.confidence).log_odds(clues))
        on_map = self.searched_on_map_confidence if searched else self.on_map_confidence
        return math.exp(-on_map.log_odds(clues)) / (1 + wrong)


def calibration_from_json(raw: Mapping[str, Any]) -> Calibration:
    """Inverse of `dataclasses.asdict`. Raises TypeError for what is no calibration, BundleError for bad values."""
    parts: dict[str, Any] = {
        name: Confidence(**value) for name, value in raw.items() if name.endswith("confidence") and value is not None
    }
    known = raw.get("familiarity")
    if known is not None:
        views = {view: UsualFeatures(**known[view]) for view in ("ground", "aerial")}
        parts["familiarity"] = Familiarity(**{**known, **views})
    return Calibration(**{**raw, **parts})


def calibration_to_json(calibration: Calibration) -> dict[str, Any]:
    """The entries of a calibration, without those that bundles of before do not have where they say nothing."""
    entries = dataclasses.asdict(calibration)
    entries = {name: value for name, value in entries.items() if value is not None}
    if not calibration.elevation_widening:
        del entries["elevation_widening"]
    for name, confidence in entries.items():
        if name.endswith("confidence"):
            for weight in ("unfamiliar_weight", *MISSING_PARTS):
                if confidence[weight] == 0:
                    del confidence[weight]
    return entries


@dataclass(frozen=True)
class GraphFile:
    """One ONNX file of the bundle."""

    file: str
    """Its name inside the bundle."""
    sha256: str
    """Of its bytes."""
    data_file: str | None = None
    """The file with the graph's weights (ONNX external data), which graphs may share; None: in the ONNX file itself."""
    data_sha256: str | None = None

    @property
    def files(self) -> tuple[tuple[str, str], ...]:
        """Every file that the graph needs, as (name, SHA-256)."""
        if self.data_file is None or self.data_sha256 is None:
            return ((self.file, self.sha256),)
        return ((self.file, self.sha256), (self.data_file, self.data_sha256))


@dataclass(frozen=True)
class BundleManifest:
    """All that the robot must know about a model. See docs/reference/bundle_format.md."""

    name: str
    ground: GroundSpec
    aerial: AerialSpec
    descriptor_dim: int
    pyramid: tuple[tuple[int, int], ...]
    """(channels, rows = columns) of pyramid0 … pyramid3."""
    distribution_size: int
    """Rows = columns of the logits."""
    mean: tuple[float, float, float]
    """Of the RGB values scaled to 0 … 1. Applied inside the graphs; here for information and training."""
    std: tuple[float, float, float]
    weights_sha256: str
    """Identity of the weights, the same in every precision; engines and indexes are tied to it."""
    graphs: Mapping[str, Mapping[str, GraphFile]]
    """Graph name → precision → file."""
    calibration: Calibration
    """Fitted constants; where `calibrated` is false, rough guesses that no data support."""
    licence: str
    trained_on: str
    network: Mapping[str, Any]
    """The training package's network config, from which a checkpoint can be rebuilt."""
    calibrated: bool = True
    """Whether the calibration was fitted. In the file, the calibration of a bundle without one is null."""
    channel_order: str = "rgb"
    heading_convention: str = "north_centre"
    """The azimuth that the centre column of a training panorama faces; only "north_centre" exists."""
    lineage: tuple[Mapping[str, Any], ...] = ()
    """What was done to the weights and the calibration after the first export, oldest first: for each step the command
    (`made_by`), the checksum of the manifest before it (`parent_sha256`), and the data. In the file, left out where
    empty."""
    format: str = FORMAT.name
    format_version: int = FORMAT.version

    @property
    def sha256(self) -> str:
        """The checksum in the file: the identity of the bundle, its calibration included."""
        return str(json.loads(self.to_json())[CHECKSUM])

    @property
    def match_size(self) -> int:
        """Rows = columns of the match maps, S."""
        return self.pyramid[0][1]

    @property
    def match_channels(self) -> int:
        """Channels of the match maps, C_0."""
        return self.pyramid[0][0]

    @property
    def mean_channels(self) -> int:
        """Numbers in the mean features of `unifygeo_ros.inference.familiarity`."""
        return self.match_channels // self.ground.columns

    @property
    def familiarity_text(self) -> str:
        """Whether the bundle can tell unfamiliar pictures, for people."""
        known = self.calibration.familiarity
        if known is None:
            return "unknown: calibrate the bundle again, so that it can tell unfamiliar pictures"
        return f"known; limits {known.ground_limit:.2f} (panoramas), {known.aerial_limit:.2f} (tiles)"

    @property
    def calibration_text(self) -> str:
        """Whether the bundle is calibrated, for people."""
        return "fitted on validation data" if self.calibrated else "none: covariances and ambiguities are rough guesses"

    def to_json(self) -> str:
        """The text of manifest.json, with its checksum."""
        content = dataclasses.asdict(self)
        content["calibration"] = calibration_to_json(self.calibration) if content.pop("calibrated") else None
        if not content["lineage"]:
            del content["lineage"]
        return FORMAT.text_of(content)

    @classmethod
    def from_json(cls, text: str, source: str) -> BundleManifest:
        """Parse and check a manifest.

        Args:
            text: Content of the file.
            source: Name of the file, for messages.

        Raises:
            BundleError: the text is damaged, of another format, or its entries contradict each other.
        """
        raw = FORMAT.parse(text, source)
        if "calibrated" not in raw:  # in the file, a missing calibration says it
            raw["calibrated"] = raw.get("calibration") is not None
        else:
            raise BundleError(f"{source}: unknown fields ['calibrated']; {FORMAT.remedy}")
        raw.setdefault("lineage", [])
        FORMAT.check_fields(raw, cls, source)
        try:
            raw["lineage"] = tuple(raw["lineage"])
            raw["ground"] = GroundSpec(**raw["ground"])
            raw["aerial"] = AerialSpec(**raw["aerial"])
            raw["calibration"] = calibration_from_json(raw["calibration"]) if raw["calibrated"] else Calibration()
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
        if not all(isinstance(step, dict) and isinstance(step.get("made_by"), str) for step in self.lineage):
            problems.append("lineage is not a list of mappings with made_by")
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
        known = self.calibration.familiarity
        if not problems and known is not None:
            wrong = [view.size for view in (known.ground, known.aerial) if view.size != self.mean_channels]
            if wrong:
                problems.append(f"calibration.familiarity has {wrong[0]} numbers instead of {self.mean_channels}")
        return problems or self._contradictions()

    def _contradictions(self) -> list[str]:
        """Where the manifest and the network config inside it state different values of the same thing."""
        stated = {
            "ground_height": self.ground.height,
            "ground_width": self.ground.width,
            "ground_elevation_top_deg": math.degrees(self.ground.elevation_top_rad),
            "ground_elevation_bottom_deg": math.degrees(self.ground.elevation_bottom_rad),
            "aerial_size": self.aerial.size,
            "metres_per_pixel": self.aerial.metres_per_pixel,
        }
        return [
            f"{name} is {value:g} in the manifest and {self.network[name]!r} in its network config"
            for name, value in stated.items()
            if name in self.network and not math.isclose(float(self.network[name]), value, rel_tol=1e-9, abs_tol=1e-9)
        ]


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


def read_manifest(folder: Path) -> BundleManifest:
    """The verified manifest of a bundle folder. Raises BundleError."""
    path = folder / MANIFEST_NAME
    return BundleManifest.from_json(FORMAT.read(path), str(path))


def load_bundle(path: Path | str) -> ModelBundle:
    """Open a bundle folder and verify every file of it.

    Raises:
        BundleError: a file is missing, damaged, or not what the manifest says.
    """
    folder = Path(path)
    manifest = read_manifest(folder)
    _verify_files(folder, manifest)
    return ModelBundle(folder, manifest)


def check_calibrated(bundle: ModelBundle, accept_uncalibrated: bool) -> None:
    """Refuse a bundle without a calibration, whose covariances and probabilities nothing supports.

    Args:
        bundle: The bundle whose fixes are to be used.
        accept_uncalibrated: Use it all the same, with a warning in the log.

    Raises:
        BundleError: the bundle is not calibrated, and that was not accepted.
    """
    if bundle.manifest.calibrated:
        return
    missing = "is not calibrated: its covariances and its probabilities of a wrong place are rough guesses"
    if not accept_uncalibrated:
        raise BundleError(
            f"{bundle.path}: the bundle {missing}; fit it (`unifygeo-train calibrate`) and export it with "
            "--calibration; to use it all the same, set accept_uncalibrated: true (node), or give "
            "--set accept_uncalibrated=true (replay) or --accept-uncalibrated (locate)"
        )
    logger.warning("%s: the bundle %s; accepted because accept_uncalibrated is set", bundle.path, missing)


def migrate_bundle(path: Path | str) -> BundleManifest:
    """Rewrite the manifest of a bundle of format version 1 as one of this version; the other files stay as they are.

    Version 1 had no checksum of itself, so nobody can tell whether its content is what training wrote. It had no word
    for a missing calibration either: constants that are all defaults are taken as missing.

    Returns:
        The new manifest.

    Raises:
        BundleError: it is not of version 1, or its files do not match it; nothing is changed then.
    """
    folder = Path(path)
    source = folder / MANIFEST_NAME
    raw = FORMAT.entries(FORMAT.read(source), str(source))
    if raw.get("format_version") != 1:
        raise BundleError(
            f"{source}: format version {raw.get('format_version')}, only version 1 can be migrated; see "
            "`unifygeo bundle info`"
        )
    try:
        calibration = dict(raw["calibration"])
        for name in ("confidence", "searched_confidence"):
            if name in calibration:
                old = calibration[name]
                weights = {"belief_weight": old["belief"], "score_weight": old["score"]}
                calibration[name] = {"bias": old["bias"], **weights}
        fitted = calibration_from_json(calibration) != Calibration()
        text = FORMAT.text_of({**raw, "calibration": calibration if fitted else None, "format_version": FORMAT.version})
    except (KeyError, TypeError, ValueError, RecursionError) as error:
        raise BundleError(f"{source}: malformed ({error}); export the bundle again") from error
    manifest = BundleManifest.from_json(text, str(source))
    _verify_files(folder, manifest)
    _replace_manifest(folder, manifest)
    return manifest


def with_calibration(manifest: BundleManifest, calibration: Calibration, made_by: str, data: str) -> BundleManifest:
    """The manifest with another calibration, and how it came about in its lineage.

    Args:
        manifest: Of the bundle as it was.
        calibration: Fitted on `data`.
        made_by: The command.
        data: What it was fitted on.
    """
    step = {"made_by": made_by, "parent_sha256": manifest.sha256, "data": data}
    return dataclasses.replace(manifest, calibration=calibration, calibrated=True, lineage=(*manifest.lineage, step))


def replace_manifest(bundle: ModelBundle, manifest: BundleManifest) -> ModelBundle:
    """Rewrite the manifest of a bundle whose graphs stay. Raises BundleError where it cannot be written."""
    _replace_manifest(bundle.path, manifest)
    return ModelBundle(bundle.path, manifest)


def _replace_manifest(folder: Path, manifest: BundleManifest) -> None:
    """Write the manifest whole or not at all."""
    try:
        write_text(folder / MANIFEST_NAME, manifest.to_json())
    except OSError as error:
        raise BundleError(f"{folder}: cannot be written ({error}); copy the bundle to a folder of yours") from error


def _verify_files(folder: Path, manifest: BundleManifest) -> None:
    """Compare every file with the manifest. Raises BundleError."""
    entries = [entry for files in manifest.graphs.values() for entry in files.values()]
    for name, sha256 in sorted({pair for entry in entries for pair in entry.files}):  # shared files once
        file = folder / name
        try:
            digest = sha256_of_file(file)
        except OSError as error:
            raise BundleError(f"{file}: cannot be read ({error}); copy the whole bundle again") from error
        if digest != sha256:
            raise BundleError(
                f"{file}: SHA-256 is {digest[:12]}…, the manifest says {sha256[:12]}…; copy the bundle again"
            )
    for entry in entries:
        graph = folder / entry.file
        unlisted = _external_files(graph.read_bytes()) - {entry.data_file}
        if unlisted:
            raise BundleError(
                f"{graph}: takes weights from {', '.join(sorted(unlisted))}, which the manifest does not list as its "
                f"data_file ({entry.data_file}); export the bundle again"
            )
        # ONNX Runtime and TensorRT look for the data beside the graph's real file.
        if entry.data_file is not None and graph.resolve().parent != (folder / entry.data_file).resolve().parent:
            raise BundleError(
                f"{folder}: {entry.file} and {entry.data_file} must lie in one folder, but one is a link to "
                f"{(folder / entry.data_file).resolve().parent}; copy both, or link the whole folder"
            )


def _external_files(graph: bytes) -> set[str]:
    """Names of the external-data files that an ONNX graph refers to.

    The bytes are searched for such entries instead of parsed, so that the robot needs no ONNX package. A length of more
    than 127 takes two bytes; no bundle has such a name.
    """
    return {
        graph[match.end() : match.end() + match[1][0]].decode(errors="replace")
        if match[1][0] < 128
        else "a file with a name of more than 127 bytes"
        for match in _EXTERNAL_DATA.finditer(graph)
    }


def sha256_of_file(path: Path) -> str:
    """Hexadecimal SHA-256 of a file's bytes."""
    with path.open("rb") as stream:
        digest = hashlib.sha256()
        while block := stream.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()
