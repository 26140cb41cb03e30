"""Whether a folder's tokenizer is its model's own, as far as the files tell.

The ids of another model's tokenizer can fit into the table of embeddings. Then an export works, and
every text gets the embeddings of other words.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from granalign_fast.errors import GranAlignError, short_repr
from granalign_fast.parsing.limits import MOST_JSON_BYTES
from granalign_fast.reading import read_text

_SPARE, _SPARE_SHARE = 1024, 0.05
"""Rows of a table of embeddings that may have no token: so many, or this share of them if that is
more. Tables are padded: multilingual-e5 has 35 such rows, Qwen3 has 267, and Qwen2.5 has 399."""

_REMEDY = "it is of another model: copy or download the model again"


def check_vocabulary(tokenizer: Any, folder: Path, words: Any) -> None:
    """Raise if a tokenizer has by far fewer tokens than a model has embeddings.

    Args:
        tokenizer: a `tokenizers.Tokenizer`.
        folder: its folder, for messages.
        words: rows of the table of embeddings; anything but a number is not checked.

    Raises:
        GranAlignError: so it is.
    """
    tokens = 1 + max(tokenizer.get_vocab().values(), default=-1)
    if isinstance(words, int) and words - tokens > max(_SPARE, _SPARE_SHARE * words):
        raise GranAlignError(
            f"{folder / 'tokenizer.json'}: got a vocabulary of {tokens} tokens, expected about "
            f"{words}, as vocab_size in config.json says; {_REMEDY}"
        )


def check_own_tokenizer(
    tokenizer: Any, folder: Path, settings: Mapping[str, Any], named: Iterable[str], words: Any
) -> None:
    """Raise if a tokenizer contradicts the files around it.

    A single token may differ, as in a model without a token for masks. So more than half have to.

    Args:
        tokenizer: a `tokenizers.Tokenizer`, before tokens of the settings are added.
        folder: its folder.
        settings: of ``tokenizer_config.json``.
        named: special tokens that the folder's settings name.
        words: rows of the table of embeddings; anything but a number is not checked.

    Raises:
        GranAlignError: so it is.
    """
    check_vocabulary(tokenizer, folder, words)
    path = folder / "tokenizer.json"
    # 1. Special tokens. Those that the settings list with their ids may be added.
    listed = _listed_ids(settings)
    special = sorted(set(named))
    lost = [token for token in special if not _agrees(tokenizer, token, listed.get(token))]
    if len(lost) > max(1, len(special) // 2):
        raise GranAlignError(
            f"{path}: got a vocabulary without the special tokens {short_repr(lost)}, or with "
            f"other ids of them, expected those that the settings beside it name; {_REMEDY}"
        )
    # 2. The plain vocabulary beside it.
    if not (folder / "vocab.txt").is_file():
        return
    plain = read_text(folder / "vocab.txt", MOST_JSON_BYTES).removesuffix("\n").split("\n")
    same = sum(tokenizer.id_to_token(number) == token for number, token in enumerate(plain))
    if 2 * same < len(plain):
        raise GranAlignError(
            f"{path}: got {len(plain) - same} of {len(plain)} tokens with other ids than in "
            f"vocab.txt, expected the same vocabulary; {_REMEDY}"
        )


def _listed_ids(settings: Mapping[str, Any]) -> dict[str, int]:
    """Return the ids that the settings give to tokens; damaged ones are refused elsewhere."""
    listed = settings.get("added_tokens_decoder")
    tokens = listed.items() if isinstance(listed, dict) else ()
    return {
        str(token["content"]): int(number)
        for number, token in tokens
        if number.isdecimal() and isinstance(token, dict) and "content" in token
    }


def _agrees(tokenizer: Any, token: str, listed: int | None) -> bool:
    """Whether a tokenizer has a token, or its listed id is free for it."""
    number = tokenizer.token_to_id(token)
    if listed is None:
        return number is not None
    return number == listed or (number is None and tokenizer.id_to_token(listed) is None)
