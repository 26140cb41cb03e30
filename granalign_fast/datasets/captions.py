"""Read captioned videos: JSON Lines of ours, or a folder of one file a video."""

from __future__ import annotations

from pathlib import Path

from granalign_fast.errors import GranAlignError
from granalign_fast.index import CaptionedVideo
from granalign_fast.jsonl import iter_jsonl

from .records import PathLike


def read_captions(path: PathLike) -> dict[str, CaptionedVideo]:
    """Read captioned videos by `vid`.

    Args:
        path: JSON Lines of `vid` and `captions`, or a folder of one file ``VID.jsonl`` a video, in
            which every line has the `description` of a clip.

    Raises:
        GranAlignError: the file cannot be read, a line is no such record, or a vid repeats.
    """
    if Path(path).is_dir():
        return {file.stem: _read_video(file) for file in sorted(Path(path).glob("*.jsonl"))}
    videos: dict[str, CaptionedVideo] = {}
    for location, record in iter_jsonl(path, required=("vid", "captions")):
        video = CaptionedVideo.from_record(record, location)
        if video.vid in videos:
            raise GranAlignError(
                f"{location}: vid {video.vid!r} repeats; expected one line a video"
            )
        videos[video.vid] = video
    return videos


def _read_video(path: Path) -> CaptionedVideo:
    """Read the captions of one video."""
    captions = [record["description"] for _, record in iter_jsonl(path, required=("description",))]
    return CaptionedVideo(path.stem, tuple(captions))
