"""Token ids of an encoder's texts, compared with transformers' tokenizer of the same folder.

`differences` needs nothing else; `TokenJudge` needs transformers. Where that is not installed,
nothing is compared, and the tokenizer is what `sources.tokenizer` makes of the folder.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from granalign_fast.errors import GranAlignError, one_line
from granalign_fast.export.sources.clip import ClipSource
from granalign_fast.export.sources.folder import quiet, read_object
from granalign_fast.export.sources.sentence_encoder import SentenceModel
from granalign_fast.export.sources.tokenizer import (
    ENDS_BY_SETTINGS,
    PADDED_LEFT,
    SourceTokenizer,
    lower_case,
)
from granalign_fast.export.specs import CLIP_FAMILIES
from granalign_fast.reading import checked_file

from .sentences import VALIDATION

_LONG = "The first words matter most, then the rest, until the very last word of all: zebra. "

HARD_TEXTS: tuple[str, ...] = (
    "",
    " ",
    "\t\n\r",
    "\u00a0\u200b\ufeff",
    ".",
    "a",
    "A man opens THE Door",
    "McDonald's iPhone CamelCase snake_case kebab-case",
    "  leading,   double  and trailing   ",
    "tab\tnew\nline\r\nand\x0bfeed\x0c",
    "\x00null\x01control\x7f\x85",
    "café crème naïve Ångström ñandú Đuro Łódź",
    "cafe\u0301 nai\u0308ve A\u030angstro\u0308m o\u0323\u0302",
    "İstanbul ISPARTA ırmak ß ẞ ΟΔΟΣ ǅ",
    "ﬁne ﬂow ＡＢＣ １２３ ½ Ⅷ ™ ℃ ㎏",
    "東京タワーの前で写真を撮る二人。",
    "我在 Beijing 看到了 3 只 panda!",
    "한국 음식은 맛있다 한국",
    "Два человека играют в ШАХМАТЫ",
    "رَجُلٌ يقود سيارة ١٢٣",
    "นักเรียนอ่านหนังสือ हिन्दी में लिखा",
    "🎉 👩‍👩‍👧‍👦 🇩🇪 👍🏽 ❤️ ☕️",
    "“quoted” ‘text’ … – — ‐ ‑ − ′ «x»",
    "don't can't I'll we've they're it's 'tis",
    "1,299.99 3/14/2021 10:45 -7°C +49 (0)30 1e-5",
    "https://example.org/a_b?c=1&d=%20#e user@example.org",
    "x = {'a': [1, 2]}; if (x != y) { return; } // <b>&amp;</b>",
    "[CLS] a [SEP] b [MASK] [UNK] [PAD] [unused1]",
    "<s> a </s> b <mask> <unk> <pad> <bos> <eos>",
    "<|startoftext|> a <|endoftext|> b <|im_start|>user<|im_end|>",
    "##a ## ▁a ▁ Ġa a</w>",
    "pneumonoultramicroscopicsilicovolcanoconiosis" * 4,
    "aaaaaaaaaa" * 30,
    "!?" * 40,
    _LONG * 3,
    "start of a long text " + _LONG * 60 + "end of a long text",
)
"""Texts on which tokenizers differ: case, accents, scripts, emoji, combining marks, white space,
lengths, and special tokens spelled out."""

_SPELLED = 40
"""How many of a tokenizer's own added tokens are spelled out as well."""


def differences(
    texts: Sequence[str],
    got: Sequence[Sequence[int]],
    expected: Sequence[Sequence[int]],
    words: int | None,
) -> list[str]:
    """Compare token ids, and return one line for each text that differs.

    Args:
        texts: the texts.
        got: ids of each text.
        expected: ids of each text.
        words: size of the model's vocabulary. The source model cannot embed a text whose expected
            ids are beyond it, so such a text is left out.
    """
    lines = []
    for text, ours, theirs in zip(texts, got, expected, strict=True):
        ours, theirs = list(ours), list(theirs)
        if ours == theirs or (words is not None and max(theirs, default=0) >= words):
            continue
        at = next((i for i, (a, b) in enumerate(zip(ours, theirs, strict=False)) if a != b), None)
        where = f"{len(ours)} ids for {len(theirs)}" if at is None else f"id {at} of {len(theirs)}"
        lines.append(f"{text[:40]!r} ({where})")
    return lines


@dataclass(frozen=True)
class TokenJudge:
    """transformers' tokenizer of a folder.

    Attributes:
        tokenizer: transformers' tokenizer, slow or fast.
        words: size of the model's vocabulary; None if the settings do not say.
    """

    tokenizer: Any
    words: int | None

    @classmethod
    def load(cls, folder: Path, words: int | None, **settings: Any) -> TokenJudge | None:
        """Load the tokenizer; None if transformers is not installed.

        Args:
            folder: of the model.
            words: size of its vocabulary.
            settings: that go before those of the folder.

        Raises:
            GranAlignError: transformers cannot load it.
        """
        try:
            import transformers
        except ImportError:
            return None
        auto = transformers.AutoTokenizer.from_pretrained
        path = folder / "tokenizer_config.json"
        saved = read_object(path) if path.is_file() else {}
        old = int(transformers.__version__.partition(".")[0]) < 5
        with quiet():
            try:
                # Version 4.57 would not complain of the layout of version 5, and read it wrongly.
                if old and saved.get("backend") == "tokenizers":
                    with _older_layout(folder, saved) as older:
                        loaded = auto(older, local_files_only=True, **settings)
                else:
                    loaded = auto(folder, local_files_only=True, **settings)
            except Exception as error:  # a damaged or foreign file can raise anything
                raise GranAlignError(
                    f"{folder}: transformers {transformers.__version__} cannot load the "
                    f"tokenizer ({one_line(error)}); copy or download the model again"
                ) from None
        return cls(loaded, words)

    def texts(self) -> tuple[str, ...]:
        """Return the hard texts, and some with the tokenizer's own added tokens spelled out.

        A slow tokenizer, such as that of the first SigLIP, has no equal in ``tokenizer.json`` for
        empty texts and spelled tokens: there it is ordinary sentences.
        """
        if not self.tokenizer.is_fast:
            return VALIDATION
        added = [str(token) for token in self.tokenizer.added_tokens_decoder.values()]
        return *HARD_TEXTS, *(f"a {token} b{token}" for token in added[:_SPELLED])

    def lower_case(self) -> None:
        """Let the tokenizer lower-case its texts, as sentence-transformers and SigLIP 2 do."""
        if self.tokenizer.is_fast:
            lower_case(self.tokenizer.backend_tokenizer)

    def ids(self, texts: Iterable[str], max_tokens: int, *, padded: bool = False) -> Any:
        """Return the ids of each text."""
        with quiet():
            return self.tokenizer(
                list(texts),
                truncation=True,
                max_length=max_tokens,
                padding="max_length" if padded else False,
            )["input_ids"]

    def source(self, own: SourceTokenizer) -> SourceTokenizer | None:
        """Return transformers' tokenizer in the place of our own; None if it is a slow one."""
        if not self.tokenizer.is_fast:
            return None
        from tokenizers import Tokenizer

        tokenizer = Tokenizer.from_str(self.tokenizer.backend_tokenizer.to_str())
        return replace(
            own,
            tokenizer=tokenizer,
            truncation_side=self.tokenizer.truncation_side,
            padding_side=self.tokenizer.padding_side,
            pad_token=self.tokenizer.pad_token,
        )


@contextmanager
def _older_layout(folder: Path, saved: dict[str, Any]) -> Iterator[Path]:
    """Yield a folder with the tokenizer's files, in a layout that transformers 4.57 reads.

    Version 5 has classes that 4.57 lacks, and others that 4.57 completes by other defaults. The
    file ``tokenizer.json`` that it writes is whole, so the plain class reads that.
    """
    import transformers

    known = dict(saved)
    kind = str(known.get("tokenizer_class"))
    if kind in ENDS_BY_SETTINGS or not hasattr(transformers, f"{kind}Fast"):
        known["tokenizer_class"] = "PreTrainedTokenizerFast"
        if kind in PADDED_LEFT:
            known.setdefault("padding_side", "left")
    extra = known.get("extra_special_tokens")
    if isinstance(extra, list):
        known["additional_special_tokens"] = known.pop("extra_special_tokens")
    with TemporaryDirectory() as temporary:
        for file in folder.iterdir():
            if file.is_file() and file.suffix in (".json", ".txt", ".model"):
                shutil.copy(checked_file(file), temporary)
        (Path(temporary) / "tokenizer_config.json").write_text(json.dumps(known), encoding="utf-8")
        yield Path(temporary)


def check_sentence_tokens(model: SentenceModel) -> SentenceModel:
    """Compare a sentence encoder's token ids with transformers'.

    Returns:
        The model, with transformers' own tokenizer if that differs from the folder's; the same
        model if transformers is not installed.

    Raises:
        GranAlignError: the ids still differ, or transformers cannot load the tokenizer.
    """
    words = model.config.get("vocab_size")
    judge = TokenJudge.load(model.weights.parent, words, **model.overrides)
    if judge is None:
        return model
    if model.lower:
        judge.lower_case()
    # The length as sentence-transformers finds it.
    limit = judge.tokenizer.model_max_length
    if model.max_seq_length is not None and "model_max_length" not in model.overrides:
        limit = model.max_seq_length
    limit = min(limit, model.positions or limit)
    texts = [model.prompt + text for text in judge.texts()]
    expected = judge.ids(texts, limit)
    plain = judge.texts()

    def compare(candidate: SentenceModel) -> list[str]:
        return differences(texts, candidate.tokenise(plain), expected, words)

    if not compare(model):
        return model
    theirs = judge.source(model.tokenizer)
    mended = model if theirs is None else model.with_tokenizer(theirs)
    _raise_differences(model.weights.parent, compare(mended))
    return mended


def check_frame_tokens(model: ClipSource) -> ClipSource:
    """Compare the token ids of a frame encoder's texts with transformers'.

    SigLIP's texts are lower-cased for transformers too, which leaves that to the caller.

    Returns:
        The model, with transformers' own tokenizer if that differs from the folder's; the same
        model if transformers is not installed.

    Raises:
        GranAlignError: the ids still differ, or transformers cannot load the tokenizer.
    """
    words = (model.config.get("text_config") or {}).get("vocab_size")
    judge = TokenJudge.load(model.folder, words)
    if judge is None:
        return model
    if model.lower:
        judge.lower_case()
    limit = min(model.max_tokens, judge.tokenizer.model_max_length)
    texts = list(judge.texts())
    expected = judge.ids(texts, limit, padded=CLIP_FAMILIES[model.family].padded)

    def compare(candidate: ClipSource) -> list[str]:
        return differences(texts, candidate.tokenise(texts), expected, words)

    if not compare(model):
        return model
    theirs = judge.source(model.tokenizer)
    mended = model if theirs is None else model.with_tokenizer(theirs)
    _raise_differences(model.folder, compare(mended))
    return mended


def _raise_differences(folder: Path, lines: Sequence[str]) -> None:
    """Raise `GranAlignError` if there are texts whose token ids differ from transformers'."""
    if lines:
        raise GranAlignError(
            f"{folder}: the token ids of {len(lines)} texts differ from transformers', such as "
            f"{'; '.join(lines[:3])}; save the tokenizer again with transformers, or report this "
            f"model"
        )
