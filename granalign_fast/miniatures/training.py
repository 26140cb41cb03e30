"""Shared by the three trainings: initial weights, learning rate, checkpoints, the saved folder."""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from granalign_fast.files import appearing

THREADS = 2
"""Threads of torch: the last digits of results depend on their number."""


def seed_torch(seed: int, threads: int = THREADS) -> None:
    """Make torch deterministic, with so many threads."""
    import torch

    torch.set_num_threads(threads)
    torch.manual_seed(seed)
    torch.use_deterministic_algorithms(True)


def initialise(
    model: Any, depth: int, seed: int, *, inputs: Iterable[str], outputs: Iterable[str]
) -> None:
    """Draw the weights of a narrow model.

    The usual standard deviation of 0.02 suits wide models. At a width of 128 the layers' outputs
    are then so small that training makes no progress for hundreds of steps. Here it is
    1 / sqrt(inputs), divided by sqrt(2 depth) for weights whose products are added to the residual
    stream.

    Args:
        model: a torch module.
        depth: number of its layers.
        seed: seed of the weights.
        inputs: endings of the names of embeddings.
        outputs: endings of the names of weights whose products are added to the residual stream.
    """
    import torch

    torch.manual_seed(seed)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if weight.ndim < 2:
                continue
            if name.endswith(tuple(inputs)):
                weight.normal_(0, 0.1)
            else:
                small = math.sqrt(2 * depth) if name.endswith(tuple(outputs)) else 1.0
                weight.normal_(0, 1 / math.sqrt(weight[0].numel()) / small)


def optimiser(named: Iterable[tuple[str, Any]], rate: float, slower: Mapping[str, float]) -> Any:
    """Return AdamW with weight decay for matrices only: neither vectors nor embeddings decay.

    Args:
        named: parameters with their names.
        rate: learning rate.
        slower: factors of the learning rate, by the prefix of parameters' names.
    """
    import torch

    groups: dict[tuple[float, bool], list[Any]] = {}
    for name, weight in named:
        scale = next((s for start, s in slower.items() if name.startswith(start)), 1.0)
        decays = weight.ndim > 1 and "embed" not in name
        groups.setdefault((scale, decays), []).append(weight)
    settings = [
        {"params": weights, "weight_decay": 0.05 * decays, "scale": scale}
        for (scale, decays), weights in sorted(groups.items(), reverse=True, key=lambda g: g[0])
    ]
    return torch.optim.AdamW(settings, lr=rate, betas=(0.9, 0.98), fused=True)


def learning_rate(
    step: int, steps: int, rate: float, *, decay: float = 0.4, warm: int = 100
) -> float:
    """Return a step's learning rate.

    It rises linearly for `warm` steps, and falls as a cosine in the last share `decay` of all.
    """
    late = max(0.0, (step / steps - 1 + decay) / decay)
    return rate * min(1.0, (step + 1) / warm) * (0.02 + 0.49 * (1 + math.cos(math.pi * late)))


def train(
    name: str,
    modules: dict[str, Any],
    named: list[tuple[str, Any]],
    loss_of: Callable[[int], tuple[Any, dict[str, float]]],
    *,
    steps: int,
    rate: float,
    checkpoint: Path,
    decay: float = 0.4,
    every: int = 100,
    checkpoint_seconds: float = 180.0,
    stop: int | None = None,
    slower: Mapping[str, float] | None = None,
) -> None:
    """Run the steps, from the last checkpoint if there is one.

    Args:
        name: name that is printed before the progress.
        modules: torch modules that checkpoints save, by name.
        named: parameters to train, with their names.
        loss_at: returns a step's loss, and numbers to print; it may depend only on the step.
        steps: total number of steps.
        rate: highest learning rate.
        checkpoint: file of the checkpoint. It stays after the end, so a restart in a later stage
            skips this one.
        decay: share of the steps in which the learning rate falls.
        every: steps between lines of progress.
        stop: step after which to end early, if a later stage continues with the same weights.
        slower: factors of the learning rate, by the prefix of parameters' names.
        checkpoint_seconds: seconds between checkpoints; the last step always writes one.
    """
    import torch

    weights = [weight for _, weight in named]
    adam = optimiser(named, rate, slower or {})
    begin = 0
    if checkpoint.is_file():
        state = torch.load(checkpoint, weights_only=True)
        for key, module in modules.items():
            module.load_state_dict(state[key])
        adam.load_state_dict(state["optimiser"])
        begin = state["step"]
    means: dict[str, float] = {}
    started = saved = time.monotonic()
    last = stop or steps
    for step in range(begin, last):
        for group in adam.param_groups:
            group["lr"] = group["scale"] * learning_rate(step, steps, rate, decay=decay)
        loss, numbers = loss_of(step)
        adam.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(weights, 1.0)
        adam.step()
        for key, value in numbers.items():
            means[key] = 0.97 * means.get(key, value) + 0.03 * value
        done = step + 1
        if done % every == 0:
            seconds = (time.monotonic() - started) / (done - begin)
            progress = " ".join(f"{key} {value:.4f}" for key, value in means.items())
            print(f"{name} {done}/{last} {seconds:.3f} s/step {progress}", flush=True)
        if time.monotonic() - saved > checkpoint_seconds or done == last:
            state = {key: module.state_dict() for key, module in modules.items()}
            state |= {"optimiser": adam.state_dict(), "step": done}
            part = checkpoint.with_suffix(".part")
            torch.save(state, part)
            os.replace(part, checkpoint)
            saved = time.monotonic()


def save(out: Path, model: Any, *companions: Any) -> None:
    """Write a model in fp16, its tokenizer and processor, with transformers; atomically."""
    with appearing(out) as folder:
        model.half().save_pretrained(folder)
        for companion in companions:
            companion.save_pretrained(folder)
        for file in folder.iterdir():
            file.chmod(0o644)  # safetensors writes weights readable only by the owner
