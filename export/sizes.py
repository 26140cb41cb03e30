"""The sizes of an export, computed from a model's numbers: bytes on disk and bytes in memory.

The rule. On disk an export is its weights, each in the bytes that its precision gives it, and the
table of rotary positions. In memory, a model on a CPU is the layout that ONNX Runtime copies its
rounded weights to, its other weights, its tokenizer, and what it needs at work: the keys and values
of the largest batch that the product runs with its default settings, and the activations of the
widest layer. Tables of which a text reads a few rows stay in their files. A GPU holds the weights
as they are on disk. A set adds the prefixes of frames that are kept and, on a CPU, what Python and
its libraries take.

Not counted: graphs and settings (a few megabytes), the padding of tensors to pages, frames that are
being read, and what CUDA needs itself.
"""

from __future__ import annotations

import inspect
import math
from typing import Any

from granalign_fast.language import prompts
from granalign_fast.language.captioner import CPU_TOKENS, VlmCaptioner
from granalign_fast.language.llm_rewriter import LlmRewriter
from granalign_fast.models.language_model import CACHE_BYTES
from granalign_fast.models.manifest import SENTENCE_ENCODER, VLM
from granalign_fast.models.prefix_cache import CPU_MEMORY_BYTES
from granalign_fast.models.published import precision_of
from granalign_fast.models.published_records import (
    DecoderNumbers,
    ModelSet,
    PublishedModel,
    SquareTowerNumbers,
    TowerNumbers,
)
from granalign_fast.models.vision_language_model import CPU_PIXELS

from .specs import HEAD, IMAGE_GRID, LINEAR, Rounding

_CHARACTERS = 3
"""Characters of English that a token stands for, at least: byte-level vocabularies have 4 to 5."""

_QUERY = "x" * 100
"""A query that is longer than most: the mean of QVHighlights is 59 characters."""

_TEMPLATE = 32
"""Tokens that a chat template adds, at most."""

_TOKEN = 540
"""Bytes that a tokenizer holds for each token of its vocabulary, measured with as many merges."""

_LIBRARIES = 80_000_000
"""Bytes of Python, ONNX Runtime, FFmpeg and NumPy, measured after their import."""


def disk_bytes(model: PublishedModel, precision: str) -> int:
    """Return the bytes of a model's export on disk."""
    if model.kind == SENTENCE_ENCODER and precision == "fp32" and not model.shared:
        return 2 * _weights(model, precision)  # model.onnx and packed.onnx each hold the weights
    return _weights(model, precision)


def memory_bytes(model: PublishedModel, precision: str) -> int:
    """Return the bytes that a loaded model needs while it works on its largest batch."""
    return held_bytes(model, precision) + _work(model, precision)


def set_memory_bytes(models: ModelSet) -> int:
    """Return the bytes of a set's models: all loaded, and those at work that work together."""
    sizes = [(model, precision_of(model.kind, models.precision)) for model in models.models]
    held = sum(held_bytes(*one) for one in sizes)
    if models.precision != "int4":
        return held + sum(_work(*one) for one in sizes)
    # A query is rewritten while frames are prefilled; then they are captioned.
    rewriting = sum(_work(model, p, prefilling=True) for model, p in sizes)
    captioning = sum(_work(model, p) for model, p in sizes if model.kind == VLM)
    return held + max(rewriting, captioning) + CPU_MEMORY_BYTES + _LIBRARIES


def held_bytes(model: PublishedModel, precision: str) -> int:
    """Return the bytes of a loaded model that does not work."""
    if precision not in ("int4", "int8"):
        return _weights(model, precision)
    words = model.words if model.decoder is None else model.decoder.vocabulary
    return _weights(model, precision, held=True) + words * _TOKEN


def _weights(model: PublishedModel, precision: str, *, held: bool = False) -> int:
    """Return the bytes of a model's weights, on disk or, of a rounded one, in a CPU's memory."""
    width = _width(precision)
    if model.decoder is not None:
        tower = 0 if model.tower is None else _tower(model.tower, precision, held)
        return _decoder(model.decoder, precision, held) + tower
    if precision != "int8" or model.kind == SENTENCE_ENCODER:
        return model.parameters * width
    # A frame encoder: its products, and the table of its words.
    table = 0 if held else block_bytes(model.words, model.width, HEAD)
    products = model.parameters - model.words * model.width
    return table + block_bytes(products // HEAD.block, HEAD.block, HEAD, held=held)


def _width(precision: str) -> int:
    """Return the bytes of a weight that is not rounded, and of an activation."""
    return 2 if precision == "fp16" else 4


def _decoder(d: DecoderNumbers, precision: str, held: bool) -> int:
    width, rounded = _width(precision), precision == "int4"
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
        size = rows * columns * width
        layer += block_bytes(rows, columns, LINEAR, held=held) if rounded else size
    # The table of embeddings and the last product, which a tied model stores once. Of the table and
    # of the rotary positions, a CPU reads a few rows from the file.
    table = d.vocabulary * d.hidden * width
    if rounded:
        table = block_bytes(d.vocabulary, d.hidden, HEAD, held=held)
    ends = table * (1 if d.tied or held else 2) + d.hidden * width
    rotary = 0 if held else 2 * d.context * (d.head_dim // 2) * width
    return d.layers * layer + ends + rotary


def block_bytes(rows: int, columns: int, rounding: Rounding, *, held: bool = False) -> int:
    """Return the bytes of a rounded weight: values, scales in float32, and zero points.

    `held` is for those in a CPU's memory: a sum for each block takes the place of its zero point.
    """
    bits, blocks = rounding.bits, math.ceil(columns / rounding.block)
    values = blocks * (rounding.block * bits // 8 + 4)
    return rows * (values + (4 * blocks if held else math.ceil(blocks * bits / 8)))


def _tower(t: TowerNumbers | SquareTowerNumbers, precision: str, held: bool) -> int:
    width, joined = _width(precision), t.hidden * t.merge**2

    def product(rows: int, columns: int) -> int:
        if precision != "int4":
            return rows * columns * width
        return block_bytes(rows, columns, HEAD, held=held)

    if isinstance(t, SquareTowerNumbers):
        layer = 4 * product(t.hidden, t.hidden)
        layer += product(t.wide, t.hidden) + product(t.hidden, t.wide)
        # Kernel and positions are stored twice, for frames and for pixels. The products that read a
        # norm contain its gains, its biases and their own.
        first = (1 if held else 2) * (3 * t.patch**2 + t.patches) * t.hidden
        small = first + 2 * t.hidden + t.layers * 2 * t.hidden
        return t.layers * layer + product(t.out, joined) + small * width
    # Products to a perceptron's width, and vectors of a norm.
    inner, norm = (2, 1) if t.gated else (1, 2)
    layer = product(3 * t.hidden, t.hidden) + product(t.hidden, t.hidden)
    layer += inner * product(t.wide, t.hidden) + product(t.hidden, t.wide)
    biases = (3 + 1 + 1 + 2 * norm) * t.hidden + inner * t.wide  # and norms
    # The kernel of patches is stored twice: for frames, summed over time, and for pixels. The
    # product opens the first of them.
    patches = (1 if held else 1 + t.temporal) * 3 * t.patch**2 * t.hidden
    if t.positions:  # interpolated to the patches of a frame
        patches += IMAGE_GRID[0] * IMAGE_GRID[1] * t.merge**2 * t.hidden
    merger = product(joined, joined) + product(t.out, joined)
    small = patches + norm * (t.hidden + t.mergers * joined) + (1 + t.mergers) * (joined + t.out)
    return t.layers * (layer + biases * width) + (1 + t.mergers) * merger + small * width


def _work(model: PublishedModel, precision: str, *, prefilling: bool = False) -> int:
    """Return the bytes of keys and values, and of the widest layer's activations.

    `prefilling` leaves out the answers of a vision-language model.
    """
    d, t, width = model.decoder, model.tower, _width(precision)
    if d is None:
        return 0
    token = d.layers * 2 * d.kv_heads * d.head_dim * width
    on_cpu = precision == "int4"
    if t is None:
        # One query: all of its prompts in one batch, or in several.
        tasks = (*prompts.SIMPLIFIED, *prompts.DETAILED, prompts.ENTITIES)
        longest = max(len(prompts.user_message(task, _QUERY)) for task in tasks)
        rows = prefilled = len(tasks)
        shared = _tokens(len(prompts.SYSTEM))
        tokens = _tokens(len(prompts.SYSTEM) + longest)
        answer = _default(LlmRewriter, "max_new_tokens")
        # The rewriter keeps what stands before the query, or on a CPU what all tasks share.
        kept, vision, features = (shared if on_cpu else rows * tokens), 0, 0
    else:
        # A batch of captions, each behind its frame.
        asked = (prompts.AGNOSTIC_CAPTION, prompts.aware_caption([_QUERY]))
        longest = max(map(len, (*asked, prompts.recognition(_QUERY))))
        rows, prefilled = _default(VlmCaptioner, "batch"), _default(VlmCaptioner, "rows")
        if isinstance(t, SquareTowerNumbers):
            patches = t.patches
        else:
            patches = IMAGE_GRID[0] * IMAGE_GRID[1] * t.merge**2
        tokens = patches // t.merge**2 + _tokens(len(prompts.VISION_SYSTEM) + longest)
        answer, kept = _default(VlmCaptioner, "max_new_tokens"), 0
        if on_cpu:
            prefilled = min(prefilled, max(1, CPU_TOKENS // tokens))
        images = max(1, CPU_PIXELS // (patches * t.patch**2)) if on_cpu else prefilled
        vision = min(images, prefilled) * patches * (2 * t.wide + 4 * t.hidden) * width
        if isinstance(t, SquareTowerNumbers) and on_cpu:
            # Every patch attends to every other: the scores, and their softmax.
            vision += min(images, prefilled) * 2 * t.heads * patches**2 * width
        features = prefilled * tokens * t.mergers * d.hidden * width
    if on_cpu:
        # A step makes a new cache while the old one is there.
        rows = min(rows, max(1, CACHE_BYTES // (2 * (tokens + answer) * token)))
        prefilled = min(prefilled, rows)
    cache = (kept + (2 if on_cpu else 1) * rows * (tokens + answer)) * token
    if prefilling and t is not None:
        cache = prefilled * tokens * token
    prefill = prefilled * tokens * (2 * d.wide + 4 * d.hidden) * width + features
    return cache + max(prefill, vision) + rows * d.vocabulary * 4  # the last: logits


def _tokens(characters: int) -> int:
    return math.ceil(characters / _CHARACTERS) + _TEMPLATE


def _default(owner: type[Any], name: str) -> int:
    """Return the default of a class's argument: the batch that the product runs."""
    return int(inspect.signature(owner).parameters[name].default)
