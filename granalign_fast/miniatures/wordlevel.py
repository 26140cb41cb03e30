"""Tokenizers of the miniatures: one token a word, from a closed list that covers the prompts."""

from __future__ import annotations

from collections.abc import Iterable
from functools import cache
from typing import Any

from granalign_fast.language import prompts

from .words import vocabulary

UNKNOWN = "<unk>"
VLM_SPECIAL = (
    "<|endoftext|>",
    "<|im_start|>",
    "<|im_end|>",
    "<|vision_start|>",
    "<|vision_end|>",
    "<|image_pad|>",
    "<|video_pad|>",
)
LLM_SPECIAL = (
    "<|end_of_text|>",
    "<|begin_of_text|>",
    "<|start_header_id|>",
    "<|end_header_id|>",
    "<|eot_id|>",
)
# The end of a text must not be token 2: transformers takes such a model for one from before 2023,
# and pools at another token.
CLIP_SPECIAL = ("<|padding|>", "<|startoftext|>", "<|mask|>", "<|endoftext|>")

VLM_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n"
    "{% if message['content'] is string %}{{ message['content'] }}{% else %}"
    "{% for part in message['content'] %}{% if part['type'] == 'image' %}"
    "<|vision_start|><|image_pad|><|vision_end|>{% else %}{{ part['text'] }}{% endif %}"
    "{% endfor %}{% endif %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
VIDEO_TEMPLATE = VLM_TEMPLATE.replace(
    "{% else %}{{ part['text'] }}",
    "{% elif part['type'] == 'video' %}<|vision_start|><|video_pad|><|vision_end|>"
    "{% else %}{{ part['text'] }}",
)
"""`VLM_TEMPLATE` with a place for a video."""
LLM_TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}<|start_header_id|>{{ message['role'] }}"
    "<|end_header_id|>\n\n{{ message['content'] }}<|eot_id|>{% endfor %}"
    "{% if add_generation_prompt %}<|start_header_id|>assistant<|end_header_id|>\n\n{% endif %}"
)


def split_words(tokenizer: Any) -> None:
    """Make a `tokenizers.Tokenizer` split lower-case words, punctuation marks and line ends."""
    from tokenizers import Regex, normalizers, pre_tokenizers

    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(r"[^\S\n]+"), "removed"),
            pre_tokenizers.Split("\n", "isolated"),
            pre_tokenizers.Punctuation("isolated"),
        ]
    )


@cache
def _splitter() -> Any:
    from tokenizers import Tokenizer, models

    tokenizer = Tokenizer(models.WordLevel({UNKNOWN: 0}, UNKNOWN))
    split_words(tokenizer)
    return tokenizer


def split(text: str) -> list[str]:
    """Split a text into tokens."""
    splitter = _splitter()
    normal = splitter.normalizer.normalize_str(text)
    return [word for word, _ in splitter.pre_tokenizer.pre_tokenize_str(normal)]


@cache
def words() -> tuple[str, ...]:
    """Return all words of the language and of the prompts, sorted."""
    texts = [
        prompts.SYSTEM,
        prompts.VISION_SYSTEM,
        prompts.AGNOSTIC_CAPTION,
        prompts.aware_caption(["red", "blue"]),
        prompts.recognition("red"),
        "system user assistant yes no \n",
        *(prompts.user_message(task, "red") for task in prompts.SIMPLIFIED),
        *(prompts.user_message(task, "red") for task in prompts.DETAILED),
        prompts.user_message(prompts.ENTITIES, "red"),
        *vocabulary(),
    ]
    return words_of(texts)


def words_of(texts: Iterable[str]) -> tuple[str, ...]:
    """Return all words of some texts, sorted."""
    return tuple(sorted({word for text in texts for word in split(text)}))


def _fast(special: tuple[str, ...], known: tuple[str, ...] | None = None, **settings: Any) -> Any:
    from tokenizers import Tokenizer, models
    from transformers import PreTrainedTokenizerFast

    table = {word: i for i, word in enumerate((*special, UNKNOWN, *(known or words())))}
    tokenizer = Tokenizer(models.WordLevel(table, UNKNOWN))
    split_words(tokenizer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        unk_token=UNKNOWN,
        clean_up_tokenization_spaces=False,
        **settings,
    )


def vlm_tokenizer(known: tuple[str, ...] | None = None, template: str = VLM_TEMPLATE) -> Any:
    """Return a ``PreTrainedTokenizerFast`` with Qwen's special tokens and chat template.

    Args:
        known: the words that it knows; None for `words`.
        template: the chat template.
    """
    tokenizer = _fast(
        VLM_SPECIAL,
        known,
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        additional_special_tokens=[*VLM_SPECIAL[1:2], *VLM_SPECIAL[3:]],
    )
    tokenizer.chat_template = template
    return tokenizer


def llm_tokenizer() -> Any:
    """Return a ``PreTrainedTokenizerFast`` with Llama 3's special tokens and chat template."""
    tokenizer = _fast(
        LLM_SPECIAL,
        bos_token="<|begin_of_text|>",
        eos_token="<|eot_id|>",
        pad_token="<|end_of_text|>",
        additional_special_tokens=list(LLM_SPECIAL[2:4]),
    )
    tokenizer.chat_template = LLM_TEMPLATE
    return tokenizer


def clip_tokenizer(length: int) -> Any:
    """Return a ``PreTrainedTokenizerFast`` that puts texts between CLIP's start and end tokens."""
    from tokenizers.processors import TemplateProcessing

    tokenizer = _fast(
        CLIP_SPECIAL,
        bos_token="<|startoftext|>",
        eos_token="<|endoftext|>",
        pad_token="<|padding|>",
        model_max_length=length,
    )
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single="<|startoftext|> $A <|endoftext|>",
        special_tokens=[("<|startoftext|>", 1), ("<|endoftext|>", 3)],
    )
    return tokenizer
