"""Write tokenizers for models of random weights: of bytes, special tokens and words."""

from __future__ import annotations

import itertools
import json
from pathlib import Path

_SPECIAL = (
    *("<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|vision_start|>", "<|vision_end|>"),
    *("<|image_pad|>", "<|video_pad|>"),
    *("<fake_token_around_image>", "<image>", "<global-img>"),
)
_ANSWERS = ("yes", "no")
"""Answers whose probabilities recognition reads; each needs a token of its own."""
IDS = {name: 256 + i for i, name in enumerate(_SPECIAL)}
_TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{% if m.content is string %}{{ m.content }}"
    "{% else %}{% for c in m.content %}{% if c.type == 'image' %}IMAGE"
    "{% elif c.type == 'video' %}VIDEO{% else %}{{ c.text }}{% endif %}{% endfor %}"
    "{% endif %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
_NAMED_TOKENS = 16384
"""Largest vocabulary whose words no text encodes to."""


def write_tokenizer(folder: Path, vocabulary: int, image: str, video: str) -> None:
    """Write a tokenizer: a token for each byte, special ones, and words.

    In a small vocabulary no text encodes to the words. In a large one they are parts of texts, so
    that a token stands for as many characters, and takes as much memory, as in a real one.

    Args:
        folder: where to write it.
        vocabulary: number of tokens.
        image: what the chat template writes in the place of an image.
        video: what it writes in the place of a video.
    """
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

    letters = {letter: i for i, letter in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    answers = {name: 256 + len(_SPECIAL) + i for i, name in enumerate(_ANSWERS)}
    first = 256 + len(_SPECIAL) + len(_ANSWERS)
    words, merges = {f"\u0120word{i}": i for i in range(first, vocabulary)}, []
    if vocabulary > _NAMED_TOKENS:
        merges = text_parts(vocabulary - first)
        words = {"".join(pair): first + i for i, pair in enumerate(merges)}
    tokenizer = Tokenizer(models.BPE({**letters, **IDS, **answers, **words}, merges))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(list(_SPECIAL))
    tokenizer.add_tokens([AddedToken(name, single_word=True) for name in _ANSWERS])
    tokenizer.save(str(folder / "tokenizer.json"))
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "eos_token": "<|im_end|>",
        "pad_token": "<|endoftext|>",
        "chat_template": _TEMPLATE.replace("IMAGE", image).replace("VIDEO", video),
    }
    text = json.dumps(settings, indent=2) + "\n"
    (folder / "tokenizer_config.json").write_text(text, encoding="utf-8")


def text_parts(count: int) -> list[tuple[str, str]]:
    """Return merges of a byte-level tokenizer: pairs of letters, then pairs and a letter."""
    from tokenizers import pre_tokenizers

    # The letters of English first, behind the letter that stands for a space.
    common = "\u0120etaoinshrdlcumwfgypbvkjxqz"
    letters = common + "".join(sorted(set(pre_tokenizers.ByteLevel.alphabet()) - set(common)))
    pairs = itertools.product(common, letters)
    triples = itertools.product(map("".join, itertools.product(common, letters)), letters)
    parts = (pair for pair in itertools.chain(pairs, triples) if "".join(pair) not in _ANSWERS)
    return list(itertools.islice(parts, count))
