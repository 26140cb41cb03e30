"""Time the models' part of one query about a video of 150 s, part by part.

The parts are a language model's rewrites, a vision-language model's captions of key frames, and its
recognition of all clips, which takes the place of the other two. The frames' prefixes already
exist, as for an indexed video, and lie in the device's memory.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from granalign_fast.bench.harness.judges import LOGITS_TOLERANCE, judge_tokens
from granalign_fast.bench.harness.records import OURS
from granalign_fast.bench.harness.runner import Bench, Runner
from granalign_fast.bench.harness.timing import HostClock, require
from granalign_fast.config import RetrieverConfig
from granalign_fast.language.captioner import VlmCaptioner
from granalign_fast.models.language_model import CausalLM
from granalign_fast.models.prefix import Prefix
from granalign_fast.models.vision_language_model import VisionLanguageModel

REWRITES, CAPTIONS, RECOGNITION = (
    "the rewrites of a query",
    "the captions of a query's key frames",
    "the recognition of a query",
)
_PROMPTS, _SHARED, _OWN = 7, 200, 40
"""Prompts of a rewriter, tokens that all begin with, and further tokens of each, as Llama 3's
tokenizer counts them."""
_CLIPS, _PROMPT_TOKENS = 75, 30
"""Clips of 2 s in 150 s, and tokens of a prompt after the frame."""
_ANSWER = 32
"""New tokens of an answer: a sentence of some twenty words, with a margin."""
_FRAMES_PER_BATCH, _PROMPTS_PER_BATCH = 16, 64
"""Frames in one prefill batch, and prompts in one batch of recognition."""


def rewriting_seconds(bench: Bench, model: CausalLM, name: str) -> dict[str, float]:
    """Return the seconds of a language model's part of a query, by task."""
    rng = np.random.default_rng(1)
    prefix = model.prefill(rng.integers(0, model.manifest.vocabulary, _SHARED).tolist())
    return {REWRITES: _answers(bench, model, name, REWRITES, _PROMPTS, _OWN, lambda: prefix)}


def vision_seconds(bench: Bench, model: VisionLanguageModel, name: str) -> dict[str, float]:
    """Return the seconds of a vision-language model's parts of a query, by task."""
    start = VlmCaptioner(model).start
    position, (height, width) = model.position_after(start), model.manifest.image_size
    clips = bench.settings.scaled(_CLIPS, 4)
    blocks = np.random.default_rng(2).integers(0, 256, (clips, height // 14, width // 14, 3))
    frames = blocks.astype(np.uint8).repeat(14, axis=1).repeat(14, axis=2)
    prefixes = []
    for first in range(0, clips, _FRAMES_PER_BATCH):
        batch = model.prefill_frames(frames[first : first + _FRAMES_PER_BATCH], start)
        prefixes += batch.unstack(model.device)

    def prefix_of(first: int, last: int) -> Prefix:
        return Prefix.stack(prefixes[first:last], model.fingerprint, position, model.device)

    keys = int(np.ceil(RetrieverConfig().key_frames * clips))
    return {
        CAPTIONS: _answers(
            bench, model, name, CAPTIONS, keys, _PROMPT_TOKENS, lambda: prefix_of(0, keys)
        ),
        RECOGNITION: _recognition(bench, model, name, clips, prefix_of),
    }


def _answers(
    bench: Bench, model: CausalLM, name: str, task: str, rows: int, tokens_each: int, prefix_of: Any
) -> float:
    """Return the seconds of generating answers of equal length after the prefixes."""
    vocabulary = model.manifest.vocabulary
    count = bench.settings.scaled(_ANSWER, 3)

    def draw(rng: np.random.Generator) -> list[list[int]]:
        ids: list[list[int]] = rng.integers(0, vocabulary, (rows, tokens_each)).tolist()
        return ids

    def judge(prompt_ids: list[list[int]], outputs: Mapping[str, Any]) -> None:
        answers = outputs[OURS]
        require({len(answer) for answer in answers} == {count}, f"{task}: not {count} tokens")
        judge_tokens(task, model, prompt_ids, answers, prefix=prefix_of())

    sizes = {"model": name, "prompts": rows, "tokens of each": tokens_each, "new tokens": count}
    samples = bench.race(
        task,
        [
            Runner(
                run=lambda ids: model.generate(
                    ids, prefix=prefix_of(), max_new_tokens=count, stop_ids=()
                )
            )
        ],
        draw,
        judge,
        clock=HostClock(),
        parameters=sizes,
        rounds=6,
    )
    return samples[OURS].median


def _recognition(
    bench: Bench, model: VisionLanguageModel, name: str, clips: int, prefix_of: Any
) -> float:
    """Return the seconds of the first token's logits for every clip, with the same question."""
    vocabulary, answer_ids = model.manifest.vocabulary, [3, 5, 7, 9]

    def run(ids: list[int]) -> Any:
        parts = [
            model.logits(
                [ids] * (min(first + _PROMPTS_PER_BATCH, clips) - first),
                prefix=prefix_of(first, min(first + _PROMPTS_PER_BATCH, clips)),
                tokens=answer_ids,
            )
            for first in range(0, clips, _PROMPTS_PER_BATCH)
        ]
        return np.concatenate(parts)

    def draw(rng: np.random.Generator) -> list[int]:
        ids: list[int] = rng.integers(0, vocabulary, _PROMPT_TOKENS).tolist()
        return ids

    def judge(ids: list[int], outputs: Mapping[str, Any]) -> None:
        # Recompute the first and the last clip alone, in a batch of one.
        for clip in (0, clips - 1):
            (alone,) = model.logits([ids], prefix=prefix_of(clip, clip + 1), tokens=answer_ids)
            error = float(np.abs(outputs[OURS][clip] - alone).max())
            limit = LOGITS_TOLERANCE[model.manifest.precision]
            require(error <= limit, f"{RECOGNITION}: logits of clip {clip} {error:.0e} off")

    samples = bench.race(
        RECOGNITION,
        [Runner(run=run)],
        draw,
        judge,
        unit="query",
        clock=HostClock(),
        parameters={"model": name, "clips": clips, "tokens of a prompt": _PROMPT_TOKENS},
        rounds=6,
    )
    return samples[OURS].median


def of_all_layers(seconds: Mapping[int, float], layers: int) -> tuple[float, float]:
    """Extrapolate from two depths: return the seconds of one layer, and of all `layers`.

    Args:
        seconds: time of the model cut to each of two depths, by its number of layers.
        layers: number of layers of the whole model.
    """
    (shallow, few), (deep, many) = sorted(seconds.items())
    layer = (many - few) / (deep - shallow)
    return layer, many + (layers - deep) * layer
