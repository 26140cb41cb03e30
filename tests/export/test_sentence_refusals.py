"""Folders of sentence encoders that are refused by name, before anything is written."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from helpers.sentence_folders import Edit, drop, edit, shard, together
from helpers.tiny_bert import SPECIAL, VOCABULARY, write_json, write_tiny_bert
from safetensors.numpy import load_file, save_file

from granalign_fast.errors import GranAlignError
from granalign_fast.export.sentence_encoder import export_sentence_encoder
from granalign_fast.export.sources.sentence_encoder import SentenceModel

SETTINGS, OWN = "tokenizer_config.json", "sentence_bert_config.json"
PROMPTS = "config_sentence_transformers.json"


def with_module(kind: str) -> Edit:
    def apply(folder: Path) -> None:
        modules = json.loads((folder / "modules.json").read_text())
        modules.insert(2, {"idx": 2, "name": "2", "path": "2_More", "type": kind})
        write_json(folder / "modules.json", modules)

    return apply


def outside(folder: Path) -> None:
    modules = json.loads((folder / "modules.json").read_text())
    modules[1]["path"] = "../1_Pooling"
    write_json(folder / "modules.json", modules)


def two_models(folder: Path) -> None:
    tensors = load_file(folder / "model.safetensors")
    both = {
        f"{kind}.{name}": value for kind in ("query", "text") for name, value in tensors.items()
    }
    save_file(both, folder / "model.safetensors")


PROMPTED = edit(PROMPTS, prompts={"query": "b "}, default_prompt_name="query")


def own_vocabulary(folder: Path) -> None:
    (folder / "vocab.txt").write_text("\n".join(VOCABULARY) + "\n")


def rename_tokens(names: dict[str, str]) -> Edit:
    """Return an edit that gives tokens other names in ``tokenizer.json``."""

    def apply(folder: Path) -> None:
        text = (folder / "tokenizer.json").read_text()
        for old, new in names.items():
            text = text.replace(json.dumps(old), json.dumps(new))
        (folder / "tokenizer.json").write_text(text)

    return apply


def turn_vocabulary(folder: Path) -> None:
    """Give tokens other ids in ``tokenizer.json``, as a vocabulary of other texts would."""
    state = json.loads((folder / "tokenizer.json").read_text())
    words = state["model"]["vocab"]
    plain = [token for token in words if token not in SPECIAL]
    turned = zip(plain, [*plain[1:], plain[0]], strict=True)
    state["model"]["vocab"] = {t: words[t] for t in SPECIAL} | {t: words[o] for t, o in turned}
    write_json(folder / "tokenizer.json", state)


def named(folder: Path) -> None:
    """Let the settings name the special tokens."""
    names = ("cls", "sep", "pad", "unk", "mask")
    edit(SETTINGS, **{f"{name}_token": f"[{name.upper()}]" for name in names})(folder)


def listed(ids: dict[str, int]) -> Edit:
    return edit(SETTINGS, added_tokens_decoder={i: {"content": t} for t, i in ids.items()})


OTHER_NAMES = {"[CLS]": "<s>", "[SEP]": "</s>", "[PAD]": "<pad>"}
"""The special tokens of another family; the models of ids alone cannot tell them apart."""
PLACES = {token: number for number, token in enumerate(SPECIAL)}

FOREIGN: list[tuple[Edit, str]] = [
    (edit("config.json", vocab_size=1200), "a vocabulary of 57 tokens, expected about 1200"),
    (rename_tokens(OTHER_NAMES), r"without the special tokens \['\[CLS\]', '\[MASK\]', '\[PAD\]'"),
    (listed({t: i + 5 for t, i in PLACES.items()}), "with other ids of them"),
    (together(own_vocabulary, turn_vocabulary), "53 of 57 tokens with other ids than in vocab.txt"),
]


@pytest.mark.parametrize(("change", "message"), FOREIGN)
def test_a_tokenizer_of_another_model_is_refused(
    tmp_path: Path, change: Edit, message: str
) -> None:
    source = write_tiny_bert(tmp_path / "source")
    named(source)
    change(source)
    with pytest.raises(GranAlignError, match=f"{message}.* download the model again") as error:
        SentenceModel.read(source)
    assert "\n" not in str(error.value)


OWN_TOKENIZERS: list[Edit] = [
    edit("config.json", vocab_size=57 + 399),  # as many spare embeddings as Qwen2.5 has
    edit("config.json", pad_token_id=1),  # multilingual-e5 says another id than its tokenizer
    own_vocabulary,
    together(own_vocabulary, rename_tokens({"a": "[unused0]", "b": "[unused1]"})),
    listed(PLACES | {"[MASK]": 57}),  # only the settings have it
    rename_tokens({"[PAD]": "[unused0]"}),
    together(drop(SETTINGS), rename_tokens(OTHER_NAMES)),  # nothing says that it has others
]


@pytest.mark.parametrize("change", OWN_TOKENIZERS)
def test_what_published_models_differ_in_is_no_foreign_tokenizer(
    tmp_path: Path, change: Edit
) -> None:
    source = write_tiny_bert(tmp_path / "source")
    named(source)
    change(source)
    SentenceModel.read(source)


REFUSED: list[tuple[Edit, str]] = [
    (with_module("sentence_transformers.models.Dense"), "'Dense'.*choose a model without further"),
    (
        with_module("sentence_transformers.sentence_transformer.modules.layer_norm.LayerNorm"),
        "'LayerNorm'",
    ),
    (with_module("custom_st.Mixer"), "'custom_st.Mixer', which is code of its own"),
    (with_module("sentence_transformers.models.Pooling"), "expected each once"),
    (outside, r"'../1_Pooling', expected one inside"),
    (edit("1_Pooling/config.json", pooling_mode="max"), r"\['max'\], expected one of"),
    (edit("1_Pooling/config.json", pooling_mode=["cls", "mean"]), r"\['cls', 'mean'\]"),
    (edit("1_Pooling/config.json", pooling_mode_cls_token=True), "pooling_mode_cls_token"),
    (
        together(PROMPTED, edit("1_Pooling/config.json", include_prompt=False)),
        "include_prompt false with the prompt 'b '",
    ),
    (edit(PROMPTS, default_prompt_name="x", prompts={"y": "z"}), "'x' of the prompts"),
    (edit(PROMPTS, truncate_dim=16), "truncate_dim 16.*set truncate_dim to null"),
    (edit(OWN, transformer_task="fill-mask"), "the task 'fill-mask'"),
    (
        edit(OWN, modality_config={"text": {"method_output_name": "pooler_output"}}),
        "pooler_output",
    ),
    (edit(OWN, processing_kwargs={"text": {"max_length": 3}}), "processing_kwargs"),
    (edit(SETTINGS, split_special_tokens=True), "split_special_tokens true"),
    (edit(SETTINGS, truncation_side="middle"), "truncation_side 'middle'"),
    (edit(SETTINGS, added_tokens_decoder={"x": 1}), "unusable added tokens"),
    (two_models, "query.embeddings.*weights of one model"),
    (together(shard, drop("b.safetensors")), "names 'b.safetensors', expected"),
]


@pytest.mark.parametrize(("change", "message"), REFUSED)
def test_refused(tmp_path: Path, change: Edit, message: str) -> None:
    source = write_tiny_bert(tmp_path / "source")
    change(source)
    with pytest.raises(GranAlignError, match=message) as error:
        export_sentence_encoder(source, tmp_path / "out")
    assert "\n" not in str(error.value)
    assert [path.name for path in tmp_path.iterdir()] == ["source"]
