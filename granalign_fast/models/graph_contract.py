"""What exporters and the runtime agree on: names of files, tensors and axes, and shapes of runs."""

from __future__ import annotations

from dataclasses import dataclass

OPSET = 23
"""The first ONNX opset with `Attention`."""


IR_VERSION = 11


INPUT_IDS = "input_ids"
"""int32 (batch, sequence): token ids of texts of equal length. Without padding no mask is needed,
attention runs on its fastest path, and a text's embedding cannot depend on its neighbours."""


PADDED_IDS = "padded_ids"
"""int32 (batch, sequence): of texts of any lengths, each token's id plus one, and 0 where there is
none. So fp16's graph takes them, for a GPU, where a run costs more than some padding does."""


EMBEDDINGS = "embeddings"
"""float32 (batch, dim)."""


POSITIONS, MASK, POOL = "positions", "mask", "pool"
"""What a graph of packed texts takes besides: int32 (batch, sequence), of each token in its own
text; float32 (sequence, sequence), 0 between tokens of one text and minus infinity elsewhere; and
float32 (batch, texts, sequence), by which the tokens of each text are summed to its embedding. It
gives (batch * texts, dim)."""


PACKED_GRAPH = "packed.onnx"
"""The graph of packed texts, for the CPU; a GPU's graph takes `PADDED_IDS`."""


FRAMES = "frames"
"""uint8 (batch, height, width, 3): RGB, resized and cut to what the model takes."""


@dataclass(frozen=True)
class EngineGraph:
    """A graph that TensorRT runs, and what it is made ready for.

    Attributes:
        file: its name in the exported folder.
        batches: rows of a run, ascending from 1. Each costs building time and some memory; steps
            of four waste less than half of a run (`profiles.runs`) and rarely that.
        tokens: the length of texts that kernels are chosen for; None where there are no texts.
        by_provider: whether ONNX Runtime's TensorRT provider can take it whole; then it needs the
            shapes of these inputs alone.
    """

    file: str
    batches: tuple[int, ...]
    tokens: int | None = None
    by_provider: bool = True


# Graphs that sort bytes before they make numbers of them: TensorRT only casts bytes. An engine is
# built from a graph that casts first, the provider would cut the graph in two.
ENGINE_GRAPHS = {
    # Captions and rewrites have 10 to 30 tokens.
    "sentence-encoder": (EngineGraph("model.onnx", (1, 4, 16, 64, 256), tokens=24),),
    "clip": (
        EngineGraph("image.onnx", (1, 4, 16, 64), by_provider=False),
        EngineGraph("text.onnx", (1, 4, 16, 64), tokens=16),
    ),
    "vlm": (EngineGraph("vision.onnx", (1, 4, 16), by_provider=False),),
}
"""By the manifest's kind. Decoders, with their caches, are not TensorRT's."""


DYNAMIC_AXES = {
    "batch": "batch",
    "batch_size": "batch",
    "sequence": "tokens",
    "sequence_length": "tokens",
}
"""What our exporters and optimum's call an axis, and what it holds."""

ENCODER_DEVICES: dict[str, tuple[str, ...]] = {
    "fp32": ("cpu", "cuda", "tensorrt"),
    "fp16": ("cpu", "cuda", "tensorrt"),
    # Only the CPU has kernels for 8-bit matrix products with a float result.
    "int8": ("cpu",),
}
"""Where a sentence encoder of each precision can run."""

# Language models. These names are optimum's, which `ORTModelForCausalLM` looks for.

POSITION_IDS = "position_ids"
"""int64 (batch, sequence): a token's place in its own row, padding not counted."""


ATTENTION_MASK = "attention_mask"
"""int64 (batch, past + sequence): 0 for padding. Only ``model.onnx`` takes it."""


LOGITS = "logits"
"""float32 (batch, 1, vocabulary): of the last position."""


def past_names(layer: int) -> tuple[str, str]:
    """Inputs: keys and values (batch, kv_heads, past, head_dim) in the graph's dtype.

    Of ``static.onnx`` (batch, capacity, kv_heads * head_dim), and its outputs likewise.
    """
    return f"past_key_values.{layer}.key", f"past_key_values.{layer}.value"


def present_names(layer: int) -> tuple[str, str]:
    """Outputs: keys and values (batch, kv_heads, past + sequence, head_dim)."""
    return f"present.{layer}.key", f"present.{layer}.value"


GRAPH = "model.onnx"
"""Takes a mask, so rows may be padded on their left: what `ORTModelForCausalLM` opens."""


STATIC_GRAPH = "static.onnx"
"""The same weights over a cache that stays where it is, with room for what is to come: what a GPU
runs. Rows are padded on their right, where causality hides the padding, so it takes no mask: one
that masks nothing is enough to lose ONNX Runtime's Flash kernel. Its shapes do not change from step
to step, so that a CUDA graph can hold one."""


STATIC_OPSET = 24
"""TensorScatter, and Attention over the first of a cache's tokens."""


WRITE_INDICES = "write_indices"
"""int64 (batch,): where in the cache the first of a row's new tokens goes."""


CACHED_TOKENS = "cached_tokens"
"""int64 (batch,): tokens of a row in the cache, with all the new ones."""


LAST = "last"
"""(batch, 1, sequence) in the graph's dtype: 1 for the token whose logits are wanted, 0 for others.
"""


WEIGHTS = "model.onnx_data"
"""The external data of both."""


# Vision-language models.

PIXEL_VALUES = "pixel_values"
"""float32 (batch, patches, channels * frames * height * width of a patch): normalised patches in
the order of transformers' processor, which goes through the merged tokens row by row."""


IMAGE_EMBEDS = "image_embeds"
"""(batch, image tokens, hidden) in the decoder's dtype: rows of tokens from the top."""


INPUTS_EMBEDS = "inputs_embeds"
"""(batch, sequence, hidden) in the decoder's dtype. What ``model.onnx`` takes in the place of token
ids; the `POSITION_IDS` of decoders are int64 (3, batch, sequence): time, row and column."""


IMAGE_AT = "image_at"
"""int64 (batch,): which token is the first that `IMAGE_EMBEDS` are for. ``static.onnx`` takes token
ids and both of these, and writes the image over what the ids stand for there. Without an image they
are (batch, 0, hidden) and zeros."""


VISION_GRAPH = "vision.onnx"
"""From `specs.FRAMES`: what the fast loop runs."""


PATCHES_GRAPH = "patches.onnx"
"""From `PIXEL_VALUES`, with the same weights: what goes with transformers' processor."""


EMBEDDING_GRAPH = "embedding.onnx"
"""From token ids to `INPUTS_EMBEDS`, for ``model.onnx``."""


VISION_WEIGHTS = "vision.onnx_data"
"""The external data of the first two; those of all else are in `llm_specs.WEIGHTS`."""
