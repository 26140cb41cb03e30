"""Sentence encoders of every form that real folders have, against sentence-transformers itself."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers.sentence_folders import (
    LENGTH,
    POSITIONS,
    TEXTS,
    Edit,
    drop,
    edit,
    edit_tokenizer,
    embed_with_sentence_transformers,
    shard,
    together,
    write_sentence_transformer,
)
from helpers.tiny_bert import write_json, write_tiny_bert
from safetensors.numpy import load_file, save_file

from granalign_fast.errors import GranAlignError
from granalign_fast.export.checks import encoder_tokens as tokens_module
from granalign_fast.export.sentence_encoder import export_sentence_encoder
from granalign_fast.export.sources.sentence_encoder import SentenceModel
from granalign_fast.export.sources.tokenizer import SourceTokenizer
from granalign_fast.models.sources import INDEX
from granalign_fast.pipeline import SentenceEncoder

SETTINGS, OWN = "tokenizer_config.json", "sentence_bert_config.json"
PROMPTS = "config_sentence_transformers.json"


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    pytest.importorskip("sentence_transformers")
    return write_sentence_transformer(tmp_path_factory.mktemp("saved") / "source")


def set_normalizer(**changes: Any) -> Edit:
    return edit_tokenizer(lambda known: known["normalizer"].update(changes))


def forget(known: dict[str, Any]) -> None:
    known["added_tokens"] = []


def bake(known: dict[str, Any]) -> None:
    known["truncation"] = {
        "direction": "Left",
        "max_length": 7,
        "strategy": "LongestFirst",
        "stride": 0,
    }
    known["padding"] = {
        "strategy": {"Fixed": 64},
        "direction": "Right",
        "pad_to_multiple_of": None,
        "pad_id": 0,
        "pad_type_id": 0,
        "pad_token": "[PAD]",
    }


OLD = together(
    drop(OWN),
    edit(OWN, max_seq_length=12, do_lower_case=False),
    edit(SETTINGS, model_max_length=LENGTH),
    lambda folder: write_json(
        folder / "1_Pooling" / "config.json",
        {
            "word_embedding_dimension": 32,
            "pooling_mode_cls_token": True,
            "pooling_mode_mean_tokens": False,
            "pooling_mode_max_tokens": False,
            "pooling_mode_mean_sqrt_len_tokens": False,
        },
    ),
    lambda folder: write_json(
        folder / "modules.json",
        [
            {"idx": i, "name": str(i), "path": path, "type": f"sentence_transformers.models.{kind}"}
            for i, (kind, path) in enumerate(
                [("Transformer", ""), ("Pooling", "1_Pooling"), ("Normalize", "2_Normalize")]
            )
        ],
    ),
)
"""The settings that version 2 wrote."""


def reweigh(change: Any) -> Edit:
    """Return an edit of the weights."""

    def apply(folder: Path) -> None:
        tensors = change(load_file(folder / "model.safetensors"))
        save_file(tensors, folder / "model.safetensors", {"format": "pt"})

    return apply


def stale_index(folder: Path) -> None:
    write_json(folder / INDEX, {"metadata": {}, "weight_map": {"x": "gone.safetensors"}})


def in_bfloat16(folder: Path) -> None:
    import safetensors.torch as st
    import torch

    tensors = st.load_file(folder / "model.safetensors")
    tensors = {name: value.to(torch.bfloat16) for name, value in tensors.items()}
    st.save_file(tensors, folder / "model.safetensors", {"format": "pt"})


def with_dropout(folder: Path) -> None:
    modules = json.loads((folder / "modules.json").read_text())
    kind = "sentence_transformers.models.Dropout"
    modules.insert(2, {"idx": 2, "name": "d", "path": "3_Dropout", "type": kind})
    (folder / "3_Dropout").mkdir()
    write_json(folder / "3_Dropout" / "config.json", {"dropout": 0.1})
    write_json(folder / "modules.json", modules)


def with_path(folder: Path) -> None:
    """Move the transformer to a sub-folder, as other tools write it."""
    inner = folder / "0_Transformer"
    inner.mkdir()
    for path in list(folder.iterdir()):
        if path.is_file() and path.name not in ("modules.json", PROMPTS):
            shutil.move(path, inner / path.name)
    modules = json.loads((folder / "modules.json").read_text())
    modules[0]["path"] = "0_Transformer"
    write_json(folder / "modules.json", modules)


CASES: dict[str, Edit] = {
    "as saved": together(),
    "version 2": OLD,
    "no pooling flag": lambda folder: write_json(
        folder / "1_Pooling" / "config.json",
        {"word_embedding_dimension": 32, "pooling_mode_mean_tokens": False},
    ),
    "a list of one pooling": edit("1_Pooling/config.json", pooling_mode=["cls"]),
    "include_prompt without a prompt": edit("1_Pooling/config.json", include_prompt=False),
    "default prompt": edit(
        PROMPTS, prompts={"query": "the cat: ", "document": "dog "}, default_prompt_name="query"
    ),
    "prompt of another name": edit(
        PROMPTS, prompts={"retrieval": "The [SEP] "}, default_prompt_name="retrieval"
    ),
    "prompts without a default": edit(PROMPTS, prompts={"query": "the cat: "}),
    "a default prompt without a text": edit(PROMPTS, prompts={}, default_prompt_name="query"),
    "lower case in the settings": together(set_normalizer(lowercase=False)),
    "no lower case in the settings": edit(SETTINGS, do_lower_case=False),
    "accents kept": edit(SETTINGS, strip_accents=False),
    "accents of cased text": edit(SETTINGS, strip_accents=True, do_lower_case=False),
    "Chinese characters kept together": edit(SETTINGS, tokenize_chinese_chars=False),
    "defaults of the class": together(
        set_normalizer(lowercase=False), edit(SETTINGS, do_lower_case=..., strip_accents=...)
    ),
    "class of the configuration": edit(SETTINGS, tokenizer_class=..., do_lower_case=False),
    "a class without case": edit(
        SETTINGS, tokenizer_class="PreTrainedTokenizerFast", do_lower_case=False
    ),
    "lower case by sentence-transformers": together(
        edit(SETTINGS, do_lower_case=False, tokenizer_class="PreTrainedTokenizerFast"),
        set_normalizer(lowercase=False),
        edit(OWN, do_lower_case=True),
    ),
    "tokens in added_tokens.json": together(
        edit(SETTINGS, added_tokens_decoder=...),
        edit("added_tokens.json", **{"<|im_end|>": -1}),
        lambda folder: renumber(folder / "added_tokens.json"),
    ),
    "tokens in added_tokens_decoder": lambda folder: more_tokens(folder, lstrip=True),
    "special tokens in the map": together(
        edit(SETTINGS, added_tokens_decoder=...),
        edit("special_tokens_map.json", additional_special_tokens=["<|im_end|>", "[unused1]"]),
    ),
    "special tokens in the settings": edit(SETTINGS, additional_special_tokens=["<|im_end|>"]),
    "no tokens in tokenizer.json": together(
        edit_tokenizer(forget), edit(SETTINGS, added_tokens_decoder=...)
    ),
    "tokens of the class alone": together(
        edit_tokenizer(forget),
        drop("special_tokens_map.json"),
        edit(
            SETTINGS,
            **dict.fromkeys(
                ("added_tokens_decoder", "mask_token", "cls_token", "sep_token", "pad_token"), ...
            ),
        ),
    ),
    "left truncation": edit(SETTINGS, truncation_side="left"),
    "left padding": edit(SETTINGS, padding_side="left"),
    "truncation and padding baked in": edit_tokenizer(bake),
    "no length": edit(SETTINGS, model_max_length=1000000000000000019884624838656),
    "a length as a float": edit(SETTINGS, model_max_length=1e30),
    "length missing": edit(SETTINGS, model_max_length=...),
    "length of old settings": edit(SETTINGS, model_max_length=..., max_len=9),
    "length null": edit(OWN, max_seq_length=None),
    "length by sentence-transformers": edit(OWN, max_seq_length=POSITIONS - 3),
    "length of arguments": edit(OWN, tokenizer_args={"model_max_length": 9}, max_seq_length=15),
    "case of arguments": edit(OWN, tokenizer_args={"do_lower_case": False}),
    "name of an old version": lambda folder: (folder / OWN).rename(
        folder / "sentence_roberta_config.json"
    ),
    "vocabulary alone": drop("tokenizer.json"),
    "cased vocabulary alone": together(
        drop("tokenizer.json"), edit(SETTINGS, do_lower_case=False, strip_accents=True)
    ),
    "no settings": drop(SETTINGS, "special_tokens_map.json"),
    "nothing but tokenizer.json": together(
        drop(SETTINGS, "special_tokens_map.json", "vocab.txt", OWN), set_normalizer(lowercase=False)
    ),
    "sharded": shard,
    "a stale index": stale_index,
    "a prefix": reweigh(lambda t: {f"bert.{name}": value for name, value in t.items()}),
    "old names of norms": reweigh(
        lambda t: {
            name.replace("LayerNorm.weight", "LayerNorm.gamma").replace(
                "LayerNorm.bias", "LayerNorm.beta"
            ): value
            for name, value in t.items()
        }
    ),
    "a range of positions": reweigh(
        lambda t: t | {"embeddings.position_ids": np.arange(POSITIONS)[None]}
    ),
    "bfloat16": in_bfloat16,
    "dropout": with_dropout,
    "a sub-folder": with_path,
}


WRITTEN_BY_4 = ("tokens in added_tokens.json", "tokens in added_tokens_decoder")
"""Cases that edit what transformers 4.57 writes and version 5 does not."""


def renumber(path: Path) -> None:
    """Give an added token the id that the vocabulary has for it."""
    words = json.loads((path.parent / "tokenizer.json").read_text())["model"]["vocab"]
    write_json(path, {token: words[token] for token in json.loads(path.read_text())})


def more_tokens(folder: Path, **flags: bool) -> None:
    """Add tokens to the settings alone."""
    known = json.loads((folder / SETTINGS).read_text())
    words = json.loads((folder / "tokenizer.json").read_text())["model"]["vocab"]
    plain = dict.fromkeys(("lstrip", "rstrip", "single_word", "normalized", "special"), False)
    for token in ("<|im_end|>", "zebra"):
        entry = plain | flags | {"content": token}
        known["added_tokens_decoder"][str(words[token])] = entry
    write_json(folder / SETTINGS, known)


@pytest.mark.needs_torch
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    "name",
    [pytest.param(name, marks=pytest.mark.needs_optimum) for name in WRITTEN_BY_4]
    + [name for name in CASES if name not in WRITTEN_BY_4],
)
def test_ids_and_embeddings_are_sentence_transformers(
    saved: Path, tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = shutil.copytree(saved, tmp_path / "source")
    CASES[name](source)
    expected = embed_with_sentence_transformers(source, TEXTS)
    # Without transformers the settings alone must do it; only the mended cases need it.
    if name not in ("no settings", "nothing but tokenizer.json"):
        monkeypatch.setattr(tokens_module.TokenJudge, "source", lambda *_: None)
    encoder = SentenceEncoder(export_sentence_encoder(source, tmp_path / "out"))
    np.testing.assert_allclose(encoder.encode(TEXTS), expected, 0, 2e-6)
    # Other texts must differ, or the comparison would be empty.
    assert np.abs(expected[1] - expected[2]).max() > 1e-2


@pytest.mark.needs_torch
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("pooling", ["mean", "cls"])
@pytest.mark.parametrize("normalise", [True, False])
@pytest.mark.parametrize("prompted", [True, False])
def test_round_trip(tmp_path: Path, pooling: str, normalise: bool, prompted: bool) -> None:
    pytest.importorskip("sentence_transformers")
    prompts = {"prompts": {"query": "the cat "}, "default_prompt_name": "query"}
    source = write_sentence_transformer(
        tmp_path / "source", pooling=pooling, normalise=normalise, **(prompts if prompted else {})
    )
    out = export_sentence_encoder(source, tmp_path / "out")
    encoder = SentenceEncoder(out)
    expected = embed_with_sentence_transformers(source, TEXTS)
    np.testing.assert_allclose(encoder.encode(TEXTS), expected, 0, 2e-6)
    assert encoder.manifest.max_tokens == LENGTH
    assert encoder.manifest.prompt == ("the cat " if prompted else "")


@pytest.mark.needs_optimum
def test_a_difference_that_cannot_be_mended_is_named(
    saved: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tokens_module.TokenJudge, "source", lambda *_: None)
    read = SourceTokenizer.read

    def cased(*arguments: Any, **named: Any) -> SourceTokenizer:
        from tokenizers import normalizers

        tokenizer = read(*arguments, **named)
        tokenizer.tokenizer.normalizer = normalizers.BertNormalizer(lowercase=False)
        return tokenizer

    monkeypatch.setattr(SourceTokenizer, "read", cased)
    with pytest.raises(GranAlignError, match=r"ids of \d+ texts differ .*'A man opens THE") as got:
        export_sentence_encoder(saved, tmp_path / "out")
    assert "\n" not in str(got.value)
    assert not (tmp_path / "out").exists()


def test_the_default_prompt_needs_no_torch(tmp_path: Path) -> None:
    source = write_tiny_bert(tmp_path / "source")
    plain = SentenceModel.read(source)
    edit(PROMPTS, prompts={"query": "b c "}, default_prompt_name="query")(source)
    model = SentenceModel.read(source)
    assert model.tokenise(["a"]) == plain.tokenise(["b c a"])
    assert model.sha256 != plain.sha256
