"""The index of a video that is searched without having been indexed, in the user's cache folder."""

from __future__ import annotations

import hashlib
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from granalign_fast.runtime.cache_folder import evict, mark_used, usable_cache

from .records import CLIP_SECONDS
from .video_index import VideoIndex

if TYPE_CHECKING:
    from .builder import Progress
    from .video_files import Reading


class Indexer(Protocol):
    """Indexes video files; `ModelFolder` is one."""

    @property
    def content_keys(self) -> Sequence[str]:
        """Names of the models that index, which differ where the content of their files does."""
        ...

    def index(
        self,
        videos: Sequence[str | Path],
        out: str | Path,
        *,
        clip_seconds: float = CLIP_SECONDS,
        frames_per_clip: int = 1,
        progress: Progress | None = None,
        reading: Reading | None = None,
    ) -> list[Path]:
        """Index videos, each into its own folder below `out`; return these folders."""
        ...


def index_once(
    video: str | Path,
    models: Indexer,
    *,
    clip_seconds: float = CLIP_SECONDS,
    frames_per_clip: int = 1,
    progress: Progress | None = None,
    reading: Reading | None = None,
) -> VideoIndex:
    """Return the index of a video that is searched without having been indexed.

    The index lies in the user's cache folder: the next search of the same path takes it. Without a
    cache the video is indexed in a temporary folder.

    Raises:
        GranAlignError: as the indexer.
    """

    def index_into(out: str | Path) -> Path:
        (folder,) = models.index(
            [video],
            out,
            clip_seconds=clip_seconds,
            frames_per_clip=frames_per_clip,
            progress=progress,
            reading=reading,
        )
        return folder

    cache = usable_cache("indexes")
    if cache is None:
        with tempfile.TemporaryDirectory(prefix="granalign-") as temporary:
            return VideoIndex.load(index_into(temporary))
    # Models with the same fingerprints can have other files. Indexes of other clips stay.
    form = (clip_seconds, frames_per_clip)
    keys = [str(Path(video).resolve()), *models.content_keys]
    name = repr(keys if form == (CLIP_SECONDS, 1) else [*keys, form])
    out = cache / hashlib.sha256(name.encode(errors="surrogateescape")).hexdigest()
    folder = index_into(out)
    mark_used(out)
    index = VideoIndex.load(folder)
    evict(cache.parent)
    return index
