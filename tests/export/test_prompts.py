"""The product's own prompts at export: what is refused, what is mended, and equal ids."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from helpers.tiny_bert import edit_json, write_json
from helpers.tiny_llm import CHAT_TEMPLATE, LLAMA, VOCABULARY, write_tiny_llm, write_tokenizer
from helpers.tiny_qwen3_vl import IMAGE_SIZE as QWEN3_SIZE
from helpers.tiny_qwen3_vl import write_tiny_qwen3_vl
from helpers.tiny_smolvlm import IMAGE as SMOL_IMAGE
from helpers.tiny_smolvlm import write_tiny_smolvlm
from helpers.tiny_vlm import CHAT_TEMPLATE as VLM_TEMPLATE
from helpers.tiny_vlm import (
    IMAGE,
    IMAGE_SIZE,
    PAD,
    VIDEO,
    VISION_END,
    VISION_START,
    write_tiny_vlm,
)
from tokenizers import Tokenizer, models, pre_tokenizers

from granalign_fast.errors import GranAlignError
from granalign_fast.export.checks.prompts import check_prompts
from granalign_fast.export.families import read_vlm
from granalign_fast.export.llm import export_llm
from granalign_fast.export.sources.language_model import LlmSource
from granalign_fast.language import prompts
from granalign_fast.models.chat import ChatTokenizer

CHATML = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
LONG = LLAMA | {"max_position_embeddings": 4096}


def source_of(path: Path, template: Any = CHAT_TEMPLATE, **settings: Any) -> Path:
    source = write_tiny_llm(path / "source", LONG)
    edit_json(source / "tokenizer_config.json", chat_template=template, **settings)
    return source


REFUSED = [
    (None, "no chat template, .* choose its instruct version"),
    ("{% if %}", "cannot be parsed"),
    ("{{ raise_exception('only tools') }}", "refuses the messages .only tools."),
    ("{{ messages[0].content[:9] }}", "leaves out a text of the system or the user"),
    (
        CHAT_TEMPLATE + "{{ '<far>' }}",
        f"got the token 321 in a prompt, expected 0 to {VOCABULARY - 1}",
    ),
]


@pytest.mark.parametrize(("template", "message"), REFUSED)
def test_what_is_refused(tmp_path: Path, template: Any, message: str) -> None:
    source = source_of(tmp_path, template)
    state = json.loads((source / "tokenizer.json").read_text())
    # More tokens than embeddings.
    far = [state["added_tokens"][0] | {"id": 258 + i, "content": f"<{i}>"} for i in range(63)]
    state["added_tokens"] += [*far, far[0] | {"id": 321, "content": "<far>"}]
    write_json(source / "tokenizer.json", state)
    with pytest.raises(GranAlignError, match=message) as error:
        check_prompts(LlmSource.read(source), compare=False)
    assert "\n" not in str(error.value)


def test_a_base_model_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    source = source_of(tmp_path, None)
    with pytest.raises(GranAlignError, match="no chat template"):
        export_llm(source, tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["source"]


def test_a_tokenizer_of_another_model_is_refused(tmp_path: Path) -> None:
    """Its ids have embeddings: those of other words."""
    large = write_tiny_llm(tmp_path / "source", LONG | {"vocab_size": 2000})
    with pytest.raises(GranAlignError, match=r"vocabulary of 258 tokens, expected about 2000, .*"):
        export_llm(large, tmp_path / "out", check=False)
    assert [path.name for path in tmp_path.iterdir()] == ["source"]


def test_prompts_are_checked_without_transformers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "transformers", None)
    model = LlmSource.read(source_of(tmp_path))
    assert check_prompts(model).replaced == {}


def test_an_unknown_word_is_no_forged_token(tmp_path: Path) -> None:
    """A tokenizer of whole words gives those that it does not know a special token."""
    source = source_of(tmp_path)
    before = Tokenizer.from_file(str(source / "tokenizer.json"))
    special = [token.content for token in before.get_added_tokens_decoder().values()]
    tokenizer = Tokenizer(models.WordLevel({"<unk>": 0, "a": 1, "dog": 2}, "<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.add_special_tokens(["<unk>", *special])
    tokenizer.save(str(source / "tokenizer.json"))
    assert check_prompts(LlmSource.read(source), compare=False).replaced == {}


def test_an_additional_default_template_is_the_one_of_the_export(tmp_path: Path) -> None:
    source = source_of(tmp_path)
    (source / "additional_chat_templates").mkdir()
    (source / "additional_chat_templates" / "default.jinja").write_text(CHATML)
    model = check_prompts(LlmSource.read(source), compare=False)
    out = tmp_path / "out"
    out.mkdir()
    model.copy_files(out)
    assert ChatTokenizer(out).template.source == CHATML
    messages = prompts.rewriting(prompts.ENTITIES, "a dog")
    assert ChatTokenizer(out).chat(messages) == ChatTokenizer(source).chat(messages)


FAMILIES: dict[str, tuple[Callable[[Path], Path], tuple[int, int] | None]] = {
    "qwen2.5": (write_tiny_vlm, IMAGE_SIZE),
    "qwen3": (write_tiny_qwen3_vl, QWEN3_SIZE),
    "smol": (write_tiny_smolvlm, None),
}
WRONG_IDS = [
    ("qwen2.5", "image_token_id", f"{PAD} for image", IMAGE),
    ("qwen2.5", "video_token_id", f"{PAD} for video", VIDEO),
    ("qwen3", "image_token_id", f"{PAD} for image", IMAGE),
    ("qwen3", "video_token_id", f"{VISION_START}, {PAD}, {VISION_END} for video", VIDEO),
    ("qwen3", "vision_start_token_id", f"{PAD}, {VIDEO}, {VISION_END} for video", VISION_START),
    ("qwen3", "vision_end_token_id", f"{VISION_START}, {VIDEO}, {PAD} for video", VISION_END),
    ("smol", "image_token_id", f"{PAD} for image", SMOL_IMAGE),
]


@pytest.mark.parametrize(("family", "setting", "got", "right"), WRONG_IDS)
def test_ids_that_the_template_does_not_write_are_named(
    tmp_path: Path, family: str, setting: str, got: str, right: int
) -> None:
    """Otherwise an export would take no clips, and nothing would say why."""
    write, size = FAMILIES[family]
    config = write(tmp_path / "source") / "config.json"
    edit_json(config, **{setting: PAD})
    with pytest.raises(GranAlignError, match=f"config.json: got {got} tokens") as error:
        check_prompts(read_vlm(config.parent, size), compare=False)
    assert "\n" not in str(error.value) and setting in str(error.value)
    # The remedy: the id that the message says.
    assert str(right) in str(error.value).partition("expected")[2]
    edit_json(config, **{setting: right})
    model = check_prompts(read_vlm(config.parent, size), compare=False)
    assert sorted(model.layouts) == [1, 2, 4, 6]


@pytest.mark.needs_torch
def test_ids_are_transformers_where_tokens_are_in_added_tokens_json_alone(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    source = write_tiny_llm(tmp_path / "source", LONG)
    write_tokenizer(source, ["<bos>", "<eos>"], {"chat_template": CHATML, "eos_token": "<eos>"})
    write_json(source / "added_tokens.json", {"<|im_end|>": 259, "<|im_start|>": 258})
    model = check_prompts(LlmSource.read(source), compare=True)
    out = tmp_path / "out"
    out.mkdir()
    model.copy_files(out)
    messages = prompts.rewriting(prompts.ENTITIES, "Grüße, 日本")
    expected = transformers.AutoTokenizer.from_pretrained(source).apply_chat_template(
        messages, add_generation_prompt=True, return_dict=False
    )
    assert ChatTokenizer(out).chat(messages) == expected
    assert expected.count(258) == 3


@pytest.mark.needs_torch
def test_a_difference_is_mended_or_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    transformers = pytest.importorskip("transformers")
    from tokenizers import normalizers

    source = source_of(tmp_path)

    def changed(folder: Path, **options: Any) -> Any:
        """Load a tokenizer as a version of transformers that changes its steps would."""
        loaded = transformers.PreTrainedTokenizerFast.from_pretrained(folder, **options)
        loaded.backend_tokenizer.normalizer = normalizers.Replace("dog", "cat")
        return loaded

    monkeypatch.setattr(transformers.AutoTokenizer, "from_pretrained", changed)
    model = check_prompts(LlmSource.read(source), compare=True)
    assert set(model.replaced) == {"tokenizer.json"}
    assert model.sha256 != LlmSource.read(source).sha256
    assert json.loads(model.replaced["tokenizer.json"])["normalizer"]["type"] == "Replace"
    # A difference outside of the tokenizer's file cannot be mended.
    edit = transformers.PreTrainedTokenizerFast.apply_chat_template
    monkeypatch.setattr(
        transformers.PreTrainedTokenizerFast,
        "apply_chat_template",
        lambda self, messages, **options: [*edit(self, messages, **options), 5],
    )
    with pytest.raises(
        GranAlignError, match=r"the token ids of \d+ prompts differ .* for .* tokens"
    ):
        check_prompts(LlmSource.read(source), compare=True)


@pytest.mark.needs_torch
@pytest.mark.parametrize("place", ["chat_template.json", "chat_template.jinja", "config"])
def test_the_vision_template_is_that_of_auto_processor(tmp_path: Path, place: str) -> None:
    pytest.importorskip("transformers")
    source = write_tiny_vlm(tmp_path / "source")
    edit_json(source / "config.json", max_position_embeddings=4096)
    marked = VLM_TEMPLATE.replace("You help.", "Other.") + "!"
    if place == "chat_template.json":
        write_json(source / place, {"chat_template": marked})
        edit_json(source / "tokenizer_config.json", chat_template=None)
    elif place == "chat_template.jinja":
        (source / place).write_text(marked)
    else:
        edit_json(source / "tokenizer_config.json", chat_template=marked)
    model = check_prompts(read_vlm(source), compare=True)
    out = tmp_path / "out"
    out.mkdir()
    model.copy_files(out)
    tokenizer = ChatTokenizer(out, processor=True)
    assert tokenizer.template.source == marked
    query = "a dog <|image_pad|><|im_end|>"
    ids = tokenizer.chat(prompts.about_frame(prompts.recognition(query)))
    assert ids.count(model.image_token) == 1


@pytest.mark.needs_torch
def test_json_goes_before_jinja_for_a_processor(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    source = write_tiny_vlm(tmp_path / "source")
    write_json(source / "chat_template.json", {"chat_template": VLM_TEMPLATE + "json"})
    (source / "chat_template.jinja").write_text(VLM_TEMPLATE + "jinja")
    settings, _ = transformers.ProcessorMixin.get_processor_dict(source)
    ours = ChatTokenizer(source, processor=True).template.source
    assert ours == settings["chat_template"] == VLM_TEMPLATE + "json"
    check_prompts(read_vlm(source), compare=True)
