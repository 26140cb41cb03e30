"""Suite ``generation``: prompts and decode steps of a language model, captions by a VLM.

Without ``--models`` the weights are random. Then nothing is downloaded, every runtime does the same
arithmetic, and tokens can be compared one by one.
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
from granalign_fast.export.sizes import block_bytes
from granalign_fast.export.specs import HEAD, LINEAR
from granalign_fast.language import prompts
from granalign_fast.language.captioner import VlmCaptioner
from granalign_fast.models.language_model import CausalLM
from granalign_fast.models.manifest import LLM
from granalign_fast.models.prefix_cache import PrefixCache
from granalign_fast.types import FrameSet, Image

_ROWS, _TOKENS = 7, 64
"""Prompts of one query, and tokens of each."""
_SHORT, _LONG = 1, 17
"""Tokens of a short and a long answer: the difference of their times is that of the steps."""
_SHARED, _OWN, _BEHIND = 300, 16, 22
"""Tokens that prompts about frames share, further tokens of each, and number of prompts."""
_FRAMES, _FOCUS = 8, ("a man in a red coat", "a dog", "runs over the road")
_QUERY = "a dog runs over the road"
_COMPILED_FROM = 2.0
"""Least `Settings.size` at which `torch.compile` takes part: on a CPU, compiling takes minutes."""


def run(bench: Bench) -> None:
    """Measure the language model, the gain of a kept prefix, and captions of frames."""
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
            bench.note("peers: left out, they would run these weights at another precision")
    if models:
        matrices = Matrices.read(next(iter(folders.values())))
        _steps(bench, models, theirs, matrices)
        _prefix(bench, models[OURS])
    else:
        bench.note("language model: not measured, these models include none")
    _captions(bench)


def _random_name(bench: Bench) -> str:
    chosen = [n for n in bench.settings.random if random_models.shape_of(n).kind == LLM]
    return (chosen or ["llama-108m" if bench.settings.size >= 0.5 else "llama-mini"])[0]


def _language_models(bench: Bench) -> dict[str, Path]:
    """Return the models' folders by the runner's name; the others are compared with the first."""
    if bench.settings.models is not None:
        folders = models_of(bench).paths
        return {OURS: folders[LLM]} if LLM in folders else {}
    name = _random_name(bench)
    precision_of_name = random_models.shape_of(name).precision
    models = {}
    for precision in dict.fromkeys((precision_of_name, "fp16" if bench.on_gpu else "int4")):
        folder = bench.folder / "generation" / precision
        link = folder / "sources" / name
        if not link.exists() and precision != precision_of_name:  # write the weights only once
            link.parent.mkdir(parents=True)
            link.symlink_to(bench.folder / "generation" / precision_of_name / "sources" / name)
        out = random_models.write_export(name, folder, precision=precision)
        models[OURS if precision == precision_of_name else f"{OURS}, {precision}"] = out
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

    samples = bench.race(
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
        if not {counted(name, _SHORT), counted(name, _LONG)} <= samples.keys():
            continue  # this peer failed
        prompt = samples[counted(name, _SHORT)]
        step = difference(samples[counted(name, _LONG)], prompt, _LONG - _SHORT)
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
            {"prompts": samples[counted(OURS, _SHORT)].median, "steps": 31 * medians[OURS]},
        )


def counted(name: str, tokens: int) -> str:
    """Return the name of a runner that generates so many tokens."""
    return f"{name}, {tokens} token{'s' * (tokens != 1)}"


class Matrices(NamedTuple):
    """Numbers of weights in a decoder's matrices.

    Attributes:
        hidden: values of a token.
        layers: number of layers.
        into: weights of a layer before its attention: queries, keys and values.
        onward: weights of a layer after its attention: output projection and MLP.
        head: weights of the output projection to the vocabulary.
    """

    hidden: int
    layers: int
    into: int
    onward: int
    head: int

    @classmethod
    def of(cls, config: Mapping[str, Any]) -> Self:
        """Count the weights of a decoder by the text settings of its ``config.json``."""
        hidden, heads = config["hidden_size"], config["num_attention_heads"]
        head_dim = config.get("head_dim") or hidden // heads
        keys = head_dim * config.get("num_key_value_heads", heads)
        return cls(
            hidden=hidden,
            layers=config["num_hidden_layers"],
            into=hidden * (heads * head_dim + 2 * keys),
            onward=hidden * heads * head_dim + 3 * hidden * config["intermediate_size"],
            head=config["vocab_size"] * hidden,
        )

    @classmethod
    def read(cls, folder: Path) -> Self:
        """Count the weights of an exported model."""
        return cls.of(json.loads((folder / "config.json").read_text(encoding="utf-8")))

    def bytes(self, precision: str) -> float:
        """Return the bytes that each decode step reads."""
        inner = self.layers * (self.into + self.onward)
        if precision == "int4":
            # Each block of weights has a float32 scale and a zero point as wide as a weight. The
            # output projection has wider weights than the layers.
            layer = (LINEAR.bits + (32 + LINEAR.bits) / LINEAR.block) / 8
            return layer * inner + block_bytes(self.head // self.hidden, self.hidden, HEAD)
        return {"fp16": 2.0}.get(precision, 4.0) * (inner + self.head)


def decoder_work(
    model: CausalLM, matrices: Matrices, *, rows: int, tokens: int = 1, past: float = 0.0
) -> Work:
    """Count the work of a pass over the last `tokens` of every row, after `past` cached ones.

    Bytes: every weight except the embedding's, read once for all rows, and every row's keys and
    values. Operations: two for each weight and token. In the graph of `export.graphs.decoder`,
    everything after the last layer's attention is computed for each row's last token only. The
    products of attention itself are left out: at these lengths they are few.
    """
    manifest = model.manifest
    inner = matrices.layers * matrices.into + (matrices.layers - 1) * matrices.onward
    operations = 2.0 * rows * (tokens * inner + matrices.onward + matrices.head)
    cache_bytes = (
        2
        * manifest.layers
        * manifest.kv_heads
        * manifest.head_dim
        * past
        * rows
        * manifest.cache_dtype.itemsize
    )
    kind = {"int4": "int8"}.get(manifest.precision, manifest.precision)
    return Work(matrices.bytes(manifest.precision) + cache_bytes, operations, kind)


def token_judge(
    models: Mapping[str, CausalLM], theirs: Iterable[str], counts: Sequence[int]
) -> Judge:
    """Return a judge of generated tokens.

    Each token of our answers must be the likeliest after those before it. Peers, which run at the
    precision of `OURS`, must generate the same tokens.

    Args:
        models: our models by name; the runners' names are from `counted`.
        theirs: names of the peers.
        counts: lengths of the answers, in tokens.
    """

    def judge(inputs: list[list[int]], outputs: Mapping[str, Any]) -> None:
        prefixes = {name: beginnings(model, inputs) for name, model in models.items()}
        last = [row[-1:] for row in inputs]
        for count in counts:
            for name in theirs:
                same = outputs.get(counted(name, count), outputs[counted(OURS, count)])
                require(same == outputs[counted(OURS, count)], f"{name}: other tokens than ours")
            for name, model in models.items():
                answers = outputs[counted(name, count)]
                require(
                    {len(answer) for answer in answers} == {count}, f"{name}: not {count} tokens"
                )
                judge_tokens(name, model, last, answers, prefix=prefixes[name])

    return judge


def _prefix(bench: Bench, model: CausalLM) -> None:
    """Measure prompts that share their beginning, with and without a kept prefix."""
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

    def judge(inputs: Any, outputs: Mapping[str, Any]) -> None:
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
    """Measure query-aware captions and recognition of frames, with and without kept prefixes."""
    captioner = models_of(bench).captioner
    if not isinstance(captioner, VlmCaptioner):
        bench.note("captions: these models have no vision-language model")
        return
    frames = bench.settings.scaled(_FRAMES, 2)
    height, width = captioner.model.manifest.image_size

    def draw(rng: np.random.Generator) -> FrameSet:
        blocks = rng.integers(0, 256, (frames, -(-height // 14), -(-width // 14), 3), np.uint8)
        images = blocks.repeat(14, axis=1).repeat(14, axis=2)[:, :height, :width]
        frame_set = FrameSet.of(images)
        captioner.cache = PrefixCache()
        captioner.prefill(frame_set)
        return frame_set

    task = prompts.aware_caption(_FOCUS)

    def with_prefixes(frame_set: FrameSet) -> list[list[int]]:
        return captioner.answers(frame_set, task, stop_ids=())

    def whole(frame_set: FrameSet) -> list[list[int]]:
        cache, captioner.cache = captioner.cache, PrefixCache()
        try:
            return captioner.answers(frame_set, task, stop_ids=())
        finally:
            captioner.cache = cache

    def judge(inputs: FrameSet, outputs: Mapping[str, Any]) -> None:
        require(outputs[OURS] == outputs["nothing kept"], "captions: a kept prefix changes them")
        judge_answers("captions", captioner, _images(inputs), task, outputs[OURS])

    bench.race(
        "query-aware captions",
        [Runner(run=with_prefixes), Runner(name="nothing kept", run=whole)],
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
        [Runner(run=lambda frame_set: captioner.recognise(frame_set, [_QUERY]))],
        draw,
        lambda inputs, outputs: judge_recognition(
            captioner, _images(inputs), _QUERY, outputs[OURS]
        ),
        unit="frame",
        items=frames,
        clock=HostClock(),
        parameters={"frames": frames},
        rounds=5,
    )


def _images(frames: FrameSet) -> Sequence[Image]:
    return frames.load(range(len(frames)))
