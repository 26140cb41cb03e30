"""The two towers of CLIP and SigLIP: embedding of patches or tokens, layers, and pooling."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from granalign_fast.errors import GranAlignError, one_line
from granalign_fast.export.sources.checkpoint import Float32, Tensors
from granalign_fast.export.specs import HEAD
from granalign_fast.models.graph_contract import FRAMES, INPUT_IDS
from granalign_fast.runtime.standard_operators import MICROSOFT

from .clip_layers import ClipGraph, State
from .clip_shapes import CENTRE, Float64, ImageShape, TextShape
from .tensor_file import EmbeddedTensors, GraphTensors, TensorFile

_LEGACY_END = 2
"""End-of-text id in CLIP's first configurations. It is wrong: the highest id ends a text."""


class ImageGraph(ClipGraph):
    """The image tower: bytes of frames to embeddings.

    Patches do not overlap, so they are cut out as bytes and multiplied by the weights in one
    product. An image processor's arithmetic on bytes is linear: it is folded into these weights and
    into the position embeddings. The graph only subtracts `CENTRE` and multiplies by a power of
    two. This is one launch, and exact in float16; normalised pixels would not be exact.

    Args:
        family: ``"clip"`` or ``"siglip"``.
        shape: the numbers of the tower.
        weights: where weights come from, by transformers' names.
        tensors: where they go.
        precision: one of `CLIP_PRECISIONS`.
        prefix: of the tower's tensor names.
    """

    def __init__(
        self,
        family: str,
        shape: ImageShape,
        weights: Tensors,
        tensors: GraphTensors,
        *,
        precision: str,
        prefix: str = "vision_model",
    ) -> None:
        self.image, self.class_token = shape, family == "clip"
        self.patches = shape.grid**2
        super().__init__(
            *(_SplitHead(weights), tensors, shape.layers),
            prefix=prefix,
            tokens=self.patches + self.class_token,
            precision=precision,
        )

    def model(self) -> Any:
        """Return the `onnx.ModelProto` without its tensors."""
        side, out = self.image.side, self.image.out
        # Frames to patches, and the layers over them.
        patches = self._patches(FRAMES)
        embed = self._embed_with_class if self.class_token else self._embed
        x = self._layers(embed(patches))
        # CLIP projects its class token; SigLIP pools all patches by attention.
        norm = f"{self.prefix}.post_layernorm"
        if self.class_token:
            (y,) = self._products(x.normed, norm, ["visual_projection"], out)
        else:
            y = self._head(x.normed, norm)
        return self._finish(y, self._value(FRAMES, np.uint8, "batch", side, side, 3), out)

    def _patches(self, x: str) -> str:
        """Embed patches (batch, patches, hidden), row by row, without bias and positions."""
        patch, grid = self.image.patch, self.image.grid
        edge, line = patch * grid, 3 * patch
        # Cut off pixels beyond the last whole patch.
        if edge < self.image.side:
            bounds = [self._constant(f"cut.{bound}", [bound, bound]) for bound in (0, edge)]
            x = self._op("Slice", x, *bounds, self._constant("cut.axes", [1, 2]))
        # Sort the lines of patches, from their order in the frame to the order of patches.
        x = self._op("Reshape", x, self._constant("cut.lines", [-1, patch, grid, line]))
        x = self._op("Transpose", x, perm=[0, 2, 1, 3])
        size = [-1, self.patches, patch * line]
        x = self._op("Reshape", x, self._constant("cut.patches", size))
        # Bytes to numbers, and one product.
        levels = self._constant("step", self.image.levels.step, self.dtype)
        x = self._op("DequantizeLinear", x, levels, self._constant("centre", CENTRE, np.uint8))
        name = f"{self.prefix}.embeddings.patch_embedding.weight.levels"
        weight = self._stored(name, lambda: self._patch_layer[0])
        return self._op("MatMul", x, weight)

    @cached_property
    def _patch_layer(self) -> tuple[Float64, Float64]:
        """Weight and bias of the linear layer on a patch's ``(byte - CENTRE) * step``."""
        patch, hidden = self.image.patch, self.shape.hidden
        name = f"{self.prefix}.embeddings.patch_embedding"
        kernel = self._read_float64(f"{name}.weight", hidden, 3, patch, patch)
        weight, bias = self.image.levels.folded(kernel.transpose(2, 3, 1, 0))
        if not self.class_token:
            bias = bias + self._read_float64(f"{name}.bias", hidden)
        return weight.reshape(-1, hidden), bias

    def _embed_with_class(self, patches: str) -> State:
        """Embed an image as CLIP does: a class token first, and a norm before the first layer."""
        hidden, prefix = self.shape.hidden, f"{self.prefix}.embeddings"
        pads = self._constant("class", [0, 1, 0, 0, 0, 0])
        x = self._op("Pad", patches, pads)

        def table() -> Float64:
            # The class token's row of patches is zeros, so its embedding is part of its position.
            rows = self.patches + 1
            positions = self._read_float64(f"{prefix}.position_embedding.weight", rows, hidden)
            positions[0] += self._read_float64(f"{prefix}.class_embedding", hidden)
            positions[1:] += self._patch_layer[1]
            return positions

        norm = f"{self.prefix}.pre_layrnorm"  # the misspelling is transformers'
        affine = [self._weight(f"{norm}.{part}", hidden) for part in ("weight", "bias")]
        inputs = [x, self._stored("positions", table), *affine]
        settings = {"domain": MICROSOFT, "epsilon": self.shape.epsilon}
        stream = self._op("SkipLayerNormalization", *inputs, **settings)
        return State(stream, self._normed(stream))

    def _embed(self, patches: str) -> State:
        """Embed an image as SigLIP does: no class token, and no norm but the first layer's."""
        hidden, name = self.shape.hidden, f"{self.prefix}.embeddings.position_embedding.weight"

        def table() -> Float64:
            return self._read_float64(name, self.patches, hidden) + self._patch_layer[1]

        return self._add_and_norm(patches, self._stored("positions", table))

    def _pools(self, layer: int) -> bool:
        return self.class_token and super()._pools(layer)

    def _pooled(self, x: str) -> str:
        return self._op("Gather", x, self._constant("first", [0]), axis=1)

    def _head(self, x: str, norm: str) -> str:
        """Pool an image as SigLIP does: attention by one learnt query, then a perceptron."""
        prefix, hidden = f"{self.prefix}.head", self.shape.hidden
        # Attention; the query is the same for all images.
        batch = self._op("Shape", x, end=1)
        size = self._op("Concat", batch, self._constant("query.size", [1, hidden]), axis=0)
        query = self._op("Expand", self._stored("query", lambda: self._query(prefix)), size)
        projections = [f"{prefix}.attention.{part}_proj" for part in "kv"]
        y = self._attention([query, *self._products(x, norm, projections, hidden)])
        y = self._product_without_bias(y, f"{prefix}.attention.out_proj", hidden, hidden)
        # There is no residual: the bias takes its place, one row for all images.
        bias = f"{prefix}.attention.out_proj.bias"
        row = self._stored(f"{bias}.row", lambda: self._read(bias, hidden)[None, None])
        state = self._add_and_norm(y, row)
        # The multi-layer perceptron and its residual.
        y = self._mlp(state.normed, f"{prefix}.layernorm", f"{prefix}.mlp")
        y = self._op("Add", y, self._weight(f"{prefix}.mlp.fc2.bias", hidden))
        return self._op("Add", y, state.stream)

    def _query(self, prefix: str) -> Float64:
        """Compute the projected query (1, 1, hidden)."""
        hidden = self.shape.hidden
        weight, bias = self._linear_layer(f"{prefix}.attention.q_proj", hidden, hidden)
        query: Float64 = self._read_float64(f"{prefix}.probe", 1, 1, hidden) @ weight + bias
        return query


class _SplitHead:
    """Weights in which the joint projection of SigLIP's head, as torch has it, is three."""

    def __init__(self, weights: Tensors) -> None:
        self._weights = weights

    def __contains__(self, name: str) -> bool:
        return self._joined(name)[0] in self._weights

    def shape(self, name: str) -> tuple[int, ...]:
        """Return the shape of a tensor, without reading it."""
        stored, part = self._joined(name)
        first, *rest = self._weights.shape(stored)
        return (first if part is None else first // 3, *rest)

    def read(self, name: str) -> Float32:
        """Read a tensor as float32."""
        stored, part = self._joined(name)
        array = self._weights.read(stored)
        return array if part is None else array.reshape(3, -1, *array.shape[1:])[part]

    def slices(self, name: str) -> Iterator[Float32]:
        """Read a tensor as float32 in slices of rows; a third is one slice."""
        stored, part = self._joined(name)
        if part is None:
            yield from self._weights.slices(stored)
        else:
            yield self.read(name)

    @staticmethod
    def _joined(name: str) -> tuple[str, int | None]:
        """Return the name of the stored tensor, and the number of the third; None means all."""
        match = re.fullmatch(r"(.*\.head\.attention\.)([qkv])_proj\.(weight|bias)", name)
        if match is None:
            return name, None
        return f"{match[1]}in_proj_{match[3]}", "qkv".index(match[2])


class TextGraph(ClipGraph):
    """The text tower: token ids of texts of equal length to embeddings.

    Args:
        family: ``"clip"`` or ``"siglip"``.
        shape: the numbers of the tower.
        weights: where weights come from, by transformers' names.
        tensors: where they go.
        precision: one of `CLIP_PRECISIONS`.
    """

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
        """Return the `onnx.ModelProto` without its tensors."""
        prefix, hidden = f"{self.prefix}.embeddings", self.shape.hidden
        # Words and positions, and the layers over them.
        words = self._words(f"{prefix}.token_embedding.weight")
        positions = self._weight(f"{prefix}.position_embedding.weight", self.text.tokens, hidden)
        state = self._add_and_norm(words, self._first(positions))
        if self.causal:
            self.end = self._end()
        state = self._layers(state)
        # The final norm and projection of the pooled token.
        head = "text_projection" if self.causal else f"{self.prefix}.head"
        (y,) = self._products(
            state.normed, f"{self.prefix}.final_layer_norm", [head], self.text.out
        )
        return self._finish(y, self._value(INPUT_IDS, np.int32, "batch", "sequence"), self.text.out)

    def _words(self, table: str) -> str:
        """Look up the embeddings of a text's tokens, (batch, sequence, hidden)."""
        size = self.text.words, self.shape.hidden
        if not self.quantised:
            return self._op("Gather", self._weight(table, *size), INPUT_IDS)
        self._check(table, size)
        return self._rounded_rows(INPUT_IDS, *self._rounded_weight(table), HEAD)

    def _first(self, table: str) -> str:
        """Slice the first rows of a table, as many as a text has tokens."""
        length = self._op("Shape", INPUT_IDS, start=1, end=2)
        return self._op("Slice", table, self._constant("start", [0]), length)

    def _end(self) -> str:
        """Find the pooled token of each text, (batch, 1): its first end, otherwise its first token.

        TopK finds the token of the greatest score, without a reduction. The scores fall from token
        to token, so the first of several ends has the greatest.
        """
        tokens = self.text.tokens
        scale = self._constant("tokens", tokens, np.int32)
        # An end scores more than any other token; the highest id is an end if the id is unknown.
        if self.text.end == _LEGACY_END:
            score = self._op("Mul", INPUT_IDS, scale)
        else:
            end = self._op("Equal", INPUT_IDS, self._constant("end", self.text.end, np.int32))
            score = self._op("Where", end, scale, self._constant("no", 0, np.int32))
        # Earlier tokens score more than later ones.
        falling = self._constant("fewer", np.arange(tokens)[::-1], np.int32)
        score = self._op("Add", score, self._first(falling))
        end = f"end.{len(self.nodes)}"
        self._add("TopK", [score, self._constant("one", [1])], [f"{end}.score", end])
        return end

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
    """Write ``image.onnx`` and ``text.onnx`` to a folder, one graph for each shape.

    Args:
        draft: the folder.
        family: one of `CLIP_FAMILIES`.
        shapes: of one tower or of both.
        weights: by transformers' names.
        precision: one of `CLIP_PRECISIONS`.

    Raises:
        GranAlignError: a tensor is missing or misshapen, or the graph cannot be written.
    """
    for shape in shapes:
        name = "image" if isinstance(shape, ImageShape) else "text"
        path = draft / f"{name}.onnx"

        def graph(tensors: GraphTensors, shape: ImageShape | TextShape = shape) -> Any:
            if isinstance(shape, ImageShape):
                return ImageGraph(family, shape, weights, tensors, precision=precision).model()
            return TextGraph(family, shape, weights, tensors, precision=precision).model()

        try:
            if precision == "int8":
                # ONNX Runtime maps weights that are in a file of their own.
                data = path.with_suffix(".onnx_data")
                with data.open("wb") as file:
                    model = graph(TensorFile(file, data.name))
                path.write_bytes(model.SerializeToString())
            else:
                with path.open("wb") as file:
                    tensors = EmbeddedTensors(file)
                    tensors.finish(graph(tensors))
        except (OSError, MemoryError) as error:
            raise GranAlignError(
                f"{path}: the {name} tower cannot be written ({one_line(error)}); free memory "
                f"and disk, or choose another model"
            ) from None
