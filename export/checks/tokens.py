"""The check of a source's tokenizer, before any weight is read.

Every exporter calls it at the same place. What it can tell without transformers is here; modules
that compare with transformers' own tokenizer are called from the same place.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from granalign_fast.errors import GranAlignError

from .sentences import VALIDATION

Tokenise = Callable[[Sequence[str]], list[list[int]]]
"""From texts to the token ids that the export will feed to its graphs."""


def check_token_ids(
    folder: Path, tokenise: Tokenise, vocabulary: int, longest: int | None = None
) -> None:
    """Raise unless the tokenizer gives ids that the model knows, and texts of the model's length.

    Args:
        folder: the source, for messages.
        tokenise: the export's tokenizer.
        vocabulary: rows of the model's embedding table.
        longest: the greatest number of tokens of a text; None if the tokenizer cuts nothing off.

    Raises:
        GranAlignError: an id has no row in the table, or a text is too long, or has no token.
    """
    for text, ids in zip(VALIDATION, tokenise(VALIDATION), strict=True):
        if not ids or max(ids) >= vocabulary:
            got = f"the token id {max(ids)}" if ids else "no token"
            raise GranAlignError(
                f"{folder / 'tokenizer.json'}: got {got} for {text[:40]!r}, expected ids of 0 to "
                f"{vocabulary - 1}, as config.json says; copy or download the model again"
            )
        if longest is not None and len(ids) > longest:
            raise GranAlignError(
                f"{folder / 'tokenizer.json'}: got {len(ids)} tokens for {text[:40]!r}, expected "
                f"at most {longest}, the model's length; report this model"
            )


def plain(tokenizer: Any) -> Tokenise:
    """Return the token ids that a `tokenizers.Tokenizer` gives."""
    return lambda texts: [encoding.ids for encoding in tokenizer.encode_batch(list(texts))]
