"""A language model's answer to a rewrite or a list of items; or nothing, where it holds none.

Models put text around a rewrite, which is taken off. An answer is no rewrite, and None stands for
it, by these rules:

1. It is empty, or a thought, finished or cut off.
2. It was cut off in its first line. Of a longer answer a first line that ends as a sentence counts.
3. It refuses, or asks for more.
4. It is an essay, or repeats itself.
5. It talks about the sentence or the task: it names the sentence, a rewrite or an observer; it
   gives a subject, verb or action as such ("The subject: Woman"); or its writer speaks of itself.
6. It echoes the request: five words in a row of the task or the system message, or the query word
   for word.

Words that the query itself has do not count for rules 5 and 6: a query may be about a sentence on a
board or the subject of a painting.
"""

from __future__ import annotations

import re
from itertools import pairwise

from granalign_fast.models.thoughts import visible_text

# What models put around an answer; `clean` removes it.
_HELLO = "sure(?: thing)?|certainly|of course|okay|ok|absolutely|great|yes"
_GREETING = re.compile(rf"^(?:{_HELLO})(?:[!.]+(?!\S)|,?$)\s*", re.IGNORECASE)
# A colon right before a letter or digit belongs to a time, such as 10:45.
_PREAMBLE = re.compile(
    rf"^(?:{_HELLO}|here(?:'s| is| are| it is| you are| you go))\b[^:\n]*:(?!\w)\s*",
    re.IGNORECASE,
)
_KIND = (
    "simplified|detailed|rewritten|revised|general|precise|final|simple|simpler|generalized|"
    "more (?:general|precise|detailed)"
)
_TEXT = "sentence|rewrite|version|answer|caption|output"
_LABEL = re.compile(
    rf"^(?:the |my )?(?:"
    rf"(?:(?:{_KIND})\s+)+(?:{_TEXT})\s*(?:is|would be|could be|reads|becomes)\s*"
    rf"(?::(?!\w)|(?=[\"'\u201c]))"
    rf"|(?:{_KIND})\s+(?:{_TEXT})\s*(?::(?!\w)|$)"
    rf"|(?:{_KIND}|{_TEXT})\s*:(?!\w))\s*",
    re.IGNORECASE,
)
_NUMBER = re.compile(r"^\s*(?:\(?\d{1,2}[.):]|[-*\u2022])\s+")
_NOTHING = frozenset(("none", "(none)", "n/a", "(n/a)"))
_EXAMPLES = frozenset(
    ("people", "animals", "things", "animals and things", "verbs", "the verbs", "the people")
)
"""Items that only echo the request for a list."""
_QUOTES = "\"'`\u201c\u201d\u2018\u2019*"
_SENTENCE_END = re.compile(r"[.!?\u2026\u3002\uff01\uff1f][\"'`)\u201d\u2019*]*$")

# Rule 3.
_REFUSAL = re.compile(
    r"\b(?:I(?:'m| am) sorry|I can(?:'t|not| not)|I(?:'m| am) (?:unable|not able)|as an AI|"
    r"(?:please|can you|could you)(?: please)? (?:provide|give|share|clarify|specify|tell)|"
    r"(?:how|what) (?:can|may) I (?:help|assist|do))\b",
    re.IGNORECASE,
)

# Rule 4.
_MOST_WORDS = 60
"""Words of a rewrite; a longer one is an essay, or does not end."""
_MOST_REPEATS = 3
"""How often a word may stand in a row; a model that is stuck repeats it more often."""
_LOOP_WORDS, _LOOP_SHARE = 12, 3
"""A model that is stuck in a loop of several words: at least so many words, of which less than one
in so many is distinct."""

# Rule 5. Each pattern names, as `word`, what the query must not have.
_SENTENCE = (
    r"sentences?|phrases?|phrasing|rewrote|rewriting|rewritten|rephras\w*|paraphras\w*|"
    r"reword\w*|query|synonyms?|pronouns?|adjectives?|adverbs?|nouns?|verbs?|observers?|clause"
)
_ROLE = r"subject|object|verb|noun|predicate|action|entity|entities|topic|theme|idea|meaning|moment"
_FIELD = (
    rf"{_ROLE}|actions|subjects|objects|people|animals|things|place|places|location|setting|scene|"
    r"time|who|what|where|when|how|why|posture|before|during|after|summary|explanation|note|"
    r"context|description|details?|frame|step|event"
)
_TALK = tuple(
    re.compile(pattern, re.IGNORECASE)
    for pattern in (
        # "... of this sentence ...", "the rewritten phrase", "a careful observer".
        rf"\b(?P<word>{_SENTENCE})\b",
        r"\b(?:the|this|a|my|your|each) (?P<word>rewrites?)\b",
        r"^(?P<word>rewrite) (?:this|the|it)\b",
        # "The subject: Woman", "Main action - walking", "Who: a dog".
        rf"^(?:the |its )?(?:main |first |key |just )?(?P<word>{_FIELD})(?: \d+)?(?:\(s\))?\s*"
        rf"(?:[:=]|\s-\s|\u2013)",
        # "The subject is a woman", "The main object of it is ...".
        rf"^(?:the |its |a )(?:main |key |central |overall )?(?P<word>{_ROLE})\s+(?:here |"
        rf"described |depicted |mentioned )?(?:is|are|was|were|here|would be|being "
        r"(?:described|mentioned))\s+"
        rf"(?:a|an|the|that|this|when|where|to|about|described|depicted|clear|\w+ing)\b",
        rf"^(?:the |its |a )?(?:main |key |central |overall )(?P<word>{_ROLE})\b.*\b(?:is|are)\b",
        # "This caption describes", "The description is about".
        r"^(?:this|the|that|it's a) (?:\w+ )?(?P<word>caption|description|statement|text|answer|"
        r"task|prompt|request|instruction|passage|context|title|scenario|example)s? (?:is|are|of|"
        r"was|describ|depict|refer|mean|suggest|impl|indicat|convey|state|say|tell|would|could|can|"
        r"should|has|involv|about)",
        # "In this context", "the given text", "the text above".
        r"\b(?:in this|the given|the provided|the original|the above|the following|your) "
        r"(?P<word>caption|description|statement|text|task|prompt|request|instruction|passage|"
        r"context|example|input)s?\b",
        # "The word 'vlogger' refers to ..."
        r"\b(?P<word>words?|terms?) [\"'\u201c\u2018]",
    )
)
_WRITER = re.compile(
    r"^(?:as an? (?:careful |keen )?(?:observer|assistant|language model)|let me|let's|"
    r"(?:I|I'm|I'll|I've|I'd|my)\b(?!-))",
    re.IGNORECASE,
)
_SELF = re.compile(r"\b(?:I|I'm|me|my|mine|we|our|us)\b", re.IGNORECASE)

# Rule 6.
_ECHO_WORDS = 5
_ECHO_SHARE = 3
"""An echo: so many words in a row, of which less than one in so many is in the query."""


def clean(
    answer: str,
    *,
    query: str = "",
    request: str = "",
    opened: bool = False,
    cut_off: bool = False,
) -> str | None:
    """Return the rewrite in a model's answer, or `None` if it holds none.

    Args:
        answer: the text of the answer.
        query: what was to be rewritten.
        request: the instructions that the model got.
        opened: whether the prompt has opened a thought.
        cut_off: whether the answer has no end, because the model wrote too long.

    >>> clean('Sure, here is the simplified sentence:\\n\\n1. "A dog runs."')
    'A dog runs.'
    """
    text = visible_text(answer, opened=opened).replace("**", "").replace("\u2019", "'")
    lines = text.splitlines()
    if cut_off and lines:
        # The last line is not whole; of the others a sentence counts.
        *lines, _ = lines
    for line in lines:
        text = line.strip()
        for pattern in (_GREETING, _PREAMBLE, _NUMBER, _LABEL):
            text = pattern.sub("", text)
        text = text.strip().strip(_QUOTES).strip()
        if text and not text.endswith(":"):
            whole = not cut_off or _SENTENCE_END.search(line.strip())
            useless = (
                _is_degenerate(text) or _is_talk(text, query) or _is_echo(text, query, request)
            )
            return text if whole and not useless else None
    return None


def listed_items(
    label: str, answer: str, *, opened: bool = False, cut_off: bool = False
) -> tuple[str, ...] | None:
    """Return the items that an answer lists after ``label:``, in lower case, each once.

    None if there is no such list. Arguments are those of `clean`.
    """
    text = visible_text(answer, opened=opened).replace("**", "")
    line = re.search(rf"\b{label}\b[^:\n]*:([^\n]*)", text, re.IGNORECASE)
    if not line:
        return None
    found = line[1].split(",")
    if cut_off and line.end() == len(text):
        found = found[:-1]  # the last one is not whole
    texts = (item.strip(" .;" + _QUOTES).lower() for item in found)
    named = [item for item in texts if re.search(r"\w", item) and item not in _NOTHING]
    if named and _EXAMPLES.issuperset(named):
        return None
    return tuple(dict.fromkeys(named))


def _is_degenerate(text: str) -> bool:
    """Whether an answer is a refusal, too long, or repeats itself."""
    words = _words(text)
    if not words or len(words) > _MOST_WORDS or _REFUSAL.search(text):
        return True
    run = 1
    for before, word in pairwise(words):
        run = run + 1 if word == before else 1
        if run > _MOST_REPEATS:
            return True
    return len(words) >= _LOOP_WORDS and len(set(words)) < len(words) / _LOOP_SHARE


def _is_talk(text: str, query: str) -> bool:
    """Whether an answer talks about the sentence, the task or its writer."""
    in_query = set(map(_stem, _words(query)))
    for pattern in _TALK:
        if any(_stem(found["word"].lower()) not in in_query for found in pattern.finditer(text)):
            return True
    return bool(_WRITER.match(text)) and not _SELF.search(query)


def _is_echo(text: str, query: str, request: str) -> bool:
    """Whether an answer repeats the query, or a part of the request that is not about it."""
    asked, words = " ".join(_words(request)), _words(text)
    if words == _words(query):
        return True
    in_query = set(map(_stem, _words(query)))
    for start in range(len(words) - _ECHO_WORDS + 1):
        part = words[start : start + _ECHO_WORDS]
        if f" {' '.join(part)} " in f" {asked} ":
            shared = sum(_stem(word) in in_query for word in part)
            if shared * _ECHO_SHARE < len(part):
                return True
    return False


def _words(text: str) -> list[str]:
    return re.findall(r"\w+", text.lower())


def _stem(word: str) -> str:
    """Return a word without the ending of a plural."""
    return word[:-1] if word.endswith("s") and len(word) > 3 else word
