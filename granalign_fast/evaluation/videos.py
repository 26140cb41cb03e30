"""The videos of an evaluation: from captions, from a folder of indexes, or from video files."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from granalign_fast.datasets import PathLike, fit_captions, read_captions, too_many
from granalign_fast.errors import GranAlignError, counted, listed
from granalign_fast.index import CLIP_SECONDS, CaptionedVideo, VideoIndex
from granalign_fast.index.manifest import read_manifest_source
from granalign_fast.index.walk import find_videos

if TYPE_CHECKING:
    from granalign_fast.index.builder import Progress
    from granalign_fast.index.video_files import Reading
    from granalign_fast.pipeline import ModelFolder

IndexingBars = Callable[[], AbstractContextManager[tuple["Progress | None", "Reading | None"]]]
"""Opens the display of indexing: yields `progress` and `reading` of `index_videos`."""


@dataclass(slots=True)
class Opened:
    """The videos that could be opened, and why the others could not."""

    videos: dict[str, CaptionedVideo | VideoIndex] = field(default_factory=dict)
    """By vid; a `CaptionedVideo` has yet to be embedded."""
    failed: dict[str, str] = field(default_factory=dict)
    """The reason for each vid."""
    notes: list[str] = field(default_factory=list)
    """Sentences on what was left out or chosen."""


class Videos(Protocol):
    """Where the videos of an evaluation come from."""

    name: str
    """The name of the file or folder, for messages."""
    lacks: str
    """The thing that a missing video lacks, such as "captions"."""

    def __contains__(self, vid: object) -> bool:
        """Return whether there is such a video, without opening it."""
        ...

    def open(self, vids: Sequence[str], durations: Mapping[str, float]) -> Opened:
        """Open videos that are there.

        Args:
            vids: each once.
            durations: in seconds, of the videos whose annotations tell it.
        """
        ...


class CaptionFile:
    """Captions without videos.

    Args:
        path: as for `datasets.read_captions`.

    Raises:
        GranAlignError: as `datasets.read_captions`.
    """

    lacks = "captions"

    def __init__(self, path: PathLike) -> None:
        self.name = str(path)
        self._captioned = read_captions(path)

    def __contains__(self, vid: object) -> bool:
        return vid in self._captioned

    def open(self, vids: Sequence[str], durations: Mapping[str, float]) -> Opened:
        """Return the captioned videos, with the durations of the annotations."""
        opened = Opened()
        shortened: list[str] = []
        for vid in vids:
            # One at a time: captions that do not fit their video cost this video alone.
            try:
                fitted, late = fit_captions({vid: self._captioned[vid]}, durations)
            except GranAlignError as error:
                opened.failed[vid] = f"{self.name}: {error}"
                continue
            opened.videos |= fitted
            shortened += late
        if shortened:
            opened.notes.append(f"{self.name}: {too_many(shortened)}.")
        return opened


class IndexFolder:
    """A folder of indexes, as ``granalign index`` writes it; the name of each is the vid.

    Args:
        folder: of the indexes.

    Raises:
        GranAlignError: there is no such folder.
    """

    lacks = "index"

    def __init__(self, folder: PathLike) -> None:
        self.name = str(folder)
        self._folder = Path(folder)
        if not self._folder.is_dir():
            raise GranAlignError(f"{folder}: no such folder; expected the indexes of videos")
        self._vids = {path.parent.name for path in self._folder.glob("*/manifest.json")}

    def __contains__(self, vid: object) -> bool:
        return vid in self._vids

    def open(self, vids: Sequence[str], durations: Mapping[str, float]) -> Opened:
        """Read the indexes."""
        opened = Opened()
        for vid in vids:
            _load(opened, vid, self._folder / vid)
        return opened


class VideoFiles:
    """A folder of video files, which are indexed as needed.

    The file of a video has the vid as its name, with the suffix of any container. Its index is kept
    and taken again while the file and the models are the same, and an interrupted run resumes.

    Args:
        folder: of the files; folders inside it count too.
        models: index the videos.
        indexes: where the indexes are kept; None for ``FOLDER-indexes`` beside the folder, or
            ``FOLDER-indexes-3s-6`` for clips of 3 s with 6 frames.
        bars: shows how far the indexing is.
        clip_seconds: length of a clip in seconds.
        frames_per_clip: the number of frames of each clip.

    Raises:
        GranAlignError: there is no such folder, it holds no video, or the models can
            neither caption nor embed frames.
    """

    lacks = "file"

    def __init__(
        self,
        folder: PathLike,
        models: ModelFolder,
        indexes: PathLike | None = None,
        *,
        bars: IndexingBars | None = None,
        clip_seconds: float = CLIP_SECONDS,
        frames_per_clip: int = 1,
    ) -> None:
        path = Path(folder)
        self.name = str(folder)
        if not path.is_dir():
            raise GranAlignError(f"{folder}: no such folder; expected the videos of the dataset")
        models.check_indexing()
        absolute = path.absolute()
        self._form = clip_seconds, frames_per_clip
        usual = self._form == (CLIP_SECONDS, 1)
        form = "" if usual else f"-{clip_seconds:g}s-{frames_per_clip}"
        self.indexes = Path(indexes or absolute.with_name(f"{absolute.name}-indexes{form}"))
        self._models = models
        self._bars = bars or (lambda: nullcontext((None, None)))
        self._unreadable: list[str] = []
        self._files: dict[str, list[Path]] = {}
        found = find_videos([path], on_error=lambda _, error: self._unreadable.append(str(error)))
        if not found:
            raise GranAlignError(
                f"{folder}: got no file with the suffix of a video that can be read, expected "
                f"those of the dataset, each named as its video"
            )
        for file in found:
            self._files.setdefault(file.stem, []).append(file)

    def __contains__(self, vid: object) -> bool:
        return vid in self._files

    def open(self, vids: Sequence[str], durations: Mapping[str, float]) -> Opened:
        """Index the videos that have no index, and read all indexes."""
        opened = Opened(notes=list(self._unreadable))
        if several := [vid for vid in vids if len(self._files[vid]) > 1]:
            first = self._files[several[0]]
            opened.notes.append(
                f"{self.name}: {counted(len(several), 'video')} with several files, of which the "
                f"first by path was taken: {listed(several)}; of {several[0]} it is "
                f"{first[0].name}."
            )
        vid_of = {self._files[vid][0]: vid for vid in vids}

        def add_failure(path: Path, error: GranAlignError) -> None:
            opened.failed[vid_of[path.absolute()]] = str(error)

        clip_seconds, frames_per_clip = self._form
        with self._bars() as (progress, reading):
            folders = self._models.index(
                list(vid_of),
                self.indexes,
                clip_seconds=clip_seconds,
                frames_per_clip=frames_per_clip,
                progress=progress,
                reading=reading,
                on_error=add_failure,
            )
        for folder in folders:
            source = read_manifest_source(folder)
            assert source is not None  # it was indexed from a file
            _load(opened, vid_of[source.path], folder)
        return opened


def _load(opened: Opened, vid: str, folder: Path) -> None:
    """Read an index; one that cannot be read costs one video."""
    try:
        opened.videos[vid] = VideoIndex.load(folder)
    except GranAlignError as error:
        opened.failed[vid] = str(error)
