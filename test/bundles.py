"""A small model bundle for tests: real ONNX graphs with the exact interface of `unifygeo_ros.inference.bundle`.

The network is made by hand with a seeded random part, so that tests need no training and still can localize. It
compares colours by direction. At every position of the aerial image the mean colour of each azimuth sector around it
is taken by one convolution with wedge-shaped kernels; the panorama gives the mean colour of each sector below the
horizon. Both go through the same random linear map, so their cosine is high where the surroundings agree:

    descriptor        mean of cos(W·rgb + b) over the pixels (a random Fourier embedding of the colour distribution)
    f0 … f3           sector colours, columns outer, channels inner, unit length
    match_map         the same of the aerial image on the grid of level 0, unit length
    pyramid0 … 3      the same, not normalised
    decoder           logits = gain · mean over the levels of the enlarged cosine maps
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import onnx
from onnx import TensorProto, helper, numpy_helper

from unifygeo_ros.inference.bundle import (
    FLOAT_PRECISIONS,
    MANIFEST_NAME,
    AerialSpec,
    BundleManifest,
    Calibration,
    GraphFile,
    GroundSpec,
    ModelBundle,
    load_bundle,
    sha256_of_file,
)

MEAN = (0.485, 0.456, 0.406)
STD = (0.229, 0.224, 0.225)
GAIN = 30.0  # the cosines' scale in the logits


def random_bundle(
    folder: Path | str,
    *,
    seed: int = 0,
    ground_height: int = 32,
    ground_width: int = 128,
    columns: int = 8,
    elevation_top_rad: float = np.pi / 4,
    elevation_bottom_rad: float = -np.pi / 4,
    aerial_size: int = 64,
    metres_per_pixel: float = 0.5,
    descriptor_dim: int = 32,
    pyramid_sizes: tuple[int, ...] = (8, 16, 32, 32),
    channels_per_column: tuple[int, ...] = (8, 4, 4, 4),
    distribution_size: int = 32,
    sector_radius_m: float = 8.0,
    calibration: Calibration | None = None,
    ground_colours: npt.ArrayLike | None = None,
) -> ModelBundle:
    """Write the bundle to `folder` (made when missing) and load it.

    The seed decides the random maps, hence every output and `weights_sha256`. aerial_size must be an even
    multiple of every pyramid size. sector_radius_m: how far the sectors reach from a position of the aerial image.
    ground_colours: (3, 3), applied to the normalised colours of panoramas, as another camera has them.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(seed)
    ground = GroundSpec(ground_height, ground_width, elevation_top_rad, elevation_bottom_rad, columns)
    aerial = AerialSpec(aerial_size, metres_per_pixel)
    pyramid = tuple(
        (columns * channels, size) for channels, size in zip(channels_per_column, pyramid_sizes, strict=True)
    )
    weights = _Weights(
        frequencies=rng.normal(0.0, 1.0, (descriptor_dim, 3)).astype(np.float32),
        phases=rng.uniform(0.0, 2 * np.pi, descriptor_dim).astype(np.float32),
        projections=tuple(rng.normal(0.0, 1.0, (n, 3)).astype(np.float32) for n in channels_per_column),
    )
    graphs: dict[str, dict[str, GraphFile]] = {}
    for precision in FLOAT_PRECISIONS:
        models = {
            "ground_encoder": _ground_encoder(ground, weights, precision, ground_colours),
            "aerial_encoder": _aerial_encoder(
                aerial, columns, pyramid, weights, round(sector_radius_m / metres_per_pixel), precision
            ),
            "decoder": _decoder(pyramid, distribution_size, precision),
        }
        for name, model in models.items():
            onnx.checker.check_model(model, full_check=True)
            file = f"{name}.{precision}.onnx"
            onnx.save(model, str(folder / file))
            graphs.setdefault(name, {})[precision] = GraphFile(file, sha256_of_file(folder / file))
    manifest = BundleManifest(
        name=f"random-{seed}",
        ground=ground,
        aerial=aerial,
        descriptor_dim=descriptor_dim,
        pyramid=pyramid,
        distribution_size=distribution_size,
        mean=MEAN,
        std=STD,
        weights_sha256=weights.sha256(ground_colours),
        graphs=graphs,
        calibration=calibration or Calibration(),
        licence="Apache-2.0",
        trained_on="nothing (made for tests)",
        network={"seed": seed},
    )
    (folder / MANIFEST_NAME).write_text(manifest.to_json(), encoding="utf-8")
    return load_bundle(folder)


@dataclass(frozen=True)
class _Weights:
    frequencies: npt.NDArray[np.float32]  # (C, 3)
    phases: npt.NDArray[np.float32]  # (C,)
    projections: tuple[npt.NDArray[np.float32], ...]  # per level (channels per column, 3)

    def sha256(self, ground_colours: npt.ArrayLike | None) -> str:
        digest = hashlib.sha256()
        added = () if ground_colours is None else (np.asarray(ground_colours, np.float32),)
        for array in (self.frequencies, self.phases, *self.projections, *added):
            digest.update(np.ascontiguousarray(array).tobytes())
        return digest.hexdigest()


class _Graph:
    """Collects nodes and constants; float constants take the graph's precision unless told otherwise."""

    def __init__(self, name: str, precision: str) -> None:
        self.name = name
        self.float_type = TensorProto.FLOAT16 if precision == "fp16" else TensorProto.FLOAT
        self.nodes: list[onnx.NodeProto] = []
        self.constants: list[onnx.TensorProto] = []
        self.inputs: list[onnx.ValueInfoProto] = []
        self.outputs: list[onnx.ValueInfoProto] = []

    def constant(self, value: npt.ArrayLike, *, fp32: bool = False) -> str:
        array = np.asarray(value)
        if array.dtype.kind == "f":
            array = array.astype(np.float32 if fp32 or self.float_type == TensorProto.FLOAT else np.float16)
        name = f"constant{len(self.constants)}"
        self.constants.append(numpy_helper.from_array(array, name))
        return name

    def add(self, operator: str, *inputs: str, output: str | None = None, **attributes: object) -> str:
        name = output or f"{operator.lower()}{len(self.nodes)}"
        self.nodes.append(helper.make_node(operator, list(inputs), [name], **attributes))
        return name

    def cast(self, value: str, element_type: int, output: str | None = None) -> str:
        return self.add("Cast", value, output=output, to=element_type)

    def input(self, name: str, element_type: int, shape: tuple[int, ...]) -> str:
        self.inputs.append(helper.make_tensor_value_info(name, element_type, ["N", *shape]))
        return name

    def output(self, value: str, name: str, element_type: int, shape: tuple[int, ...]) -> None:
        self.cast(value, element_type, output=name)
        self.outputs.append(helper.make_tensor_value_info(name, element_type, ["N", *shape]))

    def unit(self, value: str, axis: int) -> str:
        """x / |x| along one axis, in float32 in both precisions (squares of small numbers leave fp16's range)."""
        wide = self.cast(value, TensorProto.FLOAT)
        norm = self.add("ReduceL2", wide, self.constant(np.array([axis], np.int64)), keepdims=1)
        return self.add("Div", wide, self.add("Max", norm, self.constant(1e-12, fp32=True)))

    def normalised_image(self, height: int, width: int) -> str:
        """uint8 (N, H, W, 3) → (N, 3, H, W), minus MEAN, over STD."""
        image = self.input("image", TensorProto.UINT8, (height, width, 3))
        wide = self.cast(image, self.float_type)  # cast first: TensorRT takes a uint8 input only so
        chw = self.add("Transpose", wide, perm=[0, 3, 1, 2])
        scale = 1.0 / (255.0 * np.array(STD)).reshape(1, 3, 1, 1)
        offset = -(np.array(MEAN) / np.array(STD)).reshape(1, 3, 1, 1)
        return self.add("Add", self.add("Mul", chw, self.constant(scale)), self.constant(offset))

    def descriptor(self, image: str, weights: _Weights) -> None:
        """(N, 3, H, W) → output `descriptor` (N, C)."""
        kernel = weights.frequencies[:, :, None, None]
        angles = self.add("Conv", image, self.constant(kernel), self.constant(weights.phases))
        mean = self.add("ReduceMean", self.add("Cos", angles), self.constant(np.array([2, 3], np.int64)), keepdims=0)
        self.output(self.unit(mean, 1), "descriptor", TensorProto.FLOAT, (len(weights.phases),))

    def model(self) -> onnx.ModelProto:
        graph = helper.make_graph(self.nodes, self.name, self.inputs, self.outputs, self.constants)
        return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)


def _ground_encoder(
    ground: GroundSpec, weights: _Weights, precision: str, colours: npt.ArrayLike | None
) -> onnx.ModelProto:
    graph = _Graph("ground_encoder", precision)
    image = graph.normalised_image(ground.height, ground.width)
    if colours is not None:
        image = graph.add("Conv", image, graph.constant(np.asarray(colours, np.float64)[:, :, None, None]))
    below = _rows_below_horizon(ground)
    lower = graph.add(
        "Slice", image, *(graph.constant(np.array([v], np.int64)) for v in (ground.height - below, ground.height, 2))
    )
    graph.descriptor(lower, weights)
    # The mean of each sector: (N, 3, rows, W) → (N, 3, 1, columns).
    shape = [below, ground.width // ground.columns]
    sectors = graph.add("AveragePool", lower, kernel_shape=shape, strides=shape)
    for level, projection in enumerate(weights.projections):
        channels = len(projection)
        mixed = graph.add("Conv", sectors, graph.constant(projection[:, :, None, None]))
        columns_outer = graph.add("Transpose", mixed, perm=[0, 3, 1, 2])  # (N, columns, channels, 1)
        size = ground.columns * channels
        flat = graph.add("Reshape", columns_outer, graph.constant(np.array([-1, size], np.int64)))
        graph.output(graph.unit(flat, 1), f"f{level}", graph.float_type, (size,))
    return graph.model()


def _rows_below_horizon(ground: GroundSpec) -> int:
    span = ground.elevation_top_rad - ground.elevation_bottom_rad
    return max(1, min(ground.height, round(-ground.elevation_bottom_rad / span * ground.height)))


def _aerial_encoder(
    aerial: AerialSpec,
    columns: int,
    pyramid: tuple[tuple[int, int], ...],
    weights: _Weights,
    radius: int,
    precision: str,
) -> onnx.ModelProto:
    graph = _Graph("aerial_encoder", precision)
    image = graph.normalised_image(aerial.size, aerial.size)
    graph.descriptor(image, weights)
    sectors = _sector_kernels(columns, radius)  # (columns, 2R, 2R)
    for level, ((size, grid), projection) in enumerate(zip(pyramid, weights.projections, strict=True)):
        if aerial.size % (2 * grid):
            raise ValueError(f"aerial size {aerial.size} is not an even multiple of the pyramid's {grid}")
        stride = aerial.size // grid
        # Channel (column, channel) = sum over rgb of projection · sector mean.
        kernel = np.einsum("khw,cr->kcrhw", sectors, projection).reshape(size, 3, 2 * radius, 2 * radius)
        # The windows are centred on the cells' centres; a window smaller than its stride cannot be padded so.
        pad = radius - stride // 2
        source = image
        if pad < 0:
            source = graph.add(
                "Slice",
                image,
                graph.constant(np.array([-pad, -pad], np.int64)),
                graph.constant(np.array([aerial.size + pad, aerial.size + pad], np.int64)),
                graph.constant(np.array([2, 3], np.int64)),
            )
        pads = [max(pad, 0)] * 4
        # The padding is the mean colour, 0 after normalisation.
        maps = graph.add("Conv", source, graph.constant(kernel), strides=[stride, stride], pads=pads)
        if level == 0:
            nhwc = graph.add("Transpose", graph.unit(maps, 1), perm=[0, 2, 3, 1])
            graph.output(nhwc, "match_map", graph.float_type, (grid, grid, size))
        graph.output(maps, f"pyramid{level}", graph.float_type, (size, grid, grid))
    return graph.model()


def _sector_kernels(columns: int, radius: int) -> npt.NDArray[np.float32]:
    """Mean over each azimuth sector of a (2R, 2R) window about its centre; (columns, 2R, 2R), each summing to 1.

    Sector c holds the azimuths (c … c + 1)/columns · 2π − π, clockwise from north, as the panorama's columns.
    """
    offset = np.arange(2 * radius) - (radius - 0.5)
    east, north = np.meshgrid(offset, -offset)
    azimuth = np.arctan2(east, north)
    sector = np.floor((azimuth + np.pi) / (2 * np.pi) * columns).astype(int) % columns
    inside = np.hypot(east, north) <= radius
    kernels = np.stack([(sector == c) & inside for c in range(columns)]).astype(np.float32)
    return np.asarray(kernels / kernels.sum(axis=(1, 2), keepdims=True), np.float32)


def _decoder(pyramid: tuple[tuple[int, int], ...], distribution_size: int, precision: str) -> onnx.ModelProto:
    graph = _Graph("decoder", precision)
    total = ""
    for level, (size, _grid) in enumerate(pyramid):
        graph.input(f"f{level}", graph.float_type, (size,))
    for level, (size, grid) in enumerate(pyramid):
        maps = graph.input(f"pyramid{level}", graph.float_type, (size, grid, grid))
        f = graph.cast(f"f{level}", TensorProto.FLOAT)
        row = graph.add("Unsqueeze", f, graph.constant(np.array([1], np.int64)))  # (N, 1, C)
        flat = graph.add("Reshape", graph.unit(maps, 1), graph.constant(np.array([0, size, grid * grid], np.int64)))
        cosines = graph.add("MatMul", row, flat)
        match = graph.add("Reshape", cosines, graph.constant(np.array([0, 1, grid, grid], np.int64)))
        factor = distribution_size / grid
        scales = graph.constant(np.array([1.0, 1.0, factor, factor], np.float32), fp32=True)
        enlarged = graph.add("Resize", match, "", scales, mode="linear", coordinate_transformation_mode="half_pixel")
        total = graph.add("Add", total, enlarged) if total else enlarged
    scaled = graph.add("Mul", total, graph.constant(GAIN / len(pyramid), fp32=True))
    logits = graph.add("Squeeze", scaled, graph.constant(np.array([1], np.int64)))
    graph.output(logits, "logits", TensorProto.FLOAT, (distribution_size, distribution_size))
    return graph.model()
