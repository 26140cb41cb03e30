"""Comparison of an exported language model with its source, which transformers runs.

All mismatches are collected and raised at once. A vision-language model's check shares these
functions.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from granalign_fast.errors import GranAlignError, one_line
from granalign_fast.export.graphs.block_quantization import round_blocks
from granalign_fast.export.sources.checkpoint import Float32
from granalign_fast.export.sources.folder import quiet
from granalign_fast.export.sources.language_model import LlmSource, ModelSource
from granalign_fast.export.sources.layouts import uniform_folder
from granalign_fast.export.specs import HEAD, LINEAR, LlmTolerance, Rounding
from granalign_fast.models.graph_contract import STATIC_GRAPH
from granalign_fast.models.language_model import CausalLM
from granalign_fast.models.manifest import LlmManifest
from granalign_fast.models.prefix import Prefix

from .encoder import raise_mismatches

_LENGTHS = (2, 48, 17, 5, 31)
"""Tokens of each validation prompt: ragged, one nearly empty. The context may cut them shorter."""


def validation_ids(vocabulary: int, context: int) -> list[list[int]]:
    """Return the token ids of the validation prompts, the same for every run.

    All prompts begin with the same token, which can serve as their common prefix.
    """
    random = np.random.default_rng(0)
    ids = random.integers(vocabulary, size=(len(_LENGTHS), max(_LENGTHS)))
    ids[:, 0] = ids[0, 0]
    rows = zip(ids.tolist(), _LENGTHS, strict=True)
    return [row[: min(length, context - 1)] for row, length in rows]


@dataclass(frozen=True)
class ReferenceLogits:
    """Logits that transformers computes in float32 after each prompt: (prompts, vocabulary).

    `logits` come from the weights as exported, so rounded in int4; `original` from the source's.
    """

    logits: Float32
    original: Float32


def run_source(source: ModelSource, precision: str) -> ReferenceLogits:
    """Run the source with transformers on the validation prompts.

    Raises:
        GranAlignError: transformers cannot load the source, weights are missing, or transformers
            has other rotary frequencies than the graph that we write.
    """
    import torch

    with quiet(), torch.inference_mode():
        try:
            model, missing = load_source(source.folder)
            original = logits = _logits(model, source)
            if precision == "int4":
                round_weights(model.lm_head, model.model)
                logits = _logits(model, source)
        except Exception as error:  # a damaged file can raise anything in transformers
            raise GranAlignError(
                f"{source.folder}: transformers cannot run it ({one_line(error)}); "
                f"copy or download the model again"
            ) from None
    require_weights(source.folder, missing)
    if isinstance(source, LlmSource):
        # Short prompts would hardly show wrong frequencies of the slow pairs: compare them as well.
        check_frequencies(model.model.rotary_emb.inv_freq.numpy(), source)
    return ReferenceLogits(logits, original)


def load_source(folder: Path) -> tuple[Any, list[str]]:
    """Load a folder with transformers; return the float32 model and the names of absent weights."""
    import torch
    from transformers import AutoModelForCausalLM

    with uniform_folder(folder) as uniform:
        model, report = AutoModelForCausalLM.from_pretrained(
            uniform,
            use_safetensors=True,
            trust_remote_code=False,
            local_files_only=True,
            dtype=torch.float32,
            # The default, PyTorch's own attention, silently leaves out the soft cap of Gemma 2's
            # scores.
            attn_implementation="eager",
            output_loading_info=True,
        )
    return model.eval(), sorted(report["missing_keys"])


def require_weights(folder: Path, missing: Sequence[str]) -> None:
    """Raise if weights are missing: transformers fills them with random numbers."""
    if missing:
        raise GranAlignError(
            f"{folder}: its weights lack {len(missing)} tensors, such as {missing[0]}; "
            f"copy or download the model again"
        )


def validate_llm(
    folder: Path, expected: ReferenceLogits, tolerance: LlmTolerance, manifest: LlmManifest
) -> dict[str, float]:
    """Compare an exported folder, which has no manifest yet, with its source.

    The prompts run as one padded batch and after a common prefix. If the folder has a static graph,
    they also run over its static cache: as a whole, and with the last token as a decode step.

    Returns:
        ``max_abs_error`` and ``relative_error``, the worst of all runs; ``prefix_error``, the
        greatest difference between the run after a prefix and the padded batch;
        ``rounding_error``, relative; ``logits_rms``.

    Raises:
        GranAlignError: out of tolerance; the message names every run that is.
    """
    # The graph with a growing cache: padded, and after a prefix.
    model = CausalLM(folder, manifest=manifest)
    prompts = validation_ids(model.manifest.vocabulary, model.manifest.context)
    padded = model.logits(prompts)
    prefix = model.prefill(prompts[0][:1])
    runs = {
        "padded": padded,
        "after a prefix": model.logits([ids[1:] for ids in prompts], prefix=prefix),
    }
    if (folder / STATIC_GRAPH).is_file():
        # The graph with a static cache. One model at a time: each holds all weights.
        del model
        model = CausalLM(folder, static_cache=True, manifest=manifest)
        ends = [ids[1:] for ids in prompts]
        runs["static"] = model.logits(ends, prefix=model.prefill(prompts[0][:1]))
        runs["a static step"] = static_step(model, prompts, None)
    measured, failures = compare_logits(runs, expected, tolerance)
    raise_mismatches(failures, tolerance)
    return measured


def compare_logits(
    runs: dict[str, Float32], expected: ReferenceLogits, tolerance: LlmTolerance
) -> tuple[dict[str, float], list[str]]:
    """Compare the logits of several runs with the source's.

    Args:
        runs: logits (prompts, vocabulary) by run; "padded" and "after a prefix" are among them.
        expected: the source's logits.
        tolerance: how far apart they may be.

    Returns:
        The errors that `validate_llm` describes, and one line for each mismatch.
    """
    measured, failures = compare_values(runs, expected.logits, tolerance)
    rounding, more = rounding_error(expected.logits, expected.original, tolerance)
    failures += more
    prefix_error = float(np.abs(runs["after a prefix"] - runs["padded"]).max())
    return measured | {
        "prefix_error": prefix_error,
        "rounding_error": rounding,
        "logits_rms": _rms(expected.logits),
    }, failures


def rounding_error(
    rounded: Float32, original: Float32, tolerance: LlmTolerance
) -> tuple[float, list[str]]:
    """Return the relative error that rounding the weights causes, and a line if it is too large."""
    error = _rms(rounded - original) / _rms(rounded)
    if error <= tolerance.rounding:
        return error, []
    return error, [f"rounding the weights: relative {error:.2g}"]


def compare_values(
    runs: dict[str, Float32], expected: Float32, tolerance: LlmTolerance
) -> tuple[dict[str, float], list[str]]:
    """Compare the arrays of several runs with one expected array.

    Returns:
        The worst ``max_abs_error`` and ``relative_error``, and one line for each mismatch.
    """
    rms = _rms(expected)
    worst = {"max_abs_error": 0.0, "relative_error": 0.0}
    failures = []
    for run, got in runs.items():
        difference = got.astype(np.float32) - expected
        error, relative = float(np.abs(difference).max()), _rms(difference) / rms
        if not (error <= tolerance.max_error * max(1.0, rms) and relative <= tolerance.relative):
            failures.append(
                f"{run}: max. error {error:.2g}, relative {relative:.2g}, of values with a root "
                f"mean square of {rms:.3g}"
            )
        worst["max_abs_error"] = max(worst["max_abs_error"], error)
        worst["relative_error"] = max(worst["relative_error"], relative)
    return worst, failures


def _rms(values: Float32) -> float:
    """Return the root mean square."""
    return float(np.sqrt(np.mean(np.square(values, dtype=np.float64))))


def _logits(model: Any, source: ModelSource) -> Float32:
    """Return the source's logits after each validation prompt; each prompt runs alone."""
    import torch

    prompts = validation_ids(source.shape.vocabulary, source.shape.context)
    rows = [model(input_ids=torch.tensor([ids])).logits[0, -1] for ids in prompts]
    return np.stack([row.numpy() for row in rows])


def check_frequencies(frequencies: Float32, source: LlmSource) -> None:
    """Raise unless transformers has the rotary frequencies of the export."""
    if not np.allclose(frequencies, source.shape.frequencies, rtol=1e-5, atol=0):
        raise GranAlignError(
            f"{source.folder}: transformers has other rotary frequencies than the export; "
            f"report this model"
        )


def round_weights(head: Any, decoder: Any) -> None:
    """Round a transformers model's weights in place, as an int4 export does.

    Args:
        head: the last linear layer.
        decoder: the embedding and the layers.
    """
    _round_weight(head, HEAD)  # a tied head gets a weight of its own, which is the same
    _round_weight(decoder.embed_tokens, HEAD)
    round_products(decoder.layers, LINEAR)


def round_products(layers: Any, rounding: Rounding) -> None:
    """Round the weights of all linear layers in a torch module, in place."""
    import torch

    for module in layers.modules():
        if isinstance(module, torch.nn.Linear):
            _round_weight(module, rounding)


def _round_weight(module: Any, rounding: Rounding) -> None:
    import torch

    weight = round_blocks(module.weight.numpy(), rounding)
    module.weight = torch.nn.Parameter(torch.from_numpy(weight), requires_grad=False)


def static_step(model: CausalLM, prompts: list[list[int]], prefix: Prefix | None) -> Float32:
    """Return the logits after a decode step: the last token of each prompt follows the others."""
    rows, _ = model._extend([ids[:-1] for ids in prompts], prefix, 1)
    logits: Float32 = rows.append(np.array([ids[-1] for ids in prompts]))
    return logits
