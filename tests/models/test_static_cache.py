"""A cache that stays where it is gives what one that grows gives; and its steps as CUDA graphs."""

from __future__ import annotations

import gc
import json
import shutil
import weakref
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers.tiny_llm import (
    CONFIGS,
    PREFIX_ERROR,
    RAGGED,
    VOCABULARY,
    prompts_of,
    write_tiny_llm,
    write_unchecked,
)
from helpers.tiny_vlm import IMAGE, frames_of, write_unchecked_vlm
from safetensors.numpy import load_file, save_file

from granalign_fast.errors import GranAlignError
from granalign_fast.models import language_model, static_cache
from granalign_fast.models.language_model import CausalLM
from granalign_fast.models.vision_language_model import VisionLanguageModel
from granalign_fast.runtime.onnx_run import BoundRun
from granalign_fast.runtime.session import Session
from granalign_fast.runtime.session_loader import SessionLoader


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_unchecked(tmp_path_factory.mktemp("llm"), CONFIGS["llama-gqa-untied"])


@pytest.fixture
def capturing(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[int]]:
    """Sessions that are told they can be captured: the CPU ignores it. The numbers of graphs."""
    opened, captured, graphs = language_model.open_session, BoundRun.capture, []

    def opens(path: Path, *, capturable: bool = False, **options: Any) -> Session:
        session = opened(path, **options)
        session.capturable = capturable
        return session

    def captures(self: BoundRun, graph: int) -> None:
        captured(self, graph)
        graphs.append(graph)

    monkeypatch.setattr(language_model, "open_session", opens)
    monkeypatch.setattr(BoundRun, "capture", captures)
    yield graphs


@pytest.mark.parametrize("precision", ["fp32", "fp16", "int4"])
@pytest.mark.parametrize("name", sorted(CONFIGS))
def test_it_gives_what_a_growing_one_gives(tmp_path: Path, name: str, precision: str) -> None:
    out = write_unchecked(tmp_path, CONFIGS[name], precision=precision)
    grows, stays = CausalLM(out), CausalLM(out, static_cache=True)
    start, *ends = prompts_of(23, *RAGGED)
    # Wide where rounding is: `test_it_is_no_further_from_exact_weights` holds those to less.
    error = {"fp32": 2e-5, "fp16": 5e-2, "int4": PREFIX_ERROR["int4"]}[precision]
    prefixes = [model.prefill(start) for model in (grows, stays)]
    for one, other in zip(*(prefix.cache for prefix in prefixes), strict=True):
        assert one.shape == other.shape and one.dtype == other.dtype
        np.testing.assert_allclose(one, other, atol=error)
    for mixed in prefixes:  # of the same shape: each model takes the other's
        found, expected = (m.logits(ends, prefix=mixed) for m in (stays, grows))
        assert found.dtype == np.float32
        np.testing.assert_allclose(found, expected, atol=error)
    if precision == "fp32":  # where the nearest two tokens cannot swap
        for prefix in (prefixes[1], None):
            found, expected = (
                model.generate(ends, prefix=prefix, max_new_tokens=40, stop_ids=())
                for model in (stays, grows)
            )
            assert found == expected


@pytest.mark.parametrize("precision", ["fp16", "int4"])
@pytest.mark.parametrize("name", sorted(CONFIGS))
def test_it_is_no_further_from_exact_weights(tmp_path: Path, name: str, precision: str) -> None:
    """By rounding both lose much; that one loses more than the other would be a mistake.

    In fp16 the static one is up to 1.19 times as far: it keeps sums in fp16, where the CPU computes
    the other graph's in fp32.
    """
    prompts = prompts_of(*RAGGED, *RAGGED, 40, 3, 21, 9)
    exact = CausalLM(write_unchecked(tmp_path / "fp32", CONFIGS[name])).logits(prompts)
    out = write_unchecked(tmp_path / precision, CONFIGS[name], precision=precision)
    grows, stays = (
        np.square(CausalLM(out, static_cache=static).logits(prompts) - exact).mean() ** 0.5
        for static in (False, True)
    )
    assert 0 < stays < 1.25 * grows


def slots_of(model: CausalLM) -> Any:
    """The memory that a model's decoder keeps, by rows and capacity."""
    assert isinstance(model._decoder, static_cache.StaticDecoder)
    return model._decoder._slots


def test_over_the_bounds_of_its_room(folder: Path) -> None:
    """Prompts and answers that fill a capacity to its last place, and go one beyond."""
    grows, stays = CausalLM(folder), CausalLM(folder, static_cache=True)
    for length, new in ((250, 6), (250, 7), (251, 7), (1, 256), (256, 1), (257, 2)):
        prompts = prompts_of(length, 3)
        found, expected = (
            model.generate(prompts, max_new_tokens=new, stop_ids=()) for model in (stays, grows)
        )
        assert found == expected


def test_frames(tmp_path: Path) -> None:
    out = write_unchecked_vlm(tmp_path)
    grows, stays = (VisionLanguageModel(out, static_cache=static) for static in (False, True))
    before, ends = [5, 6, IMAGE, 7], prompts_of(4, 9, 2)
    prefixes = [model.prefill_frames(frames_of(3), before) for model in (grows, stays)]
    np.testing.assert_allclose(prefixes[1].cache[-1], prefixes[0].cache[-1], atol=1e-5)
    found, expected = (
        model.generate(ends, prefix=prefixes[1], max_new_tokens=12, stop_ids=())
        for model in (stays, grows)
    )
    assert found == expected
    logits = [model.logits(ends, prefix=prefixes[0]) for model in (stays, grows)]
    np.testing.assert_allclose(*logits, atol=1e-5)


def test_rows_stop_by_themselves(folder: Path) -> None:
    grows, stays = CausalLM(folder), CausalLM(folder, static_cache=True)
    prompts = prompts_of(*RAGGED)
    free = grows.generate(prompts, max_new_tokens=30, stop_ids=())
    for stops in ({free[0][0], free[1][3]}, range(300), {free[4][29]}):
        for every in (1, 8):
            stays.look_every = every
            found = stays.generate(prompts, max_new_tokens=30, stop_ids=stops)
            assert found == grows.generate(prompts, max_new_tokens=30, stop_ids=stops)


def test_threads_share_one(folder: Path) -> None:
    stays = CausalLM(folder, static_cache=True)
    batches = [prompts_of(*lengths) for lengths in ((5, 9), (9, 5), (30, 2), (1, 1))]

    def ask(prompts: list[list[int]]) -> Any:
        return stays.generate(prompts, prefix=prefix, max_new_tokens=9, stop_ids=())

    prefix = stays.prefill(prompts_of(17)[0])
    expected = [ask(prompts) for prompts in batches]
    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(ask, batches * 4)) == expected * 4


def test_a_step_is_captured_when_its_shape_comes_again(folder: Path, capturing: list[int]) -> None:
    stays = CausalLM(folder, static_cache=True)
    grows = CausalLM(folder)
    batches = {2: prompts_of(4, 9), 3: prompts_of(9, 1, 5), 1: prompts_of(7)}
    expected = {
        rows: grows.generate(prompts, max_new_tokens=20, stop_ids=())
        for rows, prompts in batches.items()
    }
    for rows, numbers in ((2, []), (3, []), (2, [1]), (2, [1]), (1, [1]), (3, [1, 2]), (2, [1, 2])):
        found = stays.generate(batches[rows], max_new_tokens=20, stop_ids=())
        assert found == expected[rows]
        assert capturing == numbers and stays.captured_graphs == len(numbers)
    for _ in range(2):  # nothing comes after: there is no step, and nothing to keep
        stays.generate(prompts_of(4, 4, 4, 4), max_new_tokens=1)
        stays.logits(prompts_of(4, 4))
    assert capturing == [1, 2]


def test_answers_of_one_token_leave_nothing_to_capture(folder: Path, capturing: list[int]) -> None:
    stays = CausalLM(folder, static_cache=True)
    stays.look_every = 1
    prompts = prompts_of(4, 9)
    for _ in range(3):
        assert stays.generate(prompts, max_new_tokens=5, stop_ids=range(320)) == [[], []]
    assert capturing == []
    for _ in range(2):
        stays.generate(prompts, max_new_tokens=5, stop_ids=())
    assert capturing == [1]


def test_shapes_that_are_kept(
    folder: Path, capturing: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(static_cache, "_MAX_SLOTS", 4)
    stays = CausalLM(folder, static_cache=True)
    slots = slots_of(stays)

    def ask(rows: int) -> None:
        stays.generate(prompts_of(*[3] * rows), max_new_tokens=3, stop_ids=())

    def kept() -> list[int]:
        return sorted(rows for rows, _ in slots)

    for rows in (1, 2, 1, 3, 4, 6):
        ask(rows)
    assert kept() == [1, 3, 4, 6] and capturing == [1], "the longest unused goes"
    ask(5)  # rounded
    assert kept() == [1, 3, 4, 6] and capturing == [1, 2]
    monkeypatch.setattr(static_cache, "_MAX_GRAPHS", 2)
    for rows in (8, 12, 8, 12, 8, 16):
        ask(rows)
    assert capturing == [1, 2], "ONNX Runtime forgets no graph"
    assert kept() == [1, 6, 8, 16], "and there will be no other"
    monkeypatch.setattr(static_cache, "_MAX_SLOTS", 2)
    del slots[8, 256], slots[16, 256]
    ask(8)
    assert kept() == [1, 6]


def test_memory_that_is_kept(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stays = CausalLM(folder, static_cache=True)
    slots = slots_of(stays)

    def ask(rows: int) -> list[int]:
        stays.generate(prompts_of(*[3] * rows), max_new_tokens=3, stop_ids=())
        return [rows for rows, _ in slots]

    ask(1), ask(2)
    row = slots[1, 256].nbytes
    assert row == sum(cache.nbytes for cache in slots[1, 256].cache)
    monkeypatch.setattr(static_cache, "_MAX_SLOT_BYTES", 4 * row)
    assert ask(1) == [2, 1] and ask(2) == [1, 2] and ask(3) == [3]
    assert ask(6) == [], "more than may be kept"

    made, limit = static_cache._Slot.__init__, 3

    def scarce(self: Any, parts: Any, rows: int, capacity: int) -> None:
        if rows + sum(rows for rows, _ in slots) > limit:
            raise GranAlignError("GPU 0 failed (out of memory)")
        made(self, parts, rows, capacity)

    monkeypatch.setattr(static_cache._Slot, "__init__", scarce)
    assert ask(2) == [2] and ask(3) == [3], "the memory of another shape"
    with pytest.raises(GranAlignError, match="out of memory"):
        ask(4)


def test_no_batch_leaves_anything_to_the_next(folder: Path) -> None:
    """Places that nobody has written take part, multiplied by 0: NaN must not be among them."""
    stays, grows = (CausalLM(folder, static_cache=static) for static in (True, False))
    prompts = prompts_of(4, 9, 2)
    for _ in range(2):
        found = stays.generate(prompts, max_new_tokens=9, stop_ids=())
        assert found == grows.generate(prompts, max_new_tokens=9, stop_ids=())
        (slot,) = slots_of(stays).values()
        for cache in slot.cache:
            cache[...] = np.nan


def test_padding_is_nothing_new_to_a_row(tmp_path: Path) -> None:
    """A token that overflows hurts the rows that have it, and no others."""
    source = write_tiny_llm(tmp_path / "source", CONFIGS["llama-gqa-untied"])
    weights = load_file(source / "model.safetensors")
    prompts = prompts_of(*RAGGED)
    unused = sorted(set(range(VOCABULARY)) - {token for prompt in prompts for token in prompt})
    assert 0 in unused, "the token that comes to mind"
    expected = CausalLM(write_unchecked(tmp_path)).logits(prompts)
    weights["model.embed_tokens.weight"][unused] = np.inf
    save_file(weights, source / "model.safetensors", metadata={"format": "pt"})
    shutil.rmtree(tmp_path / "out")
    out = write_unchecked(tmp_path)
    for static in (False, True):
        found = CausalLM(out, static_cache=static).logits(prompts)
        np.testing.assert_allclose(found, expected, atol=2e-5)


@pytest.mark.parametrize("static", [False, True])
def test_a_model_goes_when_nobody_has_it(folder: Path, static: bool) -> None:
    """At once: the next one is loaded into the memory of this one."""
    gc.collect()
    gc.disable()
    try:
        model = CausalLM(folder, static_cache=static)
        for _ in range(2):
            model.generate(prompts_of(3, 4), max_new_tokens=3)
        gone = [weakref.ref(model._graph), weakref.ref(model._graph._run.session)]
        del model
        assert [found() for found in gone] == [None, None]
    finally:
        gc.enable()


def test_a_model_that_cannot_be_captured_goes_on(
    folder: Path, capturing: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    stays = CausalLM(folder, static_cache=True)
    prompts = prompts_of(*RAGGED)
    expected = stays.generate(prompts, max_new_tokens=9, stop_ids=())
    assert stays.graphs_refused is None
    before = weakref.ref(stays._graph._run.session)

    def no_memory(self: SessionLoader, graphs: bool = False) -> Any:
        raise GranAlignError("static.onnx: out of memory")

    def fails(self: BoundRun, graph: int) -> None:
        raise GranAlignError("static.onnx: operation not permitted when stream is capturing")

    monkeypatch.setattr(BoundRun, "capture", fails)
    load = SessionLoader.load
    monkeypatch.setattr(SessionLoader, "load", no_memory)
    for _ in range(2):
        with pytest.raises(GranAlignError, match="out of memory"):
            stays.generate(prompts, max_new_tokens=9)
    monkeypatch.setattr(SessionLoader, "load", load)
    for _ in range(3):
        assert stays.generate(prompts, max_new_tokens=9, stop_ids=()) == expected
        assert stays.graphs_refused and "not permitted" in stays.graphs_refused
    gc.collect()
    assert before() is None, "the weights would be in memory twice"
    assert stays.captured_graphs == 0


def test_exports_that_have_none(tmp_path: Path) -> None:
    """Those from before, and optimum's."""
    out = write_unchecked(tmp_path)
    record = json.loads((out / "manifest.json").read_text())
    del record["files"]["static.onnx"]
    (out / "manifest.json").write_text(json.dumps(record))
    (out / "static.onnx").unlink()
    with pytest.raises(GranAlignError, match=r"got no static.onnx, expected one") as error:
        CausalLM(out, static_cache=True)
    assert "\n" not in str(error.value)
    assert CausalLM(out).generate([[1, 2]], max_new_tokens=2)
