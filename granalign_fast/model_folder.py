"""A folder of exported models, and the pipeline that they make together."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from .errors import GranAlignError
from .index import CLIP_SECONDS
from .models import (
    CLIP,
    SENTENCE_ENCODER,
    ClipManifest,
    Manifest,
    SentenceManifest,
    read_json,
)

if TYPE_CHECKING:
    from .captions import VlmCaptioner
    from .clip import ClipEncoder
    from .config import RetrieverConfig
    from .encoders import SentenceEncoder
    from .index.building import Progress
    from .prefixes import PrefixCache
    from .retriever import MomentRetriever, TextEncoder
    from .rewrites import Rewriter

LLM, VLM = "llm", "vlm"
KINDS = (SENTENCE_ENCODER, CLIP, LLM, VLM)
"""What a manifest may say, in the order in which a query meets them."""


def exported_models(folder: str | Path) -> dict[str, Path]:
    """The exported models below a folder, by kind; each in a folder of its own, whatever its name.

    Raises:
        GranAlignError: there is no such folder, no model in it, or two of one kind.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise GranAlignError(f"{folder}: no such folder; expected one of exported models")
    found: dict[str, Path] = {}
    for path in sorted(folder.glob("*/manifest.json")):
        record = read_json(path)
        kind = record.get("kind") if isinstance(record, dict) else None
        if kind not in KINDS:
            continue
        if kind in found:
            raise GranAlignError(
                f"{folder}: got two models of kind {kind!r}, {found[kind].name} and "
                f"{path.parent.name}, expected one; move the other away"
            )
        found[kind] = path.parent
    if not found:
        raise GranAlignError(
            f"{folder}: got no exported model, expected folders that `granalign export` wrote"
        )
    return found


def read_manifest(folder: Path) -> Manifest:
    """The manifest of an exported model of any kind, every file read and checked again.

    Raises:
        GranAlignError: it is no exported model, or a file of it was altered.
    """
    from .generation import LlmManifest
    from .vlm import VlmManifest

    record = read_json(folder / "manifest.json")
    kind = record.get("kind") if isinstance(record, dict) else None
    classes: tuple[type[Manifest], ...] = (SentenceManifest, ClipManifest, LlmManifest, VlmManifest)
    for manifest in classes:
        if manifest.kind == kind:
            return manifest.read(folder, again=True)
    raise GranAlignError(
        f"{folder / 'manifest.json'}: got kind {kind!r}, expected one of: {', '.join(KINDS)}; "
        f"export the model again"
    )


class ModelFolder:
    """The models below a folder, each loaded when it is first asked for.

    Args:
        folder: as for `exported_models`.
        device: as for `Session`, of every model.
        threads: CPU threads; None for all that this process may use.
        cache: keeps what the vision-language model has made of frames; by default 1 GiB of memory.

    Raises:
        GranAlignError: as for `exported_models`; when a model is loaded, as that model's class.

    Example:
        >>> models = ModelFolder("models")  # doctest: +SKIP
        >>> models.retriever("recognition").search(index, "a red car")  # doctest: +SKIP
    """

    def __init__(
        self,
        folder: str | Path,
        *,
        device: str = "cpu",
        threads: int | None = None,
        cache: PrefixCache | None = None,
    ) -> None:
        self.folder = Path(folder)
        self.device = device
        self.threads = threads
        self.cache = cache
        self.found = exported_models(folder)

    def __contains__(self, kind: str) -> bool:
        return kind in self.found

    @cached_property
    def encoder(self) -> SentenceEncoder:
        """The sentence encoder; where the folder has none, all-MiniLM-L6-v2."""
        from .encoders import SentenceEncoder

        path = self.found.get(SENTENCE_ENCODER)
        return SentenceEncoder(path, device=self.device, threads=self.threads)

    @cached_property
    def clip(self) -> ClipEncoder | None:
        """The encoder of frames, if there is one."""
        from .clip import ClipEncoder

        if CLIP not in self.found:
            return None
        return ClipEncoder(self.found[CLIP], device=self.device, threads=self.threads)

    @cached_property
    def rewriter(self) -> Rewriter:
        """By the language model; where the folder has none, by rules."""
        if LLM not in self.found:
            from .rewrites import RuleRewriter

            return RuleRewriter()
        from .generation import CausalLM
        from .llm_rewriter import LlmRewriter

        model = CausalLM(self.found[LLM], device=self.device, threads=self.threads)
        return LlmRewriter(model)

    @cached_property
    def captioner(self) -> VlmCaptioner | None:
        """Captions and recognition, if there is a vision-language model."""
        from .captions import VlmCaptioner
        from .vlm import VisionLanguageModel

        if VLM not in self.found:
            return None
        model = VisionLanguageModel(self.found[VLM], device=self.device, threads=self.threads)
        return VlmCaptioner(model, cache=self.cache)

    @property
    def fingerprints(self) -> dict[str, str]:
        """Of the models that an index is made with, by kind."""
        made = {SENTENCE_ENCODER: self.encoder.fingerprint}
        if self.clip is not None:
            made[CLIP] = self.clip.fingerprint
        if self.captioner is not None:
            made[VLM] = self.captioner.fingerprint
        return made

    def index(
        self,
        videos: Sequence[str | Path],
        out: str | Path,
        *,
        clip_seconds: float = CLIP_SECONDS,
        rows: int = 16,
        progress: Progress | None = None,
    ) -> list[Path]:
        """Index video files into a folder each below `out`; see `indexing.index_videos`.

        Raises:
            GranAlignError: there is no vision-language model, or as `index_videos`.
        """
        from .index.building import index_videos

        if self.captioner is None:
            raise GranAlignError(
                f"{self.folder}: got no model of kind 'vlm', expected one to caption frames; run "
                f"granalign export vlm SOURCE {self.folder / VLM}"
            )
        return index_videos(
            videos,
            out,
            captioner=self.captioner,
            encoder=self.encoder,
            clip=self.clip,
            models=self.fingerprints,
            clip_seconds=clip_seconds,
            rows=rows,
            progress=progress,
        )

    def retriever(
        self, config: RetrieverConfig | str = "tuned", *, encoder: TextEncoder | None = None
    ) -> MomentRetriever:
        """A retriever over all models that its configuration has a use for.

        Args:
            config: a preset's name or a configuration of your own.
            encoder: in the place of the folder's own.

        Raises:
            GranAlignError: there is no such preset, or a model that it needs is not there.
        """
        from .config import preset
        from .retriever import MomentRetriever
        from .rewrites import RuleRewriter

        config = preset(config) if isinstance(config, str) else config
        recognising = config.scorer == "recognition"
        return MomentRetriever(
            self.encoder if encoder is None else encoder,
            config,
            # Recognition asks about the query as it is.
            rewriter=RuleRewriter() if recognising else self.rewriter,
            captioner=self.captioner,
            clip=None if recognising else self.clip,
            device=self.device,
        )
