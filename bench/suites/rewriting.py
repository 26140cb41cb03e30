"""Suite ``rewriting``: the prompts of queries, answered by a real language model.

SmolLM2-135M in our runtime, in llama.cpp and in onnxruntime-genai. All get the same token ids and
write equally many tokens, the likeliest one each time. llama.cpp runs the published 4-bit weights;
the others run exports of these weights in float32 and, rounded once more, in int4.
"""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from tokenizers import Tokenizer

from granalign_fast.bench.harness import smollm2
from granalign_fast.bench.harness.records import OURS
from granalign_fast.bench.harness.runner import Bench, Runner
from granalign_fast.bench.harness.timing import HostClock, require
from granalign_fast.bench.harness.workloads import sentences
from granalign_fast.bench.peers import rewriting as peers
from granalign_fast.bench.peers.generators import Generate
from granalign_fast.bench.peers.runtimes import GENAI_ENGINE, LLAMA_CPP, LLAMA_SERVER, dropping_out
from granalign_fast.errors import GranAlignError
from granalign_fast.export.llm import export_llm
from granalign_fast.language.llm_rewriter import LlmRewriter
from granalign_fast.models.encoder import cpu_threads
from granalign_fast.models.language_model import CausalLM

_NEW, _MANY = 32, 8
"""New tokens of each answer, and queries of the second race."""
_FP32 = f"{OURS}, fp32"
_GENAI_FP32 = f"{GENAI_ENGINE.name}, fp32"
_IN_SLOTS = f"{LLAMA_CPP.name}, parallel sequences"
_FOR_MANY = (LLAMA_CPP.name, _IN_SLOTS, GENAI_ENGINE.name)
"""Peers of the race with several queries."""
_LEAST = {OURS: 0.5, _FP32: 0.7, _GENAI_FP32: 0.7, GENAI_ENGINE.name: 0.0}
_LEAST_OF_OTHERS = 0.3
"""Least share of tokens before an answer's first difference from the reference's. Unrelated answers
share none; a near tie at the beginning of one of seven answers costs a seventh. The reference is
the source in float32, and for our int4 the same export on whole prompts. onnxruntime-genai rounds
to int4 in its own way: its share is only recorded."""


class Prompts(NamedTuple):
    """Queries, and the token ids of all their prompts."""

    queries: list[str]
    ids: list[list[int]]


class Endless:
    """A language model whose answers no token ends; `LlmRewriter` takes it for a `CausalLM`."""

    def __init__(self, model: CausalLM) -> None:
        self.chat, self.decode = model.chat, model.decode
        self.prefill, self.prefill_rows = model.prefill, model.prefill_rows
        self._model = model

    def generate(
        self, prompts: Sequence[Sequence[int]], *, prefix: Any = None, max_new_tokens: int
    ) -> list[list[int]]:
        """Return `max_new_tokens` for each prompt."""
        return self._model.generate(
            prompts, prefix=prefix, max_new_tokens=max_new_tokens, stop_ids=()
        )


def run(bench: Bench) -> None:
    """Race one query's prompts, then those of several queries at once."""
    if bench.on_gpu:
        bench.note("rewriting: left out, it races runtimes for the CPU")
        return
    try:
        source = smollm2.write_source(bench.folder / "smollm2")
    except GranAlignError as error:
        bench.note(f"not run: {error}")
        return
    count, many = bench.settings.scaled(_NEW, 4), bench.settings.scaled(_MANY, 2)
    models = {}
    for name, precision in ((OURS, "int4"), (_FP32, "fp32")):
        out = export_llm(source, bench.folder / f"smollm2-{precision}", precision=precision)
        models[name] = CausalLM(out)
    bench.note(f"ours is int4; llama.cpp runs {smollm2.FILE_NAME}")
    with contextlib.ExitStack() as stack:
        theirs = _peers(bench, source, models[OURS], stack, rows=7 * many)
        _race(bench, models, theirs, queries=1, count=count)
        # The others would take minutes.
        fast = {name: run for name, run in theirs.items() if name in _FOR_MANY}
        _race(bench, models, fast, queries=many, count=count)


def _peers(
    bench: Bench, source: Path, model: CausalLM, stack: contextlib.ExitStack, rows: int
) -> dict[str, Generate]:
    """Return the installed peers by name; `stack` ends their servers."""
    threads = cpu_threads(None)
    theirs: dict[str, Generate] = {}
    path = smollm2.gguf_file()
    if LLAMA_CPP.installed:
        with dropping_out(LLAMA_CPP, bench.note):
            theirs[LLAMA_CPP.name] = peers.one_after_another(path, threads)
            theirs[_IN_SLOTS] = peers.in_slots(path, threads, rows)
    if LLAMA_SERVER.installed:
        with dropping_out(LLAMA_SERVER, bench.note):
            tokenizer = Tokenizer.from_file(str(source / "tokenizer.json"))
            server = peers.over_http(path, threads, tokenizer, model.manifest.eos_ids)
            theirs[LLAMA_SERVER.name] = stack.enter_context(server)
    if GENAI_ENGINE.installed:
        for name, precision in ((GENAI_ENGINE.name, "int4"), (_GENAI_FP32, "fp32")):
            with dropping_out(GENAI_ENGINE, bench.note):
                out = bench.folder / f"genai-{precision}"
                theirs[name] = peers.genai_engine(source, out, precision, rows)
    return theirs


def _race(
    bench: Bench,
    models: Mapping[str, CausalLM],
    theirs: Mapping[str, Generate],
    *,
    queries: int,
    count: int,
) -> None:
    """Race the prompts of some queries."""
    rewriters = {
        name: LlmRewriter(Endless(model), max_new_tokens=count) for name, model in models.items()
    }
    ours = rewriters[OURS]

    def draw(rng: np.random.Generator) -> Prompts:
        drawn = sentences(rng, queries)
        return Prompts(drawn, ours.prompt_ids(drawn))

    def judge(inputs: Prompts, outputs: Mapping[str, Any]) -> None:
        # Seven whole prompts, without a kept prefix.
        sample = slice(None, None, queries)
        expected = {
            name: model.generate(inputs.ids[sample], max_new_tokens=count, stop_ids=())
            for name, model in models.items()
        }
        for name, answers in outputs.items():
            require(len(answers) == len(inputs.ids), f"{name}: {len(answers)} answers")
            if name != LLAMA_SERVER.name:  # its texts may become other tokens
                same = {len(answer) for answer in answers} == {count}
                require(same, f"{name}: not {count} tokens in each answer")
            shared = _agreement(answers[sample], expected[_FP32])
            bench.constant(f"agreement with fp32, {queries} queries, {name}", shared)
            agreement = _agreement(answers[sample], expected.get(name, expected[_FP32]))
            least = _LEAST.get(name, _LEAST_OF_OTHERS)
            require(agreement >= least, f"{name}: only {agreement:.0%} of the tokens agree")

    bench.race(
        "rewriting prompts",
        [Runner(name=n, run=lambda p, r=r: r.answers(p.queries)) for n, r in rewriters.items()]  # type: ignore[misc]
        + [
            Runner(name=n, run=lambda p, g=g: g(p.ids, count), peer=True)  # type: ignore[misc]
            for n, g in theirs.items()
        ],
        draw,
        judge,
        unit="query",
        items=queries,
        clock=HostClock(),
        parameters={"queries": queries, "prompts": 7 * queries, "new tokens": count},
        rounds=3 if queries > 1 else 5,
    )


def _agreement(answers: Sequence[list[int]], expected: Sequence[list[int]]) -> float:
    """Return the share of expected tokens that stand before an answer's first difference."""
    same = 0
    for answer, right in zip(answers, expected, strict=True):
        pairs = list(zip(answer, right, strict=False))
        same += next((i for i, (a, b) in enumerate(pairs) if a != b), len(pairs))
    return same / sum(map(len, expected))
