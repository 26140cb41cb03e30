"""The protocol of scorers: `CaptionScorer` compares captions, `RecognitionScorer` asks a model."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from granalign_fast.types import SearchResult

from .clock import Clock
from .known_texts import Known
from .request import Request


class Scorer(Protocol):
    """Scores every clip of a video against a query, and cuts moments out of the scores."""

    def score(
        self, requests: Sequence[Request], clock: Clock, known: Known | None = None
    ) -> list[SearchResult]:
        """Return one result for each request, in order.

        Args:
            requests: at least one; any mixture of videos and queries.
            clock: receives a lap for each stage.
            known: embeddings of texts, which are not embedded again.

        Raises:
            GranAlignError: a request cannot be answered; the message names its video.
        """
        ...
