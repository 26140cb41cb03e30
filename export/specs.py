"""Facts about exports as data: names, axes, supported models, precisions and their tolerances."""

from __future__ import annotations

from dataclasses import dataclass

OPSET = 23
"""The first ONNX opset with `Attention`."""
IR_VERSION = 11
MICROSOFT = "com.microsoft"
"""The domain of ONNX Runtime's own operators."""
"""The file format that goes with opset 23, so that older runtimes can read the file."""

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

POOLINGS = {"pooling_mode_mean_tokens": "mean", "pooling_mode_cls_token": "cls"}
"""Flags of ``1_Pooling/config.json`` and what we call them."""

MODEL_TYPES = {
    "albert": 0,
    "bert": 0,
    "camembert": 2,
    "distilbert": 0,
    "electra": 0,
    "mpnet": 2,
    "roberta": 2,
    "xlm-roberta": 2,
}
"""Text encoders that can be exported, and how many of their positions hold no token."""

OPTIMUM_OPSET = 18
"""What optimum, and torch's tracing exporter beneath it, are asked for: `ReduceMean` takes its axes
as an input from here on."""


@dataclass(frozen=True)
class ClipFamily:
    """What transformers calls a family's model, and how its text tower was trained."""

    model: str
    padded: bool
    """Whether every text is padded to the model's length, and the last token pooled whatever it
    is. Otherwise attention is causal and pools at the end-of-text token: padding changes nothing,
    and so there is none."""


CLIP_FAMILIES = {
    "clip": ClipFamily("CLIPModel", padded=False),
    "siglip": ClipFamily("SiglipModel", padded=True),
}
"""By ``model_type`` of ``config.json``."""

CLIP_PROCESSORS = ("CLIPImageProcessor", "SiglipImageProcessor")
"""Image processors that `clip.Preprocessing` equals to the bit."""

CLIP_PRECISIONS = ("fp32", "fp16")


@dataclass(frozen=True)
class Tolerance:
    """How far an export may be from its source on `sentences.VALIDATION`, all rows unit length."""

    max_abs_error: float
    min_cosine: float
    mean_cosine: float


@dataclass(frozen=True)
class Precision:
    """What a precision is called, what it may cost, and where it can run.

    Attributes:
        graph: the version of our own BERT's graph, in the name of a cached export: a new graph is
            written where there is one of an earlier version.
    """

    name: str
    tolerance: Tolerance
    devices: tuple[str, ...] = ("cpu", "cuda", "tensorrt")
    graph: str = ""


PRECISIONS = {
    precision.name: precision
    for precision in (
        # Sums in another order: 3e-7 measured, and 1e-5 cannot move a ranking.
        Precision("fp32", Tolerance(1e-5, 0.99999, 0.99999)),
        # 11 bits of mantissa over every layer: 3e-4 measured.
        Precision("fp16", Tolerance(5e-3, 0.9999, 0.9999), graph="-padded"),
        # 8 bits: the mean counts for retrieval, the worst sentence guards against a bad range.
        # Only the CPU has kernels for 8-bit matrix products with a float result.
        Precision("int8", Tolerance(0.1, 0.95, 0.99), devices=("cpu",)),
    )
}


# The int8 recipe. The cosines are means over 4,000 video captions, all-MiniLM-L6-v2, against fp32:
# 0.9940 with a scale from each batch, 0.9905 with fixed scales alone, 0.9982 with all of the below.

WEIGHT_LEVELS = 64
"""Weights are integers from minus this to this. A processor without VNNI adds products in pairs in
16 bits: 2 * 255 * 64 fits, 2 * 255 * 127 does not. All of 127 would give 0.9991 with VNNI, but
0.993 without; so an export gives the same embeddings on every x86."""

SMOOTHING = {"qkv": 0.6, "out": 0.5, "up": 0.6, "down": 0.6}
"""How the spread of values is shared between an activation's channels and the weights: channel c
is divided by `max|activation| ** s / max|weight| ** (1 - s)` and row c of the weights multiplied by
it, so that one scale fits all channels (SmoothQuant). A tenth more or less hardly matters."""

FLOAT_CHANNELS = {"qkv": 0, "out": 0, "up": 0, "down": 4}
"""How many channels of an activation stay in float32, those of the greatest range times weight. In
BERTs one or two a layer are a hundred times as strong as the rest, and a scale that holds them
drowns the others: 0.001 of cosine. More than 4 gain nothing."""

RANGE_HEADROOM = 1.1
"""Measured ranges are widened by this much, as a clipped outlier costs more than a coarser step."""


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

ENGINE_PRECISIONS = {
    "fp32": PRECISIONS["fp32"].tolerance,
    "fp16": PRECISIONS["fp16"].tolerance,
    # 8 bits of mantissa: 4e-3, 0.9998 and 0.9999 measured with torch, all-MiniLM-L6-v2.
    "bf16": Tolerance(0.04, 0.998, 0.999),
}
"""What an engine computes in, and how far its embeddings may be from those of the ONNX that it was
built from; those of a vision tower are in `vlm_specs.VISION_ENGINES`."""
