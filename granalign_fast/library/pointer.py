"""The pointer of a catalogue: the file that names the segments that count."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from granalign_fast.parsing.json_types import matches
from granalign_fast.parsing.json_values import parse_json

from .segment import SegmentRecord

_log = logging.getLogger(__name__)

FOLDER, POINTER = ".catalogue", "catalogue.json"
_FORMAT = 2
"""Format version of the catalogue; one of another version is built anew."""


@dataclass(frozen=True, slots=True)
class Pointer:
    """The content of a pointer.

    Attributes:
        segments: those that count.
        damaged: stamp and error of each index that cannot be read, by video id.
        states: of the files of these indexes, see `Indexes.state`.
        dead: numbers of the videos in a segment that do not count, by its name. Only readers of an
            object store need them: others compare the stamps of the indexes.
        edition: another text for each pointer that is published, so that no two are equal.
    """

    segments: tuple[SegmentRecord, ...] = ()
    damaged: Mapping[str, tuple[str, str]] = field(default_factory=dict)
    states: Mapping[str, str] = field(default_factory=dict)
    dead: Mapping[str, list[int]] = field(default_factory=dict)
    edition: str = ""

    def to_json(self) -> bytes:
        """Return the pointer as `parse_pointer` reads it."""
        record: dict[str, object] = {
            "format": _FORMAT,
            "segments": [segment.to_record() for segment in self.segments],
            "damaged": dict(self.damaged),
            "states": dict(self.states),
            "dead": dict(self.dead),
        }
        if self.edition:
            record["edition"] = self.edition
        return (json.dumps(record, indent=1) + "\n").encode()


def parse_pointer(path: object, content: bytes) -> Pointer | None:
    """Return a pointer; None if it is empty, torn or of another format version.

    Args:
        path: of the pointer, for the log.
        content: of the pointer.
    """
    if not content:
        return None
    try:
        record = parse_json(content)
        if record["format"] != _FORMAT:
            raise ValueError(f"got format {record['format']!r}, expected {_FORMAT}")
        states, dead = record.get("states", {}), record.get("dead", {})
        if not matches(dict[str, str], states) or not matches(dict[str, list[int]], dead):
            raise ValueError("got other states or dead videos than expected")
        return Pointer(
            _segments(record["segments"]),
            {vid: (str(stamp), str(why)) for vid, (stamp, why) in record["damaged"].items()},
            states,
            dead,
        )
    except (ValueError, KeyError, TypeError, AttributeError, OverflowError) as error:
        _log.info("%s: cannot be used, the catalogue is built anew (%s)", path, error)
        return None


def _segments(records: Iterable[dict[str, object]]) -> tuple[SegmentRecord, ...]:
    return tuple(map(SegmentRecord.from_record, records))
