"""Families of sentence encoders: graphs against NumPy, without torch, and folders that do not fit.

`test_encoder_sources` compares the same families with transformers and sentence-transformers.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from helpers.tiny_bert import edit_json
from helpers.tiny_decoder import write_bare_decoder
from helpers.tiny_encoders import FAMILIES, TEXTS, write_tiny_encoder
from safetensors.numpy import load_file, save_file

from granalign_fast.errors import GranAlignError
from granalign_fast.export.encoder_families import ENCODER_FAMILIES, encoder_family
from granalign_fast.export.graphs.bert import BertGraph, HalfBertGraph
from granalign_fast.export.graphs.modernbert import HalfModernBertGraph, ModernBertGraph
from granalign_fast.export.sentence_encoder import export_sentence_encoder
from granalign_fast.export.sources.sentence_encoder import SentenceModel
from granalign_fast.export.specs import MODEL_TYPES, PRECISIONS
from granalign_fast.models.exported_graph import graph_shapes
from granalign_fast.models.graph_contract import PACKED_GRAPH, PADDED_IDS
from granalign_fast.pipeline import SentenceEncoder
from granalign_fast.runtime.standard_operators import standard_bytes


def exact(source: Path, texts: list[str], **arguments: Any) -> np.ndarray:
    """Embeddings of a folder's model in NumPy and float64."""
    model = SentenceModel.read(source)
    family = encoder_family(model.config)
    assert family is not None
    encoder = family.load(model.weights, model.config, np.float64)
    return np.asarray(encoder.embed(model.tokenise(texts), **arguments))


def test_a_bias_that_the_settings_deny_is_refused(tmp_path: Path) -> None:
    source = write_tiny_encoder(tmp_path / "s", "modernbert")
    tensors = load_file(source / "model.safetensors")
    tensors["layers.1.mlp.Wo.bias"] = np.zeros(32, np.float32)
    save_file(tensors, source / "model.safetensors")
    with pytest.raises(GranAlignError, match=r"got the tensor layers.1.mlp.Wo.bias, expected none"):
        export_sentence_encoder(source, tmp_path / "out", check=False)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("precision", sorted(PRECISIONS))
@pytest.mark.parametrize(("pooling", "normalise"), [("mean", True), ("cls", False)])
def test_graphs_give_what_numpy_gives(
    tmp_path: Path, family: str, precision: str, pooling: str, normalise: bool
) -> None:
    source = write_tiny_encoder(tmp_path / "s", family, pooling=pooling, normalise=normalise)
    out = export_sentence_encoder(source, tmp_path / "out", precision=precision, check=False)
    expected = exact(source, TEXTS, pooling=pooling, normalise=True)
    packed = [PACKED_GRAPH] * (precision == "fp32")
    for graph in ["model.onnx", *packed]:
        encoder = SentenceEncoder(out, graph=graph)
        got = encoder.encode(TEXTS)
        assert np.abs(got - expected).max() <= PRECISIONS[precision].tolerance.max_abs_error
        # Other texts of the batch change nothing, packed, padded or of equal length.
        alone = np.concatenate([encoder.encode([text]) for text in TEXTS])
        np.testing.assert_allclose(got, alone, atol=1e-6)
    assert np.abs(expected[0] - expected[1]).max() > 1e-2


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("normalise", [True, False])
def test_padding_changes_no_embedding(tmp_path: Path, family: str, normalise: bool) -> None:
    source = write_tiny_encoder(tmp_path / "s", family, normalise=normalise)
    out = export_sentence_encoder(source, tmp_path / "out", precision="fp16", check=False)
    encoder = SentenceEncoder(out)
    expected = exact(source, TEXTS, pooling="mean", normalise=normalise)
    tokens = SentenceModel.read(source).tokenise(TEXTS)
    for width in (16, 22):  # some with 6 more columns of padding
        padded = np.zeros((len(tokens), width), np.int32)
        for row, ids in zip(padded, tokens, strict=True):
            row[: len(ids)] = np.array(ids) + 1
        actual = encoder._session(**{PADDED_IDS: padded})["embeddings"]
        np.testing.assert_allclose(actual, expected, atol=4e-3 * np.abs(expected).max())


@pytest.mark.parametrize("family", FAMILIES)
def test_tensorrt_gets_standard_operators(tmp_path: Path, family: str) -> None:
    """Engines are built from the fp16 graph with each fused operator replaced; results stay."""
    source = write_tiny_encoder(tmp_path / "s", family)
    out = export_sentence_encoder(source, tmp_path / "out", precision="fp16", check=False)
    expected = SentenceEncoder(out).encode(TEXTS)
    data = standard_bytes(out / "model.onnx")
    assert data is not None
    model = onnx.load_from_string(data)
    assert {entry.domain for entry in model.opset_import} == {""}
    shapes = graph_shapes(out / "model.onnx")
    assert shapes is not None and shapes.by_provider
    session = onnxruntime.InferenceSession(data, providers=["CPUExecutionProvider"])
    tokens = SentenceModel.read(source).tokenise(TEXTS)
    padded = np.zeros((len(tokens), 16), np.int32)
    for row, ids in zip(padded, tokens, strict=True):
        row[: len(ids)] = np.array(ids) + 1
    (got,) = session.run(None, {PADDED_IDS: padded})
    np.testing.assert_allclose(got, expected, atol=5e-3)


Change = Callable[[pytest.MonkeyPatch], None]


def ignores_texts(patch: pytest.MonkeyPatch) -> None:
    """Packed texts count the tokens of the texts before them."""
    count = BertGraph._count

    def running(graph: BertGraph, uncounted: int) -> str:
        packed, graph.packed = graph.packed, False
        name = count(graph, uncounted)
        graph.packed = packed
        return name

    patch.setattr(BertGraph, "_count", running)


def counts_padding(patch: pytest.MonkeyPatch) -> None:
    """The token without a position is counted."""

    def all_tokens(graph: Any, uncounted: int) -> str:
        every = graph._op("Equal", graph.ids, graph.ids)
        return str(graph._cast(every, np.int32))

    patch.setattr(BertGraph, "_counted", all_tokens)
    patch.setattr(HalfBertGraph, "_counted", all_tokens)


def mirrors_distances(patch: pytest.MonkeyPatch) -> None:
    """Keys before a query have the bias of those behind it."""
    add = BertGraph._add_distances
    patch.setattr(
        BertGraph, "_add_distances", lambda graph, table, mask: add(graph, table[:, ::-1], mask)
    )


def forgets_the_window(patch: pytest.MonkeyPatch) -> None:
    """Local layers attend to the whole text."""
    patch.setattr(ModernBertGraph, "_hidden_score", lambda graph: 0.0)
    patch.setattr(HalfModernBertGraph, "_hidden_score", lambda graph: 0.0)


def window_by_one(patch: pytest.MonkeyPatch) -> None:
    """Local layers attend to one token more in each direction."""
    mask = ModernBertGraph._local_mask

    def wider(graph: Any, *arguments: str) -> str:
        encoder = graph.encoder
        graph.encoder = replace(encoder, window=encoder.window + 1)
        name = mask(graph, *arguments)
        graph.encoder = encoder
        return name

    patch.setattr(ModernBertGraph, "_local_mask", wider)


def stands_still(patch: pytest.MonkeyPatch) -> None:
    """All tokens have the same rotary position."""
    rotary = ModernBertGraph._rotary

    def still(graph: Any, places: str, local: bool) -> Any:
        zero = graph._op("Sub", places, places)
        return rotary(graph, zero, local)

    patch.setattr(ModernBertGraph, "_rotary", still)


def swaps_thetas(patch: pytest.MonkeyPatch) -> None:
    """Local layers have the positions of the others, and the other way round."""
    rotary = ModernBertGraph._rotary
    patch.setattr(
        ModernBertGraph, "_rotary", lambda graph, places, local: rotary(graph, places, not local)
    )


@pytest.mark.parametrize(
    ("family", "change", "precision"),
    [
        ("xlm-roberta", ignores_texts, "fp32"),
        ("xlm-roberta", counts_padding, "fp32"),
        ("xlm-roberta", counts_padding, "fp16"),
        ("mpnet", mirrors_distances, "fp32"),
        ("mpnet", mirrors_distances, "fp16"),
        ("modernbert", forgets_the_window, "fp32"),
        ("modernbert", forgets_the_window, "fp16"),
        ("modernbert", window_by_one, "fp32"),
        ("modernbert", window_by_one, "fp16"),
        ("modernbert", swaps_thetas, "fp32"),
        ("modernbert", swaps_thetas, "fp16"),
        ("modernbert", stands_still, "fp32"),
    ],
)
def test_the_self_check_finds_a_wrong_graph(
    tmp_path: Path, family: str, change: Change, precision: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = write_tiny_encoder(tmp_path / "s", family)
    export_sentence_encoder(source, tmp_path / "right", precision=precision, check=False)
    change(monkeypatch)
    with pytest.raises(GranAlignError, match=r"differs from its source|wrong input"):
        export_sentence_encoder(source, tmp_path / "wrong", precision=precision, check=False)
    assert not (tmp_path / "wrong").exists()


@pytest.mark.parametrize(
    ("family", "settings"),
    [
        ("bert", {"hidden_act": "relu"}),
        ("bert", {"is_decoder": True}),
        ("xlm-roberta", {"pad_token_id": 0}),
        ("xlm-roberta", {"position_embedding_type": "relative_key"}),
        ("mpnet", {"relative_attention_num_buckets": 16}),
        ("modernbert", {"hidden_activation": "silu"}),
        ("modernbert", {"rope_scaling": {"rope_type": "linear", "factor": 2.0}}),
        (
            "modernbert",
            {"rope_parameters": {"full_attention": {"rope_type": "yarn", "factor": 2.0}}},
        ),
    ],
)
def test_models_that_we_do_not_write_go_through_optimum(
    tmp_path: Path, family: str, settings: dict[str, Any]
) -> None:
    source = write_tiny_encoder(tmp_path / "s", family)
    assert encoder_family(SentenceModel.read(source).config) is not None
    edit_json(source / "config.json", **settings)
    assert encoder_family(SentenceModel.read(source).config) is None
    with pytest.raises(GranAlignError, match="expected 'fp32'"):
        export_sentence_encoder(source, tmp_path / "out", precision="int8")
    with pytest.raises(GranAlignError, match="a model that optimum exports"):
        export_sentence_encoder(source, tmp_path / "out", check=False)


@pytest.mark.parametrize(
    ("family", "settings", "message"),
    [
        ("mpnet", {"vocab_size": 99}, r"word_embeddings.weight has .*expected \(99, 32\)"),
        ("mpnet", {"num_attention_heads": 8}, r"bias.weight has shape \(32, 4\), expected \(32, 8"),
        ("mpnet", {"num_attention_heads": 3}, "got 3 heads for hidden size 32"),
        ("xlm-roberta", {"layer_norm_eps": None}, "no usable value"),
        ("modernbert", {"attention_bias": True}, r"Wqkv.bias has shape None, expected \(96,\)"),
        ("modernbert", {"num_attention_heads": 32}, "got 32 heads .* even"),
        ("modernbert", {"layer_types": ["full_attention"]}, "got layer_types"),
        ("modernbert", {"layer_types": ["full_attention"] * 2 + ["x"]}, "got layer_types"),
        ("modernbert", {"global_attn_every_n_layers": 0}, "'global_attn_every_n_layers', 0"),
        # Without a layer an export would give embeddings without any meaning.
        ("xlm-roberta", {"num_hidden_layers": 0}, "'num_hidden_layers', 0"),
        ("modernbert", {"num_hidden_layers": 0}, "'num_hidden_layers', 0"),
    ],
)
def test_damaged_folders(
    tmp_path: Path, family: str, settings: dict[str, Any], message: str
) -> None:
    source = write_tiny_encoder(tmp_path / "s", family, **settings)
    with pytest.raises(GranAlignError, match=message) as error:
        export_sentence_encoder(source, tmp_path / "out", check=False)
    assert "\n" not in str(error.value)
    assert not (tmp_path / "out").exists()


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize(
    ("name", "key", "value"),
    [
        ("qwen3", "num_hidden_layers", 0),
        ("qwen3", "head_dim", 0),
        ("qwen3", "rope_theta", 0),
        ("gemma3", "rope_local_base_freq", 0),
        ("gemma3", "query_pre_attn_scalar", 0),
        ("gemma3", "sliding_window", 0),
        ("gemma3", "sliding_window_pattern", "x"),
        ("gemma3", "layer_types", 7),
    ],
)
def test_numbers_of_a_decoder_that_cannot_be(
    tmp_path: Path, name: str, key: str, value: object
) -> None:
    source = write_bare_decoder(tmp_path / "s", name)
    edit_json(source / "config.json", **{key: value})
    with pytest.raises(GranAlignError, match=f"{key}.*{value}") as error:
        export_sentence_encoder(source, tmp_path / "out", check=False)
    assert "\n" not in str(error.value) and "cannot be exported" not in str(error.value)
    assert not (tmp_path / "out").exists()


def test_a_module_is_no_model(tmp_path: Path) -> None:
    source = write_bare_decoder(tmp_path / "s", "gemma3")
    (source / "config.json").unlink()
    with pytest.raises(GranAlignError, match=r"no config\.json; expected a sentence") as error:
        export_sentence_encoder(source, tmp_path / "out", check=False)
    assert "Dense" not in str(error.value)


def test_every_family_says_how_many_positions_hold_no_token() -> None:
    assert set(ENCODER_FAMILIES) <= set(MODEL_TYPES)
