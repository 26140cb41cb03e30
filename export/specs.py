"""Facts about exports as data: names, axes, supported models, precisions and their tolerances."""

from __future__ import annotations

from dataclasses import dataclass

"""The file format that goes with opset 23, so that older runtimes can read the file."""


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
    """What a precision is called, and what it may cost.

    Attributes:
        graph: the version of our own BERT's graph, in the name of a cached export: a new graph is
            written where there is one of an earlier version.
    """

    name: str
    tolerance: Tolerance
    graph: str = ""


PRECISIONS = {
    precision.name: precision
    for precision in (
        # Sums in another order: 3e-7 measured, and 1e-5 cannot move a ranking.
        Precision("fp32", Tolerance(1e-5, 0.99999, 0.99999)),
        # 11 bits of mantissa over every layer: 3e-4 measured.
        Precision("fp16", Tolerance(5e-3, 0.9999, 0.9999), graph="-padded"),
        # 8 bits: the mean counts for retrieval, the worst sentence guards against a bad range.
        Precision("int8", Tolerance(0.1, 0.95, 0.99)),
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


ENGINE_PRECISIONS = {
    "fp32": PRECISIONS["fp32"].tolerance,
    "fp16": PRECISIONS["fp16"].tolerance,
    # 8 bits of mantissa: 4e-3, 0.9998 and 0.9999 measured with torch, all-MiniLM-L6-v2.
    "bf16": Tolerance(0.04, 0.998, 0.999),
}
"""What an engine computes in, and how far its embeddings may be from those of the ONNX that it was
built from; those of a vision tower are in `vlm_specs.VISION_ENGINES`."""
