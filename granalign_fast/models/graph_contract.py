"""Names that exporters write and the runtime reads: files, tensors, axes and batch sizes.

Exporters and the runtime both import this module, so a name cannot differ between them. The order
is: all models, sentence encoders, frame encoders, language models, vision-language models, and last
the shapes that TensorRT engines are built for.
"""

from __future__ import annotations

from dataclasses import dataclass

from .manifest import CLIP, SENTENCE_ENCODER, VLM

# All models.

OPSET = 23
"""ONNX opset of every graph but `STATIC_GRAPH`: the first opset with `Attention`."""

IR_VERSION = 11
"""ONNX file format that goes with opset 23. It is set so that older runtimes can read the file."""

INPUT_IDS = "input_ids"
"""Token ids (batch, sequence): int32 for encoders, int64 for language models.

An encoder's texts have equal length. Without padding it needs no mask, attention runs on its
fastest path, and a text's embedding cannot depend on the other texts of its batch."""

ATTENTION_MASK = "attention_mask"
"""int64, 0 for padding: (batch, past + sequence) for language models, where only `GRAPH` takes it,
and (batch, sequence) for sentence encoders that optimum exported."""

EMBEDDINGS = "embeddings"
"""Output of every encoder: float32 (batch, dim)."""

# Sentence encoders.

SENTENCE_GRAPH = "model.onnx"
"""The graph that every sentence encoder has. It takes `INPUT_IDS`, or `PADDED_IDS` in fp16."""

PACKED_GRAPH = "packed.onnx"
"""The graph of packed texts, for the CPU. A GPU runs a graph that takes `PADDED_IDS`."""

PADDED_IDS = "padded_ids"
"""int32 (batch, sequence): each token's id plus one, and 0 for padding. Texts may have any lengths.

The fp16 graph takes texts this way. It is made for a GPU, where a run costs more than some padding.
"""

POSITIONS, MASK, POOL = "positions", "mask", "pool"
"""Further inputs of `PACKED_GRAPH`, which packs several texts into each row.

``positions``: int32 (batch, sequence), each token's position in its own text.
``mask``: float32 (sequence, sequence), 0 between tokens of one text, minus infinity elsewhere.
``pool``: float32 (batch, texts, sequence), the weights that sum a text's tokens to its embedding.
The output has shape (batch * texts, dim)."""

TOKEN_TYPE_IDS = "token_type_ids"
"""int64 (batch, sequence), all 0: an input of sentence encoders that optimum exported."""

ENCODER_DEVICES: dict[str, tuple[str, ...]] = {
    "fp32": ("cpu", "cuda", "tensorrt"),
    "fp16": ("cpu", "cuda", "tensorrt"),
    # Only the CPU has kernels for 8-bit matrix products with a float result.
    "int8": ("cpu",),
}
"""Devices that can run a sentence encoder, by its precision."""

# Frame encoders.

IMAGE_GRAPH = "image.onnx"
"""The image tower: from `FRAMES` to `EMBEDDINGS`."""

TEXT_GRAPH = "text.onnx"
"""The text tower: from `INPUT_IDS` to `EMBEDDINGS`."""

FRAMES = "frames"
"""uint8 (batch, height, width, 3): RGB, resized and cropped to the model's size."""

# Language models. optimum's `ORTModelForCausalLM` looks for these names.

GRAPH = "model.onnx"
"""Takes a mask, so rows may be padded on the left. `ORTModelForCausalLM` opens this file."""

STATIC_GRAPH = "static.onnx"
"""The same weights with a KV cache of fixed address and fixed capacity, for a GPU.

Rows are padded on the right, where causality hides the padding, so the graph takes no mask: even a
mask that hides nothing loses ONNX Runtime's Flash kernel. Shapes are equal in every step, so a CUDA
graph can hold one step."""

STATIC_OPSET = 24
"""ONNX opset of `STATIC_GRAPH`: it has `TensorScatter`, and `Attention` over the first tokens of a
cache."""

WEIGHTS = "model.onnx_data"
"""External data of `GRAPH` and `STATIC_GRAPH`."""

POSITION_IDS = "position_ids"
"""int64 (batch, sequence): a token's position in its own row; padding does not count.

Decoders of vision-language models take int64 (3, batch, sequence): time, row and column."""

LOGITS = "logits"
"""float32 (batch, 1, vocabulary): the logits of the last position."""

PAST, PRESENT = "past_key_values", "present"
"""Prefixes of the names of a KV cache's inputs and outputs."""


def past_names(layer: int) -> tuple[str, str]:
    """Return the input names of a layer's keys and values, both in the graph's dtype.

    `GRAPH` takes (batch, kv_heads, past, head_dim). `STATIC_GRAPH` takes (batch, capacity,
    kv_heads * head_dim), and its outputs have the same shape.
    """
    return f"{PAST}.{layer}.key", f"{PAST}.{layer}.value"


def present_names(layer: int) -> tuple[str, str]:
    """Return the output names of a layer's keys and values.

    `GRAPH` gives (batch, kv_heads, past + sequence, head_dim) in its own dtype.
    """
    return f"{PRESENT}.{layer}.key", f"{PRESENT}.{layer}.value"


def present_of(past: str) -> str:
    """Return the output that continues a cache input.

    >>> present_of("past_key_values.3.key")
    'present.3.key'
    """
    return past.replace(PAST, PRESENT, 1)


def is_past(name: str) -> bool:
    """Return whether an input holds keys or values of a KV cache."""
    return name.startswith(f"{PAST}.")


WRITE_INDICES = "write_indices"
"""int64 (batch,), `STATIC_GRAPH`: the cache position of a row's first new token."""

CACHED_TOKENS = "cached_tokens"
"""int64 (batch,), `STATIC_GRAPH`: a row's tokens in the cache, including all new ones."""

LAST = "last"
"""(batch, 1, sequence) in the graph's dtype, `STATIC_GRAPH`: 1 for the token whose logits are
returned, 0 for the others."""

# Vision-language models. Their decoders have the files and tensors of a language model as well.

VISION_GRAPH = "vision.onnx"
"""The vision tower from `FRAMES` to `IMAGE_EMBEDS`; the runtime uses it."""

PATCHES_GRAPH = "patches.onnx"
"""The vision tower from `PIXEL_VALUES`, with the same weights, for transformers' processor."""

EMBEDDING_GRAPH = "embedding.onnx"
"""From token ids to `INPUTS_EMBEDS`, for `GRAPH`."""

CLIPS_GRAPH = "clips.onnx"
"""The vision tower for clips of several frames, with the same weights, where an image of the tower
spans several frames. Its `FRAMES` have shape (batch, span, height, width, 3)."""

VISION_WEIGHTS = "vision.onnx_data"
"""External data of `VISION_GRAPH`, `CLIPS_GRAPH` and `PATCHES_GRAPH`. All other graphs keep theirs
in `WEIGHTS`."""

PIXEL_VALUES = "pixel_values"
"""float32 (batch, patches, channels * frames * height * width of a patch): normalised patches in
the order of transformers' processor, which goes through the merged tokens row by row."""

IMAGE_EMBEDS = "image_embeds"
"""(batch, image tokens, hidden) in the decoder's dtype: rows of tokens from the top."""

DEEPSTACK = "deepstack"
"""Features of the vision tower that are added after each of the decoder's first layers, in the
decoder's dtype. The vision graphs give (batch, layers, image tokens, hidden). The decoders take
(rows, layers, tokens, hidden), 0 at text; each of rows and tokens may be 1, which stands for all.
Only some families have it."""

INPUTS_EMBEDS = "inputs_embeds"
"""(batch, sequence, hidden) in the decoder's dtype: `GRAPH` takes these in place of token ids."""

IMAGE_AT = "image_at"
"""int64 (batch,), `STATIC_GRAPH`: the index of the first token that `IMAGE_EMBEDS` replace.

`STATIC_GRAPH` takes token ids, `IMAGE_EMBEDS` and this index, and writes the image over the
embeddings of the ids at that position. Without an image, `IMAGE_EMBEDS` has shape
(batch, 0, hidden) and this index is 0."""

# Shapes for TensorRT.

DYNAMIC_AXES = {
    "batch": "batch",
    "batch_size": "batch",
    "sequence": "tokens",
    "sequence_length": "tokens",
}
"""From the names that our exporters and optimum give a dynamic axis to what it counts."""


@dataclass(frozen=True)
class EngineGraph:
    """A graph that TensorRT runs, and the shapes that its engine is built for.

    Attributes:
        file: its name in the exported folder.
        batches: batch sizes, ascending from 1. Each costs building time and some memory. With steps
            of four, padding wastes less than half of a run (`runtime.shapes.runs`), and rarely that
            much.
        tokens: the length of texts that kernels are chosen for; None for a graph without texts.
        by_provider: whether ONNX Runtime's TensorRT provider can run the whole graph. The provider
            then needs only the shapes of the inputs.
    """

    file: str
    batches: tuple[int, ...]
    tokens: int | None = None
    by_provider: bool = True


# Graphs with `by_provider=False` rearrange bytes before they cast them to numbers, and TensorRT can
# only cast bytes. Their engines are built from a graph that casts first; the provider would split
# the exported graph in two.
ENGINE_GRAPHS = {
    # Captions and rewrites have 10 to 30 tokens.
    SENTENCE_ENCODER: (EngineGraph(SENTENCE_GRAPH, (1, 4, 16, 64, 256), tokens=24),),
    CLIP: (
        EngineGraph(IMAGE_GRAPH, (1, 4, 16, 64), by_provider=False),
        EngineGraph(TEXT_GRAPH, (1, 4, 16, 64), tokens=16),
    ),
    VLM: (
        EngineGraph(VISION_GRAPH, (1, 4, 16), by_provider=False),
        EngineGraph(CLIPS_GRAPH, (1, 4, 16), by_provider=False),
    ),
}
"""The graphs that TensorRT runs, by the manifest's kind; not every folder has `CLIPS_GRAPH`.
TensorRT runs no decoders, as these have caches."""
