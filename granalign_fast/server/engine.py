"""The models and the library of the service: opened once, refreshed when videos come or go."""

from __future__ import annotations

import gc
import logging
import threading
from collections.abc import Callable, Mapping, Sequence, Set
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from granalign_fast.config import PRESETS
from granalign_fast.errors import GranAlignError
from granalign_fast.files import escape_undecodable
from granalign_fast.index import VideoIndex
from granalign_fast.index.model_checks import check_models
from granalign_fast.index.models import check_captioner
from granalign_fast.library import Library
from granalign_fast.library.catalogue import Catalogue, open_catalogue
from granalign_fast.library.index_cache import IndexCache
from granalign_fast.library.records import CataloguedVideo, index_stamps
from granalign_fast.library.tags import Tags, read_tags
from granalign_fast.models.manifest import SENTENCE_ENCODER
from granalign_fast.models.recent_texts import RecentTexts
from granalign_fast.pipeline import MomentRetriever, SentenceEncoder, open_models
from granalign_fast.protocols import TextEncoder
from granalign_fast.runtime.allocator import keep_for_ever

from .damage import Damage
from .settings import Settings

if TYPE_CHECKING:
    from granalign_fast.pipeline import ModelFolder

_log = logging.getLogger(__name__)

_INDEX_SHARE = 1 / 3
"""Share of the cache that the indexes of videos may take, for all presets together. The rest is
for what a preset derives from them: `tuned` keeps two arrays of the size of an index."""
_WARM_UP = "a person walks"
"""The query that is asked before the service is ready."""


class Engine:
    """Holds the models, a library for each preset over one catalogue, and the tags.

    Searches run on one thread, that of the `Batcher`; `refresh` gives it a new catalogue, which it
    takes up between two batches. Everything else may be called on any thread.

    Args:
        settings: of the service.
        models: in the place of those that the settings name; None to open these.

    Raises:
        GranAlignError: the folder of the library or of the models cannot be used.
    """

    def __init__(self, settings: Settings, models: ModelFolder | None = None) -> None:
        self.settings = settings
        self.folder = settings.library.absolute()
        index_stamps(self.folder)  # raises unless it is a folder of indexes
        self.models = models
        wanted = settings.models is not None or settings.remote is not None
        if models is None and wanted:
            self.models = open_service_models(
                settings.models, settings.remote, settings.device, settings.prefix_gib
            )
        self.catalogue: Catalogue | None = None
        self.libraries: dict[str, Library] = {}
        self.unavailable: dict[str, str] = {}
        """Why a preset cannot be used, by its name."""
        self.model_records: dict[str, dict[str, str]] = {}
        """Name and SHA-256 of the source of each model that answers, by kind."""
        self.seen: Callable[[int, int], None] | None = None
        """Called with the number of texts whose embeddings were kept, and of others."""
        self.changed: Callable[[Set[tuple[str, str]]], None] | None = None
        """Called with id and stamp of each video when videos came, went or changed."""
        self.tags: Tags = {}
        self.ready = threading.Event()
        self._videos: Mapping[str, CataloguedVideo] = {}
        self._stamps: Mapping[str, str] = {}
        self._refreshing = threading.Lock()
        self._damage = Damage(self.folder)

    def open(self, *, warm_up: bool = True) -> None:
        """Load all models, open the library, and search it once.

        Args:
            warm_up: whether to search it.

        Raises:
            GranAlignError: a model cannot be loaded, is not the one that made the indexes, or takes
                no clips of as many frames as those of videos that come in.
        """
        catalogue = open_catalogue(self.folder)
        self._check(catalogue)
        encoder = self._open_encoder()
        indexes = IndexCache(
            int(_INDEX_SHARE * self.settings.limits.cache_bytes), failed=self._damage.note
        )
        for name in PRESETS:
            try:
                retriever = self._open_retriever(name, encoder)
            except GranAlignError as error:
                self.unavailable[name] = str(error)
            else:
                self.libraries[name] = library = Library(catalogue, retriever)
                library.cache = indexes
        if self.preset not in self.libraries:
            raise GranAlignError(f"preset {self.preset!r}: {self.unavailable[self.preset]}")
        self._check_clips()
        self._take(catalogue)
        if warm_up:
            self.libraries[self.preset].search(_WARM_UP, top=1, refine=1)
            keep_for_ever()
        self.ready.set()

    def _check_clips(self) -> None:
        """Raise if no video could be indexed, because the captioner takes no such clips."""
        settings = self.settings
        if self.models is None or settings.read_only or settings.frames_per_clip == 1:
            return
        try:
            check_captioner(self.models.captioner, settings.frames_per_clip)
        except GranAlignError as error:
            raise GranAlignError(f"{error}; or search only, with --read-only") from None

    def _open_encoder(self) -> TextEncoder:
        """Load the sentence encoder, and note which models answer."""
        encoder: TextEncoder
        if self.models is None:
            encoder, sources = SentenceEncoder(device=self.settings.device), {}
        else:
            encoder, sources = self.models.encoder, self.models.sources
        if isinstance(encoder, SentenceEncoder):
            manifest = encoder.manifest
            sources = {SENTENCE_ENCODER: (manifest.source, manifest.source_sha256)} | sources
        self.model_records = {
            kind: {"name": name, "sha256": sha256} for kind, (name, sha256) in sources.items()
        }
        if self.settings.device != "cpu":
            return encoder  # its embeddings stay on the device
        return RecentTexts(encoder, seen=self.seen)

    def _open_retriever(self, name: str, encoder: TextEncoder) -> MomentRetriever:
        config = replace(PRESETS[name], approximate=self.settings.approximate)
        cache_bytes = int((1 - _INDEX_SHARE) * self.settings.limits.cache_bytes)
        if self.models is None:
            return MomentRetriever(
                encoder, config, device=self.settings.device, cache_bytes=cache_bytes
            )
        return self.models.retriever(
            config,
            encoder=encoder,
            captions_only=self.settings.captions_only,
            cache_bytes=cache_bytes,
        )

    def _check(self, catalogue: Catalogue) -> None:
        """Raise unless the models that looked at frames are there to look again."""
        if self.settings.captions_only:
            return
        made: dict[str, str] = {}
        for video in catalogue.videos():
            made |= video.models
        given = [] if self.models is None else [kind for kind in made if kind in self.models]
        check_models(self.folder, made, given, frames=True)

    @property
    def preset(self) -> str:
        """The preset of a search that names none."""
        if self.settings.preset is not None:
            return self.settings.preset
        return "tuned"

    def library(self, preset: str | None) -> Library:
        """Return the library that searches with a preset.

        Raises:
            GranAlignError: the preset is unknown, or needs a model that is not there.
        """
        name = self.preset if preset is None else preset
        if name in self.libraries:
            return self.libraries[name]
        if name in self.unavailable:
            raise GranAlignError(f"preset {name!r}: {self.unavailable[name]}")
        raise GranAlignError(f"preset: got {name!r}, expected one of: {', '.join(self.libraries)}")

    def videos(self) -> Sequence[CataloguedVideo]:
        """Return the videos of the library, sorted by id."""
        return list(self._videos.values())

    def video(self, vid: str) -> CataloguedVideo | None:
        """Return a video by its id; None if there is none."""
        return self._videos.get(vid)

    @property
    def damaged(self) -> Mapping[str, str]:
        """Why an index cannot be searched, by the id of its video."""
        reasons = self._damage.reasons(self.catalogue)
        return {vid: self.shown(reason) for vid, reason in reasons.items()}

    def shown(self, error: object) -> str:
        """Return an error for clients, without the path of the library on this machine."""
        return str(error).replace(f"{self.folder}/", "")

    def index(self, video: CataloguedVideo) -> VideoIndex:
        """Read the index of a video.

        Raises:
            GranAlignError: it was removed or damaged meanwhile.
        """
        try:
            return VideoIndex.load(self.folder / video.vid)
        except GranAlignError as error:
            self._damage.note(video, error)
            raise

    def is_stale(self) -> bool:
        """Return whether indexes came, went, changed or were restored since it was opened."""
        try:
            stamps = index_stamps(self.folder)
            return stamps != self._stamps or self._damage.has_changed(self.catalogue)
        except GranAlignError:
            return False  # the folder is not there for now, such as one on a network

    def refresh(self) -> None:
        """Open the catalogue anew, if it is stale, and let the next batch search it."""
        with self._refreshing:
            try:
                self.tags = read_tags(self.folder)
                self._damage.forget_restored()
                if self.is_stale():
                    self._take(open_catalogue(self.folder))
                    gc.collect()  # earlier catalogues hold files open
            except GranAlignError as error:
                _log.warning("the library is as it was: %s", error)

    def _take(self, catalogue: Catalogue) -> None:
        """Make a catalogue the one that is served."""
        videos = {video.vid: video for video in catalogue.videos()}
        stamps = {vid: video.stamp for vid, video in videos.items()}
        stamps |= {vid: stamp for vid, (stamp, _) in catalogue.damaged.items()}
        self.tags = read_tags(self.folder)
        self.catalogue, self._videos, self._stamps = catalogue, videos, stamps
        if self.changed is not None:
            self.changed({(video.vid, video.stamp) for video in videos.values()})

    def take_catalogue(self) -> None:
        """Let the libraries search the newest catalogue; the thread that searches calls this."""
        catalogue = self.catalogue
        for library in self.libraries.values():
            if catalogue is not None and library.catalogue is not catalogue:
                library.take_up(catalogue)

    def named(self, path: Path | None) -> str | None:
        """Return the name of a video file, without the folders of this machine."""
        return None if path is None else escape_undecodable(path.name)


def open_service_models(
    models: Path | None, remote: Mapping[str, Any] | None, device: str, prefix_gib: float
) -> ModelFolder:
    """Open the models of a folder, on servers, or both; nothing is loaded yet.

    Args:
        models: the folder.
        remote: the arguments of `RemoteModels`.
        device: of the folder's models.
        prefix_gib: as for `open_models`.

    Raises:
        GranAlignError: the folder or a server cannot be used.
    """
    servers = None
    if remote is not None:
        from granalign_fast.language.remote_models import RemoteModels

        servers = RemoteModels(**remote)
    return open_models(models, device=device, prefix_gib=prefix_gib, remote=servers)
