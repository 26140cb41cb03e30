"""Token ids of a rendered conversation in which the messages' texts forge no special token."""

from __future__ import annotations

import json
import re
import secrets
from collections.abc import Collection
from typing import Any

from granalign_fast.errors import GranAlignError, short_repr

from .tokenizer_file import tokenizing

_LETTERS = "".join(map(chr, range(0xA000, 0xA400)))
"""Letters of the Yi script: no normalizer changes them, and no template speaks of them."""

_BRACKETED = re.compile(r"[<\[{(|\u25c1\uff5c\u3010].+[>\]})|\u25b7\uff5c\u3011]", re.DOTALL)
"""The form of added tokens that mark turns, tools and thoughts, such as ``<|im_end|>``."""


class PlainTextTokenizer:
    """A tokenizer for which control tokens in the messages' texts are plain text.

    A copy of the model's tokenizer knows each control token by another, secret name. The ones that
    the template writes are given that name, and those in the messages keep theirs. So the whole
    text is encoded at once, and each piece of text gets the ids that it has next to its neighbours.

    Control tokens are the special tokens; further added tokens that the template writes; and those
    in brackets, such as ``<think>``.

    Args:
        tokenizer: a `tokenizers.Tokenizer`.
        literals: the texts that the template holds.
        name: of the model's folder, for error messages.
    """

    def __init__(self, tokenizer: Any, literals: Collection[str], name: object) -> None:
        self._tokenizer, self._name = tokenizer, name
        added = tokenizer.get_added_tokens_decoder()
        self.ids = {
            token.content: number
            for number, token in added.items()
            if token.content and _is_control(token, literals)
        }
        """The control tokens and their ids."""
        self._numbers = frozenset(self.ids.values())
        self._spelled = _any_of(self.ids)
        secret = "".join(secrets.choice(_LETTERS) for _ in range(8))
        self._secret_names = {
            text: f"{secret}{_LETTERS[i // 1000]}{_LETTERS[i % 1000]}"
            for i, text in enumerate(self.ids)
        }
        self._mask = {text: name[::-1] for text, name in self._secret_names.items()}
        self._masked = _any_of(self._mask.values())
        self._renamed: Any = None

    def spells(self, text: str) -> bool:
        """Whether a text spells a control token, or what the tokenizer takes for one."""
        if self._spelled.search(text):
            return True
        ids = self._tokenizer.encode(text, add_special_tokens=False).ids
        return not self._numbers.isdisjoint(ids)

    def mask(self, text: str) -> str:
        """Return a message's text in which each control token has a stand-in."""
        return self._spelled.sub(lambda found: self._mask[found[0]], text)

    def encode(self, rendered: str) -> list[int]:
        """Return the ids of a conversation rendered from masked messages.

        Raises:
            GranAlignError: the tokenizer cannot encode a control token as plain text.
        """
        if self._renamed is None:
            self._renamed = self._rename()
        # 1. The control tokens in it are the template's: give them their secret names.
        text = self._spelled.sub(lambda found: self._secret_names[found[0]], rendered)
        # 2. Put what the messages spelled in the place of its stand-ins.
        text = self._masked.sub(lambda found: self._spelling[found[0]], text)
        with tokenizing():
            ids: list[int] = self._renamed.encode(text, add_special_tokens=False).ids
        return ids

    @property
    def _spelling(self) -> dict[str, str]:
        return {mask: text for text, mask in self._mask.items()}

    def _rename(self) -> Any:
        """Return a copy of the tokenizer with secret names for its control tokens."""
        from tokenizers import Tokenizer

        state = json.loads(self._tokenizer.to_str())
        new = self._secret_names
        for token in state["added_tokens"]:
            token["content"] = new.get(token["content"], token["content"])
        # Some models have their control tokens in the vocabulary as well.
        model = state["model"]
        vocabulary = model.get("vocab")
        if isinstance(vocabulary, dict):
            model["vocab"] = {new.get(text, text): number for text, number in vocabulary.items()}
        elif isinstance(vocabulary, list):
            model["vocab"] = [[new.get(text, text), score] for text, score in vocabulary]
        if isinstance(model.get("unk_token"), str):
            model["unk_token"] = new.get(model["unk_token"], model["unk_token"])
        state["post_processor"] = None  # it only adds tokens, which are not asked for
        with tokenizing():
            renamed = Tokenizer.from_str(json.dumps(state))
        moved = [
            text for text, number in self.ids.items() if renamed.token_to_id(new[text]) != number
        ]
        if moved:
            raise GranAlignError(
                f"{self._name}: the tokenizer cannot take {short_repr(moved[0])} in a message as "
                f"plain text; save it again with transformers, or report this model"
            )
        return renamed


def _is_control(token: Any, literals: Collection[str]) -> bool:
    text: str = token.content
    if token.special or _BRACKETED.fullmatch(text):
        return True
    # Added tokens that are blank stand for spaces in ordinary text.
    return not text.isspace() and any(text in literal for literal in literals)


def _any_of(texts: Collection[str]) -> re.Pattern[str]:
    """Return a pattern for any of the texts, the longest first; none matches without a text."""
    longest_first = sorted(texts, key=len, reverse=True)
    return re.compile("|".join(map(re.escape, longest_first)) or "(?!)")
