"""The settings of a search on the command line: its source, its query and its models."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from granalign_fast.pipeline import ModelFolder, MomentRetriever
    from granalign_fast.storage import Address
    from granalign_fast.types import Rewrites


@dataclass(frozen=True, slots=True, kw_only=True)
class SearchSettings:
    """The options of `granalign search` that one video and a library share."""

    source: Path
    query: str | Rewrites
    preset: str | None
    """None for the one that suits the source."""
    models: ModelFolder | None
    encoder: str | None
    precision: str | None
    device: str
    top: int
    captions_only: bool
    media: Path | None = None
    """The video file of the index, a folder of the video files, or their address."""
    store: Address | None = None
    """The place of the index or library, if it was opened by its address in an object store."""
    approximate: float = 0.0
    """The share of a library's approximate indexes that is read."""

    @property
    def used(self) -> dict[str, tuple[str, str]]:
        """The name and the hash of the models that search, by kind."""
        if self.models is None:
            return {}
        left_out = ("vlm", "clip") if self.captions_only else ()
        return {kind: one for kind, one in self.models.sources.items() if kind not in left_out}

    def open_retriever(self, preset: str) -> MomentRetriever:
        """Load the models that a preset uses."""
        from granalign_fast.config import resolve_config
        from granalign_fast.pipeline import open_retriever

        return open_retriever(
            replace(resolve_config(preset), approximate=self.approximate),
            models=self.models,
            encoder=self.encoder,
            precision=self.precision,
            device=self.device,
            top=self.top,
            captions_only=self.captions_only,
        )


def check_preset(name: str | None) -> None:
    """Raise for an unknown name of a preset, before any work."""
    from granalign_fast.config import resolve_config

    if name is not None:
        resolve_config(name)
