"""From model folders to a pipeline: the one place where the parts are put together."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from .config import RetrieverConfig, resolve_config
from .errors import GranAlignError
from .files import default_cache
from .index import CLIP_SECONDS, IndexModels
from .language.rewriters import RuleRewriter
from .models.encoder import cpu_threads
from .models.manifest import CLIP, LLM, SENTENCE_ENCODER, VLM, exported_models, fingerprint
from .models.sentence_encoder import OnnxSentenceEncoder
from .models.sources import resolve_model
from .protocols import Captioner, ImageTextEncoder, Rewriter, TextEncoder
from .runtime.device import Device
from .search.retriever import Retriever

if TYPE_CHECKING:
    from .index.builder import Progress
    from .language.captioner import VlmCaptioner
    from .models.frame_encoder import FrameEncoder
    from .models.prefix_cache import PrefixCache


class SentenceEncoder(OnnxSentenceEncoder):
    """Embeds sentences with a sentence-transformers model that was exported to ONNX.

    A raw model is exported once, checked against its source, and kept in the cache.

    Args:
        source: None for all-MiniLM-L6-v2, a sentence-transformers folder, a hub id
            ``org/name@<revision>``, or a folder that `export_sentence_encoder` wrote.
        precision: ``"fp32"``; ``"int8"``, the fastest on a CPU; ``"fp16"``, for a GPU. None takes
            an exported folder's own, and fp32 otherwise.
        device: ``"cpu"``, ``"cuda"``, ``"cuda:1"`` or ``"tensorrt"``.
        threads: CPU threads; None for all that this process may use.
        cache_dir: where exports are kept; None for ``granalign-fast`` in the user's cache folder.
        graph: a file of an exported folder; None for the one that is made for the device.

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
        # Both are checked before an export that may take a minute.
        cpu_threads(threads)
        Device.parse(device)
        folder = resolve_model(source)
        if not (folder / "manifest.json").is_file():
            folder = _exported(folder, source, precision or "fp32", cache_dir)
        super().__init__(folder, precision=precision, device=device, threads=threads, graph=graph)


def _exported(
    folder: Path, source: str | Path | None, precision: str, cache_dir: str | Path | None
) -> Path:
    """The cached export of a raw model; exported now if there is none."""
    from .export.checks.encoder import check_precision
    from .export.sentence_encoder import export_sentence_encoder
    from .export.sources.sentence_encoder import SentenceModel
    from .export.specs import PRECISIONS

    check_precision(precision)
    model = SentenceModel.read(folder)
    cache = Path(cache_dir) if cache_dir is not None else default_cache()
    # An earlier graph's embeddings are the same to within the precision, and so is their name.
    out = cache / (fingerprint(model.sha256, precision) + PRECISIONS[precision].graph)
    if not (out / "manifest.json").is_file():
        try:
            export_sentence_encoder(source, out, precision=precision)
        except GranAlignError:
            if not (out / "manifest.json").is_file():  # else another process was quicker
                raise
    return out


class MomentRetriever(Retriever):
    """Finds the moments of a video that a sentence describes.

    As `Retriever`, with all-MiniLM-L6-v2 on the CPU as the default encoder.

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
    ) -> None:
        """Put a retriever together; arguments and errors are those of `Retriever`."""
        super().__init__(
            SentenceEncoder() if encoder is None else encoder,
            config,
            rewriter=rewriter,
            captioner=captioner,
            frame_encoder=frame_encoder,
            device=device,
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

        path = self.found.get(SENTENCE_ENCODER)
        return SentenceEncoder(path, device=self.device, threads=self.threads)

    @cached_property
    def frame_encoder(self) -> FrameEncoder | None:
        """The encoder of frames, if there is one."""
        from .models.frame_encoder import FrameEncoder

        if CLIP not in self.found:
            return None
        return FrameEncoder(self.found[CLIP], device=self.device, threads=self.threads)

    @cached_property
    def rewriter(self) -> Rewriter:
        """By the language model; where the folder has none, by rules."""
        if LLM not in self.found:
            return RuleRewriter()
        from .language.llm_rewriter import LlmRewriter
        from .models.language_model import CausalLM

        model = CausalLM(self.found[LLM], device=self.device, threads=self.threads)
        return LlmRewriter(model)

    @cached_property
    def captioner(self) -> VlmCaptioner | None:
        """Captions and recognition, if there is a vision-language model."""
        from .language.captioner import VlmCaptioner
        from .models.vision_language_model import VisionLanguageModel

        if VLM not in self.found:
            return None
        model = VisionLanguageModel(self.found[VLM], device=self.device, threads=self.threads)
        return VlmCaptioner(model, cache=self.cache)

    @property
    def fingerprints(self) -> dict[str, str]:
        """Of the models that an index is made with, by kind."""
        made = {SENTENCE_ENCODER: self.encoder.fingerprint}
        if self.frame_encoder is not None:
            made[CLIP] = self.frame_encoder.fingerprint
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
        from .index.builder import index_videos

        if self.captioner is None:
            raise GranAlignError(
                f"{self.folder}: got no model of kind 'vlm', expected one to caption frames; run "
                f"granalign export vlm SOURCE {self.folder / VLM}"
            )
        return index_videos(
            videos,
            out,
            IndexModels(self.captioner, self.encoder, self.frame_encoder, self.fingerprints),
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
        config = resolve_config(config)
        recognising = config.scorer == "recognition"
        return MomentRetriever(
            self.encoder if encoder is None else encoder,
            config,
            # Recognition asks about the query as it is.
            rewriter=RuleRewriter() if recognising else self.rewriter,
            captioner=self.captioner,
            frame_encoder=None if recognising else self.frame_encoder,
            device=self.device,
        )
