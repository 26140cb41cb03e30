"""Trains image towers on what each of their tokens shows."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from . import vlm
from .pool import Pool, label_loss

_SHARP = 6.0  # with it, an image token that is the sum of its words is sure of them


class Looker:
    """The image tower on random frames of both pools, half of each, and its labels' loss.

    A label that has a word is scored by the word's own embedding: so an image token becomes the sum
    of the words for what it shows, and the language model need not learn to translate.

    Args:
        tower: to train.
        words: the language model's embeddings.
        labels: a linear map from image tokens to labels, used for those without a word.
        named: scenes that can be spoken of.
        unnamed: scenes whose colours have no names.
    """

    def __init__(
        self, tower: vlm.ImageTower, words: Any, labels: Any, named: Pool, unnamed: Pool
    ) -> None:
        import torch

        self.tower, self.words, self.labels = tower, words, labels
        self.named, self.unnamed = named, unnamed
        ids = vlm.label_ids()
        self.ids = torch.tensor([0 if token is None else token for token in ids])
        self.spoken = torch.tensor([token is not None for token in ids])
        self.last: npt.NDArray[np.int64] = np.empty(0, np.int64)
        """The named scenes of the last call; their features stand first."""

    def __call__(self, rng: np.random.Generator, count: int) -> tuple[Any, Any, dict[str, float]]:
        """Features (count, 16, width), the loss, and each label's."""
        import torch
        from torch.nn import functional

        self.last, others = (
            rng.integers(len(pool.frames), size=count // 2) for pool in (self.named, self.unnamed)
        )
        frames = np.concatenate([self.named.frames[self.last], self.unnamed.frames[others]])
        wanted = np.concatenate([self.named.labels[self.last], self.unnamed.labels[others]])
        features = self.tower(torch.from_numpy(vlm.patches(frames)))
        logits = functional.linear(features, self._weights(), self.labels.bias)
        return features, *label_loss(logits, torch.from_numpy(wanted), spare_strangers=True)

    def _weights(self) -> Any:
        import torch

        words = self.words.weight[self.ids]
        return _SHARP * torch.where(self.spoken[:, None], words, self.labels.weight)


def features_of(tower: vlm.ImageTower, frames: npt.NDArray[np.uint8]) -> Any:
    """Image embeddings (frames, 16, width), without a graph."""
    import torch

    with torch.no_grad():
        parts = [
            tower(torch.from_numpy(vlm.patches(frames[i : i + 200])))
            for i in range(0, len(frames), 200)
        ]
    return torch.cat(parts)
