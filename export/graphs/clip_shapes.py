"""The numbers of CLIP's and SigLIP's towers, and the image processor's arithmetic on bytes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from granalign_fast.errors import GranAlignError

Float64 = npt.NDArray[np.float64]

CENTRE = 128
"""Subtracted from a frame's bytes before the first product. Without it the summands would all have
one sign, and their sums would be large."""


@dataclass(frozen=True, slots=True)
class Transformer:
    """The numbers of a tower's layers.

    Attributes:
        hidden: values of a token.
        wide: values of a token inside the multi-layer perceptron.
        layers: number of layers.
        heads: of each layer.
        activation: of each layer, by transformers' name.
        epsilon: of every norm.
    """

    hidden: int
    wide: int
    layers: int
    heads: int
    activation: str
    epsilon: float

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> Transformer:
        """Read transformers' configuration of a tower, with all defaults in it."""
        return cls(
            hidden=int(config["hidden_size"]),
            wide=int(config["intermediate_size"]),
            layers=int(config["num_hidden_layers"]),
            heads=int(config["num_attention_heads"]),
            activation=str(config["hidden_act"]),
            epsilon=float(config["layer_norm_eps"]),
        )


@dataclass(frozen=True, slots=True)
class Levels:
    """The arithmetic of an image processor on a frame's bytes: ``(byte * rescale - mean) / std``.

    Attributes:
        rescale: factor of the values 0 to 255.
        mean: subtracted from each colour after rescaling.
        std: divides each colour after that.
    """

    rescale: float
    mean: tuple[float, ...]
    std: tuple[float, ...]

    @property
    def step(self) -> float:
        """A power of two near the mean pixel value of one level: weights keep their magnitude."""
        slope = np.abs(self._slopes).mean()
        return float(2.0 ** np.rint(np.log2(slope))) if slope else 1.0

    def folded(self, weight: Float64) -> tuple[Float64, Float64]:
        """Turn a linear layer on pixels into one on ``(byte - CENTRE) * step``.

        Args:
            weight: of the layer on pixels, (..., 3, outputs); the axis of 3 is the colours.

        Returns:
            The new layer's weight, of the same shape, and its bias, (outputs,).
        """
        gains = self._slopes / self.step
        offsets = (CENTRE * self.rescale - np.array(self.mean)) / np.array(self.std)
        bias = (weight * offsets[:, None]).reshape(-1, weight.shape[-1]).sum(axis=0)
        return weight * gains[:, None], bias

    @property
    def _slopes(self) -> Float64:
        slopes: Float64 = self.rescale / np.array(self.std)
        return slopes


@dataclass(frozen=True, slots=True)
class ImageShape:
    """The numbers of an image tower.

    Attributes:
        layers: the numbers of its transformer.
        side: edge of an image in pixels.
        patch: edge of a patch in pixels. Pixels beyond the last whole patch are cut off.
        out: values of an embedding.
        levels: the image processor's arithmetic on bytes.
    """

    layers: Transformer
    side: int
    patch: int
    out: int
    levels: Levels

    @classmethod
    def from_config(cls, config: Mapping[str, Any], out: int, levels: Levels) -> ImageShape:
        """Read transformers' configuration of the tower, with all defaults in it.

        Raises:
            GranAlignError: images do not have three channels.
        """
        if config["num_channels"] != 3:
            raise GranAlignError(
                f"num_channels: got {config['num_channels']}, expected 3; choose another model"
            )
        return cls(
            Transformer.from_config(config),
            int(config["image_size"]),
            int(config["patch_size"]),
            out,
            levels,
        )

    @property
    def grid(self) -> int:
        """Number of patches in a row, and of rows."""
        return self.side // self.patch


@dataclass(frozen=True, slots=True)
class TextShape:
    """The numbers of a text tower.

    Attributes:
        layers: the numbers of its transformer.
        words: size of the vocabulary.
        tokens: greatest length of a text.
        out: values of an embedding.
        end: id of the end-of-text token; the first one in a text is pooled.
    """

    layers: Transformer
    words: int
    tokens: int
    out: int
    end: int

    @classmethod
    def from_config(cls, config: Mapping[str, Any], out: int) -> TextShape:
        """Read transformers' configuration of the tower, with all defaults in it."""
        sizes = int(config["vocab_size"]), int(config["max_position_embeddings"])
        return cls(Transformer.from_config(config), *sizes, out, int(config["eos_token_id"]))
