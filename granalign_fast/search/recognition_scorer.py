"""Scores by recognition: a vision-language model answers whether a frame shows the query.

The score of a clip is the probability of a yes (Li, Gou and Cai, arXiv 2608.04480).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from granalign_fast.config import RetrieverConfig
from granalign_fast.index import VideoIndex
from granalign_fast.kernels import Curves
from granalign_fast.protocols import Recogniser
from granalign_fast.types import SearchResult

from .all_candidates import rescaled
from .batches import PreparedQuery
from .clock import Clock
from .host_ranker import cut_moments
from .key_frames import equivalent_phrasings, frame_set, mean_of_greatest, probabilities
from .known_texts import Known
from .request import Request, bare_rewrites
from .results import search_results


class RecognitionScorer:
    """Scores clips by the probability that their frames show the query. A `Scorer`.

    The query is not rewritten. If it comes as `Rewrites`, the scores average over the query and its
    detailed rewrites.
    """

    def __init__(self, recogniser: Recogniser, config: RetrieverConfig) -> None:
        self.recogniser = recogniser
        self.config = config

    def score(
        self, requests: Sequence[Request], clock: Clock, known: Known | None = None
    ) -> list[SearchResult]:
        """Return one result for each request, in order.

        Stages: ``recognise``, ``proposals``, ``nms``, ``results``.

        Raises:
            GranAlignError: a query is empty, the index has no frames, or the video file is gone.
        """
        # The probability of a yes for each clip of each request.
        curves = self._probabilities(requests)
        clock.lap("recognise")

        # Cut moments out of curves that are rescaled to [0, 1], as those of captions are.
        stretched = np.concatenate([rescaled(curve) for curve in curves])
        offsets = np.cumsum([0, *map(len, curves)])
        ranked = cut_moments(Curves(stretched[None], stretched, offsets), self.config, clock)

        # The saliency is the probability itself: it can be compared across videos.
        fused = np.concatenate(curves)
        exists = [mean_of_greatest(curve, self.config.exists_frames) for curve in curves]
        batch = [PreparedQuery(request.index, bare_rewrites(request), {}) for request in requests]
        results = list(
            search_results(
                batch,
                Curves(fused[None], fused, offsets),
                ranked,
                self.config,
                exists,
                clock.seconds,
            )
        )
        clock.lap("results")
        return results

    def _probabilities(self, requests: Sequence[Request]) -> list[npt.NDArray[np.float32]]:
        """Return for each request the probability of a yes, `(clips,)`."""
        # Requests about one video are one target: its frames are read and prefilled once.
        by_video: dict[int, tuple[VideoIndex, list[int]]] = {}
        for i, request in enumerate(requests):
            by_video.setdefault(id(request.index), (request.index, []))[1].append(i)
        phrasings = [equivalent_phrasings(bare_rewrites(request)) for request in requests]
        targets = [
            (frame_set(index), [text for i in members for text in phrasings[i]])
            for index, members in by_video.values()
        ]
        found = probabilities(self.recogniser, targets)

        curves: list[npt.NDArray[np.float32]] = [np.empty(0, np.float32)] * len(requests)
        for (_, members), answers in zip(by_video.values(), found, strict=True):
            # Average over the phrasings of each request.
            ends = np.cumsum([len(phrasings[i]) for i in members]).tolist()
            for i, end in zip(members, ends, strict=True):
                curves[i] = answers[end - len(phrasings[i]) : end].mean(axis=0)
        return curves
