"""Suite ``generation``: a language model's prompts and steps, a vision-language model's captions.

Without ``--models`` the weights are random: every runtime then does the same arithmetic, nothing is
downloaded, and tokens can be compared one by one.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Self

import numpy as np

from granalign_fast.bench.harness import random_models
from granalign_fast.bench.harness.judges import (
    LOGITS_TOLERANCE,
    beginnings,
    judge_answers,
    judge_recognition,
    judge_tokens,
)
from granalign_fast.bench.harness.limits import Work
from granalign_fast.bench.harness.models import models_of
from granalign_fast.bench.harness.records import OURS
from granalign_fast.bench.harness.runner import Bench, Runner
from granalign_fast.bench.harness.timing import HostClock, Judge, difference, require
from granalign_fast.bench.peers.generators import Generate, generators
from granalign_fast.export.llm_specs import BLOCK, HEAD_BITS, LINEAR_BITS
from granalign_fast.language import prompts
from granalign_fast.models.language_model import CausalLM
from granalign_fast.models.manifest import LLM
from granalign_fast.models.prefix_cache import PrefixCache
from granalign_fast.types import FrameSet, Image

_ROWS, _TOKENS = 7, 64
"""Prompts of one query, and their length."""
_SHORT, _LONG = 1, 17
"""Tokens of two answers, whose times differ by what the steps take."""
_SHARED, _OWN, _BEHIND = 300, 16, 22
"""Tokens that prompts about frames share, those of their own, and how many there are."""
_FRAMES, _FOCUS = 8, ("a man in a red coat", "a dog", "runs over the road")
_QUERY = "a dog runs over the road"
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
        matrices = Matrices.read(next(iter(folders.values())))
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
        found = models_of(bench).paths
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
    matrices: Matrices,
) -> None:
    vocabulary = next(iter(models.values())).manifest.vocabulary
    runs: dict[str, Generate] = {
        name: lambda ids, count, model=model: model.generate(ids, max_new_tokens=count, stop_ids=())
        for name, model in models.items()
    } | dict(theirs)

    def draw(rng: np.random.Generator) -> list[list[int]]:
        ids: list[list[int]] = rng.integers(0, vocabulary, (_ROWS, _TOKENS)).tolist()
        return ids

    found = bench.race(
        "prompts and steps of a query",
        [
            Runner(
                name=counted(name, count),
                run=lambda ids, run=run, count=count: run(ids, count),  # type: ignore[misc]
                peer=name in theirs,
            )
            for name, run in runs.items()
            for count in (_SHORT, _LONG)
        ],
        draw,
        token_judge(models, theirs, (_SHORT, _LONG)),
        clock=HostClock(),
        rounds=5,
        record=False,
    )
    medians: dict[str, float] = {}
    for name in runs:
        if not {counted(name, _SHORT), counted(name, _LONG)} <= found.keys():
            continue  # a peer that failed
        prompt = found[counted(name, _SHORT)]
        step = difference(found[counted(name, _LONG)], prompt, _LONG - _SHORT)
        model = models.get(name, models[OURS])
        bench.record(
            prompt,
            "prompts of a query, one new token each",
            name=name,
            unit="query",
            work=decoder_work(model, matrices, rows=_ROWS, tokens=_TOKENS),
            peer=name in theirs,
            parameters={"rows": _ROWS, "tokens": _TOKENS},
        )
        if step.median <= 0:
            bench.note(f"{name}: a decode step is lost in the noise of its prompts")
            continue
        medians[name] = step.median
        bench.record(
            step,
            "a decode step",
            name=name,
            unit="step",
            work=decoder_work(model, matrices, rows=_ROWS, past=_TOKENS + _LONG / 2),
            peer=name in theirs,
            parameters={"rows": _ROWS},
        )
    if OURS in medians:
        bench.breakdown(
            "rewriting a query, 32 new tokens",
            {"prompts": found[counted(OURS, _SHORT)].median, "steps": 31 * medians[OURS]},
        )


def counted(name: str, tokens: int) -> str:
    """A runner that answers with so many."""
    return f"{name}, {tokens} token{'s' * (tokens != 1)}"


class Matrices(NamedTuple):
    """Weights that a decoder multiplies with.

    Attributes:
        layers: how many there are.
        into: of a layer, up to its attention: queries, keys and values.
        onward: of a layer, from there on.
        head: of the output.
    """

    layers: int
    into: int
    onward: int
    head: int

    @classmethod
    def of(cls, config: Mapping[str, Any]) -> Self:
        """Of what a model's ``config.json`` says of its text."""
        hidden, heads = config["hidden_size"], config["num_attention_heads"]
        head_dim = config.get("head_dim") or hidden // heads
        keys = head_dim * config.get("num_key_value_heads", heads)
        return cls(
            layers=config["num_hidden_layers"],
            into=hidden * (heads * head_dim + 2 * keys),
            onward=hidden * heads * head_dim + 3 * hidden * config["intermediate_size"],
            head=config["vocab_size"] * hidden,
        )

    @classmethod
    def read(cls, folder: Path) -> Self:
        """Of an exported model."""
        return cls.of(json.loads((folder / "config.json").read_text(encoding="utf-8")))

    def bytes(self, precision: str) -> float:
        """All that is read at each step."""
        inner = self.layers * (self.into + self.onward)
        if precision == "int4":
            # Each block has a scale in float32 and a zero point of as many bits as a weight; the
            # output's weights have more bits than the layers'.
            layer, head = ((bits + (32 + bits) / BLOCK) / 8 for bits in (LINEAR_BITS, HEAD_BITS))
            return layer * inner + head * self.head
        return {"fp16": 2.0}.get(precision, 4.0) * (inner + self.head)


def decoder_work(
    model: CausalLM, matrices: Matrices, *, rows: int, tokens: int = 1, past: float = 0.0
) -> Work:
    """Of a pass over the last `tokens` of every row, behind `past` others.

    Every weight but the embedding's is read for all rows at once, and every row's keys and values;
    two operations a weight and token. As `export.decoder` writes the graph, whatever comes after
    the last layer's attention is computed for each row's last token alone. The products of
    attention itself are little beside it at these lengths.
    """
    own = model.manifest
    inner = matrices.layers * matrices.into + (matrices.layers - 1) * matrices.onward
    operations = 2.0 * rows * (tokens * inner + matrices.onward + matrices.head)
    kept = 2 * own.layers * own.kv_heads * own.head_dim * past * rows * own.cache_dtype.itemsize
    kind = {"int4": "int8"}.get(own.precision, own.precision)
    return Work(matrices.bytes(own.precision) + kept, operations, kind)


def token_judge(
    models: Mapping[str, CausalLM], theirs: Iterable[str], counts: Sequence[int]
) -> Judge:
    """The same tokens from everything in one precision, each the likeliest behind those before it.

    Args:
        models: ours, by name; each runs under that of `counted`.
        theirs: names of peers, of the precision of ours.
        counts: of tokens that each answers with.
    """

    def judge(given: list[list[int]], outputs: Mapping[str, Any]) -> None:
        begun = {name: beginnings(model, given) for name, model in models.items()}
        last = [row[-1:] for row in given]
        for count in counts:
            for name in theirs:
                same = outputs.get(counted(name, count), outputs[counted(OURS, count)])
                require(same == outputs[counted(OURS, count)], f"{name}: other tokens than ours")
            for name, model in models.items():
                answers = outputs[counted(name, count)]
                require(
                    {len(answer) for answer in answers} == {count}, f"{name}: not {count} tokens"
                )
                judge_tokens(name, model, last, answers, prefix=begun[name])

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
        tolerance = LOGITS_TOLERANCE[model.manifest.precision]
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
        judge_answers("captions", captioner, _images(given), task, outputs[OURS])

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
        [Runner(run=lambda known: captioner.recognise(known, [_QUERY]))],
        draw,
        lambda given, outputs: judge_recognition(captioner, _images(given), _QUERY, outputs[OURS]),
        unit="frame",
        items=frames,
        clock=HostClock(),
        parameters={"frames": frames},
        rounds=5,
    )


def _images(frames: FrameSet) -> Sequence[Image]:
    return frames.load(range(len(frames)))
