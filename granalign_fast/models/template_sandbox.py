"""Jinja for chat templates that somebody else wrote: bounded in steps, time and length.

Jinja's sandbox keeps a template from Python's internals, but not from running for ever or taking
all memory. Here each pass of a loop, each call and each text that an expression makes is counted.
What could multiply lengths is computed only if the product is small.
"""

from __future__ import annotations

import contextlib
import functools
import json
import re
import time
from collections.abc import Callable, Iterator, Mapping
from contextvars import ContextVar
from datetime import datetime
from typing import Any, NoReturn

from granalign_fast.errors import GranAlignError
from granalign_fast.parsing.limits import MOST_RENDER_SECONDS, MOST_RENDER_STEPS

_PASS = 64
"""Steps of a pass of a loop, or of a call of a macro, as many as of so long a text."""
_PART = 16
"""Steps of an item of a list, as many as of so long a text."""
_MOST_NUMBER = 10_000
"""The greatest width, count or indentation that a template may name."""
_MOST_BITS = 4096
"""Bits of a product or a power of integers."""
_PERCENT_WIDTH = re.compile(r"%[^a-zA-Z%]*?(\d{3}|\*)")
"""A field of a format with ``%`` that is wider than 99, or as wide as an argument says."""
_TOO_WIDE = "it has a format with a field of more than 99 characters"
_BRACE_WIDTH = re.compile(r"\{[^{}]*:[^{}]*\d{3}")
"""A field of `str.format` that is wider than 99."""
_MULTIPLYING = frozenset(
    {"replace", "join", "indent", "translate", "expandtabs", "tojson", "format", "batch", "slice"}
)
"""Methods and filters whose result can be as long as the product of what they get."""
_LEFT_OUT = frozenset(
    {"center", "filesizeformat", "pprint", "random", "striptags", "sum", "urlencode", "urlize"}
    | {"wordcount", "wordwrap", "xmlattr"}
)
"""Filters of Jinja that no published template uses, and whose time depends on more than lengths."""


class TemplateTooLongError(GranAlignError):
    """A template takes too many steps, too long, or makes too long a text."""


class _Budget:
    """The steps and the time that one rendering has left."""

    def __init__(self) -> None:
        self.steps = MOST_RENDER_STEPS
        self.until = time.monotonic() + MOST_RENDER_SECONDS

    def spend(self, steps: int) -> None:
        """Take steps away; raise where none are left."""
        self.steps -= steps
        if self.steps < 0:
            raise TemplateTooLongError(f"it takes more than {MOST_RENDER_STEPS:,} steps")
        if time.monotonic() > self.until:
            raise TemplateTooLongError(f"it takes more than {MOST_RENDER_SECONDS:.0f} s")

    def check_product(self, *factors: int) -> None:
        """Raise if a product of lengths is more than what is left."""
        product = 1
        for factor in factors:
            product *= max(factor, 1)
        if product > self.steps:
            raise TemplateTooLongError("it makes a text that is too long")


_BUDGET: ContextVar[_Budget] = ContextVar("budget")


@contextlib.contextmanager
def bounded() -> Iterator[None]:
    """Bound what templates do in the block, be they compiled or rendered."""
    token = _BUDGET.set(_Budget())
    try:
        yield
    finally:
        _BUDGET.reset(token)


def template_environment() -> Any:
    """Return a Jinja environment with the tags, filters and functions that transformers adds.

    Its templates can be compiled and rendered in a block of `bounded` alone.
    """
    from jinja2.ext import Extension, loopcontrols
    from jinja2.nodes import CallBlock

    class Generation(Extension):
        """The block ``{% generation %}``, with which transformers marks the assistant's text."""

        tags = {"generation"}  # noqa: RUF012  # Jinja's own declaration

        def parse(self, parser: Any) -> Any:
            line = next(parser.stream).lineno
            body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
            return CallBlock(self.call_method("_body"), [], [], body).set_lineno(line)

        def _body(self, caller: Any) -> Any:
            return caller()

    environment = _environment_class()(
        trim_blocks=True,
        lstrip_blocks=True,
        extensions=[Generation, loopcontrols],
        finalize=_counted,
    )
    environment.filters["tojson"] = _to_json
    environment.globals["raise_exception"] = _raise_exception
    # One date for all prompts: at midnight a common prefix stays one.
    now = datetime.now()
    environment.globals["strftime_now"] = lambda form: now.strftime(_percent_format(form))
    environment.globals.pop("lipsum", None)
    environment.filters = {
        name: _guarded(name, function)
        for name, function in environment.filters.items()
        if name not in _LEFT_OUT
    }
    return environment


@functools.cache
def _environment_class() -> Any:
    """Return the class of the environment; Jinja is imported only now."""
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    class BoundedEnvironment(ImmutableSandboxedEnvironment):
        """A sandbox that counts steps. A template is untrusted code."""

        intercepted_binops = frozenset({"*", "**", "+", "%"})

        def _parse(self, source: str, name: Any, filename: Any) -> Any:
            parsed = super()._parse(source, name, filename)
            _count_steps(parsed)
            return parsed

        def tick(self, characters: int) -> str:
            """Count a pass of a loop whose own text has so many characters."""
            _BUDGET.get().spend(_PASS + characters)
            return ""

        def concat_texts(self, *parts: Any) -> str:
            """Return the texts of some values in a row: Jinja's operator ``~``."""
            return "".join(str(_counted(part)) for part in parts)

        def wrap_str_format(self, value: Any) -> Any:
            """Return what takes the place of the method `str.format`, or None."""
            formatted = super().wrap_str_format(value)
            if formatted is None:
                return None

            @functools.wraps(formatted)
            def checked(*args: Any, **kwargs: Any) -> str:
                if _BRACE_WIDTH.search(value.__self__):
                    raise TemplateTooLongError(_TOO_WIDE)
                _check_call("format", ("", value.__self__, *args, *kwargs.values()))
                return str(_counted(formatted(*args, **kwargs)))

            return checked

        def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
            _check_operator(operator, left, right)
            return _counted(super().call_binop(context, operator, left, right))

        def call(__self, __context: Any, __obj: Any, *args: Any, **kwargs: Any) -> Any:
            if getattr(__obj, "__func__", None) is BoundedEnvironment.tick:
                return __obj(*args)
            receiver = getattr(__obj, "__self__", None)
            receiver = receiver if isinstance(receiver, str | list | tuple | dict) else ""
            _check_call(getattr(__obj, "__name__", ""), (receiver, *args, *kwargs.values()))
            return _counted(super().call(__context, __obj, *args, **kwargs))

    return BoundedEnvironment


def _count_steps(parsed: Any) -> None:
    """Change a parsed template: each pass of a loop and each call of a macro is counted."""
    from jinja2 import nodes

    for body in [*parsed.find_all((nodes.For, nodes.Macro, nodes.CallBlock, nodes.Block))]:
        characters = sum(len(data.data) for data in body.find_all(nodes.TemplateData))
        tick = nodes.EnvironmentAttribute("tick")
        call = nodes.Call(tick, [nodes.Const(characters)], [], None, None)
        body.body.insert(0, nodes.ExprStmt(call).set_lineno(body.lineno))
    parsed.set_environment(parsed.environment)
    _replace_concatenations(parsed)


def _replace_concatenations(node: Any) -> None:
    """Replace ``a ~ b`` by a call, which counts; Jinja's own cannot be intercepted."""
    from jinja2 import nodes

    for inner in node.iter_child_nodes():
        _replace_concatenations(inner)
    for name, value in node.iter_fields():
        if isinstance(value, list):
            value[:] = [_without_concatenation(one) for one in value]
        elif isinstance(value, nodes.Concat):
            setattr(node, name, _without_concatenation(value))


def _without_concatenation(value: Any) -> Any:
    from jinja2 import nodes

    if not isinstance(value, nodes.Concat):
        return value
    function = nodes.EnvironmentAttribute("concat_texts")
    return nodes.Call(
        function,
        value.nodes,
        [],
        None,
        None,
        lineno=value.lineno,
        environment=value.environment,
    )


def _guarded(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
    """Return a filter whose arguments are checked, and whose result is counted."""

    @functools.wraps(function)  # with the marks that say what Jinja passes first
    def guarded(*args: Any, **kwargs: Any) -> Any:
        if name == "join" and len(args) > 1 and isinstance(args[1], Iterator):
            args = (args[0], list(args[1]), *args[2:])  # its length must be known
        _check_call(name, (*args, *kwargs.values()))
        return _counted(function(*args, **kwargs))

    return guarded


def _counted(value: Any) -> Any:
    """Spend as many steps as a value has characters, and return it."""
    budget = _BUDGET.get()
    budget.spend(_size(value, budget.steps))
    return value


def _check_call(name: str, arguments: tuple[Any, ...]) -> None:
    """Check what a method, a function or a filter gets."""
    budget = _BUDGET.get()
    if name != "safe_range":  # Jinja's own, which is bounded
        for number in arguments:
            if isinstance(number, int) and abs(number) > _MOST_NUMBER:
                raise TemplateTooLongError(f"it names a number above {_MOST_NUMBER:,}")
    sizes = [_size(one, budget.steps) for one in arguments if not isinstance(one, int)]
    budget.spend(1 + sum(sizes))
    if name in _MULTIPLYING:
        budget.check_product(*sizes, *(one for one in arguments if isinstance(one, int)))
    if name == "format" and arguments and isinstance(arguments[0], str):
        _percent_format(arguments[0])


def _check_operator(operator: str, left: Any, right: Any) -> None:
    """Check what an operator gets."""
    budget = _BUDGET.get()
    if operator == "%" and isinstance(left, str):
        _percent_format(left)
        budget.check_product(_size(left, budget.steps), _size(right, budget.steps))
    if operator == "*" and not (isinstance(left, int) and isinstance(right, int)):
        factors = [
            abs(one) if isinstance(one, int) else _size(one, budget.steps) for one in (left, right)
        ]
        budget.check_product(*factors)
    elif operator in ("*", "**") and isinstance(left, int) and isinstance(right, int):
        bits = left.bit_length() * abs(right) if operator == "**" else left.bit_length()
        if bits > _MOST_BITS or right.bit_length() > _MOST_BITS:
            raise TemplateTooLongError("it makes a number that is too large")


def _percent_format(form: str) -> str:
    """Return a format with ``%``; raise if it has wide fields."""
    if _PERCENT_WIDTH.search(form):
        raise TemplateTooLongError(_TOO_WIDE)
    return form


def _size(value: Any, most: int) -> int:
    """Return about how many characters a value has as a text; beyond `most` it is not exact."""
    from jinja2.utils import Namespace

    size, pending = 0, [value]
    while pending and size <= most:
        one = pending.pop()
        if isinstance(one, str):
            size += len(one)
            continue
        size += _PART
        if isinstance(one, Namespace):
            one = object.__getattribute__(one, "_Namespace__attrs")
        if isinstance(one, Mapping):
            pending += one.keys()
            pending += one.values()
        elif isinstance(one, list | tuple | set | frozenset):
            pending += one
        elif isinstance(one, range):
            size += len(one)
    return size


def _to_json(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    # Replaces Jinja's own `tojson`, which escapes for HTML.
    return json.dumps(
        value,
        ensure_ascii=ensure_ascii,
        indent=indent,
        separators=separators,
        sort_keys=sort_keys,
    )


def _raise_exception(message: str) -> NoReturn:
    raise GranAlignError(message)
