"""Token ids in, greedy token ids out: a language model on ONNX Runtime, without torch.

The beginning that prompts share is computed once and kept as a `Prefix`; each call pays only for
what follows it.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from .chat import ChatTokenizer, Message
from .errors import GranAlignError
from .models import Manifest, fingerprint
from .session import Device, Session

Cache = tuple[npt.NDArray[Any], ...]
"""Keys and values of every layer in turn, each (rows, kv_heads, tokens, head_dim)."""
Ids = npt.NDArray[np.int64]


@dataclass(frozen=True, kw_only=True)
class LlmManifest(Manifest):
    """The manifest of an exported language model; `source_sha256` covers its tokenizer too."""

    kind: str = "llm"
    architecture: str
    layers: int
    kv_heads: int
    head_dim: int
    vocabulary: int
    context: int
    eos_ids: list[int]

    @property
    def cache_dtype(self) -> np.dtype[Any]:
        """Of keys and values."""
        return np.dtype(np.float16 if self.precision == "fp16" else np.float32)


@dataclass(frozen=True, eq=False)
class Prefix:
    """The keys and values of the tokens that prompts begin with: computed once, used many times.

    Attributes:
        cache: read-only arrays (rows, kv_heads, length, head_dim), keys and values in turn. One row
            serves any number of prompts; several rows serve a prompt each.
        model: the fingerprint of the model they belong to.
        next_position: of the token that follows. Text counts its tokens; an image takes fewer
            positions than it has tokens.
    """

    cache: Cache
    model: str
    next_position: int

    @property
    def rows(self) -> int:
        """How many beginnings it holds."""
        return int(self.cache[0].shape[0])

    @property
    def length(self) -> int:
        """How many tokens each row stands for."""
        return int(self.cache[0].shape[2])

    @classmethod
    def stack(cls, arrays: Sequence[Any], model: str, next_position: int) -> Prefix:
        """A prefix of several rows from what `unstack` gave, of one prefix or of many."""
        layers = range(len(arrays[0]))
        cache = tuple(np.stack([array[i] for array in arrays]) for i in layers)
        return cls(cache, model, next_position)

    def unstack(self) -> list[npt.NDArray[Any]]:
        """Each row by itself: (2 * layers, kv_heads, length, head_dim), read-only."""
        rows = []
        for row in range(self.rows):
            array = np.stack([cached[row] for cached in self.cache])
            array.setflags(write=False)
            rows.append(array)
        return rows

    @property
    def nbytes(self) -> int:
        """Memory held: 2 * layers * kv_heads * head_dim * length a row, 4 bytes each (fp16: 2)."""
        return sum(array.nbytes for array in self.cache)


class CausalLM:
    """A language model that `export_llm` wrote. Threads may share one.

    Args:
        folder: the exported model.
        device: ``"cpu"``. On a GPU the cache must stay on the device between steps; the loop that
            keeps it there is not written, and one that copies it would be no use.
        threads: CPU threads; None leaves it to ONNX Runtime.

    Raises:
        GranAlignError: the folder is no such model, was altered, or the device is not the CPU.
    """

    manifest: LlmManifest

    def __init__(
        self, folder: str | Path, *, device: str = "cpu", threads: int | None = None
    ) -> None:
        if Device.parse(device).kind != "cpu":
            raise GranAlignError(
                f"device {device!r}: got a GPU, expected 'cpu', where alone language models run yet"
            )
        folder = Path(folder)
        self._open(folder, device, threads)
        self.tokenizer = ChatTokenizer(folder)

    def _open(self, folder: Path, device: str, threads: int | None) -> None:
        self.manifest = LlmManifest.read(folder)
        session = Session(folder / "model.onnx", device=device, threads=threads)
        self._decoder = Decoder(session, self.manifest)

    @property
    def fingerprint(self) -> str:
        """Names what the model computes: equal for equal source, precision and format."""
        return fingerprint(self.manifest.source_sha256, self.manifest.precision)

    def chat(self, messages: Sequence[Message]) -> list[int]:
        """Token ids of a conversation, by the model's own template, ready for `generate`."""
        return self.tokenizer.chat(messages)

    def decode(self, ids: Sequence[int]) -> str:
        """Text of token ids, without special tokens."""
        return self.tokenizer.decode(ids)

    def prefill(self, token_ids: Sequence[int]) -> Prefix:
        """Compute the beginning of prompts.

        Raises:
            GranAlignError: there is no token, one is unknown, or they fill the context.
        """
        self._check([token_ids], None, 1, "token_ids")
        _, cache, _ = self._extend([token_ids], None)
        return self._prefix(cache, len(token_ids))

    def _prefix(self, cache: Cache, next_position: int) -> Prefix:
        for array in cache:
            array.setflags(write=False)
        return Prefix(cache, self.fingerprint, next_position)

    def logits(
        self, prompts: Sequence[Sequence[int]], *, prefix: Prefix | None = None
    ) -> npt.NDArray[np.float32]:
        """What each prompt is followed by: logits (prompts, vocabulary), float32.

        Raises:
            GranAlignError: as for `generate`.
        """
        self._check(prompts, prefix, 0)
        return self._extend(prompts, prefix)[0]

    def generate(
        self,
        prompts: Sequence[Sequence[int]],
        *,
        prefix: Prefix | None = None,
        max_new_tokens: int,
        stop_ids: Collection[int] | None = None,
    ) -> list[list[int]]:
        """The likeliest token after each prompt, again and again.

        The prompts are one batch, whatever their lengths. Sampling and penalties of
        ``generation_config.json`` are not applied.

        Args:
            prompts: token ids of each, what comes after the prefix.
            prefix: what they begin with, from `prefill`: one row for all, or one for each.
            max_new_tokens: where to end rows that do not end by themselves.
            stop_ids: tokens that end a row; None for the model's own. ``()`` ends none.

        Returns:
            New token ids of each prompt, without the one that ended it.

        Raises:
            GranAlignError: no prompt, an empty one, an unknown token, a prefix of another model or
                with rows for other prompts, or too many tokens for the model's context. Nothing has
                been computed then.
        """
        if max_new_tokens < 1:
            raise GranAlignError(f"max_new_tokens: got {max_new_tokens}, expected at least 1")
        self._check(prompts, prefix, max_new_tokens)
        stops = np.array(sorted(self.manifest.eos_ids if stop_ids is None else stop_ids), np.int64)
        answers: list[list[int]] = [[] for _ in prompts]
        rows = np.arange(len(prompts))  # those that go on
        logits, cache, batch = self._extend(prompts, prefix)
        for left in range(max_new_tokens, 0, -1):
            tokens = logits.argmax(axis=1)
            going = ~np.isin(tokens, stops)
            if not going.all():  # a row that has ended costs no further step
                rows, tokens, batch = rows[going], tokens[going], batch.keep(going)
                cache = tuple(array[going] for array in cache)
            for row, token in zip(rows, tokens, strict=True):
                answers[row].append(int(token))
            if left == 1 or not len(rows):
                break
            batch = batch.append(tokens)
            logits, cache = self._step(batch, cache)
        return answers

    def _extend(
        self, prompts: Sequence[Sequence[int]], prefix: Prefix | None
    ) -> tuple[npt.NDArray[np.float32], Cache, TokenBatch]:
        """Run the prompts after the prefix, whose one row is repeated for each of them."""
        rows = len(prompts)
        if prefix is None:
            batch, cache = _left_padded(prompts, 0, 0), self._decoder.empty(rows)
        else:
            batch, cache = _left_padded(prompts, prefix.length, prefix.next_position), prefix.cache
            if prefix.rows != rows:
                cache = tuple(np.repeat(array, rows, axis=0) for array in cache)
        logits, cache = self._step(batch, cache)
        return logits, cache, batch

    def _step(self, batch: TokenBatch, cache: Cache) -> tuple[npt.NDArray[np.float32], Cache]:
        """Logits (rows, vocabulary) of the last position, and the cache with the batch in it."""
        return self._decoder.step(
            cache,
            input_ids=batch.ids,
            position_ids=batch.positions,
            attention_mask=batch.mask,
        )

    def _check(
        self,
        prompts: Sequence[Sequence[int]],
        prefix: Prefix | None,
        more: int,
        name: str = "prompts[{}]",
    ) -> None:
        """Everything that a caller can get wrong, before any work."""
        if not len(prompts):
            raise GranAlignError("prompts: got none, expected at least one list of token ids")
        if prefix is not None and prefix.model != self.fingerprint:
            raise GranAlignError(
                f"prefix: got one of the model {prefix.model}, expected "
                f"{self.fingerprint}; prefill it with this model"
            )
        if prefix is not None and prefix.rows not in (1, len(prompts)):
            raise GranAlignError(
                f"prefix: got {prefix.rows} rows for {len(prompts)} prompts, expected one row, or "
                f"one for each prompt"
            )
        past, context = prefix.length if prefix else 0, self.manifest.context
        for i, prompt in enumerate(prompts):
            place = name.format(i)
            if not len(prompt):
                raise GranAlignError(f"{place}: got no token, expected at least one")
            if past + len(prompt) + more > context:
                raise GranAlignError(
                    f"{place}: got {past} + {len(prompt)} tokens and {more} new ones, "
                    f"expected at most the context of {context}; shorten the prompt"
                )
            for token in prompt:
                if not 0 <= token < self.manifest.vocabulary:
                    raise GranAlignError(
                        f"{place}: got token id {token}, expected 0 to "
                        f"{self.manifest.vocabulary - 1}; tokenise with this model's tokenizer"
                    )


class Decoder:
    """The exported decoder, a step at a time: the one place that knows how its cache is named.

    A GPU's twin of this class would hold the cache in bound device arrays, run ``unpadded.onnx``
    for rows of equal length, and give token ids in the place of logits.
    """

    def __init__(self, session: Session, manifest: LlmManifest) -> None:
        self._session = session
        self._manifest = manifest
        self._past = [name for name in session.inputs if name.startswith("past_key_values.")]
        self._present = [name.replace("past_key_values", "present") for name in self._past]

    def empty(self, rows: int) -> Cache:
        """The cache of no tokens."""
        shape = (rows, self._manifest.kv_heads, 0, self._manifest.head_dim)
        return tuple(np.empty(shape, self._manifest.cache_dtype) for _ in self._past)

    def step(
        self, cache: Cache, **inputs: npt.NDArray[Any]
    ) -> tuple[npt.NDArray[np.float32], Cache]:
        """Logits (rows, vocabulary) of the last position, and the cache with the inputs in it."""
        # Stock exports of some families tell places by the mask, and all give every position.
        if "position_ids" not in self._session.inputs:
            inputs.pop("position_ids", None)
        outputs = self._session(**inputs, **dict(zip(self._past, cache, strict=True)))
        return outputs["logits"][:, -1], tuple(outputs[name] for name in self._present)


@dataclass(frozen=True)
class TokenBatch:
    """Rows of token ids that end together; `mask` covers what the cache holds as well."""

    ids: Ids
    positions: Ids
    mask: Ids

    def keep(self, rows: npt.NDArray[np.bool_]) -> TokenBatch:
        """The rows that go on."""
        return TokenBatch(self.ids[rows], self.positions[rows], self.mask[rows])

    def append(self, tokens: Ids) -> TokenBatch:
        """The next step: one token a row."""
        seen = np.ones((len(tokens), 1), np.int64)
        mask = np.concatenate([self.mask, seen], axis=1)
        return TokenBatch(tokens[:, None], self.positions[:, -1:] + 1, mask)


def _left_padded(prompts: Sequence[Sequence[int]], past: int, position: int) -> TokenBatch:
    """Prompts after `past` tokens, their first one at `position`, as one batch.

    Padded, and not in batches of equal length: the prompts of a rewriter differ by a few tokens,
    and a step reads every weight once for all rows. On a CPU the mask costs nothing measurable.
    """
    lengths = np.array([len(prompt) for prompt in prompts])
    longest = int(lengths.max())
    ids = np.zeros((len(prompts), longest), np.int64)  # any token will do for padding
    for row, prompt in zip(ids, prompts, strict=True):
        row[longest - len(prompt) :] = prompt
    places = np.arange(longest) - (longest - lengths)[:, None]
    seen = np.ones((len(prompts), past), np.int64)
    mask = np.concatenate([seen, (places >= 0).astype(np.int64)], axis=1)
    return TokenBatch(ids, position + np.maximum(places, 0), mask)
