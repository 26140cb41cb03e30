"""An image tower of random weights in the shape of CLIP's, as ONNX and for torch.

The graph has the operators that `export clip` writes for such a tower: speed depends on these and
on the shape alone.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from granalign_fast.models import CLIP

Weights = Mapping[str, npt.NDArray[np.float32]]
_EPSILON = 1e-5
_QUICK = 1.702
"""CLIP's activation is x * sigmoid(1.702 x)."""


@dataclass(frozen=True, slots=True)
class TowerShape:
    """An image tower.

    Attributes:
        side: of an image, in pixels.
        patch: of a patch.
        hidden: numbers of a token.
        layers: of the transformer.
        heads: of each layer.
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
        """Of an image: its patches, and one for all."""
        return (self.side // self.patch) ** 2 + 1

    @property
    def matrices(self) -> int:
        """Weights that every token meets; the projection, which one token meets, aside."""
        return int(self.layers * 12 * self.hidden**2)

    @property
    def operations(self) -> float:
        """For an image, a multiplication and an addition being two."""
        patches = 2.0 * (self.tokens - 1) * 3 * self.patch**2 * self.hidden
        attention = 4.0 * self.layers * self.tokens**2 * self.hidden
        return 2.0 * self.tokens * self.matrices + attention + patches


TOWERS: Mapping[str, TowerShape] = {
    "clip-vit-b32": TowerShape(224, 32, 768, 12, 12, 512),
    "clip-mini": TowerShape(64, 16, 64, 2, 4, 32),
}


def tower_weights(shape: TowerShape, seed: int = 0) -> Weights:
    """Random ones, by the names that transformers gives them."""
    rng = np.random.default_rng(seed)
    hidden, wide = shape.hidden, 4 * shape.hidden

    def matrix(*size: int) -> npt.NDArray[np.float32]:
        fan = int(np.prod(size[1:]))
        drawn: npt.NDArray[np.float32] = rng.standard_normal(size, dtype=np.float32)
        return drawn / np.float32(fan**0.5)

    def norm(name: str) -> dict[str, npt.NDArray[np.float32]]:
        gain = rng.uniform(0.8, 1.2, hidden).astype(np.float32)
        return {f"{name}.weight": gain, f"{name}.bias": np.zeros(hidden, np.float32)}

    found: dict[str, npt.NDArray[np.float32]] = {
        "patch": matrix(hidden, 3, shape.patch, shape.patch),
        "class": matrix(1, 1, hidden),
        "position": matrix(1, shape.tokens, hidden),
        "projection": matrix(shape.out, hidden),
        **norm("before"),
        **norm("after"),
    }
    for layer in range(shape.layers):
        found |= norm(f"{layer}.norm1") | norm(f"{layer}.norm2")
        sizes = dict.fromkeys(("q", "k", "v", "o"), (hidden, hidden))
        for name, size in {**sizes, "fc1": (wide, hidden), "fc2": (hidden, wide)}.items():
            found[f"{layer}.{name}.weight"] = matrix(*size)
            found[f"{layer}.{name}.bias"] = 0.1 * matrix(size[0], 1)[:, 0]
    return found


def write_tower(shape: TowerShape, weights: Weights, folder: Path, *, half: bool) -> Path:
    """Write ``image.onnx`` and as much of a manifest as says what it is; returns the graph."""
    import onnx
    from onnx import TensorProto, helper

    folder.mkdir(parents=True, exist_ok=True)
    graph = _Graph(weights, np.float16 if half else np.float32)
    graph.tower(shape)
    kinds = TensorProto.FLOAT
    size = ["batch", 3, shape.side, shape.side]
    model = helper.make_model(
        helper.make_graph(
            graph.nodes,
            "image",
            [helper.make_tensor_value_info("pixel_values", kinds, size)],
            [helper.make_tensor_value_info("embeddings", kinds, ["batch", shape.out])],
            graph.tensors,
        ),
        opset_imports=[helper.make_opsetid("", 18)],
        ir_version=9,
    )
    path = folder / "image.onnx"
    onnx.save(model, path)
    (folder / "manifest.json").write_text(json.dumps({"kind": CLIP}), encoding="utf-8")
    return path


class _Graph:
    """The graph under construction."""

    def __init__(self, weights: Weights, dtype: type[np.generic]) -> None:
        self.weights, self.dtype = weights, dtype
        self.nodes: list[Any] = []
        self.tensors: list[Any] = []

    def tower(self, shape: TowerShape) -> None:
        """From pixels to embeddings of unit length."""
        hidden = shape.hidden
        x = self.op("Cast", "pixel_values", to=self.kind(self.dtype))
        strides = [shape.patch, shape.patch]
        x = self.op("Conv", x, self.weight("patch"), strides=strides, kernel_shape=strides)
        x = self.op("Reshape", x, self.constant([0, hidden, -1]))
        x = self.op("Transpose", x, perm=[0, 2, 1])
        rows = self.op("Shape", "pixel_values", start=0, end=1)
        size = self.op("Concat", rows, self.constant([1, hidden]), axis=0)
        first = self.op("Expand", self.weight("class"), size)
        x = self.op("Concat", first, x, axis=1)
        x = self.norm(self.op("Add", x, self.weight("position")), "before")
        for layer in range(shape.layers):
            x = self.op("Add", x, self.attention(self.norm(x, f"{layer}.norm1"), layer, shape))
            wide = self.linear(self.norm(x, f"{layer}.norm2"), f"{layer}.fc1")
            scaled = self.op("Mul", wide, self.constant(_QUICK, self.dtype))
            wide = self.op("Mul", wide, self.op("Sigmoid", scaled))
            x = self.op("Add", x, self.linear(wide, f"{layer}.fc2"))
        x = self.norm(self.op("Gather", x, self.constant(0), axis=1), "after")
        x = self.op("MatMul", x, self.weight("projection", transposed=True))
        x = self.op("Cast", x, to=self.kind(np.float32))
        length = self.op("ReduceL2", x, self.constant([1]), keepdims=1)
        self.add("Div", [x, length], ["embeddings"])

    def attention(self, x: str, layer: int, shape: TowerShape) -> str:
        split = self.constant([0, 0, shape.heads, shape.hidden // shape.heads])
        scale = self.constant((shape.hidden // shape.heads) ** -0.5, self.dtype)
        parts = {}
        for name, perm in (("q", [0, 2, 1, 3]), ("k", [0, 2, 3, 1]), ("v", [0, 2, 1, 3])):
            y = self.linear(x, f"{layer}.{name}")
            if name == "q":
                y = self.op("Mul", y, scale)
            parts[name] = self.op("Transpose", self.op("Reshape", y, split), perm=perm)
        shares = self.op("Softmax", self.op("MatMul", parts["q"], parts["k"]), axis=-1)
        y = self.op("Transpose", self.op("MatMul", shares, parts["v"]), perm=[0, 2, 1, 3])
        y = self.op("Reshape", y, self.constant([0, 0, shape.hidden]))
        return self.linear(y, f"{layer}.o")

    def norm(self, x: str, name: str) -> str:
        gain, bias = self.weight(f"{name}.weight"), self.weight(f"{name}.bias")
        return self.op("LayerNormalization", x, gain, bias, axis=-1, epsilon=_EPSILON)

    def linear(self, x: str, name: str) -> str:
        y = self.op("MatMul", x, self.weight(f"{name}.weight", transposed=True))
        return self.op("Add", y, self.weight(f"{name}.bias"))

    def weight(self, name: str, *, transposed: bool = False) -> str:
        array = self.weights[name]
        return self.constant(array.T if transposed else array, self.dtype)

    def constant(self, value: npt.ArrayLike, dtype: type[np.generic] = np.int64) -> str:
        from onnx import numpy_helper

        name = f"constant.{len(self.tensors)}"
        array = np.ascontiguousarray(np.asarray(value).astype(dtype))
        self.tensors.append(numpy_helper.from_array(array.reshape(np.shape(value)), name))
        return name

    def op(self, kind: str, *inputs: str, **attributes: Any) -> str:
        output = f"{kind}.{len(self.nodes)}"
        self.add(kind, list(inputs), [output], **attributes)
        return output

    def add(self, kind: str, inputs: list[str], outputs: list[str], **attributes: Any) -> None:
        from onnx import helper

        self.nodes.append(helper.make_node(kind, inputs, outputs, name=outputs[0], **attributes))

    @staticmethod
    def kind(dtype: type[np.generic]) -> int:
        from onnx import helper

        kind: int = helper.np_dtype_to_tensor_dtype(np.dtype(dtype))
        return kind


def torch_tower(
    shape: TowerShape, weights: Weights, device: str, *, half: bool, compiled: bool
) -> Callable[[Any], npt.NDArray[np.float32]]:
    """The same tower by torch, pixels as a torch tensor there to embeddings here.

    Args:
        shape: of the tower.
        weights: of `tower_weights`.
        device: as torch names it.
        half: in float16.
        compiled: by `torch.compile`, for one shape.
    """
    import torch
    from torch.nn import functional

    dtype = torch.float16 if half else torch.float32
    own = {name: torch.from_numpy(array).to(device, dtype) for name, array in weights.items()}

    def norm(x: Any, name: str) -> Any:
        gain, bias = own[f"{name}.weight"], own[f"{name}.bias"]
        return functional.layer_norm(x, (shape.hidden,), gain, bias, _EPSILON)

    def linear(x: Any, name: str) -> Any:
        return functional.linear(x, own[f"{name}.weight"], own[f"{name}.bias"])

    def heads(x: Any) -> Any:
        return x.unflatten(-1, (shape.heads, -1)).transpose(1, 2)

    def embed(pixels: Any) -> Any:
        x = functional.conv2d(pixels.to(dtype), own["patch"], stride=shape.patch)
        x = x.flatten(2).transpose(1, 2)
        x = torch.cat([own["class"].expand(len(x), 1, -1), x], dim=1) + own["position"]
        x = norm(x, "before")
        for layer in range(shape.layers):
            y = norm(x, f"{layer}.norm1")
            parts = (heads(linear(y, f"{layer}.{name}")) for name in ("q", "k", "v"))
            y = functional.scaled_dot_product_attention(*parts)
            x = x + linear(y.transpose(1, 2).flatten(2), f"{layer}.o")
            y = linear(norm(x, f"{layer}.norm2"), f"{layer}.fc1")
            x = x + linear(y * torch.sigmoid(_QUICK * y), f"{layer}.fc2")
        x = functional.linear(norm(x[:, 0], "after"), own["projection"]).float()
        return x / x.norm(dim=-1, keepdim=True)

    # "reduce-overhead" is torch's own use of CUDA graphs: what ours is to be compared with.
    run = torch.compile(embed, mode="reduce-overhead") if compiled else embed

    def tower(pixels: Any) -> npt.NDArray[np.float32]:
        with torch.inference_mode():
            found: npt.NDArray[np.float32] = run(pixels).cpu().numpy()
        return found

    return tower
