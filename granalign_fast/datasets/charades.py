"""Statements of Charades: the sentences of Charades-STA, and the table with the videos' lengths."""

from __future__ import annotations

import csv
import re

from granalign_fast.errors import GranAlignError, counted, short_repr
from granalign_fast.types import Rewrites

from .documents import Document
from .statements import Statement, Statements, check_duration

_NUMBER = r"\d+(?:\.\d*)?"
_LINE = re.compile(rf"(\S+)\s+({_NUMBER})\s+({_NUMBER})((?:\s+\S+)?)\s*##(.*)", re.DOTALL)


def read_sentences(document: Document) -> Statements:
    """Read Charades-STA's text: a line ``VID start end##sentence`` for each sentence.

    The form is that of Gao et al., "TALL", 2017 (arXiv 1705.02101). Some copies have a further
    number before ``##``, which is not used.

    Raises:
        GranAlignError: a line has another form.
    """
    statements = Statements(document.path, "Charades-STA's text")
    further = 0
    for number, line in enumerate(document.text.splitlines(), start=1):
        if not line.strip():
            continue
        location = f"{document.path}:{number}"
        match = _LINE.fullmatch(line.strip())
        if match is None or not match[5].strip():
            raise GranAlignError(
                f"{location}: got {short_repr(line)}, expected `VID start end##sentence`; correct "
                f"the line or remove it"
            )
        vid, start, end, more, sentence = match.groups()
        further += bool(more)
        statements.of_queries.append(
            Statement(
                location,
                qid=None,
                vid=vid,
                rewrites=Rewrites(sentence.strip()),
                windows=((float(start), float(end)),),
            )
        )
    if further:
        statements.notes.append(
            f"{document.path.name}: not used: a further value before ## in "
            f"{counted(further, 'line')}."
        )
    return statements


def read_lengths(document: Document) -> Statements:
    """Read the columns `id` and `length`, in seconds, of ``Charades_v1_{train,test}.csv``.

    Raises:
        GranAlignError: a row has no such columns, or its length is no number of seconds.
    """
    statements = Statements(document.path, "a table of lengths")
    rows = csv.DictReader(document.text.splitlines(), skipinitialspace=True)
    for row in rows:
        location = f"{document.path}:{rows.line_num}"
        vid, text = row.get("id"), row.get("length")
        try:
            length = float(text or "")
        except ValueError:
            raise GranAlignError(
                f"{location}: length of {short_repr(vid)}: got {short_repr(text)}, expected a "
                f"number of seconds; download the file again"
            ) from None
        statements.lengths[str(vid)] = check_duration(length, location)
    if not statements.lengths:
        raise GranAlignError(f"{document.path}: has no rows, expected one for each video")
    return statements
