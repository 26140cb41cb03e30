"""A chat template: found in a folder, compiled as transformers does, and given what it takes.

Templates differ in what they accept. Some refuse a system turn or leave it out, some take contents
as texts and some as lists of parts, and some have a switch for thinking. `ChatTemplate` finds out
by rendering, and shapes the messages.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from granalign_fast.errors import GranAlignError, foreign_errors, one_line
from granalign_fast.files import read_json
from granalign_fast.parsing.limits import MOST_JSON_BYTES, MOST_PROMPT, MOST_TEMPLATE
from granalign_fast.reading import read_text

from .template_sandbox import TemplateTooLongError, bounded, template_environment
from .thoughts import NO_THINK, switches_of

Message = dict[str, Any]
"""``{"role": "system" | "user" | "assistant", "content": ...}``. The content is a text or, for a
vision-language model, a list of ``{"type": "image"}`` and ``{"type": "text", "text": ...}``."""

TEMPLATE_FILES = ("chat_template.json", "chat_template.jinja", "processor_config.json")
"""Files beside ``tokenizer_config.json`` that can hold a template."""
ADDITIONAL_TEMPLATES = "additional_chat_templates"
"""A folder of further templates; that of the name ``default`` is the one for a conversation."""


@dataclass(frozen=True)
class _Shape:
    """How messages are changed for a template.

    Attributes:
        fold: whether the system text goes to the head of the first user turn.
        parts: whether contents are lists of parts; None leaves each as it is.
        switches: whether variables switch thinking off.
    """

    fold: bool
    parts: bool | None
    switches: bool

    @classmethod
    def all(cls, has_switches: bool) -> Iterator[_Shape]:
        """Yield all shapes, those that change less before others."""
        for switches in (True, False) if has_switches else (False,):
            for fold in (False, True):
                for parts in (None, True, False):
                    yield cls(fold, parts, switches)

    def apply(self, messages: Sequence[Message]) -> list[Message] | None:
        """Return the messages in this shape; None if they cannot have it."""
        shaped = [dict(message) for message in messages]
        if self.fold:
            if len(shaped) < 2 or [m.get("role") for m in shaped[:2]] != ["system", "user"]:
                return None
            system, user = shaped[:2]
            head, content = f"{_text(system['content'])}\n\n", user["content"]
            if isinstance(content, str):
                user["content"] = head + content
            else:
                user["content"] = [{"type": "text", "text": head}, *content]
            shaped = shaped[1:]
        for message in shaped:
            content = message.get("content")
            if self.parts is True and isinstance(content, str):
                message["content"] = [{"type": "text", "text": content}]
            elif self.parts is False and isinstance(content, list):
                if any(part.get("type") != "text" for part in content):
                    return None
                message["content"] = _text(content)
        return shaped


class ChatTemplate:
    """A compiled chat template.

    Args:
        source: the template, in Jinja.
        variables: special tokens and the like, by the names that the template uses.
        name: of the model's folder, for error messages.

    Raises:
        GranAlignError: the template is too long, or cannot be parsed.
    """

    def __init__(self, source: str, variables: Mapping[str, Any], name: object) -> None:
        if len(source) > MOST_TEMPLATE:
            raise GranAlignError(
                f"chat template: got {len(source):,} characters, expected at most "
                f"{MOST_TEMPLATE:,}; copy the tokenizer again"
            )
        self.source = source
        self._name = name
        with foreign_errors("chat template: cannot be parsed", "copy the tokenizer again"):
            environment = template_environment()
            with bounded():
                parsed = environment.parse(source)
                self._template = environment.from_string(source)
            self.switches = switches_of(parsed)
            """Variables that switch thinking off."""
            self.literals = _literals(parsed)
            """The texts that the template itself holds."""
        self._variables = dict(variables)
        self._shapes: dict[Any, _Shape | None] = {}

    def arguments(self, messages: Sequence[Message]) -> tuple[list[Message], dict[str, Any]]:
        """Return the messages as the template takes them, and the switches that it gets.

        Raises:
            GranAlignError: the template refuses the messages.
        """
        shape = self._shape_of(messages)
        if shape is None:
            self._render(messages, {})  # raises the template's own error
            return [dict(message) for message in messages], {}
        shaped = shape.apply(messages)
        assert shaped is not None  # the shape depends on roles and kinds of parts alone
        return self._with_words(shaped), self.switches if shape.switches else {}

    def takes(self, messages: Sequence[Message]) -> bool:
        """Whether the template writes every text of such messages, in some shape of them."""
        return self._shape_of(messages) is not None

    def render(self, messages: Sequence[Message], switches: Mapping[str, Any]) -> str:
        """Return the text of a conversation, up to the start of the assistant's turn.

        Args:
            messages: from `arguments`.
            switches: from `arguments`.

        Raises:
            GranAlignError: the template refuses the messages.
        """
        return self._render(messages, switches)

    def _render(self, messages: Sequence[Message], switches: Mapping[str, Any]) -> str:
        try:
            with bounded():
                text: str = self._template.render(
                    messages=[dict(message) for message in messages],
                    add_generation_prompt=True,
                    tools=None,
                    documents=None,
                    **(self._variables | dict(switches)),
                )
            if len(text) > MOST_PROMPT:
                raise TemplateTooLongError(f"it writes {len(text):,} characters")
        except TemplateTooLongError as error:
            raise TemplateTooLongError(
                f"{self._name}: the chat template takes too much: {error}; copy the tokenizer again"
            ) from None
        except Exception as error:  # a template can raise any Python error
            raise GranAlignError(
                f"{self._name}: the chat template refuses the messages ({one_line(error)}); "
                f"expected roles and contents as the model was trained with"
            ) from None
        return text

    def _shape_of(self, messages: Sequence[Message]) -> _Shape | None:
        """Return the least change with which the template shows every text of such messages.

        None if there is none: the template refuses them. Messages are alike if their roles and the
        kinds of their contents are.
        """
        key = tuple((message.get("role"), _kinds(message.get("content"))) for message in messages)
        if key not in self._shapes:
            probes, texts = _probes(messages)
            shapes = _Shape.all(bool(self.switches))
            self._shapes[key] = next(
                (one for one in shapes if self._shows(one, probes, texts)), None
            )
        return self._shapes[key]

    def _shows(self, shape: _Shape, probes: Sequence[Message], texts: Sequence[str]) -> bool:
        """Whether the template, given messages in a shape, writes every text of them."""
        shaped = shape.apply(probes)
        if shaped is None:
            return False
        try:
            shown = self._render(self._with_words(shaped), self.switches if shape.switches else {})
        except TemplateTooLongError:  # no other shape makes it shorter
            raise
        except GranAlignError:
            return False
        # A template that takes texts alone would write a list as Python shows it.
        return all(text in shown for text in texts) and "{'type': " not in shown

    def _with_words(self, messages: list[Message]) -> list[Message]:
        """Append the word that switches thinking off, where the template reads it in a text."""
        word = next((word for word in NO_THINK if any(word in t for t in self.literals)), None)
        if word is None or self.switches or not messages:
            return messages
        first = messages[0]
        content = first.get("content")
        if first.get("role") not in ("system", "user"):
            return messages
        if isinstance(content, str):
            return [first | {"content": f"{content}\n{word}"}, *messages[1:]]
        if isinstance(content, list):
            part = {"type": "text", "text": f"\n{word}"}
            return [first | {"content": [*content, part]}, *messages[1:]]
        return messages


def find_template(folder: Path, settings: Mapping[str, Any], *, processor: bool = False) -> str:
    """Return the source of a folder's chat template.

    Args:
        folder: the model's folder.
        settings: its ``tokenizer_config.json``.
        processor: whether to prefer the files that transformers' AutoProcessor prefers, as a
            vision-language model needs; otherwise those of AutoTokenizer.

    Raises:
        GranAlignError: there is none for a conversation, or a file is damaged.
    """
    by_place: dict[str, Any] = {"tokenizer_config.json": settings.get("chat_template")}
    for name in ("chat_template.json", "processor_config.json"):
        by_place[name] = _of_json(folder / name)
    for name in ("chat_template.jinja", f"{ADDITIONAL_TEMPLATES}/default.jinja"):
        by_place[name] = _of_text(folder / name)
    # transformers reads these in this order; the last ones stand in where it finds none.
    files = [f"{ADDITIONAL_TEMPLATES}/default.jinja", "chat_template.jinja"]
    own, others = ["tokenizer_config.json"], ["chat_template.json", "processor_config.json"]
    order = [others[0], *files, others[1], *own] if processor else [*files, *own, *others]
    found = (_default(by_place[place]) for place in order)
    template = next((one for one in found if one), None)
    if template is None:
        raise GranAlignError(
            f"{folder}: no chat template, expected one in tokenizer_config.json or "
            f"chat_template.jinja; {_remedy(by_place.values())}"
        )
    return template


def _remedy(templates: Any) -> str:
    """Return the remedy for a folder without a template for a conversation."""
    names = [name for entry in templates if isinstance(entry, list) for name, _ in _named(entry)]
    if names:
        return f"it has those of the names {', '.join(sorted(names))}; give the right one 'default'"
    return "a base model has none: choose its instruct version, or add the template"


def _named(templates: list[Any]) -> Iterator[tuple[str, Any]]:
    """Yield the names and the texts of a list of templates; what is none is left out."""
    for entry in templates:
        if isinstance(entry, dict) and isinstance(entry.get("name"), str):
            yield entry["name"], entry.get("template")


def _default(template: Any) -> str | None:
    """Return a template, or the one for a conversation of several named ones."""
    if isinstance(template, list):
        template = dict(_named(template))
    if isinstance(template, dict):
        template = template.get("default")
    return template if isinstance(template, str) else None


def _of_json(path: Path) -> Any:
    """Return the template in a JSON file; None if it has none."""
    value = read_json(path) if path.is_file() else {}
    if not isinstance(value, dict):
        raise GranAlignError(f"{path}: got a {type(value).__name__}, expected a JSON object")
    return value.get("chat_template")


def _of_text(path: Path) -> str | None:
    """Return the template that a file consists of; None if there is none."""
    if not path.is_file():
        return None
    # Universal newlines, as transformers reads it.
    return read_text(path, MOST_JSON_BYTES, inside=path.parent, remedy="copy the tokenizer again")


def _text(content: Any) -> str:
    """Return a content as one text."""
    if isinstance(content, str):
        return content
    return "".join(str(part.get("text", "")) for part in content)


def _kinds(content: Any) -> Any:
    """Return what kind of content it is, without its texts."""
    if isinstance(content, list):
        return tuple(str(part.get("type")) for part in content)
    return type(content).__name__


def _probes(messages: Sequence[Message]) -> tuple[list[Message], list[str]]:
    """Return messages of the same kind with texts that are easy to find, and these texts.

    Assistants' texts are not among the texts to find: templates cut thoughts out of them.
    """
    texts: list[str] = []

    def probe(message: Message) -> str:
        text = f"probe {len(texts)} of {message.get('role')} text"
        if message.get("role") in ("system", "user"):
            texts.append(text)
        return text

    probes = []
    for message in messages:
        content = message.get("content")
        if isinstance(content, str):
            message = message | {"content": probe(message)}
        elif isinstance(content, list):
            parts = [
                part | {"text": probe(message)} if part.get("type") == "text" else part
                for part in content
            ]
            message = message | {"content": parts}
        probes.append(message)
    return probes, texts


def _literals(parsed: Any) -> tuple[str, ...]:
    """Return the texts and the constants of a parsed template."""
    from jinja2.nodes import Const, TemplateData

    texts = {node.data for node in parsed.find_all(TemplateData)}
    texts |= {node.value for node in parsed.find_all(Const) if isinstance(node.value, str)}
    return tuple(sorted(texts))
