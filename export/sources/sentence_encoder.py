"""Settings of a sentence-transformers folder, read and checked."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from granalign_fast.errors import GranAlignError
from granalign_fast.export.specs import HEADED_TYPES, MODEL_TYPES, MOST_TOKENS, POOLINGS
from granalign_fast.files import read_json
from granalign_fast.models.sources import hash_weights, weights_files

from .encoders.encoder import HeadLayer
from .folder import read_model_config, read_object
from .sentence_head import head_files, read_head
from .tokenizer import SourceTokenizer, lower_case

_EXPECTED = "a sentence-transformers folder with config.json, modules.json and model.safetensors"

_SETTINGS = (
    "sentence_bert_config.json",
    "sentence_roberta_config.json",
    "sentence_distilbert_config.json",
    "sentence_camembert_config.json",
    "sentence_albert_config.json",
    "sentence_xlm-roberta_config.json",
    "sentence_xlnet_config.json",
)
"""Names of the file with the settings of the module `Transformer`; the first one counts."""

_HEAD = "Dense"
"""The module that is a layer on pooled embeddings."""

_STEPS = (["Transformer", "Pooling"], ["Transformer", "Pooling", "Normalize"])
"""Modules of the models that can be exported, without layers between the last two. `Dropout`
changes nothing but training."""


@dataclass(frozen=True)
class SentenceModel:
    """A sentence-transformers folder: its settings, tokenizer and weights.

    Attributes:
        folder: the folder.
        config: its ``config.json``.
        weights: file of the weights, or the first of several. Its folder, which is `folder` or a
            sub-folder of it, holds ``config.json`` and the tokenizer too.
        weights_sha256: of all files of the weights.
        tokenizer: the tokenizer, with the model's case in it.
        overrides: settings of the tokenizer that the module `Transformer` sets.
        max_tokens: length of the longest text, special tokens included.
        prompt: put before every text that is searched; often empty.
        query_prompt: put before a query; often the same.
        pooling: ``"mean"``, ``"cls"`` or ``"last"``.
        modules: names of the steps, sorted.
        head_folders: of the modules `Dense`, in their order; most models have none.
        lower: whether the module `Transformer` lower-cases texts.
        max_seq_length: the length that the module `Transformer` sets; None if it sets none.
    """

    folder: Path
    config: dict[str, Any]
    weights: Path
    weights_sha256: str
    tokenizer: SourceTokenizer
    overrides: dict[str, Any]
    max_tokens: int
    prompt: str
    query_prompt: str
    pooling: str
    modules: tuple[str, ...]
    head_folders: tuple[Path, ...]
    lower: bool
    max_seq_length: int | None

    @classmethod
    def read(cls, folder: Path) -> SentenceModel:
        """Read a folder's settings and hash its weights.

        Raises:
            GranAlignError: the folder is no sentence-transformers text encoder that can be
                exported.
        """
        # Architecture and the steps after the model.
        modules = _read_modules(folder)
        inner = _inside(folder, modules.get("Transformer", ""))
        config = read_model_config(inner, _EXPECTED, small="int8")
        _check_modules(folder, modules, config)
        # Weights, pooling and prompt.
        weights = weights_files(inner)
        weights_sha256 = hash_weights(weights)
        query_prompt, prompt = _read_prompts(folder)
        pooling = _read_pooling(_inside(folder, modules["Pooling"]), query_prompt or prompt)
        # The tokenizer, with length and case.
        settings = _read_settings(inner)
        overrides = _overrides(settings, inner)
        lower = settings.get("do_lower_case")
        tokenizer = SourceTokenizer.read(inner, config, overrides, as_saved=lower is False)
        if lower is True:
            lower_case(tokenizer.tokenizer)
        stated = settings.get("max_seq_length")
        stated = stated if isinstance(stated, int) and stated > 2 else None
        if stated is None or "model_max_length" in overrides:
            stated = tokenizer.max_tokens
        return cls(
            folder=folder,
            config=config,
            weights=weights[0],
            weights_sha256=weights_sha256,
            tokenizer=tokenizer,
            overrides=overrides,
            max_tokens=_max_tokens(folder, _positions(config), stated),
            prompt=prompt,
            query_prompt=query_prompt,
            pooling=pooling,
            modules=tuple(sorted(modules)),
            head_folders=tuple(
                _inside(folder, path) for name, path in modules.items() if name in _heads(modules)
            ),
            lower=lower is True,
            max_seq_length=settings.get("max_seq_length"),
        )

    def with_tokenizer(self, tokenizer: SourceTokenizer) -> SentenceModel:
        """Return the model with another tokenizer."""
        return replace(self, tokenizer=tokenizer)

    @cached_property
    def tokenizer_json(self) -> str:
        """The tokenizer, with the model's length and case in it."""
        return self.tokenizer.fitted(self.max_tokens)

    @property
    def positions(self) -> int | None:
        """How many tokens the model has positions for; None if the settings do not say."""
        return _positions(self.config)

    @property
    def normalise(self) -> bool:
        """Whether embeddings get unit length."""
        return "Normalize" in self.modules

    @property
    def sha256(self) -> str:
        """Hash of everything that shapes an embedding: weights, tokenizer and settings."""
        parts = [
            self.weights_sha256,
            self.tokenizer_json,
            self.config,
            self.max_tokens,
            self.pooling,
            self.modules,
            *([self.prompt] if self.prompt else []),
            *([{"query": self.query_prompt}] if self.query_prompt != self.prompt else []),
            *([hash_weights(head_files(self.head_folders))] if self.head_folders else []),
        ]
        return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()

    def head(self, width: int) -> tuple[HeadLayer, ...]:
        """Read the layers on pooled embeddings; arguments and errors as of `read_head`."""
        return read_head(self.head_folders, width)

    def tokenise(self, texts: Sequence[str], prompt: str | None = None) -> list[list[int]]:
        """Return the token ids of each text behind a prompt, cut to the model's length.

        Args:
            texts: the texts.
            prompt: put before each; None for the model's `prompt`.
        """
        from tokenizers import Tokenizer

        tokenizer = Tokenizer.from_str(self.tokenizer_json)
        prompted = [(self.prompt if prompt is None else prompt) + text for text in texts]
        return [encoding.ids for encoding in tokenizer.encode_batch(prompted)]


def _inside(folder: Path, name: str) -> Path:
    """Return the sub-folder of a module."""
    path = folder / name
    if ".." in Path(name).parts or Path(name).is_absolute():
        raise GranAlignError(
            f"{folder / 'modules.json'}: got the path {name!r}, expected one inside the folder; "
            f"copy or download the model again"
        )
    return path


def _read_modules(folder: Path) -> dict[str, str]:
    """Return the model's modules: class names in their order, with the sub-folder of each.

    Empty if there is no ``modules.json``.
    """
    path = folder / "modules.json"
    if not path.is_file():
        return {}
    modules = read_json(path)
    try:
        types = [str(module["type"]) for module in modules]
        paths = [str(module["path"]) for module in modules]
    except (TypeError, KeyError, AttributeError):
        raise GranAlignError(f"{path}: expected a list of modules with type and path") from None
    # A class of another package is code in the folder, which is never run.
    if foreign := [kind for kind in types if kind.partition(".")[0] != "sentence_transformers"]:
        raise GranAlignError(
            f"{path}: got the module {foreign[0]!r}, which is code of its own, expected modules of "
            f"sentence_transformers; choose a model without its own code"
        )
    # Versions since 5.4 name the file as well: sentence_transformers.(...).pooling.Pooling.
    names = [kind.rpartition(".")[2] for kind in types]
    plain = [name for name in names if name != _HEAD]
    if len(set(plain)) != len(plain):
        raise GranAlignError(
            f"{path}: got the modules {names}, expected each once, other than {_HEAD}; choose "
            f"another model"
        )
    # Layers after the pooling may stand several times.
    names = [f"{name} {i}" if name == _HEAD else name for i, name in enumerate(names)]
    return {name: at for name, at in zip(names, paths, strict=True) if name != "Dropout"}


def _check_modules(folder: Path, modules: dict[str, str], config: dict[str, Any]) -> None:
    """Raise unless these are the steps of a text encoder that can be exported."""
    path, kind = folder / "modules.json", config.get("model_type")
    if not modules or kind not in MODEL_TYPES:
        raise GranAlignError(
            f"{folder}: got a {kind!r} model{'' if modules else ' without modules.json'}, "
            f"expected a sentence-transformers text encoder of {sorted(MODEL_TYPES)}"
        )
    heads = _heads(modules) if kind in HEADED_TYPES else []
    between = [*modules][2 : 2 + len(heads)] == heads
    if [name for name in modules if name not in heads] not in _STEPS or not between:
        raise GranAlignError(
            f"{path}: got the modules {[name.partition(' ')[0] for name in modules]}, expected "
            f"Transformer, Pooling and perhaps Normalize; choose a model without further layers"
        )


def _heads(modules: dict[str, str]) -> list[str]:
    """Return the names of the layers on pooled embeddings, in their order."""
    return [name for name in modules if name.partition(" ")[0] == _HEAD]


def _read_pooling(folder: Path, prompt: str) -> str:
    """Return our name of the pooling, from the pooling module's ``config.json``."""
    settings = read_object(folder / "config.json")
    # Versions since 5.4 have one name, or several; older ones have a flag for each.
    chosen = settings.get("pooling_mode")
    if chosen is None:
        flags = [key for key, value in settings.items() if key.startswith("pooling_mode_")]
        chosen = [key for key in flags if settings[key] is True] or ["mean"]
    names = chosen if isinstance(chosen, list) else [chosen]
    if len(names) != 1 or names[0] not in POOLINGS:
        raise GranAlignError(
            f"{folder}: got pooling {names}, expected one of {sorted(set(POOLINGS.values()))}; "
            f"choose a model that pools so"
        )
    if settings.get("include_prompt", True) is False and prompt:
        raise GranAlignError(
            f"{folder}: got include_prompt false with the prompt {prompt!r}, expected pooling over "
            f"all tokens; set default_prompt_name to null, or choose a model that pools so"
        )
    return POOLINGS[names[0]]


def _read_prompts(folder: Path) -> tuple[str, str]:
    """Return what stands before a query and before a text that is searched; both may be empty.

    They are the prompts of sentence-transformers' `encode_query` and `encode_document`. A default
    prompt stands before both, as in its `encode`.
    """
    path = folder / "config_sentence_transformers.json"
    settings = read_object(path) if path.is_file() else {}
    if settings.get("truncate_dim") is not None:
        raise GranAlignError(
            f"{path}: got truncate_dim {settings['truncate_dim']!r}, expected whole embeddings; "
            f"set truncate_dim to null"
        )
    name, prompts = settings.get("default_prompt_name"), settings.get("prompts") or {}
    prompts = prompts if isinstance(prompts, dict) else {}
    known = {"query": None, "document": None} | prompts
    default = None if name is None else known.get(name, 0)
    if not isinstance(default, str | None):
        raise GranAlignError(
            f"{path}: got default_prompt_name {name!r} of the prompts {sorted(known)}, expected "
            f"one of them, with a text; set it to null, or add the prompt"
        )
    if name is not None:
        return default or "", default or ""
    document = next((known[one] for one in _DOCUMENTS if known.get(one) is not None), None)
    both = {"query": known["query"], "document": document}
    for role, prompt in both.items():
        if not isinstance(prompt, str | None):
            raise GranAlignError(
                f"{path}: got the prompt {prompt!r} for a {role}, expected a text; correct it"
            )
    return both["query"] or "", document or ""


_DOCUMENTS = ("document", "passage", "corpus")
"""Names of the prompt of texts that are searched; the first that a folder has counts."""


def _read_settings(folder: Path) -> dict[str, Any]:
    """Return the settings of the module `Transformer`; empty if there are none.

    Raises:
        GranAlignError: a setting of later versions asks for another output, or another input.
    """
    found = [folder / name for name in _SETTINGS if (folder / name).is_file()]
    if not found:
        return {}
    settings = read_object(found[0])
    task = settings.get("transformer_task", "feature-extraction")
    text = (settings.get("modality_config") or {}).get("text") or {}
    wanted = {"method": "forward", "method_output_name": "last_hidden_state"}
    if task != "feature-extraction" or any(text.get(k, v) != v for k, v in wanted.items()):
        raise GranAlignError(
            f"{found[0]}: got the task {task!r} and the output {text}, expected "
            f"'feature-extraction' and the last hidden states; choose another model"
        )
    if steps := settings.get("processing_kwargs"):
        raise GranAlignError(
            f"{found[0]}: got processing_kwargs {steps}, expected none; choose another model"
        )
    return settings


def _overrides(settings: dict[str, Any], folder: Path) -> dict[str, Any]:
    """Return the tokenizer's settings that the module `Transformer` sets."""
    overrides: dict[str, Any] = {}
    for key in ("tokenizer_args", "processor_kwargs"):
        overrides |= settings.get(key) or {}
    for key in ("trust_remote_code", "use_fast"):
        overrides.pop(key, None)
    return overrides


def _positions(config: dict[str, Any]) -> int | None:
    """Return the number of usable positions, `MOST_TOKENS` at most; None if there is no number."""
    positions = config.get("max_position_embeddings")
    if not isinstance(positions, int):
        return None
    return min(positions - MODEL_TYPES[config["model_type"]], MOST_TOKENS)


def _max_tokens(folder: Path, positions: int | None, stated: int | None) -> int:
    """Return the lesser of the stated length and the number of usable positions."""
    known = [n for n in (stated, positions) if isinstance(n, int) and n > 2]
    if not known:
        raise GranAlignError(f"{folder}: no max_seq_length in sentence_bert_config.json")
    return min(known)
