"""Facts about exports as data: supported models, precisions, tolerances and rounding recipes.

In this order: sentence encoders, their int8 recipe, frame encoders, language models and their int4
recipe, vision-language models, TensorRT engines. Names of files and tensors, which the runtime
needs too, are in `granalign_fast.models.graph_contract`.
"""

from __future__ import annotations

from dataclasses import dataclass

# Sentence encoders.

POOLINGS = {
    "mean": "mean",
    "cls": "cls",
    "lasttoken": "last",
    "pooling_mode_mean_tokens": "mean",
    "pooling_mode_cls_token": "cls",
    "pooling_mode_lasttoken": "last",
}
"""Names in ``1_Pooling/config.json`` and flags of its older form, and our names for them."""

MODEL_TYPES = {
    "albert": 0,
    "bert": 0,
    "camembert": 2,
    "distilbert": 0,
    "electra": 0,
    "gemma3_text": 0,
    "modernbert": 0,
    "mpnet": 2,
    "qwen3": 0,
    "roberta": 2,
    "xlm-roberta": 2,
}
"""Supported text encoders, and how many of their positions can hold no token."""

MOST_TOKENS = 8192
"""Length of the longest text of any sentence encoder, special tokens included; Qwen3-Embedding
states 32,768. On a CPU the memory of a text grows with the square of its length: 16 heads take 4 GB
at this length, and 64 GB at four times of it."""

HEADED_TYPES = ("gemma3_text", "qwen3")
"""Text encoders that may have layers between pooling and unit length."""

OPTIMUM_OPSET = 18
"""The opset that optimum, and torch's tracing exporter below it, write for encoders other than
BERT. It is the first in which `ReduceMean` takes its axes as an input."""


@dataclass(frozen=True)
class Tolerance:
    """How far embeddings of unit length may be from the source's, on `sentences.VALIDATION`."""

    max_abs_error: float
    min_cosine: float
    mean_cosine: float


@dataclass(frozen=True)
class Precision:
    """A precision's name and tolerance.

    Attributes:
        graph: version of our own BERT graph, part of the name of a cached export. A new version
            makes a new export, even if the cache holds one of an earlier version.
    """

    name: str
    tolerance: Tolerance
    graph: str = ""


PRECISIONS = {
    precision.name: precision
    for precision in (
        # Sums in another order: 3e-7 measured, and 1e-5 cannot change a ranking.
        Precision("fp32", Tolerance(1e-5, 0.99999, 0.99999)),
        # 11 bits of mantissa over every layer: 3e-4 measured.
        Precision("fp16", Tolerance(5e-3, 0.9999, 0.9999), graph="-padded"),
        # 8 bits: retrieval depends on the mean; the worst sentence would show a wrong range.
        Precision("int8", Tolerance(0.1, 0.95, 0.99)),
    )
}
"""Precisions of sentence encoders; frame encoders have those of `CLIP_PRECISIONS`."""

# The int8 recipe. The cosines are means over 4,000 video captions, all-MiniLM-L6-v2, against fp32:
# 0.9940 with a scale from each batch, 0.9905 with fixed scales alone, 0.9982 with all of the below.

WEIGHT_LEVELS = 64
"""Weights are integers from -64 to 64. A processor without VNNI adds products in pairs in 16 bits:
2 * 255 * 64 fits, 2 * 255 * 127 does not. 127 would give a cosine of 0.9991 with VNNI but 0.993
without it; with 64 an export gives the same embeddings on every x86 processor."""

SMOOTHING = {"qkv": 0.6, "out": 0.5, "up": 0.6, "down": 0.6}
"""SmoothQuant's exponent s for each product: it shares the spread of values between the channels
of an activation and the weights. Channel c is divided by
`max|activation| ** s / max|weight| ** (1 - s)` and row c of the weights is multiplied by it, so
that one scale fits all channels. A change of 0.1 hardly matters."""

FLOAT_CHANNELS = {"qkv": 0, "out": 0, "up": 0, "down": 4}
"""How many channels of an activation stay in float32: those with the greatest range times weight.
In BERTs one or two channels a layer are a hundred times as strong as the rest. A scale that holds
them leaves too few steps for the others: 0.001 of cosine. More than 4 channels gain nothing."""

RANGE_HEADROOM = 1.1
"""Factor that widens measured ranges: a clipped outlier costs more than a coarser step."""

# Frame encoders: CLIP and SigLIP.


@dataclass(frozen=True)
class ClipFamily:
    """The name of a family's model in transformers, and how its text tower was trained."""

    model: str
    padded: bool
    """Whether every text is padded to the model's length, and the last token is pooled even if it
    is padding. Otherwise attention is causal and the end-of-text token is pooled: padding would
    change nothing, so there is none."""


CLIP_FAMILIES = {
    "clip": ClipFamily("CLIPModel", padded=False),
    "siglip": ClipFamily("SiglipModel", padded=True),
}
"""By ``model_type`` of ``config.json``."""

CLIP_PROCESSORS = ("CLIPImageProcessor", "SiglipImageProcessor")
"""Image processors that `models.frame_encoder.Preprocessing` equals to the bit."""

CLIP_PRECISIONS = ("fp32", "fp16", "int8")
"""Their tolerances are those of `PRECISIONS`. int8: 8-bit weights in blocks, and activations that a
CPU rounds to 8 bits, each block with its own scale."""

# Language models.

LLM_ARCHITECTURES = {
    "LlamaForCausalLM": "llama",
    "Qwen2ForCausalLM": "qwen2",
    "Qwen3ForCausalLM": "qwen3",
}
"""Architectures whose graph we write, with the `model_type` of each. They differ only in which
biases and norms a checkpoint holds: Qwen2 has biases on query, key and value, Qwen3 has norms on
the heads."""

MASKED = -1e4
"""Added to the scores of padding: float16 can hold it, and its exponential is 0 in every
precision."""

# The rounding of weights in blocks.


@dataclass(frozen=True)
class Rounding:
    """How a weight is rounded: bits of a value, and columns that share a scale and a zero point."""

    bits: int
    block: int


LINEAR = Rounding(4, 128)
"""The products of a decoder's layers in an int4 export: 0.54 bytes a weight on disk, and 0.56 in a
CPU's memory, whose copy has a sum for each block as well. Blocks of 32 columns
would take 0.64 and 0.73 bytes: with them the set `laptop` does not fit in 4 GB. The error of
rounding Gaussian weights is 1.3 times that of blocks of 32, and on the EPYC a product of one row
takes half the time."""

HEAD = Rounding(8, 128)
"""The last product of a language model, its table of embeddings, its vision tower, and an int8
frame encoder: 1.04 bytes a weight. The last product chooses between 100,000
tokens: 4 bits there would cost more than 4 bits in all layers."""

INT8_PRODUCTS = 4
"""MatMulNBits' `accuracy_level` that lets a CPU round activations to 8 bits, each block with its
own scale. A decode step takes a tenth of the time that float32 activations take, and a third of the
fp32 export's. The error of 4 % is a tenth of the error of rounding the weights."""


@dataclass(frozen=True)
class LlmTolerance:
    """How far an export's logits may be from the source's in float32.

    `max_error` is the greatest difference, in units of the logits' root mean square where that is
    over 1. `relative` is the root mean square of the difference over that of the logits.

    An int4 export is compared with the source whose weights are rounded likewise, so that rounding
    cannot hide a wrong graph. `rounding` is the relative error that rounding itself may cause.
    """

    max_error: float
    relative: float
    rounding: float = 0.0


LLM_PRECISIONS = {
    # Sums in another order: 2e-5 and 3e-6 measured.
    "fp32": LlmTolerance(1e-4, 1e-4),
    # 11 bits of mantissa over every layer: 0.025 and 0.006 measured.
    "fp16": LlmTolerance(0.1, 0.02),
    # 0.26 and 0.06 measured. Rounding costs 0.3 to 0.6 on random weights, which are the hardest to
    # round; unrelated logits have a relative error of 1.4.
    "int4": LlmTolerance(1.0, 0.2, rounding=0.8),
}
"""fp32; fp16: weights, activations and cache; int4: 4-bit weights of the layers' products, 8-bit
weights of the last product and of the table of embeddings, float32 cache."""

# Vision-language models; the decoder has a language model's settings.

VLM_ARCHITECTURES = {
    "Qwen2_5_VLForConditionalGeneration": "qwen2_5_vl",
    "Qwen3VLForConditionalGeneration": "qwen3_vl",
    "SmolVLMForConditionalGeneration": "smolvlm",
}
"""Supported architectures, with the `model_type` of each. `families` has the code of each."""

CLIP_FRAMES = (2, 4, 6)
"""Numbers of frames of a clip that an export takes besides single frames, where its family does."""

IMAGE_PROCESSORS = ("Qwen2VLImageProcessor", "Qwen2VLImageProcessorFast")
"""Image processors whose arithmetic ``vision.onnx`` contains. The fast one resizes differently, but
the graph's frames are resized before."""

PREPROCESSOR = "preprocessor_config.json"
"""File with the settings of the image processor."""

IMAGE_GRID = (12, 20)
"""Rows and columns of a frame's tokens by default: near 16:9. In Qwen2.5-VL these are 336 x 560
pixels and whole windows of 112 pixels, so that windowed attention is one batch. In Qwen3-VL they
are 384 x 640 pixels."""

VISION_EPSILON = 1e-6
"""Epsilon of every norm in the vision towers of Qwen. The sources have it in their code, not in
their settings."""

VISION_THETA = 10000.0
"""Base of the rotary positions of Qwen's vision towers, also from the sources' code."""


@dataclass(frozen=True)
class VlmTolerance:
    """How far an export may be from its source: embeddings of frames, and logits after frames.

    Both are in the units that `LlmTolerance` explains.
    """

    image: LlmTolerance
    logits: LlmTolerance


VLM_PRECISIONS = {
    # Sums in another order: 5e-6 and 1e-6 measured of frames, 5e-5 and 6e-6 of logits.
    "fp32": VlmTolerance(LlmTolerance(1e-4, 1e-4), LLM_PRECISIONS["fp32"]),
    # 11 bits of mantissa: 0.003 and 0.001 measured of frames, 0.042 and 0.005 of logits.
    "fp16": VlmTolerance(LlmTolerance(0.05, 0.02), LLM_PRECISIONS["fp16"]),
    # 0.11 and 0.01 measured of frames, whose rounding costs 0.01; 0.47 and 0.04 of logits, whose
    # rounding costs 0.3 to 0.6.
    "int4": VlmTolerance(LlmTolerance(0.5, 0.05, rounding=0.1), LLM_PRECISIONS["int4"]),
}
"""As `LLM_PRECISIONS`. In int4 the vision tower has 8 bits: over 8 layers of random weights, the
mean cosine of a frame's tokens to float32's is 0.999, and with 4 bits it is 0.91."""

# TensorRT engines, compared with the ONNX that they were built from.

ENGINE_PRECISIONS = {
    "fp32": PRECISIONS["fp32"].tolerance,
    "fp16": PRECISIONS["fp16"].tolerance,
}
"""Precisions that an engine can compute in, those of its graph, and the tolerance of embeddings."""

VISION_ENGINES = {
    "fp32": VLM_PRECISIONS["fp32"].image,
    "fp16": VLM_PRECISIONS["fp16"].image,
}
"""The same for the engine of a vision tower."""
