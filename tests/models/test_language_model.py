"""The language model without torch: decoding, prefixes, chat, and refused calls."""

from __future__ import annotations

import functools
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers.reference_llm import reference_logits
from helpers.tiny_bert import edit_json
from helpers.tiny_llm import (
    BOS,
    CONFIGS,
    CONTEXT,
    EOS,
    PREFIX_ERROR,
    RAGGED,
    VOCABULARY,
    cut,
    prompts_of,
    write_tiny_llm,
    write_unchecked,
)

from granalign_fast.errors import GranAlignError
from granalign_fast.export.specs import LLM_PRECISIONS
from granalign_fast.models import language_model as generation
from granalign_fast.models.language_model import CausalLM
from granalign_fast.models.manifest import FORMAT_VERSION
from granalign_fast.models.prefix import Prefix

Written = Callable[..., Path]
USER = [{"role": "user", "content": "hi"}]


@pytest.fixture(params=[False, True], ids=["growing", "static"], autouse=True, scope="module")
def caches(request: pytest.FixtureRequest) -> Iterator[None]:
    """Run all tests with both kinds of cache, if the export has both."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(generation, "_prefers_static_cache", lambda device: request.param)
        yield


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Written:
    """Return a function that writes an export once; tests must not change it."""

    @functools.cache
    def get(name: str = "llama-gqa-untied", precision: str = "fp32") -> Path:
        return write_unchecked(tmp_path_factory.mktemp(name), CONFIGS[name], precision=precision)

    return get


@pytest.mark.parametrize("precision", sorted(LLM_PRECISIONS))
@pytest.mark.parametrize("name", sorted(CONFIGS))
def test_a_prefix_equals_the_whole_prompt(written: Written, name: str, precision: str) -> None:
    model = CausalLM(written(name, precision))
    start, *ends = prompts_of(23, *RAGGED)
    prefix = model.prefill(start)
    whole = [start + end for end in ends]
    tolerance = PREFIX_ERROR[precision]
    expected = model.logits(whole)
    assert expected.shape == (len(RAGGED), VOCABULARY) and expected.dtype == np.float32
    np.testing.assert_allclose(model.logits(ends, prefix=prefix), expected, atol=tolerance)
    if precision == "fp32":  # in lower precisions two tokens of nearly equal logits may swap
        answers = model.generate(ends, prefix=prefix, max_new_tokens=40, stop_ids=())
        assert answers == model.generate(whole, max_new_tokens=40, stop_ids=())


@pytest.mark.parametrize("name", sorted(CONFIGS))
def test_tokens_and_logits_equal_the_reference(written: Written, name: str) -> None:
    out = written(name)
    model = CausalLM(out)
    prompts = prompts_of(9, 1, 14)
    answers = model.generate(prompts, max_new_tokens=6, stop_ids=())
    for prompt, answer in zip(prompts, answers, strict=True):
        for step, token in enumerate(answer):
            expected = reference_logits(out.parent / "source", prompt + answer[:step])
            assert token == expected.argmax()
        got = model.logits([prompt + answer[:-1]])[0]
        np.testing.assert_allclose(got, expected, atol=1e-4, rtol=0)


def test_a_prefix_is_read_only_and_has_the_documented_size(written: Written) -> None:
    model = CausalLM(written())
    prefix = model.prefill(prompts_of(23)[0])
    shape = model.manifest
    assert prefix.length == 23
    assert prefix.nbytes == 2 * shape.layers * shape.kv_heads * shape.head_dim * 23 * 4
    before = [array.copy() for array in prefix.cache]
    model.generate(prompts_of(4, 4), prefix=prefix, max_new_tokens=3, stop_ids=())
    for array, copy in zip(prefix.cache, before, strict=True):
        np.testing.assert_array_equal(array, copy)
        with pytest.raises(ValueError, match="read-only"):
            array[:] = 0


def test_batches_that_fit_a_bound_give_the_same_tokens(written: Written) -> None:
    """With a prefix of one row, with one of three rows that prompts take in turn, and without."""
    whole, halves = CausalLM(written()), CausalLM(written())
    prompts, starts = prompts_of(4, 9, 2, 7, 5, 3), prompts_of(6, 11, 8)
    tokens = 11 + 9 + 10
    halves.cache_bytes = 2 * tokens * halves.manifest.token_bytes * 4 + 1
    assert halves.rows_within(tokens) == 4 and halves.rows_within(10**9) == 1
    sizes: list[int] = []
    run = halves._generate

    def counted(part: Any, *rest: Any) -> Any:
        sizes.append(len(part))
        return run(part, *rest)

    halves._generate = counted  # type: ignore[method-assign]
    for prefix_of in (
        lambda model: None,
        lambda model: model.prefill(starts[0]),
        lambda model: model.prefill_rows(starts),
    ):
        answers = [
            model.generate(prompts, prefix=prefix_of(model), max_new_tokens=10, stop_ids=())
            for model in (whole, halves)
        ]
        assert answers[0] == answers[1]
    assert sizes == [6, 3, 3, 3, 3] or sizes == [3] * 6


def test_rows_do_not_affect_each_other(written: Written) -> None:
    model = CausalLM(written())
    prompts = prompts_of(*RAGGED)
    together = model.generate(prompts, max_new_tokens=20, stop_ids=())
    alone = [model.generate([ids], max_new_tokens=20, stop_ids=())[0] for ids in prompts]
    assert together == alone
    assert all(len(set(answer)) > 10 for answer in together), "answers must not be degenerate"


def test_each_row_stops_by_itself(written: Written) -> None:
    model = CausalLM(written())
    prompts = prompts_of(*RAGGED)
    free = model.generate(prompts, max_new_tokens=12, stop_ids=())
    stops = {free[0][0], free[1][3]}

    def until_stop(answer: list[int]) -> list[int]:
        return answer[: next((i for i, token in enumerate(answer) if token in stops), None)]

    stopped = model.generate(prompts, max_new_tokens=12, stop_ids=stops)
    assert stopped == [until_stop(answer) for answer in free]
    assert stopped[0] == [] and any(len(answer) == 12 for answer in stopped)
    assert model.generate(prompts, max_new_tokens=12, stop_ids=range(VOCABULARY)) == [[]] * 6


@pytest.mark.parametrize("every", [1, 2, 3, 8, 50])
@pytest.mark.parametrize("length", [1, 8, 12, 40])
def test_answers_do_not_depend_on_how_often_the_host_reads_them(
    written: Written, every: int, length: int
) -> None:
    model = CausalLM(written())
    prompts = prompts_of(*RAGGED)
    free = model.generate(prompts, max_new_tokens=length, stop_ids=())
    stops = {free[0][0], free[1][-1], free[3][length // 2], free[5][length // 3]}
    every_stop: list[Any] = [(), stops, {free[0][0]}, range(VOCABULARY)]
    expected = [model.generate(prompts, max_new_tokens=length, stop_ids=s) for s in every_stop]
    model.look_every = every
    actual = [model.generate(prompts, max_new_tokens=length, stop_ids=s) for s in every_stop]
    assert actual == expected
    assert expected[1] != free and expected[0] == free


def test_the_model_stops_at_its_own_tokens(written: Written, tmp_path: Path) -> None:
    prompts = prompts_of(9)
    (free,) = CausalLM(written()).generate(prompts, max_new_tokens=12, stop_ids=())
    source = write_tiny_llm(tmp_path / "source", CONFIGS["llama-gqa-untied"])
    edit_json(source / "generation_config.json", eos_token_id=[EOS, free[5]])
    stop = free.index(free[5])
    assert CausalLM(write_unchecked(tmp_path)).generate(prompts, max_new_tokens=12) == [free[:stop]]


def test_chat(written: Written) -> None:
    model = CausalLM(written())
    ids = model.chat([{"role": "system", "content": " be brief "}, *USER])
    assert ids[0] == BOS and ids.count(BOS) == 1
    assert model.tokenizer.decode(ids) == "[system] be brief\n[user] hi\n[assistant] "
    with pytest.raises(GranAlignError, match="unknown role tool"):
        model.chat([{"role": "tool", "content": "x"}])
    with pytest.raises(GranAlignError, match="got none"):
        model.chat([])


@pytest.mark.parametrize(
    ("template", "message"),
    [
        (None, "no chat template"),
        ([{"name": "tool_use", "template": "x"}], "no chat template"),
        ("{% if %}", "cannot be parsed"),
        ("{{ messages.__class__.__mro__ }}", "unsafe"),
        ("{{ messages.append(1) }}", "not safely callable|unsafe"),
    ],
)
def test_bad_chat_templates(tmp_path: Path, template: Any, message: str) -> None:
    source = write_tiny_llm(tmp_path / "source")
    edit_json(source / "tokenizer_config.json", chat_template=template)
    model = CausalLM(write_unchecked(tmp_path))  # opening a model needs no template
    with pytest.raises(GranAlignError, match=message) as error:
        model.chat(USER)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda m: m.generate([], max_new_tokens=1), "prompts: got none"),
        (lambda m: m.logits([[1], []]), r"prompts\[1\]: got no token"),
        (lambda m: m.prefill([]), "token_ids: got no token"),
        (lambda m: m.logits([[VOCABULARY]]), f"token id {VOCABULARY}, expected 0 to"),
        (lambda m: m.logits([[-1]]), "token id -1"),
        (lambda m: m.generate([[1]], max_new_tokens=0), "max_new_tokens: got 0"),
        (lambda m: m.generate([[1]], max_new_tokens=CONTEXT), f"at most the context of {CONTEXT}"),
        (lambda m: m.logits([[1] * (CONTEXT + 1)]), "shorten the prompt"),
        (
            lambda m: m.logits([[1] * 500], prefix=m.prefill([1] * 13)),
            r"got 13 \+ 500 tokens",
        ),
    ],
)
def test_bad_calls(written: Written, call: Callable[[CausalLM], Any], message: str) -> None:
    with pytest.raises(GranAlignError, match=message) as error:
        call(CausalLM(written()))
    assert "\n" not in str(error.value)


def test_the_whole_context_can_be_used(written: Written) -> None:
    model = CausalLM(written())
    assert np.isfinite(model.logits([[1] * CONTEXT])).all()


def test_a_prefix_of_another_model(written: Written) -> None:
    prefix = CausalLM(written("llama-mha-tied")).prefill([1])
    with pytest.raises(GranAlignError, match="prefix: got one of the model"):
        CausalLM(written()).logits([[1]], prefix=prefix)


def test_a_prefix_of_several_rows_serves_a_prompt_each(written: Written) -> None:
    model = CausalLM(written())
    starts, ends = prompts_of(9, 9, 9), prompts_of(4, 7, 2)
    rows = [array for start in starts for array in model.prefill(start).unstack()]
    prefix = Prefix.stack(rows, model.fingerprint, 9)
    assert (prefix.rows, prefix.length) == (3, 9)
    whole = [start + end for start, end in zip(starts, ends, strict=True)]
    np.testing.assert_allclose(model.logits(ends, prefix=prefix), model.logits(whole), atol=1e-5)
    with pytest.raises(GranAlignError, match="got 3 rows for 2 prompts"):
        model.logits(ends[:2], prefix=prefix)


@pytest.mark.parametrize("static", [False, True])
def test_beginnings_of_different_lengths_are_one_prefix(written: Written, static: bool) -> None:
    """Prompts take its rows in turn, and answer as whole prompts do."""
    model = CausalLM(written(), static_cache=static)
    (shared,) = prompts_of(5)
    starts, ends = prompts_of(9, 2, 6), prompts_of(4, 7, 1, 3, 3, 8)
    prefix = model.prefill_rows(starts, prefix=model.prefill(shared))
    assert prefix.mask is not None
    assert (prefix.rows, prefix.length) == (3, 14)
    assert prefix.next_positions.tolist() == [14, 7, 11]
    assert prefix.mask.sum(axis=1).tolist() == [14, 7, 11]
    whole = [shared + start + end for start, end in zip(starts * 2, ends, strict=True)]
    for count in (3, 6):
        np.testing.assert_allclose(
            model.logits(ends[:count], prefix=prefix), model.logits(whole[:count]), atol=1e-5
        )
    answers = model.generate(ends, prefix=prefix, max_new_tokens=9, stop_ids=())
    assert answers == model.generate(whole, max_new_tokens=9, stop_ids=())
    # A masked prefix can be extended once more.
    longer = model.prefill_rows([end[:1] for end in ends[:3]], prefix=prefix)
    rest = [[*end, 1][1:] for end in ends[:3]]
    np.testing.assert_allclose(
        model.logits(rest, prefix=longer), model.logits([[*w, 1] for w in whole[:3]]), atol=1e-5
    )
    with pytest.raises(GranAlignError, match="got 3 rows for 4 prompts"):
        model.logits(ends[:4], prefix=prefix)


def test_beginnings_of_equal_length_need_no_mask(written: Written) -> None:
    prefix = CausalLM(written()).prefill_rows(prompts_of(4, 4))
    assert prefix.mask is None
    assert prefix.next_positions.tolist() == [4, 4]


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (
            lambda out: edit_json(out / "manifest.json", format_version=FORMAT_VERSION + 1),
            f"got format version {FORMAT_VERSION + 1}",
        ),
        (lambda out: edit_json(out / "manifest.json", kind="clip"), "got kind 'clip'"),
        (lambda out: cut(out / "model.onnx"), "model.onnx: altered"),
        (lambda out: cut(out / "model.onnx_data"), "model.onnx_data: altered"),
        (lambda out: (out / "tokenizer.json").unlink(), "tokenizer.json: cannot be read"),
        (lambda out: (out / "manifest.json").unlink(), "no manifest.json"),
    ],
)
def test_bad_exports(tmp_path: Path, spoil: Callable[[Path], Any], message: str) -> None:
    out = write_unchecked(tmp_path)
    spoil(out)
    with pytest.raises(GranAlignError, match=message) as error:
        CausalLM(out)
    assert "\n" not in str(error.value)


def test_generating_needs_no_torch(written: Written) -> None:
    program = (
        "import sys; from granalign_fast.models.language_model import CausalLM;"
        f"CausalLM({str(written())!r}).generate([[1]], max_new_tokens=2);"
        "assert not {'torch', 'transformers', 'optimum', 'onnx'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", program], check=True)
