"""Write moments as FCPXML, the project format of Final Cut Pro that DaVinci Resolve reads too."""

from __future__ import annotations

import re
from fractions import Fraction
from typing import TYPE_CHECKING
from urllib.parse import quote
from xml.etree import ElementTree

from .cut_lists import media_url

if TYPE_CHECKING:
    from .timeline import Timeline

_VERSION = "1.10"
"""Final Cut Pro reads this version from 10.6 on; DaVinci Resolve reads and writes it."""

_NOT_XML = re.compile("[\ufffe\uffff]")
"""Characters that XML 1.0 cannot hold; `Timeline` has removed the control characters."""


def fcpxml(timeline: Timeline) -> str:
    """Return a project in FCPXML with the moments one after another; see `formats.render`."""
    rate, first = timeline.rate, timeline.start_frame
    code_format = "DF" if timeline.drop_frame else "NDF"
    query, name = _text(timeline.heading), _text(timeline.name)
    spans = timeline.frames()
    # 1. The resources: a format with the frame rate, and the video with its start time code.
    root = ElementTree.Element("fcpxml", version=_VERSION)
    resources = ElementTree.SubElement(root, "resources")
    ElementTree.SubElement(
        resources, "format", {"id": "r1", "frameDuration": _seconds(1, rate), **_size(timeline)}
    )
    asset = ElementTree.SubElement(
        resources,
        "asset",
        {
            "id": "r2",
            "name": name,
            "start": _seconds(first, rate),
            "duration": _seconds(timeline.frame_count(), rate),
            "hasVideo": "1",
            "format": "r1",
            "videoSources": "1",
            **_audio(timeline),
        },
    )
    media = quote(name) if timeline.media is None else media_url(timeline.media)
    ElementTree.SubElement(asset, "media-rep", {"kind": "original-media", "src": _text(media)})
    # 2. The project: each moment is a clip of the asset. Times inside it are those of the asset.
    event = ElementTree.SubElement(
        ElementTree.SubElement(root, "library"), "event", name="granalign-fast"
    )
    sequence = ElementTree.SubElement(
        ElementTree.SubElement(event, "project", name=query),
        "sequence",
        {
            "format": "r1",
            "duration": _seconds(sum(end - start for start, end in spans), rate),
            "tcStart": "0s",
            "tcFormat": code_format,
        },
    )
    spine = ElementTree.SubElement(sequence, "spine")
    offset = 0
    for number, (moment, (start, end)) in enumerate(zip(timeline.moments, spans, strict=True)):
        clip = ElementTree.SubElement(
            spine,
            "asset-clip",
            {
                "ref": "r2",
                "offset": _seconds(offset, rate),
                "name": _text(timeline.label(number)),
                "start": _seconds(first + start, rate),
                "duration": _seconds(end - start, rate),
                "format": "r1",
                "tcFormat": code_format,
            },
        )
        # 3. A marker on the clip's first frame has score and query; its note is the caption.
        ElementTree.SubElement(
            clip,
            "marker",
            {
                "start": _seconds(first + start, rate),
                "duration": _seconds(1, rate),
                "value": _text(f"#{number + 1} {moment.score:.2f} {query}"),
                "note": _text(timeline.text(number)),
            },
        )
        offset += end - start
    ElementTree.indent(root)
    text = ElementTree.tostring(root, encoding="unicode")
    return f'<?xml version="1.0" encoding="UTF-8"?>\n<!DOCTYPE fcpxml>\n{text}\n'


def _seconds(frames: int, rate: Fraction) -> str:
    """Return a number of frames as rational seconds, as Final Cut Pro writes them: 1001/30000s."""
    return f"{frames * rate.denominator}/{rate.numerator}s" if frames else "0s"


def _size(timeline: Timeline) -> dict[str, str]:
    """Return width and height of the picture as attributes, if they are known."""
    size = None if timeline.source is None else timeline.source.size
    return {} if size is None else {"width": str(size[0]), "height": str(size[1])}


def _audio(timeline: Timeline) -> dict[str, str]:
    """Return attributes for the audio of the video, if it has some."""
    source = timeline.source
    if source is None or not source.audio_channels:
        return {}
    return {
        "hasAudio": "1",
        "audioSources": "1",
        "audioChannels": str(source.audio_channels),
        "audioRate": str(source.audio_rate),
    }


def _text(text: str) -> str:
    return _NOT_XML.sub(" ", text)
