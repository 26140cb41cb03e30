"""Build an image tower of random weights in the shape of CLIP's, for our runtime and for torch.

Ours is written by the same code as `export clip`, and needs no torch.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from granalign_fast.export.graphs.clip_shapes import ImageShape, Levels, Transformer
from granalign_fast.export.graphs.clip_towers import write_towers
from granalign_fast.export.sources.checkpoint import MemoryTensors
from granalign_fast.models.manifest import CLIP

Weights = Mapping[str, npt.NDArray[np.float32]]
_EPSILON = 1e-5
"""Added to the variance by CLIP's layer norms."""
_QUICK = 1.702
"""CLIP's activation is x * sigmoid(1.702 x)."""
_TOWER, _EMBEDDINGS = "vision_model", "vision_model.embeddings"
_BEFORE, _AFTER = f"{_TOWER}.pre_layrnorm", f"{_TOWER}.post_layernorm"
_PATCH, _CLASS = f"{_EMBEDDINGS}.patch_embedding.weight", f"{_EMBEDDINGS}.class_embedding"
_POSITION, _PROJECTION = f"{_EMBEDDINGS}.position_embedding.weight", "visual_projection.weight"
"""Names of the tensors in transformers."""
LEVELS = Levels(
    rescale=1 / 255,
    mean=(0.48145466, 0.4578275, 0.40821073),
    std=(0.26862954, 0.26130258, 0.27577711),
)
"""Rescaling, means and standard deviations of pixels, the same for all published CLIPs."""


@dataclass(frozen=True, slots=True)
class TowerShape:
    """The sizes of an image tower.

    Attributes:
        side: height and width of an image, in pixels.
        patch: height and width of a patch, in pixels.
        hidden: numbers of a token.
        layers: layers of the transformer.
        heads: attention heads of each layer.
        out: numbers of an embedding.
    """

    side: int
    patch: int
    hidden: int
    layers: int
    heads: int
    out: int

    @property
    def tokens(self) -> int:
        """Tokens of an image: its patches, and the class token."""
        return (self.side // self.patch) ** 2 + 1

    @property
    def matrices(self) -> int:
        """Number of weights in the matrices of all layers."""
        return int(self.layers * 12 * self.hidden**2)

    @property
    def operations(self) -> float:
        """Operations of one image's embedding; a multiplication and an addition are two.

        The last layer computes keys and values of all tokens, and everything else of one token.
        """
        patches = 2.0 * (self.tokens - 1) * 3 * self.patch**2 * self.hidden
        rows = self.tokens * (12 * self.layers - 10) + 10
        attention = 4.0 * self.tokens * self.hidden * (self.tokens * (self.layers - 1) + 1)
        return 2.0 * rows * self.hidden**2 + attention + patches

    @property
    def exported(self) -> ImageShape:
        """The shape as the exporter describes it."""
        sizes = self.hidden, 4 * self.hidden, self.layers, self.heads
        layers = Transformer(*sizes, activation="quick_gelu", epsilon=_EPSILON)
        return ImageShape(layers, self.side, self.patch, self.out, LEVELS)


TOWERS: Mapping[str, TowerShape] = {
    "clip-vit-b32": TowerShape(224, 32, 768, 12, 12, 512),
    "clip-mini": TowerShape(64, 16, 64, 2, 4, 32),
}


def tower_weights(shape: TowerShape, seed: int = 0) -> Weights:
    """Draw random weights, by their names in transformers."""
    rng = np.random.default_rng(seed)
    hidden, wide = shape.hidden, 4 * shape.hidden

    def matrix(*size: int) -> npt.NDArray[np.float32]:
        fan = int(np.prod(size[1:]))
        values: npt.NDArray[np.float32] = rng.standard_normal(size, dtype=np.float32)
        return values / np.float32(fan**0.5)

    def bias(size: int) -> npt.NDArray[np.float32]:
        return 0.1 * rng.standard_normal(size, dtype=np.float32)

    def norm(name: str) -> dict[str, npt.NDArray[np.float32]]:
        gain = rng.uniform(0.8, 1.2, hidden).astype(np.float32)
        return {f"{name}.weight": gain, f"{name}.bias": bias(hidden)}

    tensors: dict[str, npt.NDArray[np.float32]] = {
        _PATCH: matrix(hidden, 3, shape.patch, shape.patch),
        _CLASS: matrix(1, hidden)[0],
        _POSITION: matrix(shape.tokens, hidden),
        _PROJECTION: matrix(shape.out, hidden),
        **norm(_BEFORE),
        **norm(_AFTER),
    }
    for layer in range(shape.layers):
        prefix = _layer(layer)
        tensors |= norm(f"{prefix}.layer_norm1") | norm(f"{prefix}.layer_norm2")
        sizes = {f"self_attn.{part}_proj": (hidden, hidden) for part in ("q", "k", "v", "out")}
        for name, size in {**sizes, "mlp.fc1": (wide, hidden), "mlp.fc2": (hidden, wide)}.items():
            tensors[f"{prefix}.{name}.weight"] = matrix(*size)
            tensors[f"{prefix}.{name}.bias"] = bias(size[0])
    return tensors


def _layer(number: int) -> str:
    return f"{_TOWER}.encoder.layers.{number}"


def write_tower(shape: TowerShape, weights: Weights, folder: Path, *, half: bool) -> Path:
    """Write ``image.onnx`` and a manifest of its kind alone; return the graph's path."""
    folder.mkdir(parents=True, exist_ok=True)
    precision = "fp16" if half else "fp32"
    write_towers(folder, CLIP, [shape.exported], MemoryTensors(weights), precision)
    (folder / "manifest.json").write_text(json.dumps({"kind": CLIP}), encoding="utf-8")
    return folder / "image.onnx"


def prepared(frames: npt.NDArray[np.uint8]) -> npt.NDArray[np.float32]:
    """Normalise frames as CLIP's image processor does.

    Args:
        frames: `(images, side, side, 3)` uint8.

    Returns:
        `(images, 3, side, side)` float32.
    """
    pixels = np.array(frames.transpose(0, 3, 1, 2), np.float32, order="C")
    mean, std = (np.array(x, np.float32)[:, None, None] for x in (LEVELS.mean, LEVELS.std))
    pixels *= np.float32(LEVELS.rescale)
    pixels -= mean
    pixels /= std
    return pixels


def torch_tower(
    shape: TowerShape, weights: Weights, device: str, *, half: bool, compiled: bool
) -> Callable[[Any], npt.NDArray[np.float32]]:
    """Build the same tower in torch.

    It computes what transformers computes with its fastest attention: all tokens of every layer.

    Args:
        shape: the tower's sizes.
        weights: the weights, from `tower_weights`.
        device: device, in torch's notation.
        half: whether to compute in float16.
        compiled: whether to use `torch.compile`, which specialises for one batch size.

    Returns:
        A function from pixels of `prepared`, a torch tensor on the device, to embeddings on the
        host.
    """
    import torch
    from torch.nn import functional

    dtype = torch.float16 if half else torch.float32
    tensors = {name: torch.from_numpy(array).to(device, dtype) for name, array in weights.items()}

    def norm(x: Any, name: str) -> Any:
        gain, bias = tensors[f"{name}.weight"], tensors[f"{name}.bias"]
        return functional.layer_norm(x, (shape.hidden,), gain, bias, _EPSILON)

    def linear(x: Any, name: str) -> Any:
        return functional.linear(x, tensors[f"{name}.weight"], tensors[f"{name}.bias"])

    def heads(x: Any) -> Any:
        return x.unflatten(-1, (shape.heads, -1)).transpose(1, 2)

    def embed(pixels: Any) -> Any:
        x = functional.conv2d(pixels.to(dtype), tensors[_PATCH], stride=shape.patch)
        x = x.flatten(2).transpose(1, 2)
        x = torch.cat([tensors[_CLASS].expand(len(x), 1, -1), x], dim=1) + tensors[_POSITION]
        x = norm(x, _BEFORE)
        for layer in range(shape.layers):
            prefix = _layer(layer)
            y = norm(x, f"{prefix}.layer_norm1")
            parts = (heads(linear(y, f"{prefix}.self_attn.{name}_proj")) for name in "qkv")
            y = functional.scaled_dot_product_attention(*parts)
            x = x + linear(y.transpose(1, 2).flatten(2), f"{prefix}.self_attn.out_proj")
            y = linear(norm(x, f"{prefix}.layer_norm2"), f"{prefix}.mlp.fc1")
            x = x + linear(y * torch.sigmoid(_QUICK * y), f"{prefix}.mlp.fc2")
        x = functional.linear(norm(x[:, 0], _AFTER), tensors[_PROJECTION]).float()
        return x / x.norm(dim=-1, keepdim=True)

    # "reduce-overhead" makes torch use CUDA graphs, as our runtime does.
    run = torch.compile(embed, mode="reduce-overhead") if compiled else embed

    def tower(pixels: Any) -> npt.NDArray[np.float32]:
        with torch.inference_mode():
            embeddings: npt.NDArray[np.float32] = run(pixels).cpu().numpy()
        return embeddings

    return tower
