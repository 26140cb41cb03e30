"""Model folders in, indexers and retrievers out: the one place that joins the parts."""

from __future__ import annotations

import shutil
import weakref
from collections.abc import Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from .config import RetrieverConfig, resolve_config
from .errors import GranAlignError
from .index import CLIP_SECONDS, IndexModels
from .language.rewriters import RuleRewriter
from .models.deferred_encoder import DeferredEncoder
from .models.embedding_cache import CachedEncoder
from .models.encoder import cpu_threads
from .models.manifest import CLIP, LLM, SENTENCE_ENCODER, VLM, exported_models, model_sources
from .models.prefix_cache import PrefixCache, user_prefix_cache
from .models.sentence_encoder import OnnxSentenceEncoder
from .models.sources import resolve_model
from .protocols import Captioner, ImageTextEncoder, Rewriter, TextEncoder
from .runtime.cache_folder import usable_cache
from .runtime.device import Device
from .search.host_ranker import CAPTION_CACHE_BYTES
from .search.retriever import Retriever

if TYPE_CHECKING:
    from .index.builder import Progress
    from .index.video_files import Reading
    from .index.walk import OnError
    from .language.captioner import VlmCaptioner
    from .language.remote_captioner import RemoteCaptioner
    from .language.remote_models import RemoteModels
    from .models.frame_encoder import FrameEncoder
    from .models.remote.embeddings import RemoteEncoder


class SentenceEncoder(OnnxSentenceEncoder):
    """Sentence encoder: a sentence-transformers model, run as ONNX.

    A raw model is exported when it is first used, checked against its source, and kept in the
    user's cache folder.

    Args:
        source: None for all-MiniLM-L6-v2, a sentence-transformers folder, a hub id
            ``org/name``, or a folder that `export_sentence_encoder` wrote.
        precision: ``"fp32"``; ``"int8"``, the fastest on a CPU; ``"fp16"``, for a GPU. None stands
            for the precision of an exported folder, and for fp32 of a raw model.
        device: ``"cpu"``, ``"cuda"``, ``"cuda:1"`` or ``"tensorrt"``.
        threads: CPU threads; None for all that this process may use.
        cache_dir: where exports are kept; None for ``granalign-fast`` in the user's cache folder.
        graph: a file of an exported folder; None for the graph that suits the device.

    Raises:
        GranAlignError: the source, precision or device cannot be used; the message says why.
    """

    def __init__(
        self,
        source: str | Path | None = None,
        *,
        precision: str | None = None,
        device: str = "cpu",
        threads: int | None = None,
        cache_dir: str | Path | None = None,
        graph: str | None = None,
    ) -> None:
        # Check both before an export, which may take a minute.
        cpu_threads(threads)
        Device.parse(device)
        folder = resolve_model(source)
        if not (folder / "manifest.json").is_file():
            from .export.cached import cached_export

            folder, temporary = cached_export(folder, source, precision or "fp32", cache_dir)
            if temporary is not None:
                # The files stay as long as this encoder, which may read them again.
                weakref.finalize(self, shutil.rmtree, temporary, ignore_errors=True)
        super().__init__(folder, precision=precision, device=device, threads=threads, graph=graph)


class MomentRetriever(Retriever):
    """Retriever of the moments that a sentence describes, by default with all-MiniLM-L6-v2.

    Example:
        >>> retriever = MomentRetriever()
        >>> index = retriever.index(CaptionedVideo("v", ("a dog runs", "a red car", "a red car")))
        >>> retriever.search(index, "a car on the road").moments[0].start
        2.0
    """

    def __init__(
        self,
        encoder: TextEncoder | None = None,
        config: RetrieverConfig | str = "tuned",
        *,
        rewriter: Rewriter | None = None,
        captioner: Captioner | None = None,
        frame_encoder: ImageTextEncoder | None = None,
        device: str = "cpu",
        cache_bytes: int = CAPTION_CACHE_BYTES,
    ) -> None:
        """Make a retriever; arguments and errors are those of `Retriever`."""
        super().__init__(
            SentenceEncoder() if encoder is None else encoder,
            config,
            rewriter=rewriter,
            captioner=captioner,
            frame_encoder=frame_encoder,
            device=device,
            cache_bytes=cache_bytes,
        )


class ModelFolder:
    """The models below a folder, and those on servers, each opened when it is first used.

    Args:
        folder: as for `exported_models`; None where all models are on servers.
        device: of every model of the folder, as for `open_session`.
        threads: CPU threads; None for all that this process may use.
        cache: of the key/value prefixes that the vision-language model computes of frames; None
            for 1 GiB of memory.
        remote: models on servers, which take the place of those of the folder; None for none.

    Raises:
        GranAlignError: as for `exported_models`; later, when a model is loaded, as its class.

    Example:
        >>> models = ModelFolder("models")  # doctest: +SKIP
        >>> models.retriever("recognition").search(index, "a red car")  # doctest: +SKIP
    """

    def __init__(
        self,
        folder: str | Path | None,
        *,
        device: str = "cpu",
        threads: int | None = None,
        cache: PrefixCache | None = None,
        remote: RemoteModels | None = None,
    ) -> None:
        self.folder = None if folder is None else Path(folder)
        self.device, self.threads = device, threads
        self.cache, self.remote = cache, remote
        self.paths = {} if folder is None else exported_models(folder)

    def __contains__(self, kind: str) -> bool:
        return kind in self.paths or self._served(kind) is not None

    def _served(self, kind: str) -> RemoteModels | None:
        """Return the models on servers if one of this kind is among them."""
        return self.remote if self.remote is not None and kind in self.remote else None

    @cached_property
    def encoder(self) -> SentenceEncoder | RemoteEncoder:
        """The sentence encoder; all-MiniLM-L6-v2 if there is none."""
        if remote := self._served(SENTENCE_ENCODER):
            return remote.encoder
        path = self.paths.get(SENTENCE_ENCODER)
        return SentenceEncoder(path, device=self.device, threads=self.threads)

    @cached_property
    def frame_encoder(self) -> FrameEncoder | None:
        """The encoder of frames; None if the folder has none."""
        from .models.frame_encoder import FrameEncoder

        if CLIP not in self.paths:
            return None
        return FrameEncoder(self.paths[CLIP], device=self.device, threads=self.threads)

    @cached_property
    def rewriter(self) -> Rewriter:
        """The rewriter that uses the language model; the one that uses rules if there is none."""
        if remote := self._served(LLM):
            return remote.rewriter
        if LLM not in self.paths:
            return RuleRewriter()
        from .language.llm_rewriter import LlmRewriter
        from .models.language_model import CausalLM

        model = CausalLM(self.paths[LLM], device=self.device, threads=self.threads)
        kept = model.cache_bytes // 2 if model.device.index is None else None
        return LlmRewriter(model, kept_bytes=kept)

    @cached_property
    def captioner(self) -> VlmCaptioner | RemoteCaptioner | None:
        """The captioner and recogniser; None if there is no vision-language model."""
        if remote := self._served(VLM):
            return remote.captioner
        from .language.captioner import VlmCaptioner
        from .models.vision_language_model import VisionLanguageModel

        if VLM not in self.paths:
            return None
        model = VisionLanguageModel(self.paths[VLM], device=self.device, threads=self.threads)
        return VlmCaptioner(model, cache=self.cache)

    @property
    def sources(self) -> dict[str, tuple[str, str]]:
        """The source's name and its SHA-256 of each model, by kind; no model is loaded for it."""
        return model_sources(self.paths) | ({} if self.remote is None else self.remote.sources)

    @property
    def fingerprints(self) -> dict[str, str]:
        """Fingerprints of the models that an index is made with, by kind.

        The sentence encoder embeds captions, so it is one of them only where a model writes these.
        """
        fingerprints = {}
        if self.frame_encoder is not None:
            fingerprints[CLIP] = self.frame_encoder.fingerprint
        if self.captioner is not None:
            fingerprints[SENTENCE_ENCODER] = self.encoder.fingerprint
            fingerprints[VLM] = self.captioner.fingerprint
        return fingerprints

    @property
    def content_keys(self) -> list[str]:
        """Names of the models that index, which differ where the content of their files does."""
        used = (self.frame_encoder, self.captioner, self.captioner and self.encoder)
        return [model.content_key for model in used if model]

    def check_indexing(self) -> None:
        """Raise unless there is a model that captions or embeds frames; none is loaded.

        Raises:
            GranAlignError: there is neither a vision-language model nor a frame encoder.
        """
        if VLM not in self and CLIP not in self:
            folder = self.folder or Path("models")
            raise GranAlignError(
                f"{folder}: got no model of kind 'vlm' or 'clip', expected one that captions "
                f"frames or one that embeds them; run granalign export clip SOURCE {folder / CLIP}"
            )

    def index(
        self,
        videos: Sequence[str | Path],
        out: str | Path,
        *,
        clip_seconds: float = CLIP_SECONDS,
        frames_per_clip: int = 1,
        rows: int = 16,
        progress: Progress | None = None,
        on_error: OnError | None = None,
        verify: bool = False,
        reading: Reading | None = None,
    ) -> list[Path]:
        """Index video files, each into its own folder below `out`; see `index_videos`.

        Without a vision-language model the indexes have no captions, and no sentence encoder is
        loaded. They serve the preset ``visual``. A later call with such a model adds captions.

        Raises:
            GranAlignError: as `check_indexing` and `index_videos`.
        """
        from .index.builder import index_videos

        self.check_indexing()
        captioner = self.captioner  # what cannot be used is found out first
        if captioner is not None:
            captioner.check_clips(frames_per_clip)
        encoder = None if captioner is None else self.encoder
        return index_videos(
            videos,
            out,
            IndexModels(captioner, encoder, self.frame_encoder, self.fingerprints),
            clip_seconds=clip_seconds,
            frames_per_clip=frames_per_clip,
            rows=rows,
            progress=progress,
            on_error=on_error,
            verify=verify,
            reading=reading,
        )

    def retriever(
        self,
        config: RetrieverConfig | str = "tuned",
        *,
        encoder: TextEncoder | None = None,
        captions_only: bool = False,
        cache_bytes: int = CAPTION_CACHE_BYTES,
    ) -> MomentRetriever:
        """Return a retriever with all models that its configuration uses.

        Args:
            config: a preset's name or a configuration.
            encoder: replaces that of the folder.
            captions_only: leave out the models that look at frames.
            cache_bytes: as for `Retriever`.

        Raises:
            GranAlignError: there is no such preset, or the folder lacks a model that it needs.
        """
        config = resolve_config(config)
        recognising, visual = config.scorer == "recognition", config.scorer == "frames"
        if recognising and not captions_only and (remote := self._served(VLM)):
            remote.check_recognition()
        if encoder is None:
            # The preset visual compares no captions.
            encoder = DeferredEncoder(lambda: self.encoder) if visual else self.encoder
        return MomentRetriever(
            encoder,
            config,
            # Recognition takes the query without rewriting it.
            rewriter=RuleRewriter() if recognising else self.rewriter,
            captioner=None if visual or captions_only else self.captioner,
            frame_encoder=None if recognising or captions_only else self.frame_encoder,
            device=self.device,
            cache_bytes=cache_bytes,
        )


MINIATURES = "miniatures"
"""The name of the package's own small models, where a folder of models is expected."""


def models_folder(name: str | Path) -> Path:
    """Return the folder of models that a name stands for: itself, or one of the package's.

    A folder that has one of these names is one of models only if it holds some.
    """
    from .miniatures import NAMES

    path = Path(name)
    own = NAMES.get(str(name))
    return path if own is None or any(path.glob("*/manifest.json")) else own


def open_models(
    folder: str | Path | None,
    *,
    device: str = "cpu",
    prefix_gib: float = 4.0,
    remote: RemoteModels | None = None,
) -> ModelFolder:
    """Return the models of a folder, with a cache for prefixes of frames in memory and on disk.

    Args:
        folder: a folder of exported models, ``"miniatures"`` or ``"motion-miniature"``; None where
            all are on servers.
        device: as for `ModelFolder`.
        prefix_gib: the bound of the prefixes on disk, in GiB. They lie in the user's cache folder,
            so that a search finds what an earlier process computed.
        remote: as for `ModelFolder`.

    Raises:
        GranAlignError: `prefix_gib` is out of range, or as `ModelFolder`.
    """
    cache = user_prefix_cache(prefix_gib, on_cpu=Device.parse(device).kind == "cpu")
    path = None if folder is None else models_folder(folder)
    return ModelFolder(path, device=device, cache=cache, remote=remote)


def open_retriever(
    config: RetrieverConfig | str = "tuned",
    *,
    models: ModelFolder | None = None,
    encoder: str | None = None,
    precision: str | None = None,
    device: str = "cpu",
    top: int | None = None,
    cache: bool = False,
    captions_only: bool = False,
) -> MomentRetriever:
    """Return a retriever over a folder of models, or over a sentence encoder alone.

    Args:
        config: a preset's name or a configuration.
        models: the models; None to search captions by a sentence encoder alone.
        encoder: as `source` of `SentenceEncoder`; None for that of `models`.
        precision: as for `SentenceEncoder`; None for that of `models`.
        device: of the sentence encoder, and of the search if there are no `models`.
        top: the number of moments; None for the configuration's.
        cache: keep embeddings in the user's cache folder, and take those that are kept.
        captions_only: leave out the models that look at frames.

    Raises:
        GranAlignError: there is no such preset, or a model cannot be used.
    """
    config = resolve_config(config)
    if top is not None:
        config = replace(config, top=top)
    if models is not None and encoder is None and precision is None:
        if config.scorer == "frames":
            return models.retriever(config, captions_only=captions_only)
        model = models.encoder
    else:
        model = SentenceEncoder(encoder, precision=precision, device=device)
    folder = usable_cache() if cache else None
    used = model if folder is None else CachedEncoder(model, folder)
    if models is not None:
        return models.retriever(config, encoder=used, captions_only=captions_only)
    return MomentRetriever(used, config, device=device)
