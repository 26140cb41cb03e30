"""Language models that optimum exports: our generation over them against transformers."""

from __future__ import annotations

import functools
import json
import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers.layouts import save_as_version_5
from helpers.tiny_bert import config, edit_json, pickled_weights
from helpers.tiny_llm import (
    BOS,
    CONFIGS,
    CONTEXT,
    EOS,
    LLAMA,
    PREFIX_ERROR,
    RAGGED,
    VOCABULARY,
    one_thread,
    prompts_of,
    write_tiny_llm,
)

from granalign_fast.errors import GranAlignError, MissingExtraError
from granalign_fast.export.llm import export_llm
from granalign_fast.export.sources.language_model import LlmSource, UnsupportedError
from granalign_fast.export.specs import LLM_PRECISIONS
from granalign_fast.models.language_model import CausalLM
from granalign_fast.models.manifest import LlmManifest

Saved = Callable[[str], Path]
WINDOW, SHORT = 80, 96
"""Tokens of an attention window, and of longrope's short texts; the tests use fewer than either."""

YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 128}
LONGROPE = {"type": "longrope", "short_factor": [1.0] * 4, "long_factor": [4.0] * 4}
MODELS: dict[str, tuple[str, dict[str, Any]]] = {
    "mistral": ("mistral", {"sliding_window": WINDOW}),
    "llama-yarn": ("llama", {"rope_scaling": YARN}),
    # Its stock export lacks position ids and the soft cap.
    "gemma2": ("gemma2", {"head_dim": 16, "sliding_window": WINDOW, "attn_logit_softcapping": 2.0}),
    "phi3-longrope": (
        "phi3",
        {"rope_scaling": LONGROPE, "original_max_position_embeddings": SHORT, "pad_token_id": 0},
    ),
    "bloom": ("bloom", {"n_layer": 3, "n_head": 8, "seq_length": CONTEXT}),  # no positions at all
}
CONTEXTS = {"mistral": WINDOW, "gemma2": WINDOW, "phi3-longrope": SHORT}

needs_optimum = pytest.mark.needs_optimum


@pytest.fixture(scope="module")
def torch() -> Iterator[Any]:
    yield from one_thread("optimum.exporters.onnx")


@pytest.fixture(scope="module")
def saved(torch: Any, tmp_path_factory: pytest.TempPathFactory) -> Saved:
    """Return a function that saves a source with transformers, once for all tests."""
    from transformers import AutoConfig, AutoModelForCausalLM

    root = tmp_path_factory.mktemp("saved")
    tokenizer = write_tiny_llm(root / "tokenizer")
    shape = {
        key: value for key, value in LLAMA.items() if key not in ("architectures", "rope_theta")
    }

    @functools.cache
    def get(name: str) -> Path:
        kind, values = MODELS[name]
        values = shape | values | {"model_type": kind, "initializer_range": 0.2}
        torch.manual_seed(0)
        model = AutoModelForCausalLM.from_config(AutoConfig.for_model(**values))
        model.save_pretrained(root / name)
        for file in ("tokenizer.json", "tokenizer_config.json"):
            shutil.copyfile(tokenizer / file, root / name / file)
        return root / name

    return get


@pytest.fixture(scope="module")
def exported(saved: Saved) -> Saved:
    """Return a function that exports a source once for all tests."""

    @functools.cache
    def get(name: str) -> Path:
        return export_llm(saved(name), saved(name).parent / f"{name}-fp32")

    return get


def greedy(model: Any, prompts: list[list[int]], steps: int) -> list[list[int]]:
    """Return the greedy tokens of transformers or optimum after prompts padded on the left."""
    import torch

    longest = max(map(len, prompts))
    ids = torch.tensor([[0] * (longest - len(row)) + row for row in prompts])
    mask = torch.tensor([[0] * (longest - len(row)) + [1] * len(row) for row in prompts])
    model.generation_config.eos_token_id = None
    output = model.generate(
        input_ids=ids, attention_mask=mask, do_sample=False, max_new_tokens=steps, pad_token_id=0
    )
    tokens: list[list[int]] = output[:, longest:].tolist()
    return tokens


def source_model(folder: Path) -> Any:
    """Load a source with eager attention: PyTorch's own leaves out Gemma 2's soft cap."""
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(folder, attn_implementation="eager").eval()


def source_logits(folder: Path, prompts: list[list[int]]) -> np.ndarray[Any, Any]:
    """Return transformers' logits after each prompt; each prompt runs alone."""
    import torch

    model = source_model(folder)
    with torch.inference_mode():
        return np.stack([model(torch.tensor([ids])).logits[0, -1].numpy() for ids in prompts])


@needs_optimum
@pytest.mark.parametrize("name", sorted(MODELS))
def test_tokens_are_those_of_transformers_and_optimum(
    saved: Saved, exported: Saved, name: str
) -> None:
    from optimum.onnxruntime import ORTModelForCausalLM

    model, prompts = CausalLM(exported(name), threads=1), prompts_of(*RAGGED)
    answers = model.generate(prompts, max_new_tokens=40, stop_ids=())
    assert answers == greedy(source_model(saved(name)), prompts, 40)
    same = ORTModelForCausalLM.from_pretrained(exported(name))
    # optimum-onnx 0.1.0 derives both from settings, which is wrong for Phi-3 and Gemma 2.
    same.embed_size_per_head = model.manifest.head_dim
    same.num_key_value_heads = model.manifest.kv_heads
    assert answers == greedy(same, prompts, 40)
    alone = model.generate(prompts[1:2], max_new_tokens=40, stop_ids=())
    assert alone == answers[1:2], "padding must change nothing"
    assert len({token for answer in answers for token in answer}) > 5, "tokens must differ"
    whole = [ids + answer for ids, answer in zip(prompts, answers, strict=True)]
    expected = source_logits(saved(name), whole)
    np.testing.assert_allclose(model.logits(whole), expected, atol=1e-4, rtol=0)


@needs_optimum
@pytest.mark.parametrize("name", sorted(MODELS))
def test_a_prefix_changes_nothing(saved: Saved, exported: Saved, name: str) -> None:
    """Padding lies between the prefix and shorter prompts, and must not count as tokens."""
    model, prompts = CausalLM(exported(name), threads=1), prompts_of(*RAGGED)
    start = prompts_of(21)[0]
    prefix = model.prefill(start)
    after, whole = model.logits(prompts, prefix=prefix), [start + ids for ids in prompts]
    atol = PREFIX_ERROR["fp32"]
    np.testing.assert_allclose(after, model.logits(whole), atol=atol, rtol=0)
    np.testing.assert_allclose(after, source_logits(saved(name), whole), atol=1e-4, rtol=0)
    steps = 25  # as many as the windows can hold
    answers = model.generate(prompts, prefix=prefix, max_new_tokens=steps, stop_ids=())
    assert answers == model.generate(whole, max_new_tokens=steps, stop_ids=())


@needs_optimum
@pytest.mark.parametrize("name", sorted(MODELS))
def test_the_manifest_is_that_of_any_language_model(exported: Saved, name: str) -> None:
    manifest = LlmManifest.read(exported(name))
    plain = name == "bloom"
    assert (manifest.layers, manifest.kv_heads) == (3, 8 if plain else 2)
    assert manifest.head_dim == MODELS[name][1].get("head_dim", 8)
    assert (manifest.vocabulary, manifest.context) == (VOCABULARY, CONTEXTS.get(name, CONTEXT))
    assert (manifest.precision, manifest.source) == ("fp32", name)
    assert manifest.architecture.lower() == f"{MODELS[name][0]}forcausallm"
    assert manifest.eos_ids == [EOS]
    measured, tolerance = manifest.validation, LLM_PRECISIONS["fp32"]
    assert 0 < measured["max_abs_error"] <= tolerance.max_error * max(1, measured["logits_rms"])
    assert 0 < measured["relative_error"] <= tolerance.relative
    assert set(manifest.files) | {"manifest.json"} == {p.name for p in exported(name).iterdir()}
    for file in ("config.json", "tokenizer.json", "tokenizer_config.json"):
        copied = (exported(name) / file).read_bytes()
        assert copied == (exported(name).parent / name / file).read_bytes()


@needs_optimum
@pytest.mark.parametrize("name", ["gemma2", "llama-yarn", "phi3-longrope"])
def test_the_layout_of_version_5(saved: Saved, tmp_path: Path, name: str) -> None:
    source = shutil.copytree(saved(name), tmp_path / "source")
    save_as_version_5(source)
    if name == "phi3-longrope":  # version 5 also writes these
        rope = json.loads((source / "config.json").read_text())["rope_parameters"]
        rope |= {"original_max_position_embeddings": SHORT, "partial_rotary_factor": 1.0}
        edit_json(source / "config.json", rope_parameters=rope)
    model, prompts = CausalLM(export_llm(source, tmp_path / "out"), threads=1), prompts_of(60, 9)
    assert model.manifest.context == CONTEXTS.get(name, CONTEXT)
    expected = source_logits(saved(name), prompts)
    np.testing.assert_allclose(model.logits(prompts), expected, atol=1e-4, rtol=0)


@needs_optimum
def test_prompts_beyond_the_context_are_refused(exported: Saved) -> None:
    with pytest.raises(GranAlignError, match=f"the context of {SHORT}"):
        CausalLM(exported("phi3-longrope")).logits(prompts_of(SHORT + 1))


@needs_optimum
def test_models_that_we_write_ourselves_stay_ours(torch: Any, tmp_path: Path) -> None:
    out = export_llm(write_tiny_llm(tmp_path / "source", CONFIGS["qwen2-gqa-tied"]), tmp_path / "o")
    assert (out / "static.onnx").is_file()


@needs_optimum
def test_progress_is_the_only_output(
    saved: Saved, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    steps: list[str] = []
    source = saved("mistral")
    capfd.readouterr()
    export_llm(source, tmp_path / "out", progress=steps.append)
    assert len(steps) == 4
    assert capfd.readouterr() == ("", "")
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


@needs_optimum
@pytest.mark.parametrize("precision", ["fp16", "int4"])
@pytest.mark.parametrize("name", ["mistral", "llama-yarn"])
def test_other_precisions_are_refused_with_a_hint(
    saved: Saved, tmp_path: Path, name: str, precision: str
) -> None:
    with pytest.raises(GranAlignError, match="'fp32', in which optimum may export") as error:
        export_llm(saved(name), tmp_path / "out", precision=precision)
    assert "\n" not in str(error.value)
    assert not list(tmp_path.iterdir())


def no_head(source: Path) -> None:
    """A weight that transformers would fill with random numbers."""
    from safetensors.numpy import load_file, save_file

    weights = load_file(source / "model.safetensors")
    del weights["lm_head.weight"]
    save_file(weights, source / "model.safetensors", metadata={"format": "pt"})


@needs_optimum
@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (config(architectures=["MistralModel"]), r"'MistralModel'.* no causal language model"),
        (config(architectures=None), r"'none' of type 'mistral'"),
        (config(model_type="bert"), r"of type 'bert'.*optimum can export"),
        (config(model_type="unheard"), r"of type 'unheard'.*optimum can export"),
        (config(model_type="mamba", architectures=["MambaForCausalLM"]), r"optimum can export"),
        (config(rope_parameters=[1e6]), "got rope_parameters"),
        (config(intermediate_size=100), "transformers cannot run it"),
        (config(max_position_embeddings=None), "no max_position_embeddings"),
        (no_head, "its weights lack 1 tensors, such as lm_head.weight"),
        (pickled_weights, "pickled and never opened"),
        (lambda source: (source / "tokenizer.json").unlink(), "no tokenizer.json"),
    ],
)
def test_bad_sources_leave_nothing(
    saved: Saved, tmp_path: Path, spoil: Callable[[Path], Any], message: str
) -> None:
    source = tmp_path / "source"
    shutil.copytree(saved("mistral"), source)
    spoil(source)
    with pytest.raises(GranAlignError, match=message) as error:
        export_llm(source, tmp_path / "out")
    assert "\n" not in str(error.value)
    assert [path.name for path in tmp_path.iterdir()] == ["source"]


@needs_optimum
def test_without_optimum(saved: Saved, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "optimum.exporters.onnx", None)
    with pytest.raises(
        MissingExtraError, match=r"'MistralForCausalLM' .*needs the extra \[optimum"
    ):
        export_llm(saved("mistral"), tmp_path / "out")
    assert not list(tmp_path.iterdir())


@needs_optimum
def test_a_failing_exporter_leaves_nothing(
    saved: Saved, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import optimum.exporters.onnx

    def fail(_: Any, output: Path, **__: Any) -> None:
        output.mkdir()
        (output / "model.onnx").write_bytes(b"half")
        raise RuntimeError("no such\noperator")

    monkeypatch.setattr(optimum.exporters.onnx, "onnx_export_from_model", fail)
    with pytest.raises(GranAlignError, match=r"optimum cannot export it \(no such operator\)"):
        export_llm(saved("mistral"), tmp_path / "out")
    assert not list(tmp_path.iterdir())


@needs_optimum
def test_a_wrong_graph_is_found(
    saved: Saved, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """optimum's own description of Gemma 2: its graph counts padding after a prefix as tokens."""
    from optimum.exporters.onnx import model_configs

    from granalign_fast.export.optimum import stock_decoder

    def stock(settings: Any) -> Any:
        make = model_configs.Gemma2OnnxConfig
        return make(settings, task="text-generation", use_past=True, use_past_in_inputs=True)

    monkeypatch.setattr(stock_decoder, "_onnx_config", stock)
    with pytest.raises(
        GranAlignError, match=r"differs from its source.*: after a prefix: "
    ) as error:
        export_llm(saved("gemma2"), tmp_path / "out")
    assert "padded: " not in str(error.value)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("values", "unsupported"),
    [
        ({"architectures": ["MistralForCausalLM"], "model_type": "mistral"}, True),
        ({"rope_scaling": YARN}, True),
        ({"use_sliding_window": True}, True),
        ({"hidden_act": "gelu"}, True),
        ({"rope_parameters": "llama3"}, False),
        ({"rope_scaling": {"rope_type": "linear"}}, False),
        ({"num_key_value_heads": 3}, False),
        ({"vocab_size": BOS / 2}, False),
    ],
)
def test_damaged_is_not_unsupported(
    tmp_path: Path, values: dict[str, Any], unsupported: bool
) -> None:
    source = write_tiny_llm(tmp_path / "source")
    edit_json(source / "config.json", **values)
    with pytest.raises(GranAlignError) as error:
        LlmSource.read(source)
    assert isinstance(error.value, UnsupportedError) == unsupported
