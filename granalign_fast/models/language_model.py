"""Token ids in, greedy token ids out: a language model on ONNX Runtime, without torch.

The beginning that prompts share is computed once and kept as a `Prefix`; each call pays only for
what follows it.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from pathlib import Path
from typing import Any, ClassVar, cast

import numpy as np
import numpy.typing as npt

from granalign_fast.errors import GranAlignError, PromptTooLongError
from granalign_fast.models.exported_graph import open_session
from granalign_fast.runtime.array_device import Array, ArrayDevice
from granalign_fast.runtime.session import OnnxSession

from .chat import ChatTokenizer, Message
from .decoder import Cache, Decoder, Rows, decode
from .growing_cache import GrowingDecoder
from .manifest import LlmManifest, fingerprint
from .prefix import Prefix, read_only
from .static_cache import StaticDecoder


class CausalLM:
    """A language model that `export_llm` wrote. Threads may share one.

    On a GPU, keys, values and logits stay there, steps are queued one behind the other, as CUDA
    graphs where they can be, and token ids come back every few steps. That path has not been run on
    a GPU yet: it is tested on a stand-in for CuPy, with ONNX Runtime's CPU provider for its results
    and with the one for CUDA, over a runtime that computes nothing, for what it launches.

    Args:
        folder: the exported model.
        device: as for `Session`.
        threads: CPU threads; None leaves it to ONNX Runtime.
        memory_limit_bytes: as for `Session`, for each graph of the model; a static cache is beside
            it, and those of the last six shapes of batches are kept, 4 GiB at most.
        static_cache: keep keys and values in one place, with room for what is to come, and not in
            arrays that are made anew with each token; see `static_cache`. None for a GPU to do so
            where the export has a graph for it.

    Raises:
        GranAlignError: the folder is no such model, was altered, or has no graph for a static
            cache; or the device cannot be had.
    """

    _manifest_kind: ClassVar[type[LlmManifest]] = LlmManifest
    manifest: LlmManifest
    device: ArrayDevice
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
        static_cache: bool | None = None,
    ) -> None:
        self.device = ArrayDevice.of(device)
        self.look_every = self.device.look_every
        folder = Path(folder)

        def session(graph: str, **options: Any) -> OnnxSession:
            opened = open_session(
                folder / graph,
                device=device,
                threads=threads,
                memory_limit_bytes=memory_limit_bytes,
                stream=self.device.stream,
                **options,
            )
            return cast(OnnxSession, opened)  # decoders have no engine and no fixed batches

        self.manifest = self._manifest_kind.read(folder)
        graph = "static.onnx"
        has_static = graph in self.manifest.files
        if static_cache and not has_static:
            raise GranAlignError(
                f"{folder}: got no {graph}, expected one for static_cache=True; export the model "
                f"again, or leave that to the device"
            )
        if static_cache is None:
            static_cache = has_static and _is_better_static(self.device)
        self._static = static_cache
        self._open(session)
        self._decoder: Decoder
        if static_cache:
            self._graph = session(graph, capturable=True)
            self._decoder = StaticDecoder(self._graph, self.manifest, self.device)
        else:
            self._graph = session("model.onnx")
            self._decoder = GrowingDecoder(self._graph, self.manifest, self.device)
        self.tokenizer = ChatTokenizer(folder)

    def _open(self, session: Callable[[str], OnnxSession]) -> None:
        """Open what comes before the decoder."""

    @property
    def fingerprint(self) -> str:
        """Names what the model computes: equal for equal source, precision and format."""
        return fingerprint(self.manifest.source_sha256, self.manifest.precision)

    @property
    def captured_graphs(self) -> int:
        """How many shapes of batches have a step that is a CUDA graph by now."""
        return self._decoder.captures

    @property
    def graphs_refused(self) -> str | None:
        """Why steps on a GPU are no CUDA graphs; None where they are, or may become.

        Sixty-four shapes of batches are captured; those that come later are not.
        """
        return self._graph.graphs_refused

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

        def work() -> Cache:
            rows, _ = self._extend([token_ids], None, 0)
            with self.device.guarded():
                return rows.cache()

        return self._prefix(self._decoder.alone(work), len(token_ids))

    def _prefix(self, cache: Cache, next_position: int) -> Prefix:
        return Prefix(tuple(map(read_only, cache)), self.fingerprint, next_position)

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

        def work() -> npt.NDArray[np.float32]:
            _, logits = self._extend(prompts, prefix, 0)
            with self.device.guarded():
                if tokens is not None:
                    logits = logits[:, self.device.put(np.array(tokens, np.int64))]
                return self.device.to_host(logits)

        found: npt.NDArray[np.float32] = self._decoder.alone(work)
        return found

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

        def work() -> list[list[int]]:
            rows, logits = self._extend(prompts, prefix, max_new_tokens - 1)
            return decode(
                rows,
                logits,
                most=max_new_tokens,
                stops=stops,
                device=self.device,
                look_every=self.look_every,
            )

        answers: list[list[int]] = self._decoder.alone(work)
        return answers

    def _extend(
        self, prompts: Sequence[Sequence[int]], prefix: Prefix | None, steps: int
    ) -> tuple[Rows, Array]:
        """The prompts behind the prefix, and the logits that follow them."""
        longest = max(map(len, prompts))
        with self.device.activate():
            rows = self._decoder.begin(len(prompts), prefix, longest, steps, self._feed)
            with self.device.guarded():
                return rows, rows.extend(prompts)

    def _feed(self, ids: Array, positions: Array) -> dict[str, Array]:
        """What the decoder takes for tokens (rows, tokens)."""
        return {"input_ids": ids, "position_ids": positions}

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
            name_of_prompt = name.format(i)
            if not len(prompt):
                raise GranAlignError(f"{name_of_prompt}: got no token, expected at least one")
            if past + len(prompt) + more > context:
                size = (
                    f"got {past} + {len(prompt)} tokens and {more} new ones, expected at most the "
                    f"context of {context}"
                )
                raise PromptTooLongError(name_of_prompt, i, size)
            for token in prompt:
                if not 0 <= token < self.manifest.vocabulary:
                    raise GranAlignError(
                        f"{name_of_prompt}: got token id {token}, expected 0 to "
                        f"{self.manifest.vocabulary - 1}; tokenise with this model's tokenizer"
                    )


def _is_better_static(device: ArrayDevice) -> bool:
    """A CPU is as fast either way, and can leave out rows that have ended."""
    return device.index is not None
