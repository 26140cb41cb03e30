"""Thoughts of reasoning models: switched off where a template can, and cut out of answers.

A reasoning model writes a thought before its answer, between two marks: ``<think>`` and
``</think>``, ``[THINK]``, ``<seed:think>``, a channel of gpt-oss, and others. The first mark may
stand in the prompt, and the second is missing if the answer is cut off.
"""

from __future__ import annotations

import re
from typing import Any

_NAME = (
    r"(?:[\w-]+:)?(?:think(?:ing)?(?:_process)?|thoughts?|reason(?:ing)?(?:_content)?|reflection|"
    r"analysis|rationale|scratchpad|deliberation|chain_of_thought|cot|inner_monologue|"
    r"internal_monologue)"
)
_OPENING, _CLOSING = r"(?:[<\[{]|\u25c1|\u3010)[|\uff5c]?", r"[|\uff5c]?(?:[>\]}]|\u25b7|\u3011)"
_START = re.compile(
    rf"{_OPENING}(?:(?:begin|start)(?:_of)?_)?{_NAME}(?:_(?:start|begin))?(?:\s[^<>\n]{{0,80}})?"
    rf"{_CLOSING}|<\|inner_prefix\|>|<\|channel>\s*thought\b|<unused94>",
    re.IGNORECASE,
)
_END = re.compile(
    rf"{_OPENING}(?:/\s*{_NAME}|(?:end|stop)(?:_of)?_{_NAME}|{_NAME}_(?:end|stop))"
    rf"(?:\|\d+)?{_CLOSING}|<\|inner_suffix\|>|<channel\|>|<unused95>",
    re.IGNORECASE,
)
"""The marks around a thought, in the forms that published templates have. The last three of each
are those of Apertus, Gemma 4 and MedGemma."""

# gpt-oss writes its thought and its answer on channels.
_CHANNEL = re.compile(r"<\|channel\|>\s*(\w+)[^<]*<\|message\|>")
_CHANNEL_TOKENS = ("<|start|>", "<|channel|>", "<|message|>", "<|end|>", "<|return|>")
_CHANNEL_ENDS = re.compile(r"<\|(?:end|return|call|start|channel)\|>")

_WRAPPER = re.compile(
    rf"{_OPENING}/?(?:(?:begin|start|end)(?:_of)?_)?(?:answer|response|solution|final|output|"
    rf"result)(?:_(?:start|begin|end))?{_CLOSING}",
    re.IGNORECASE,
)
"""Marks around the answer that follows a thought."""

NO_THINK = ("/no_think", "/nothink", "detailed thinking off")
"""Words that switch thinking off, where a template looks for them in a text."""

_SWITCH = re.compile(r"think|reason", re.IGNORECASE)
_NEGATIVE = re.compile(r"^(?:no|not|disable|skip|without|hide|suppress)_|_(?:disabled|off)$")
_NOT_SWITCHES = re.compile(r"content|keep|preserve|clear|truncate|strip|history|parse|token|tag")
"""Variables about the thoughts of earlier turns, or about their marks."""


def visible_text(answer: str, *, opened: bool = False) -> str:
    """Return an answer without its thoughts, finished or cut off.

    Args:
        answer: the text of an answer, with the marks that `ChatTokenizer.decode` keeps.
        opened: whether the prompt has opened a thought, as `opens_thought` says.

    >>> visible_text("<think>A cat?</think>A dog runs.")
    'A dog runs.'
    >>> visible_text("A cat? No, a", opened=True)
    ''
    """
    # Channels: the answer is on the last one, unless that holds a thought.
    channels = list(_CHANNEL.finditer(answer))
    if channels:
        last = channels[-1]
        if last[1].lower() not in ("final", "answer", "response"):
            return ""
        answer, opened = _CHANNEL_ENDS.split(answer[last.end() :])[0], False
    elif "<|channel|>" in answer:  # cut off before the message
        return ""
    # Marks: the answer follows the last end of a thought, and ends where another one starts.
    ends = list(_END.finditer(answer))
    if ends:
        answer = answer[ends[-1].end() :]
    elif opened:
        return ""
    return _WRAPPER.sub("", _START.split(answer)[0])


def opens_thought(prompt: str) -> bool:
    """Whether a prompt ends with the mark that starts a thought, so that an answer begins in it.

    Args:
        prompt: its text, or the end of it.
    """
    end = prompt.rstrip()
    marks = [mark for mark in _START.finditer(end) if mark.end() == len(end)]
    channels = [mark for mark in _CHANNEL.finditer(end) if mark.end() == len(end)]
    return bool(marks) or any(mark[1].lower() != "final" for mark in channels)


def is_mark(token: str, tokens: Any = ()) -> bool:
    """Whether a token is a mark of a thought or an answer.

    Args:
        token: its text.
        tokens: all tokens of their kind. Those of a channel are marks only if a channel is there.
    """
    marks = (_START, _END, _WRAPPER)
    if any(mark.fullmatch(token) for mark in marks) or token == "<|channel>":
        return True
    return token in _CHANNEL_TOKENS and "<|channel|>" in tokens


def switches_of(parsed: Any) -> dict[str, Any]:
    """Return the variables of a parsed chat template that switch thinking off, and their values.

    Such a variable has "think" or "reason" in its name: ``enable_thinking``, ``thinking``,
    ``thinking_budget``, ``reasoning_effort``.
    """
    from jinja2.meta import find_undeclared_variables
    from jinja2.nodes import Const

    constants = {node.value for node in parsed.find_all(Const) if isinstance(node.value, str)}
    switches: dict[str, Any] = {}
    for name in sorted(_switchable(find_undeclared_variables(parsed))):
        if re.search(r"budget|max_|length", name):
            switches[name] = 0
        elif re.search(r"effort|level|mode|strength", name):
            # The least that the template knows; every template with an effort knows "low".
            known = ("none", "off", "disabled", "no_think", "minimal")
            switches[name] = next((word for word in known if word in constants), "low")
        else:
            switches[name] = bool(_NEGATIVE.search(name))
    return switches


def _switchable(names: Any) -> list[str]:
    return [name for name in names if _SWITCH.search(name) and not _NOT_SWITCHES.search(name)]
