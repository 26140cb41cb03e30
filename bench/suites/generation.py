"""Suite ``generation``: a language model's prompts and steps, a vision-language model's captions.

Without ``--models`` the weights are random: every runtime then does the same arithmetic, nothing is
downloaded, and tokens can be compared one by one.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from granalign_fast import prompts
from granalign_fast.bench import random_models
from granalign_fast.bench.generators import Generate, generators
from granalign_fast.bench.limits import Work
from granalign_fast.bench.models_used import models_of
from granalign_fast.bench.records import OURS
from granalign_fast.bench.running import Bench, Runner
from granalign_fast.bench.timing import HostClock, Judge, difference, require
from granalign_fast.captions import FrameSet
from granalign_fast.generation import CausalLM
from granalign_fast.model_folder import LLM
from granalign_fast.prefixes import PrefixCache

_ROWS, _TOKENS = 7, 64
"""Prompts of one query, and their length."""
_SHORT, _LONG = 2, 18
_SHARED, _OWN, _BEHIND = 300, 16, 22
"""Tokens that prompts about frames share, those of their own, and how many there are."""
_FRAMES, _FOCUS = 8, ("a man in a red coat", "a dog", "runs over the road")
_LOGITS_TOLERANCE = {"fp32": 2e-3, "fp16": 5e-2, "int4": 0.5}
_COMPILED_FROM = 2.0
"""From this size on `torch.compile` takes part: on a CPU it takes minutes to begin."""


def run(bench: Bench) -> None:
    """The language model, then what a kept prefix saves, then captions of frames."""
    folders = _language_models(bench)
    device = bench.settings.device
    models = {name: CausalLM(folder, device=device) for name, folder in folders.items()}
    theirs: dict[str, Generate] = {}
    if bench.settings.models is None:
        name = _random_name(bench)
        bench.note(f"language model: {name} of random weights")
        if random_models.shape_of(name).precision == "fp32":
            theirs = generators(
                random_models.write_source(name, bench.folder / "generation" / "sources" / name),
                bench.folder / "generation",
                bench.note,
                compiled=bench.settings.size >= _COMPILED_FROM or bench.on_gpu,
                device="cuda" if bench.on_gpu else "cpu",
            )
        else:
            bench.note("peers: left out, they would run these weights in another precision")
    if models:
        matrices = matrix_weights(next(iter(folders.values())))
        _steps(bench, models, theirs, matrices)
        _prefix(bench, models[OURS])
    else:
        bench.note("language model: these models have none")
    _captions(bench)


def _random_name(bench: Bench) -> str:
    chosen = [n for n in bench.settings.random if random_models.shape_of(n).kind == LLM]
    return (chosen or ["llama-108m" if bench.settings.size >= 0.5 else "llama-mini"])[0]


def _language_models(bench: Bench) -> dict[str, Path]:
    """Their folders by the name of the runner; the first is the one that ratios are taken to."""
    if bench.settings.models is not None:
        found = models_of(bench).found
        return {OURS: found[LLM]} if LLM in found else {}
    name = _random_name(bench)
    own = random_models.shape_of(name).precision
    models = {}
    for precision in dict.fromkeys((own, "fp16" if bench.on_gpu else "int4")):
        folder = bench.folder / "generation" / precision
        link = folder / "sources" / name
        if not link.exists() and precision != own:  # the weights need not be written twice
            link.parent.mkdir(parents=True)
            link.symlink_to(bench.folder / "generation" / own / "sources" / name)
        out = random_models.write_export(name, folder, precision=precision)
        models[OURS if precision == own else f"{OURS}, {precision}"] = out
    return models


def _steps(
    bench: Bench,
    models: dict[str, CausalLM],
    theirs: Mapping[str, Generate],
    matrices: int,
) -> None:
    first = next(iter(models.values()))
    vocabulary = first.manifest.vocabulary
    sizes = {"rows": _ROWS, "tokens": _TOKENS}

    def draw(rng: np.random.Generator) -> list[list[int]]:
        ids: list[list[int]] = rng.integers(0, vocabulary, (_ROWS, _TOKENS)).tolist()
        return ids

    def runners(count: int) -> list[Runner]:
        work = {name: _step_work(model, matrices, count) for name, model in models.items()}
        own = [
            Runner(
                name=name,
                run=lambda ids, model=model: model.generate(  # type: ignore[misc]
                    ids, max_new_tokens=count, stop_ids=()
                ),
                work=work[name],
            )
            for name, model in models.items()
        ]
        return own + [
            Runner(
                name=name,
                run=lambda ids, run=run: run(ids, count),  # type: ignore[misc]
                peer=True,
                work=work[OURS],
            )
            for name, run in theirs.items()
        ]

    judge = token_judge(models, set(theirs))
    prompt = bench.race(
        "prompts of a query, one new token each",
        runners(1),
        draw,
        judge,
        unit="query",
        clock=HostClock(),
        parameters=sizes,
        rounds=5,
    )
    short, long = (
        bench.race(
            f"{count} new tokens",
            runners(count),
            draw,
            judge,
            clock=HostClock(),
            parameters=sizes,
            rounds=5,
            seconds=2 * bench.settings.seconds,
            record=False,
        )
        for count in (_SHORT, _LONG)
    )
    steps = {name: difference(long[name], short[name], _LONG - _SHORT) for name in long}
    for runner in runners(0):
        bench.record(
            steps[runner.name],
            "a decode step",
            name=runner.name,
            unit="step",
            work=runner.work,
            peer=runner.peer,
            parameters={"rows": _ROWS},
        )
    bench.breakdown(
        "rewriting a query, 32 new tokens",
        {"prompts": prompt[OURS].median, "steps": 31 * steps[OURS].median},
    )


def _step_work(model: CausalLM, matrices: int, new_tokens: int) -> Work:
    """Of one decode step, or of the prompts where there is one new token.

    Every weight but the embedding's rows is read for all rows at once; two operations a weight and
    token. Keys and values are little beside them at these lengths.
    """
    precision = model.manifest.precision
    width = {"fp16": 2.0, "int4": 0.5 + 4 / 32}.get(precision, 4.0)  # int4: a scale for each 32
    rows = _ROWS * (_TOKENS if new_tokens == 1 else 1)
    kind = {"int4": "int8"}.get(precision, precision)
    return Work(width * matrices, 2.0 * matrices * rows, kind)


def matrix_weights(folder: Path) -> int:
    """Weights that a step multiplies with, the output's among them."""
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    hidden, wide = config["hidden_size"], config["intermediate_size"]
    heads = config["num_attention_heads"]
    head_dim = config.get("head_dim") or hidden // heads
    keys = head_dim * config.get("num_key_value_heads", heads)
    layer = 2 * hidden * heads * head_dim + 2 * hidden * keys + 3 * hidden * wide
    return int(config["num_hidden_layers"] * layer + config["vocab_size"] * hidden)


def token_judge(models: dict[str, CausalLM], theirs: set[str]) -> Judge:
    """The same tokens from everything in one precision, each the likeliest by a fresh pass."""

    def judge(given: list[list[int]], outputs: Mapping[str, Any]) -> None:
        expected = outputs[OURS]
        for name in theirs & set(outputs):
            require(outputs[name] == expected, f"{name}: other tokens than ours")
        for name, model in models.items():
            row, answer = given[0], outputs[name][0]
            # Without any cache: the whole prompt and answer at once.
            logits = model.logits([row + answer[:-1]])[0]
            margin = float(logits.max() - logits[answer[-1]])
            require(
                margin <= _LOGITS_TOLERANCE[model.manifest.precision],
                f"{name}: its last token is not the likeliest by {margin:.1e}",
            )

    return judge


def _prefix(bench: Bench, model: CausalLM) -> None:
    """Prompts that share their beginning, with what is known of it and without."""
    vocabulary = model.manifest.vocabulary
    behind = bench.settings.scaled(_BEHIND, 2)
    if model.manifest.context < _SHARED + _OWN:
        bench.note("kept prefix: this model's context is too short for it")
        return
    shared: list[int] = np.random.default_rng(1).integers(0, vocabulary, _SHARED).tolist()
    prefix = model.prefill(shared)

    def draw(rng: np.random.Generator) -> list[list[int]]:
        ids: list[list[int]] = rng.integers(0, vocabulary, (behind, _OWN)).tolist()
        return ids

    def judge(given: Any, outputs: Mapping[str, Any]) -> None:
        error = float(np.abs(outputs[OURS] - outputs["whole prompts"]).max())
        tolerance = _LOGITS_TOLERANCE[model.manifest.precision]
        require(error < tolerance, f"kept prefix: logits {error:.0e} off")

    bench.race(
        "prompts behind a kept prefix",
        [
            Runner(run=lambda ends: model.logits(ends, prefix=prefix)),
            Runner(
                name="whole prompts", run=lambda ends: model.logits([shared + end for end in ends])
            ),
        ],
        draw,
        judge,
        unit="prompt",
        items=behind,
        clock=HostClock(),
        parameters={"prompts": behind, "shared": _SHARED, "own": _OWN},
        rounds=4,
        seconds=bench.settings.seconds,
    )


def _captions(bench: Bench) -> None:
    """Frames in the light of a query, behind kept prefixes and from nothing."""
    captioner = models_of(bench).captioner
    if captioner is None:
        bench.note("captions: these models have no vision-language model")
        return
    frames = bench.settings.scaled(_FRAMES, 2)
    height, width = captioner.model.manifest.image_size

    def draw(rng: np.random.Generator) -> FrameSet:
        blocks = rng.integers(0, 256, (frames, -(-height // 14), -(-width // 14), 3), np.uint8)
        images = blocks.repeat(14, axis=1).repeat(14, axis=2)[:, :height, :width]
        known = FrameSet.of(images)
        captioner.cache = PrefixCache()
        captioner.prefill(known)
        return known

    task = prompts.aware_caption(_FOCUS)

    def kept(known: FrameSet) -> list[list[int]]:
        return captioner.answers(known, task, stop_ids=())

    def whole(known: FrameSet) -> list[list[int]]:
        cache, captioner.cache = captioner.cache, PrefixCache()
        try:
            return captioner.answers(known, task, stop_ids=())
        finally:
            captioner.cache = cache

    def judge(given: FrameSet, outputs: Mapping[str, Any]) -> None:
        require(outputs[OURS] == outputs["nothing kept"], "captions: a kept prefix changes them")

    bench.race(
        "query-aware captions",
        [Runner(run=kept), Runner(name="nothing kept", run=whole)],
        draw,
        judge,
        unit="frame",
        items=frames,
        clock=HostClock(),
        parameters={"frames": frames, "tokens": captioner.max_new_tokens},
        rounds=5,
    )
    bench.race(
        "recognition, behind kept prefixes",
        [Runner(run=lambda known: captioner.recognise(known, ["a dog runs over the road"]))],
        draw,
        lambda given, outputs: require(
            bool(((outputs[OURS] >= 0) & (outputs[OURS] <= 1)).all()), "recognition: no shares"
        ),
        unit="frame",
        items=frames,
        clock=HostClock(),
        parameters={"frames": frames},
        rounds=5,
    )
