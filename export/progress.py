"""How far an export is: the part of the model whose weights are read, and the bytes so far."""

from __future__ import annotations

import re
from collections.abc import Callable

from .sources.checkpoint import Checkpoint

Written = Callable[[str, int, int], None]
"""Called as weights are written: with their part, such as "layer 3 of 28", the bytes of the source
that have been read, and those of all."""

_LAYER = re.compile(r"(.*\.)?(?:layers?|blocks)\.(\d+)\.")


def watch(checkpoint: Checkpoint, written: Written | None) -> None:
    """Report what is read of a checkpoint from now on; a tensor that is read again counts once."""
    if written is None:
        checkpoint.observe = lambda name, count: None
        return
    report, left = written, {name: checkpoint.stored_bytes(name) for name in checkpoint.names}
    total = sum(left.values())
    layers: dict[str, int] = {}
    for name in left:
        if match := _LAYER.match(name):
            stack = match[1] or ""
            layers[stack] = max(layers.get(stack, 0), int(match[2]) + 1)

    def observe(name: str, count: int) -> None:
        left[name] = max(0, left[name] - count)
        report(_part(name, layers), total - sum(left.values()), total)

    checkpoint.observe = observe


def _part(name: str, layers: dict[str, int]) -> str:
    """Return in words which part of the model a tensor belongs to."""
    match = _LAYER.match(name)
    if match is None:
        return "embeddings" if "embed" in name else "other weights"
    stack = match[1] or ""
    tower = "image " if "vis" in stack else "text " if "text" in stack else ""
    return f"{tower}layer {int(match[2]) + 1} of {layers[stack]}"
