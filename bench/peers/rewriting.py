"""Greedy generation by runtimes that people use for small language models: llama.cpp, ORT GenAI.

Each takes prompts as token ids and a number of new tokens, and ends no answer early.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from importlib import import_module
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from granalign_fast.errors import GranAlignError
from granalign_fast.models.chat import common_start

from .generators import Generate, build_genai

_BATCH = 8192
"""Tokens that llama.cpp's cache and batch hold: eight queries with their answers."""
_STARTING = 60.0
"""Seconds within which a server must answer."""
_CALLBACKS: list[Any] = []
"""Callbacks that llama.cpp uses until the process ends. A freed one is a segmentation fault."""


def one_after_another(path: Path, threads: int) -> Generate:
    """Return llama.cpp's Python binding on a GGUF file, which answers one prompt after another.

    It keeps the keys and values of the last prompt and reuses those of a common beginning. The
    prompts are sorted, so that those with the longest common beginnings follow each other.
    """
    llama_cpp: Any = import_module("llama_cpp")
    model = llama_cpp.Llama(
        str(path), n_ctx=1024, n_threads=threads, n_threads_batch=threads, verbose=False
    )

    def run(prompts: list[list[int]], count: int) -> list[list[int]]:
        answers: list[list[int]] = [[] for _ in prompts]
        for row in sorted(range(len(prompts)), key=prompts.__getitem__):
            answers[row] = list(islice(model.generate(prompts[row], temp=0.0), count))
        return answers

    return run


def in_slots(path: Path, threads: int, rows: int) -> Generate:
    """Return llama.cpp on a GGUF file with a sequence for each prompt, all in one batch.

    This is what ``llama-server`` does with parallel slots and continuous batching, without HTTP.
    The common beginning of all prompts is computed once and kept from call to call.

    Args:
        path: the GGUF file.
        threads: CPU threads.
        rows: the greatest number of prompts.
    """
    llama: Any = import_module("llama_cpp")
    llama.llama_backend_init()
    silence = llama.llama_log_callback(lambda level, text, data: None)
    _CALLBACKS.append(silence)
    llama.llama_log_set(silence, ctypes.c_void_p(0))
    model = llama.llama_model_load_from_file(str(path).encode(), llama.llama_model_default_params())
    settings = llama.llama_context_default_params()
    settings.n_ctx = settings.n_batch = _BATCH
    settings.n_seq_max = rows + 1
    settings.kv_unified = True  # sequences share the cells of their common beginning
    settings.n_threads = settings.n_threads_batch = threads
    context = llama.llama_init_from_model(model, settings)
    if not context:
        raise GranAlignError(f"{path}: llama.cpp cannot open it")
    memory = llama.llama_get_memory(context)
    batch = llama.llama_batch_init(_BATCH, 0, 1)
    vocabulary = llama.llama_vocab_n_tokens(llama.llama_model_get_vocab(model))
    kept: list[int] = []

    def decode(pieces: Sequence[tuple[int, int, Sequence[int]]]) -> list[int]:
        """Append tokens to sequences; return the likeliest token after each.

        A piece is a sequence's number, the position of its first token, and its tokens.
        """
        ends, place = [], 0
        for sequence, position, tokens in pieces:
            for offset, token in enumerate(tokens):
                batch.token[place] = token
                batch.pos[place] = position + offset
                batch.n_seq_id[place] = 1
                batch.seq_id[place][0] = sequence
                batch.logits[place] = offset == len(tokens) - 1
                place += 1
            ends.append(place - 1)
        batch.n_tokens = place
        if code := llama.llama_decode(context, batch):
            raise GranAlignError(f"llama.cpp: decoding {place} tokens failed with code {code}")
        rows = (llama.llama_get_logits_ith(context, end) for end in ends)
        return [int(np.ctypeslib.as_array(row, (vocabulary,)).argmax()) for row in rows]

    def run(prompts: list[list[int]], count: int) -> list[list[int]]:
        # Every prompt keeps a token of its own, whose logits begin the answer.
        first, *_, last = sorted(prompt[:-1] for prompt in prompts)
        start = common_start(first, last)
        if start != kept:
            llama.llama_memory_clear(memory, True)
            decode([(0, 0, start)])
            kept[:] = start
        sequences = range(1, len(prompts) + 1)
        for sequence in sequences:
            llama.llama_memory_seq_rm(memory, sequence, -1, -1)
            llama.llama_memory_seq_cp(memory, 0, sequence, -1, -1)
        owns = [prompt[len(start) :] for prompt in prompts]
        steps = [decode([(s, len(start), own) for s, own in zip(sequences, owns, strict=True)])]
        for step in range(count - 1):
            steps.append(
                decode(
                    [
                        (s, len(prompt) + step, [token])
                        for s, prompt, token in zip(sequences, prompts, steps[-1], strict=True)
                    ]
                )
            )
        return [list(answer) for answer in zip(*steps, strict=True)]

    return run


@contextlib.contextmanager
def over_http(path: Path, threads: int, tokenizer: Any, stops: Sequence[int]) -> Iterator[Generate]:
    """Run llama-cpp-python's OpenAI-compatible server; yield generation over HTTP.

    All prompts are sent at once. This server has no parallel slots: it answers one after another.

    Args:
        path: the GGUF file.
        threads: CPU threads.
        tokenizer: the model's `tokenizers.Tokenizer`: the server takes and gives texts.
        stops: tokens that would end an answer; their logits are lowered.
    """
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    options = {
        "model": path,
        "host": "127.0.0.1",
        "port": port,
        "n_ctx": 1024,
        "n_threads": threads,
        "n_threads_batch": threads,
        "interrupt_requests": False,
        "verbose": False,
    }
    words = [word for name, value in options.items() for word in (f"--{name}", str(value))]
    server = subprocess.Popen(
        [sys.executable, "-m", "llama_cpp.server", *words],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    address = f"http://127.0.0.1:{port}/v1"

    def ask(prompt: str, count: int) -> str:
        body = {
            "prompt": prompt,
            "max_tokens": count,
            "temperature": 0.0,
            "logit_bias": {str(token): -100.0 for token in stops},
        }
        request = urllib.request.Request(
            f"{address}/completions",
            json.dumps(body).encode(),
            {"Content-Type": "application/json"},
        )
        with urllib.request.urlopen(request, timeout=600) as reply:
            answer = json.load(reply)
        if (got := answer["usage"]["completion_tokens"]) != count:
            raise GranAlignError(f"llama_cpp.server: got {got} tokens, expected {count}")
        text: str = answer["choices"][0]["text"]
        return text

    try:
        _await(f"{address}/models", server)
        with ThreadPoolExecutor(64) as pool:

            def run(prompts: list[list[int]], count: int) -> list[list[int]]:
                texts = tokenizer.decode_batch(prompts, skip_special_tokens=False)
                replies = pool.map(ask, texts, [count] * len(texts))
                return [tokenizer.encode(reply).ids for reply in replies]

            yield run
    finally:
        server.terminate()
        server.wait()


def _await(address: str, server: subprocess.Popen[bytes]) -> None:
    """Wait until a server answers."""
    end = time.monotonic() + _STARTING
    while server.poll() is None and time.monotonic() < end:
        with contextlib.suppress(urllib.error.URLError, ConnectionError, TimeoutError):
            urllib.request.urlopen(address, timeout=1).close()
            return
        time.sleep(0.1)
    raise GranAlignError(
        "llama_cpp.server did not start; run pip install 'llama-cpp-python[server]'"
    )


def genai_engine(source: Path, out: Path, precision: str, rows: int) -> Generate:
    """Return onnxruntime-genai's engine, which batches requests, on its own export of a folder.

    Args:
        source: a transformers folder.
        out: folder for the export.
        precision: ``fp32`` or ``int4``, the latter with our blocks and 8-bit activations.
        rows: the greatest number of prompts.
    """
    genai: Any = import_module("onnxruntime_genai")
    build_genai(source, out, precision, engine={"static_batching": {"max_batch_size": rows}})
    engine = genai.Engine(genai.Model(str(out)))

    def run(prompts: list[list[int]], count: int) -> list[list[int]]:
        requests = [_request(genai, engine, prompt, count) for prompt in prompts]
        answers: list[list[int]] = [[] for _ in prompts]
        events = engine.create_event_buffer(4 * rows)
        while engine.has_pending_requests():
            for event in engine.run(events):
                if event.flags & genai.EngineEventFlags.FAILED:
                    raise GranAlignError(f"onnxruntime-genai: {event.error_code}")
                if event.flags & genai.EngineEventFlags.TOKEN:
                    answers[requests.index(event.request)].append(event.token)
        for request in requests:
            request.close()
        return answers

    return run


def _request(genai: Any, engine: Any, prompt: list[int], count: int) -> Any:
    """Queue a prompt in onnxruntime-genai's engine; return the request."""
    options = genai.RequestOptions()
    options.set_max_session_tokens(len(prompt) + count)
    request = engine.create_request(options=options)
    turn = genai.TurnOptions(request)
    turn.set_do_sample(False)
    turn.set_max_generated_tokens(count)
    turn.set_min_generated_tokens(count)  # else some end early, without a token for it
    request.begin_turn(np.array(prompt, np.int32), turn)
    return request
