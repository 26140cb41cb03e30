"""What a decode step costs the host, over a CUDA runtime that does nothing: ``make host-time``.

Llama 3 8B's 32 layers, but narrow: the host's work is the same, and nothing is computed anyway. It
is that of ONNX Runtime and of this package: CUDA's driver and CuPy are not there.
"""

from __future__ import annotations

import os
import statistics
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from helpers import fake_cupy
from helpers.tiny_llm import LLAMA, prompts_of, write_unchecked

from granalign_fast.models import static_cache
from granalign_fast.models.language_model import CausalLM

LAYERS, ROWS, FEW, MANY = 32, 7, 2, 34
CONFIG = LLAMA | {
    "hidden_size": 512,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "num_hidden_layers": LAYERS,
}


def seconds(model: CausalLM, new: int) -> float:
    """Of one batch with so many new tokens."""
    begin = time.perf_counter()
    model.generate(prompts_of(*[20] * ROWS), max_new_tokens=new, stop_ids=())
    return time.perf_counter() - begin


def main() -> None:
    """Print the time of a step in each of the three ways, taking turns."""
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
                static_cache._GRAPHS = 64 * name.endswith("graph")
                few, many = seconds(model, FEW), seconds(model, MANY)
                if turn > 1:  # the first captures
                    steps[name].append((many - few) / (MANY - FEW))
    for name, found in steps.items():
        print(f"{name:<26}{1e6 * statistics.median(found):8.0f} us of the host's a step")


if __name__ == "__main__":
    main()
