"""Settings of a causal language model's transformers folder, read and checked."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Self

import numpy as np

from granalign_fast.errors import GranAlignError, short_repr
from granalign_fast.export.specs import LLM_ARCHITECTURES
from granalign_fast.files import sha256_of
from granalign_fast.models.chat_template import ADDITIONAL_TEMPLATES, TEMPLATE_FILES
from granalign_fast.models.sources import combined_sha256, hash_weights
from granalign_fast.parsing.limits import MOST_SETTING
from granalign_fast.reading import checked_file

from .checkpoint import Checkpoint, Float32
from .folder import read_model_config, read_object, read_tokenizer
from .layouts import DEFAULTS, uniform_config, uniform_files, write_settings
from .tensors import WIDE, check_decoder

_FIXED = {
    "hidden_act": "silu",
    "use_sliding_window": False,
    "partial_rotary_factor": 1.0,
}
"""Settings with the one value that the graph supports."""


class UnsupportedError(GranAlignError):
    """The model is intact, but our graph lacks its architecture or one of its settings."""


@dataclass(frozen=True)
class LlmShape:
    """The numbers of any language model; `context` is how many tokens an export takes."""

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
    def read(cls, config: dict[str, Any], path: Path) -> DecoderShape:
        """Read the settings of a ``config.json``; errors name `path`.

        Raises:
            UnsupportedError: another architecture, or a setting that the graph lacks.
            GranAlignError: a setting with a senseless value.
        """
        architecture = check_architecture(config, LLM_ARCHITECTURES, path)
        return cls.parse(config, architecture, path)

    @classmethod
    def parse(cls, config: dict[str, Any], architecture: str, path: Path) -> DecoderShape:
        """Read the settings of a decoder, which may be part of a larger model; errors name `path`.

        Raises:
            UnsupportedError: a setting that the graph lacks.
            GranAlignError: a setting with a senseless value.
        """
        # Settings that the graph lacks; one that is left out has its family's default.
        config = DEFAULTS.get(LLM_ARCHITECTURES.get(architecture, ""), {}) | config
        for key, supported in _FIXED.items():
            if config.get(key, supported) != supported:
                raise UnsupportedError(
                    f"{path}: got {key} {config[key]!r}, expected {supported!r}; "
                    f"choose a model without it"
                )
        # Heads, which must share keys and values evenly.
        heads = positive(config, "num_attention_heads", path)
        hidden = positive(config, "hidden_size", path)
        kv_heads = positive(config, "num_key_value_heads", path, default=heads)
        head_dim = positive(config, "head_dim", path, default=hidden // heads)
        if heads % kv_heads or head_dim % 2:
            raise GranAlignError(
                f"{path}: got {heads} heads of {head_dim} on {kv_heads} key-value heads, expected "
                f"an even size and a number of heads that the key-value heads divide"
            )
        return cls(
            architecture=architecture,
            layers=positive(config, "num_hidden_layers", path),
            hidden=hidden,
            heads=heads,
            kv_heads=kv_heads,
            head_dim=head_dim,
            vocabulary=positive(config, "vocab_size", path),
            context=positive(config, "max_position_embeddings", path),
            epsilon=number(config, "rms_norm_eps", path, default=1e-6),
            tied=bool(config.get("tie_word_embeddings", False)),
            frequencies=_frequencies(config, head_dim, path),
        )


@dataclass(frozen=True)
class ModelSource:
    """A model folder: its settings, weights and end-of-sequence ids.

    `sha256` covers everything that shapes an answer: weights, settings and tokenizer.
    """

    TEXTS: ClassVar[tuple[str, ...]] = (
        "tokenizer.json",
        "tokenizer_config.json",
        "special_tokens_map.json",
        "added_tokens.json",
        *TEMPLATE_FILES,
        f"{ADDITIONAL_TEMPLATES}/default.jinja",
        "vocab.json",
        "merges.txt",
    )
    """Files of tokenizer and chat template that an export copies; only ``tokenizer.json`` must
    exist."""
    SETTINGS: ClassVar[tuple[str, ...]] = ("config.json",)
    """Files of settings that an export copies; all must exist."""

    folder: Path
    config: dict[str, Any]
    shape: LlmShape
    checkpoint: Checkpoint
    generation_config: dict[str, Any]
    eos_ids: tuple[int, ...]
    weights_sha256: str
    sha256: str
    replaced: Mapping[str, str] = field(default_factory=dict, kw_only=True)
    """Texts that an export gets in the place of the folder's files, by file name."""

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
        """Open the weights of a folder and hash weights, settings and tokenizer.

        Args:
            folder: the folder.
            config: its ``config.json``.
            shape: the numbers read from it.
            decoder: the decoder's part of `config`; None if that is all of it.
            rename: as for `Checkpoint`.
            more_settings: further settings for the hash.
            fields: further fields of a subclass.

        Raises:
            GranAlignError: a file is missing or torn, or the weights are not safetensors.
        """
        # Settings and tokenizer.
        generation_config = _read_generation_config(folder)
        read_tokenizer(folder)
        # Weights, and the hash of all.
        checkpoint = Checkpoint(folder, rename)
        weights_sha256 = hash_weights(checkpoint.files)
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
            sha256=combined_sha256([weights_sha256, *texts, settings]),
            **fields,
        )

    def copy_files(self, folder: Path) -> None:
        """Copy settings, tokenizer and chat template, or write what replaces them.

        transformers 4.57 must be able to read them too.
        """
        rewritten = uniform_files(self.folder)
        for name in (*self.TEXTS, *self.SETTINGS):
            if name in rewritten:
                write_settings(folder / name, rewritten[name])
            elif (self.folder / name).is_file() and "/" not in name:
                shutil.copyfile(checked_file(self.folder / name, inside=self.folder), folder / name)
        for name, text in self.replaced.items():
            (folder / name).write_text(text, encoding="utf-8", newline="")

    def write_generation_config(self, folder: Path) -> None:
        """Write ``generation_config.json``, which readers of other libraries look for."""
        settings = {"eos_token_id": list(self.eos_ids)} | self.generation_config
        settings.pop("_from_model_config", None)  # transformers would then take config.json's
        text = json.dumps(settings, indent=2) + "\n"
        (folder / "generation_config.json").write_text(text, encoding="utf-8")


@dataclass(frozen=True)
class LlmSource(ModelSource):
    """The folder of a model whose graph we write."""

    shape: DecoderShape

    @classmethod
    def read(cls, folder: Path) -> LlmSource:
        """Read the settings, open the weights and hash both.

        Raises:
            UnsupportedError: our graph lacks its architecture or a setting.
            GranAlignError: it is not a causal language model, or a file of it is missing or torn.
        """
        config, path = read_config(folder), folder / "config.json"
        source = cls.open(folder, config, DecoderShape.read(config, path))
        wide = positive(config, "intermediate_size", path, source.checkpoint.shape(WIDE)[0])
        check_decoder(source.checkpoint, source.shape, config, wide, path)
        return source


def read_config(folder: Path) -> dict[str, Any]:
    """Read ``config.json`` of a transformers folder, in the layout of version 4.57."""
    config = read_model_config(
        folder,
        "a transformers folder with config.json, tokenizer.json and safetensors",
        small="int4",
    )
    return uniform_config(config, folder / "config.json")


def _present(folder: Path, names: Sequence[str]) -> list[Path]:
    return [folder / name for name in names if (folder / name).is_file()]


def _read_generation_config(folder: Path) -> dict[str, Any]:
    """Read ``generation_config.json``; empty if there is none."""
    path = folder / "generation_config.json"
    return read_object(path) if path.is_file() else {}


def check_architecture(config: dict[str, Any], allowed: dict[str, str], path: Path) -> str:
    """Return the architecture of a ``config.json``; `allowed` has the type of each architecture.

    Raises:
        UnsupportedError: another architecture, or a type that does not belong to it.
    """
    named = config.get("architectures")
    architecture = str(named[0]) if isinstance(named, list) and named else "none"
    if (architecture, config.get("model_type")) not in allowed.items():
        raise UnsupportedError(
            f"{path}: got architecture {architecture!r} of type {config.get('model_type')!r}, "
            f"expected one of {sorted(allowed)}; choose a model of these families"
        )
    return architecture


def positive(config: dict[str, Any], key: str, path: Path, default: int | None = None) -> int:
    """Return a setting that must be a positive integer; `default` replaces null as well."""
    value = config.get(key)
    value = default if value is None else value
    if type(value) is not int or not 1 <= value <= MOST_SETTING:
        raise GranAlignError(
            f"{path}: got {key} {short_repr(value)}, expected a positive integer of at most "
            f"{MOST_SETTING:,}"
        )
    return value


def number(config: dict[str, Any], key: str, path: Path, default: float) -> float:
    """Return a setting that must be a positive number."""
    value = config.get(key, default)
    if type(value) not in (int, float) or not 0 < value < math.inf:
        raise GranAlignError(f"{path}: got {key} {short_repr(value)}, expected a positive number")
    return float(value)


def _eos_ids(
    generation_config: dict[str, Any], config: dict[str, Any], folder: Path
) -> tuple[int, ...]:
    """Return the end-of-sequence ids.

    Generation settings take precedence: chat models add their end of a turn there.
    """
    ids = generation_config.get("eos_token_id")
    ids = config.get("eos_token_id") if ids is None else ids
    ids = [] if ids is None else ids if isinstance(ids, list) else [ids]
    if not all(type(value) is int and 0 <= value <= MOST_SETTING for value in ids):
        raise GranAlignError(f"{folder}: got eos_token_id {short_repr(ids)}, expected token ids")
    return tuple(ids)


def _frequencies(config: dict[str, Any], head_dim: int, path: Path) -> Float32:
    """Return the rotary frequencies (head_dim / 2,) in radians a token.

    The formulas are those of transformers' `modeling_rope_utils`.
    """
    base = number(config, "rope_theta", path, default=10000.0)
    exponents = np.arange(0, head_dim, 2, dtype=np.float32) / np.float32(head_dim)
    plain: Float32 = (1 / np.float32(base) ** exponents).astype(np.float32)
    scaling = config.get("rope_scaling") or {}
    try:
        kind = scaling.get("rope_type", scaling.get("type", "default"))
        if kind == "default":
            return plain
        factor = float(scaling["factor"])
        if kind == "dynamic":  # changes nothing up to the context, which an export never exceeds
            return plain
        if kind == "linear":
            return plain / np.float32(factor)
        if kind == "llama3":
            low, high = float(scaling["low_freq_factor"]), float(scaling["high_freq_factor"])
            turns = scaling["original_max_position_embeddings"] * plain / (2 * math.pi)
            # Divide the frequencies of slow pairs by the factor, keep those of quick pairs, and
            # blend between.
            share = np.clip((turns - low) / (high - low), 0, 1)
            return np.asarray((1 - share) * plain / factor + share * plain, np.float32)
    except (AttributeError, KeyError, TypeError, ValueError, ZeroDivisionError):
        raise GranAlignError(f"{path}: got rope_scaling {scaling!r}, which lacks values") from None
    raise UnsupportedError(
        f"{path}: got rope_scaling of type {kind!r}, expected 'default', 'linear', "
        f"'dynamic' or 'llama3'; choose a model with one of these"
    )
