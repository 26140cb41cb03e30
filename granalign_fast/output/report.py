"""Write the answer of a search as one HTML page that needs nothing else: no script, no other file.

The page is also well-formed XML, so that any parser reads it.
"""

from __future__ import annotations

import base64
import html
import io
import os
from collections.abc import Mapping, Sequence
from importlib.resources import files

from granalign_fast.errors import GranAlignError
from granalign_fast.files import escape_undecodable, replacing
from granalign_fast.index import VideoIndex
from granalign_fast.types import Image, Moment, SearchResult, check_frames

from .frames import fitted
from .tables import absence, clocks, length, peak_text, shown_at_all, time_ticks
from .visible import visible

_THUMBNAIL = (480, 360)
"""The largest size of a thumbnail in pixels: twice that on the page, for dense screens."""

_ROW, _LABEL = 22, 6
"""The height of a row of moments in pixels, and the width of a label in percent of the page."""

_MOST_STEPS = 2000
"""Steps of the curve: more would not be seen, and make the page of a long video slow."""


def write_report(
    index: VideoIndex,
    result: SearchResult,
    frames: Sequence[Image],
    path: str | os.PathLike[str],
    *,
    warnings: Sequence[str] = (),
    facts: Mapping[str, str] | None = None,
) -> None:
    """Write the page completely or not at all.

    Args:
        index: the video that was searched.
        result: the result of the search, with the moments to show.
        frames: of each moment, such as `moment_frames` returns them; none for a page without.
        path: the file.
        warnings: about the answer.
        facts: names and values for the table at the end, such as the models.

    Raises:
        GranAlignError: the number of frames is not that of the moments, or the file cannot be
            written.
    """
    if len(frames) not in (0, len(result.moments)):
        raise GranAlignError(
            f"frames: got {len(frames)}, expected {len(result.moments)}, one for each moment"
        )
    if frames:
        check_frames(frames)
    page = _page(index, result, frames, warnings, facts or {})
    with replacing(path) as sink:
        sink.write(page.encode())


def _page(
    index: VideoIndex,
    result: SearchResult,
    frames: Sequence[Image],
    warnings: Sequence[str],
    facts: Mapping[str, str],
) -> str:
    """Return the text of the page."""
    style = files(__package__).joinpath("report.css").read_text(encoding="utf-8")
    likely, absent = shown_at_all(result), absence(result)
    notes = [f'<p class="absent">{_text(absent[0].upper() + absent[1:])}</p>'] if absent else []
    notes += [f'<p class="warning">Warning: {_text(one)}</p>' for one in warnings]
    cards = [
        _card(index, result, number, moment, frames[number] if frames else None)
        for number, moment in enumerate(result.moments)
    ]
    list_of_moments = f"<ol>{''.join(cards)}</ol>" if cards else "<p>No moments.</p>"
    video = "" if index.frames is None or index.frames.path is None else str(index.frames.path)
    rows = {
        "Query": result.query,
        "Video": result.vid,
        "File": escape_undecodable(video),
        "Duration": length(index.seconds(index.video.clips)),
        "In this video": likely or "",
        **_rewrite_rows(result),
        **facts,
    }
    table = "".join(
        f"<tr><th>{_text(name)}</th><td>{_text(value)}</td></tr>"
        for name, value in rows.items()
        if value
    )
    policy = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"
    return f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8"/>
<meta name="viewport" content="width=device-width, initial-scale=1"/>
<meta http-equiv="Content-Security-Policy" content="{policy}"/>
<meta name="color-scheme" content="light dark"/>
<title>{_plain(result.query)}</title>
<style>
{style}</style>
</head>
<body>
<main>
<header>
<h1>{_text(result.query)}</h1>
<p>{_text(result.vid)}{f" · {_text(likely)}" if likely and not absent else ""}</p>
</header>
{"".join(notes)}
<section>
<h2>How well each clip fits</h2>
{_drawing(index, result)}
</section>
<section>
<h2>Moments</h2>
{list_of_moments}
</section>
<section>
<h2>This search</h2>
<table>{table}</table>
</section>
</main>
</body>
</html>
"""


def _rewrite_rows(result: SearchResult) -> dict[str, str]:
    """Return rows with the rewrites of the query."""
    if result.rewrites is None:
        return {}
    kinds = {"simplified": result.rewrites.simplified, "detailed": result.rewrites.detailed}
    return {f"Rewrites, {kind}": "; ".join(texts) for kind, texts in kinds.items()}


def _card(
    index: VideoIndex, result: SearchResult, number: int, moment: Moment, frame: Image | None
) -> str:
    """Return a moment: its thumbnail, rank, times, score and caption."""
    picture = ""
    if frame is not None:
        small = fitted(frame, *_THUMBNAIL)
        sink = io.BytesIO()
        small.save(sink, "JPEG", quality=85)
        data = base64.b64encode(sink.getvalue()).decode()
        picture = (
            f'<img src="data:image/jpeg;base64,{data}" width="{small.width}" '
            f'height="{small.height}" alt="a frame of moment {number + 1}"/>'
        )
    start, end = clocks(moment.start, moment.end)
    return (
        f'<li>{picture}<p class="times"><b>#{number + 1}</b> <span>{start} – '
        f'{end}</span> <span class="score">{moment.score:.3f}</span></p>'
        f"<p>{_text(peak_text(index, result, moment))}</p></li>"
    )


def _drawing(index: VideoIndex, result: SearchResult) -> str:
    """Return the curve over time as SVG, and below it the moments and the time axis."""
    clips = len(result.saliency)
    duration = index.seconds(clips)

    def percent(seconds: float) -> float:
        return 100 * min(seconds, duration) / duration

    # 1. The curve has a step for each clip; in a long video, the greatest of several clips.
    stride = -(-clips // _MOST_STEPS)
    steps = []
    for clip in range(0, clips, stride):
        edges = (index.seconds(clip), index.seconds(min(clip + stride, clips)))
        y = 100 * (1 - min(max(float(result.saliency[clip : clip + stride].max()), 0.0), 1.0))
        steps += [f"{percent(edge):.3f},{y:.1f}" for edge in edges]
    curve = " ".join(steps)
    # 2. The moments shade the curve, and are bars below it.
    shades, bars = [], []
    spans = [(percent(moment.start), percent(moment.end)) for moment in result.moments]
    rows = _assign_rows(spans)
    for number, ((left, right), row) in enumerate(zip(spans, rows, strict=True)):
        best = ' class="best"' if number == 0 else ""
        width = f"{right - left:.3f}"
        shades.append(f'<rect{best} x="{left:.3f}" y="0" width="{width}" height="100"/>')
        side = f' class="{place}"' if (place := _label_place(left, right)) else ""
        bars.append(
            f'<span class="bar{" best" if number == 0 else ""}" style="left:{left:.3f}%;'
            f'width:{width}%;top:{_ROW * row}px"><b{side}>#{number + 1}</b></span>'
        )
    ticks = "".join(
        f'<span style="left:{percent(seconds):.3f}%">{label}</span>'
        for seconds, label in time_ticks(duration, 8)
    )
    return f"""<div class="time">
<svg viewBox="0 0 100 100" preserveAspectRatio="none" role="img">
<title>How well each clip fits, over time</title>
<g class="shades">{"".join(shades)}</g>
<polygon points="0,100 {curve} 100,100"/>
<polyline points="{curve}"/>
</svg>
<div class="bars" style="height:{_ROW * (max(rows, default=-1) + 1)}px">{"".join(bars)}</div>
<div class="ticks">{ticks}</div>
</div>"""


def _label_place(left: float, right: float) -> str:
    """Return where a bar's label goes: inside, or before the bar; an empty text for behind it."""
    if right - left >= _LABEL:
        return "inside"
    return "before" if right > 100 - _LABEL else ""


def _assign_rows(spans: Sequence[tuple[float, float]]) -> list[int]:
    """Return the row of each bar, such that neither bars nor their labels overlap."""
    taken: list[list[tuple[float, float]]] = []
    rows = []
    for left, right in spans:
        place = _label_place(left, right)
        left -= _LABEL * (place == "before")
        right += _LABEL * (place == "")
        row = 0
        while row < len(taken) and any(left < end and start < right for start, end in taken[row]):
            row += 1
        if row == len(taken):
            taken.append([])
        taken[row].append((left, right))
        rows.append(row)
    return rows


def _text(value: str) -> str:
    """Return a text for HTML, isolated from the direction of the text around it."""
    return f"<bdi>{_plain(value)}</bdi>"


def _plain(value: str) -> str:
    """Return a text for HTML; what cannot be seen, or would turn other text, is shown as a code."""
    return html.escape(visible(value))
