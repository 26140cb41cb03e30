"""What a transformers folder of a causal language model says about itself, checked."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Self

import numpy as np

from granalign_fast.errors import GranAlignError
from granalign_fast.export.specs import LLM_ARCHITECTURES
from granalign_fast.files import sha256_of

from .checkpoint import Checkpoint, Float32
from .folder import read_object, read_tokenizer

_FIXED = {
    "hidden_act": "silu",
    "use_sliding_window": False,
    "partial_rotary_factor": 1.0,
}
"""Settings that the graph has only so."""


class UnwrittenError(GranAlignError):
    """Nothing is wrong with the model, but our graph lacks its architecture or a setting of it."""


@dataclass(frozen=True)
class LlmShape:
    """What is known of every language model: `context` is how many tokens an export takes."""

    architecture: str
    vocabulary: int
    context: int


@dataclass(frozen=True)
class DecoderShape(LlmShape):
    """The numbers of a decoder, and the frequencies of its rotary positions, (head_dim / 2,)."""

    layers: int
    hidden: int
    heads: int
    kv_heads: int
    head_dim: int
    epsilon: float
    tied: bool
    frequencies: Float32

    @classmethod
    def read(cls, config: dict[str, Any], place: Path) -> DecoderShape:
        """From a ``config.json``; `place` is named by errors.

        Raises:
            UnwrittenError: another architecture, or a setting that the graph does not have.
            GranAlignError: a setting that makes no sense.
        """
        architecture = check_architecture(config, LLM_ARCHITECTURES, place)
        return cls.parse(config, architecture, place)

    @classmethod
    def parse(cls, config: dict[str, Any], architecture: str, place: Path) -> DecoderShape:
        """From the settings of a decoder alone, whatever it is part of.

        Raises:
            UnwrittenError: a setting that the graph does not have.
            GranAlignError: a setting that makes no sense.
        """
        refuse_newer(config, place)
        for key, wanted in _FIXED.items():
            if config.get(key, wanted) != wanted:
                raise UnwrittenError(
                    f"{place}: got {key} {config[key]!r}, expected {wanted!r}; "
                    f"choose a model without it"
                )
        heads = positive(config, "num_attention_heads", place)
        hidden = positive(config, "hidden_size", place)
        kv_heads = positive(config, "num_key_value_heads", place, default=heads)
        head_dim = positive(config, "head_dim", place, default=hidden // heads)
        if heads % kv_heads or head_dim % 2:
            raise GranAlignError(
                f"{place}: got {heads} heads of {head_dim} on {kv_heads} key-value heads, expected "
                f"an even size and a number of heads that the key-value heads divide"
            )
        return cls(
            architecture=architecture,
            layers=positive(config, "num_hidden_layers", place),
            hidden=hidden,
            heads=heads,
            kv_heads=kv_heads,
            head_dim=head_dim,
            vocabulary=positive(config, "vocab_size", place),
            context=positive(config, "max_position_embeddings", place),
            epsilon=number(config, "rms_norm_eps", place, default=1e-6),
            tied=bool(config.get("tie_word_embeddings", False)),
            frequencies=_frequencies(config, head_dim, place),
        )


@dataclass(frozen=True)
class ModelSource:
    """A model folder: its settings, weights and end-of-sequence ids.

    `sha256` covers weights, settings and tokenizer: all that shapes an answer.
    """

    TEXTS: ClassVar[tuple[str, ...]] = (
        "tokenizer.json",
        "tokenizer_config.json",
        "special_tokens_map.json",
        "added_tokens.json",
        "chat_template.jinja",
        "vocab.json",
        "merges.txt",
    )
    SETTINGS: ClassVar[tuple[str, ...]] = ("config.json",)
    """Copied where they are there; ``tokenizer.json`` and all settings must be."""

    folder: Path
    config: dict[str, Any]
    shape: LlmShape
    checkpoint: Checkpoint
    generation_config: dict[str, Any]
    eos_ids: tuple[int, ...]
    weights_sha256: str
    sha256: str

    @classmethod
    def open(
        cls,
        folder: Path,
        config: dict[str, Any],
        shape: LlmShape,
        *,
        decoder: dict[str, Any] | None = None,
        rename: Callable[[str], str] | None = None,
        more_settings: Sequence[Any] = (),
        **fields: Any,
    ) -> Self:
        """Open the weights of a folder whose ``config.json`` is known, and hash all.

        `decoder` is the decoder's part of `config`, where it is not all; `rename` is as for
        `Checkpoint`, `more_settings` go into the hash, and `fields` are a subclass's own.

        Raises:
            GranAlignError: a file is missing or torn, or the weights are not safetensors.
        """
        generation_config = _read_generation_config(folder)
        read_tokenizer(folder)
        checkpoint = Checkpoint(folder, rename)
        weights_sha256 = _combined([sha256_of(path) for path in checkpoint.files])
        texts = [sha256_of(path) for path in _present(folder, cls.TEXTS)]
        settings = json.dumps([config, generation_config, *more_settings], sort_keys=True)
        return cls(
            folder=folder,
            config=config,
            shape=shape,
            checkpoint=checkpoint,
            generation_config=generation_config,
            eos_ids=_eos_ids(generation_config, decoder or config, folder),
            weights_sha256=weights_sha256,
            sha256=_combined([weights_sha256, *texts, settings]),
            **fields,
        )

    def files(self) -> list[Path]:
        """What an export copies as it is."""
        return _present(self.folder, (*self.TEXTS, *self.SETTINGS))

    def write_generation_config(self, folder: Path) -> None:
        """Write ``generation_config.json``, which readers of other libraries look for."""
        settings = {"eos_token_id": list(self.eos_ids)} | self.generation_config
        text = json.dumps(settings, indent=2) + "\n"
        (folder / "generation_config.json").write_text(text, encoding="utf-8")


@dataclass(frozen=True)
class LlmSource(ModelSource):
    """A model folder whose graph we write."""

    shape: DecoderShape

    @classmethod
    def read(cls, folder: Path) -> LlmSource:
        """Read the settings, open the weights and hash both.

        Raises:
            UnwrittenError: its architecture, or a setting, is one that the graph does not have.
            GranAlignError: it is not a causal language model, or a file of it is missing or torn.
        """
        config = read_config(folder)
        return cls.open(folder, config, DecoderShape.read(config, folder / "config.json"))


def read_config(folder: Path) -> dict[str, Any]:
    """``config.json`` of a transformers folder."""
    if not (folder / "config.json").is_file():
        raise GranAlignError(
            f"{folder}: no config.json; expected a transformers folder with config.json, "
            f"tokenizer.json and safetensors"
        )
    return read_object(folder / "config.json")


def _present(folder: Path, names: Sequence[str]) -> list[Path]:
    return [folder / name for name in names if (folder / name).is_file()]


def _read_generation_config(folder: Path) -> dict[str, Any]:
    """``generation_config.json``; empty where there is none."""
    path = folder / "generation_config.json"
    return read_object(path) if path.is_file() else {}


def check_architecture(config: dict[str, Any], allowed: dict[str, str], place: Path) -> str:
    """The architecture of a ``config.json``, if it is one of those, with the type of each.

    Raises:
        UnwrittenError: it is another.
    """
    named = config.get("architectures")
    architecture = str(named[0]) if isinstance(named, list) and named else "none"
    if (architecture, config.get("model_type")) not in allowed.items():
        raise UnwrittenError(
            f"{place}: got architecture {architecture!r} of type {config.get('model_type')!r}, "
            f"expected one of {sorted(allowed)}; choose a model of these families"
        )
    return architecture


def refuse_newer(config: dict[str, Any], place: Path) -> None:
    """Raise for the settings of transformers 5 that 4.57 would overlook.

    It would judge the export by a model that is wrong likewise.
    """
    if (got := config.get("rope_parameters")) is not None:
        raise GranAlignError(
            f"{place}: got rope_parameters {got!r}, expected rope_theta and rope_scaling; save "
            f"the model with transformers 4.57, or choose one without it"
        )


def positive(config: dict[str, Any], key: str, place: Path, default: int | None = None) -> int:
    """A setting that must be a positive integer; its default stands in for null, too."""
    value = config.get(key)
    value = default if value is None else value
    if not isinstance(value, int) or value < 1:
        raise GranAlignError(f"{place}: got {key} {value!r}, expected a positive integer")
    return value


def number(config: dict[str, Any], key: str, place: Path, default: float) -> float:
    """A setting that must be a positive number."""
    value = config.get(key, default)
    if not isinstance(value, int | float) or not value > 0:
        raise GranAlignError(f"{place}: got {key} {value!r}, expected a positive number")
    return float(value)


def _combined(parts: list[str]) -> str:
    """One SHA-256 of several; of a single one, itself."""
    if len(parts) == 1:
        return parts[0]
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()


def _eos_ids(
    generation_config: dict[str, Any], config: dict[str, Any], folder: Path
) -> tuple[int, ...]:
    """Generation settings win: chat models add their end of a turn there."""
    found = generation_config.get("eos_token_id")
    found = config.get("eos_token_id") if found is None else found
    found = [] if found is None else found if isinstance(found, list) else [found]
    if not all(isinstance(value, int) for value in found):
        raise GranAlignError(f"{folder}: got eos_token_id {found!r}, expected token ids")
    return tuple(found)


def _frequencies(config: dict[str, Any], head_dim: int, place: Path) -> Float32:
    """Radians a token of each pair of a head's values, (head_dim / 2,)."""
    base = number(config, "rope_theta", place, default=10000.0)
    exponents = np.arange(0, head_dim, 2, dtype=np.float32) / np.float32(head_dim)
    plain: Float32 = (1 / np.float32(base) ** exponents).astype(np.float32)
    scaling = config.get("rope_scaling") or {}
    try:
        kind = scaling.get("rope_type", scaling.get("type", "default"))
        if kind == "default":
            return plain
        factor = float(scaling["factor"])
        if kind == "linear":
            return plain / np.float32(factor)
        if kind == "llama3":
            low, high = float(scaling["low_freq_factor"]), float(scaling["high_freq_factor"])
            turns = scaling["original_max_position_embeddings"] * plain / (2 * math.pi)
            # Slow pairs are stretched by the factor, quick ones kept, those between blended.
            kept = np.clip((turns - low) / (high - low), 0, 1)
            return np.asarray((1 - kept) * plain / factor + kept * plain, np.float32)
    except (AttributeError, KeyError, TypeError, ValueError, ZeroDivisionError):
        raise GranAlignError(f"{place}: got rope_scaling {scaling!r}, which lacks values") from None
    raise UnwrittenError(
        f"{place}: got rope_scaling of type {kind!r}, expected 'default', 'linear' or 'llama3'; "
        f"choose a model with one of these"
    )
