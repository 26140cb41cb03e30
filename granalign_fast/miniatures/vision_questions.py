"""Questions about single image tokens: which labels does each one's cell have?"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from . import vlm
from .pool import Pool, label_loss

_SHARP = 6.0  # factor of the logits: an image token that is the sum of its words is then certain


class VisionQuestions:
    """Runs the image tower on random frames, half from each pool, and computes the labels' loss.

    The logit of a label with a word is the product of the image token and the word's embedding. So
    an image token becomes the sum of the words for its contents, and the language model need not
    learn a translation.

    Args:
        tower: the image tower to train.
        words: the language model's embeddings.
        labels: a linear map from image tokens to labels, used for labels without a word.
        named: scenes whose colours have names.
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
        """Numbers of the last call's named scenes; their features come first."""

    def __call__(self, rng: np.random.Generator, count: int) -> tuple[Any, Any, dict[str, float]]:
        """Draw `count` frames; return features (count, 16, width), the loss, and each label's."""
        import torch
        from torch.nn import functional

        self.last, others = (
            rng.integers(len(pool.frames), size=count // 2) for pool in (self.named, self.unnamed)
        )
        frames = np.concatenate([self.named.frames[self.last], self.unnamed.frames[others]])
        labels = np.concatenate([self.named.labels[self.last], self.unnamed.labels[others]])
        features = self.tower(torch.from_numpy(vlm.patches(frames)))
        logits = functional.linear(features, self._weights(), self.labels.bias)
        return features, *label_loss(logits, torch.from_numpy(labels), spare_strangers=True)

    def _weights(self) -> Any:
        import torch

        words = self.words.weight[self.ids]
        return _SHARP * torch.where(self.spoken[:, None], words, self.labels.weight)
