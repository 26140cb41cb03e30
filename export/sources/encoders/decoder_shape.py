"""The numbers of sentence encoders of the decoder type, read from their ``config.json``.

transformers computes some of them from others; so does this, from the same settings.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from granalign_fast.errors import GranAlignError, short_repr
from granalign_fast.export.sources.layouts import DEFAULTS, uniform_config

from .encoder import Settings

_SLIDING, _FULL = "sliding_attention", "full_attention"

_GEMMA3: dict[str, Any] = {
    "vocab_size": 262_208,
    "hidden_size": 2304,
    "intermediate_size": 9216,
    "num_hidden_layers": 26,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "head_dim": 256,
    "hidden_activation": "gelu_pytorch_tanh",
    "max_position_embeddings": 131_072,
    "rms_norm_eps": 1e-6,
    "rope_theta": 1e6,
    "rope_local_base_freq": 1e4,
    "query_pre_attn_scalar": 256,
    "sliding_window": 4096,
}
"""Values of settings that a Gemma 3 leaves out; transformers 4.57 and 5 agree on them."""

_QWEN3: dict[str, Any] = DEFAULTS["qwen3"] | {
    "intermediate_size": 22_016,
    "hidden_act": "silu",
    "rms_norm_eps": 1e-6,
    "rope_theta": 1e4,
    "sliding_window": 4096,
    "max_window_layers": 28,
}

_ACTIVATIONS = ("gelu_pytorch_tanh", "silu")


@dataclass(frozen=True)
class DecoderShape:
    """The numbers of a decoder, and what tells the families apart.

    Attributes:
        words: size of the vocabulary.
        hidden: values of a token.
        wide: values of a token inside the perceptron.
        heads: of queries.
        kv_heads: of keys and values; each serves several heads of queries.
        head_dim: values of a head.
        epsilon: of every norm.
        activation: of the perceptron's gate, one of transformers' names.
        causal: whether a token attends to those before it alone.
        scale: factor of the attention scores.
        words_scale: factor of the embeddings of tokens.
        gain: added to the weights of norms: 1 for Gemma.
        norms: norms of a layer: 2, or 4 where the output of each half is normalised too.
        biased: whether the attention's products have biases.
        thetas: base of the rotary positions, for each layer.
        windows: for each layer, the distance from which on tokens are not attended to; None for
            none.
    """

    words: int
    hidden: int
    wide: int
    heads: int
    kv_heads: int
    head_dim: int
    epsilon: float
    activation: str
    causal: bool
    scale: float
    words_scale: float
    gain: float
    norms: int
    biased: bool
    thetas: tuple[float, ...]
    windows: tuple[int | None, ...]

    def tensors(self) -> dict[str, tuple[int, ...]]:
        """Return the shape of every tensor of a layer, by its name within the layer."""
        queries, keys = self.heads * self.head_dim, self.kv_heads * self.head_dim
        rows = {"q": queries, "k": keys, "v": keys}
        shapes: dict[str, tuple[int, ...]] = {
            f"self_attn.{part}_proj.weight": (size, self.hidden) for part, size in rows.items()
        }
        shapes["self_attn.o_proj.weight"] = (self.hidden, queries)
        if self.biased:
            shapes |= {f"self_attn.{part}_proj.bias": (size,) for part, size in rows.items()}
            shapes["self_attn.o_proj.bias"] = (self.hidden,)
        shapes |= {f"self_attn.{part}_norm.weight": (self.head_dim,) for part in "qk"}
        shapes |= {f"mlp.{part}_proj.weight": (self.wide, self.hidden) for part in ("gate", "up")}
        shapes["mlp.down_proj.weight"] = (self.hidden, self.wide)
        names = ["input", "post_attention"]
        names += ["pre_feedforward", "post_feedforward"] if self.norms == 4 else []
        return shapes | {f"{name}_layernorm.weight": (self.hidden,) for name in names}

    def frequencies(self, layer: int) -> npt.NDArray[np.float32]:
        """Return the angles that a step turns each pair of a head by, (head_dim / 2,) float32."""
        exponents = np.arange(0, self.head_dim, 2, dtype=np.float32) / self.head_dim
        powers = np.float32(self.thetas[layer]) ** exponents
        return (1 / powers).astype(np.float32)


def qwen3_shape(config: Mapping[str, Any], path: Path) -> DecoderShape:
    """Return the numbers of a Qwen3.

    Args:
        config: its ``config.json``.
        path: of that file, for messages.

    Raises:
        GranAlignError: a number is missing or wrong, or a setting is one that the graphs lack.
    """
    settings = _settings(config, path, _QWEN3, "Qwen3")
    window, kinds = None, [_FULL] * settings.integer("num_hidden_layers", 1)
    if settings.config.get("use_sliding_window"):
        window, first = settings.integer("sliding_window", 1), settings.integer("max_window_layers")
        usual = [_SLIDING if i >= first else _FULL for i in range(len(kinds))]
        kinds = settings.config.get("layer_types") or usual
    theta = settings.number("rope_theta", 1)
    return _shape(
        settings,
        kinds,
        thetas={_FULL: theta, _SLIDING: theta},
        window=window,
        activation=str(settings.config["hidden_act"]),
        causal=True,
        scale=settings.integer("head_dim", 1) ** -0.5,
        words_scale=1.0,
        gain=0.0,
        norms=2,
    )


def gemma3_shape(config: Mapping[str, Any], path: Path) -> DecoderShape:
    """Return the numbers of a text model of Gemma 3; arguments and errors as of `qwen3_shape`."""
    settings = _settings(config, path, _GEMMA3, "Gemma 3")
    both = settings.config.get("use_bidirectional_attention") is True
    # The stated window counts both sides of a token where attention looks to both.
    window = settings.integer("sliding_window", 1)
    window = window // 2 + 1 if both else window
    stated = settings.config.get("sliding_window_pattern") is not None
    pattern = settings.integer("sliding_window_pattern", 1) if stated else 6
    layers = range(1, settings.integer("num_hidden_layers", 1) + 1)
    usual = [_SLIDING if i % pattern else _FULL for i in layers]
    if (cap := settings.config.get("attn_logit_softcapping")) is not None:
        raise GranAlignError(
            f"{path}: got attn_logit_softcapping {cap!r}, expected none; choose another model"
        )
    full, local = settings.number("rope_theta", 1), settings.number("rope_local_base_freq", 1)
    return _shape(
        settings,
        settings.config.get("layer_types") or usual,
        thetas={_FULL: full, _SLIDING: local},
        window=window,
        activation=str(settings.config["hidden_activation"]),
        causal=not both,
        scale=settings.number("query_pre_attn_scalar", 1) ** -0.5,
        words_scale=math.sqrt(settings.integer("hidden_size")),
        gain=1.0,
        norms=4,
    )


def _settings(
    config: Mapping[str, Any], path: Path, defaults: Mapping[str, Any], family: str
) -> Settings:
    """Return the settings in one layout, with defaults; raise for those that the graphs lack."""
    whole = dict(defaults) | uniform_config(dict(config), path)
    if whole.get("num_key_value_heads") is None:
        whole["num_key_value_heads"] = whole["num_attention_heads"]
    if whole.get("rope_scaling") is not None:
        raise GranAlignError(
            f"{path}: got rope_scaling {whole['rope_scaling']!r}, expected none; choose a model "
            f"with plain rotary positions"
        )
    return Settings(whole, path, family)


def _shape(
    settings: Settings,
    kinds: Sequence[str],
    *,
    thetas: Mapping[str, float],
    window: int | None,
    activation: str,
    **family: Any,
) -> DecoderShape:
    """Return the numbers of either family; `family` holds further fields of `DecoderShape`."""
    heads, kv_heads = (settings.integer(f"num_{kind}_heads") for kind in ("attention", "key_value"))
    head_dim, depth = settings.integer("head_dim"), settings.integer("num_hidden_layers", 1)
    if kv_heads < 1 or heads < 1 or heads % kv_heads or head_dim < 2 or head_dim % 2:
        raise GranAlignError(
            f"{settings.path}: got {heads} heads of {head_dim} values for {kv_heads} of keys, "
            f"expected a multiple of them, of an even size; copy or download the model again"
        )
    valid = isinstance(kinds, list) and len(kinds) == depth
    if not valid or any(kind not in [*thetas] for kind in kinds):
        raise GranAlignError(
            f"{settings.path}: got layer_types {short_repr(kinds)}, expected {depth} of "
            f"{sorted(thetas)}; copy or download the model again"
        )
    if activation not in _ACTIVATIONS:
        raise GranAlignError(
            f"{settings.path}: got the activation {activation!r}, expected one of "
            f"{list(_ACTIVATIONS)}; choose another model"
        )
    return DecoderShape(
        words=settings.integer("vocab_size"),
        hidden=settings.integer("hidden_size"),
        wide=settings.integer("intermediate_size"),
        heads=heads,
        kv_heads=kv_heads,
        head_dim=head_dim,
        epsilon=settings.number("rms_norm_eps"),
        activation=activation,
        biased=bool(settings.config.get("attention_bias")),
        thetas=tuple(thetas[kind] for kind in kinds),
        windows=tuple(window if kind == _SLIDING else None for kind in kinds),
        **family,
    )
