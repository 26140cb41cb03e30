"""torchvision's Python alone: its compiled part wants CUDA's libraries.

transformers' processors of videos, and SmolVLM2's, import torchvision. Where it can be imported,
transformers chooses other image processors, so it lies in a folder of its own, and only tests that
are marked ``needs_torchvision`` run with it.
"""

from __future__ import annotations

import functools
import importlib.util
from typing import Any

import pytest


@functools.cache
def declare_operators() -> Any:
    """Declare two operators, which no processor calls, so that torchvision can be imported."""
    import torch

    library = torch.library.Library("torchvision", "DEF")
    for name in ("nms", "qnms"):
        library.define(f"{name}(Tensor boxes, Tensor scores, float threshold) -> Tensor")
    return library  # the operators are gone when it is


def require_torchvision() -> None:
    """Make torchvision importable, or skip the test."""
    if importlib.util.find_spec("torchvision") is None:
        pytest.skip("run make test-transformers, which installs torchvision")
    declare_operators()
