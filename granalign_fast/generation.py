"""Token ids in, greedy token ids out: a language model on ONNX Runtime, without torch.

The beginning that prompts share is computed once and kept as a `Prefix`; each call pays only for
what follows it.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from .chat import ChatTokenizer, Message
from .decoding import Cache, TokenBatch, decode, left_padded
from .errors import GranAlignError
from .models import Manifest, fingerprint
from .place import Array, Place
from .session import Session

__all__ = ["Cache", "CausalLM", "Decoder", "LlmManifest", "Prefix"]


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
    def stack(
        cls, arrays: Sequence[Array], model: str, next_position: int, place: Place | None = None
    ) -> Prefix:
        """A prefix of several rows from what `unstack` gave, of one prefix or of many.

        Args:
            arrays: one for each row, wherever they are.
            model: the model's fingerprint.
            next_position: the same for all.
            place: where the prefix is to be, by default in this machine's memory.
        """
        place = Place(np) if place is None else place
        there = [place.put(array) for array in arrays]
        with place.work():
            layers = range(len(there[0]))
            cache = tuple(place.xp.stack([array[i] for array in there]) for i in layers)
        return cls(cache, model, next_position)

    def unstack(self, place: Place | None = None) -> list[Array]:
        """Each row by itself: (2 * layers, kv_heads, length, head_dim), read-only."""
        place = Place(np) if place is None else place
        with place.work():
            rows = [
                place.xp.stack([cached[row] for cached in self.cache]) for row in range(self.rows)
            ]
        return [_read_only(row) for row in rows]

    @property
    def nbytes(self) -> int:
        """Memory held: 2 * layers * kv_heads * head_dim * length a row, 4 bytes each (fp16: 2)."""
        return sum(array.nbytes for array in self.cache)


class CausalLM:
    """A language model that `export_llm` wrote. Threads may share one.

    On a GPU, keys, values and logits stay there, steps are queued one behind the other, and token
    ids come back every few steps. That path is tested on a stand-in for CuPy alone and has not been
    run on a GPU yet.

    Args:
        folder: the exported model.
        device: as for `Session`.
        threads: CPU threads; None leaves it to ONNX Runtime.
        memory_limit_bytes: as for `Session`, for each graph of the model.

    Raises:
        GranAlignError: the folder is no such model or was altered, or the device cannot be had.
    """

    manifest: LlmManifest
    place: Place
    """Where keys and values are."""
    look_every: int
    """Steps after which `generate` looks for rows that have ended; no answer depends on it."""

    def __init__(
        self,
        folder: str | Path,
        *,
        device: str = "cpu",
        threads: int | None = None,
        memory_limit_bytes: int | None = None,
    ) -> None:
        self.place = Place.of(device)
        self.look_every = self.place.look_every
        folder = Path(folder)

        def session(graph: str) -> Session:
            return Session(
                folder / graph,
                device=device,
                threads=threads,
                memory_limit_bytes=memory_limit_bytes,
                stream=self.place.stream,
            )

        self._open(folder, session)
        self.tokenizer = ChatTokenizer(folder)

    def _open(self, folder: Path, session: Callable[[str], Session]) -> None:
        self.manifest = LlmManifest.read(folder)
        self._decoder = Decoder(session("model.onnx"), self.manifest, self.place)

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
        return Prefix(tuple(map(_read_only, cache)), self.fingerprint, next_position)

    def logits(
        self,
        prompts: Sequence[Sequence[int]],
        *,
        prefix: Prefix | None = None,
        tokens: Sequence[int] | None = None,
    ) -> npt.NDArray[np.float32]:
        """What each prompt is followed by: logits (prompts, vocabulary), float32.

        Args:
            prompts: as for `generate`.
            prefix: as for `generate`.
            tokens: the only ones whose logits are wanted, (prompts, tokens), in this order.

        Raises:
            GranAlignError: as for `generate`.
        """
        self._check(prompts, prefix, 0)
        with self.place.work():
            logits = self._extend(prompts, prefix)[0]
            if tokens is not None:
                logits = logits[:, self.place.put(np.array(tokens, np.int64))]
            return self.place.host(logits)

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
        with self.place.here():
            logits, cache, batch = self._extend(prompts, prefix)
            return decode(
                self._step,
                logits,
                cache,
                batch,
                most=max_new_tokens,
                stops=stops,
                place=self.place,
                look_every=self.look_every,
            )

    def _extend(
        self, prompts: Sequence[Sequence[int]], prefix: Prefix | None
    ) -> tuple[Array, Cache, TokenBatch]:
        """Run the prompts after the prefix, whose one row is repeated for each of them."""
        rows = len(prompts)
        past, position = (0, 0) if prefix is None else (prefix.length, prefix.next_position)
        with self.place.work():
            batch = self._decoder.take(left_padded(prompts, past, position))
            cache = self._decoder.empty(rows) if prefix is None else prefix.cache
            if prefix is not None and prefix.rows != rows:
                cache = tuple(self.place.xp.repeat(array, rows, axis=0) for array in cache)
            logits, cache = self._step(batch, cache)
        return logits, cache, batch

    def _step(self, batch: TokenBatch, cache: Cache) -> tuple[Array, Cache]:
        """Logits (rows, vocabulary) of the last position, and the cache with the batch in it."""
        return self._decoder.step(
            cache,
            batch.mask,
            input_ids=batch.ids,
            position_ids=batch.positions,
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

    Args:
        session: of the graph.
        manifest: of the model.
        place: where the session runs, and the cache is.
    """

    def __init__(self, session: Session, manifest: LlmManifest, place: Place) -> None:
        self._session = session
        self._manifest = manifest
        self._place = place
        self._past = [name for name in session.inputs if name.startswith("past_key_values.")]
        self._present = [name.replace("past_key_values", "present") for name in self._past]

    def empty(self, rows: int) -> Cache:
        """The cache of no tokens."""
        shape = (rows, self._manifest.kv_heads, 0, self._manifest.head_dim)
        with self._place.work():
            xp = self._place.xp
            return tuple(xp.empty(shape, self._manifest.cache_dtype) for _ in self._past)

    def take(self, batch: TokenBatch) -> TokenBatch:
        """A batch of NumPy's where the session runs, with a mask if the graph takes one.

        Raises:
            GranAlignError: it takes none, and there is padding to hide.
        """
        put, mask = self._place.put, batch.mask
        if "attention_mask" not in self._session.inputs:
            if mask is not None and not mask.all():
                raise GranAlignError(
                    "prompts: got different lengths, expected one length, which this model needs "
                    "on a GPU; ask about frames one prompt at a time"
                )
            mask = None
        return TokenBatch(put(batch.ids), put(batch.positions), None if mask is None else put(mask))

    def step(self, cache: Cache, mask: Array | None, **inputs: Array) -> tuple[Array, Cache]:
        """Logits (rows, vocabulary) of the last position, and the cache with the inputs in it.

        All arrays are where the session runs; the mask is one that `take` gave.
        """
        # Stock exports of some families tell places by the mask, and all give every position.
        if "position_ids" not in self._session.inputs:
            inputs.pop("position_ids", None)
        if mask is not None:
            inputs["attention_mask"] = mask
        outputs = self._session(**inputs, **dict(zip(self._past, cache, strict=True)))
        return outputs["logits"][:, -1], tuple(outputs[name] for name in self._present)


def _read_only(array: Array) -> Array:
    if isinstance(array, np.ndarray):  # CuPy has no such flag
        array.setflags(write=False)
    return array
