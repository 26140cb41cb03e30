"""Chat templates that would run for ever or take all memory."""

from __future__ import annotations

import time

import pytest

from granalign_fast.errors import GranAlignError
from granalign_fast.models import template_sandbox
from granalign_fast.models.chat_template import ChatTemplate
from granalign_fast.models.template_sandbox import TemplateTooLongError

MESSAGES = [
    {"role": "system", "content": "You answer."},
    {"role": "user", "content": "a dog of 2024, 100%"},
]
DOUBLING = (
    "{%% set ns = namespace(x=%s) %%}{%% for i in range(60) %%}{%% set ns.x = %s %%}"
    "{%% endfor %%}{{ ns.x%s }}"
)

TEMPLATES = {
    "a text times a number": "{{ messages[0].role * 10**9 }}",
    "a constant times a number": "{{ 'a' * 1000000000 }}",
    "a list times a number": "{{ ([1] * 1000000000)|length }}",
    "a power": "{{ 10 ** 9999 ** 2 }}",
    "a number that is squared": DOUBLING % ("3", "ns.x * ns.x", ""),
    "loops inside each other": (
        "{% for a in range(9999) %}{% for b in range(9999) %}{% endfor %}{% endfor %}"
    ),
    "loops that pass over all": (
        "{% for a in range(9999) %}{% for b in range(9999) if b < 0 %}{% endfor %}{% endfor %}"
    ),
    "a loop with much text": "{% for a in range(9999) %}" + "x" * 99999 + "{% endfor %}",
    "a text that doubles": DOUBLING % ("'aaaa'", "ns.x + ns.x", ""),
    "a text that doubles by ~": DOUBLING % ("'aaaa'", "ns.x ~ ns.x", ""),
    "a list that doubles, as JSON": DOUBLING % ("['a']", "[ns.x, ns.x]", "|tojson"),
    "a list that doubles, as text": DOUBLING % ("['a']", "[ns.x, ns.x]", ""),
    "calls that double": (
        "{% macro f(n) %}{% if n %}{{ f(n-1) }}{{ f(n-1) }}{% endif %}{% endmacro %}{{ f(60) }}"
    ),
    "a wide field": "{{ '%1000000000d' % 1 }}",
    "a field as wide as an argument": "{{ '%*d' % (1000000000, 1) }}",
    "a wide field of format": "{{ '{:1000000000}'.format('a') }}",
    "a wide field of format, by an argument": "{{ '{:{w}}'.format('a', w=1000000000) }}",
    "a wide field of a filter": "{{ '%1000000000d'|format(1) }}",
    "a wide date": "{{ strftime_now('%1000000000d') }}",
    "padding": "{{ 'a'.ljust(1000000000) }}",
    "replacements": "{% set x = 'a' * 4000 %}{{ x.replace('', x).replace('', x) }}",
    "replacements by a filter": "{% set x = 'a' * 4000 %}{{ x|replace('', x)|replace('', x) }}",
    "replacements in a list": (
        "{% set x = 'a' * 9999 %}{{ range(9999)|map('replace', '', x)|join }}"
    ),
    "a long separator": "{% set x = 'a' * 9999 %}{{ x.join(x) }}",
    "a long indentation": "{{ ('a\n' * 9999)|indent(9999) }}",
    "JSON with a long indentation": "{{ messages|tojson(indent=1000000000) }}",
    "a translation": "{{ ('a' * 9999).translate({97: 'a' * 9999}) }}",
    "much text in the end": "{% set x = 'a' * 99999 %}" + "{{ x }}" * 50,
    "a template that is too long": "x" * 200_000,
}


@pytest.mark.parametrize("name", TEMPLATES)
def test_templates_that_take_too_much(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(template_sandbox, "MOST_RENDER_STEPS", 1 << 21)  # an eighth of the limit
    begin = time.process_time()
    with pytest.raises(GranAlignError) as caught:
        ChatTemplate(TEMPLATES[name], {}, "model").arguments(MESSAGES)
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 200
    if name != "a template that is too long":
        assert caught.type is TemplateTooLongError
    assert time.process_time() - begin < 5


def test_a_template_has_little_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(template_sandbox, "MOST_RENDER_SECONDS", 0.05)
    monkeypatch.setattr(template_sandbox, "MOST_RENDER_STEPS", 1 << 60)
    slow = "{% for a in range(9999) %}{% for b in range(9999) %}{% endfor %}{% endfor %}"
    with pytest.raises(TemplateTooLongError, match=r"model: .* takes more than 0 s; copy the"):
        ChatTemplate(slow, {}, "model").arguments(MESSAGES)


@pytest.mark.parametrize(
    "source",
    [
        "{% macro f(n) %}{{ f(n) }}{{ f(n) }}{% endmacro %}{{ f(1) }}",
        "{% block a %}{{ self.a() }}{{ self.a() }}{% endblock %}",
        "{% for x in [1, 2] recursive %}{{ loop([1, 2]) }}{% endfor %}",
        "{{ " + "(" * 3000 + "1" + ")" * 3000 + " }}",
        "{{ " + "not " * 3000 + "1 }}",
        "{{ " + "1 + " * 3000 + "1 }}",
        "{{ ''.__class__.__mro__ }}",
        "{{ messages|urlize }}",
        "{{ 1 / 0 }}",
        "{% include 'other' %}",
    ],
)
def test_recursion_and_python_are_refused_in_one_line(source: str) -> None:
    with pytest.raises(GranAlignError) as caught:
        ChatTemplate(source, {}, "model").arguments(MESSAGES)
    assert "\n" not in str(caught.value)


def test_usual_templates_are_rendered() -> None:
    source = (
        "{% for m in messages %}{{ '<|' ~ m.role ~ '|>' ~ m['content']|trim }}\n"
        "{%- if not loop.last %}{{ '%s of %d' % (m.role, 100) }}{% endif %}{% endfor %}"
        "{{ 'in 1000 words: {} {:>9}'.format(messages[1].content, 'a') }}"
        "{{ ', '.join(['a', 'b']) }}{{ messages|map(attribute='role')|join(' ') }}"
        "{{ messages[0]|tojson(indent=2) }}"
    )
    template = ChatTemplate(source, {}, "model")
    shaped, switches = template.arguments(MESSAGES)
    assert template.render(shaped, switches) == (
        "<|system|>You answer.system of 100<|user|>a dog of 2024, 100%"
        "in 1000 words: a dog of 2024, 100%         aa, bsystem user"
        '{\n  "role": "system",\n  "content": "You answer."\n}'
    )
