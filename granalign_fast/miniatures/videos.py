"""Test videos: sequences of scenes with distractors, as H.264, and their ground truth."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from granalign_fast.errors import GranAlignError, MissingExtraError

from . import meaning, provenance, queries, scenes
from .meaning import Spec
from .queries import Context, Query
from .scenes import Pair, Scene, Split, pick

CLIP_SECONDS = 2.0
SHORTEST, LONGEST = 6.0, 12.0
"""Least and greatest duration of a scene, in seconds."""

_FAMILIES = 3
_SIGNS = 0.4
_ABSENT = 6  # queries of a video that it does not show
# Whether each of a family's queries (rows) is true of each of its scenes.
_HOLDS = ((1, 1, 0), (1, 0, 0), (0, 1, 0), (0, 0, 1))


@dataclass(frozen=True, slots=True)
class Shot:
    """A scene, and when the video shows it, in seconds."""

    start: float
    end: float
    scene: Scene


@dataclass(frozen=True, slots=True)
class AnnotatedQuery:
    """A query and the windows in which the video shows it, in seconds; none if it never does."""

    query: Query
    windows: tuple[tuple[float, float], ...]


@dataclass(frozen=True, slots=True)
class Script:
    """The shots of a video and its queries, before rendering."""

    shots: tuple[Shot, ...]
    queries: tuple[AnnotatedQuery, ...]

    @property
    def duration(self) -> float:
        """Duration in seconds."""
        return self.shots[-1].end

    def shown_scene(self, seconds: float) -> tuple[Scene, float]:
        """Return the scene shown at a time, and the seconds since its start."""
        shot = next(shot for shot in reversed(self.shots) if shot.start <= seconds)
        return shot.scene, seconds - shot.start


def write_script(
    seed: int, *, split: Split = "test", seconds: tuple[float, float] = (60.0, 100.0)
) -> Script:
    """Draw the scenes and queries of a video.

    A video consists of three families of three scenes: a first one; its twin, which has the same
    query-agnostic caption, so only details differ; and a neighbour, which shares a shape, a colour
    or the background with the first. A family has four queries: for what the first scene and its
    twin have in common, for each of them in detail, and for the neighbour. Six further queries of
    the video are similar to one of these, and true of no scene.

    Args:
        seed: seed of everything random.
        split: split of the pairs; families of a held-out split have one held-out pair each.
        seconds: bounds of the duration.

    Raises:
        GranAlignError: nine scenes of 6 to 12 s cannot last that long.
    """
    shots_needed = 3 * _FAMILIES
    if not shots_needed * SHORTEST <= seconds[0] <= seconds[1] <= shots_needed * LONGEST:
        raise GranAlignError(
            f"seconds: got {seconds}, expected bounds from {shots_needed * SHORTEST:.0f} to "
            f"{shots_needed * LONGEST:.0f}, low before high"
        )
    rng = np.random.default_rng((seed, len(split)))
    while True:
        families = [_family(rng, split) for _ in range(_FAMILIES)]
        everything = [scene for family, _ in families for scene in family]
        specs = [spec for _, specs_of_family in families for spec in specs_of_family]
        absent = _absent(rng, everything, specs, scenes.pairs_of(split))
        truths = [[spec.holds(scene) for scene in everything] for spec in specs]
        if len(absent) < _ABSENT or not np.array_equal(truths, np.kron(np.eye(_FAMILIES), _HOLDS)):
            continue  # a query of one family is true in another
        order = _order(rng, everything)
        if order is None:
            continue
        shots = _timed(rng, order, everything, seconds)
        phrases = [queries.phrase(rng, spec) for spec in (*specs, *absent)]
        for i in range(3, len(specs), 4):  # the neighbours' queries
            phrases[i] = queries.phrase(rng, specs[i], _context(rng, everything, order, i))
        if len({query.text for query in phrases}) == len(phrases):
            return Script(shots, tuple(AnnotatedQuery(q, _windows(shots, q.spec)) for q in phrases))


def _family(rng: np.random.Generator, split: Split) -> tuple[list[Scene], list[Spec]]:
    """Draw a scene, its twin and its neighbour, and the specs of their queries."""
    while True:
        first = scenes.sample_scene(rng, split, signs=_SIGNS)
        twin, spec = _twin(rng, first), meaning.full_spec(first)
        if twin is None:
            continue
        neighbour = scenes.sample_scene(rng, split, signs=_SIGNS)
        while _shared(first, neighbour) != 1:
            neighbour = scenes.sample_scene(rng, split, signs=_SIGNS)
        other, last = meaning.full_spec(twin), meaning.full_spec(neighbour).core()
        if not spec.holds(twin) and not other.holds(first):
            return [first, twin, neighbour], [spec.core(), spec, other, last]


def _context(
    rng: np.random.Generator, shown: Sequence[Scene], order: Sequence[int], query: int
) -> Context:
    """Return the context of a neighbour's query: the moment just before or after it."""
    index = list(order).index(3 * (query // 4) + 2)
    where = [i for i in (index - 1, index + 1) if 0 <= i < len(order)]
    other = where[int(rng.integers(len(where)))]
    core = meaning.full_spec(shown[order[other]]).core()
    when = "after" if other < index else "before"
    return Context(when, Spec(core.mentions[:1], None, core.background))


def _twin(rng: np.random.Generator, scene: Scene) -> Scene | None:
    """Return the scene with every detail changed; None if it does not fit into a frame."""
    sizes = {"tiny": "giant", "giant": "tiny"}
    kinds = [
        (t.shape, t.colour, sizes[t.size], t.count if t.count == 1 else 5 - t.count)
        for t in scene.things
    ]
    places = tuple(
        t.place and pick(rng, tuple(place for place in scenes.PLACES if place != t.place))
        for t in scene.things
    )
    texture = pick(rng, tuple(t for t in scenes.TEXTURES if t != scene.texture))
    word = scene.word and pick(rng, tuple(word for word in scenes.WORDS if word != scene.word))
    try:
        return scenes.compose(rng, kinds, scene.background, texture, word, places)
    except GranAlignError:
        return None


def _shared(one: Scene, other: Scene) -> int:
    """Count the shapes, colours and backgrounds that two scenes have in common."""
    shapes, colours = (
        {getattr(thing, name) for thing in one.things}
        & {getattr(thing, name) for thing in other.things}
        for name in ("shape", "colour")
    )
    return len(shapes) + len(colours) + (one.background == other.background)


def _absent(
    rng: np.random.Generator,
    shown: Sequence[Scene],
    specs: Sequence[Spec],
    pairs: tuple[Pair, ...],
) -> list[Spec]:
    """Draw specs that are similar to one of `specs` and hold in no scene."""
    absent: list[Spec] = []
    for _ in range(200):
        spec = specs[int(rng.integers(len(specs)))].core()
        wrong = meaning.falsified(rng, spec, shown[0], pairs, ("shape", "colour"))
        if wrong and wrong not in absent and not any(wrong.holds(scene) for scene in shown):
            absent.append(wrong)
        if len(absent) == _ABSENT:
            break
    return absent


def _order(rng: np.random.Generator, everything: Sequence[Scene]) -> list[int] | None:
    """Draw an order in which consecutive scenes have nothing in common; None if there is none.

    The first and the last scene are neighbours: smoothing over time lowers a scene at the edge
    less, which would favour one twin. At least two scenes separate twins, so that they are not
    taken for one moment with a gap.
    """
    count = len(everything)
    apart = [[not _shared(one, other) for other in everything] for one in everything]
    neighbours = set(range(2, count, 3))

    def extended(order: list[int]) -> list[int] | None:
        if len(order) == count:
            return order
        unused = [i for i in range(count) if i not in order]
        for i in rng.permutation(unused).tolist():
            twin = i + (1, -1, 0)[i % 3]
            fits = not order or apart[order[-1]][i]
            if len(order) in (0, count - 1):
                fits = fits and i in neighbours
            if fits and (i in neighbours or twin not in order[-2:]):
                whole_order = extended([*order, i])
                if whole_order:
                    return whole_order
        return None

    return extended([])


def _timed(
    rng: np.random.Generator,
    order: Sequence[int],
    shown: Sequence[Scene],
    seconds: tuple[float, float],
) -> tuple[Shot, ...]:
    """Draw durations; twins have equal ones.

    The method prefers a longer scene to a shorter one that matches slightly better. Unequal twins
    would test that, and not whether captions distinguish them.
    """
    while True:
        lengths = 2.0 * rng.integers(int(SHORTEST / 2), int(LONGEST / 2) + 1, len(shown))
        lengths[1::3] = lengths[::3]
        shift = rng.choice((-0.5, 0.0, 0.5))  # cuts need not fall on clips' ends
        lengths[order[0]] += shift
        lengths[order[-1]] -= shift
        if seconds[0] <= lengths.sum() <= seconds[1]:
            break
    ends = np.cumsum(lengths[order]).tolist()
    starts = [0.0, *ends[:-1]]
    return tuple(
        Shot(start, end, shown[i]) for start, end, i in zip(starts, ends, order, strict=True)
    )


def _windows(shots: Sequence[Shot], spec: Spec) -> tuple[tuple[float, float], ...]:
    return tuple((shot.start, shot.end) for shot in shots if spec.holds(shot.scene))


def frames_of(script: Script, seed: int, times: Sequence[float]) -> Iterator[npt.NDArray[np.uint8]]:
    """Yield the frames at some times, uint8 (112, 112, 3), without encoding."""
    for seconds in times:
        scene, since = script.shown_scene(seconds)
        noise = np.random.default_rng((seed, round(seconds * 1000)))
        yield scenes.render(scene, since, noise)


def render_video(
    path: str | os.PathLike[str],
    seed: int,
    *,
    split: Split = "test",
    seconds: tuple[float, float] = (60.0, 100.0),
    frame_rate: int = 10,
    side: int = 224,
) -> Script:
    """Draw a script, write its video as H.264 in mp4, and return the script.

    A tag in the file says that it is rendered: elsewhere the miniatures find nothing.

    Args:
        path: the file; it appears when it is complete.
        seed: seed of everything random.
        split: as for `write_script`.
        seconds: as for `write_script`.
        frame_rate: frames a second.
        side: height and width in pixels, even; frames of 112 pixels are scaled to it.

    Raises:
        GranAlignError: the file cannot be written, or as `write_script`.
        MissingExtraError: PyAV is not installed.
    """
    script = write_script(seed, split=split, seconds=seconds)
    times = np.arange(round(script.duration * frame_rate)) / frame_rate
    encode(path, frames_of(script, seed, times.tolist()), frame_rate, side)
    return script


def encode(
    path: str | os.PathLike[str],
    frames: Iterable[npt.NDArray[np.uint8]],
    frame_rate: int,
    side: int,
) -> None:
    """Write frames as H.264 in mp4, with a tag that says that they are rendered.

    Args:
        path: the file; it appears when it is complete.
        frames: uint8 RGB (height, width, 3), of a square each.
        frame_rate: frames a second.
        side: height and width in pixels, even; frames are scaled to it.

    Raises:
        GranAlignError: the file cannot be written, or the side or rate is none.
        MissingExtraError: PyAV is not installed.
    """
    try:
        import av
        from av.error import FFmpegError
    except ImportError:
        raise MissingExtraError("writing a video", "cpu") from None
    from PIL import Image

    from granalign_fast.files import replacing

    if side < 2 or side % 2 or frame_rate < 1:
        raise GranAlignError(
            f"side, frame_rate: got {side}, {frame_rate}; expected an even number of pixels and at "
            f"least one frame a second"
        )
    try:
        with replacing(path) as sink, av.open(sink, "w", format="mp4") as container:
            container.metadata[provenance.TAG] = provenance.MARK
            stream: Any = container.add_stream("libx264", rate=Fraction(frame_rate))
            stream.width = stream.height = side
            stream.pix_fmt = "yuv420p"
            stream.options = {"crf": "20", "preset": "veryfast", "threads": "1"}
            for frame in frames:
                image = Image.fromarray(frame).resize((side, side), Image.Resampling.BICUBIC)
                picture = av.VideoFrame.from_ndarray(np.asarray(image), format="rgb24")
                container.mux(stream.encode(picture))
            container.mux(stream.encode(None))
    except (OSError, FFmpegError) as error:
        raise GranAlignError(f"{Path(path)}: cannot be written ({error.strerror})") from None


def ground_truth(script: Script, vid: str, first_qid: int = 0) -> list[dict[str, Any]]:
    """Return annotation records in QVHighlights' format, of the queries that the video shows.

    `relevant_clip_ids` are the clips of two seconds of which at least half lies in a window. Each
    has three equal `saliency_scores`: the number of whole quarters of it that do.
    """
    shown = (annotated for annotated in script.queries if annotated.windows)
    return [
        annotation(first_qid + number, vid, a.query.text, a.windows, script.duration)
        for number, a in enumerate(shown)
    ]


def annotation(
    qid: int,
    vid: str,
    query: str,
    windows: Sequence[tuple[float, float]],
    duration: float,
) -> dict[str, Any]:
    """Return the record of one query, as `ground_truth` says."""
    clips = np.arange(int(np.ceil(duration / CLIP_SECONDS)))
    inside = np.zeros(len(clips))
    for start, end in windows:
        begins, ends = clips * CLIP_SECONDS, (clips + 1) * CLIP_SECONDS
        inside += np.clip(np.minimum(ends, end) - np.maximum(begins, start), 0, None)
    relevant = np.flatnonzero(inside >= CLIP_SECONDS / 2)
    ratings = np.floor(inside[relevant] / CLIP_SECONDS * 4 + 1e-9).astype(int)
    return {
        "qid": qid,
        "query": query,
        "vid": vid,
        "duration": duration,
        "relevant_windows": [list(window) for window in windows],
        "relevant_clip_ids": relevant.tolist(),
        "saliency_scores": [[rating] * 3 for rating in ratings.tolist()],
    }
