"""Cut moments of a search out of the video: the options `--clip`, `--clips` and `--exact`."""

from __future__ import annotations

import logging
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from granalign_fast.errors import GranAlignError

from .options import check_is_no_input, check_target, short
from .verbosity import is_quiet

if TYPE_CHECKING:
    from granalign_fast.types import Moment
    from granalign_fast.video.cutting import Cut

_log = logging.getLogger(__name__)

SUFFIXES = (".mp4", ".mov", ".mkv", ".webm")
"""Containers that a cut may have."""

_EARLY = 0.1
"""Seconds by which a copy may begin before the moment without a word: nobody sees so little."""


def check_options(
    clip: Path | None, clips: Path | None, inputs: Sequence[Path | None] = (), *, exact: bool
) -> None:
    """Raise before any work if the options do not fit together or nothing can be written there."""
    check_target("--clip", clip, SUFFIXES, inputs)
    if exact and clip is None and clips is None:
        raise GranAlignError("--exact: got no file to cut, expected --clip or --clips with it")
    if clips is None:
        return
    if clips.exists() and not clips.is_dir():
        raise GranAlignError(f"--clips {clips}: got a file, expected a folder")
    if not clips.resolve().parent.is_dir():
        raise GranAlignError(f"--clips {clips}: its parent folder does not exist; create it first")


def check_video(video: Path, clip: Path | None, clips: Path | None, *, exact: bool) -> None:
    """Raise before the search if the video cannot be cut as the options demand.

    Raises:
        GranAlignError: the container does not take the video's codecs, or the video cannot be read
            or copied.
    """
    if clip is None and clips is None:
        return
    from granalign_fast.video.cut_containers import own_suffix
    from granalign_fast.video.cutting import check_cut

    if clip is not None:
        check_cut(video, clip, exact=exact)
    if clips is not None:
        check_cut(video, clips / f"moment{own_suffix(video)}", exact=exact)


def write_clip(video: Path, moment: Moment, path: Path, *, exact: bool) -> None:
    """Cut a moment to a file, and write on stderr what the file holds."""
    from granalign_fast.video.cutting import cut

    _report(cut(video, moment.start, moment.end, path, exact=exact), moment)


def write_clips(
    video: Path, moments: list[Moment], folder: Path, *, exact: bool, on_stdout: bool
) -> None:
    """Cut moments to files of a folder, named by rank, start and end in seconds.

    The name of each file goes to stdout or, with `on_stdout` False, to stderr. A moment that cannot
    be cut is named on stderr; the others are written.

    Raises:
        typer.Exit: some moment could not be cut; the exit code is 1.
    """
    from granalign_fast.video.cut_containers import own_suffix
    from granalign_fast.video.cutting import cut

    suffix = own_suffix(video)
    try:
        folder.mkdir(exist_ok=True)
    except OSError as error:
        raise GranAlignError(
            f"--clips {folder}: cannot be created ({error.strerror or error})"
        ) from None
    failed, digits = 0, max(2, len(str(len(moments))))
    for rank, moment in enumerate(moments, 1):
        # More decimals where a moment is so short that it would begin and end at the same time.
        places = 1 if moment.end - moment.start >= 0.1 else 3
        times = "-".join(f"{second:.{places}f}" for second in (moment.start, moment.end))
        path = folder / f"{rank:0{digits}}-{times}{suffix}"
        try:
            check_is_no_input("--clips", path, (video,))
            written = cut(video, moment.start, moment.end, path, exact=exact)
        except GranAlignError as error:
            failed += 1
            _log.error("%s", error)
            continue
        if on_stdout:
            typer.echo(short(path))
        _report(written, moment)
    if failed:
        raise typer.Exit(1)


def _report(written: Cut, moment: Moment) -> None:
    """Write on stderr which stretch a file holds, why it begins early, and what it lacks."""
    start, name = written.start, short(written.path)
    line = f"{name}: {start:.2f} to {written.end:.2f} s of the video"
    if written.copied and start < moment.start - _EARLY:
        line += (
            f"; begins at {start:.1f} s, at the key frame before {moment.start:.1f} s; "
            f"--exact begins there"
        )
    if not is_quiet():
        sys.stderr.write(line + "\n")
    if written.left_out:
        _log.warning("%s: left out %s", name, "; ".join(written.left_out))
