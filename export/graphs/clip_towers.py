"""The two towers of CLIP and SigLIP: what goes into their layers, and what comes out."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from granalign_fast.errors import GranAlignError, one_line
from granalign_fast.export.sources.checkpoint import Float32, Tensors
from granalign_fast.models.graph_contract import FRAMES, INPUT_IDS
from granalign_fast.runtime.standard_operators import MICROSOFT

from .clip_layers import ClipGraph, Float64, State, Transformer
from .tensor_file import EmbeddedTensors, GraphTensors

CENTRE = 128
"""Taken from a frame's bytes before any product, whose sums would else be of one sign and large."""
_LEGACY_END = 2
"""CLIP's first configurations name this as the end of text, which it is not: the highest id is."""


@dataclass(frozen=True, slots=True)
class Levels:
    """What an image processor makes of a frame's bytes: ``(byte * rescale - mean) / std``.

    Attributes:
        rescale: factor of the values 0 to 255.
        mean: subtracted from each colour after rescaling.
        std: divides each colour after that.
    """

    rescale: float
    mean: tuple[float, ...]
    std: tuple[float, ...]

    @property
    def step(self) -> float:
        """A power of two near what one level is worth, so that weights keep their magnitude."""
        slope = np.abs(self._slopes).mean()
        return float(2.0 ** np.rint(np.log2(slope))) if slope else 1.0

    def folded(self, weight: Float64) -> tuple[Float64, Float64]:
        """A linear map of what the processor makes, as one of ``(byte - CENTRE) * step``.

        Args:
            weight: (..., 3, outputs), with the colours.

        Returns:
            Its weight, of the same shape, and its bias, (outputs,).
        """
        gains = self._slopes / self.step
        offsets = (CENTRE * self.rescale - np.array(self.mean)) / np.array(self.std)
        bias = (weight * offsets[:, None]).reshape(-1, weight.shape[-1]).sum(axis=0)
        return weight * gains[:, None], bias

    @property
    def _slopes(self) -> Float64:
        slopes: Float64 = self.rescale / np.array(self.std)
        return slopes


@dataclass(frozen=True, slots=True)
class ImageShape:
    """An image tower.

    Attributes:
        layers: its transformer.
        side: of an image, in pixels.
        patch: of a patch; what a row of patches leaves of an image is not seen.
        out: numbers of an embedding.
        levels: what a frame's bytes stand for.
    """

    layers: Transformer
    side: int
    patch: int
    out: int
    levels: Levels

    @classmethod
    def of(cls, config: Any, out: int, levels: Levels) -> ImageShape:
        """Of transformers' configuration of the tower.

        Raises:
            GranAlignError: images are not of three colours.
        """
        if config.num_channels != 3:
            raise GranAlignError(
                f"num_channels: got {config.num_channels}, expected 3; choose another model"
            )
        return cls(
            Transformer.of(config), int(config.image_size), int(config.patch_size), out, levels
        )

    @property
    def grid(self) -> int:
        """Patches in a row, and rows."""
        return self.side // self.patch


@dataclass(frozen=True, slots=True)
class TextShape:
    """A text tower.

    Attributes:
        layers: its transformer.
        words: token ids that it knows.
        tokens: of a text, at most.
        out: numbers of an embedding.
        end: id of the token, the first of its kind, that a text is pooled at.
    """

    layers: Transformer
    words: int
    tokens: int
    out: int
    end: int

    @classmethod
    def of(cls, config: Any, out: int) -> TextShape:
        """Of transformers' configuration of the tower."""
        sizes = int(config.vocab_size), int(config.max_position_embeddings)
        return cls(Transformer.of(config), *sizes, out, int(config.eos_token_id))


class ImageGraph(ClipGraph):
    """Bytes of frames to embeddings.

    Patches never overlap: they are cut out, as bytes, and meet the weights in one product. What an
    image processor does to bytes is linear, so it is in these weights and in what stands at each
    place. All that is left of it is to take `CENTRE` off and to give the rest a power of two for a
    scale: one launch, and exact in float16, which normalised pixels are not.

    Args:
        family: ``"clip"`` or ``"siglip"``.
        shape: of the tower.
        weights: where weights come from, by transformers' names.
        tensors: where they go.
        precision: ``"fp32"`` or ``"fp16"``.
    """

    def __init__(
        self,
        family: str,
        shape: ImageShape,
        weights: Tensors,
        tensors: GraphTensors,
        *,
        precision: str,
    ) -> None:
        self.image, self.clip = shape, family == "clip"
        self.patches = shape.grid**2
        super().__init__(
            *(_Apart(weights), tensors, shape.layers),
            prefix="vision_model",
            tokens=self.patches + self.clip,
            precision=precision,
        )

    def model(self) -> Any:
        """The `onnx.ModelProto`, less the tensors."""
        side, out = self.image.side, self.image.out
        patches = self._patches(FRAMES)
        x = self._layers(self._from_class(patches) if self.clip else self._from_patches(patches))
        norm = f"{self.prefix}.post_layernorm"
        if self.clip:
            (y,) = self._products(x.normed, norm, ["visual_projection"], out)
        else:
            y = self._head(x.normed, norm)
        return self._finish(y, self._value(FRAMES, np.uint8, "batch", side, side, 3), out)

    def _patches(self, x: str) -> str:
        """Patches (batch, patches, hidden), row by row, less bias and positions."""
        patch, grid = self.image.patch, self.image.grid
        edge, line = patch * grid, 3 * patch
        if edge < self.image.side:
            bounds = [self._constant(f"cut.{at}", [at, at]) for at in (0, edge)]
            x = self._op("Slice", x, *bounds, self._constant("cut.axes", [1, 2]))
        # Lines of a patch, as they lie in a frame, in the order of patches: a line is moved whole.
        x = self._op("Reshape", x, self._constant("cut.lines", [-1, patch, grid, line]))
        x = self._op("Transpose", x, perm=[0, 2, 1, 3])
        size = [-1, self.patches, patch * line]
        x = self._op("Reshape", x, self._constant("cut.patches", size))
        levels = self._constant("step", self.image.levels.step, self.dtype)
        x = self._op("DequantizeLinear", x, levels, self._constant("centre", CENTRE, np.uint8))
        name = f"{self.prefix}.embeddings.patch_embedding.weight.levels"
        weight = self._stored(name, lambda: self._patch_map[0])
        return self._op("MatMul", x, weight)

    @cached_property
    def _patch_map(self) -> tuple[Float64, Float64]:
        """What becomes of a patch's ``(byte - CENTRE) * step``: weight and bias."""
        patch, hidden = self.image.patch, self.shape.hidden
        name = f"{self.prefix}.embeddings.patch_embedding"
        own = self._wide(f"{name}.weight", hidden, 3, patch, patch).transpose(2, 3, 1, 0)
        weight, bias = self.image.levels.folded(own)
        if not self.clip:
            bias = bias + self._wide(f"{name}.bias", hidden)
        return weight.reshape(-1, hidden), bias

    def _from_class(self, patches: str) -> State:
        """CLIP: one more token, for all, and a norm before the first layer."""
        hidden, prefix = self.shape.hidden, f"{self.prefix}.embeddings"
        pads = self._constant("class", [0, 1, 0, 0, 0, 0])
        x = self._op("Pad", patches, pads)

        def table() -> Any:
            found = self._wide(f"{prefix}.position_embedding.weight", self.patches + 1, hidden)
            found[0] += self._wide(f"{prefix}.class_embedding", hidden)
            found[1:] += self._patch_map[1]
            return found

        norm = f"{self.prefix}.pre_layrnorm"
        affine = [self._own(f"{norm}.{part}", hidden) for part in ("weight", "bias")]
        inputs = [x, self._stored("positions", table), *affine]
        settings = {"domain": MICROSOFT, "epsilon": self.shape.epsilon}
        stream = self._op("SkipLayerNormalization", *inputs, **settings)
        return State(stream, self._normed(stream))

    def _from_patches(self, patches: str) -> State:
        """SigLIP: no token for all, and the first layer's own norm."""
        hidden, prefix = self.shape.hidden, f"{self.prefix}.embeddings"

        def table() -> Any:
            found = self._wide(f"{prefix}.position_embedding.weight", self.patches, hidden)
            return found + self._patch_map[1]

        return self._added(patches, self._stored("positions", table))

    def _pools(self, layer: int) -> bool:
        return self.clip and super()._pools(layer)

    def _pooled(self, x: str) -> str:
        return self._op("Gather", x, self._constant("first", [0]), axis=1)

    def _head(self, x: str, norm: str) -> str:
        """SigLIP: attention of one query that is the same for all images, and a perceptron."""
        prefix, hidden = f"{self.prefix}.head", self.shape.hidden
        batch = self._op("Shape", x, end=1)
        size = self._op("Concat", batch, self._constant("query.size", [1, hidden]), axis=0)
        query = self._op("Expand", self._stored("query", lambda: self._query(prefix)), size)
        maps = [f"{prefix}.attention.{part}_proj" for part in "kv"]
        y = self._attention([query, *self._products(x, norm, maps, hidden)])
        y = self._plain(y, f"{prefix}.attention.out_proj", hidden, hidden)
        # The bias is a stream that is the same for all images: one row for all of them.
        bias = f"{prefix}.attention.out_proj.bias"
        own = self._stored(f"{bias}.row", lambda: self._read(bias, hidden)[None, None])
        state = self._added(y, own)
        y = self._mlp(state.normed, f"{prefix}.layernorm", f"{prefix}.mlp")
        y = self._op("Add", y, self._own(f"{prefix}.mlp.fc2.bias", hidden))
        return self._op("Add", y, state.stream)

    def _query(self, prefix: str) -> Any:
        hidden = self.shape.hidden
        weight, bias = self._map(f"{prefix}.attention.q_proj", hidden, hidden)
        return self._wide(f"{prefix}.probe", 1, 1, hidden) @ weight + bias


class _Apart:
    """Weights in which the joined projections of SigLIP's head, as torch has them, are three."""

    def __init__(self, weights: Tensors) -> None:
        self._weights = weights

    def __contains__(self, name: str) -> bool:
        return self._joined(name)[0] in self._weights

    def shape(self, name: str) -> tuple[int, ...]:
        """The shape of a tensor, without reading it."""
        stored, part = self._joined(name)
        first, *rest = self._weights.shape(stored)
        return (first if part is None else first // 3, *rest)

    def read(self, name: str) -> Float32:
        """A tensor as float32."""
        stored, part = self._joined(name)
        array = self._weights.read(stored)
        return array if part is None else array.reshape(3, -1, *array.shape[1:])[part]

    @staticmethod
    def _joined(name: str) -> tuple[str, int | None]:
        """What a tensor is stored in, and which third of it."""
        match = re.fullmatch(r"(.*\.head\.attention\.)([qkv])_proj\.(weight|bias)", name)
        if match is None:
            return name, None
        return f"{match[1]}in_proj_{match[3]}", "qkv".index(match[2])


class TextGraph(ClipGraph):
    """Token ids of texts of equal length to embeddings; arguments as of `ImageGraph`."""

    def __init__(
        self,
        family: str,
        shape: TextShape,
        weights: Tensors,
        tensors: GraphTensors,
        *,
        precision: str,
    ) -> None:
        self.text, self.causal = shape, family == "clip"
        super().__init__(
            *(weights, tensors, shape.layers),
            prefix="text_model",
            tokens=shape.tokens,
            precision=precision,
        )

    def model(self) -> Any:
        """The `onnx.ModelProto`, less the tensors."""
        prefix, hidden = f"{self.prefix}.embeddings", self.shape.hidden
        words = self._own(f"{prefix}.token_embedding.weight", self.text.words, hidden)
        places = self._own(f"{prefix}.position_embedding.weight", self.text.tokens, hidden)
        state = self._added(self._op("Gather", words, INPUT_IDS), self._first(places))
        if self.causal:
            self.end = self._end()
        state = self._layers(state)
        head = "text_projection" if self.causal else f"{self.prefix}.head"
        (y,) = self._products(
            state.normed, f"{self.prefix}.final_layer_norm", [head], self.text.out
        )
        return self._finish(y, self._value(INPUT_IDS, np.int32, "batch", "sequence"), self.text.out)

    def _first(self, table: str) -> str:
        """As many rows of a table as a text has tokens."""
        length = self._op("Shape", INPUT_IDS, start=1, end=2)
        return self._op("Slice", table, self._constant("start", [0]), length)

    def _end(self) -> str:
        """Where each text is pooled, (batch, 1): at its first end, or else at its first token.

        The place of the greatest score, as places of a largest value want no reduction; scores
        differ from token to token, so that the first of several ends is the greatest.
        """
        tokens = self.text.tokens
        scale = self._constant("tokens", tokens, np.int32)
        if self.text.end == _LEGACY_END:
            score = self._op("Mul", INPUT_IDS, scale)
        else:
            end = self._op("Equal", INPUT_IDS, self._constant("end", self.text.end, np.int32))
            score = self._op("Where", end, scale, self._constant("no", 0, np.int32))
        fewer = self._constant("fewer", np.arange(tokens)[::-1], np.int32)
        score = self._op("Add", score, self._first(fewer))
        found = f"end.{len(self.nodes)}"
        self._add("TopK", [score, self._constant("one", [1])], [f"{found}.score", found])
        return found

    def _pooled(self, x: str) -> str:
        if self.causal:
            return self._op("GatherND", x, self.end, batch_dims=1)
        return self._op("Gather", x, self._constant("last", [-1]), axis=1)


def write_towers(
    draft: Path,
    family: str,
    shapes: Iterable[ImageShape | TextShape],
    weights: Tensors,
    precision: str,
) -> None:
    """Write ``image.onnx`` and ``text.onnx`` to a folder, those whose shapes are given.

    Args:
        draft: the folder.
        family: one of `CLIP_FAMILIES`.
        shapes: of the towers.
        weights: by transformers' names.
        precision: one of `CLIP_PRECISIONS`.

    Raises:
        GranAlignError: a tensor is missing or misshapen, or the graph cannot be written.
    """
    for shape in shapes:
        name = "image" if isinstance(shape, ImageShape) else "text"
        path = draft / f"{name}.onnx"
        try:
            with path.open("wb") as file:
                tensors = EmbeddedTensors(file)
                graph: ImageGraph | TextGraph
                if isinstance(shape, ImageShape):
                    graph = ImageGraph(family, shape, weights, tensors, precision=precision)
                else:
                    graph = TextGraph(family, shape, weights, tensors, precision=precision)
                tensors.finish(graph.model())
        except (OSError, MemoryError) as error:
            raise GranAlignError(
                f"{path}: the {name} tower cannot be written ({one_line(error)}); free memory "
                f"and disk, or choose another model"
            ) from None
