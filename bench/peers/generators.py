"""Greedy generation by other runtimes of language models: transformers, optimum, ORT GenAI."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np

from granalign_fast.errors import GranAlignError
from granalign_fast.export.specs import INT8_PRODUCTS, LINEAR

from .runtimes import (
    COMPILED,
    GENAI,
    ON_THE_CPU,
    STOCK,
    TRANSFORMERS,
    Note,
    dropping_out,
    leave_out,
)

Generate = Callable[[list[list[int]], int], list[list[int]]]
"""Takes prompts and a number of new tokens; returns each answer, greedy, none ending early."""


def generators(
    source: Path, scratch: Path, note: Note, *, compiled: bool, device: str = "cpu"
) -> dict[str, Generate]:
    """Return greedy generation by each installed peer, by name; on a GPU only peers based on torch.

    Args:
        source: a transformers folder of a language model.
        scratch: folder for exports.
        note: is called with a message for each peer that failed.
        compiled: whether `torch.compile` takes part; on a CPU, compiling takes minutes.
        device: device, in torch's notation.
    """
    from granalign_fast.export.sources.folder import quiet

    peers: dict[str, Generate] = {}
    if TRANSFORMERS.installed:
        with dropping_out(TRANSFORMERS, note), quiet():
            peers[TRANSFORMERS.name] = greedy(transformers_model(source, device))
        if compiled:
            with dropping_out(COMPILED, note), quiet():
                import torch

                model = transformers_model(source, device)
                model.forward = torch.compile(model.forward, dynamic=True)
                generate = greedy(model)
                generate([[1, 2, 3]], 2)
                peers[COMPILED.name] = generate
        else:
            leave_out((COMPILED,), note, "on a CPU torch.compile takes minutes; --size 2 has it")
    if device != "cpu":
        leave_out((STOCK, GENAI), note, ON_THE_CPU)
        return peers
    if STOCK.installed:
        with dropping_out(STOCK, note), quiet():
            peers[STOCK.name] = greedy(stock_export(source, scratch / "stock"))
    if GENAI.installed:
        with dropping_out(GENAI, note), quiet():
            peers[GENAI.name] = genai(source, scratch / "genai")
    return peers


def transformers_model(source: Path, device: str = "cpu", dtype: str = "float32") -> Any:
    """Load a folder's language model with transformers."""
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(source, dtype=dtype).eval().to(device)


def stock_export(source: Path, out: Path) -> Any:
    """Export a folder's language model to `out` with optimum's own exporter, and load it."""
    from optimum.exporters.onnx import main_export
    from optimum.onnxruntime import ORTModelForCausalLM
    from optimum.utils import logging

    logging.set_verbosity_error()
    main_export(str(source), out, task="text-generation-with-past", do_validation=False)
    return ORTModelForCausalLM.from_pretrained(out)


def greedy(model: Any) -> Generate:
    """Return greedy generation by the model's `generate`, which never stops early."""
    import torch

    def run(prompts: list[list[int]], count: int) -> list[list[int]]:
        ids = torch.tensor(prompts, device=getattr(model, "device", None))
        with torch.inference_mode():
            generated = model.generate(
                input_ids=ids,
                attention_mask=torch.ones_like(ids),
                max_new_tokens=count,
                do_sample=False,
                eos_token_id=None,
                pad_token_id=0,
            )
        tokens: list[list[int]] = generated[:, ids.shape[1] :].tolist()
        return tokens

    return run


def build_genai(source: Path, out: Path, precision: str, **more: Any) -> None:
    """Export a folder's language model to `out` with onnxruntime-genai's model builder.

    Args:
        source: a transformers folder.
        out: a folder to write.
        precision: ``fp32`` or ``int4``, the latter with our blocks and 8-bit activations.
        more: further settings of ``genai_config.json``.
    """
    # Use its command line: the builder's Python interface changes with each release.
    builder = (sys.executable, "-P", "-m", "onnxruntime_genai.models.builder")
    options: list[str | Path] = [
        "-i",
        source,
        "-o",
        out,
        "-p",
        precision,
        "-e",
        "cpu",
        "-c",
        out / "cache",
    ]
    if precision == "int4":
        recipe = (f"int4_accuracy_level={INT8_PRODUCTS}", f"int4_block_size={LINEAR.block}")
        options += ["--extra_options", *recipe]
    offline = os.environ | {"HF_HUB_OFFLINE": "1"}
    built = subprocess.run([*builder, *options], env=offline, capture_output=True, text=True)
    if built.returncode:
        complaint = built.stderr.strip().splitlines() or ["no message"]
        raise GranAlignError(f"its model builder: {complaint[-1]}")
    path = out / "genai_config.json"
    config = json.loads(path.read_text(encoding="utf-8")) | more
    config["model"]["eos_token_id"] = []  # no answer may end early
    path.write_text(json.dumps(config), encoding="utf-8")


def genai(source: Path, out: Path) -> Generate:
    """Return greedy generation by onnxruntime-genai, on the fp32 export of its model builder."""
    runtime: Any = import_module("onnxruntime_genai")
    build_genai(source, out, "fp32")
    model = runtime.Model(str(out))

    def run(prompts: list[list[int]], count: int) -> list[list[int]]:
        options = runtime.GeneratorParams(model)
        length = len(prompts[0]) + count
        options.set_search_options(max_length=length, do_sample=False, batch_size=len(prompts))
        generator = runtime.Generator(model, options)
        generator.append_tokens(np.array(prompts, np.int32))
        for _ in range(count):
            generator.generate_next_token()
        return [generator.get_sequence(row)[-count:].tolist() for row in range(len(prompts))]

    return run
