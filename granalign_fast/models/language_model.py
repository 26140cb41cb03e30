"""A language model on ONNX Runtime, without torch: token ids in, greedily decoded token ids out.

The common beginning of prompts is computed once and kept as a `Prefix`. Each call then computes
only the tokens behind it.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar, cast

import numpy as np
import numpy.typing as npt

from granalign_fast.errors import GranAlignError, PromptTooLongError
from granalign_fast.models.exported_graph import open_session
from granalign_fast.runtime.array_device import Array, ArrayDevice
from granalign_fast.runtime.mapped_pages import release_memory
from granalign_fast.runtime.session import OnnxSession

from .chat import ChatTokenizer
from .chat_template import Message
from .decoder import Batch, Cache, Decoder, Ids, decode
from .exported_model import ExportedModel
from .graph_contract import GRAPH, INPUT_IDS, POSITION_IDS, STATIC_GRAPH, WEIGHTS
from .growing_cache import GrowingDecoder
from .manifest import LlmManifest, VlmManifest, fingerprint
from .prefix import Prefix, read_only
from .static_cache import StaticDecoder

_LARGE = 1 << 28
"""Bytes of weights from which on pages of the file are released after each answer."""

CACHE_BYTES = 7 << 26
"""Bytes that the keys and values of a batch may take on a CPU, for a large model in int4: it was
rounded to fit into little memory. In the set ``laptop`` it lets four rewrites take a step together,
which costs half the time of one after another, and keeps the whole set within 2 GB."""

_MOST_CACHE_BYTES = 1 << 30
"""The same for every other model."""


class CausalLM(ExportedModel):
    """A language model that `export_llm` wrote. Threads may share one.

    On a GPU, keys, values and logits stay in its memory, decode steps are queued one behind the
    other, as CUDA graphs if possible, and the host reads token ids every few steps. This path has
    not run on a GPU yet. Tests run it on a stand-in for CuPy: with ONNX Runtime's CPU provider they
    check results, and with its CUDA provider over a runtime that computes nothing they check which
    kernels are launched.

    Args:
        folder: the exported model.
        device: as for `open_session`.
        threads: CPU threads; None for ONNX Runtime's own choice.
        memory_limit_bytes: as for `open_session`, for each graph of the model. Static caches do not
            count: those of the last six batch shapes are kept, 4 GiB at most.
        cache_bytes: bound of the keys and values of a batch on a CPU; see `rows_within`. None for
            448 MiB for int4 weights of 256 MiB or more, and 1 GiB for others.
        static_cache: use a KV cache of fixed address and capacity (see `static_cache`) instead of
            one that is allocated anew with each token. None means yes on a GPU, if the export has a
            graph for it, and no on a CPU.
        manifest: of a folder that has none yet, as an export checks it; None to read it.

    Raises:
        GranAlignError: the folder holds no such model, was altered, or has no graph for a static
            cache; or the device is not available.
    """

    _manifest_kind: ClassVar[type[LlmManifest]] = LlmManifest
    manifest: LlmManifest
    device: ArrayDevice
    """The device of keys and values."""
    look_every: int
    """Steps after which `generate` checks for rows that have ended. No answer depends on it."""

    def __init__(
        self,
        folder: str | Path,
        *,
        device: str = "cpu",
        threads: int | None = None,
        memory_limit_bytes: int | None = None,
        static_cache: bool | None = None,
        cache_bytes: int | None = None,
        manifest: LlmManifest | None = None,
    ) -> None:
        self.device = ArrayDevice.of(device)
        self.look_every = self.device.look_every
        folder = self._folder = Path(folder)

        def open_graph(graph: str, **options: Any) -> OnnxSession:
            session = open_session(
                folder / graph,
                device=device,
                threads=threads,
                memory_limit_bytes=memory_limit_bytes,
                stream=self.device.stream,
                lean=True,
                **options,
            )
            # The cast holds: decoders have no TensorRT engine and no fixed batch sizes.
            return cast(OnnxSession, session)

        self.manifest = manifest or self._manifest_kind.read(folder)
        weights = folder / WEIGHTS
        large = weights.is_file() and weights.stat().st_size >= _LARGE
        self._releases = large and self.device.index is None
        if cache_bytes is None:
            lean = large and self.manifest.precision == "int4"
            cache_bytes = CACHE_BYTES if lean else _MOST_CACHE_BYTES
        self.cache_bytes = cache_bytes
        has_static = STATIC_GRAPH in self.manifest.files
        if static_cache and not has_static:
            raise GranAlignError(
                f"{folder}: got no {STATIC_GRAPH}, expected one for static_cache=True; export the "
                f"model again, or leave static_cache unset"
            )
        if static_cache is None:
            static_cache = has_static and _prefers_static_cache(self.device)
        self._static = static_cache
        self._open_input_graphs(open_graph)
        self._decoder: Decoder
        if static_cache:
            self._graph = open_graph(STATIC_GRAPH, capturable=True)
            self._decoder = StaticDecoder(self._graph, self.manifest, self.device)
        else:
            self._graph = open_graph(GRAPH)
            self._decoder = GrowingDecoder(self._graph, self.manifest, self.device)
        self.tokenizer = ChatTokenizer(folder, processor=isinstance(self.manifest, VlmManifest))

    def _open_input_graphs(self, open_graph: Callable[[str], OnnxSession]) -> None:
        """Open the graphs whose outputs are inputs of the decoder: here none."""

    @property
    def fingerprint(self) -> str:
        """Name of the model's results: equal for equal source, precision, blocks and format."""
        block = f"b{self.manifest.block}" if self.manifest.block else ""
        return fingerprint(self.manifest.source_sha256, self.manifest.precision + block)

    @property
    def captured_graphs(self) -> int:
        """How many batch shapes have a decode step that is a CUDA graph so far."""
        return self._decoder.captures

    @property
    def graphs_refused(self) -> str | None:
        """Reason why decode steps on a GPU cannot be CUDA graphs; None if they can.

        At most 64 captures are made. Batch shapes that come later run without a graph.
        """
        return self._graph.graphs_refused

    def rows_within(self, tokens: int) -> int | None:
        """Return how many rows of so many tokens a batch on a CPU may have; None for any number.

        Each step makes a new cache while the old one is still there, so both count. A GPU has room
        for larger batches, and needs them.
        """
        if self.device.index is not None:
            return None
        return max(1, self.cache_bytes // (2 * tokens * self.manifest.token_bytes))

    def chat(self, messages: Sequence[Message]) -> list[int]:
        """Return the token ids of a conversation, by the model's own template, for `generate`.

        Raises:
            GranAlignError: as for `ChatTokenizer.chat`.
        """
        return self.tokenizer.chat(messages)

    def decode(self, ids: Sequence[int]) -> str:
        """Return the text of token ids, without special tokens."""
        return self.tokenizer.decode(ids)

    def prefill(self, token_ids: Sequence[int]) -> Prefix:
        """Compute the keys and values of tokens that prompts begin with.

        Raises:
            GranAlignError: there is no token, a token is unknown, or they fill the context.
        """
        self._check([token_ids], None, 1, "token_ids")

        def compute() -> Cache:
            batch, _ = self._extend([token_ids], None, 0)
            with self.device.guarded():
                return batch.cache()

        return self._prefix(self._decoder.execute(compute), len(token_ids))

    def prefill_rows(
        self, prompts: Sequence[Sequence[int]], *, prefix: Prefix | None = None
    ) -> Prefix:
        """Compute the keys and values of several beginnings of prompts, a row for each.

        Args:
            prompts: token ids of each beginning, of any lengths, without the prefix.
            prefix: what all of them begin with, from `prefill`.

        Returns:
            The whole beginnings, for as many prompts in this order, or a multiple of them.

        Raises:
            GranAlignError: as for `generate`.
        """
        self._check(prompts, prefix, 1)

        def compute() -> tuple[Cache, Ids]:
            batch, _ = self._extend(prompts, prefix, 0)
            with self.device.guarded():
                return batch.cache(), batch.mask()

        cache, mask = self._decoder.execute(compute)
        whole = self._prefix(cache, int(mask.sum(axis=1).max()))
        return replace(whole, mask=None if mask.all() else mask)

    def _prefix(self, cache: Cache, next_position: int) -> Prefix:
        return Prefix(tuple(map(read_only, cache)), self.fingerprint, next_position)

    def logits(
        self,
        prompts: Sequence[Sequence[int]],
        *,
        prefix: Prefix | None = None,
        tokens: Sequence[int] | None = None,
    ) -> npt.NDArray[np.float32]:
        """Return the logits of the token after each prompt: (prompts, vocabulary), float32.

        Args:
            prompts: as for `generate`.
            prefix: as for `generate`.
            tokens: return only the logits of these tokens, (prompts, tokens), in this order.

        Raises:
            GranAlignError: as for `generate`.
        """
        self._check(prompts, prefix, 0)

        def compute() -> npt.NDArray[np.float32]:
            _, logits = self._extend(prompts, prefix, 0)
            with self.device.guarded():
                if tokens is not None:
                    logits = logits[:, self.device.put(np.array(tokens, np.int64))]
                return self.device.to_host(logits)

        result: npt.NDArray[np.float32] = self._decoder.execute(compute)
        return result

    def generate(
        self,
        prompts: Sequence[Sequence[int]],
        *,
        prefix: Prefix | None = None,
        max_new_tokens: int,
        stop_ids: Collection[int] | None = None,
    ) -> list[list[int]]:
        """Continue each prompt greedily, with the likeliest token in each step.

        The prompts are one batch, whatever their lengths; on a CPU they are several if their keys
        and values would take more than `cache_bytes`. Sampling and penalties of
        ``generation_config.json`` are not applied.

        Args:
            prompts: token ids of each prompt, without the prefix.
            prefix: the beginning of the prompts, from `prefill` or `prefill_rows`: one row for all,
                or rows that the prompts take in turn.
            max_new_tokens: the length of an answer that no stop token ends.
            stop_ids: tokens that end a row; None for the model's own, ``()`` for none.

        Returns:
            New token ids of each prompt, without the one that ended it.

        Raises:
            GranAlignError: there is no prompt, a prompt is empty, a token is unknown, the prefix is
                of another model, its number of rows does not fit, or the tokens exceed the model's
                context. All of this is checked before anything is computed.
        """
        if max_new_tokens < 1:
            raise GranAlignError(f"max_new_tokens: got {max_new_tokens}, expected at least 1")
        self._check(prompts, prefix, max_new_tokens)
        stops = np.array(sorted(self.manifest.eos_ids if stop_ids is None else stop_ids), np.int64)
        tokens = (prefix.length if prefix else 0) + max(map(len, prompts)) + max_new_tokens
        parts = -(-len(prompts) // (self.rows_within(tokens) or len(prompts)))
        answers: list[list[int]] = []
        for rows in np.array_split(np.arange(len(prompts)), parts):
            part = [prompts[row] for row in rows]
            start = prefix if prefix is None or parts == 1 else prefix.take(rows)
            answers += self._generate(part, start, max_new_tokens, stops)
            self._release()
        return answers

    def _release(self) -> None:
        """Give back what a large model on a CPU used, before another model needs it."""
        if self._releases:
            # A row of the table is a few pages, but the system maps those around it as well.
            release_memory(self._folder)

    def _generate(
        self,
        prompts: Sequence[Sequence[int]],
        prefix: Prefix | None,
        max_new_tokens: int,
        stops: Ids,
    ) -> list[list[int]]:
        """Continue prompts as one batch; arguments as for `generate`, checked."""

        def compute() -> list[list[int]]:
            batch, logits = self._extend(prompts, prefix, max_new_tokens - 1)
            return decode(
                batch,
                logits,
                max_new_tokens=max_new_tokens,
                stops=stops,
                device=self.device,
                look_every=self.look_every,
            )

        answers: list[list[int]] = self._decoder.execute(compute)
        return answers

    def _extend(
        self, prompts: Sequence[Sequence[int]], prefix: Prefix | None, steps: int
    ) -> tuple[Batch, Array]:
        """Start a batch with the prefix and the prompts.

        Args:
            prompts: token ids of each row.
            prefix: as for `generate`.
            steps: the greatest number of decode steps that will follow.

        Returns:
            The batch, and the logits (prompts, vocabulary) that follow the prompts.
        """
        longest = max(map(len, prompts))
        with self.device.activate():
            batch = self._decoder.begin(len(prompts), prefix, longest, steps, self._feed)
            with self.device.guarded():
                return batch, batch.extend(prompts)

    def _feed(self, ids: Array, positions: Array) -> dict[str, Array]:
        """Return the decoder's inputs for token ids and positions, both (rows, tokens)."""
        return {INPUT_IDS: ids, POSITION_IDS: positions}

    def _check(
        self,
        prompts: Sequence[Sequence[int]],
        prefix: Prefix | None,
        new_tokens: int,
        label: str = "prompts[{}]",
    ) -> None:
        """Check a call's arguments before anything is computed.

        Args:
            prompts: token ids of each row.
            prefix: as for `generate`.
            new_tokens: tokens that the context must hold behind the prompts.
            label: name of a prompt in error messages; ``{}`` stands for its index.

        Raises:
            GranAlignError: as for `generate`.
        """
        if not len(prompts):
            raise GranAlignError("prompts: got none, expected at least one list of token ids")
        if prefix is not None and prefix.model != self.fingerprint:
            raise GranAlignError(
                f"prefix: got one of the model {prefix.model}, expected "
                f"{self.fingerprint}; prefill it with this model"
            )
        if prefix is not None and len(prompts) % prefix.rows:
            raise GranAlignError(
                f"prefix: got {prefix.rows} rows for {len(prompts)} prompts, expected one row, one "
                f"for each prompt, or a number of rows that divides that of the prompts"
            )
        past, context = prefix.length if prefix else 0, self.manifest.context
        for i, prompt in enumerate(prompts):
            name = label.format(i)
            if not len(prompt):
                raise GranAlignError(f"{name}: got no token, expected at least one")
            if past + len(prompt) + new_tokens > context:
                size = (
                    f"got {past} + {len(prompt)} tokens and {new_tokens} new ones, "
                    f"expected at most the context of {context}"
                )
                raise PromptTooLongError(name, i, size)
            for token in prompt:
                if not 0 <= token < self.manifest.vocabulary:
                    raise GranAlignError(
                        f"{name}: got token id {token}, expected 0 to "
                        f"{self.manifest.vocabulary - 1}; tokenise with this model's tokenizer"
                    )


def _prefers_static_cache(device: ArrayDevice) -> bool:
    """Return whether a static cache is the better choice: yes on a GPU.

    On a CPU both caches are equally fast, and a growing one can drop rows that have ended.
    """
    return device.index is not None
