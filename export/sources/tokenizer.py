"""The tokenizer of an encoder's folder, with the settings that transformers applies to it.

``tokenizer.json`` is only a part of a tokenizer: transformers changes it by the settings of
``tokenizer_config.json`` and, in older folders, by ``special_tokens_map.json`` and
``added_tokens.json``. The same is done here with the package `tokenizers` alone.
`checks.encoder_tokens` compares the result with transformers' own.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from granalign_fast.errors import GranAlignError

from .added_tokens import add_tokens, contents, read_optional, special_tokens
from .folder import read_tokenizer
from .vocabulary import build_tokenizer

_WORD_PIECE = {
    "unk_token": "[UNK]",
    "sep_token": "[SEP]",
    "pad_token": "[PAD]",
    "cls_token": "[CLS]",
    "mask_token": "[MASK]",
}
_SENTENCE_PIECE = {
    "bos_token": "<s>",
    "eos_token": "</s>",
    "unk_token": "<unk>",
    "sep_token": "</s>",
    "pad_token": "<pad>",
    "cls_token": "<s>",
    "mask_token": "<mask>",
}
_GEMMA = {
    "unk_token": "<unk>",
    "bos_token": "<bos>",
    "eos_token": "<eos>",
    "pad_token": "<pad>",
}

_SPECIAL: dict[str, dict[str, str]] = {
    "BertTokenizer": _WORD_PIECE,
    "DistilBertTokenizer": _WORD_PIECE,
    "ElectraTokenizer": _WORD_PIECE,
    "MPNetTokenizer": _SENTENCE_PIECE | {"unk_token": "[UNK]"},
    "RobertaTokenizer": _SENTENCE_PIECE,
    "XLMRobertaTokenizer": _SENTENCE_PIECE,
    "CamembertTokenizer": _SENTENCE_PIECE,
    "CLIPTokenizer": {
        "unk_token": "<|endoftext|>",
        "bos_token": "<|startoftext|>",
        "eos_token": "<|endoftext|>",
        "pad_token": "<|endoftext|>",
    },
    "SiglipTokenizer": {"eos_token": "</s>", "unk_token": "<unk>", "pad_token": "</s>"},
    "GemmaTokenizer": _GEMMA,
    "Siglip2Tokenizer": _GEMMA | {"mask_token": "<mask>"},
    "Qwen2Tokenizer": {
        "unk_token": "<|endoftext|>",
        "eos_token": "<|endoftext|>",
        "pad_token": "<|endoftext|>",
    },
}
"""Special tokens of transformers' tokenizer classes, where a folder names no others."""

_CLASSES = {
    "bert": "BertTokenizer",
    "camembert": "CamembertTokenizer",
    "clip": "CLIPTokenizer",
    "distilbert": "DistilBertTokenizer",
    "electra": "ElectraTokenizer",
    "gemma3_text": "GemmaTokenizer",
    "mpnet": "MPNetTokenizer",
    "qwen3": "Qwen2Tokenizer",
    "roberta": "RobertaTokenizer",
    "siglip": "SiglipTokenizer",
    "xlm-roberta": "XLMRobertaTokenizer",
}
"""transformers' tokenizer class of each ``model_type``, where a folder names none."""

_CASED_BY_SETTINGS = ("BertTokenizer", "DistilBertTokenizer", "ElectraTokenizer", "MPNetTokenizer")
"""Classes that replace the case, accents and Chinese characters of ``tokenizer.json``."""

ENDS_BY_SETTINGS = ("GemmaTokenizer",)
"""Classes that replace the tokens before and after a text of ``tokenizer.json``."""

PADDED_LEFT = ("GemmaTokenizer", "Siglip2Tokenizer")
"""Classes that put padding before a text, where a folder does not say."""

_NO_LIMIT = 10**20
"""transformers takes a `model_max_length` above this as none."""


@dataclass(frozen=True)
class SourceTokenizer:
    """A folder's tokenizer, without truncation and padding, and the settings around it.

    Attributes:
        tokenizer: a `tokenizers.Tokenizer`.
        max_tokens: length of the longest text that it states, special tokens included; None if it
            states none.
        truncation_side: ``"right"`` or ``"left"``, where a text that is too long is cut.
        padding_side: ``"right"`` or ``"left"``, where padding stands.
        pad_token: None if it has none.
        settings: of ``tokenizer_config.json``.
    """

    tokenizer: Any
    max_tokens: int | None
    truncation_side: str
    padding_side: str
    pad_token: str | None
    settings: Mapping[str, Any]

    @classmethod
    def read(
        cls,
        folder: Path,
        config: Mapping[str, Any],
        overrides: Mapping[str, Any] | None = None,
        *,
        as_saved: bool = False,
    ) -> SourceTokenizer:
        """Read a folder's tokenizer and apply its settings.

        Args:
            folder: the folder.
            config: its ``config.json``.
            overrides: settings that go before those of ``tokenizer_config.json``.
            as_saved: whether ``tokenizer.json`` is right by itself where there are no settings.
                Otherwise transformers' defaults replace its case.

        Raises:
            GranAlignError: the folder has no tokenizer, or that of another model, a file is
                damaged, or a setting cannot be applied.
        """
        settings = read_optional(folder / "tokenizer_config.json") | dict(overrides or {})
        kind = _class_name(settings, config)
        defaults = _SPECIAL.get(kind, {})
        # The tokens, then the steps from text to tokens.
        special = special_tokens(folder, settings, defaults)
        if (folder / "tokenizer.json").is_file():
            tokenizer = read_tokenizer(folder)
        else:
            tokenizer = build_tokenizer(folder, kind, settings, contents(special))
        words = (config.get("text_config") or config).get("vocab_size")
        _check(settings, folder)
        baked = tokenizer.truncation or {}, tokenizer.padding or {}
        tokenizer.no_truncation()
        tokenizer.no_padding()
        add_tokens(tokenizer, folder, settings, special, words)
        if settings or not as_saved:
            _apply_settings(tokenizer, kind, settings, contents(special), folder)
        # Lengths and sides.
        limit = settings.get("model_max_length", settings.get("max_len"))
        if limit is None and kind == "SiglipTokenizer":
            limit = 64
        usable = isinstance(limit, int | float) and 2 < limit <= _NO_LIMIT
        side = "left" if kind in PADDED_LEFT else "right"
        pad = contents(special).get("pad_token")
        return cls(
            tokenizer=tokenizer,
            max_tokens=int(limit) if usable and limit is not None else None,
            truncation_side=_side(settings, "truncation_side", baked[0], "right", folder),
            padding_side=_side(settings, "padding_side", baked[1], side, folder),
            pad_token=baked[1].get("pad_token") if pad is None else pad,
            settings=settings,
        )

    def fitted(self, max_tokens: int, *, padded: bool = False, lower: bool = False) -> str:
        """Return the tokenizer as JSON, with a length, and perhaps padding and lower case, in it.

        Args:
            max_tokens: length of the longest text, special tokens included.
            padded: whether every text is padded to that length.
            lower: whether texts are lower-cased first.

        Raises:
            GranAlignError: there is no padding token.
        """
        from tokenizers import Tokenizer

        tokenizer = Tokenizer.from_str(self.tokenizer.to_str())
        if lower:
            lower_case(tokenizer)
        tokenizer.no_padding()
        tokenizer.enable_truncation(max_tokens, direction=self.truncation_side)
        if padded:
            pad_id = None if self.pad_token is None else tokenizer.token_to_id(self.pad_token)
            if pad_id is None:
                raise GranAlignError(
                    f"tokenizer: got the padding token {self.pad_token!r}, expected one of the "
                    f"vocabulary; set pad_token in tokenizer_config.json"
                )
            tokenizer.enable_padding(
                direction=self.padding_side,
                length=max_tokens,
                pad_id=pad_id,
                pad_token=self.pad_token,
            )
        text: str = tokenizer.to_str()
        return text


def lower_case(tokenizer: Any) -> None:
    """Lower-case texts before the tokenizer's other steps, unless one of these does so."""
    from tokenizers import normalizers

    steps = tokenizer.normalizer
    if steps is not None and _lowers(json.loads(steps.__getstate__())):
        return
    rest = list(steps) if isinstance(steps, normalizers.Sequence) else [steps] if steps else []
    tokenizer.normalizer = normalizers.Sequence([normalizers.Lowercase(), *rest])


def _lowers(step: dict[str, Any]) -> bool:
    """Return whether a normalizer, or one in a sequence, is plain lower-casing."""
    inner = step.get("normalizers")
    if inner is not None:
        return any(_lowers(one) for one in inner)
    return step.get("type") == "Lowercase"


def _class_name(settings: Mapping[str, Any], config: Mapping[str, Any]) -> str:
    """Return transformers' name of the tokenizer class, without ``Fast``."""
    named = settings.get("tokenizer_class") or config.get("tokenizer_class")
    return str(named or _CLASSES.get(str(config.get("model_type")), "")).removesuffix("Fast")


def _side(
    settings: Mapping[str, Any], key: str, baked: dict[str, Any], default: str, folder: Path
) -> str:
    """Return a side; settings go before what ``tokenizer.json`` says."""
    side = settings.get(key) or baked.get("direction") or default
    if side not in ("left", "right"):
        raise GranAlignError(f"{folder}: got {key} {side!r}, expected 'right' or 'left'")
    return str(side)


def _check(settings: Mapping[str, Any], folder: Path) -> None:
    """Raise for settings that ``tokenizer.json`` cannot hold."""
    if settings.get("split_special_tokens"):
        raise GranAlignError(
            f"{folder / 'tokenizer_config.json'}: got split_special_tokens true, expected false; "
            f"set it to false, or choose a model without it"
        )


# The steps from text to tokens.


def _apply_settings(
    tokenizer: Any, kind: str, settings: Mapping[str, Any], special: Mapping[str, str], folder: Path
) -> None:
    """Replace what transformers' class replaces in ``tokenizer.json``."""
    from tokenizers import normalizers, pre_tokenizers

    # Case, accents and Chinese characters.
    if kind in _CASED_BY_SETTINGS and tokenizer.normalizer is not None:
        wanted = {
            "lowercase": settings.get("do_lower_case", True),
            "strip_accents": settings.get("strip_accents"),
            "handle_chinese_chars": settings.get("tokenize_chinese_chars", True),
        }
        if kind == "MPNetTokenizer":
            del wanted["handle_chinese_chars"]
        tokenizer.normalizer = _changed(tokenizer.normalizer, normalizers, wanted, folder)
    # A space before the first word.
    if tokenizer.pre_tokenizer is not None:
        space = {"add_prefix_space": settings.get("add_prefix_space", False)}
        tokenizer.pre_tokenizer = _changed(tokenizer.pre_tokenizer, pre_tokenizers, space, folder)
    # Tokens before and after a text. transformers 5 keeps those of tokenizer.json.
    if kind in ENDS_BY_SETTINGS and settings.get("backend") != "tokenizers":
        _set_ends(tokenizer, settings, special, folder)


def _changed(step: Any, module: Any, wanted: dict[str, Any], folder: Path) -> Any:
    """Return a step with the settings that it has set to the wanted values."""
    state = json.loads(step.__getstate__())
    if all(state.get(key, value) == value for key, value in wanted.items()):
        return step
    try:
        return getattr(module, state.pop("type"))(**state | wanted)
    except TypeError as error:
        raise GranAlignError(
            f"{folder / 'tokenizer_config.json'}: got {wanted}, which cannot be applied "
            f"({error}); save the tokenizer again"
        ) from None


def _set_ends(
    tokenizer: Any, settings: Mapping[str, Any], special: Mapping[str, str], folder: Path
) -> None:
    """Let the settings say which tokens stand before and after a text."""
    from tokenizers import processors

    flags = (
        settings.get("add_bos_token", True) and "bos_token",
        settings.get("add_eos_token", False) and "eos_token",
    )
    ends = [[special.get(name, name)] if name else [] for name in flags]
    ids = {token: tokenizer.token_to_id(token) for token in (*ends[0], *ends[1])}
    if None in ids.values():
        raise GranAlignError(
            f"{folder / 'tokenizer_config.json'}: got the tokens {sorted(ids)} around a text, "
            f"expected tokens of the vocabulary; copy it again"
        )
    tokenizer.post_processor = processors.TemplateProcessing(
        single=[*ends[0], "$A", *ends[1]], special_tokens=list(ids.items())
    )
