"""What the models do for one query of a video of 150 s, each part by itself.

The rewrites of a language model; a vision-language model's captions of key frames and, instead of
all that, its recognition of all clips. What it has made of the frames is known, as it is of a video
that is indexed, and lies where the model runs.
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
"""Prompts of a rewriter, tokens that they begin with, and those of each, by Llama 3's tokenizer."""
_CLIPS, _ASKED = 75, 30
"""Clips of 2 s, and tokens of a prompt behind a frame."""
_ANSWER = 32
"""New tokens: of a sentence of some twenty words, with a margin."""
_LOOKED, _BATCH = 16, 64
"""Frames that are looked at, and prompts that are answered, in one batch."""


def rewriting(bench: Bench, model: CausalLM, name: str) -> dict[str, float]:
    """Seconds by part, of a language model."""
    rng = np.random.default_rng(1)
    prefix = model.prefill(rng.integers(0, model.manifest.vocabulary, _SHARED).tolist())
    return {REWRITES: _answers(bench, model, name, REWRITES, _PROMPTS, _OWN, lambda: prefix)}


def looking(bench: Bench, model: VisionLanguageModel, name: str) -> dict[str, float]:
    """Seconds by part, of a vision-language model."""
    start = VlmCaptioner(model).start
    position, (height, width) = model.position_after(start), model.manifest.image_size
    clips = bench.settings.scaled(_CLIPS, 4)
    blocks = np.random.default_rng(2).integers(0, 256, (clips, height // 14, width // 14, 3))
    frames = blocks.astype(np.uint8).repeat(14, axis=1).repeat(14, axis=2)
    kept = []
    for first in range(0, clips, _LOOKED):
        looked = model.prefill_frames(frames[first : first + _LOOKED], start)
        kept += looked.unstack(model.device)

    def known(first: int, last: int) -> Prefix:
        return Prefix.stack(kept[first:last], model.fingerprint, position, model.device)

    keys = int(np.ceil(RetrieverConfig().key_frames * clips))
    return {
        CAPTIONS: _answers(bench, model, name, CAPTIONS, keys, _ASKED, lambda: known(0, keys)),
        RECOGNITION: _recognition(bench, model, name, clips, known),
    }


def _answers(
    bench: Bench, model: CausalLM, name: str, task: str, rows: int, own: int, known: Any
) -> float:
    """Seconds of answers, each of as many tokens, behind what is known."""
    vocabulary = model.manifest.vocabulary
    count = bench.settings.scaled(_ANSWER, 3)

    def draw(rng: np.random.Generator) -> list[list[int]]:
        ids: list[list[int]] = rng.integers(0, vocabulary, (rows, own)).tolist()
        return ids

    def judge(given: list[list[int]], outputs: Mapping[str, Any]) -> None:
        answers = outputs[OURS]
        require({len(answer) for answer in answers} == {count}, f"{task}: not {count} tokens")
        judge_tokens(task, model, given, answers, prefix=known())

    sizes = {"model": name, "prompts": rows, "tokens of each": own, "new tokens": count}
    found = bench.race(
        task,
        [
            Runner(
                run=lambda ids: model.generate(
                    ids, prefix=known(), max_new_tokens=count, stop_ids=()
                )
            )
        ],
        draw,
        judge,
        clock=HostClock(),
        parameters=sizes,
        rounds=6,
    )
    return found[OURS].median


def _recognition(
    bench: Bench, model: VisionLanguageModel, name: str, clips: int, known: Any
) -> float:
    """Seconds of the first token's logits of every clip, all asked the same."""
    vocabulary, looked_at = model.manifest.vocabulary, [3, 5, 7, 9]

    def run(ids: list[int]) -> Any:
        parts = [
            model.logits(
                [ids] * (min(first + _BATCH, clips) - first),
                prefix=known(first, min(first + _BATCH, clips)),
                tokens=looked_at,
            )
            for first in range(0, clips, _BATCH)
        ]
        return np.concatenate(parts)

    def draw(rng: np.random.Generator) -> list[int]:
        ids: list[int] = rng.integers(0, vocabulary, _ASKED).tolist()
        return ids

    def judge(ids: list[int], outputs: Mapping[str, Any]) -> None:
        for clip in (0, clips - 1):  # alone, and not after a kept prefix of many
            (alone,) = model.logits([ids], prefix=known(clip, clip + 1), tokens=looked_at)
            error = float(np.abs(outputs[OURS][clip] - alone).max())
            limit = LOGITS_TOLERANCE[model.manifest.precision]
            require(error <= limit, f"{RECOGNITION}: logits of clip {clip} {error:.0e} off")

    found = bench.race(
        RECOGNITION,
        [Runner(run=run)],
        draw,
        judge,
        unit="query",
        clock=HostClock(),
        parameters={"model": name, "clips": clips, "tokens of a prompt": _ASKED},
        rounds=6,
    )
    return found[OURS].median


def of_all_layers(seconds: Mapping[int, float], layers: int) -> tuple[float, float]:
    """Seconds of a layer, and of all `layers`, from those of models cut to two depths."""
    (shallow, few), (deep, many) = sorted(seconds.items())
    layer = (many - few) / (deep - shallow)
    return layer, many + (layers - deep) * layer
