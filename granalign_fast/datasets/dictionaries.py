"""Statements of a JSON dictionary of videos: ActivityNet-Captions, and TFVTG's files."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from granalign_fast.errors import GranAlignError, counted, listed, short_repr
from granalign_fast.types import Rewrites

from .documents import FORMS, Document
from .statements import KeyCounts, Statement, Statements, check_duration, check_windows

_KNOWN = frozenset(
    {
        "sentences",
        "timestamps",
        "duration",
        "video_duration",
        "rewrites",
        "response",
        # Of TFVTG's copies and of Charades-CD; these say nothing that a search could use.
        "phrases",
        "novels",
        "news",
        "framestamps",
        "encoded_sentences",
        "decode_fps",
        "video_fps",
    }
)


def read_videos(document: Document) -> Statements:
    """Read a dictionary from each vid to an object of lists, one item a sentence.

    `sentences` holds texts, `timestamps` one ``[start, end]`` in seconds each (optional), and
    `duration` or `video_duration` the length of the video. ActivityNet-Captions (Krishna et al.,
    2017, arXiv 1705.00754) has these. Rewrites are in `rewrites`, a list of texts for each
    sentence, or in TFVTG's `response` (github.com/minghangz/TFVTG, dataset): of each response,
    the `descriptions` of the first item of `query_json` are rewordings of the sentence; those of
    further items are of parts of it, and are not used.

    Raises:
        GranAlignError: the dictionary is of another kind, or lists differ in length.
    """
    videos = document.value
    statements = Statements(document.path, "a dictionary of videos")
    unused = KeyCounts(_KNOWN, "video")
    if not videos:
        raise GranAlignError(f"{document.path}: holds no videos, expected {FORMS}")
    if not any(isinstance(video, Mapping) and "sentences" in video for video in videos.values()):
        raise GranAlignError(
            f"{document.path}: got a JSON dictionary with the keys "
            f"{listed([short_repr(key) for key in videos])}, expected videos with `sentences` "
            f"under their ids, or another form: {FORMS}"
        )
    found = _Responses()
    for vid, video in videos.items():
        location = f"{document.path}: video {vid!r}"
        if not isinstance(video, Mapping) or "sentences" not in video:
            raise GranAlignError(
                f"{location}: got {short_repr(video)}, expected an object with `sentences`"
            )
        unused.add(dict(video))
        _add(statements, vid, video, location, found)
    unused.report(statements)
    name = document.path.name
    if found.with_parts:
        queries = counted(found.with_parts, "query", "queries")
        statements.notes.append(
            f"{name}: not used: sub-queries, which describe parts of a query, of {queries}."
        )
    if found.unknown:
        queries = counted(len(found.unknown), "query", "queries")
        statements.warnings.append(
            f"{name}: responses without a list of `descriptions`, which give no rewrites: "
            f"{queries}: {listed(found.unknown)}"
        )
    return statements


@dataclass(slots=True)
class _Responses:
    """Counts TFVTG's responses."""

    with_parts: int = 0
    """Responses with sub-queries."""
    unknown: list[str] = field(default_factory=list)
    """Video and sentence of the responses of another form."""

    def rewrites(self, response: Any, sentence: str) -> list[str]:
        """Return the rewordings of a response; none if it has another form.

        A response is empty where the language model gave none. Language models wrote the others
        too, so another form costs one sentence its rewrites, not the whole file.

        Args:
            response: to the sentence.
            sentence: its video and number.
        """
        if not response:
            return []
        try:
            items = response.get("query_json") or []
            texts = items[0]["descriptions"] if items else []
            texts = [texts] if isinstance(texts, str) else texts
            rewrites = [text for text in texts if text.strip()]
        except (TypeError, KeyError, AttributeError):
            self.unknown.append(sentence)
            return []
        self.with_parts += len(items) > 1
        return rewrites


def _add(
    statements: Statements,
    vid: str,
    video: Mapping[str, Any],
    location: str,
    found: _Responses,
) -> None:
    """Add the queries of a video."""
    sentences = _list_of(video, "sentences", None, location)
    count = len(sentences)
    windows = _list_of(video, "timestamps", count, location)
    lists = _list_of(video, "rewrites", count, location)
    responses = _list_of(video, "response", count, location)
    duration = video.get("duration", video.get("video_duration"))
    if duration is not None:
        duration = check_duration(duration, location)
    for number, sentence in enumerate(sentences):
        where = f"{location}, sentence {number}"
        record = {"query": sentence.strip() if isinstance(sentence, str) else sentence}
        if lists:
            record["rewrites"] = lists[number]
            statements.rewrites_key = "`rewrites`"
        elif responses:
            record["rewrites"] = found.rewrites(responses[number], f"{vid} {number}")
            statements.rewrites_key = "`query_json`"
        statement = Statement(where, vid=vid, duration=duration)
        statement.rewrites = Rewrites.from_record(record, where)
        if windows:
            statement.windows = check_windows([windows[number]], where, "timestamps")
        statements.of_queries.append(statement)


def _list_of(video: Mapping[str, Any], key: str, count: int | None, location: str) -> list[Any]:
    """Return the list of a key, empty if there is none; it must have `count` items."""
    value = video.get(key)
    if value is None:
        return []
    if not isinstance(value, list) or (count is not None and len(value) != count):
        expected = "a list" if count is None else f"a list of {count}, one for each sentence"
        got = f"{len(value)} items" if isinstance(value, list) else short_repr(value)
        raise GranAlignError(f"{location}: {key}: got {got}, expected {expected}")
    return value
