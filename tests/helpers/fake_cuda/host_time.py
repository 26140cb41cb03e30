"""Measure the host's time for a decode step, over a CUDA runtime that does nothing.

``make host-time`` runs this. The model has the 32 layers of Llama 3 8B but is narrow: the width
does not change the host's work, and nothing is computed. The time is that of ONNX Runtime and this
package, without CUDA's driver and CuPy.
"""

from __future__ import annotations

import os
import statistics
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from helpers import fake_cupy
from helpers.tiny_llm import LLAMA, prompts_of, write_unchecked

from granalign_fast.models import static_cache
from granalign_fast.models.language_model import CausalLM

LAYERS, ROWS = 32, 7
FEW, MANY = 2, 34
"""New tokens of a short and of a long batch; their difference is the time of the steps alone."""
CONFIG = LLAMA | {
    "hidden_size": 512,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "num_hidden_layers": LAYERS,
}


def seconds(model: CausalLM, new: int) -> float:
    """Return the time of one batch with `new` new tokens."""
    begin = time.perf_counter()
    model.generate(prompts_of(*[20] * ROWS), max_new_tokens=new, stop_ids=())
    return time.perf_counter() - begin


def main() -> None:
    """Print the time of a step for each of the three kinds of cache; they are timed in turns."""
    os.environ.pop("FAKE_CUDA_LOG", None)
    sys.modules["cupy"] = fake_cupy
    with tempfile.TemporaryDirectory() as folder:
        out = write_unchecked(Path(folder), CONFIG, precision="fp16")
        models = {
            "growing cache": CausalLM(out, device="cuda", static_cache=False),
            "static cache": CausalLM(out, device="cuda"),
            "static cache, CUDA graph": CausalLM(out, device="cuda"),
        }
        steps: dict[str, list[float]] = {name: [] for name in models}
        for turn in range(9):
            for name, model in models.items():
                static_cache._MAX_GRAPHS = 64 * name.endswith("graph")
                few, many = seconds(model, FEW), seconds(model, MANY)
                if turn > 1:  # the first two turns warm up and capture
                    steps[name].append((many - few) / (MANY - FEW))
    for name, times in steps.items():
        print(f"{name:<26}{1e6 * statistics.median(times):8.0f} us of the host's time per step")


if __name__ == "__main__":
    main()
