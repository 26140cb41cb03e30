"""Chat messages to token ids, with the tokenizer and the chat template of a model's folder."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Iterator, Sequence
from itertools import takewhile
from pathlib import Path
from typing import Any

from granalign_fast.errors import GranAlignError

from .chat_template import ChatTemplate, Message, find_template
from .encoder import tokenise
from .plain_text import PlainTextTokenizer
from .special_tokens import SpecialTokens, load_chat_tokenizer
from .thoughts import is_mark
from .tokenizer_file import tokenizing


class ChatTokenizer:
    """The tokenizer of a language model's folder, be it exported or a source.

    Args:
        folder: the model.
        processor: whether the model has a processor besides its tokenizer, as a vision-language
            model does. Its chat template goes before the tokenizer's.

    Raises:
        GranAlignError: ``tokenizer.json`` is missing or damaged, or its settings are.
    """

    def __init__(self, folder: Path, *, processor: bool = False) -> None:
        self._folder, self._processor = folder, processor
        self._tokens = SpecialTokens.read(folder)
        self._tokenizer = load_chat_tokenizer(folder, self._tokens)
        added = self._tokenizer.get_added_tokens_decoder()
        texts = {token.content for token in added.values()}
        self._marks = {
            number: token.content
            for number, token in added.items()
            if token.special and is_mark(token.content, texts)
        }

    @functools.cached_property
    def template(self) -> ChatTemplate:
        """The chat template.

        Raises:
            GranAlignError: there is none, or it cannot be parsed.
        """
        source = find_template(self._folder, self._tokens.settings, processor=self._processor)
        return ChatTemplate(source, self._tokens.variables, self._folder)

    def encode(self, text: str) -> list[int]:
        """Return the token ids of plain text.

        No special tokens are added. Special tokens that the text spells out are recognised.

        Raises:
            GranAlignError: the text is not valid Unicode.
        """
        try:
            with tokenizing(UnicodeEncodeError, TypeError):
                ids: list[int] = self._tokenizer.encode(text, add_special_tokens=False).ids
        except (UnicodeEncodeError, TypeError):
            tokenise(self._tokenizer, text.splitlines())  # raises an error that names the line
            raise
        return ids

    def decode(self, ids: Sequence[int]) -> str:
        """Return the text of token ids, without special tokens.

        Marks of thoughts remain even where they are special tokens: without them a thought could
        not be told from an answer.
        """
        if self._marks.keys().isdisjoint(ids):
            return self._decode_run(ids)
        runs = itertools.groupby(ids, key=self._marks.get)
        return "".join(
            mark * len(list(run)) if mark else self._decode_run(run) for mark, run in runs
        )

    def _decode_run(self, ids: Sequence[int] | Iterator[int]) -> str:
        with tokenizing():
            text: str = self._tokenizer.decode(list(ids), skip_special_tokens=True)
        return text

    def chat(self, messages: Sequence[Message]) -> list[int]:
        """Return the token ids of a conversation, up to the start of the assistant's turn.

        The system text goes to the head of the first user turn where the template refuses or leaves
        out a system turn. Thinking is switched off where the template can. A special token that a
        message spells out is plain text: only the template's own are recognised.

        Raises:
            GranAlignError: the model has no chat template, the template refuses the messages, or a
                message is not valid Unicode.
        """
        if not messages:
            raise GranAlignError("messages: got none, expected at least one")
        shaped, switches = self.template.arguments(messages)
        texts = list(_texts(shaped))
        ids = self.encode(self.template.render(shaped, switches))
        # The whole text as transformers encodes it, unless a message spells a control token.
        if not any(self._plain.spells(text) for text in texts):
            return ids
        masked = [_masked(message, self._plain.mask) for message in shaped]
        return self._plain.encode(self.template.render(masked, switches))

    @property
    def control_tokens(self) -> dict[str, int]:
        """The ids of the tokens that only the template may write, such as the end of a turn.

        Raises:
            GranAlignError: there is no chat template.
        """
        return dict(self._plain.ids)

    @property
    def unknown(self) -> int | None:
        """The id of every word outside the vocabulary; None where there is no such id."""
        name = getattr(self._tokenizer.model, "unk_token", None)
        return None if name is None else self._tokenizer.token_to_id(name)

    @functools.cached_property
    def _plain(self) -> PlainTextTokenizer:
        return PlainTextTokenizer(self._tokenizer, self.template.literals, self._folder)


def common_start(one: Sequence[int], other: Sequence[int]) -> list[int]:
    """Return the longest common prefix of two token lists.

    Prompts of one template share it, so its keys and values are computed only once.

    >>> common_start([1, 2, 3], [1, 2, 4])
    [1, 2]
    """
    pairs = zip(one, other, strict=False)
    return [token for token, _ in takewhile(lambda pair: pair[0] == pair[1], pairs)]


def _texts(messages: Sequence[Message]) -> Iterator[str]:
    """Yield every text of the messages."""
    for message in messages:
        content = message.get("content")
        if isinstance(content, str):
            yield content
        elif isinstance(content, list):
            yield from (part["text"] for part in content if "text" in part)


def _masked(message: Message, mask: Any) -> Message:
    """Return a message with its texts replaced by what `mask` makes of them."""
    content = message.get("content")
    if isinstance(content, str):
        return message | {"content": mask(content)}
    if isinstance(content, list):
        parts = [
            part | {"text": mask(part["text"])} if "text" in part else part for part in content
        ]
        return message | {"content": parts}
    return message
