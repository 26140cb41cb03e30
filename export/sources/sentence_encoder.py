"""Settings of a sentence-transformers folder, read and checked."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from granalign_fast.errors import GranAlignError
from granalign_fast.export.specs import MODEL_TYPES, POOLINGS
from granalign_fast.files import read_json, sha256_of
from granalign_fast.models.sources import weights_file

from .folder import read_object, read_tokenizer


@dataclass(frozen=True)
class SentenceModel:
    """A sentence-transformers folder: its settings, tokenizer and weights.

    Attributes:
        folder: the folder.
        config: its ``config.json``.
        weights: file of the weights.
        weights_sha256: of that file.
        tokenizer_json: the tokenizer, with the model's length and case in it.
        max_tokens: length of the longest text, special tokens included.
        pooling: ``"mean"`` or ``"cls"``.
        normalise: whether embeddings get unit length.
        sha256: covers everything that shapes an embedding: weights, tokenizer and settings.
    """

    folder: Path
    config: dict[str, Any]
    weights: Path
    weights_sha256: str
    tokenizer_json: str
    max_tokens: int
    pooling: str
    normalise: bool
    sha256: str

    @classmethod
    def read(cls, folder: Path) -> SentenceModel:
        """Read a folder's settings and hash its weights.

        Raises:
            GranAlignError: the folder is no sentence-transformers text encoder that can be
                exported.
        """
        # Architecture and the steps after the model.
        config = _read_config(folder)
        modules = _read_modules(folder, config)
        # Weights, pooling and tokenizer.
        weights = weights_file(folder)
        weights_sha256 = sha256_of(weights)
        pooling = _read_pooling(folder / modules["Pooling"])
        settings = read_object(folder / "sentence_bert_config.json")
        max_tokens = _max_tokens(folder, config, settings)
        lower = settings.get("do_lower_case") is True
        tokenizer_json = _prepare_tokenizer(folder, max_tokens, lower=lower)
        # The hash of all that shapes an embedding.
        parts = json.dumps(
            [weights_sha256, tokenizer_json, config, max_tokens, pooling, sorted(modules)],
            sort_keys=True,
        )
        return cls(
            folder=folder,
            config=config,
            weights=weights,
            weights_sha256=weights_sha256,
            tokenizer_json=tokenizer_json,
            max_tokens=max_tokens,
            pooling=pooling,
            normalise="Normalize" in modules,
            sha256=hashlib.sha256(parts.encode()).hexdigest(),
        )

    @property
    def is_plain_bert(self) -> bool:
        """Whether our own BERT graph fits; optimum exports the others."""
        return (
            self.config.get("model_type") == "bert"
            and self.config.get("hidden_act") == "gelu"
            and self.config.get("position_embedding_type", "absolute") == "absolute"
        )

    def tokenise(self, texts: Sequence[str]) -> list[list[int]]:
        """Return the token ids of each text, truncated to the model's length."""
        from tokenizers import Tokenizer

        tokenizer = Tokenizer.from_str(self.tokenizer_json)
        return [encoding.ids for encoding in tokenizer.encode_batch(list(texts))]


def _read_config(folder: Path) -> dict[str, Any]:
    """Read ``config.json``."""
    if not (folder / "config.json").is_file():
        raise GranAlignError(
            f"{folder}: no config.json; expected a sentence-transformers folder with config.json, "
            f"modules.json and model.safetensors"
        )
    return read_object(folder / "config.json")


def _read_modules(folder: Path, config: dict[str, Any]) -> dict[str, str]:
    """Return the model's modules: class names in their order, with the sub-folder of each."""
    kind = config.get("model_type")
    path = folder / "modules.json"
    if not path.is_file() or kind not in MODEL_TYPES:
        raise GranAlignError(
            f"{folder}: got a {kind!r} model{'' if path.is_file() else ' without modules.json'}, "
            f"expected a sentence-transformers text encoder of {sorted(MODEL_TYPES)}"
        )
    modules = read_json(path)
    try:
        steps = {module["type"].rpartition(".")[2]: str(module["path"]) for module in modules}
    except (TypeError, KeyError, AttributeError):
        raise GranAlignError(f"{path}: expected a list of modules with type and path") from None
    if list(steps) not in (["Transformer", "Pooling"], ["Transformer", "Pooling", "Normalize"]):
        raise GranAlignError(
            f"{path}: got the modules {list(steps)}, expected Transformer, Pooling and perhaps "
            f"Normalize; choose a model without further layers"
        )
    return steps


def _read_pooling(folder: Path) -> str:
    """Return our name of the pooling, from the pooling module's ``config.json``."""
    flags = read_object(folder / "config.json")
    chosen = [key for key, value in flags.items() if key.startswith("pooling_mode") and value]
    if len(chosen) != 1 or chosen[0] not in POOLINGS:
        raise GranAlignError(
            f"{folder}: got pooling {chosen}, expected one of {sorted(POOLINGS)}; choose a model "
            f"that pools so"
        )
    return POOLINGS[chosen[0]]


def _max_tokens(folder: Path, config: dict[str, Any], settings: dict[str, Any]) -> int:
    """Return the lesser of the configured length and the number of usable positions."""
    positions = config.get("max_position_embeddings")
    if isinstance(positions, int):
        positions -= MODEL_TYPES[config["model_type"]]
    known = [n for n in (settings.get("max_seq_length"), positions) if isinstance(n, int) and n > 2]
    if not known:
        raise GranAlignError(f"{folder}: no max_seq_length in sentence_bert_config.json")
    return min(known)


def _prepare_tokenizer(folder: Path, max_tokens: int, *, lower: bool) -> str:
    """Return the tokenizer as JSON, with the model's length and case in it, without padding."""
    from tokenizers import normalizers

    tokenizer = read_tokenizer(folder)
    if lower:
        steps = [normalizers.Lowercase(), tokenizer.normalizer]
        tokenizer.normalizer = normalizers.Sequence([step for step in steps if step])
    tokenizer.no_padding()
    tokenizer.enable_truncation(max_tokens)
    text: str = tokenizer.to_str()
    return text
