"""Chat messages to token ids, with the tokenizer and the chat template of a model's folder."""

from __future__ import annotations

import json
from collections.abc import Sequence
from datetime import datetime
from itertools import takewhile
from pathlib import Path
from typing import Any, NoReturn

from granalign_fast.errors import GranAlignError, one_line
from granalign_fast.files import read_json

from .encoder import load_tokenizer, tokenise

Message = dict[str, Any]
"""``{"role": "system" | "user" | "assistant", "content": ...}``. The content is a text or, for a
vision-language model, a list of ``{"type": "image"}`` and ``{"type": "text", "text": ...}``."""


class ChatTokenizer:
    """The tokenizer of an exported language model's folder.

    Args:
        folder: the exported model.

    Raises:
        GranAlignError: ``tokenizer.json`` is missing or damaged.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._tokenizer = load_tokenizer(folder)
        self._tokenizer.no_truncation()
        self._tokenizer.no_padding()
        self._settings = _read_settings(folder)
        self._template: Any = None

    def encode(self, text: str) -> list[int]:
        """Return the token ids of plain text.

        No special tokens are added. Special tokens that the text spells out are recognised.

        Raises:
            GranAlignError: the text is not valid Unicode.
        """
        try:
            ids: list[int] = self._tokenizer.encode(text, add_special_tokens=False).ids
        except (UnicodeEncodeError, TypeError):
            tokenise(self._tokenizer, text.splitlines())  # raises an error that names the line
            raise
        return ids

    def decode(self, ids: Sequence[int]) -> str:
        """Return the text of token ids, without special tokens."""
        text: str = self._tokenizer.decode(list(ids), skip_special_tokens=True)
        return text

    def chat(self, messages: Sequence[Message]) -> list[int]:
        """Return the token ids of a conversation, up to the start of the assistant's turn.

        Raises:
            GranAlignError: the model has no chat template, the template refuses the messages, or a
                message is not valid Unicode.
        """
        if not messages:
            raise GranAlignError("messages: got none, expected at least one")
        if self._template is None:
            self._template = _compile_template(_find_template(self._folder, self._settings))
        try:
            text = self._template.render(
                messages=[dict(message) for message in messages],
                add_generation_prompt=True,
                tools=None,
                documents=None,
                **_special_tokens(self._settings),
            )
        except Exception as error:  # a template can raise any Python error
            raise GranAlignError(
                f"{self._folder}: the chat template refuses the messages ({one_line(error)}); "
                f"expected roles and contents as the model was trained with"
            ) from None
        return self.encode(text)


def common_start(one: Sequence[int], other: Sequence[int]) -> list[int]:
    """Return the longest common prefix of two token lists.

    Prompts of one template share it, so its keys and values are computed only once.

    >>> common_start([1, 2, 3], [1, 2, 4])
    [1, 2]
    """
    pairs = zip(one, other, strict=False)
    return [token for token, _ in takewhile(lambda pair: pair[0] == pair[1], pairs)]


def _read_settings(folder: Path) -> dict[str, Any]:
    """Read ``tokenizer_config.json``; an absent file has no settings."""
    path = folder / "tokenizer_config.json"
    settings = read_json(path) if path.is_file() else {}
    if not isinstance(settings, dict):
        raise GranAlignError(f"{path}: got a {type(settings).__name__}, expected a JSON object")
    return settings


def _find_template(folder: Path, settings: dict[str, Any]) -> str:
    """Return the source of the chat template: from its own file, else from the settings."""
    file = folder / "chat_template.jinja"
    if file.is_file():
        return file.read_text(encoding="utf-8")
    template = settings.get("chat_template")
    if isinstance(template, list):  # several named templates
        by_name = {entry.get("name"): entry.get("template") for entry in template}
        template = by_name.get("default")
    if not isinstance(template, str):
        raise GranAlignError(
            f"{folder}: no chat template, expected one in tokenizer_config.json or "
            f"chat_template.jinja; choose an instruction-tuned model, or give token ids"
        )
    return template


def _special_tokens(settings: dict[str, Any]) -> dict[str, str]:
    """Return the settings that templates read as variables, such as ``bos_token``."""
    tokens = {}
    for key, value in settings.items():
        text = value.get("content") if isinstance(value, dict) else value
        if key.endswith("_token") and isinstance(text, str):
            tokens[key] = text
    return tokens


def _compile_template(source: str) -> Any:
    """Compile a Jinja template with the filters and functions that transformers gives to it."""
    import jinja2
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    # A template is untrusted code. The sandbox keeps it from Python's internals, and from changing
    # the objects that it is given.
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols"]
    )
    environment.filters["tojson"] = _to_json
    environment.globals["raise_exception"] = _raise_exception
    environment.globals["strftime_now"] = lambda form: datetime.now().strftime(form)
    try:
        return environment.from_string(source)
    except jinja2.TemplateError as error:
        raise GranAlignError(
            f"chat template: cannot be parsed ({one_line(error)}); copy the tokenizer again"
        ) from None


def _to_json(value: Any, indent: int | None = None) -> str:
    # Replaces Jinja's own `tojson`, which escapes for HTML.
    return json.dumps(value, ensure_ascii=False, indent=indent)


def _raise_exception(message: str) -> NoReturn:
    raise GranAlignError(message)
