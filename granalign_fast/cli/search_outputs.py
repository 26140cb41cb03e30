"""The outputs of `granalign search`, and the cases in which it refuses to write them."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from granalign_fast.errors import GranAlignError

from .clips import check_options, check_video, write_clip, write_clips
from .options import check_extra, check_is_no_input, check_target, print_json, short

if TYPE_CHECKING:
    from granalign_fast.index import VideoIndex
    from granalign_fast.index.records import VideoSource
    from granalign_fast.types import Image, SearchResult
    from granalign_fast.video.source import Source

_log = logging.getLogger(__name__)

CUT_LISTS = ("edl", "otio", "fcpxml")
EXPORTS = ("srt", "vtt", "ffmetadata", *CUT_LISTS, "csv")
"""Formats without a place for a word about the answer, which other programs take for granted."""
FORMATS = ("table", "json", *EXPORTS)

_PICTURES = (".png", ".svg", ".pdf")
_SHEETS = (".jpg", ".jpeg", ".png")
_PAGES = (".html", ".htm")


@dataclass(frozen=True, slots=True)
class Answer:
    """The answer of a search, as every output shows it."""

    index: VideoIndex
    result: SearchResult
    """Its moments are those to show."""
    overlapping: bool
    """Whether these are the list that benchmarks score, not distinct moments."""
    warnings: Sequence[str]
    note: str | None
    """About the number of moments, for a table."""
    facts: Mapping[str, str]
    """Names and values for a report, such as the models."""

    @property
    def video(self) -> Path | None:
        """The video file; None if only captions are known."""
        return None if self.index.frames is None else self.index.frames.path


@dataclass(frozen=True, slots=True, kw_only=True)
class Outputs:
    """The options of a search that say what it prints and writes."""

    form: str
    plot: Path | None
    contact_sheet: Path | None
    report: Path | None
    clip: Path | None
    clips: Path | None
    exact: bool
    anyway: bool

    def check(self, inputs: Sequence[Path | None] = ()) -> None:
        """Raise before any work if something cannot be written, or is one of the inputs."""
        if self.form not in FORMATS:
            raise GranAlignError(
                f"--format: got {self.form!r}, expected one of: {', '.join(FORMATS)}"
            )
        check_target("--plot", self.plot, _PICTURES, inputs)
        check_target("--contact-sheet", self.contact_sheet, _SHEETS, inputs)
        check_target("--report", self.report, _PAGES, inputs)
        check_options(self.clip, self.clips, inputs, exact=self.exact)
        if self.plot is not None:
            check_extra("matplotlib", "drawing", "plot")
        if self.form == "otio":
            check_extra("opentimelineio", "the format otio", "editors")

    @property
    def _files(self) -> dict[str, Path | None]:
        """The files to write, by their options."""
        return {
            "--plot": self.plot,
            "--contact-sheet": self.contact_sheet,
            "--report": self.report,
            "--clip": self.clip,
        }

    def check_library(self) -> None:
        """Raise before any work if something is wanted that is made of one video."""
        wishes = {
            **self._files,
            "--clips": self.clips,
            f"--format {self.form}": self.form if self.form in EXPORTS else None,
        }
        for option, wish in wishes.items():
            if wish is not None:
                raise GranAlignError(
                    f"{option}: got a library, expected one video; name it with --vid"
                )

    def check_video(self, video: Path | None, source: VideoSource | None = None) -> None:
        """Raise before the search if a video is needed and missing, another one, or cannot be cut.

        Args:
            video: the video file; None if only captions are known.
            source: of the index, if there is one.
        """
        for option, path in self._files.items():
            check_is_no_input(option, path, (video,))
        wishes = {
            "--clip": self.clip,
            "--clips": self.clips,
            f"--format {self.form}": self.form in CUT_LISTS or None,
            "--contact-sheet": self.contact_sheet,
            "--plot": None if video is None else self.plot,
        }
        what = next((option for option, wish in wishes.items() if wish is not None), None)
        if what is None:
            return
        if video is None:
            raise GranAlignError(
                f"{what}: got captions alone, expected an index of a video or a video"
            )
        if source is not None:
            source.check()
        elif not video.exists():
            raise GranAlignError(f"{video}: no such file; put the video back, or name another")
        check_video(video, self.clip, self.clips, exact=self.exact)

    def read_source(self, source: VideoSource | None) -> Source | None:
        """Return frame rate and time code for the formats that need them, if the file is there.

        Raises:
            GranAlignError: a cut list is wanted, and the file is gone or another one.
        """
        if source is None or self.form not in (*CUT_LISTS, "csv"):
            return None
        from granalign_fast.video.source import read_source

        try:
            return read_source(source.check())
        except GranAlignError:
            if self.form in CUT_LISTS:
                raise
            return None

    def write(self, answer: Answer, source: Source | None) -> None:
        """Print and write what the options ask for.

        Where the video probably does not show the query, no export and no cut is made; one line on
        stderr says so.

        Raises:
            typer.Exit: an export was refused, or a moment could not be cut; the exit code is 1.
        """
        from granalign_fast.output.tables import absence

        absent = absence(answer.result)
        refused = self._exports if absent and not self.anyway else []
        # A picture says itself what there is to say about its answer; so do a table and JSON.
        self._draw(answer)
        if self.form in EXPORTS:
            for warning in [*([absent] if absent and not refused else []), *answer.warnings]:
                _log.warning("%s", warning)
        if f"--format {self.form}" not in refused:
            self._print(answer, source)
        if refused:
            _log.error(
                "%s: nothing written, because the query is %s; --anyway writes it",
                ", ".join(refused),
                absent,
            )
            raise typer.Exit(1)
        self._cut(answer)

    @property
    def _exports(self) -> list[str]:
        """The options that hand moments to other programs or cut them out."""
        options = [f"--format {self.form}"] if self.form in EXPORTS else []
        options += ["--clip"] if self.clip is not None else []
        return options + (["--clips"] if self.clips is not None else [])

    def _draw(self, answer: Answer) -> None:
        """Draw the picture, the contact sheet and the report."""
        index, result, warnings = answer.index, answer.result, list(answer.warnings)
        if self.plot is not None:
            draw(index, result, self.plot)
        if self.contact_sheet is None and self.report is None:
            return
        from granalign_fast.output.frames import moment_frames

        frames: list[Image] = []
        if answer.video is not None:
            try:
                frames = moment_frames(index, result, result.moments)
            except GranAlignError as error:  # for a report only: others were checked before
                warnings.append(f"no pictures: {error}")
        if self.contact_sheet is not None:
            from granalign_fast.output.contact_sheet import draw_contact_sheet

            draw_contact_sheet(result, frames, self.contact_sheet, warnings=warnings)
        if self.report is not None:
            from granalign_fast.output.report import write_report

            facts = answer.facts
            write_report(index, result, frames, self.report, warnings=warnings, facts=facts)

    def _print(self, answer: Answer, source: Source | None) -> None:
        """Print the answer in the format of `--format`."""
        from granalign_fast.output import tables

        index, result = answer.index, answer.result
        if self.form == "table":
            tables.print_moments(index, result, answer.warnings, answer.note)
            for path in (self.plot, self.contact_sheet, self.report):
                if path is not None:
                    typer.echo(f"drawn in {short(path)}")
        elif self.form == "json":
            overlapping = answer.overlapping
            record = tables.search_record(index, result, answer.warnings, overlapping=overlapping)
            print_json(record)
        else:
            from granalign_fast.output.formats import render
            from granalign_fast.output.timeline import Timeline

            media = answer.video  # of a cut list, the file was compared with the index
            text = render(self.form, Timeline.of_search(index, result, media=media, source=source))
            # As bytes: a file for another program is UTF-8, whatever the terminal takes.
            typer.echo(text.encode(), nl=False)

    def _cut(self, answer: Answer) -> None:
        """Cut the best moment, and all moments, out of the video."""
        video, moments = answer.video, list(answer.result.moments)
        if video is None or (self.clip is None and self.clips is None):
            return
        if not moments:
            option = "--clip" if self.clips is None else "--clips"
            raise GranAlignError(f"{option}: got no moments, expected one to cut")
        if self.clip is not None:
            write_clip(video, moments[0], self.clip, exact=self.exact)
        if self.clips is not None:
            on_stdout = self.form == "table"
            write_clips(video, moments, self.clips, exact=self.exact, on_stdout=on_stdout)


def draw(
    index: VideoIndex,
    result: SearchResult,
    path: Path,
    *,
    truth: Sequence[tuple[float, float]] = (),
) -> None:
    """Draw the result: with frames of the video, or without them if only captions are known."""
    if index.frames is None:
        from granalign_fast.output.plot import draw_search

        draw_search(index, result, path)
        return
    from granalign_fast.output.filmstrip import MAX_MOMENTS, draw_filmstrip, strip_clips
    from granalign_fast.output.frames import clip_frames
    from granalign_fast.output.tables import peak_clip

    # The frames of the strip and those of the moments are read together.
    strip = strip_clips(index.video.clips)
    peaks = [peak_clip(index, result, moment) for moment in result.moments[:MAX_MOMENTS]]
    images = clip_frames(index, [*strip, *peaks])
    times = [index.frames.pictured_at(clip) for clip in strip]
    frames = list(zip(times, images[: len(strip)], strict=True))
    draw_filmstrip(index, result, frames, path, thumbnails=images[len(strip) :], truth=truth)
