"""Is an exported language model still its source? Every mismatch is collected, then raised."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from granalign_fast.errors import GranAlignError, one_line
from granalign_fast.export.graphs.block_quantization import rounded
from granalign_fast.export.llm_specs import BLOCK, HEAD_BITS, LINEAR_BITS, LlmTolerance
from granalign_fast.export.sources.checkpoint import Float32
from granalign_fast.export.sources.folder import quiet
from granalign_fast.export.sources.language_model import LlmSource, ModelSource
from granalign_fast.models.graph_contract import STATIC_GRAPH
from granalign_fast.models.language_model import CausalLM
from granalign_fast.models.prefix import Prefix

from .encoder import refuse

_LENGTHS = (2, 48, 17, 5, 31)
"""Tokens of the prompts that are compared, as far as the context has room: ragged, one near empty.
All begin with the same token, so that it can be their prefix."""


def validation_ids(vocabulary: int, context: int) -> list[list[int]]:
    """Token ids of the prompts, the same for every run."""
    random = np.random.default_rng(0)
    ids = random.integers(vocabulary, size=(len(_LENGTHS), max(_LENGTHS)))
    ids[:, 0] = ids[0, 0]
    rows = zip(ids.tolist(), _LENGTHS, strict=True)
    return [row[: min(length, context - 1)] for row, length in rows]


@dataclass(frozen=True)
class Judge:
    """What transformers gives in float32 after each prompt: (prompts, vocabulary).

    `logits` are those of the weights as they are exported, `original` of the source's own.
    """

    logits: Float32
    original: Float32


def judge(source: ModelSource, precision: str) -> Judge:
    """Run the source with transformers.

    Raises:
        GranAlignError: transformers cannot load the source, weights are missing, or it turns
            positions otherwise than the graph that we write.
    """
    import torch

    with quiet(), torch.inference_mode():
        try:
            model, missing = load_source(source.folder)
            original = logits = _logits(model, source)
            if precision == "int4":
                round_weights(model.lm_head, model.model)
                logits = _logits(model, source)
        except Exception as error:  # whatever stops a loader
            raise GranAlignError(
                f"{source.folder}: transformers cannot run it ({one_line(error)}); "
                f"copy or download the model again"
            ) from None
    refuse_missing(source.folder, missing)
    if isinstance(source, LlmSource):
        # Short prompts would hardly show wrong frequencies of the slow pairs: compare them too.
        check_frequencies(model.model.rotary_emb.inv_freq.numpy(), source)
    return Judge(logits, original)


def load_source(folder: Path) -> tuple[Any, list[str]]:
    """The model of a transformers folder in float32, and the names of weights that it lacks."""
    import torch
    from transformers import AutoModelForCausalLM

    model, report = AutoModelForCausalLM.from_pretrained(
        folder,
        use_safetensors=True,
        trust_remote_code=False,
        local_files_only=True,
        dtype=torch.float32,
        # Not the default, PyTorch's own attention: there transformers leaves out the soft cap of
        # Gemma 2's scores, without a word.
        attn_implementation="eager",
        output_loading_info=True,
    )
    return model.eval(), sorted(report["missing_keys"])


def refuse_missing(folder: Path, missing: Sequence[str]) -> None:
    """Raise if weights are missing, which transformers fills with random numbers."""
    if missing:
        raise GranAlignError(
            f"{folder}: its weights lack {len(missing)} tensors, such as {missing[0]}; "
            f"copy or download the model again"
        )


def validate_llm(folder: Path, expected: Judge, tolerance: LlmTolerance) -> dict[str, float]:
    """Compare an exported folder with its source: one padded batch, and after a prefix.

    With a static cache, too, where the folder has a graph for it, and then after a step.

    Returns:
        What was measured: ``max_abs_error`` and ``relative_error``, the worst of these ways;
        ``prefix_error``, max. absolute, against the padded batch; ``rounding_error``, relative;
        ``logits_rms``.

    Raises:
        GranAlignError: out of tolerance; the message holds every way that is.
    """
    model = CausalLM(folder)
    prompts = validation_ids(model.manifest.vocabulary, model.manifest.context)
    padded = model.logits(prompts)
    prefix = model.prefill(prompts[0][:1])
    ways = {
        "padded": padded,
        "after a prefix": model.logits([ids[1:] for ids in prompts], prefix=prefix),
    }
    if (folder / STATIC_GRAPH).is_file():
        del model  # one at a time: each holds its weights
        model = CausalLM(folder, static_cache=True)
        ends = [ids[1:] for ids in prompts]
        ways["static"] = model.logits(ends, prefix=model.prefill(prompts[0][:1]))
        ways["a static step"] = static_step(model, prompts, None)
    measured, failures = compare_logits(ways, expected, tolerance)
    refuse(failures, tolerance)
    return measured


def compare_logits(
    ways: dict[str, Float32], expected: Judge, tolerance: LlmTolerance
) -> tuple[dict[str, float], list[str]]:
    """What `validate_llm` measures of logits by way of computing them, and every mismatch.

    Args:
        ways: logits (prompts, vocabulary) by name; "padded" and "after a prefix" are among them.
        expected: the source's.
        tolerance: how far apart they may be.
    """
    measured, failures = compare_values(ways, expected.logits, tolerance)
    rms = _rms(expected.logits)
    rounding = _rms(expected.logits - expected.original) / rms
    if not rounding <= tolerance.rounding:
        failures.append(f"rounding the weights: relative {rounding:.2g}")
    prefix_error = float(np.abs(ways["after a prefix"] - ways["padded"]).max())
    return measured | {
        "prefix_error": prefix_error,
        "rounding_error": rounding,
        "logits_rms": rms,
    }, failures


def compare_values(
    ways: dict[str, Float32], expected: Float32, tolerance: LlmTolerance
) -> tuple[dict[str, float], list[str]]:
    """The worst ``max_abs_error`` and ``relative_error`` of all ways, and every mismatch."""
    rms = _rms(expected)
    worst = {"max_abs_error": 0.0, "relative_error": 0.0}
    failures = []
    for way, got in ways.items():
        difference = got.astype(np.float32) - expected
        error, relative = float(np.abs(difference).max()), _rms(difference) / rms
        if not (error <= tolerance.max_error * max(1.0, rms) and relative <= tolerance.relative):
            failures.append(
                f"{way}: max. error {error:.2g}, relative {relative:.2g}, of values with a root "
                f"mean square of {rms:.3g}"
            )
        worst["max_abs_error"] = max(worst["max_abs_error"], error)
        worst["relative_error"] = max(worst["relative_error"], relative)
    return worst, failures


def _rms(values: Float32) -> float:
    return float(np.sqrt(np.mean(np.square(values, dtype=np.float64))))


def _logits(model: Any, source: ModelSource) -> Float32:
    import torch

    prompts = validation_ids(source.shape.vocabulary, source.shape.context)
    rows = [model(input_ids=torch.tensor([ids])).logits[0, -1] for ids in prompts]
    return np.stack([row.numpy() for row in rows])


def check_frequencies(frequencies: Float32, source: LlmSource) -> None:
    """Raise unless transformers turns positions as the export does."""
    if not np.allclose(frequencies, source.shape.frequencies, rtol=1e-5, atol=0):
        raise GranAlignError(
            f"{source.folder}: transformers has other rotary frequencies than the export; "
            f"report this model"
        )


def round_weights(head: Any, decoder: Any) -> None:
    """Round a transformers model's weights as an int4 export does."""
    import torch

    def round_linear(linear: Any, bits: int) -> None:
        weight = rounded(linear.weight.numpy(), bits, BLOCK)
        linear.weight = torch.nn.Parameter(torch.from_numpy(weight), requires_grad=False)

    round_linear(head, HEAD_BITS)  # gets a weight of its own, where it was tied
    embedding = decoder.embed_tokens
    half = embedding.weight.half().float()
    embedding.weight = torch.nn.Parameter(half, requires_grad=False)
    for module in decoder.layers.modules():
        if isinstance(module, torch.nn.Linear):
            round_linear(module, LINEAR_BITS)


def static_step(model: CausalLM, prompts: list[list[int]], prefix: Prefix | None) -> Float32:
    """Logits after prompts whose last token is appended to the others."""
    rows, _ = model._extend([ids[:-1] for ids in prompts], prefix, 1)
    logits: Float32 = rows.append(np.array([ids[-1] for ids in prompts]))
    return logits
