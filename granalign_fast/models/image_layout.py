"""How a prompt holds an image or a clip: the tokens in the place of a placeholder, as data.

A chat template writes a placeholder for what a vision-language model is to see. A processor then
puts tokens in its place: one for each embedding of the vision tower, and texts around them.
Families differ in these tokens and in their positions. So an exporter writes an `ImageLayout` for
each number of frames that a clip may have, and the code that runs models knows no family.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from granalign_fast.errors import GranAlignError

Ids = npt.NDArray[np.int64]

CONTENTS = ("image", "images", "video")
"""What the chat template is given for a clip: one image, an image for each frame, or one video."""

_MOST_FRAMES = 64
_MOST_TILES = 16
_MOST_TOKENS = 1 << 16
_MOST_ID = 1 << 24


@dataclass(frozen=True)
class VisualRun:
    """Visual tokens without text between them: the rows of one grid, or of several in time.

    Attributes:
        token: the id that stands at each of them.
        grid: grids in time, rows and columns of a grid.
    """

    token: int
    grid: tuple[int, int, int]

    @property
    def tokens(self) -> int:
        """Number of tokens."""
        times, rows, columns = self.grid
        return times * rows * columns


@dataclass(frozen=True)
class TimeStamp:
    """The text ``<1.5 seconds>``: the mean time of two frames of a clip, from its first frame on.

    Attributes:
        first: number of one frame, from 0.
        last: number of the other.
    """

    first: int
    last: int

    def text(self, seconds: float) -> str:
        """Return the text; `seconds` is the time from a frame of a clip to the next."""
        return f"<{(self.first * seconds + self.last * seconds) / 2:.1f} seconds>"


Piece = tuple[int, ...] | VisualRun | TimeStamp
"""Token ids of a text, visual tokens, or a text that depends on the time between frames."""


@dataclass(frozen=True)
class Expanded:
    """A prompt with all of its tokens.

    Attributes:
        ids: of every token.
        positions: of every token, (axes, tokens).
        visual: indices of the visual tokens, (visual tokens,), in the order of their embeddings.
    """

    ids: list[int]
    positions: Ids
    visual: Ids

    @property
    def next_position(self) -> int:
        """The position of the token that follows."""
        return int(self.positions.max()) + 1

    def parts(self) -> list[slice]:
        """Return consecutive parts of the prompt that hold all visual tokens and all text.

        The visual tokens of each part stand next to each other, as the static graph takes them.
        """
        last = np.flatnonzero(np.diff(self.visual) > 1)  # the last token of each run but the final
        edges = [0, *(self.visual[last] + 1).tolist(), len(self.ids)]
        return [slice(start, end) for start, end in itertools.pairwise(edges)]


@dataclass(frozen=True, kw_only=True)
class ImageLayout:
    """The tokens of a clip in a prompt, and their positions.

    Attributes:
        content: one of `CONTENTS`.
        placeholder: the ids of the rendered prompt in whose place the pieces stand. With
            ``"images"`` it stands once for each frame, otherwise once.
        pieces: what stands there, in order.
        frames: number of frames of a clip.
        span: frames that one image of the vision graph takes; the last frame of a clip is repeated
            until they are a multiple of it.
        axes: 3 where a position is a time, a row and a column (M-RoPE: Qwen2-VL, arXiv 2409.12191,
            section 2.1), and 1 where it is one number.
        positions_per_second: by how much the time of a run's grids grows in a second.
        tiles: rows and columns of tiles into which a single frame is cut. The vision graph gets the
            tiles row by row, and then the whole frame. None where it gets the whole frame alone.
        seconds: from a frame of a clip to the next; not part of a record.
    """

    content: str
    placeholder: tuple[int, ...]
    pieces: tuple[Piece, ...]
    frames: int = 1
    span: int = 1
    axes: int = 3
    positions_per_second: float = 0.0
    tiles: tuple[int, int] | None = None
    seconds: float = 0.0

    @property
    def runs(self) -> tuple[VisualRun, ...]:
        """The visual tokens of one placeholder."""
        return tuple(piece for piece in self.pieces if isinstance(piece, VisualRun))

    @property
    def places(self) -> int:
        """How often the placeholder stands in a prompt."""
        return self.frames if self.content == "images" else 1

    @property
    def visual_tokens(self) -> int:
        """Number of visual tokens of a clip."""
        return self.places * sum(run.tokens for run in self.runs)

    @property
    def images(self) -> int:
        """How many images the vision graph gets for a clip."""
        if self.tiles is not None:
            rows, columns = self.tiles
            return rows * columns + 1
        return -(-self.frames // self.span)

    def frame_size(self, image_size: Sequence[int]) -> tuple[int, int]:
        """Return the height and width to which a frame is resized before it is cut into tiles.

        Args:
            image_size: height and width of an image of the vision graph.
        """
        height, width = image_size
        rows, columns = self.tiles or (1, 1)
        return rows * height, columns * width

    def timed(self, seconds: float, encode: Callable[[str], Sequence[int]]) -> ImageLayout:
        """Return the layout for clips whose frames are so many seconds apart.

        Args:
            seconds: from a frame to the next.
            encode: turns a text into token ids.
        """
        pieces = tuple(
            tuple(encode(piece.text(seconds))) if isinstance(piece, TimeStamp) else piece
            for piece in self.pieces
        )
        return replace(self, pieces=pieces, seconds=seconds)

    def expand(self, ids: Sequence[int]) -> Expanded:
        """Put the pieces in the place of the placeholder, and give every token its position.

        A text token has the same position on every axis. The tokens of a run count their times,
        rows and columns from the position at which the run begins. The text behind it continues
        after the greatest of these.

        Raises:
            GranAlignError: the placeholder stands there more or less often than expected, or the
                layout has time stamps, and no time is known.

        >>> image = ImageLayout(
        ...     content="image", placeholder=(9,), pieces=(VisualRun(9, (1, 2, 3)),)
        ... )
        >>> image.expand([5, 9, 6]).positions.tolist()
        [[0, 1, 1, 1, 1, 1, 1, 4], [0, 1, 1, 1, 2, 2, 2, 4], [0, 1, 2, 3, 1, 2, 3, 4]]
        """
        starts = _places(ids, self.placeholder)
        if len(starts) != self.places:
            shown = ", ".join(map(str, self.placeholder))
            raise GranAlignError(
                f"token_ids: got {len(starts)} times the image token {shown}, expected it "
                f"{'once' if self.places == 1 else f'{self.places} times'}, at the position of the "
                f"frame"
            )
        edges = [0, *starts]
        prompt = _Prompt(self.axes)
        for number, start in enumerate(starts):
            prompt.add_text(ids[edges[number] : start])
            for piece in self.pieces:
                if isinstance(piece, VisualRun):
                    prompt.add_run(piece, self._steps(piece.grid[0]))
                elif isinstance(piece, TimeStamp):
                    raise GranAlignError(
                        "layout: got a time stamp without a time, expected a layout that `timed` "
                        "returned"
                    )
                else:
                    prompt.add_text(piece)
            edges[number + 1] = start + len(self.placeholder)
        prompt.add_text(ids[edges[-1] :])
        return prompt.expanded()

    def _steps(self, times: int) -> Ids:
        """Return the times of a run's grids, (times,), in positions from its first on."""
        pace = self.positions_per_second * self.seconds * self.span
        return (np.arange(times, dtype=np.float32) * np.float32(pace)).astype(np.int64)

    def record(self) -> dict[str, Any]:
        """Return the layout as JSON of a manifest."""
        pieces: list[Any] = []
        for piece in self.pieces:
            if isinstance(piece, VisualRun):
                pieces.append({"token": piece.token, "grid": list(piece.grid)})
            elif isinstance(piece, TimeStamp):
                pieces.append({"frames": [piece.first, piece.last]})
            else:
                pieces.append(list(piece))
        return {
            "content": self.content,
            "placeholder": list(self.placeholder),
            "pieces": pieces,
            "frames": self.frames,
            "span": self.span,
            "axes": self.axes,
            "positions_per_second": self.positions_per_second,
        } | ({"tiles": list(self.tiles)} if self.tiles else {})

    @classmethod
    def read(cls, record: Mapping[str, Any]) -> ImageLayout:
        """Read what `record` returned.

        Raises:
            ValueError: it is no layout, or one that is larger than any model's.
        """
        fields = dict(record)
        pieces = tuple(_piece(one) for one in _list(fields.pop("pieces", None)))
        placeholder = _numbers(fields.pop("placeholder", None), 0, _MOST_ID)
        pace = fields.pop("positions_per_second", None)
        whole = {name: _number(fields.pop(name, None), 1, _MOST_FRAMES) for name in _WHOLE}
        content = fields.pop("content", None)
        tiles = _tiles(fields.pop("tiles", None))
        if fields or content not in CONTENTS or not placeholder or whole["axes"] not in (1, 3):
            raise ValueError("unknown fields or contents")
        if type(pace) not in (int, float) or not 0 <= pace <= _MOST_TOKENS:
            raise ValueError("positions_per_second")
        layout = cls(
            content=content,
            placeholder=placeholder,
            pieces=pieces,
            positions_per_second=float(pace),
            tiles=tiles,
            **whole,
        )
        if tiles and (content, layout.frames, layout.span) != ("image", 1, 1):
            raise ValueError("tiles of a clip of several frames")
        text = sum(len(piece) for piece in pieces if isinstance(piece, tuple))
        if not layout.runs or layout.visual_tokens + text > _MOST_TOKENS:
            raise ValueError("no visual tokens, or too many")
        if layout.visual_tokens % layout.images:
            raise ValueError("visual tokens that the images do not share evenly")
        return layout


_WHOLE = ("frames", "span", "axes")


def still_image(token: Any, grid: Sequence[int]) -> ImageLayout:
    """Return the layout of a frame whose tokens take the place of one of them (Qwen-VL).

    Args:
        token: the image token.
        grid: rows and columns of a frame's tokens.
    """
    run = VisualRun(token, (1, *grid))  # type: ignore[arg-type]
    return ImageLayout(content="image", placeholder=(token,), pieces=(run,))


class _Prompt:
    """The tokens of a prompt, as they are put together."""

    def __init__(self, axes: int) -> None:
        self._ids: list[int] = []
        self._positions = [np.zeros((axes, 0), np.int64)]
        self._visual: list[Ids] = []
        self._axes, self._next = axes, 0

    def add_text(self, ids: Sequence[int]) -> None:
        """Append text, whose positions count on."""
        self._ids += ids
        self._place(np.tile(np.arange(len(ids)), (self._axes, 1)))

    def add_run(self, run: VisualRun, steps: Ids) -> None:
        """Append visual tokens; `steps` are the times of the run's grids."""
        self._visual.append(len(self._ids) + np.arange(run.tokens))
        self._ids += [run.token] * run.tokens
        if self._axes == 1:
            self._place(np.arange(run.tokens)[None])
            return
        times, rows, columns = np.indices(run.grid).reshape(3, -1)
        self._place(np.stack([steps[times], rows, columns]))

    def _place(self, offsets: Ids) -> None:
        """Give tokens their positions, counted from the next one: (axes, tokens)."""
        self._positions.append(self._next + offsets)
        if offsets.size:
            self._next += int(offsets.max()) + 1

    def expanded(self) -> Expanded:
        return Expanded(
            self._ids, np.concatenate(self._positions, axis=1), np.concatenate(self._visual)
        )


def _places(ids: Sequence[int], placeholder: Sequence[int]) -> list[int]:
    """Return the indices at which a placeholder begins; they do not overlap."""
    ids, sought, starts, index = list(ids), list(placeholder), [], 0
    while index < len(ids):
        if ids[index : index + len(sought)] == sought:
            starts.append(index)
            index += len(sought)
        else:
            index += 1
    return starts


def _piece(value: Any) -> Piece:
    if isinstance(value, list):
        return _numbers(value, 0, _MOST_ID)
    if isinstance(value, dict) and set(value) == {"frames"}:
        first, last = _numbers(value["frames"], 0, _MOST_FRAMES)
        return TimeStamp(first, last)
    if isinstance(value, dict) and set(value) == {"token", "grid"}:
        times, rows, columns = _numbers(value["grid"], 1, _MOST_TOKENS)
        return VisualRun(_number(value["token"], 0, _MOST_ID), (times, rows, columns))
    raise ValueError("a piece of another kind")


def _tiles(value: Any) -> tuple[int, int] | None:
    if value is None:
        return None
    rows, columns = _numbers(value, 1, _MOST_TILES)
    return rows, columns


def _list(value: Any) -> list[Any]:
    if not isinstance(value, list) or len(value) > _MOST_TOKENS:
        raise ValueError("no list")
    return value


def _numbers(value: Any, least: int, most: int) -> tuple[int, ...]:
    return tuple(_number(one, least, most) for one in _list(value))


def _number(value: Any, least: int, most: int) -> int:
    if type(value) is not int or not least <= value <= most:
        raise ValueError(f"a number from {least} to {most}")
    return value
