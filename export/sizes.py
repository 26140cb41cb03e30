"""The sizes of an export, computed from a model's numbers: bytes on disk and bytes in memory.

The rule. On disk an export is its weights, each in the bytes that its precision gives it, and the
table of rotary positions. In memory it is the same weights; the keys and values of the largest
batch that the product runs with its default settings; and the activations of the widest layer. A
set adds the prefixes of frames that are kept.

Not counted: graphs and tokenizers (a few megabytes), the padding of tensors to pages, and what
Python, ONNX Runtime and CUDA need themselves.
"""

from __future__ import annotations

import inspect
import math
from typing import Any

from granalign_fast.language import prompts
from granalign_fast.language.captioner import VlmCaptioner
from granalign_fast.language.llm_rewriter import LlmRewriter
from granalign_fast.models.manifest import SENTENCE_ENCODER
from granalign_fast.models.prefix_cache import KEPT_BYTES
from granalign_fast.models.published import (
    DecoderNumbers,
    ModelSet,
    PublishedModel,
    TowerNumbers,
    precision_of,
)

from .specs import BLOCK, HEAD_BITS, IMAGE_SIZE, LINEAR_BITS

_CHARACTERS = 3
"""Characters of English that a token stands for, at least: byte-level vocabularies have 4 to 5."""

_QUERY = "x" * 100
"""A query that is longer than most: the mean of QVHighlights is 59 characters."""

_TEMPLATE = 32
"""Tokens that a chat template adds, at most."""


def disk_bytes(model: PublishedModel, precision: str) -> int:
    """Return the bytes of a model's export on disk."""
    if model.kind == SENTENCE_ENCODER and precision == "fp32":
        return 2 * _weights(model, precision)  # model.onnx and packed.onnx each hold the weights
    return _weights(model, precision)


def memory_bytes(model: PublishedModel, precision: str) -> int:
    """Return the bytes that a loaded model needs while it works on its largest batch."""
    return _weights(model, precision) + _work(model, precision)


def set_memory_bytes(models: ModelSet) -> int:
    """Return the bytes of a set's models at work, all at once.

    On a CPU this includes the prefixes of frames that are kept in the machine's memory. A GPU's
    memory does not hold them.
    """
    work = sum(
        memory_bytes(model, precision_of(model.kind, models.precision)) for model in models.models
    )
    return work + (KEPT_BYTES if models.precision == "int4" else 0)


def _weights(model: PublishedModel, precision: str) -> int:
    if model.decoder is None:
        return model.parameters * _width(precision)
    tower = 0 if model.tower is None else _tower(model.tower, _width(precision))
    return _decoder(model.decoder, precision) + tower


def _width(precision: str) -> int:
    """Return the bytes of a weight that is not quantised, and of an activation."""
    return 2 if precision == "fp16" else 4


def _decoder(d: DecoderNumbers, precision: str) -> int:
    width, quantised = _width(precision), precision == "int4"
    queries, keys = d.heads * d.head_dim, d.kv_heads * d.head_dim
    # The products of a layer: rows and columns.
    products = [
        (queries + 2 * keys, d.hidden),
        (d.hidden, queries),
        (d.wide, d.hidden),
        (d.wide, d.hidden),
        (d.hidden, d.wide),
    ]
    small = 2 * d.hidden + d.biased * (queries + 2 * keys) + d.head_norms * 2 * d.head_dim
    layer = small * width
    for rows, columns in products:
        layer += block_bytes(rows, columns, LINEAR_BITS) if quantised else rows * columns * width
    # The table of embeddings, and the last product, which may be the same.
    table = d.vocabulary * d.hidden
    ends = table * (2 if quantised else width) + d.hidden * width
    if quantised:
        ends += block_bytes(d.vocabulary, d.hidden, HEAD_BITS)
    elif not d.tied:
        ends += table * width
    rotary = 2 * d.context * (d.head_dim // 2) * width
    return d.layers * layer + ends + rotary


def block_bytes(rows: int, columns: int, bits: int) -> int:
    """Return the bytes of a quantised weight: values, scales in float32, and zero points."""
    blocks = math.ceil(columns / BLOCK)
    return rows * (blocks * (BLOCK * bits // 8 + 4) + math.ceil(blocks * bits / 8))


def _tower(t: TowerNumbers, width: int) -> int:
    joined = t.hidden * t.merge**2
    layer = 4 * t.hidden**2 + 3 * t.hidden * t.wide + 2 * t.hidden  # products and norms
    layer += 3 * t.hidden + t.hidden + 2 * t.wide + t.hidden  # their biases
    # The kernel of patches is stored twice: for frames, summed over time, and for pixels.
    patches = (1 + t.temporal) * 3 * t.patch**2 * t.hidden
    merger = t.hidden + joined * (joined + 1) + t.out * (joined + 1)
    return (t.layers * layer + patches + merger) * width


def _work(model: PublishedModel, precision: str) -> int:
    """Return the bytes of keys and values, and of the widest layer's activations."""
    d, t, width = model.decoder, model.tower, _width(precision)
    if d is None:
        return 0
    if t is None:
        # One query: all of its prompts in one batch.
        tasks = (*prompts.SIMPLIFIED, *prompts.DETAILED, prompts.ENTITIES)
        longest = max(len(prompts.user_message(task, _QUERY)) for task in tasks)
        rows = prefilled = len(tasks)
        tokens = _tokens(len(prompts.SYSTEM) + longest)
        answer = _default(LlmRewriter, "max_new_tokens")
        kept = tokens  # the rewriter keeps what stands before the query
        vision = 0
    else:
        # A batch of captions, each behind its frame.
        asked = (prompts.AGNOSTIC_CAPTION, prompts.aware_caption([_QUERY]))
        longest = max(map(len, (*asked, prompts.recognition(_QUERY))))
        rows, prefilled = _default(VlmCaptioner, "batch"), _default(VlmCaptioner, "rows")
        patches = IMAGE_SIZE[0] * IMAGE_SIZE[1] // t.patch**2
        tokens = patches // t.merge**2 + _tokens(len(prompts.VISION_SYSTEM) + longest)
        answer, kept = _default(VlmCaptioner, "max_new_tokens"), 0
        vision = prefilled * patches * (2 * t.wide + 4 * t.hidden) * width
    cache = rows * (kept + tokens + answer) * d.layers * 2 * d.kv_heads * d.head_dim * width
    prefill = prefilled * tokens * (2 * d.wide + 4 * d.hidden) * width
    return cache + max(prefill, vision) + rows * d.vocabulary * 4  # the last: logits


def _tokens(characters: int) -> int:
    return math.ceil(characters / _CHARACTERS) + _TEMPLATE


def _default(owner: type[Any], name: str) -> int:
    """Return the default of a class's argument: the batch that the product runs."""
    return int(inspect.signature(owner).parameters[name].default)
