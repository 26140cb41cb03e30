"""Read captioned videos: JSON Lines of ours, or a folder of one file a video."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from granalign_fast.errors import (
    GranAlignError,
    check_unicode,
    counted,
    listed,
    missing_key,
    short_repr,
)
from granalign_fast.index import CaptionedVideo
from granalign_fast.index.records import CLIP_SECONDS
from granalign_fast.jsonl import Record, iter_jsonl

from .records import PathLike
from .statements import is_number

_log = logging.getLogger(__name__)

_SUFFIXES = (".jsonl", ".jsonl.gz")


def read_captions(path: PathLike) -> dict[str, CaptionedVideo]:
    """Read captioned videos by `vid`.

    A caption too many, whose clip would begin at or after its video's end, is left out; a warning
    in the log counts them.

    Args:
        path: JSON Lines of `vid` and `captions`; or a folder of one file ``VID.jsonl`` for each
            video, as VTG-GPT has, in which a line has the `description` of a clip and, as `moment`,
            its number.

    Raises:
        GranAlignError: the file cannot be read, a line is no such record, or a vid repeats.
    """
    if Path(path).is_dir():
        return _read_folder(Path(path))
    videos: dict[str, CaptionedVideo] = {}
    shortened: list[str] = []
    for location, record in iter_jsonl(path, required=("vid", "captions")):
        if _one_too_many(record):
            record["captions"].pop()
            shortened.append(str(record["vid"]))
        video = CaptionedVideo.from_record(record, location)
        for clip, caption in enumerate(video.captions):
            check_unicode(f"{location}: caption {clip} of {video.vid!r}", caption)
        if video.vid in videos:
            raise GranAlignError(
                f"{location}: vid {video.vid!r} repeats; expected one line a video"
            )
        videos[video.vid] = video
    if shortened:
        _log.warning("%s: %s", path, too_many(shortened))
    return videos


def fit_captions(
    videos: Mapping[str, CaptionedVideo], durations: Mapping[str, float]
) -> tuple[dict[str, CaptionedVideo], tuple[str, ...]]:
    """Give captioned videos their durations, and leave out one caption too many at their ends.

    Args:
        videos: as from `read_captions`.
        durations: in seconds, by vid; a video without one stays as it is.

    Returns:
        The videos, and the vids of those that have lost a caption; `too_many` words them.

    Raises:
        GranAlignError: more than one caption of a video is after its end.
    """
    fitted: dict[str, CaptionedVideo] = {}
    shortened: list[str] = []
    for vid, video in videos.items():
        captions, duration = video.captions, durations.get(vid, video.duration)
        if duration is not None and _overlong(len(captions), video.clip_seconds, duration):
            captions = captions[:-1]
            shortened.append(vid)
        fitted[vid] = replace(video, captions=captions, duration=duration)
    return fitted, tuple(shortened)


def too_many(vids: list[str] | tuple[str, ...]) -> str:
    """Say of which videos one caption was left out."""
    return (
        f"one caption more than clips in {counted(len(vids), 'video')}; "
        f"the last caption was left out: {listed(vids)}"
    )


def caption_record(video: CaptionedVideo) -> Record:
    """Return captions as a line of our own form, which `read_captions` reads."""
    record: Record = {"vid": video.vid, "captions": list(video.captions)}
    if video.clip_seconds != CLIP_SECONDS:
        record["clip_seconds"] = video.clip_seconds
    return record if video.duration is None else record | {"duration": video.duration}


def _one_too_many(record: Record) -> bool:
    """Tell whether a record of captions has one more than its video has clips."""
    captions, duration = record["captions"], record.get("duration")
    seconds = record.get("clip_seconds", CLIP_SECONDS)
    if not isinstance(captions, list) or not (is_number(duration) and is_number(seconds)):
        return False  # what is wrong is said where the record is checked
    return _overlong(len(captions), seconds, duration)


def _overlong(captions: int, clip_seconds: float, duration: float) -> bool:
    """Tell whether the last caption alone, and not the only one, is after the video's end."""
    last = captions - 1
    return last > 0 and (last - 1) * clip_seconds < duration <= last * clip_seconds


def _read_folder(folder: Path) -> dict[str, CaptionedVideo]:
    """Read a folder of one file a video."""
    files = sorted(file for file in folder.iterdir() if file.name.endswith(_SUFFIXES))
    if not files:
        inner = [str(child) for child in sorted(folder.iterdir()) if child.is_dir()]
        remedy = f": name one of its folders, such as {inner[0]}" if inner else ""
        raise GranAlignError(
            f"{folder}: has no files of captions, expected VID.jsonl for each video{remedy}"
        )
    return {video.vid: video for video in map(_read_video, files)}


def _read_video(file: Path) -> CaptionedVideo:
    """Read the captions of one video, whose id is the file's name."""
    captions: list[str] = []
    for location, record in iter_jsonl(file):
        if "description" not in record:
            raise missing_key(location, "description", record)
        if record.get("moment", len(captions)) != len(captions):
            raise GranAlignError(
                f"{location}: moment: got {short_repr(record['moment'])}, expected "
                f"{len(captions)}, the number of the clip; sort the lines, and add missing ones"
            )
        if not isinstance(record["description"], str):
            raise GranAlignError(
                f"{location}: description: got {short_repr(record['description'])}, expected a text"
            )
        check_unicode(f"{location}: description", record["description"])
        captions.append(record["description"])
    return CaptionedVideo(file.name.removesuffix(".gz").removesuffix(".jsonl"), tuple(captions))
