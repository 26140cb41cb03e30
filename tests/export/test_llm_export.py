"""Exports of language models: refused sources, graphs, and comparison with transformers."""

from __future__ import annotations

import functools
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from helpers.tiny_bert import config, edit_json, pickled_weights, write_json
from helpers.tiny_llm import (
    CHAT_TEMPLATE,
    CONFIGS,
    CONTEXT,
    EOS,
    LLAMA,
    LLAMA_TEMPLATE,
    PREFIX_ERROR,
    QWEN_TEMPLATE,
    RAGGED,
    VOCABULARY,
    cut,
    prompts_of,
    write_tiny_llm,
    write_unchecked,
)

from granalign_fast.errors import GranAlignError, MissingExtraError
from granalign_fast.export.graphs.block_quantization import quantise_blocks, round_blocks
from granalign_fast.export.llm import export_llm
from granalign_fast.export.sources.language_model import LlmSource
from granalign_fast.export.specs import LLM_PRECISIONS, Rounding
from granalign_fast.models.language_model import CausalLM
from granalign_fast.models.manifest import LlmManifest

Exported = Callable[..., Path]


def shard_outside(source: Path) -> None:
    index = {"weight_map": {"model.norm.weight": "../other.safetensors"}}
    write_json(source / "model.safetensors.index.json", index)


def lost_layer(source: Path) -> None:
    edit_json(source / "config.json", num_hidden_layers=LLAMA["num_hidden_layers"] + 1)


BAD_SOURCES = [
    (config(architectures=["GPT2LMHeadModel"]), "architecture 'GPT2LMHeadModel'"),
    (config(architectures=None), "architecture 'none'"),
    (config(model_type="qwen2"), "of type 'qwen2'"),
    (config(architectures=["Other"], model_type=None), "of type None"),
    (config(architectures={}), "architecture 'none'"),
    (config(rope_parameters="llama3"), "rope_parameters 'llama3', expected an object"),
    (config(rope_scaling="llama3"), "lacks values"),
    (config(rope_theta="large"), "rope_theta 'large'"),
    (config(partial_rotary_factor=0.5), "partial_rotary_factor 0.5"),
    (config(hidden_act="gelu"), "hidden_act 'gelu'"),
    (config(use_sliding_window=True), "use_sliding_window True"),
    (config(num_key_value_heads=3), "8 heads of 8 on 3"),
    (config(vocab_size="many"), "vocab_size 'many'"),
    (config(rope_scaling={"rope_type": "yarn", "factor": 2.0}), "rope_scaling of type 'yarn'"),
    (config(rope_scaling={"rope_type": "llama3", "factor": 2.0}), "lacks values"),
    (lambda source: (source / "config.json").unlink(), "no config.json"),
    (lambda source: (source / "tokenizer.json").unlink(), "no tokenizer.json"),
    (lambda source: cut(source / "tokenizer.json"), "not a tokenizer"),
    (lambda source: cut(source / "model.safetensors"), "torn"),
    (lost_layer, "no tensor 'model.layers.3"),
    (pickled_weights, "pickled and never opened"),
    (shard_outside, "expected a .safetensors file beside it"),
]


@pytest.mark.parametrize(("spoil", "message"), BAD_SOURCES)
def test_bad_sources(tmp_path: Path, spoil: Callable[[Path], Any], message: str) -> None:
    source = write_tiny_llm(tmp_path / "source")
    spoil(source)
    with pytest.raises(GranAlignError, match=message) as error:
        write_unchecked(tmp_path)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("name", sorted(CONFIGS))
def test_attention_takes_grouped_heads_and_the_past(tmp_path: Path, name: str) -> None:
    import onnx

    out, layers = write_unchecked(tmp_path, CONFIGS[name]), CONFIGS[name]["num_hidden_layers"]
    for file, static in (("model.onnx", False), ("static.onnx", True)):
        onnx.checker.check_model(str(out / file), full_check=True)
        graph = onnx.load(out / file, load_external_data=False).graph
        assert ("attention_mask" in {value.name for value in graph.input}) == (not static)
        attentions = [node for node in graph.node if node.op_type == "Attention"]
        assert len(attentions) == layers
        for layer, node in enumerate(attentions):
            values = {attribute.name: attribute.i for attribute in node.attribute}
            assert values["kv_num_heads"] == CONFIGS[name]["num_key_value_heads"]
            assert values["is_causal"] == 1 and bool(node.input[3]) == (not static)
            if static:
                assert node.input[1] == f"present.{layer}.key"
                assert list(node.input[4:]) == ["", "", "cached_tokens"]
            else:
                assert node.input[4] == f"past_key_values.{layer}.key"
                assert node.output[2] == f"present.{layer}.value"
        # Only the mask is repeated, and the operator itself appends to the past.
        assert sum(node.op_type == "Expand" for node in graph.node) == (not static)
        assert sum(node.op_type == "Concat" for node in graph.node) == (not static)


def test_an_unknown_precision(tmp_path: Path) -> None:
    with pytest.raises(GranAlignError, match=r"expected one of \['fp16', 'fp32', 'int4'\]"):
        export_llm(tmp_path, tmp_path / "out", precision="int8")


def test_other_architectures_without_torch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torch", None)
    monkeypatch.setitem(sys.modules, "transformers", None)
    monkeypatch.setitem(sys.modules, "optimum.exporters.onnx", None)
    source = write_tiny_llm(tmp_path / "source")
    edit_json(source / "config.json", architectures=["MistralForCausalLM"], model_type="mistral")
    with pytest.raises(MissingExtraError, match=r"\[optimum\]"):
        export_llm(source, tmp_path / "out")


def test_the_manifest_holds_what_readers_need(tmp_path: Path) -> None:
    record = json.loads((write_unchecked(tmp_path) / "manifest.json").read_text())
    assert record["kind"] == "llm" and record["eos_ids"] == [EOS]
    assert record["architecture"] == "LlamaForCausalLM"
    assert (record["layers"], record["kv_heads"], record["head_dim"]) == (3, 2, 8)
    assert (record["vocabulary"], record["context"]) == (VOCABULARY, CONTEXT)
    assert set(record["files"]) == {
        "config.json",
        "generation_config.json",
        "model.onnx",
        "model.onnx_data",
        "tokenizer.json",
        "tokenizer_config.json",
        "static.onnx",
    }


@pytest.mark.parametrize("tied", [True, False])
def test_a_tied_table_is_stored_once_in_8_bits(tmp_path: Path, tied: bool) -> None:
    """The table's rows and the last product's blocks are the same bytes of the file."""
    folder = write_unchecked(tmp_path, LLAMA | {"tie_word_embeddings": tied}, precision="int4")
    for graph in ("model.onnx", "static.onnx"):
        loaded = onnx.load(folder / graph, load_external_data=False).graph
        # A small tensor is in the graph itself.
        places = {
            tensor.name: [(part.key, part.value) for part in tensor.external_data] or tensor.name
            for tensor in loaded.initializer
        }
        (table,) = (node for node in loaded.node if node.op_type == "GatherBlockQuantized")
        head = [node for node in loaded.node if node.op_type == "MatMulNBits"][-1]
        # Values, scales and zero points, in the order of each operator's inputs.
        pairs = zip([table.input[i] for i in (0, 2, 3)], head.input[1:], strict=True)
        for mine, other in pairs:
            assert (places[mine] == places[other]) == tied
        assert ("length", str(VOCABULARY * 128)) in places[table.input[0]]


@pytest.mark.parametrize("bits", [4, 8])
def test_blocks_are_rounded_to_nearest(bits: int) -> None:
    weight = np.random.default_rng(0).standard_normal((5, 70)).astype(np.float32)
    weight[0, :32] = 0
    packed, scales, zeros = quantise_blocks(weight, Rounding(bits, 32))
    assert packed.shape == (5, 3, 4 * bits) and scales.shape == (5, 3)
    assert zeros.shape == (5, 3 if bits == 8 else 2)
    step = np.repeat(scales, 32, axis=1)[:, :70]
    assert (np.abs(round_blocks(weight, Rounding(bits, 32)) - weight) <= 1.001 * step).all()
    assert not round_blocks(weight, Rounding(bits, 32))[0, :32].any()


# With torch: exported folders against their source models.


@pytest.fixture(scope="module")
def torch() -> Any:
    pytest.importorskip("transformers")
    return pytest.importorskip("torch")


@pytest.fixture(scope="module")
def exported(torch: Any, tmp_path_factory: pytest.TempPathFactory) -> Exported:
    """Return a function that exports a model once for all tests, to a folder beside its source."""
    root = tmp_path_factory.mktemp("exported")

    @functools.cache
    def get(name: str, precision: str) -> Path:
        if not (root / name).exists():
            write_tiny_llm(root / name, CONFIGS[name])
        return export_llm(root / name, root / f"{name}-{precision}", precision=precision)

    return get


def source_model(folder: Path) -> Any:
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(folder, use_safetensors=True).eval()
    model.generation_config.eos_token_id = None
    return model


def padded_inputs(prompts: list[list[int]]) -> dict[str, Any]:
    import torch

    longest = max(map(len, prompts))
    rows = [[0] * (longest - len(ids)) + ids for ids in prompts]
    mask = [[0] * (longest - len(ids)) + [1] * len(ids) for ids in prompts]
    return {"input_ids": torch.tensor(rows), "attention_mask": torch.tensor(mask)}


def torch_tokens(model: Any, prompts: list[list[int]], steps: int) -> list[list[int]]:
    inputs = padded_inputs(prompts)
    tokens = model.generate(**inputs, do_sample=False, max_new_tokens=steps, pad_token_id=0)
    answers: list[list[int]] = tokens[:, inputs["input_ids"].shape[1] :].tolist()
    return answers


@pytest.mark.needs_torch
@pytest.mark.parametrize("lengths", [(11,), (9,) * 6, RAGGED], ids=["one", "six", "ragged"])
@pytest.mark.parametrize("name", sorted(CONFIGS))
def test_tokens_and_logits_are_those_of_transformers(
    torch: Any, exported: Exported, name: str, lengths: tuple[int, ...]
) -> None:
    out = exported(name, "fp32")
    model, source = CausalLM(out), source_model(out.parent / name)
    prompts = prompts_of(*lengths)
    answers = model.generate(prompts, max_new_tokens=40, stop_ids=())
    assert answers == torch_tokens(source, prompts, 40)
    whole = [ids + answer for ids, answer in zip(prompts, answers, strict=True)]
    for texts in (prompts, whole):
        with torch.inference_mode():
            expected = [source(torch.tensor([ids])).logits[0, -1].numpy() for ids in texts]
        np.testing.assert_allclose(model.logits(texts), np.stack(expected), atol=1e-4, rtol=0)


@pytest.mark.needs_optimum
@pytest.mark.parametrize("precision", sorted(LLM_PRECISIONS))
@pytest.mark.parametrize("name", sorted(CONFIGS))
def test_optimum_opens_the_same_folder(exported: Exported, name: str, precision: str) -> None:
    ORTModelForCausalLM = pytest.importorskip("optimum.onnxruntime").ORTModelForCausalLM
    out = exported(name, precision)
    model = ORTModelForCausalLM.from_pretrained(out)
    model.generation_config.eos_token_id = None
    # optimum-onnx 0.1.0 assumes heads of hidden / heads values, which is wrong for some Qwen3.
    model.embed_size_per_head = CausalLM(out).manifest.head_dim
    prompts = prompts_of(*RAGGED)
    answers = CausalLM(out).generate(prompts, max_new_tokens=40, stop_ids=())
    assert torch_tokens(model, prompts, 40) == answers


@pytest.mark.needs_torch
@pytest.mark.parametrize("template", [CHAT_TEMPLATE, LLAMA_TEMPLATE, QWEN_TEMPLATE])
@pytest.mark.parametrize("own_file", [True, False], ids=["own-file", "in-settings"])
def test_chat_is_that_of_transformers(
    torch: Any, tmp_path: Path, template: str, own_file: bool
) -> None:
    from transformers import AutoTokenizer

    source = write_tiny_llm(tmp_path / "source")
    edit_json(source / "tokenizer_config.json", chat_template=None if own_file else template)
    if own_file:
        (source / "chat_template.jinja").write_text(template, encoding="utf-8")
    out = write_unchecked(tmp_path)
    model, tokenizer = CausalLM(out), AutoTokenizer.from_pretrained(out)
    user = {"role": "user", "content": " Grüße, <b>you</b>!\n"}
    system = {"role": "system", "content": "be brief "}
    answer = {"role": "assistant", "content": "hello"}
    for messages in ([user], [system, user], [system, user, answer, user]):
        expected = tokenizer.apply_chat_template(
            messages, add_generation_prompt=True, return_dict=False
        )
        assert model.chat(messages) == expected


@pytest.mark.needs_torch
@pytest.mark.parametrize("precision", sorted(LLM_PRECISIONS))
@pytest.mark.parametrize("name", sorted(CONFIGS))
def test_the_export_says_how_exact_it_is(exported: Exported, name: str, precision: str) -> None:
    manifest = LlmManifest.read(exported(name, precision))
    tolerance, measured = LLM_PRECISIONS[precision], manifest.validation
    assert measured["max_abs_error"] <= tolerance.max_error * max(1, measured["logits_rms"])
    assert measured["relative_error"] <= tolerance.relative
    assert measured["prefix_error"] <= PREFIX_ERROR[precision]
    assert measured["rounding_error"] <= tolerance.rounding
    assert "torch" in manifest.tools
    assert manifest.comparison == f"compared with transformers {manifest.tools['transformers']}"
    assert manifest.self_check["max_abs_error"] <= tolerance.max_error * 10


@pytest.mark.needs_torch
def test_shards_of_bfloat16(torch: Any, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    model = source_model(write_tiny_llm(tmp_path / "source")).to(torch.bfloat16)
    model.save_pretrained(tmp_path / "shards", max_shard_size="200KB")
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (tmp_path / "shards" / name).write_bytes((tmp_path / "source" / name).read_bytes())
    assert (tmp_path / "shards" / "model.safetensors.index.json").is_file()
    steps: list[str] = []
    capfd.readouterr()
    out = export_llm(tmp_path / "shards", tmp_path / "out", progress=steps.append)
    assert len(steps) == 5
    assert capfd.readouterr() == ("", ""), "warnings and progress bars are not for the user"
    prompts = prompts_of(7)
    expected = torch_tokens(source_model(tmp_path / "shards").float(), prompts, 20)
    assert CausalLM(out).generate(prompts, max_new_tokens=20, stop_ids=()) == expected


@pytest.mark.needs_torch
@pytest.mark.parametrize("precision", sorted(LLM_PRECISIONS))
def test_a_wrong_graph_is_found_and_leaves_nothing(
    torch: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, precision: str
) -> None:
    """The mistake is a wrong epsilon, the smallest one that such a graph has had."""
    source = write_tiny_llm(tmp_path / "source")
    read = LlmSource.read

    def misread(folder: Path) -> LlmSource:
        model = read(folder)
        object.__setattr__(model.shape, "epsilon", 1e-1)
        return model

    monkeypatch.setattr(LlmSource, "read", misread)
    runs = ["padded", "after a prefix", "static", "a static step"]
    with pytest.raises(GranAlignError, match=": .*".join([*runs, ""])) as error:
        export_llm(source, tmp_path / "out", precision=precision)
    assert "\n" not in str(error.value)
    assert [path.name for path in tmp_path.iterdir()] == ["source"]


def test_weights_that_do_not_fit_their_config(tmp_path: Path) -> None:
    source = write_tiny_llm(tmp_path / "source")
    edit_json(source / "config.json", intermediate_size=100)
    message = r"got .*gate_proj.weight of shape .*, expected \(100, 64\), as config.json says"
    with pytest.raises(GranAlignError, match=message):
        export_llm(source, tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["source"]
