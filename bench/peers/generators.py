"""Greedy generation by other runtimes of language models: transformers, optimum, ONNX Runtime's."""

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

from .runtimes import COMPILED, GENAI, ON_THE_CPU, STOCK, TRANSFORMERS, Note, left_out, trying

Generate = Callable[[list[list[int]], int], list[list[int]]]
"""Prompts and a number of new tokens to the new tokens of each, greedy, none ending early."""


def generators(
    source: Path, scratch: Path, note: Note, *, compiled: bool, device: str = "cpu"
) -> dict[str, Generate]:
    """Greedy generation by the peers that are installed, by name; on a GPU those of torch.

    Args:
        source: a transformers folder of a language model.
        scratch: where exports go.
        note: is told of one that failed.
        compiled: whether `torch.compile` takes part, which takes minutes on a CPU.
        device: as torch names it.
    """
    from granalign_fast.export.sources.folder import quiet

    found: dict[str, Generate] = {}
    if TRANSFORMERS.installed:
        with trying(TRANSFORMERS, note), quiet():
            found[TRANSFORMERS.name] = greedy(transformers_model(source, device))
        if compiled:
            with trying(COMPILED, note), quiet():
                import torch

                model = transformers_model(source, device)
                model.forward = torch.compile(model.forward, dynamic=True)
                generate = greedy(model)
                generate([[1, 2, 3]], 2)
                found[COMPILED.name] = generate
        else:
            left_out((COMPILED,), note, "on a CPU torch.compile takes minutes; --size 2 has it")
    if device != "cpu":
        left_out((STOCK, GENAI), note, ON_THE_CPU)
        return found
    if STOCK.installed:
        with trying(STOCK, note), quiet():
            found[STOCK.name] = greedy(stock_export(source, scratch / "stock"))
    if GENAI.installed:
        with trying(GENAI, note), quiet():
            found[GENAI.name] = _genai(source, scratch / "genai")
    return found


def transformers_model(source: Path, device: str = "cpu", dtype: str = "float32") -> Any:
    """The language model of a folder, by transformers."""
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(source, dtype=dtype).eval().to(device)


def stock_export(source: Path, out: Path) -> Any:
    """The same by optimum's own export, which it writes to `out`."""
    from optimum.exporters.onnx import main_export
    from optimum.onnxruntime import ORTModelForCausalLM
    from optimum.utils import logging

    logging.set_verbosity_error()
    main_export(str(source), out, task="text-generation-with-past", do_validation=False)
    return ORTModelForCausalLM.from_pretrained(out)


def greedy(model: Any) -> Generate:
    """`generate` of transformers or optimum, greedy, never stopping early."""
    import torch

    def run(prompts: list[list[int]], count: int) -> list[list[int]]:
        ids = torch.tensor(prompts, device=getattr(model, "device", None))
        with torch.inference_mode():
            found = model.generate(
                input_ids=ids,
                attention_mask=torch.ones_like(ids),
                max_new_tokens=count,
                do_sample=False,
                eos_token_id=None,
                pad_token_id=0,
            )
        tokens: list[list[int]] = found[:, ids.shape[1] :].tolist()
        return tokens

    return run


def _genai(source: Path, out: Path) -> Generate:
    """onnxruntime-genai over the fp32 export of its own model builder."""
    genai: Any = import_module("onnxruntime_genai")
    # By its command line: what the builder offers to Python changes with each release.
    builder = (sys.executable, "-P", "-m", "onnxruntime_genai.models.builder")
    options = ("-i", source, "-o", out, "-p", "fp32", "-e", "cpu", "-c", out / "cache")
    offline = os.environ | {"HF_HUB_OFFLINE": "1"}
    built = subprocess.run([*builder, *options], env=offline, capture_output=True, text=True)
    if built.returncode:
        said = built.stderr.strip().splitlines() or ["no word"]
        raise GranAlignError(f"its model builder: {said[-1]}")
    path = out / "genai_config.json"
    config = json.loads(path.read_text(encoding="utf-8"))
    config["model"]["eos_token_id"] = []  # so that no answer ends early
    path.write_text(json.dumps(config), encoding="utf-8")
    model = genai.Model(str(out))

    def run(prompts: list[list[int]], count: int) -> list[list[int]]:
        options = genai.GeneratorParams(model)
        length = len(prompts[0]) + count
        options.set_search_options(max_length=length, do_sample=False, batch_size=len(prompts))
        generator = genai.Generator(model, options)
        generator.append_tokens(np.array(prompts, np.int32))
        for _ in range(count):
            generator.generate_next_token()
        return [generator.get_sequence(row)[-count:].tolist() for row in range(len(prompts))]

    return run
