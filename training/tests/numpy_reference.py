"""The network and its losses a second time, in plain numpy, from the tensors under their published names.

Nothing of the package is used here. The definitions are Eq. 1–8 of arXiv 2505.07622, with the details that the names
and shapes of the published tensors settle: ReLU and LayerNorm after the projections f (query) and g (key), `v` as
output projection, a LayerNorm after GeM, every epsilon 1e-6, the match map before the features and the upsampled map
before the skip in the decoder's concatenations. All arrays are float64, maps are (N, C, H, W).
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from scipy.special import erf

from unifygeo_ros.core.arrays import Float64, UInt8

Weights = Mapping[str, Float64]
EPS = 1e-6


def normalised(image: UInt8) -> Float64:
    """RGB bytes (N, H, W, 3) → (N, 3, H, W) with ImageNet's mean and standard deviation of R, G, B."""
    mean, std = np.array([0.485, 0.456, 0.406]), np.array([0.229, 0.224, 0.225])
    return ((image / 255.0 - mean) / std).transpose(0, 3, 1, 2)


def unit(x: Float64) -> Float64:
    """Unit length along axis 1."""
    return x / np.sqrt((x**2).sum(axis=1, keepdims=True))


def layer_norm(x: Float64, weights: Weights, name: str) -> Float64:
    """Over axis 1, whatever follows it."""
    scaled = (x - x.mean(axis=1, keepdims=True)) / np.sqrt(x.var(axis=1, keepdims=True) + EPS)
    shape = (1, -1, *[1] * (x.ndim - 2))
    return scaled * weights[f"{name}.weight"].reshape(shape) + weights[f"{name}.bias"].reshape(shape)


def batch_norm(x: Float64, weights: Weights, name: str) -> Float64:
    """With the running statistics."""
    mean, variance, gain, bias = (
        weights[f"{name}.{part}"].reshape(1, -1, 1, 1) for part in ("running_mean", "running_var", "weight", "bias")
    )
    return (x - mean) / np.sqrt(variance + EPS) * gain + bias


def conv(x: Float64, weights: Weights, name: str, *, stride: int = 1, padding: int = 0) -> Float64:
    kernel = weights[f"{name}.weight"]
    x = np.pad(x, ((0, 0), (0, 0), (padding, padding), (padding, padding)))
    windows = np.lib.stride_tricks.sliding_window_view(x, kernel.shape[2:], axis=(2, 3))[:, :, ::stride, ::stride]
    if kernel.shape[1] == 1 and x.shape[1] > 1:  # depthwise
        y = np.einsum("nchwij,cij->nchw", windows, kernel[:, 0])
    else:
        y = np.einsum("nchwij,ocij->nohw", windows, kernel)
    bias = weights.get(f"{name}.bias")
    return y if bias is None else y + bias[:, None, None]


def doubled(x: Float64, weights: Weights, name: str) -> Float64:
    """Transposed 2×2 convolution of stride 2."""
    kernel, (n, _, h, w) = weights[f"{name}.weight"], x.shape
    y = np.einsum("nchw,coij->nohiwj", x, kernel).reshape(n, kernel.shape[1], 2 * h, 2 * w)
    return y + weights[f"{name}.bias"][:, None, None]


def softmax(x: Float64, axis: int) -> Float64:
    e = np.exp(x - x.max(axis=axis, keepdims=True))
    return e / e.sum(axis=axis, keepdims=True)


def head(sixteenth: Float64, weights: Weights, name: str) -> Float64:
    """Stage 4: LayerNorm, 2×2 convolution of stride 2, one ConvNeXt block."""
    x = layer_norm(sixteenth, weights, f"{name}.downsample.0")
    x = conv(x, weights, f"{name}.downsample.1", stride=2)
    y = conv(x, weights, f"{name}.conv.conv_dw", padding=3)
    y = layer_norm(y, weights, f"{name}.conv.norm").transpose(0, 2, 3, 1)
    y = y @ weights[f"{name}.conv.mlp.fc1.weight"].T + weights[f"{name}.conv.mlp.fc1.bias"]
    y = 0.5 * y * (1 + erf(y / np.sqrt(2)))
    y = y @ weights[f"{name}.conv.mlp.fc2.weight"].T + weights[f"{name}.conv.mlp.fc2.bias"]
    return x + (weights[f"{name}.conv.gamma"] * y).transpose(0, 3, 1, 2)


def descriptor(sixteenth: Float64, weights: Weights, branch: str) -> Float64:
    """Semantic head, Eq. 2 and Eq. 3 → (N, C), position by position as the equations stand."""
    name = f"{branch}_global_feats_decoder"
    g = head(sixteenth, weights, f"{name}.model")
    block = f"{name}.aggregator.block"
    query = np.maximum(layer_norm(conv(g, weights, f"{block}.f.0"), weights, f"{block}.f.1"), 0)
    key = np.maximum(layer_norm(conv(g, weights, f"{block}.g.0"), weights, f"{block}.g.1"), 0)
    value = conv(g, weights, f"{block}.h")
    attended = np.empty_like(value)
    n, channels, rows, columns = value.shape
    for image in range(n):
        keys = key[image].reshape(channels, -1).T  # (positions, channels)
        values = value[image].reshape(channels, -1).T
        for row in range(rows):
            for column in range(columns):
                attention = softmax(keys @ query[image, :, row, column] / np.sqrt(channels), axis=0)
                attended[image, :, row, column] = attention @ values
    phi = g + conv(attended, weights, f"{block}.v")
    power = weights[f"{name}.aggregator.gem.p"][0]
    pooled = (np.maximum(phi, 1e-6) ** power).mean(axis=(2, 3)) ** (1 / power)
    return unit(layer_norm(pooled, weights, f"{name}.agg_post_norm"))


def projected(f0: Float64, weights: Weights) -> list[Float64]:
    """F_g⁰ → f_g⁰ … f_g³, each (N, columns · channels), columns outermost."""
    levels = []
    for level in range(1, 5):
        name = f"pyramid_decoder.grd_feature_to_descriptor{level}"
        reduced = conv(f0, weights, f"{name}.conv1")  # (N, channels, rows, columns)
        rows = weights[f"{name}.conv2.weight"].reshape(-1)
        collapsed = np.einsum("ncrk,r->nkc", reduced, rows) + weights[f"{name}.conv2.bias"]
        flat = collapsed.reshape(len(collapsed), -1)
        levels.append(unit(layer_norm(flat, weights, f"pyramid_decoder.grd_descriptor_norm{level}")))
    return levels


def decoded(levels: list[Float64], pyramid: list[Float64], weights: Weights) -> tuple[Float64, list[Float64]]:
    """Logits (N, P, P) and M⁰ … M³ (N, S, S). pyramid: coarsest first."""
    x, matches = pyramid[0], []
    for level, f in enumerate(levels):
        aerial = unit(layer_norm(x, weights, f"pyramid_decoder.sat_matching_block_norm{level + 1}"))
        match = np.einsum("nc,nchw->nhw", f, aerial)
        matches.append(match)
        x = np.concatenate([match[:, None], unit(x)], axis=1)
        if level < 3:
            up = doubled(x, weights, f"pyramid_decoder.deconv{4 - level}")
            x = np.concatenate([up, pyramid[level + 1]], axis=1)
            name = f"pyramid_decoder.conv{4 - level}"
            x = np.maximum(batch_norm(conv(x, weights, f"{name}.0", padding=1), weights, f"{name}.1"), 0)
            x = conv(x, weights, f"{name}.3", padding=1)
    x = doubled(x, weights, "pyramid_decoder.deconv1.0")
    x = np.maximum(batch_norm(x, weights, "pyramid_decoder.deconv1.1"), 0)
    x = doubled(x, weights, "pyramid_decoder.deconv1.3")
    x = conv(x, weights, "pyramid_decoder.conv1.0", padding=1)
    x = np.maximum(batch_norm(x, weights, "pyramid_decoder.conv1.1"), 0)
    return conv(x, weights, "pyramid_decoder.conv1.3", padding=1)[:, 0], matches


def label(position: Float64, size: int, sigma: float) -> Float64:
    """Gaussian of peak 1, (N, size, size). position: (row, column) as fractions of the side."""
    centres = (np.arange(size) + 0.5) / size
    apart = (position[:, :, None] - centres) * size  # (N, 2, size), pixels
    return np.exp(-(apart[:, 0, :, None] ** 2 + apart[:, 1, None, :] ** 2) / (2 * sigma**2))


def pooled_weights(gaussian: Float64, size: int) -> Float64:
    """Weights of Eq. 8: maxima of blocks, those above 1e-2, sum 1."""
    n, side, _ = gaussian.shape
    block = side // size
    maxima = gaussian.reshape(n, size, block, size, block).max(axis=(2, 4))
    maxima[maxima <= 1e-2] = 0
    return maxima / maxima.sum(axis=(1, 2), keepdims=True)


def cross_entropy(logits: Float64, target: Float64) -> float:
    """Mean over rows of −Σ target · ln softmax(logits), both (N, M)."""
    shifted = logits - logits.max(axis=1, keepdims=True)
    log_probability = shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))
    return float(-(target * log_probability).sum(axis=1).mean())


def retrieval_loss(ground: Float64, aerial: Float64, scale: float) -> float:
    """Eq. 6 with label smoothing 0.1."""
    n = len(ground)
    target = 0.9 * np.eye(n) + 0.1 / n
    return 0.5 * (cross_entropy(scale * ground @ aerial.T, target) + cross_entropy(scale * aerial @ ground.T, target))


def reranking_loss(f0: Float64, match_map: Float64, weights: Float64, scale: float) -> float:
    """L_R: every position of every tile of the batch competes."""
    n = len(f0)
    scores = scale * np.einsum("qc,tchw->qthw", f0, match_map).reshape(n, -1)
    target = np.zeros((n, n, *weights.shape[1:]))
    for query in range(n):
        target[query, query] = weights[query]
    return cross_entropy(scores, target.reshape(n, -1))
